"""Facts for the failover machine, in the fewest words."""

from dataclasses import replace

from router.decisions.cluster_facts import Facts, Sign
from router.decisions.failover import step
from router.decisions.machine import ClusterMachine, Effect, Emit, Event, FactsSeen
from router.decisions.primary import believe
from router.decisions.promotion import Standby, has_lost_upstream
from router.model.events import Phase
from router.model.identity import ClusterName, EndpointName, Generation, Term
from router.model.observation import RoleClaim
from router.model.policy import ClusterPolicy, FailoverPolicy
from router.model.topology import FailoverMode

N1, N2, N3 = (EndpointName(name) for name in ("n1", "n2", "n3"))
POLICY = ClusterPolicy(failover=FailoverPolicy(min_gap_s=60.0))
SYSTEM = 7
T0 = 1000.0
SYNC = "ANY 1 (n2, n3)"


def primary_claim(term: int = 1, **told: object) -> RoleClaim:
    return replace(RoleClaim(False, SYSTEM, Term(term), sync_names=SYNC), **told)  # type: ignore[arg-type]


def standby_claim(term: int = 1, **told: object) -> RoleClaim:
    claim = RoleClaim(True, SYSTEM, Term(term), sync_names="ANY 1 (n1, n3)", receiver_ping_s=0.1)
    return replace(claim, **told)  # type: ignore[arg-type]


def lost(claim: RoleClaim | None) -> bool:
    """Whether a server says that it has lost its upstream: here always since just before T0."""
    return claim is not None and has_lost_upstream(claim)


def facts(
    sign: Sign,
    claims: dict[EndpointName, RoleClaim],
    *,
    known: int = 1,
    now: float = T0,
    accepted: EndpointName = N1,
    probed: bool = True,
) -> Facts:
    """The facts when these servers answer with these claims at this time, and the accepted primary looks so."""
    return Facts(
        verdict=believe(claims, Term(known), SYSTEM),
        sign=sign,
        answered_at=now if sign in (Sign.SERVES, Sign.STARTING) else T0 - 0.2,
        refused_since=T0 if sign is Sign.REFUSED else None,
        primary_claim=claims.get(accepted),
        standbys=tuple(
            Standby(name, name in claims, claims.get(name), now, T0 - 0.05 if lost(claims.get(name)) else None)
            for name in (N1, N2, N3)
            if name != accepted
        ),
        all_probed=probed,
    )


def healthy(now: float = T0) -> Facts:
    """n1 serves, n2 and n3 follow it."""
    alive = standby_claim(receiver_alive=True, receiver_silent_s=0.01)
    return facts(Sign.SERVES, {N1: primary_claim(), N2: alive, N3: alive}, now=now)


def headless(sign: Sign = Sign.REFUSED, now: float = T0, *, hears: bool = False) -> Facts:
    """n1 looks like this; n2 and n3 have lost it, unless they still hear it."""
    claim = standby_claim(receiver_alive=hears, receiver_silent_s=0.01)
    return facts(sign, {N2: claim, N3: claim}, now=now)


def promoted(name: EndpointName = N2, term: int = 2, sign: Sign = Sign.REFUSED, now: float = T0) -> Facts:
    """Someone has promoted n2."""
    return facts(sign, {name: primary_claim(term), N3: standby_claim(term)}, now=now)


def steady(mode: FailoverMode = FailoverMode.FOLLOW) -> ClusterMachine:
    """n1 has been the primary of term 1 for long."""
    return ClusterMachine(
        ClusterName("c"),
        mode,
        Phase.STEADY,
        since=T0 - 100,
        detail="",
        primary=N1,
        term=Term(1),
        generation=Generation(1),
        system_id=SYSTEM,
        last_claim=primary_claim(),
        facts=healthy(T0 - 0.1),
    )


class Run:
    """A machine fed with events; remembers all effects."""

    def __init__(self, machine: ClusterMachine, policy: ClusterPolicy = POLICY) -> None:
        self.machine = machine
        self.policy = policy
        self.effects: list[Effect] = []

    def feed(self, event: Event | Facts, now: float = T0) -> ClusterMachine:
        fed = FactsSeen(event) if isinstance(event, Facts) else event
        self.machine, effects = step(self.machine, fed, now, self.policy)
        self.effects.extend(effects)
        return self.machine

    def of(self, kind: type) -> list[object]:
        """All effects of a kind, or all emitted events of a kind."""
        found = [e for e in self.effects if isinstance(e, kind)]
        return found or [e.event for e in self.effects if isinstance(e, Emit) and isinstance(e.event, kind)]
