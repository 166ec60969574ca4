"""What an operator is shown: the engine's state as values, in the order of admin_service.proto."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, unique

from router.model.events import Phase
from router.model.identity import ClusterName, EndpointName, Generation, TenantName, Term, TopologyNumber
from router.model.request import Access
from router.model.state import EndpointState
from router.model.topology import FailoverMode


@dataclass(frozen=True, slots=True)
class ServerView:
    """The router process."""

    version: str
    uptime_s: float
    topology: TopologyNumber
    libpq_version: int = 0
    """For example 180000."""
    config_path: str = ""
    config_problem: str = ""
    """"file: problem", when the newest configuration could not be applied."""


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


@unique
class WaitPhase(Enum):
    """What part of its way a request is on."""

    ADMISSION = "admission"
    HOLD = "hold"
    ACQUIRE = "acquire"
    EXECUTE = "execute"


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
