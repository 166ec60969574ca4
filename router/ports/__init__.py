"""What the engine needs from outside, as Protocols: the whole outside world on four pages (budgets.py and listening.py
are the others).

An edge names the contract it fulfils by this file; it never imports the engine. Fakes for tests are in tests/support.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from router.model.copying import CopyLayout
from router.model.events import Event
from router.model.identity import ClusterName, Generation
from router.model.journal import ClusterRecord
from router.model.observation import Fault, ProbeResult
from router.model.reasons import CloseReason
from router.model.request import Access, Statement, StatementTraits
from router.model.result import Cells, StatementResult
from router.model.topology import Cluster, Endpoint, Tenant, Topology


class Clock(Protocol):
    """Monotonic seconds; the same clock as the event loop's."""

    def now(self) -> float: ...

    async def sleep(self, seconds: float) -> None: ...


class Chance(Protocol):
    """Drawn numbers."""

    def draw(self) -> float:
        """Uniform in [0, 1)."""
        ...

    def identifier(self) -> str:
        """A request id nobody can guess, 22 characters."""
        ...


class EventSink(Protocol):
    """Takes every event; never raises, never waits."""

    def emit(self, event: Event) -> None: ...


Done = Callable[["Unit"], None]


@dataclass(slots=True, eq=False)
class Unit:
    """Work for one lane: statements that share one Sync, so that they succeed or fail together.

    The lane fills results and fault, then calls done once, from the event loop. After done the unit is final.
    """

    statements: Sequence[Statement]
    done: Done
    on_rows: Callable[[Cells], bool] | None = None
    """For a stream (one statement): called with each chunk of rows as it arrives; False asks the lane to stop
    reading until resume_reading(). The last result then has no rows of its own."""
    chunk_rows: int = 0
    commits: bool = True
    """Whether the last statement ends a transaction (also implicitly): then a lost answer leaves the outcome open."""
    tells_executed: bool = False
    """The last result comes before the commit that follows: so it tells when a cancel would only end its wait."""
    results: list[StatementResult] = field(default_factory=list)
    fault: Fault | None = None
    sent: bool = False
    """Set when the first byte may have left."""
    sent_at: float = 0.0
    """The last time, where a lane has sent it again: then after what it had been sent together with."""
    done_at: float = 0.0
    """When the unit became final; 0 before. done is called in the same loop turn or the next."""


class CopyChannel(Protocol):
    """The COPY that a unit is: its data, to or from PostgreSQL. How it ended is in the unit, once that is done.

    All methods may be called at any time, also after the end; one of the waiting ones at a time.
    """

    @property
    def layout(self) -> CopyLayout | None:
        """Set once PostgreSQL has begun to copy."""
        ...

    async def started(self) -> None:
        """Wait until PostgreSQL has begun to copy, or the unit is done."""
        ...

    async def read(self) -> bytes:
        """From PostgreSQL: the next piece, at most 128 KiB; b"" when the unit is done and all was read. Who does not
        call it stops PostgreSQL after a few pieces."""
        ...

    def drop(self) -> None:
        """From PostgreSQL: the rest is not wanted; so PostgreSQL, which may wait for us to read, hears a cancel."""
        ...

    async def write(self, data: bytes) -> bool:
        """To PostgreSQL: waits while it does not take the data before. False when it takes no more: see the unit."""
        ...

    def finish(self, *, commits: bool) -> None:
        """To PostgreSQL: all data was written. commits: no transaction is open around it, so from here on a lost answer
        leaves the outcome open; that is set on the unit."""
        ...

    def fail(self, why: str) -> None:
        """To PostgreSQL: undo it, unless finish was called. The answer is SQLSTATE 57014."""
        ...


