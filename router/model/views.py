"""What an operator is shown: the engine's state as values, in the order of admin_service.proto."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import Enum, unique

from router.model.checkup import Finding
from router.model.events import Phase
from router.model.identity import ClusterName, EndpointName, Generation, TenantName, Term, TopologyNumber
from router.model.reasons import ConcurrencyReason
from router.model.request import Access
from router.model.state import EndpointState
from router.model.topology import FailoverMode


@unique
class ConfigEffect(Enum):
    """How a change of the configuration comes into force."""

    AT_ONCE = "at_once"
    """Nothing is closed."""
    NEW_CONNECTIONS = "new_connections"
    """New connections have it; those that are open close when what runs on them has ended."""
    DRAINS = "drains"
    """Nothing new begins there; what runs ends, then its connections close."""
    RESTART = "restart"
    """When the router starts again."""


@dataclass(frozen=True, slots=True)
class ConfigChange:
    """One difference between two configurations."""

    place: str
    """tenants.acme.pool.max_size"""
    change: str
    """"8 → 16", "added", "removed", "changed (secret)": a secret is never shown."""
    effect: ConfigEffect

    def __str__(self) -> str:
        return f"{self.place}: {self.change}"


@dataclass(frozen=True, slots=True)
class ConfigDiff:
    """What a configuration would change. One with problems would change nothing."""

    changes: tuple[ConfigChange, ...] = ()
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ConfigView:
    """The configuration in force, and why a newer one is not."""

    path: str = ""
    age_s: float = 0.0
    """Since it was applied."""
    problems: tuple[str, ...] = ()
    """Why the newest one is not in force, each as "file:line: place: words"; empty when it is."""
    refused_s: float = 0.0
    """For how long the newest one has been refused."""


@dataclass(frozen=True, slots=True)
class CertificateTrouble:
    """What stands in the files of a port's certificates is of no use: those before go on."""

    port: str
    """callers or operators"""
    problem: str
    """Which file, and why."""
    for_s: float
    """Since it began."""


@dataclass(frozen=True, slots=True)
class ServerView:
    """The router process."""

    version: str
    uptime_s: float
    topology: TopologyNumber
    libpq_version: int = 0
    """For example 180000."""
    config: ConfigView = ConfigView()
    certificates: tuple[CertificateTrouble, ...] = ()


@dataclass(frozen=True, slots=True)
class TenantView:
    """One tenant: what it has running now, and how its requests have ended since the start."""

    name: TenantName
    cluster: ClusterName
    database: str
    in_flight: int = 0
    held: int = 0
    queued: int = 0
    served: int = 0
    failed: int = 0
    refused: int = 0
    cancelled: int = 0
    paused: bool = False
    listeners: int = 0
    """Listen streams open; in_flight has them, too."""
    channels: int = 0
    """Different channels that they listen to, counted for each process by itself."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """How many connections may be at work at an endpoint at once, over all processes."""

    limit: int = 0
    """0: as many as are open."""
    reason: ConcurrencyReason = ConcurrencyReason.FIXED
    slower: float = 0.0
    """Times slower than usual its statements were when that was last measured; 0: it is not."""

    def together_with(self, other: Allowance) -> Allowance:
        """Of two processes together: of the reasons and measurements the more serious one."""
        if other.reason is ConcurrencyReason.FIXED:
            return self
        worse = min(self, other, key=lambda one: _BY_GRAVITY.index(one.reason))
        return Allowance(self.limit + other.limit, worse.reason, max(self.slower, other.slower))


_BY_GRAVITY = (
    ConcurrencyReason.SLOW,
    ConcurrencyReason.PROBE,
    ConcurrencyReason.GROWING,
    ConcurrencyReason.UNUSED,
    ConcurrencyReason.CAP,
    ConcurrencyReason.FIXED,
)


@dataclass(frozen=True, slots=True)
class EndpointView:
    """One endpoint: where it is, what was observed of it, what runs there."""

    cluster: ClusterName
    host: str
    port: int
    zone: str
    state: EndpointState
    """Holds the name, role, health, lag and weight in force."""
    in_flight: int = 0
    connections: int = 0
    cap: int = 0
    """Most connections of the whole router, as configured."""
    granted: int = 0
    """Most that may be open now; less than the cap while workers shift their shares."""
    permits: int = 0
    """Connections that are open, being opened, or closed but not yet let go of by the server."""
    wanted: int = 0
    """Connections that wait for room under the cap."""
    running: int = 0
    """Connections at work: with a statement, or lent to one caller."""
    concurrency: Allowance = Allowance()


@dataclass(frozen=True, slots=True)
class PoolView:
    """Connections of one tenant to one endpoint for one access."""

    tenant: TenantName
    endpoint: EndpointName
    access: Access
    generation: Generation = Generation(0)
    size: int = 0
    idle: int = 0
    leased: int = 0
    opening: int = 0
    waiting: int = 0
    max_size: int = 0
    lanes: int = 0
    in_flight: int = 0
    """Statements in flight on its lanes."""
    due: int = 0
    """Connections that its tenant is due at the endpoint now, for both accesses together."""
    database_s: float = 0.0
    """Connection seconds that its work has taken so far."""


@dataclass(frozen=True, slots=True)
class TenantLoad:
    """What a tenant has running, and how its requests have ended."""

    in_flight: int = 0
    held: int = 0
    queued: int = 0
    served: int = 0
    failed: int = 0
    refused: int = 0
    cancelled: int = 0
    listeners: int = 0
    channels: int = 0

    def counts(self) -> dict[str, int]:
        """The numbers by name, as TenantView takes them."""
        return {part.name: getattr(self, part.name) for part in fields(self)}


@dataclass(frozen=True, slots=True)
class EndpointLoad:
    """What runs on an endpoint."""

    in_flight: int = 0
    connections: int = 0
    granted: int = 0
    """Most connections that may be open now."""
    permits: int = 0
    """Connections that are open, being opened, or closed but not yet let go of by the server."""
    wanted: int = 0
    """Connections that wait for room under the cap."""
    running: int = 0
    """Connections at work."""
    concurrency: Allowance = Allowance()


@dataclass(frozen=True, slots=True)
class CredentialTrouble:
    """A login that the router cannot use as configured."""

    cluster: ClusterName
    endpoint: EndpointName
    tenant: TenantName | None
    """None: the router's own login."""
    problem: str
    for_s: float
    """Since it began."""


