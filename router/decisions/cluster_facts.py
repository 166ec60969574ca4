"""What is known about one cluster now, gathered from the health and the claims of its endpoints. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum, unique
from typing import assert_never

from router.decisions.health import NEVER, EndpointHealth
from router.decisions.primary import PrimaryVerdict, believe
from router.decisions.promotion import Standby, lost_since
from router.model.events import Health
from router.model.identity import EndpointName, Term
from router.model.observation import RoleClaim
from router.model.reasons import HealthReason

UNSEEN = EndpointHealth()


@unique
class Sign(Enum):
    """How the accepted primary looks."""

    SERVES = "serves"
    """It answers, and is not in recovery."""
    DOUBTED = "doubted"
    STARTING = "starting"
    REFUSED = "refused"
    SILENT = "silent"
    DEMOTED = "demoted"
    """It answers, and is in recovery."""
    ABSENT = "absent"
    """There is none: never seen, taken out of the configuration, or replaced by another system."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One endpoint as last observed."""

    health: EndpointHealth = UNSEEN
    claim: RoleClaim | None = None
    probed_at: float = NEVER
    """When the server was asked for the claim (monotonic seconds)."""
    lost_since: float | None = None
    """Since when it has been a standby without its upstream (promotion.lost_since)."""
    took_s: float = 0.0
    """Duration of the last probe."""
    lag_s: float = -1.0
    """Replay lag, judged over time (snapshot.replica_lag)."""
    caught_up_at: float = NEVER
    """When a standby was last known to have replayed all that it had received."""


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that the machine of a cluster looks at."""

    verdict: PrimaryVerdict
    sign: Sign
    answered_at: float = NEVER
    """When the accepted primary last gave a sign of life."""
    refused_since: float | None = None
    primary_claim: RoleClaim | None = None
    standbys: tuple[Standby, ...] = ()
    """All others, also those that are none."""
    all_probed: bool = True

    @property
    def claim(self) -> RoleClaim | None:
        """Of the primary by the verdict, who may be another one than was accepted."""
        others = (one.claim for one in self.standbys if one.name == self.verdict.primary)
        return next(others, self.primary_claim)


def gather(seen: Mapping[EndpointName, Seen], primary: EndpointName | None, term: Term, system_id: int) -> Facts:
    """The facts now. Only servers that answer make claims; what a silent one said last is history."""
    claims = {name: one.claim for name, one in seen.items() if one.claim is not None and may_claim(one.health)}
    verdict = believe(claims, term, system_id)
    if not claims:
        verdict = replace(verdict, detail=explain_silence(seen))
    standbys = tuple(
        Standby(name, one.health.answers, one.claim, one.probed_at, one.lost_since)
        for name, one in seen.items()
        if name != primary and name not in verdict.foreign
    )
    accepted = seen.get(primary) if primary is not None else None
    all_probed = all(one.health.state is not Health.UNKNOWN for one in seen.values())
    if accepted is None:
        return Facts(verdict, Sign.ABSENT, standbys=standbys, all_probed=all_probed)
    health = accepted.health
    sign = read_sign(health, accepted.claim)
    return Facts(verdict, sign, health.answered_at, health.refused_since, accepted.claim, standbys, all_probed)


def risen_at(before: Facts | None, facts: Facts) -> float:
    """When the servers that now claim a term above all before were last known to be standbys; NEVER: not known."""
    top = facts.verdict.term
    if before is None or top <= before.verdict.term:
        return NEVER
    known = {one.name: one.probed_at for one in before.standbys if one.claim is not None and one.claim.in_recovery}
    claims = {one.name: one.claim for one in facts.standbys if one.claim is not None}
    risen = (name for name, claim in claims.items() if not claim.in_recovery and claim.timeline == top)
    return min((known.get(name, NEVER) for name in risen), default=NEVER)


def after_claim(
    seen: Mapping[EndpointName, Seen], name: EndpointName, claim: RoleClaim, asked_at: float
) -> dict[EndpointName, float | None]:
    """What has changed about since when standbys have been without their upstream, once one of them has told this.

    One that streams again restarts the time of all: whom it hears may be the primary, back from a crash.
    """
    told = seen[name]
    since = lost_since(told.lost_since, told.probed_at, claim, asked_at)
    changed = {name: since} if since != told.lost_since else {}
    if told.lost_since is not None and since is None and claim.in_recovery:
        for other, one in seen.items():
            if other != name and one.lost_since is not None:
                changed[other] = max(one.lost_since, asked_at)
    return changed


def explain_silence(seen: Mapping[EndpointName, Seen]) -> str:
    """Why no server makes a claim, for the operator: a refused login is mended otherwise than a dead server."""
    reasons = {name: one.health.reason for name, one in seen.items()}
    if reasons and all(reason is HealthReason.LOGIN_REFUSED for reason in reasons.values()):
        return "every server refuses the router's control login: check the cluster's control user and password"
    told = ", ".join(f"{name} {reason.value}" for name, reason in reasons.items())
    return f"no server of the cluster answers ({told})"


def may_claim(health: EndpointHealth) -> bool:
    """Whether what the endpoint said last still counts. Quarantined ones are heard, so that they can get out."""
    return health.answers or (health.state is Health.QUARANTINED and health.misses == 0)


def read_sign(health: EndpointHealth, claim: RoleClaim | None) -> Sign:
    """How an accepted primary with this health and last claim looks."""
    match health.state:
        case Health.UP | Health.PROBATION:
            return Sign.DEMOTED if claim is not None and claim.in_recovery else Sign.SERVES
        case Health.SUSPECT:
            if health.reason is HealthReason.STARTING_UP:
                return Sign.STARTING
            if health.answers:
                return Sign.DEMOTED if claim is not None and claim.in_recovery else Sign.SERVES
            return Sign.DOUBTED
        case Health.DOWN:
            if health.reason is HealthReason.STARTING_UP:
                return Sign.STARTING
            return Sign.REFUSED if health.refused_since is not None else Sign.SILENT
        case Health.UNKNOWN:
            return Sign.DOUBTED
        case Health.QUARANTINED:
            return Sign.ABSENT
        case _:
            assert_never(health.state)
