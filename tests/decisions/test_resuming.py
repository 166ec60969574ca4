"""What a router that starts makes of its journal: from each stage of each move, whatever has happened since."""

from dataclasses import replace

import pytest

from router.decisions.cluster_facts import Facts, Sign
from router.decisions.failover import RETRY_S
from router.decisions.machine import (
    AllowWrites,
    ClusterMachine,
    MoveFailed,
    Operation,
    Recorded,
    StartPromotion,
    Tick,
    Wanted,
)
from router.decisions.resuming import page, page_of_move, restore
from router.model.events import FailoverEnded, Phase
from router.model.identity import NO_TERM, ClusterName, EndpointName, Lsn, Term
from router.model.journal import MOST_SWITCHES, ClusterRecord, MoveKind, MoveNote, MoveStage, Switch
from router.model.reasons import PhaseReason
from router.model.topology import FailoverMode
from tests.decisions.failover_builders import (
    N1,
    N2,
    N3,
    POLICY,
    SYNC,
    SYSTEM,
    T0,
    Run,
    facts,
    headless,
    healthy,
    primary_claim,
    standby_claim,
    steady,
)

NAME = ClusterName("c")
SETTLED = ClusterRecord(NAME, SYSTEM, Term(1), N1, SYNC, (Switch(Term(1), N1),))
PROMOTE = FailoverMode.PROMOTE


def left(kind: MoveKind, stage: MoveStage, chosen: EndpointName | None = None) -> ClusterRecord:
    return replace(SETTLED, move=MoveNote(kind, stage, chosen))


def started(record: ClusterRecord | None, mode: FailoverMode = PROMOTE) -> Run:
    return Run(restore(record, NAME, mode, T0))


def led_by(name: EndpointName, term: int) -> Facts:
    """The other of n2 and n3 follows it; n1 is gone."""
    other = N3 if name == N2 else N2
    return facts(Sign.REFUSED, {name: primary_claim(term), other: standby_claim(term, receiver_alive=True)})


INTERRUPTED = [
    SETTLED,
    left(MoveKind.PROMOTION, MoveStage.FENCE),
    left(MoveKind.PROMOTION, MoveStage.PROMOTE, N2),
    left(MoveKind.SWITCHOVER, MoveStage.HOLD, N2),
    left(MoveKind.SWITCHOVER, MoveStage.FENCE, N2),
    left(MoveKind.SWITCHOVER, MoveStage.PROMOTE, N2),
]
UNDOABLE = [one for one in INTERRUPTED if one.move is None or one.move.stage is not MoveStage.PROMOTE]
PLEDGED = [one for one in INTERRUPTED if one not in UNDOABLE]


@pytest.mark.parametrize("record", INTERRUPTED)
@pytest.mark.parametrize("mode", FailoverMode)
def test_whoever_was_promoted_meanwhile_is_followed(record: ClusterRecord, mode: FailoverMode):
    for name in (N2, N3):
        run = started(record, mode)
        run.feed(led_by(name, 2))
        assert run.machine.wanted == Wanted(name, Term(2), primary_claim(2))
        machine = run.feed(Recorded(Term(2)))
        assert (machine.routed_primary, machine.term, machine.pledged) == (name, 2, None)


@pytest.mark.parametrize("record", UNDOABLE)
def test_what_can_be_undone_is_undone_when_the_primary_answers(record: ClusterRecord):
    run = started(record)
    machine = run.feed(healthy())
    assert (machine.routed_primary, machine.term, machine.phase) == (N1, 1, Phase.DRAINING)
    assert not run.of(FailoverEnded), "a restart is no failover"
    run.feed(healthy(T0 + 1), T0 + 1)
    settled = page(run.machine)
    assert settled is not None
    assert settled.move is None


