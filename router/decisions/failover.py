"""The machine of one cluster: when writes go to whom, when they wait, and when a standby is promoted.

    STARTING ─first primary─► DRAINING ─drained─► STEADY ◄─answers─ SUSPECT ◄─doubt─ STEADY
    SUSPECT ─proof─► HOLDING ─new or returned primary─► DRAINING
    HOLDING ─confirmed, safe (promote mode)─► PROMOTING ─done─► DRAINING;  failed ─► HOLDING
    HOLDING ─unsafe, or for too long─► STUCK ─whatever would end HOLDING─► DRAINING, PROMOTING

Level-triggered: each step looks at the newest facts, whatever event brought it here, so a lost or doubled event does
no harm. Holds and fences need no effects of their own: the phase and the generation of the published state are what
the waiting room and the pools follow.
"""

from __future__ import annotations

from dataclasses import replace
from typing import assert_never

from router.decisions.attaching import REPOINT_GAP_S, attach_strays
from router.decisions.cluster_facts import Facts, Sign, risen_at
from router.decisions.machine import (
    ROUTED,
    AllowWrites,
    ClusterMachine,
    Effect,
    Emit,
    Event,
    FactsSeen,
    HoldDrained,
    MoveFailed,
    MoveFinished,
    Operation,
    ProbeNow,
    Recorded,
    RoleDoubted,
    StartPromotion,
    SwitchoverOrdered,
    Tick,
    Wanted,
)
from router.decisions.promotion import Obstacle, PromotionPlan, plan_promotion, plan_rescue
from router.decisions.resuming import accepted, missed, recorded, with_switch
from router.model.events import FailoverEnded, FailoverStep, Phase, PhaseChanged
from router.model.identity import EndpointName, Generation, Term
from router.model.observation import RoleClaim
from router.model.policy import ClusterPolicy, FailoverPolicy
from router.model.reasons import PhaseReason
from router.model.topology import FailoverMode

GIVE_UP_S = 60.0
"""Without a primary for this long, writes are refused at once instead of being held (seconds)."""
RETRY_S = 1.0
"""Pause before a promotion that failed harmlessly is tried again (seconds)."""
RESCUE_AFTER_S = 30.0
"""A cluster that has had no primary since the router started is left alone for this long (seconds)."""
ROLE_PROVEN_S = 5.0
"""A primary that has just proved itself is only asked, not doubted, when it refuses a write as read-only once more: a
tenant can make its own transactions so, and would hold up everybody's writes (seconds)."""
STICK_AFTER_S = 2.0
"""An obstacle to a promotion must last this long before writes are refused because of it (seconds)."""


Step = tuple[ClusterMachine, tuple[Effect, ...]]


def step(state: ClusterMachine, event: Event, now: float, policy: ClusterPolicy) -> Step:
    """The machine after one event, and what has to be done about it."""
    match event:
        case FactsSeen(facts):
            after, effects = _evaluate(_remember(state, facts), now, policy)
        case Tick():
            after, effects = _evaluate(state, now, policy)
        case RoleDoubted():
            after, effects = _role_doubted(state, now)
        case HoldDrained():
            after, effects = _drained(state, now)
        case SwitchoverOrdered():
            after, effects = _switchover(state, event, now)
        case MoveFinished():
            after, effects = _moved(state, event, now)
        case MoveFailed():
            after, effects = _not_moved(state, event, now)
        case Recorded(term):
            after, effects = _recorded(state, term, now, policy)
        case _:
            assert_never(event)
    after.check(state)
    return after, effects


def _remember(state: ClusterMachine, facts: Facts) -> ClusterMachine:
    claim, risen = facts.primary_claim, max(state.risen_at, risen_at(state.facts, facts))
    if facts.sign is Sign.SERVES and claim is not None and not claim.in_recovery:
        system_id = state.system_id or claim.system_id
        return replace(state, facts=facts, last_claim=claim, hearsay=False, system_id=system_id, risen_at=risen)
    return replace(state, facts=facts, risen_at=risen)


