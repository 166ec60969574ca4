"""The failover machine under events in any order: nothing unsafe ever happens, and nothing gets stuck for good."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from router.decisions.cluster_facts import Facts, Sign
from router.decisions.machine import (
    ROUTED,
    ClusterMachine,
    Event,
    FactsSeen,
    HoldDrained,
    MoveFailed,
    MoveFinished,
    Operation,
    Recorded,
    RoleDoubted,
    StartPromotion,
    SwitchoverOrdered,
    Tick,
)
from router.decisions.primary import believe
from router.decisions.promotion import Standby
from router.decisions.resuming import page, page_of_move
from router.model.events import Phase
from router.model.identity import ClusterName, EndpointName, Term
from router.model.journal import MoveKind, MoveNote, MoveStage
from router.model.observation import RoleClaim
from router.model.reasons import PhaseReason
from router.model.topology import FailoverMode
from tests.decisions.failover_builders import (
    N1,
    N2,
    N3,
    POLICY,
    SYSTEM,
    T0,
    Run,
    facts,
    headless,
    primary_claim,
    standby_claim,
    steady,
)

ALL = (N1, N2, N3)
claims = st.one_of(
    st.none(),
    st.builds(standby_claim, st.integers(1, 4), receiver_alive=st.booleans(), fenced=st.booleans()),
    st.builds(primary_claim, st.integers(1, 4), read_only=st.booleans()),
)


@st.composite
def drawn_facts(draw: st.DrawFn) -> dict[EndpointName, RoleClaim | None]:
    return {name: draw(claims) for name in ALL}


events = st.one_of(
    st.tuples(drawn_facts(), st.sampled_from(Sign)),
    st.sampled_from([Tick(), RoleDoubted(), HoldDrained(), SwitchoverOrdered(N2)]),
    st.builds(MoveFinished, st.sampled_from(ALL), st.integers(1, 5).map(Term)),
    st.builds(MoveFailed, st.just(PhaseReason.PROMOTION_FAILED), st.just("x"), st.booleans()),
    st.just("the disk"),
)
pauses = st.sampled_from([0.0, 0.05, 0.31, 1.0, 3.1, 31.0, 61.0])


def consistent(machine: ClusterMachine, told: dict[EndpointName, RoleClaim | None], sign: Sign, now: float) -> Facts:
    """Facts as gather() would make them: the sign of the accepted primary agrees with its claim."""
    heard = {name: claim for name, claim in told.items() if claim is not None}
    accepted = machine.primary
    if accepted is None:
        sign = Sign.ABSENT
    elif sign in (Sign.SERVES, Sign.DEMOTED):
        claim = heard.get(accepted)
        sign = Sign.DOUBTED if claim is None else Sign.DEMOTED if claim.in_recovery else Sign.SERVES
    if sign not in (Sign.SERVES, Sign.DEMOTED) and accepted is not None:
        heard.pop(accepted, None)
    return Facts(
        verdict=believe(heard, machine.known_term, SYSTEM),
        sign=sign,
        answered_at=now,
        refused_since=now - 0.4 if sign is Sign.REFUSED else None,
        primary_claim=heard.get(accepted) if accepted else None,
        standbys=tuple(Standby(n, n in heard, heard.get(n), now, now - 0.4) for n in ALL if n != accepted),
    )


class Watcher:
    """Feeds a machine and checks after each step what must always hold."""

    def __init__(self, machine: ClusterMachine) -> None:
        self.run = Run(machine)
        self.now = T0
        self.last_promotion = float("-inf")
        self.height = machine.recorded or 0
        """Of the journal's page."""

    def feed(self, event: object, pause: float) -> None:
        self.now += pause
        if event == "the disk":
            self.write()
            return
        before = self.run.machine
        known = len(self.run.effects)
        if isinstance(event, tuple):
            told, sign = event
            event = FactsSeen(consistent(before, told, sign, self.now))
        assert isinstance(event, Event)
        after = self.run.feed(event, self.now)
        self.check(before, after, event)
        for effect in self.run.effects[known:]:
            if isinstance(effect, StartPromotion):
                assert before.operation is Operation.NONE
                assert before.mode is FailoverMode.PROMOTE
                assert after.generation > before.generation, "connections to the old primary are not fenced"
                assert self.now - self.last_promotion >= POLICY.failover.min_gap_s
                assert effect.plan.old_primary not in effect.plan.fence
        ended = before.operation is Operation.PROMOTION and after.operation is Operation.NONE
        if ended and not (isinstance(event, MoveFailed) and not event.promoted):
            self.last_promotion = self.now

    def write(self) -> None:
        """The page that is wanted gets written."""
        machine = self.run.machine
        wanted = page(machine) if machine.operation is Operation.NONE else None
        if wanted is not None and machine.recorded is not None:
            self.height = wanted.term
            self.feed(Recorded(wanted.term), 0.002)

    def check(self, before: ClusterMachine, after: ClusterMachine, event: Event) -> None:
        assert (after.routed_primary is not None) == (after.phase in ROUTED)
        assert after.known_term >= before.known_term
        if after.operation is not Operation.NONE:
            assert page_of_move(after, MoveNote(MoveKind.PROMOTION, MoveStage.FENCE)).term >= self.height
        elif (wanted := page(after)) is not None:
            assert wanted.term >= self.height, "the journal would fall"
            assert after.recorded is None or wanted.term >= before.known_term, "what was seen is forgotten"
        if after.phase is not before.phase:
            assert after.since == self.now
        if after.primary != before.primary and after.term == before.term:
            assert isinstance(event, FactsSeen), "only what is seen changes the primary of a term"
            assert event.facts.sign in (Sign.DEMOTED, Sign.ABSENT), "two servers may be written to on one term"
        if after.phase in ROUTED and isinstance(event, FactsSeen) and after.facts is not None:
            assert event.facts.verdict.primary == after.primary
            assert event.facts.verdict.term == after.term