@pytest.mark.parametrize("record", UNDOABLE)
def test_what_can_be_undone_is_begun_again_when_the_primary_is_gone(record: ClusterRecord):
    run = started(record)
    assert run.feed(headless(now=T0)).phase is Phase.HOLDING
    assert run.feed(headless(now=T0 + 0.2), T0 + 0.2).phase is Phase.HOLDING, "not before the confirmation"
    machine = run.feed(headless(now=T0 + 0.31), T0 + 0.31)
    assert (machine.phase, machine.operation) == (Phase.PROMOTING, Operation.PROMOTION)
    [begun] = run.of(StartPromotion)
    assert isinstance(begun, StartPromotion)
    assert (begun.plan.old_primary, begun.plan.pinned, begun.plan.needed) == (N1, None, 2)


@pytest.mark.parametrize("record", PLEDGED)
def test_the_primary_before_is_never_returned_to_once_another_may_have_been_promoted(record: ClusterRecord):
    run = started(record)
    for second in range(100):
        back = {N1: primary_claim(), N3: standby_claim(fenced=True)}
        machine = run.feed(facts(Sign.SERVES, back, now=T0 + second), T0 + second)
        assert machine.routed_primary is None
    assert machine.phase is Phase.STUCK
    assert "n2 may have been promoted" in machine.detail


@pytest.mark.parametrize("record", PLEDGED)
@pytest.mark.parametrize("sign", [Sign.REFUSED, Sign.SILENT, Sign.SERVES])
def test_a_promotion_that_may_have_been_asked_for_is_finished_with_the_same_standby(record: ClusterRecord, sign: Sign):
    run = started(record)
    claims = {N2: standby_claim(fenced=True), N3: standby_claim(fenced=True)}
    if sign is Sign.SERVES:
        claims[N1] = primary_claim(read_only=True)
    run.feed(facts(sign, claims, now=T0))
    run.feed(facts(sign, claims, now=T0 + 0.1), T0 + 0.1)
    [begun] = run.of(StartPromotion)
    assert isinstance(begun, StartPromotion)
    assert begun.plan.pinned == N2


@pytest.mark.parametrize("record", PLEDGED)
def test_a_standby_that_follows_someone_again_was_not_promoted(record: ClusterRecord):
    run = started(record)
    run.feed(healthy())
    machine = run.feed(healthy(T0 + 0.1), T0 + 0.1)
    assert (machine.routed_primary, machine.pledged) == (N1, None)


def test_one_taken_out_of_the_configuration_is_waited_for_no_longer():
    run = started(left(MoveKind.PROMOTION, MoveStage.PROMOTE, EndpointName("n9")))
    run.feed(healthy())
    assert run.feed(healthy(T0 + 0.1), T0 + 0.1).routed_primary == N1


@pytest.mark.parametrize("stage", [MoveStage.HOLD, MoveStage.FENCE])
def test_writes_that_a_switchover_held_are_allowed_again(stage: MoveStage):
    run = started(left(MoveKind.SWITCHOVER, stage, N2))
    held = {N1: primary_claim(read_only=True), N2: standby_claim(), N3: standby_claim(fenced=True)}
    for tenth in range(3):
        run.feed(facts(Sign.SERVES, held, now=T0 + tenth / 10), T0 + tenth / 10)
    assert run.of(AllowWrites) == [AllowWrites(N1)]
    assert page(run.machine) is not None
    assert page(run.machine).move is not None, "until it is done, the next router has to know"  # type: ignore[union-attr]
    run.feed(facts(Sign.SERVES, held, now=T0 + 0.2 + RETRY_S), T0 + 0.2 + RETRY_S)
    assert len(run.of(AllowWrites)) == 2
    run.feed(healthy(T0 + 2), T0 + 2)
    assert (run.machine.routed_primary, run.machine.muted) == (N1, None)


def test_a_hold_that_nobody_here_made_is_left_alone():
    run = started(SETTLED)
    held = {N1: primary_claim(read_only=True), N2: standby_claim(), N3: standby_claim()}
    for tenth in range(30):
        run.feed(facts(Sign.SERVES, held, now=T0 + tenth / 10), T0 + tenth / 10)
    assert not run.of(AllowWrites)