def _evaluate(state: ClusterMachine, now: float, policy: ClusterPolicy) -> Step:
    facts = state.facts
    if facts is None or state.operation is not Operation.NONE:
        return state, ()
    match state.phase:
        case Phase.STARTING:
            return _starting(state, facts, now, policy)
        case Phase.STEADY | Phase.DRAINING | Phase.SUSPECT:
            return _routed_or_suspect(state, facts, now, policy)
        case Phase.HOLDING | Phase.STUCK:
            return _without_primary(state, facts, now, policy)
        case Phase.PROMOTING:
            # Only with an operation; without one the engine has lost it, and the facts decide.
            return _enter(state, Phase.HOLDING, PhaseReason.PROMOTION_FAILED, now)
        case _:
            assert_never(state.phase)


def _starting(state: ClusterMachine, facts: Facts, now: float, policy: ClusterPolicy) -> Step:
    patience = 2 * policy.probe.timeout_s
    if not facts.all_probed and now - state.since < patience:
        # A first answer alone may come from a stale primary.
        return state, ()
    if facts.verdict.reason is PhaseReason.TWO_PRIMARIES:
        return _enter(state, Phase.STUCK, PhaseReason.TWO_PRIMARIES, now, facts.verdict.detail)
    known = state.primary is not None or state.wanted is not None
    successor = _successor(state, facts) if known else facts.verdict.primary
    if successor is not None:
        return _accept(state, successor, facts.verdict.term, facts.claim, PhaseReason.FIRST_PRIMARY, now)
    if state.wanted is not None:
        return state, ()
    if known:
        return _hold(state, now, facts.verdict.detail)  # the journal's is not there: as if it had just been lost
    if _may_rescue(state, facts, now):
        return _consider_promotion(state, facts, now, policy)
    if now - state.since >= GIVE_UP_S:
        return _stick(state, PhaseReason.TIMED_OUT, facts.verdict.detail, now)
    return replace(state, detail=facts.verdict.detail), ()


def _routed_or_suspect(state: ClusterMachine, facts: Facts, now: float, policy: ClusterPolicy) -> Step:
    if facts.verdict.reason is PhaseReason.TWO_PRIMARIES:
        return _enter(state, Phase.STUCK, PhaseReason.TWO_PRIMARIES, now, facts.verdict.detail)
    successor = _successor(state, facts)
    if successor is not None and (successor, facts.verdict.term) != (state.primary, state.term):
        return _accept(state, successor, facts.verdict.term, facts.claim, PhaseReason.NEW_PRIMARY, now)
    match facts.sign:
        case Sign.SERVES if successor is not None:
            return _serving(state, facts, now, policy)
        case Sign.DOUBTED | Sign.STARTING:
            if state.phase is Phase.SUSPECT:
                starting_too_long = now - state.since >= policy.failover.restart_grace_s
                if facts.sign is Sign.DOUBTED or not starting_too_long:
                    return state, ()
                return _hold(state, now, f"{state.primary} is still starting up")
            reason = PhaseReason.PRIMARY_FAULT if facts.sign is Sign.DOUBTED else PhaseReason.PRIMARY_PROBE
            return _suspect(state, reason, now)
        case Sign.REFUSED | Sign.SILENT | Sign.DEMOTED | Sign.ABSENT | Sign.SERVES:
            return _hold(state, now, facts.verdict.detail)
        case _:
            assert_never(facts.sign)


def _serving(state: ClusterMachine, facts: Facts, now: float, policy: ClusterPolicy) -> Step:
    match state.phase:
        case Phase.SUSPECT:
            if state.doubted_at is not None and facts.answered_at <= state.doubted_at:
                return state, ()  # that answer is older than the doubt
            return _enter(replace(state, doubted_at=None), Phase.STEADY, PhaseReason.PRIMARY_RETURNED, now)
        case Phase.DRAINING if now - state.since >= policy.hold.window_s:
            # By now every request that was held has reached the end of its own window.
            return _enter(state, Phase.STEADY, PhaseReason.DRAINED, now)
        case _:
            return attach_strays(state, facts, now, policy.failover)


