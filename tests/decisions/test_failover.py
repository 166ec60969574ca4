"""The failover machine, transition by transition."""

from dataclasses import replace

import pytest

from router.decisions.cluster_facts import Facts, Sign
from router.decisions.failover import GIVE_UP_S, RESCUE_AFTER_S, RETRY_S, ROLE_PROVEN_S, STICK_AFTER_S, step
from router.decisions.machine import (
    ClusterMachine,
    FactsSeen,
    HoldDrained,
    MoveFailed,
    MoveFinished,
    Operation,
    ProbeNow,
    RepointStandbys,
    RoleDoubted,
    StartPromotion,
    SwitchoverOrdered,
    Tick,
)
from router.decisions.snapshot import present
from router.model.events import FailoverEnded, FailoverStep, Phase, PhaseChanged
from router.model.identity import ClusterName, Term, TopologyNumber
from router.model.policy import ClusterPolicy, FailoverPolicy, HoldPolicy
from router.model.reasons import PhaseReason
from router.model.topology import FailoverMode
from tests.decisions.failover_builders import (
    N1,
    N2,
    N3,
    POLICY,
    SYNC,
    T0,
    Run,
    facts,
    headless,
    healthy,
    primary_claim,
    promoted,
    standby_claim,
    steady,
)

FOLLOW, PROMOTE = FailoverMode.FOLLOW, FailoverMode.PROMOTE


def starting(mode: FailoverMode = FOLLOW) -> ClusterMachine:
    return ClusterMachine(ClusterName("c"), mode, since=T0)


def holding(mode: FailoverMode = FOLLOW) -> Run:
    run = Run(steady(mode))
    run.feed(headless())
    assert run.machine.phase is Phase.HOLDING
    return run


# --- the beginning ------------------------------------------------------------------------------------------------


def test_the_first_primary_is_taken_once_all_were_asked():
    run = Run(starting())
    early = replace(healthy(), sign=Sign.ABSENT, all_probed=False)
    assert run.feed(early).phase is Phase.STARTING
    machine = run.feed(replace(early, all_probed=True))
    assert (machine.phase, machine.primary, machine.term, machine.generation) == (Phase.DRAINING, N1, 1, 1)
    assert not run.of(FailoverEnded)


def test_a_server_that_never_answers_does_not_keep_the_first_primary_waiting_for_ever():
    run = Run(starting())
    early = replace(healthy(), sign=Sign.ABSENT, all_probed=False)
    assert run.feed(early, T0 + 2 * POLICY.probe.timeout_s).phase is Phase.DRAINING


def test_draining_ends_when_the_hold_is_empty_or_its_window_is_over():
    run = Run(starting())
    run.feed(replace(healthy(), sign=Sign.ABSENT))
    assert replace(run.machine) == run.feed(Tick())
    assert run.feed(HoldDrained()).phase is Phase.STEADY
    again = Run(replace(steady(), phase=Phase.DRAINING, since=T0), ClusterPolicy(hold=HoldPolicy(window_s=10)))
    assert again.feed(healthy(T0 + 9.9), T0 + 9.9).phase is Phase.DRAINING
    assert again.feed(healthy(T0 + 10), T0 + 10).phase is Phase.STEADY


# --- doubt ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sign", [Sign.DOUBTED, Sign.STARTING])
def test_doubt_holds_writes_and_asks_again(sign: Sign):
    run = Run(steady())
    machine = run.feed(headless(sign))
    assert (machine.phase, machine.routed_primary, machine.generation) == (Phase.SUSPECT, None, 1)
    assert run.of(ProbeNow)


@pytest.mark.parametrize("sign", [Sign.REFUSED, Sign.SILENT, Sign.DEMOTED])
def test_proof_goes_straight_to_holding(sign: Sign):
    assert Run(steady()).feed(headless(sign)).phase is Phase.HOLDING


def test_an_answer_ends_the_doubt_without_a_new_generation():
    run = Run(steady(PROMOTE))
    run.feed(headless(Sign.DOUBTED))
    machine = run.feed(healthy(T0 + 0.01), T0 + 0.01)
    assert (machine.phase, machine.primary, machine.generation) == (Phase.STEADY, N1, 1)