NO_TENANT_LOAD = TenantLoad()
NO_ENDPOINT_LOAD = EndpointLoad()


@unique
class WaitPhase(Enum):
    """What part of its way a request is on."""

    ADMISSION = "admission"
    HOLD = "hold"
    REPLAY = "replay"
    ACQUIRE = "acquire"
    EXECUTE = "execute"
    LISTEN = "listen"


@dataclass(frozen=True, slots=True)
class WaiterView:
    """One request under way, and what it waits for."""

    tenant: TenantName
    request_id: str
    method: str
    phase: WaitPhase
    waited_s: float
    """Seconds since it entered this phase."""
    endpoint: EndpointName = EndpointName("")
    waits_for: str = ""
    """In words."""


@dataclass(frozen=True, slots=True)
class Load:
    """What requests make of a process, or of all processes of a router together."""

    tenants: Mapping[TenantName, TenantLoad] = field(default_factory=dict)
    """Of tenants that have done anything."""
    endpoints: Mapping[EndpointName, EndpointLoad] = field(default_factory=dict)
    pools: tuple[PoolView, ...] = ()
    waiters: tuple[WaiterView, ...] = ()
    """Oldest first."""
    held: Mapping[ClusterName, int] = field(default_factory=dict)
    """Requests that wait for a primary."""
    credentials: tuple[CredentialTrouble, ...] = ()
    """Logins of tenants that cannot be used as configured."""


@unique
class WorkerState(Enum):
    """Part of its life that a worker is in."""

    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"
    """It finishes what runs and takes nothing new."""
    SILENT = "silent"
    """It runs, but has not answered in time."""


@dataclass(frozen=True, slots=True)
class WorkerView:
    """One process that serves callers."""

    number: int
    """Its place, from 1; whoever replaces it has the same."""
    pid: int
    state: WorkerState
    uptime_s: float = 0.0
    in_flight: int = 0
    """Requests under way."""
    connections: int = 0
    """To PostgreSQL."""
    restarts: int = 0
    """How often this place has been filled again after a death; planned replacements are not counted."""
    version: str = ""


@dataclass(frozen=True, slots=True)
class RestartProgress:
    """One step of replacing the workers; the last one says done."""

    worker: int
    step: str
    detail: str = ""
    elapsed_s: float = 0.0
    done: bool = False


@dataclass(frozen=True, slots=True)
class ClusterView:
    """One cluster and its endpoints."""

    name: ClusterName
    phase: Phase
    mode: FailoverMode
    primary: EndpointName | None = None
    term: Term = Term(0)
    generation: Generation = Generation(0)
    held: int = 0
    phase_age_s: float = 0.0
    detail: str = ""
    endpoints: tuple[EndpointView, ...] = ()
    findings: tuple[Finding, ...] = ()
    """What is wrong with logins, and with its servers' settings, the worst first."""
    credentials: tuple[CredentialTrouble, ...] = ()
    """Logins that cannot be used as configured."""


@dataclass(frozen=True, slots=True)
class SwitchoverProgress:
    """One step of a planned change of the primary; the last one says done."""

    step: str
    detail: str = ""
    elapsed_s: float = 0.0
    done: bool = False
    primary: EndpointName | None = None
    pause_s: float = 0.0
    """How long writes waited; in the last one."""


@dataclass(frozen=True, slots=True)
class ReloadResult:
    """What a reload of the configuration did. One with problems changes nothing."""

    applied: bool
    changes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TenantDocument:
    """A tenant's own file."""

    name: str
    document: str
    """As it stands, YAML or JSON."""
    version: str
    """Of this content."""
    problems: tuple[str, ...] = ()
    """Why it is not in force as it stands."""


@dataclass(frozen=True, slots=True)
class TenantOrdered:
    """What an order did to a tenant."""

    version: str
    """Of its document now; empty when it is gone."""
    changes: tuple[ConfigChange, ...] = ()