def _without_primary(state: ClusterMachine, facts: Facts, now: float, policy: ClusterPolicy) -> Step:
    verdict = facts.verdict
    if verdict.reason is PhaseReason.TWO_PRIMARIES:
        return _stick(state, PhaseReason.TWO_PRIMARIES, verdict.detail, now)
    successor = _successor(state, facts)
    if successor is not None and (successor, verdict.term) == (state.primary, state.term):
        back = replace(state, doubted_at=None, muted=None)
        return _enter(back, Phase.DRAINING, PhaseReason.PRIMARY_RETURNED, now)
    if successor is not None:
        return _accept(state, successor, verdict.term, facts.claim, PhaseReason.NEW_PRIMARY, now)
    if state.wanted is not None:
        return state, ()  # it becomes the primary, whatever has become of it, once the journal has it
    if state.pledged is not None:
        return _keep_pledge(state, facts, now, policy)
    if state.muted is not None and verdict.rivals == (state.muted,) and now >= state.retry_at:
        return replace(state, detail=verdict.detail, retry_at=now + RETRY_S), (AllowWrites(state.muted),)
    confirmed = state.mode is FailoverMode.PROMOTE and _confirmed(state, facts, now, policy.failover)
    if confirmed or _may_rescue(state, facts, now):
        return _consider_promotion(state, facts, now, policy)
    if state.phase is Phase.HOLDING and now - state.since >= GIVE_UP_S:
        return _stick(state, PhaseReason.TIMED_OUT, verdict.detail, now)
    return replace(state, detail=verdict.detail or state.detail), ()


def _successor(state: ClusterMachine, facts: Facts) -> EndpointName | None:
    """The believed primary, if writes may go there from here: never to a lower term, and on the same term only to
    another server when the one before says itself that it is primary no longer."""
    verdict = facts.verdict
    if verdict.primary is None or verdict.term < state.known_term:
        return None
    if state.wanted is not None and verdict.term == state.wanted.term:
        return verdict.primary if verdict.primary == state.wanted.primary else None
    if verdict.primary == state.primary:
        serves = facts.sign is Sign.SERVES and (state.pledged is None or verdict.term > state.term)
        return verdict.primary if serves else None
    gone = state.primary is None or facts.sign in (Sign.DEMOTED, Sign.ABSENT)
    return verdict.primary if verdict.term > state.term or gone else None


def _keep_pledge(state: ClusterMachine, facts: Facts, now: float, policy: ClusterPolicy) -> Step:
    """Finish the promotion of the standby that may have been asked for it: nobody else will do, until it is known."""
    pledged = next((s for s in facts.standbys if s.name == state.pledged), None)
    if pledged is None or (pledged.streams and not (pledged.claim is not None and pledged.claim.fenced)):
        # Taken out of the configuration by an operator; or it follows someone again, which no promoted one does.
        return _evaluate(replace(state, pledged=None), now, policy)
    if state.mode is not FailoverMode.PROMOTE or not pledged.answers:
        detail = f"{pledged.name} may have been promoted: bring it back, or take it out of the configuration"
        obstacle = Obstacle(PhaseReason.PROMOTION_OPEN, detail, waits=False)
        return _obstructed(state, obstacle, now)
    return _consider_promotion(state, facts, now, policy)


def _confirmed(state: ClusterMachine, facts: Facts, now: float, policy: FailoverPolicy) -> bool:
    """Whether the primary has been gone for long enough to be replaced. A restart after a crash is not enough."""
    match facts.sign:
        case Sign.REFUSED:
            return facts.refused_since is not None and now - facts.refused_since >= policy.confirm_s
        case Sign.SILENT:
            return now - facts.answered_at >= policy.confirm_silence_s
        case Sign.STARTING:
            return state.doubted_at is not None and now - state.doubted_at >= policy.restart_grace_s
        case Sign.SERVES | Sign.DOUBTED | Sign.DEMOTED | Sign.ABSENT:
            return False
        case _:
            assert_never(facts.sign)