def test_an_answer_from_before_the_doubt_does_not_end_it():
    run = Run(steady())
    run.feed(RoleDoubted())
    assert run.machine.phase is Phase.SUSPECT
    assert run.feed(healthy(T0 - 0.01)).phase is Phase.SUSPECT
    assert run.feed(healthy(T0 + 0.01), T0 + 0.01).phase is Phase.STEADY


def test_a_role_that_has_just_been_proven_is_asked_about_not_doubted():
    """Any tenant can have its writes refused as read-only, all day."""
    run = Run(steady())
    run.feed(RoleDoubted())
    proven_at = T0 + 0.01
    run.feed(healthy(proven_at), proven_at)
    for now in (proven_at, proven_at + ROLE_PROVEN_S - 0.01):
        assert run.feed(RoleDoubted(), now).phase is Phase.STEADY
        assert run.effects[-1] == ProbeNow((N1,))
    assert run.feed(headless(Sign.DEMOTED, now), now).phase is Phase.HOLDING
    run = Run(steady())
    run.feed(RoleDoubted())
    run.feed(healthy(proven_at), proven_at)
    assert run.feed(RoleDoubted(), proven_at + ROLE_PROVEN_S).phase is Phase.SUSPECT


def test_a_crash_restart_is_waited_for_and_never_answered_with_a_promotion():
    run = Run(steady(PROMOTE))
    run.feed(headless(Sign.DOUBTED))
    for tenth in range(1, 29):
        now = T0 + tenth / 10
        assert run.feed(headless(Sign.STARTING, now), now).phase is Phase.SUSPECT
    assert run.feed(healthy(T0 + 2.9), T0 + 2.9).phase is Phase.STEADY
    assert not run.of(StartPromotion)


def test_a_primary_that_was_refused_and_is_starting_gets_its_grace():
    """Someone restarts it: what had died is on its way back, and a promotion would cost more."""
    run = holding(PROMOTE)
    for tenth in range(2, 29):
        now = T0 + tenth / 10
        assert run.feed(headless(Sign.STARTING, now), now).phase is Phase.HOLDING
    assert run.feed(Tick(), T0 + 3.05).phase is Phase.PROMOTING


def test_a_start_that_takes_too_long_is_no_start():
    run = Run(steady(PROMOTE))
    run.feed(headless(Sign.STARTING))
    assert run.feed(headless(Sign.STARTING, T0 + 3), T0 + 3).phase is Phase.HOLDING
    assert run.feed(Tick(), T0 + 3.05).phase is Phase.PROMOTING


# --- follow mode ----------------------------------------------------------------------------------------------------


def test_the_same_primary_returns():
    run = holding()
    machine = run.feed(healthy(T0 + 1), T0 + 1)
    assert (machine.phase, machine.reason) == (Phase.DRAINING, PhaseReason.PRIMARY_RETURNED)
    assert (machine.generation, machine.term) == (1, 1)


def test_someone_promotes_and_the_router_follows():
    run = holding()
    machine = run.feed(promoted(), T0 + 2)
    assert (machine.phase, machine.primary, machine.term, machine.generation) == (Phase.DRAINING, N2, 2, 2)
    [ended] = run.of(FailoverEnded)
    assert isinstance(ended, FailoverEnded)
    assert (ended.primary, ended.took_s, ended.promoted) == (N2, 2.0, False)


def test_a_switch_without_any_fault_is_followed_at_once():
    both = {N1: primary_claim(1), N2: primary_claim(2), N3: standby_claim(2)}
    machine = Run(steady()).feed(facts(Sign.SERVES, both))
    assert (machine.phase, machine.primary, machine.generation) == (Phase.DRAINING, N2, 2)


def test_the_same_server_on_a_new_timeline_gets_a_new_generation():
    machine = Run(steady()).feed(facts(Sign.SERVES, {N1: primary_claim(2)}))
    assert (machine.primary, machine.term, machine.generation) == (N1, 2, 2)


def test_never_to_a_lower_term():
    run = Run(replace(steady(), primary=N2, term=Term(2)))
    run.feed(facts(Sign.REFUSED, {N1: primary_claim(1)}, known=2, accepted=N2))
    machine = run.feed(facts(Sign.REFUSED, {N1: primary_claim(1)}, known=2, accepted=N2), T0 + 1)
    assert (machine.phase, machine.routed_primary) == (Phase.HOLDING, None)