def test_never_to_a_lower_timeline_than_the_journals():
    run = started(replace(SETTLED, term=Term(3), primary=N3), FailoverMode.FOLLOW)
    old = facts(Sign.REFUSED, {N1: primary_claim(2)}, known=3, accepted=N3)
    for second in range(70):
        assert run.feed(old, T0 + second).routed_primary is None
    assert "older timeline" in run.machine.detail
    run.feed(facts(Sign.SERVES, {N1: primary_claim(2), N3: primary_claim(3)}, known=3, accepted=N3), T0 + 71)
    assert run.machine.routed_primary == N3


def test_a_rule_from_the_journal_may_be_outdated_until_the_primary_is_seen():
    run = started(replace(SETTLED, sync_names="ANY 2 (n2, n3)"))
    gone = facts(Sign.REFUSED, {N2: standby_claim()})
    run.feed(gone)
    for tenth in range(4, 40):
        run.feed(gone, T0 + tenth / 10)
    assert run.machine.reason is PhaseReason.FENCE_INCOMPLETE
    assert not run.of(StartPromotion)


def test_follow_mode_finishes_nothing():
    run = started(left(MoveKind.PROMOTION, MoveStage.PROMOTE, N2), FailoverMode.FOLLOW)
    claims = {N2: standby_claim(fenced=True), N3: standby_claim(fenced=True)}
    for second in range(10):
        run.feed(facts(Sign.REFUSED, claims, now=T0 + second), T0 + second)
    assert not run.of(StartPromotion)
    assert run.machine.phase is Phase.STUCK


def test_a_new_primary_is_written_down_before_it_is_used_and_only_once_waited_for():
    run = started(None)
    assert run.machine.recorded == NO_TERM
    machine = run.feed(healthy())
    assert (machine.phase, machine.routed_primary) == (Phase.STARTING, None)
    assert machine.wanted == Wanted(N1, Term(1), primary_claim())
    written = page(machine)
    assert written is not None
    assert (written.term, written.primary, written.switches) == (1, N1, (Switch(Term(1), N1),))
    assert run.feed(Recorded(Term(0))).routed_primary is None
    assert run.feed(Recorded(Term(1))).routed_primary == N1
    run.feed(healthy())
    run.feed(led_by(N3, 2), T0 + 1)
    assert run.machine.routed_primary is None, "the one before is gone"
    machine = run.feed(Recorded(Term(2)), T0 + 1.01)
    assert (machine.routed_primary, [one.term for one in machine.switches]) == (N3, [1, 2])


@pytest.mark.parametrize("phase", [Phase.STEADY, Phase.SUSPECT, Phase.HOLDING])
@pytest.mark.parametrize("mode", FailoverMode)
def test_what_was_seen_is_known_before_the_journal_has_it_and_after(phase: Phase, mode: FailoverMode):
    run = Run(replace(steady(mode), phase=phase, recorded=Term(1)))
    run.feed(led_by(N2, 2))
    assert run.machine.wanted is not None
    back = {N1: primary_claim(), N3: standby_claim(receiver_alive=True)}
    machine = run.feed(facts(Sign.SERVES, back, known=run.machine.known_term, now=T0 + 0.01), T0 + 0.01)
    assert (machine.phase, machine.routed_primary, machine.known_term) == (Phase.HOLDING, None, 2)
    assert _height(machine) == 2
    machine = run.feed(Recorded(Term(2)), T0 + 0.02)
    assert (machine.phase, machine.primary, machine.term, machine.generation) == (Phase.HOLDING, N2, 2, 2)
    assert _height(machine) == 2
    for second in range(1, 70):
        seen = facts(Sign.SILENT, back, known=2, now=T0 + second, accepted=N2)
        machine = run.feed(seen, T0 + second)
        assert (machine.routed_primary, _height(machine)) == (None, 2)
    assert not run.of(StartPromotion), "no standby of the old timeline begins the new one a second time"
    again = {N1: primary_claim(), N2: primary_claim(2)}
    run.feed(facts(Sign.SERVES, again, known=2, now=T0 + 71, accepted=N2), T0 + 71)
    assert run.machine.routed_primary == N2