def _may_rescue(state: ClusterMachine, facts: Facts, now: float) -> bool:
    """Whether the primary was lost before this router saw it. Patient: a cluster that is being started looks alike."""
    verdict = facts.verdict
    writable = verdict.primary is not None or verdict.stale or verdict.rivals
    promotes = state.mode is FailoverMode.PROMOTE and state.primary is None
    return promotes and not writable and now - state.since >= RESCUE_AFTER_S


def _consider_promotion(state: ClusterMachine, facts: Facts, now: float, policy: ClusterPolicy) -> Step:
    since = state.doubted_at if state.doubted_at is not None else state.since
    plan: PromotionPlan | Obstacle
    if state.manager:
        plan = Obstacle(PhaseReason.MANAGED_ELSEWHERE, f"not promoting: {state.manager}", waits=False)
    elif state.primary is None:
        plan = plan_rescue(facts.standbys, state.term, since, policy.failover)
    else:
        lost, term, told = state.last_claim, state.term, policy.failover
        plan = plan_promotion(
            state.primary, lost, facts.standbys, term, since, told,
            answered_at=facts.answered_at, hearsay=state.hearsay, pinned=state.pledged,
        )  # fmt: skip
    if isinstance(plan, Obstacle):
        return _obstructed(state, plan, now)
    wait_s = state.promoted_at + policy.failover.min_gap_s - now
    if wait_s > 0 and state.pledged is None:
        detail = f"the last promotion was too recent (failover.min_gap_s); the next may start in {wait_s:.0f} s"
        return _obstructed(state, Obstacle(PhaseReason.TOO_SOON, detail, waits=False), now)
    if now < state.retry_at:
        return state, ()
    if policy.failover.dry_run:
        return _say_only(state, plan)
    begun = replace(state, operation=Operation.PROMOTION, generation=Generation(state.generation + 1))
    after, effects = _enter(begun, Phase.PROMOTING, PhaseReason.PROMOTION_STARTED, now)
    return after, (*effects, StartPromotion(plan))


def _obstructed(state: ClusterMachine, obstacle: Obstacle, now: float) -> Step:
    patience = GIVE_UP_S if obstacle.waits else STICK_AFTER_S
    if state.phase in (Phase.HOLDING, Phase.STARTING) and now - state.since < patience:
        return replace(state, detail=obstacle.detail), ()
    return _stick(state, obstacle.reason, obstacle.detail, now)


def _say_only(state: ClusterMachine, plan: PromotionPlan) -> Step:
    detail = f"dry run: would fence {', '.join(plan.fence)} and promote the most advanced of {', '.join(plan.counted)}"
    if state.detail == detail:
        return state, ()
    said = FailoverStep(state.name, "dry_run", plan.counted[0], True, 0.0, detail)
    return replace(state, detail=detail), (Emit(said),)


def _role_doubted(state: ClusterMachine, now: float) -> Step:
    primary = state.routed_primary
    if primary is None:
        return state, ()
    if state.reason is PhaseReason.PRIMARY_RETURNED and now - state.since < ROLE_PROVEN_S:
        return state, (ProbeNow((primary,)),)
    return _suspect(state, PhaseReason.PRIMARY_FAULT, now)


def _drained(state: ClusterMachine, now: float) -> Step:
    if state.phase is not Phase.DRAINING:
        return state, ()
    return _enter(state, Phase.STEADY, PhaseReason.DRAINED, now)


def _switchover(state: ClusterMachine, event: SwitchoverOrdered, now: float) -> Step:
    if state.phase not in ROUTED or state.operation is not Operation.NONE:
        return state, ()
    begun = replace(state, operation=Operation.SWITCHOVER, doubted_at=now)
    return _enter(begun, Phase.HOLDING, PhaseReason.SWITCHOVER, now, f"the primary moves to {event.to}")


