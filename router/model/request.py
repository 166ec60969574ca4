"""One request as the engine sees it: statements, where they may run, and what is known about repeating them."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, IntEnum, unique

from router.model.reasons import RefuseReason
from router.model.token import Token


@unique
class Access(Enum):
    """Which of the two kinds of connection a request needs; PostgreSQL enforces READ_ONLY."""

    __hash__ = object.__hash__  # members are single objects; Enum's own hashes the name, in Python, on each look-up

    READ_ONLY = "read_only"
    READ_WRITE = "read_write"


@unique
class ReadFrom(Enum):
    """The caller's read preference."""

    PRIMARY = "primary"
    REPLICA = "replica"
    ANY = "any"


@unique
class Fallback(Enum):
    """What happens to a replica read without an eligible replica."""

    TO_PRIMARY = "to_primary"
    FAIL = "fail"


@unique
class OnFailover(Enum):
    """Whether a request may wait for a failover to end."""

    WAIT = "wait"
    FAIL_FAST = "fail_fast"


@unique
class Method(Enum):
    """The RPC, also as metric label."""

    __hash__ = object.__hash__  # members are single objects; Enum's own hashes the name, in Python, on each look-up

    QUERY = "query"
    STREAM_QUERY = "stream_query"
    EXECUTE = "execute"
    EXECUTE_BATCH = "execute_batch"
    TRANSACT = "transact"
    COPY_OUT = "copy_out"
    COPY_IN = "copy_in"
    GET_OUTCOME = "get_outcome"
    LISTEN = "listen"


@unique
class Isolation(Enum):
    """Transaction isolation level; the value is its SQL."""

    DEFAULT = ""
    READ_COMMITTED = "READ COMMITTED"
    REPEATABLE_READ = "REPEATABLE READ"
    SERIALIZABLE = "SERIALIZABLE"


@unique
class CancelOutcome(Enum):
    """What became of the wish to cancel a running request."""

    CANCELLING = "cancelling"
    """It was running and has been asked to stop."""
    NOT_FOUND = "not_found"
    """No such request of this tenant is running."""
    NOT_CANCELLABLE = "not_cancellable"
    """Its COMMIT is on the way: stopping it now would hide the outcome."""


@unique
class WriteOutcome(Enum):
    """What became of a write."""

    COMMITTED = "committed"
    """Done, as durable as a commit of the router is."""
    NOT_FOUND = "not_found"
    """The present primary knows no such key: rolled back, not come (yet), or lost with a former primary."""
    RUNNING = "running"
    """Under way, or waiting for its standby."""
    UNKNOWN = "unknown"
    """Nobody here can tell."""


@unique
class TransactionState(Enum):
    """libpq's transaction status of a session's connection."""

    IDLE = "idle"
    IN_TRANSACTION = "in_transaction"
    IN_ERROR = "in_error"


@unique
class Residue(IntEnum):
    """What a statement may leave behind in its session; the greater one counts."""

    NONE = 0
    DISCARD = 1
    """DISCARD ALL takes it away."""
    DESTROY = 2
    """DISCARD ALL does not, or nobody knows: the connection ends."""


@unique
class Escape(IntEnum):
    """What a statement may do in a transaction that was begun READ ONLY; the greater one counts."""

    NONE = 0
    """PostgreSQL keeps it from having an effect."""
    POSSIBLE = 1
    """It may have one all the same, for all that is known here."""
    CERTAIN = 2
    """It makes the transaction writable."""


NO_READ = "this is no read, though PostgreSQL may take it for one: use Execute"


@dataclass(slots=True)
class Statement:
    """SQL with native placeholders, and its parameters as they go to PostgreSQL. Nobody changes one that was made.

    Not frozen: one is made for each request, and a frozen one takes three times as long to make.
    """

    sql: bytes
    params: tuple[bytes | None, ...] = ()
    """Each value in its wire form, None for NULL."""
    formats: tuple[int, ...] = ()
    """0 text, 1 binary, one per parameter."""
    oids: tuple[int, ...] = ()
    """Type OID per parameter, 0 to let PostgreSQL infer; empty means all 0."""


@dataclass(frozen=True, slots=True)
class StatementTraits:
    """What a statement's parse tree tells."""

    kind: str = ""
    """"select", "insert", "ddl", ... for metrics and learned costs."""
    refuse: RefuseReason | None = None
    """Why it may not run as a statement alone (outside Transact)."""
    refuse_in_transaction: RefuseReason | None = None
    """Why it may not run inside Transact either (its own COMMIT, several statements, COPY)."""
    message: str = ""
    """What to tell the caller, naming the right RPC."""
    residue: Residue = Residue.NONE
    """What it leaves behind in its session."""
    reads_sequences: bool = False
    """It asks what its session drew from a sequence (currval, lastval) and draws nothing itself."""
    commits_inside: bool = False
    """Alone, it may commit on its way (CALL, a DO that says COMMIT, VACUUM, ... CONCURRENTLY): an error undoes only
    what came after."""
    escape: Escape = Escape.NONE
    """What it may do where a transaction is read-only."""
    path_to_temporary: bool = False
    """From here on, what its transaction creates without naming a schema may be temporary."""
    refuse_as_read: RefuseReason | None = None
    """Why it may not run as a read (Query, StreamQuery): what leaves a residue, or may commit on its way, is none."""

    def __post_init__(self) -> None:
        if self.refuse_as_read is None and (self.refuse is not None or self.residue or self.commits_inside):
            object.__setattr__(self, "refuse_as_read", self.refuse or RefuseReason.WRITE_ON_READ_METHOD)
        if self.refuse_as_read is not None and not self.message:
            object.__setattr__(self, "message", NO_READ)