def test_not_even_when_the_verdict_names_a_lower_term():
    run = Run(replace(steady(), phase=Phase.HOLDING, primary=N2, term=Term(2)))
    lower = facts(Sign.REFUSED, {N1: primary_claim(1)}, known=0, accepted=N2)
    assert lower.verdict.primary == N1
    assert run.feed(lower, T0 + 1).routed_primary is None


def test_another_server_on_the_same_term_only_when_the_first_says_it_is_primary_no_longer():
    run = holding()
    silent = facts(Sign.SILENT, {N2: primary_claim(1)})
    assert run.feed(silent, T0 + 1).phase is Phase.HOLDING
    demoted = facts(Sign.DEMOTED, {N1: standby_claim(1), N2: primary_claim(1)})
    machine = run.feed(demoted, T0 + 2)
    assert (machine.phase, machine.primary, machine.generation) == (Phase.DRAINING, N2, 2)


def test_a_read_only_primary_takes_no_writes():
    machine = Run(steady()).feed(facts(Sign.SERVES, {N1: primary_claim(read_only=True)}))
    assert machine.phase is Phase.HOLDING
    assert "read_only" in machine.detail


@pytest.mark.parametrize("phase", [Phase.STEADY, Phase.DRAINING, Phase.SUSPECT, Phase.HOLDING, Phase.STARTING])
def test_two_primaries_of_one_term_stop_all_writes_until_one_is_gone(phase: Phase):
    run = Run(replace(steady(), phase=phase))
    two = facts(Sign.SERVES, {N1: primary_claim(1), N2: primary_claim(1)})
    machine = run.feed(two)
    assert (machine.phase, machine.reason, machine.routed_primary) == (Phase.STUCK, PhaseReason.TWO_PRIMARIES, None)
    assert "n1 and n2" in machine.detail
    assert run.feed(healthy(T0 + 1), T0 + 1).phase is Phase.DRAINING


def test_waiting_is_given_up_in_words_and_resumed_by_a_primary():
    run = holding()
    assert run.feed(Tick(), T0 + GIVE_UP_S - 0.1).phase is Phase.HOLDING
    machine = run.feed(Tick(), T0 + GIVE_UP_S)
    assert (machine.phase, machine.reason) == (Phase.STUCK, PhaseReason.TIMED_OUT)
    assert "in recovery" in machine.detail
    assert run.feed(promoted(), T0 + 100).phase is Phase.DRAINING


def test_follow_mode_never_promotes():
    run = holding(FOLLOW)
    for second in range(200):
        run.feed(headless(now=T0 + second), T0 + second)
    assert not run.of(StartPromotion)


# --- promote mode ---------------------------------------------------------------------------------------------------


def test_a_refused_primary_is_replaced_after_the_confirmation():
    run = holding(PROMOTE)
    assert run.feed(headless(now=T0 + 0.29), T0 + 0.29).phase is Phase.HOLDING
    machine = run.feed(Tick(), T0 + 0.31)
    assert (machine.phase, machine.operation, machine.generation) == (Phase.PROMOTING, Operation.PROMOTION, 2)
    [start] = run.of(StartPromotion)
    assert isinstance(start, StartPromotion)
    assert (start.plan.old_primary, start.plan.fence, start.plan.needed) == (N1, (N2, N3), 2)


def test_a_silent_primary_is_replaced_after_the_longer_confirmation():
    run = Run(steady(PROMOTE))
    run.feed(headless(Sign.SILENT))
    last_answer = T0 - 0.2
    assert run.feed(headless(Sign.SILENT, T0 + 1.2), last_answer + 1.49).phase is Phase.HOLDING
    assert run.feed(Tick(), last_answer + 1.51).phase is Phase.PROMOTING


def test_a_router_that_alone_is_cut_off_does_not_promote():
    run = Run(steady(PROMOTE))
    for tenth in range(500):
        now = T0 + tenth / 10
        machine = run.feed(headless(Sign.SILENT, now, hears=True), now)
    assert machine.phase is Phase.HOLDING
    assert "only this router" in machine.detail
    assert run.feed(Tick(), T0 + GIVE_UP_S).phase is Phase.STUCK
    assert not run.of(StartPromotion)


