"""The published snapshot: what the request path reads, without a lock, once per attempt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from router.model.events import Health, Phase
from router.model.identity import NO_LSN, NO_TERM, ClusterName, EndpointName, Generation, Lsn, Term, TopologyNumber
from router.model.journal import Switch
from router.model.reasons import HealthReason
from router.model.topology import Role


@dataclass(frozen=True, slots=True)
class EndpointState:
    """One endpoint as observed."""

    name: EndpointName
    role: Role = Role.UNKNOWN
    health: Health = Health.UNKNOWN
    health_reason: HealthReason = HealthReason.NOT_PROBED
    weight: int = 100
    draining: bool = False
    """An operator's order; unlike health, it is never overruled when every endpoint is excluded."""
    term: Term = NO_TERM
    lsn: Lsn = NO_LSN
    position_at: float = 0.0
    """What it told of its position when it was asked before this counts no longer: lsn is newer, or it may have
    restarted since, which takes a replica back (monotonic seconds)."""
    lag_s: float = -1.0
    """Replay lag of a replica in seconds; -1 unknown; 0 for a primary."""
    lag_bytes: int = -1
    probe_s: float = 0.0
    version: int = 0
    message: str = ""


@dataclass(frozen=True, slots=True)
class ClusterState:
    """One cluster as observed; replaced as a whole by its supervisor, its only writer."""

    name: ClusterName
    phase: Phase = Phase.STARTING
    primary: EndpointName | None = None
    """Where writes go: set in STEADY and DRAINING only. Never an endpoint of an older term."""
    term: Term = NO_TERM
    generation: Generation = Generation(0)
    endpoints: Mapping[EndpointName, EndpointState] = field(default_factory=dict)
    number: TopologyNumber = TopologyNumber(0)
    system_id: int = 0
    """PostgreSQL's system identifier; 0 until the first primary was accepted."""
    synchronous: bool = False
    """The primary confirms commits only with a synchronous standby (synchronous_standby_names is set)."""
    confirmed_before: Term = NO_TERM
    """The term before this one, if the same held for it: what a replica shows that has not followed yet is of that."""
    history: tuple[tuple[Term, Lsn], ...] | None = None
    """The timelines before the term's, each with the position at which it was left; None: not known yet."""
    since: float = 0.0
    """When the phase began (monotonic seconds)."""
    detail: str = ""
    """What the phase waits for, or why it is stuck, in words."""
    successor: EndpointName | None = None
    """The standby that a switchover is about to make the primary: connections for writes may be opened beforehand."""
    switches: tuple[Switch, ...] = ()
    """Where the timelines that this router knows of began, oldest first."""