def _moved(state: ClusterMachine, event: MoveFinished, now: float) -> Step:
    if state.operation is Operation.NONE:
        return state, ()
    if event.term <= state.term:
        failure = f"{event.primary} reports timeline {event.term}, which is not above {state.term}"
        return _not_moved(state, MoveFailed(PhaseReason.PROMOTION_FAILED, failure, promoted=True), now)
    promoted = state.operation is Operation.PROMOTION
    reason = PhaseReason.PROMOTION_DONE if promoted else PhaseReason.SWITCHOVER
    # An operator's order does not delay the rescue from a later crash: only promotions of our own are counted.
    done = replace(state, promoted_at=now) if promoted else state
    done = replace(done, switches=with_switch(state, event.primary, event.term, event.switch_lsn))
    return _accept(done, event.primary, event.term, event.claim, reason, now)


def _not_moved(state: ClusterMachine, event: MoveFailed, now: float) -> Step:
    if state.operation is Operation.NONE:
        return state, ()
    counts = event.promoted and state.operation is Operation.PROMOTION
    failed = replace(
        state,
        operation=Operation.NONE,
        retry_at=now + RETRY_S,
        repoint_at=now,
        promoted_at=now if counts else state.promoted_at,
        pledged=event.pledged or state.pledged,
        muted=state.primary if event.muted else state.muted,
    )
    after, effects = _enter(failed, Phase.HOLDING, event.reason, now, event.detail)
    return after, (*effects, ProbeNow())


def _recorded(state: ClusterMachine, term: Term, now: float, policy: ClusterPolicy) -> Step:
    after, effects = _evaluate(recorded(state, term), now, policy)
    lost = missed(after, now)
    if lost is None:
        return after, effects
    gone, probes = _hold(lost, now, f"{lost.primary} was seen on timeline {lost.term}, and is gone")
    return gone, (*effects, *probes)


def _accept(
    state: ClusterMachine, primary: EndpointName, term: Term, claim: RoleClaim | None, reason: PhaseReason, now: float
) -> Step:
    promoted = state.operation is not Operation.NONE  # a move of our own, as nothing else is decided meanwhile
    if not promoted and state.recorded is not None and term > state.recorded:
        # A move of our own is in the journal before it begins; what others did has to get there first.
        told = f"noting {primary}, timeline {term}, in the journal"
        waiting = replace(state, wanted=Wanted(primary, term, claim), detail=told)
        return _hold(waiting, now, waiting.detail) if state.phase in ROUTED else (waiting, ())
    began = state.doubted_at if state.doubted_at is not None else now
    following = replace(
        accepted(state, primary, term, claim),
        operation=Operation.NONE,
        doubted_at=None,
        repoint_at=now + REPOINT_GAP_S if promoted else now,  # a move of our own attaches them itself
    )
    if promoted:
        following = replace(following, switches=state.switches, term_at=now)  # they know where the timeline begins
    after, effects = _enter(following, Phase.DRAINING, reason, now)
    if state.phase is Phase.STARTING:
        return after, effects
    return after, (*effects, Emit(FailoverEnded(state.name, primary, term, now - began, promoted)), ProbeNow())


def _suspect(state: ClusterMachine, reason: PhaseReason, now: float) -> Step:
    after, effects = _enter(replace(state, doubted_at=now), Phase.SUSPECT, reason, now)
    return after, (*effects, ProbeNow())


def _hold(state: ClusterMachine, now: float, detail: str) -> Step:
    doubted = replace(state, doubted_at=state.doubted_at if state.doubted_at is not None else now)
    after, effects = _enter(doubted, Phase.HOLDING, PhaseReason.NO_PRIMARY, now, detail)
    return after, (*effects, ProbeNow())


def _stick(state: ClusterMachine, reason: PhaseReason, detail: str, now: float) -> Step:
    if state.phase is Phase.STUCK and state.reason is reason:
        return replace(state, detail=detail), ()
    return _enter(state, Phase.STUCK, reason, now, detail)


def _enter(state: ClusterMachine, phase: Phase, reason: PhaseReason, now: float, detail: str = "") -> Step:
    after = replace(state, phase=phase, reason=reason, since=now, detail=detail)
    routed = after.primary if phase in ROUTED else None
    changed = PhaseChanged(state.name, state.phase, phase, reason, routed, after.term, after.generation, detail)
    return after, (Emit(changed),)
