"""What the engine needs from outside, as Protocols: the whole outside world on two pages.

An edge names the contract it fulfils by this file; it never imports the engine. Fakes for tests are in tests/support.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from router.model.events import Event
from router.model.identity import Generation
from router.model.observation import Fault, ProbeResult
from router.model.reasons import CloseReason, RefuseReason
from router.model.request import Access, Statement
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
    results: list[StatementResult] = field(default_factory=list)
    fault: Fault | None = None
    sent: bool = False
    """Set when the first byte may have left."""
    sent_at: float = 0.0
    done_at: float = 0.0
    """When the unit became final; 0 before. done is called in the same loop turn or the next."""


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

    def submit(self, unit: Unit) -> None:
        """Queue a unit; bytes leave at the end of this loop turn. On a broken lane the unit fails at once, unsent."""
        ...

    def abandon(self, reason: CloseReason) -> None:
        """Shut the socket now: every unit in flight fails, the connection is destroyed.

        Their fault is STALE for reason GENERATION, CONNECTION_LOST for the same reason, else CLOSED: we ended it, so
        it is no evidence against the server.
        """
        ...

    async def cancel(self) -> None:
        """Ask the server to cancel what runs (PQcancel), at most 100 ms; only for the only unit in flight, and
        never when that unit is a COMMIT. The unit's own answer tells the outcome. A request whose arrival is not
        certain leaves the lane unusable: it could hit whatever runs there next."""
        ...

    def resume_reading(self) -> None: ...

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

    async def probe(self, *, fresh: bool) -> ProbeResult:
        """One round trip on the existing connection (opened when missing), and with fresh also on a new one.
        Never raises, never takes longer than the policy's timeout by more than 50 ms."""
        ...

    async def close(self) -> None: ...


class Surgeon(Protocol):
    """Changes the roles of one cluster's servers by SQL with the control login. Each act is idempotent.

    Raises AttemptFailed. Every act ends by its deadline (monotonic seconds).
    """

    async def fence(self, standby: Endpoint, deadline: float) -> ProbeResult:
        """Cut a standby from its upstream (its login there is kept), wait until its walreceiver is gone, and say what
        it has received. A primary that needs its acknowledgement can then commit nothing."""
        ...

    async def set_synchronous(self, server: Endpoint, names: str, deadline: float) -> None:
        """Set synchronous_standby_names and reload."""
        ...

    async def promote(self, standby: Endpoint, deadline: float) -> ProbeResult:
        """pg_promote, and wait until it has left recovery."""
        ...

    async def repoint(self, standby: Endpoint, upstream: Endpoint, deadline: float) -> None:
        """Make a standby stream from another server (primary_conninfo and reload), with its own application_name."""
        ...

    async def verify_write(self, primary: Endpoint, deadline: float) -> None:
        """Prove service: a write that waits for the synchronous standby."""
        ...

    async def hold_writes(self, primary: Endpoint, deadline: float) -> ProbeResult:
        """Planned switchover: make new transactions read-only, end those that run, and say the last position."""
        ...

    async def allow_writes(self, primary: Endpoint, deadline: float) -> None:
        """Undo hold_writes."""
        ...

    async def close(self) -> None: ...


class EdgeFactory(Protocol):
    """Makes the watchers and surgeons of clusters."""

    def prober(self, cluster: Cluster, endpoint: Endpoint) -> Prober: ...

    def surgeon(self, cluster: Cluster) -> Surgeon: ...


class TopologySource(Protocol):
    """Where the topology comes from."""

    def watch(self) -> AsyncIterator[Topology]:
        """The topology now, then after each change; a bad document keeps the last good one."""
        ...


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
    taints: bool = False
    """It changes session state: the connection is not reused."""


class StatementInspector(Protocol):
    """Reads statements; the answer for a text is computed once and kept in a bounded cache."""

    def inspect(self, sql: bytes) -> StatementTraits: ...