class Lane(Protocol):
    """A connection in pipeline mode. Answers come in the order of submission.

    A statement with more than one unit in flight must not be stopped by a cancel request: it could hit a neighbour.
    """

    @property
    def generation(self) -> Generation: ...

    @property
    def in_flight(self) -> int:
        """Units submitted and not done."""
        ...

    @property
    def usable(self) -> bool:
        """Alive, in sync, of the current generation and not past its lifetime."""
        ...

    @property
    def in_transaction(self) -> bool:
        """libpq's transaction status is not known to be idle: also while a unit is in flight."""
        ...

    @property
    def in_failed_transaction(self) -> bool: ...

    @property
    def altered(self) -> bool:
        """Outside of a transaction: a setting that the server reports by itself is not what the session was born with.
        By itself a lane that is kept from writing ends when that is no longer so, and takes nothing new when its
        search_path is another one."""
        ...

    def submit(self, unit: Unit) -> None:
        """Queue a unit; bytes leave at the end of this loop turn. On a broken lane the unit fails at once, unsent."""
        ...

    def submit_now(self, *units: Unit) -> None:
        """The same, but bytes leave before this returns, in one send: for who has nothing to add in this turn."""
        ...

    def open_copy(self, unit: Unit) -> CopyChannel:
        """Send a unit of one COPY statement, with commits False; the lane must have nothing in flight, and is the
        copy's alone until the unit is done. Otherwise the unit is one like any other."""
        ...

    def abandon(self, reason: CloseReason) -> None:
        """Shut the socket now: every unit in flight fails, the connection is destroyed. Their fault is STALE for reason
        GENERATION, CONNECTION_LOST for the same reason, else CLOSED: we ended it, no evidence against the server."""
        ...

    async def cancel(self) -> bool:
        """Ask the server to cancel what runs (PQcancel), at most 100 ms; only for the only unit in flight, and
        never when that unit is a COMMIT. The unit's own answer tells the outcome. False: a request may arrive yet; the
        lane is unusable from then on, as it could hit whatever runs there next."""
        ...

    def resume_reading(self) -> None: ...

    def forget_prepared(self) -> None:
        """DISCARD ALL has run here: what was prepared is gone on the server."""
        ...

    async def give_back(self, *, tainted: bool = False) -> None:
        """Return the connection to its pool if it is proven idle, in sync, of this generation and not tainted;
        else destroy it. Shielded: completes also when the caller is cancelled."""
        ...


@dataclass(frozen=True, slots=True)
class PoolStatistics:
    """Connections of one pool."""

    size: int = 0
    idle: int = 0
    leased: int = 0
    opening: int = 0
    waiting: int = 0
    max_size: int = 0
    in_line: bool = False
    """It waits for a place under the endpoint's cap."""


class EndpointPool(Protocol):
    """Connections of one tenant to one endpoint for one access."""

    @property
    def generation(self) -> Generation: ...

    async def open_lane(self, deadline: float) -> Lane:
        """Borrow a connection as a lane. AttemptFailed (stage ACQUIRE or CONNECT) by the deadline at the latest; a
        failure to connect is told at once, not waited out."""
        ...

    def fence(self, generation: Generation) -> None:
        """From now on only connections opened under this generation are lent; older ones that are leased are
        abandoned at once, idle ones closed."""
        ...

    async def close(self, reason: CloseReason) -> None: ...

    def statistics(self) -> PoolStatistics: ...


class PoolFactory(Protocol):
    """Makes the pool of a tenant for an endpoint; opens nothing yet."""

    def make(self, tenant: Tenant, cluster: Cluster, endpoint: Endpoint, access: Access,
             generation: Generation) -> EndpointPool: ...


class Prober(Protocol):
    """Watches one endpoint with connections of its own, never a tenant's."""

    async def probe(self, *, fresh: bool, log_in: bool = True) -> ProbeResult:
        """One round trip on the existing connection (opened when missing), and with fresh also on a new one. Without
        log_in none is opened: where one is missing, what the server says to a stranger.
        Never raises, never takes longer than the policy's timeout by more than 50 ms."""
        ...

    async def close(self) -> None: ...


