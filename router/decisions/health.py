"""The health of one endpoint, from probes, from faults of the data path, and from its standing in the cluster.

Evidence is graded. First-hand evidence (the port refuses, a working connection breaks) acts at once; inferred
evidence (silence) must accumulate. An answer, even an unwelcome one ("too many clients", "login refused"), is proof
of life. Which server is the primary is decided in primary.py and only reported here, as a Standing.

    UNKNOWN ──answer──► UP ◄──answer── SUSPECT ──misses, refused──► DOWN ──answer──► PROBATION ──time──► UP
    any ──foreign, stale primary──► QUARANTINED ──standby on the right timeline──► PROBATION
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, unique
from typing import assert_never

from router.model.events import Health
from router.model.observation import Fault, FaultKind, ProbeOutcome, ProbeResult
from router.model.policy import ProbePolicy
from router.model.reasons import HealthReason

NEVER = float("-inf")

SERVER_IS_GOING = frozenset({"57P02", "57P03"})
"""SQLSTATEs by which a server says that it stops or is not ready (Appendix A of PostgreSQL's manual)."""
SESSION_ENDED = "57P01"
"""The last word of a session when the server shuts down, and when anybody ends that one session, which a tenant may do
to its own all day. By itself no evidence; worth a probe on a fresh connection, which a server that is going refuses."""


@unique
class Standing(Enum):
    """What an endpoint is to its cluster, by comparing everyone's claims (primary.py)."""

    PRIMARY = "primary"
    """Proven: the cluster's primary of the highest term."""
    STANDBY = "standby"
    """In recovery, on the cluster's timeline."""
    BEHIND = "behind"
    """In recovery, on an older timeline: it has not followed the last failover yet."""
    STALE_PRIMARY = "stale_primary"
    """Writable on an older timeline."""
    FOREIGN = "foreign"
    """Another system identifier."""


@dataclass(frozen=True, slots=True)
class EndpointHealth:
    """One endpoint's health.

    Invariants: misses counts failed probes since the last answer and is 0 in UP (unless a fresh connection hangs)
    and PROBATION; refused_since is set exactly while the last evidence is a refused connection.
    """

    state: Health = Health.UNKNOWN
    reason: HealthReason = HealthReason.NOT_PROBED
    since: float = NEVER
    """When the state began (monotonic seconds)."""
    misses: int = 0
    answered_at: float = NEVER
    """When it last gave an answer that only a running server can give."""
    refused_since: float | None = None
    message: str = ""

    @property
    def answers(self) -> bool:
        """Alive and serving the sessions it has, whatever else is wrong with it."""
        match self.state:
            case Health.UP | Health.PROBATION:
                return True
            case Health.SUSPECT:
                return self.reason in (HealthReason.CONNECT_HANGS, HealthReason.LOGIN_REFUSED)
            case Health.DOWN | Health.UNKNOWN | Health.QUARANTINED:
                return False
            case _:
                assert_never(self.state)


Evidence = ProbeResult | Fault | Standing


def step(state: EndpointHealth, evidence: Evidence, now: float, policy: ProbePolicy) -> EndpointHealth:
    """The health after one piece of evidence."""
    match evidence:
        case ProbeResult():
            after = _probed(state, evidence, now, policy)
        case Fault():
            after = _faulted(state, evidence, now)
        case Standing():
            return _placed(state, evidence, now)
        case _:
            assert_never(evidence)
    if state.state is Health.QUARANTINED:
        # Only its standing lets a server out of quarantine; answering well does not.
        return replace(after, state=state.state, reason=state.reason, since=state.since)
    return after


def _probed(state: EndpointHealth, probe: ProbeResult, now: float, policy: ProbePolicy) -> EndpointHealth:
    outcome = probe.outcome
    state = replace(state, message=probe.message)
    match outcome:
        case ProbeOutcome.OK | ProbeOutcome.FULL:
            return _answered(state, now, policy)
        case ProbeOutcome.FRESH_HANGS:
            alive = replace(state, misses=state.misses + 1, answered_at=now, refused_since=None)
            if alive.misses < policy.misses and state.state is not Health.SUSPECT:
                return alive
            return _to(alive, Health.SUSPECT, HealthReason.CONNECT_HANGS, now)
        case ProbeOutcome.REFUSED:
            return _refused(state, now)
        case ProbeOutcome.LOST:
            return _missed(state, HealthReason.CONNECTION_LOST, now, policy)
        case ProbeOutcome.STARTING:
            alive = replace(state, misses=0, answered_at=now, refused_since=None)
            # A crash restart comes straight back from SUSPECT; what was DOWN or new passes through PROBATION.
            serving = state.state in (Health.UP, Health.SUSPECT)
            return _to(alive, Health.SUSPECT if serving else Health.DOWN, HealthReason.STARTING_UP, now)
        case ProbeOutcome.LOGIN_REFUSED:
            alive = replace(state, misses=0, answered_at=now, refused_since=None)
            return _to(alive, Health.SUSPECT, HealthReason.LOGIN_REFUSED, now)
        case ProbeOutcome.TIMEOUT:
            return _missed(state, HealthReason.PROBE_TIMEOUT, now, policy)
        case ProbeOutcome.UNRESOLVED:
            return _missed(state, HealthReason.UNRESOLVED, now, policy)
        case ProbeOutcome.FAILED:
            return _missed(state, HealthReason.PROBE_FAILED, now, policy)
        case _:
            assert_never(outcome)


def _answered(state: EndpointHealth, now: float, policy: ProbePolicy) -> EndpointHealth:
    alive = replace(state, misses=0, answered_at=now, refused_since=None)
    match state.state:
        case Health.UNKNOWN | Health.SUSPECT | Health.UP:
            return _to(alive, Health.UP, HealthReason.PROBE_OK, now)
        case Health.DOWN:
            if policy.probation_s == 0:
                return _to(alive, Health.UP, HealthReason.PROBE_OK, now)
            return _to(alive, Health.PROBATION, HealthReason.COMING_BACK, now)
        case Health.PROBATION:
            if now - state.since >= policy.probation_s:
                return _to(alive, Health.UP, HealthReason.PROBE_OK, now)
            return alive
        case Health.QUARANTINED:
            return alive
        case _:
            assert_never(state.state)


def _missed(state: EndpointHealth, reason: HealthReason, now: float, policy: ProbePolicy) -> EndpointHealth:
    missed = replace(state, misses=state.misses + 1, refused_since=None)
    if missed.misses >= policy.misses or state.state in (Health.DOWN, Health.UNKNOWN, Health.PROBATION):
        return _to(missed, Health.DOWN, reason, now)
    return _to(missed, Health.SUSPECT, reason, now)


def _refused(state: EndpointHealth, now: float) -> EndpointHealth:
    since = state.refused_since if state.refused_since is not None else now
    refused = replace(state, misses=state.misses + 1, refused_since=since)
    return _to(refused, Health.DOWN, HealthReason.CONNECT_REFUSED, now)


def _faulted(state: EndpointHealth, fault: Fault, now: float) -> EndpointHealth:
    """What the data path saw. Only what concerns the server as a whole counts; a slow statement does not."""
    match fault.kind:
        case FaultKind.CONNECT_REFUSED:
            return _refused(replace(state, message=fault.message), now)
        case FaultKind.CONNECTION_LOST if fault.sqlstate != SESSION_ENDED:
            return _doubted(state, fault, HealthReason.CONNECTION_LOST, now)
        case FaultKind.SERVER_ERROR if fault.sqlstate in SERVER_IS_GOING:
            return _doubted(state, fault, HealthReason.CONNECTION_LOST, now)
        case (
            FaultKind.SERVER_ERROR
            | FaultKind.CONNECTION_LOST
            | FaultKind.CONNECT_FAILED
            | FaultKind.SILENT
            | FaultKind.POOL_TIMEOUT
            | FaultKind.CANCELLED
            | FaultKind.STALE
            | FaultKind.LOCAL_COMMIT
            | FaultKind.KEY_BUSY
            | FaultKind.PROTOCOL
            | FaultKind.TOO_LARGE
            | FaultKind.CLOSED
        ):
            return state
        case _:
            assert_never(fault.kind)


def _doubted(state: EndpointHealth, fault: Fault, reason: HealthReason, now: float) -> EndpointHealth:
    if state.state is not Health.UP:
        return state
    return _to(replace(state, message=fault.message), Health.SUSPECT, reason, now)


def _placed(state: EndpointHealth, standing: Standing, now: float) -> EndpointHealth:
    match standing:
        case Standing.FOREIGN:
            return _to(state, Health.QUARANTINED, HealthReason.FOREIGN_SYSTEM, now)
        case Standing.STALE_PRIMARY:
            return _to(state, Health.QUARANTINED, HealthReason.OLD_TERM, now)
        case Standing.PRIMARY:
            # A primary that has just been proven needs no probation: writes wait for it.
            if state.state in (Health.PROBATION, Health.QUARANTINED):
                return _to(replace(state, misses=0), Health.UP, HealthReason.PROBE_OK, now)
            return state
        case Standing.STANDBY:
            if state.state is Health.QUARANTINED:
                return _to(replace(state, misses=0), Health.PROBATION, HealthReason.COMING_BACK, now)
            return state
        case Standing.BEHIND:
            return state
        case _:
            assert_never(standing)


def _to(state: EndpointHealth, health: Health, reason: HealthReason, now: float) -> EndpointHealth:
    since = state.since if state.state is health else now
    return replace(state, state=health, reason=reason, since=since)