@pytest.mark.parametrize("sign", [Sign.DOUBTED, Sign.DEMOTED, Sign.ABSENT])
def test_other_signs_are_no_reason_to_promote(sign: Sign):
    run = Run(steady(PROMOTE))
    for second in range(30):
        run.feed(headless(sign, T0 + second), T0 + second)
    assert not run.of(StartPromotion)


def test_an_obstacle_sticks_after_a_while_and_lets_go_when_it_clears():
    run = Run(steady(PROMOTE))
    one_left = facts(Sign.REFUSED, {N2: standby_claim()})
    run.feed(one_left)
    assert run.feed(one_left, T0 + 0.5).phase is Phase.HOLDING
    assert "1 of 2" in run.machine.detail
    machine = run.feed(Tick(), T0 + STICK_AFTER_S)
    assert (machine.phase, machine.reason) == (Phase.STUCK, PhaseReason.FENCE_INCOMPLETE)
    assert run.feed(headless(now=T0 + 5), T0 + 5).phase is Phase.PROMOTING


def test_asynchronous_replication_is_refused_without_may_lose():
    lossy = ClusterPolicy(failover=FailoverPolicy(may_lose=True))
    for policy, expected in ((POLICY, Phase.STUCK), (lossy, Phase.PROMOTING)):
        run = Run(replace(steady(PROMOTE), last_claim=primary_claim(sync_names="")), policy)
        run.feed(headless())
        assert run.feed(headless(now=T0 + 3), T0 + 3).phase is expected


def test_a_dry_run_only_says_and_says_it_once():
    run = Run(steady(PROMOTE), ClusterPolicy(failover=FailoverPolicy(dry_run=True)))
    for tenth in range(50):
        run.feed(headless(now=T0 + tenth / 10), T0 + tenth / 10)
    assert not run.of(StartPromotion)
    [said] = run.of(FailoverStep)
    assert isinstance(said, FailoverStep)
    assert (said.step, said.endpoint) == ("dry_run", N2)


def promoting() -> Run:
    run = holding(PROMOTE)
    run.feed(headless(now=T0 + 0.31), T0 + 0.31)
    assert run.machine.phase is Phase.PROMOTING
    return run


@pytest.mark.parametrize("seen", [healthy(T0 + 1), promoted(), headless(now=T0 + 1), promoted(N3, 5)])
def test_while_promoting_facts_are_noted_but_decide_nothing(seen: Facts):
    run = promoting()
    assert run.feed(seen, T0 + 1).phase is Phase.PROMOTING
    assert run.feed(Tick(), T0 + 2).phase is Phase.PROMOTING
    assert len(run.of(StartPromotion)) == 1


def test_a_finished_promotion_routes_to_the_new_primary():
    run = promoting()
    machine = run.feed(MoveFinished(N2, Term(2)), T0 + 0.5)
    assert (machine.phase, machine.primary, machine.term, machine.generation) == (Phase.DRAINING, N2, 2, 3)
    [ended] = run.of(FailoverEnded)
    assert isinstance(ended, FailoverEnded)
    assert (ended.took_s, ended.promoted) == (0.5, True)


def test_that_the_new_primary_waits_for_standbys_is_known_as_soon_as_it_is_routed_to():
    """Until its first probe it counted as asynchronous: receipts said "local", and tokens of reads on a replica that
    had followed already were judged as lost with the timeline before."""
    run = promoting()
    claim = primary_claim(2, sync_names="ANY 1 (n3)")
    machine = run.feed(MoveFinished(N2, Term(2), claim=claim), T0 + 0.5)
    assert (machine.last_claim, machine.confirmed_before) == (claim, 1)
    state = present(machine, (), {}, {}, TopologyNumber(1))
    assert (state.primary, state.synchronous, state.confirmed_before) == (N2, True, 1)


@pytest.mark.parametrize("before", [SYNC, ""])
def test_the_claim_of_a_primary_that_others_made_counts_at_once(before: str):
    known = replace(steady(), last_claim=primary_claim(sync_names=before))
    machine, _ = step(known, FactsSeen(promoted()), T0, POLICY)
    assert (machine.primary, machine.last_claim) == (N2, primary_claim(2))
    assert machine.confirmed_before == (1 if before else 0)