@unique
class GuardNeed(Enum):
    """Which condition a guard states about an earlier step."""

    ROWS_AFFECTED_EQUALS = "rows_affected_equals"
    ROWS_AT_LEAST = "rows_at_least"
    NO_ROWS = "no_rows"


@dataclass(frozen=True, slots=True)
class Guard:
    """A condition on the result of an earlier step of a batch."""

    step: int
    need: GuardNeed
    count: int = 0
    skip: bool = False
    """True: only the guarded step is skipped; False: the whole batch is rolled back."""

    def holds(self, rows_affected: int) -> bool:
        """Whether a step that affected (or returned) this many rows satisfies the guard."""
        match self.need:
            case GuardNeed.ROWS_AFFECTED_EQUALS:
                return rows_affected == self.count
            case GuardNeed.ROWS_AT_LEAST:
                return rows_affected >= self.count
            case GuardNeed.NO_ROWS:
                return rows_affected == 0


@dataclass(slots=True)
class BatchStep:
    """One statement of a batch. As Statement: nobody changes one that was made."""

    statement: Statement
    guard: Guard | None = None
    want_rows: bool = False


@dataclass(frozen=True, slots=True)
class TransactionMode:
    """How a transaction begins."""

    isolation: Isolation = Isolation.DEFAULT
    read_only: bool = False
    deferrable: bool = False

    def begin_sql(self) -> bytes:
        """The BEGIN statement of this mode."""
        words = ["BEGIN"]
        if self.isolation is not Isolation.DEFAULT:
            words.append(f"ISOLATION LEVEL {self.isolation.value}")
        words.append("READ ONLY" if self.read_only else "READ WRITE")
        if self.deferrable:
            words.append("DEFERRABLE")
        return " ".join(words).encode()


@unique
class Priority(Enum):
    """Among the requests of one tenant that wait, who goes first."""

    LOW = 1
    MEDIUM = 2
    HIGH = 3


@dataclass(frozen=True, slots=True)
class Options:
    """What the caller asked for beside the statements."""

    read: ReadFrom = ReadFrom.PRIMARY
    max_staleness_s: float = 0.0
    """0: the tenant's lag limit."""
    fallback: Fallback = Fallback.TO_PRIMARY
    on_failover: OnFailover = OnFailover.WAIT
    max_rows: int = 0
    max_bytes: int = 0
    request_tag: str = ""
    priority: Priority = Priority.MEDIUM
    hedge: bool = False
    """A read may be asked of a second endpoint when the first one takes long."""
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Made once, looked up with every request; hashing enums takes longer than all the rest of routing.
        facts = (self.read, self.max_staleness_s, self.fallback, self.on_failover, self.max_rows, self.request_tag)
        object.__setattr__(self, "_hash", hash(facts))

    def __hash__(self) -> int:
        return self._hash


DEFAULT_OPTIONS = Options()


@dataclass(slots=True)
class Request:
    """One request on its way through the engine."""

    method: Method
    steps: tuple[BatchStep, ...]
    deadline: float
    """Monotonic seconds; nothing of the request outlives it."""
    options: Options = DEFAULT_OPTIONS
    request_id: str = ""
    mode: TransactionMode | None = None
    """Set for a batch: its steps are one transaction."""
    idempotency_key: str = ""
    size_bytes: int = 0
    """Bytes of SQL and parameters: what a hold counts."""
    residue: Residue = Residue.NONE
    """Of its statements; known once it is admitted."""
    own_sequences: bool = False
    """A batch that asks what its own session drew from sequences: what others drew there is forgotten first."""
    commits_inside: bool = False
    """Its statement may commit on its way, where no transaction of ours is around it; known once it is admitted."""
    escape: Escape = Escape.NONE
    """Of its statements, where their transaction is to be read-only; known once it is admitted, or as they come."""
    nested_query: bytes = b""
    """The query that a COPY has between parentheses; empty otherwise."""
    after: Token | None = None
    """What a read must see at least."""

    @property
    def access(self) -> Access:
        """READ_ONLY for the methods that PostgreSQL keeps from writing."""
        if self.method in (Method.QUERY, Method.STREAM_QUERY, Method.COPY_OUT, Method.LISTEN):
            return Access.READ_ONLY
        return Access.READ_WRITE

    @property
    def keyed(self) -> bool:
        """A write that is made exactly-once by its key; a read-only batch can be repeated without one."""
        return bool(self.idempotency_key) and not (self.mode is not None and self.mode.read_only)