def test_one_that_went_while_it_was_noted_is_replaced_like_any_other():
    run = Run(replace(steady(PROMOTE), recorded=Term(1)))
    run.feed(led_by(N2, 2))
    told = primary_claim(2, sync_names="ANY 1 (n1, n3)")
    run.feed(facts(Sign.REFUSED, {N2: told, N1: standby_claim(2), N3: standby_claim(2)}), T0)
    run.feed(headless(now=T0 + 0.01), T0 + 0.01)
    run.feed(Recorded(Term(2)), T0 + 0.02)
    left_behind = {N1: standby_claim(2), N3: standby_claim(2)}
    for tenth in range(1, 5):
        seen = facts(Sign.REFUSED, left_behind, known=2, now=T0 + tenth / 10, accepted=N2)
        run.feed(seen, T0 + tenth / 10)
    [begun] = run.of(StartPromotion)
    assert isinstance(begun, StartPromotion)
    assert (begun.plan.old_primary, begun.plan.term, set(begun.plan.fence)) == (N2, 2, {N1, N3})


def test_nobody_takes_the_place_of_one_that_is_being_noted_but_on_a_higher_timeline():
    run = Run(replace(steady(), recorded=Term(1)))
    run.feed(led_by(N2, 2))
    run.feed(led_by(N3, 2), T0 + 0.01)
    assert run.machine.wanted == Wanted(N2, Term(2), primary_claim(2))
    run.feed(led_by(N3, 3), T0 + 0.02)
    run.feed(Recorded(Term(2)), T0 + 0.03)
    assert run.machine.routed_primary is None
    assert run.feed(Recorded(Term(3)), T0 + 0.04).routed_primary == N3


def _height(machine: ClusterMachine) -> int:
    written = page(machine)
    assert written is not None
    return written.term


def test_without_a_journal_nothing_waits():
    run = Run(steady())
    assert run.feed(led_by(N2, 2)).routed_primary == N2


def test_a_failed_promotion_that_may_have_happened_pledges_its_standby_in_the_journal():
    run = Run(replace(steady(PROMOTE), recorded=Term(1)))
    run.feed(headless(), T0)
    run.feed(headless(now=T0 + 0.31), T0 + 0.31)
    run.feed(MoveFailed(PhaseReason.PROMOTION_FAILED, "x", promoted=True, pledged=N2), T0 + 1)
    assert page(run.machine) == page_of_move(
        run.machine, MoveNote(MoveKind.PROMOTION, MoveStage.PROMOTE, N2)
    )
    back = {N1: primary_claim(), N3: standby_claim(fenced=True)}
    for second in range(2, 20):
        assert run.feed(facts(Sign.SERVES, back, now=T0 + second), T0 + second).routed_primary is None


def test_a_failed_promotion_is_repeated_with_the_same_standby_within_the_gap():
    run = Run(steady(PROMOTE))
    run.feed(headless(), T0)
    run.feed(headless(now=T0 + 0.31), T0 + 0.31)
    run.feed(MoveFailed(PhaseReason.PROMOTION_FAILED, "x", promoted=True, pledged=N2), T0 + 1)
    run.feed(headless(now=T0 + 1.1), T0 + 1.1)
    run.feed(Tick(), T0 + 1 + RETRY_S)
    pinned = [one.plan.pinned for one in run.of(StartPromotion) if isinstance(one, StartPromotion)]
    assert pinned == [None, N2]
    assert POLICY.failover.min_gap_s > RETRY_S


def test_only_the_newest_switches_are_kept():
    many = tuple(Switch(Term(term), N1, Lsn(term)) for term in range(1, MOST_SWITCHES + 1))
    run = started(replace(SETTLED, term=Term(MOST_SWITCHES), switches=many))
    run.feed(led_by(N2, MOST_SWITCHES + 1))
    machine: ClusterMachine = run.feed(Recorded(Term(MOST_SWITCHES + 1)))
    assert len(machine.switches) == MOST_SWITCHES
    assert machine.switches[-1] == Switch(Term(MOST_SWITCHES + 1), N2)