def test_facts_about_the_old_primary_do_not_judge_the_new_one():
    run = promoting()
    run.feed(MoveFinished(N2, Term(2)), T0 + 0.5)
    assert run.feed(Tick(), T0 + 0.55).phase is Phase.DRAINING


def test_a_promotion_to_a_term_that_is_not_higher_is_a_failure():
    assert promoting().feed(MoveFinished(N2, Term(1)), T0 + 0.5).phase is Phase.HOLDING


def test_a_promotion_that_failed_harmlessly_is_tried_again_soon():
    run = promoting()
    machine = run.feed(MoveFailed(PhaseReason.FENCE_INCOMPLETE, "1 of 2", promoted=False), T0 + 1)
    assert (machine.phase, machine.operation) == (Phase.HOLDING, Operation.NONE)
    assert run.feed(headless(now=T0 + 1.5), T0 + 1.5).phase is Phase.HOLDING
    assert run.feed(Tick(), T0 + 1 + RETRY_S).phase is Phase.PROMOTING


def test_a_promotion_that_may_have_happened_is_not_repeated_within_the_gap():
    run = promoting()
    run.feed(MoveFailed(PhaseReason.PROMOTION_FAILED, "lost", promoted=True), T0 + 1)
    machine = run.feed(headless(now=T0 + 10), T0 + 10)
    assert (machine.phase, machine.reason) == (Phase.STUCK, PhaseReason.TOO_SOON)
    assert run.feed(headless(now=T0 + 61), T0 + 61).phase is Phase.PROMOTING


def test_after_a_failed_promotion_the_facts_tell_who_is_primary():
    run = promoting()
    run.feed(MoveFailed(PhaseReason.PROMOTION_FAILED, "no proof", promoted=True), T0 + 1)
    machine = run.feed(promoted(), T0 + 1.1)
    assert (machine.phase, machine.primary, machine.term) == (Phase.DRAINING, N2, 2)


def test_the_old_primary_may_return_after_a_failed_fence_and_its_standbys_are_attached_again():
    run = promoting()
    run.feed(MoveFailed(PhaseReason.FENCE_INCOMPLETE, "1 of 2", promoted=False), T0 + 1)
    cut = {N1: primary_claim(), N2: standby_claim(fenced=True), N3: standby_claim(receiver_alive=True)}
    back = facts(Sign.SERVES, cut, now=T0 + 1.1)
    run.feed(back, T0 + 1.1)
    assert run.machine.phase is Phase.DRAINING
    run.feed(back, T0 + 1.2)
    assert run.of(RepointStandbys) == [RepointStandbys(N1, (N2,))]
    run.feed(back, T0 + 1.3)
    assert len(run.of(RepointStandbys)) == 1


def test_another_routers_fence_is_taken_away_only_when_it_has_stood_for_long():
    run = Run(steady(PROMOTE))
    cut = {N1: primary_claim(), N2: standby_claim(fenced=True), N3: standby_claim(receiver_alive=True)}
    for at in (0.0, 0.1, 5.1, 10.2):
        run.feed(facts(Sign.SERVES, cut, now=T0 + at), T0 + at)
    assert run.of(RepointStandbys) == [RepointStandbys(N1, (N2,), late) for late in (False, False, True)]
    whole = {N1: primary_claim(), N2: standby_claim(), N3: standby_claim()}
    run.feed(facts(Sign.SERVES, whole, now=T0 + 11), T0 + 11)
    run.feed(facts(Sign.SERVES, cut, now=T0 + 16), T0 + 16)
    assert run.of(RepointStandbys)[3:] == [RepointStandbys(N1, (N2,))]


def test_strays_are_left_alone_in_follow_mode():
    run = Run(steady(FOLLOW))
    run.feed(facts(Sign.SERVES, {N1: primary_claim(), N2: standby_claim(fenced=True)}))
    assert not run.of(RepointStandbys)