class Surgeon(Protocol):
    """Changes the roles of one cluster's servers by SQL with the control login. Each act is idempotent.

    Raises AttemptFailed. Every act ends by its deadline (monotonic seconds).
    """

    async def look(self, server: Endpoint, deadline: float) -> ProbeResult:
        """What a server says about itself now."""

    async def fence(self, standby: Endpoint, deadline: float) -> ProbeResult:
        """Cut a standby from its upstream (its login there is kept), wait until its walreceiver is gone, and say what
        it has received. A primary that needs its acknowledgement can then commit nothing. The fence bears the mark of
        this router; another one that fences the same standby replaces it."""
        ...

    async def still_fenced(self, standby: Endpoint, deadline: float) -> bool:
        """Whether it is a standby yet, follows nobody, and bears our mark: nobody else has moved it meanwhile."""
        ...

    async def set_synchronous(self, server: Endpoint, names: str, deadline: float) -> None:
        """Set synchronous_standby_names and reload."""
        ...

    async def promote(self, standby: Endpoint, deadline: float) -> ProbeResult:
        """pg_promote, and wait until it has left recovery. The server itself makes sure, in the same statement, that
        it is a standby with our fence on it: AttemptFailed when it is not, and nothing was done."""
        ...

    async def repoint(
        self, standby: Endpoint, upstream: Endpoint, deadline: float, *, others_too: bool = True
    ) -> None:
        """Make a standby stream from another server (primary_conninfo and reload), with its own application_name.

        others_too: also one under the fence of another router; else AttemptFailed there.
        """
        ...

    async def commits_wait(self, primary: Endpoint, deadline: float) -> bool:
        """Whether commits on a new primary, which nobody follows yet, wait for a standby: as soon as one is seen to
        wait; False when they still come through shortly before the deadline."""
        ...

    async def verify_write(self, primary: Endpoint, deadline: float) -> None:
        """Prove service: a write that waits for the synchronous standby."""
        ...

    async def hold_writes(self, primary: Endpoint, deadline: float) -> ProbeResult:
        """Planned switchover: make new transactions read-only, end those that run, and say the last position.

        A transaction that says READ WRITE itself is not held by that: those that write are waited for and then ended,
        however late they began, until one look finds none."""
        ...

    async def still_held(self, primary: Endpoint, deadline: float) -> bool:
        """Whether nobody has written, nor is about to commit, since hold_writes said the position. AttemptFailed when
        the primary does not tell."""
        ...

    async def allow_writes(self, primary: Endpoint, deadline: float) -> None:
        """Undo hold_writes."""
        ...

    async def close(self) -> None: ...


class EdgeFactory(Protocol):
    """Makes the watchers and surgeons of clusters."""

    def prober(self, cluster: Cluster, endpoint: Endpoint) -> Prober: ...

    def surgeon(self, cluster: Cluster) -> Surgeon: ...


class Journal(Protocol):
    """What survives a router that is killed: one page a cluster."""
    def read(self, cluster: ClusterName) -> ClusterRecord | None:
        """The page as last written, None when there is none. JournalFailed. Blocks: for the start only."""
        ...

    async def write(self, record: ClusterRecord) -> None:
        """Replace the cluster's page, on disk when this returns. JournalFailed. The newest write wins, in whatever
        order they end; the caller bounds how long they may take."""
        ...


class TopologySource(Protocol):
    """Where the topology comes from."""

    def watch(self) -> AsyncIterator[Topology]:
        """The topology now, then after each change; a bad document keeps the last good one."""
        ...


class StatementInspector(Protocol):
    """Reads statements; the answer for a text is computed once and kept in a bounded cache."""

    def inspect(self, sql: bytes) -> StatementTraits: ...

    def inspect_in_session(self, sql: bytes) -> StatementTraits:
        """The same for a statement of an interactive transaction: its residue also counts what functions may leave of
        which nobody here knows what they do."""
        ...

    def inspect_nested(self, sql: bytes) -> StatementTraits:
        """The same of a text that is to stand between the parentheses of COPY (...): refused unless it is one query,
        whole in itself, so that it cannot close them."""
        ...
