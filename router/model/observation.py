"""Facts that the edges report: faults of the data path, probes of endpoints, claims of a role. No judgement here."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, unique

from router.model.identity import NO_LSN, NO_TERM, EndpointName, Generation, Lsn, Term


@unique
class Stage(Enum):
    """How far an attempt had come when it failed."""

    ACQUIRE = "acquire"
    """Waiting for a connection or a lane; nothing sent."""
    CONNECT = "connect"
    """Opening a connection; nothing sent."""
    SEND = "send"
    """Given to a lane, but no byte of it had left."""
    EXECUTE = "execute"
    """Sent; no complete answer."""
    STREAM = "stream"
    """Rows had already come back."""
    COMMIT = "commit"
    """COMMIT was sent, also the implicit one of a statement alone."""


@unique
class FaultKind(Enum):
    """What happened."""

    SERVER_ERROR = "server_error"
    """PostgreSQL answered with an error: a definite answer, the transaction is undone."""
    CONNECTION_LOST = "connection_lost"
    CONNECT_REFUSED = "connect_refused"
    CONNECT_FAILED = "connect_failed"
    """Any other failure to connect: time-out, TLS, login, too many clients, starting up (told apart by phase, as
    psycopg gives no SQLSTATE there)."""
    SILENT = "silent"
    """The deadline passed without an answer; the connection was abandoned."""
    POOL_TIMEOUT = "pool_timeout"
    CANCELLED = "cancelled"
    """The caller went away or asked to cancel, and the statement was stopped."""
    STALE = "stale"
    """The connection is of an older generation and was fenced."""
    LOCAL_COMMIT = "local_commit"
    """COMMIT answered, but with notice 01000: not confirmed by the synchronous standby."""
    KEY_BUSY = "key_busy"
    """The transaction that holds the request's idempotency key is still open."""
    PROTOCOL = "protocol"
    TOO_LARGE = "too_large"
    """More came than an answer may hold; the connection was closed in the middle of it."""
    CLOSED = "closed"
    """The pool was closed or drained under the request."""


@dataclass(frozen=True, slots=True)
class PgError:
    """The fields of PostgreSQL's ErrorResponse."""

    severity: str = ""
    sqlstate: str = ""
    message: str = ""
    detail: str = ""
    hint: str = ""
    position: int = 0
    context: str = ""
    schema: str = ""
    table: str = ""
    column: str = ""
    data_type: str = ""
    constraint: str = ""
    routine: str = ""
    """The function of PostgreSQL's source that raised it; unlike the message it is never translated."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Why an attempt failed, as the edge saw it."""

    kind: FaultKind
    stage: Stage
    sqlstate: str = ""
    message: str = ""
    """For the operator's log; never shown to another tenant."""
    detail: PgError | None = None
    endpoint: EndpointName = EndpointName("")
    generation: Generation = Generation(0)
    step: int = 0
    """Which statement of a batch failed, from 0."""
    stale_statement: bool = False
    """The error is about our prepared statement (gone, or its plan outdated), raised before execution; the lane has
    forgotten it, so that the same statement succeeds when repeated."""
    shared: bool = False
    """Several waited for the connect that failed, or that failed shortly before; another one of them is charged with
    it."""

    @property
    def sent(self) -> bool:
        """Whether any byte of the work may have reached the server."""
        return self.stage not in (Stage.ACQUIRE, Stage.CONNECT, Stage.SEND)

    @property
    def cost_a_server(self) -> bool:
        """Whether a server had to do with this attempt: something was sent, or a connect was made for it."""
        return self.sent or (self.stage is Stage.CONNECT and not self.shared)


class AttemptFailed(Exception):
    """An attempt failed; the fault says how. Raised by edges, judged by decisions/retry."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(f"{fault.kind.value} at {fault.stage.value}: {fault.sqlstate} {fault.message}")
        self.fault = fault


@unique
class ProbeOutcome(Enum):
    """What one probe found."""

    OK = "ok"
    REFUSED = "refused"
    """Nothing listens: first-hand proof that the server is not running."""
    STARTING = "starting"
    """The server says that it is starting up, shutting down or in recovery (57P03)."""
    TIMEOUT = "timeout"
    LOST = "lost"
    """The existing connection broke."""
    FRESH_HANGS = "fresh_hangs"
    """The existing connection answers, a fresh one hangs."""
    LOGIN_REFUSED = "login_refused"
    UNRESOLVED = "unresolved"
    FULL = "full"
    """Too many clients: alive."""
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class RoleClaim:
    """What a server says about itself. Not in recovery alone does not make a primary: two may say so."""

    in_recovery: bool
    system_id: int
    timeline: Term
    """By pg_walfile_name on a primary, received_tli on a standby; never from the control file, which lags."""
    lsn: Lsn = NO_LSN
    """Insert position of a primary; replay position of a standby."""
    received_lsn: Lsn = NO_LSN
    """Standby: last position received (what it would keep if promoted now)."""
    lag_s: float = -1.0
    """Standby: age of the last replayed transaction, 0 when everything received is replayed; -1 unknown."""
    receiver_alive: bool = False
    """Standby: its walreceiver streams."""
    receiver_silent_s: float = -1.0
    """Standby: seconds since the last message from upstream; -1 unknown."""
    sync_names: str = ""
    """synchronous_standby_names as set on this server."""
    sync_standbys: tuple[str, ...] = ()
    """Primary: application_name of the standbys that stream with sync_state sync or quorum."""
    standbys: tuple[str, ...] = ()
    """Primary: application_name of all streaming standbys."""
    application_name: str = ""
    """Standby: its own application_name in primary_conninfo (what synchronous_standby_names lists)."""
    read_only: bool = False
    """default_transaction_read_only is on outside recovery."""
    version: int = 0
    """server_version_num."""
    retry_interval_ms: int = 0
    """wal_retrieve_retry_interval; the default 5 s makes some promotions take 5 s."""
    receiver_ping_s: float = -1.0
    """Standby: half of wal_receiver_timeout: a living upstream is heard at least this often; -1 when turned off."""
    fenced: bool = False
    """Standby: cut from its upstream by Surgeon.fence."""
    history: tuple[tuple[Term, Lsn], ...] | None = None
    """Primary: the timelines before its own, each with the position at which it was left; None: not asked; empty: it
    has none, or may not tell."""


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """One probe of one endpoint."""

    endpoint: EndpointName
    outcome: ProbeOutcome
    at: float
    """Monotonic seconds when it ended."""
    took_s: float = 0.0
    claim: RoleClaim | None = None
    message: str = ""
    fresh: bool = False
    """A fresh connection was opened, too."""


NO_CLAIM = RoleClaim(in_recovery=True, system_id=0, timeline=NO_TERM)