def test_a_second_failover_within_the_gap_is_stuck_not_a_loop():
    run = promoting()
    run.feed(MoveFinished(N2, Term(2)), T0 + 1)
    lost = {N1: standby_claim(2), N3: standby_claim(2)}
    gone = facts(Sign.REFUSED, lost, known=2, accepted=N2, now=T0 + 20)
    gone = replace(gone, refused_since=T0 + 20)
    run.machine = replace(run.machine, last_claim=primary_claim(2, sync_names="ANY 1 (n1, n3)"))
    run.feed(gone, T0 + 20)
    assert run.feed(gone, T0 + 23).reason is PhaseReason.TOO_SOON
    later = replace(gone, standbys=tuple(replace(s, probed_at=T0 + 61) for s in gone.standbys))
    assert run.feed(later, T0 + 61).phase is Phase.PROMOTING


# --- a cluster that was headless when the router started ---------------------------------------------------------


def test_a_primary_lost_before_the_router_started_is_replaced_patiently():
    run = Run(starting(PROMOTE))
    seen = facts(Sign.ABSENT, {N2: standby_claim(), N3: standby_claim()}, known=0, now=T0 + 1, accepted=N1)
    seen = replace(seen, standbys=(*seen.standbys, replace(seen.standbys[0], name=N1, answers=False, claim=None)))
    assert run.feed(seen, T0 + RESCUE_AFTER_S - 1).phase is Phase.STARTING
    assert run.feed(seen, T0 + RESCUE_AFTER_S).phase is Phase.PROMOTING
    [start] = run.of(StartPromotion)
    assert isinstance(start, StartPromotion)
    assert (start.plan.old_primary, start.plan.fence, start.plan.needed) == (N1, (N2, N3), 2)
    machine = run.feed(MoveFinished(N2, Term(2)), T0 + 31)
    assert (machine.phase, machine.primary) == (Phase.DRAINING, N2)


def test_no_rescue_beside_a_writable_server_nor_in_follow_mode():
    stale = facts(Sign.ABSENT, {N1: primary_claim(read_only=True), N2: standby_claim()}, known=0)
    for mode, seen in ((PROMOTE, stale), (FOLLOW, headless(Sign.ABSENT))):
        run = Run(starting(mode))
        for second in range(0, 200, 10):
            run.feed(seen, T0 + second)
        assert not run.of(StartPromotion)
        assert run.machine.phase is Phase.STUCK


# --- switchover -----------------------------------------------------------------------------------------------------


def test_a_switchover_holds_and_ends_at_the_new_primary():
    run = Run(steady(PROMOTE))
    machine = run.feed(SwitchoverOrdered(N2))
    assert (machine.phase, machine.operation, machine.generation) == (Phase.HOLDING, Operation.SWITCHOVER, 1)
    assert run.feed(healthy(T0 + 0.1), T0 + 0.1).phase is Phase.HOLDING
    machine = run.feed(MoveFinished(N2, Term(2)), T0 + 0.2)
    assert (machine.phase, machine.primary, machine.generation) == (Phase.DRAINING, N2, 2)
    assert machine.promoted_at < T0, "an order does not delay the rescue from a later crash"


def test_a_failed_switchover_ends_where_it_began():
    run = Run(steady(PROMOTE))
    run.feed(SwitchoverOrdered(N2))
    run.feed(MoveFailed(PhaseReason.SWITCHOVER, "n2 did not catch up", promoted=False), T0 + 1)
    machine = run.feed(healthy(T0 + 1.1), T0 + 1.1)
    assert (machine.phase, machine.primary, machine.generation) == (Phase.DRAINING, N1, 1)


@pytest.mark.parametrize("phase", [Phase.STARTING, Phase.SUSPECT, Phase.HOLDING, Phase.PROMOTING, Phase.STUCK])
def test_a_switchover_is_ordered_in_routed_phases_only(phase: Phase):
    operation = Operation.PROMOTION if phase is Phase.PROMOTING else Operation.NONE
    machine = replace(steady(PROMOTE), phase=phase, operation=operation)
    assert Run(machine).feed(SwitchoverOrdered(N2)) == machine


def test_every_change_of_phase_is_told_with_the_route_that_follows():
    run = holding()
    run.feed(promoted(), T0 + 1)
    told = [(e.before, e.after, e.primary) for e in run.of(PhaseChanged) if isinstance(e, PhaseChanged)]
    assert told == [(Phase.STEADY, Phase.HOLDING, None), (Phase.HOLDING, Phase.DRAINING, N2)]