modes = st.sampled_from(FailoverMode)


@settings(max_examples=300)
@given(modes, st.booleans(), st.lists(st.tuples(events, pauses), max_size=30))
def test_nothing_unsafe_happens_in_any_order(
    mode: FailoverMode, journal: bool, fed: list[tuple[object, float]]
):
    watcher = Watcher(replace(steady(mode), recorded=Term(1) if journal else None))
    for event, pause in fed:
        watcher.feed(event, pause)


@settings(max_examples=300)
@given(modes, st.booleans(), st.lists(st.tuples(events, pauses), max_size=20))
def test_from_every_state_a_proven_primary_is_served_again(
    mode: FailoverMode, fresh: bool, fed: list[tuple[object, float]]
):
    machine = ClusterMachine(ClusterName("c"), mode, since=T0) if fresh else steady(mode)
    watcher = Watcher(machine)
    for event, pause in fed:
        watcher.feed(event, pause)
    if watcher.run.machine.operation is not Operation.NONE:
        watcher.feed(MoveFailed(PhaseReason.PROMOTION_FAILED, "the engine gave up", promoted=False), 0.1)
    term = watcher.run.machine.term + 1
    healthy = {N1: standby_claim(term), N2: primary_claim(term), N3: standby_claim(term)}
    for _ in range(3):
        watcher.feed((healthy, Sign.SERVES), 0.05)
    watcher.feed(HoldDrained(), 0.05)
    machine = watcher.run.machine
    assert (machine.phase, machine.routed_primary, machine.term) == (Phase.STEADY, N2, term)


def test_a_promotion_interrupted_at_any_point_ends_in_service():
    """After each step of a promotion, go on from the state reached with every outcome that may follow."""
    outcomes = [
        MoveFinished(N2, Term(2)),
        MoveFailed(PhaseReason.FENCE_INCOMPLETE, "x", promoted=False),
        MoveFailed(PhaseReason.PROMOTION_FAILED, "x", promoted=True),
    ]
    worlds = {
        "old primary back": (N1, {N1: primary_claim(1), N2: standby_claim(1), N3: standby_claim(1)}),
        "promoted": (N2, {N2: primary_claim(2), N3: standby_claim(2)}),
        "promoted, old one back, too": (N2, {N1: primary_claim(1), N2: primary_claim(2), N3: standby_claim(2)}),
        "somebody else promoted": (N3, {N3: primary_claim(3), N2: standby_claim(3)}),
    }
    for outcome in outcomes:
        for name, (expected, world) in worlds.items():
            run = Run(steady(FailoverMode.PROMOTE))
            run.feed(headless(), T0)
            run.feed(headless(now=T0 + 0.31), T0 + 0.31)
            assert run.machine.phase is Phase.PROMOTING
            run.feed(outcome, T0 + 0.5)
            if isinstance(outcome, MoveFinished) and name == "old primary back":
                continue  # a proven primary does not vanish without a sign
            for step in range(1, 4):
                now = T0 + 0.5 + step / 10
                accepted = run.machine.primary
                seen = facts(sign_of(world, accepted), world, known=run.machine.term, accepted=accepted, now=now)
                run.feed(replace(seen, answered_at=now), now)
            assert run.machine.routed_primary == expected, (outcome, name)


def sign_of(world: dict[EndpointName, RoleClaim], accepted: EndpointName | None) -> Sign:
    claim = world.get(accepted) if accepted is not None else None
    if claim is None:
        return Sign.REFUSED
    return Sign.DEMOTED if claim.in_recovery else Sign.SERVES
