"""When a standby may be promoted, and which one: the quorum arithmetic."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.decisions.promotion import (
    Obstacle,
    PromotionPlan,
    Standby,
    SyncRule,
    choose_candidate,
    fences_needed,
    is_rival,
    lost_since,
    next_rule,
    plan_promotion,
    read_sync_names,
)
from router.model.identity import EndpointName, Lsn, Term
from router.model.observation import RoleClaim
from router.model.policy import FailoverPolicy
from router.model.reasons import PhaseReason

N1, N2, N3, N4 = (EndpointName(name) for name in ("n1", "n2", "n3", "n4"))
POLICY = FailoverPolicy()
DOUBTED_AT = 100.0


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", SyncRule()),
        ("n2", SyncRule("FIRST", 1, ("n2",))),
        ("n2, N3", SyncRule("FIRST", 1, ("n2", "n3"))),
        ("2 (n2, n3, n4)", SyncRule("FIRST", 2, ("n2", "n3", "n4"))),
        ("FIRST 2 (n2,n3)", SyncRule("FIRST", 2, ("n2", "n3"))),
        ("ANY 1 (n2,n3)", SyncRule("ANY", 1, ("n2", "n3"))),
        ("any 1(n2 , n3)", SyncRule("ANY", 1, ("n2", "n3"))),
        ('ANY 1 ("n 2", "say ""hi""")', SyncRule("ANY", 1, ("n 2", 'say "hi"'))),
        ("*", SyncRule("FIRST", 1, ("*",))),
        ("ANY 2 (*)", SyncRule("ANY", 2, ("*",))),
        ("any, first", SyncRule("FIRST", 1, ("any", "first"))),
        ("n2, n2", SyncRule("FIRST", 1, ("n2",))),
    ],
)
def test_synchronous_standby_names_are_read(text: str, rule: SyncRule):
    assert read_sync_names(text) == rule


@given(
    st.sampled_from(["ANY", "FIRST"]),
    st.integers(1, 3),
    st.lists(st.text(st.characters(codec="ascii", exclude_characters="\0"), min_size=1), min_size=1, unique=True),
)
def test_what_is_written_is_read_again(method: str, k: int, names: list[str]):
    lowered = tuple(dict.fromkeys(name.lower() for name in names))
    if any(name in ("(", ")", ",", "*") for name in lowered):
        return  # quoted punctuation as a whole name: read as punctuation, and nobody names a standby so
    rule = SyncRule(method, k, lowered)
    assert read_sync_names(rule.text()) == rule


def standby(name: EndpointName, *, answers: bool = True, hears: bool = False, **told: object) -> Standby:
    claim = RoleClaim(
        in_recovery=True,
        system_id=7,
        timeline=Term(1),
        receiver_alive=hears,
        receiver_silent_s=0.1,
        receiver_ping_s=2.5,
        application_name=name,
        **told,  # type: ignore[arg-type]
    )
    return Standby(name, answers, claim, DOUBTED_AT + 0.1, None if hears else DOUBTED_AT - 0.3)


def old_primary(sync_names: str) -> RoleClaim:
    return RoleClaim(in_recovery=False, system_id=7, timeline=Term(1), sync_names=sync_names)


def plan(
    sync_names: str, *standbys: Standby, policy: FailoverPolicy = POLICY, hearsay: bool = False
) -> PromotionPlan | Obstacle:
    return plan_promotion(N1, old_primary(sync_names), standbys, Term(1), DOUBTED_AT, policy, hearsay=hearsay)


def test_three_servers_any_one_need_both_standbys_fenced():
    found = plan("ANY 1 (n2, n3)", standby(N2), standby(N3))
    assert isinstance(found, PromotionPlan)
    assert (found.fence, found.counted, found.needed, found.term) == ((N2, N3), (N2, N3), 2, 1)


def test_under_a_star_a_standby_that_is_not_configured_counts_as_one_that_cannot_be_fenced():
    def at_loss(*confirming: str) -> PromotionPlan | Obstacle:
        old = replace(old_primary("ANY 1 (*)"), sync_standbys=confirming)
        return plan_promotion(N1, old, (standby(N2), standby(N3)), Term(1), DOUBTED_AT, POLICY)

    for confirming in ((), ("n2",), ("N2", "n3")):
        found = at_loss(*confirming)
        assert isinstance(found, PromotionPlan)
        assert found.needed == 2
    for confirming in (("n2", "n3", "elsewhere"), ("elsewhere",), ("n2", "n2", "n3")):
        refused = at_loss(*confirming)
        assert isinstance(refused, Obstacle)
        assert (refused.reason, refused.waits) == (PhaseReason.FENCE_INCOMPLETE, False)
        assert "2 of 3 synchronous standbys answer, 3 must be fenced" in refused.detail


def test_nobody_is_promoted_to_a_timeline_that_the_primary_has_already():
    """The primary was made without its standbys, and went before any of them followed."""
    standbys = standby(N2), standby(N3)
    found = plan_promotion(N1, old_primary("ANY 1 (n2, n3)"), standbys, Term(2), DOUBTED_AT, POLICY)
    assert isinstance(found, Obstacle)
    assert (found.reason, found.waits) == (PhaseReason.NO_CANDIDATE, False)


def test_four_servers_any_two_need_two_of_three():
    found = plan("ANY 2 (n2, n3, n4)", standby(N2), standby(N3, answers=False), standby(N4))
    assert isinstance(found, PromotionPlan)
    assert (found.counted, found.needed) == ((N2, N4), 2)


@pytest.mark.parametrize(
    ("sync_names", "standbys", "reason", "waits"),
    [
        ("", (standby(N2), standby(N3)), PhaseReason.NOT_SYNCHRONOUS, False),
        ("ANY 1 (n2, n3)", (standby(N2), standby(N3, answers=False)), PhaseReason.FENCE_INCOMPLETE, False),
        ("ANY 1 (n2, n3)", (standby(N2, answers=False), standby(N3, answers=False)), PhaseReason.NO_CANDIDATE, False),
        ("ANY 1 (n8, n9)", (standby(N2), standby(N3)), PhaseReason.NO_CANDIDATE, False),
        ("n2", (standby(N2),), PhaseReason.NO_CANDIDATE, False),
        ("ANY 1 (n2, n3)", (standby(N2), standby(N3, hears=True)), PhaseReason.NO_PRIMARY, True),
    ],
    ids=["asynchronous", "one of two gone", "all gone", "names of others", "would be alone", "still heard"],
)
def test_what_stands_in_the_way(sync_names: str, standbys: tuple[Standby, ...], reason: PhaseReason, waits: bool):
    found = plan(sync_names, *standbys)
    assert isinstance(found, Obstacle)
    assert (found.reason, found.waits) == (reason, waits)
    assert found.detail


def test_what_a_standby_said_before_the_doubt_is_no_evidence():
    before = Standby(N2, True, standby(N2).claim, DOUBTED_AT - 0.01)
    found = plan("ANY 1 (n2, n3)", before, standby(N3))
    assert isinstance(found, Obstacle)
    assert found.waits


@pytest.mark.parametrize(
    ("silent_s", "ping_s", "lost"),
    [(0.9, 0.1, False), (1.1, 0.1, True), (2.0, 2.5, False), (2.8, 2.5, True), (60.0, -1.0, False)],
)
def test_silence_counts_only_beyond_what_a_living_upstream_allows(silent_s: float, ping_s: float, lost: bool):
    claim = RoleClaim(True, 7, Term(1), receiver_alive=True, receiver_silent_s=silent_s, receiver_ping_s=ping_s)
    assert Standby(N2, True, claim, DOUBTED_AT).lost_upstream(DOUBTED_AT) is lost


@pytest.mark.parametrize(
    ("lost_after_s", "for_s", "sure"),
    [
        (0.0, 0.29, False),
        (0.0, 0.31, True),
        (0.9, 0.31, True),
        (1.1, 0.31, False),
        (1.1, 2.9, False),
        (1.1, 3.1, True),
        (-5.0, 5.1, True),
    ],
)
def test_a_standby_must_have_been_without_the_primary_all_the_time(lost_after_s: float, for_s: float, sure: bool):
    """confirm_s, and where it heard the primary much longer than the router did, long enough for a restart."""
    since = DOUBTED_AT + lost_after_s
    told = [replace(standby(name), lost_since=since, probed_at=since + for_s) for name in (N2, N3)]
    assert [one.is_sure(DOUBTED_AT, POLICY) for one in told] == [sure, sure]
    assert isinstance(plan("ANY 1 (n2, n3)", *told), PromotionPlan) is sure
    assert not standby(N2, hears=True).is_sure(DOUBTED_AT, POLICY)


@pytest.mark.parametrize(
    ("before", "gap_s", "told", "since"),
    [
        (None, 0.1, standby(N2, hears=True).claim, None),
        (5.0, 0.1, standby(N2, hears=True).claim, None),
        (None, 0.1, standby(N2).claim, 10.0),
        (5.0, 0.1, standby(N2).claim, 5.0),
        (5.0, 1.5, standby(N2).claim, 10.0),
        (None, 0.1, RoleClaim(True, 7, Term(1), receiver_alive=True, receiver_silent_s=2.0, receiver_ping_s=1.0), 8.0),
        (5.0, 0.1, RoleClaim(False, 7, Term(2)), None),
    ],
    ids=["hears", "hears again", "lost", "still lost", "unheard meanwhile", "silent", "promoted"],
)
def test_since_when_a_standby_is_alone_is_its_own_word(
    before: float | None, gap_s: float, told: RoleClaim, since: float | None
):
    assert lost_since(before, 10.0 - gap_s, told, 10.0) == since


def test_may_lose_lifts_what_is_about_losing():
    policy = FailoverPolicy(may_lose=True)
    found = plan("", standby(N2), policy=policy)
    assert isinstance(found, PromotionPlan)
    assert (found.needed, found.rule.k) == (1, 0)
    fewer = plan("ANY 1 (n2, n3)", standby(N2), standby(N3, answers=False), policy=policy)
    assert isinstance(fewer, PromotionPlan)
    assert fewer.needed == 1


def test_may_lose_does_not_lift_the_evidence_that_the_primary_is_gone():
    found = plan(
        "ANY 1 (n2, n3)", standby(N2, hears=True), standby(N3, hears=True), policy=FailoverPolicy(may_lose=True)
    )
    assert isinstance(found, Obstacle)
    assert found.waits


def made(sync_names: str, *standbys: Standby) -> PromotionPlan:
    found = plan(sync_names, *standbys)
    assert isinstance(found, PromotionPlan)
    return found


def received(timeline: int, lsn: int) -> RoleClaim:
    return RoleClaim(True, 7, Term(timeline), received_lsn=Lsn(lsn))


def test_the_most_advanced_is_chosen_timeline_first():
    promotion = made("ANY 1 (n2, n3)", standby(N2), standby(N3))
    assert choose_candidate(promotion, {N2: received(1, 500), N3: received(1, 400)}) == N2
    assert choose_candidate(promotion, {N2: received(1, 500), N3: received(2, 400)}) == N3


def test_nobody_is_chosen_while_too_few_are_fenced():
    promotion = made("ANY 1 (n2, n3)", standby(N2), standby(N3))
    assert choose_candidate(promotion, {N2: received(1, 500)}) is None


def test_an_asynchronous_standby_is_fenced_but_never_chosen():
    promotion = made("ANY 1 (n2, n3)", standby(N2), standby(N3), standby(N4))
    fenced = {N2: received(1, 1), N3: received(1, 2), N4: received(1, 3)}
    assert promotion.fence == (N2, N3, N4)
    assert choose_candidate(promotion, fenced) == N3


@given(st.data())
def test_every_acknowledged_commit_survives(data: st.DataObject):
    """Any k of n standbys may have confirmed the newest commit; whoever is chosen from any fenced set has it."""
    n = data.draw(st.integers(2, 5))
    k = data.draw(st.integers(1, n))
    names = [EndpointName(f"s{i}") for i in range(n)]
    alive = data.draw(st.sets(st.sampled_from(names), min_size=2))
    found = plan(f"ANY {k} ({', '.join(names)})", *(standby(name, answers=name in alive) for name in names))
    if isinstance(found, Obstacle):
        assert len(alive) < fences_needed(n, k)
        return
    for confirmed in itertools.combinations(names, k):
        fenced = {name: received(1, 1000 if name in confirmed else 10) for name in found.counted}
        chosen = choose_candidate(found, fenced)
        assert chosen in confirmed


def test_two_routers_never_both_fence_enough():
    for n, k in itertools.product(range(1, 8), repeat=2):
        if k <= n:
            assert n - k + 1 <= fences_needed(n, k) <= n
            assert 2 * fences_needed(n, k) > n


def test_what_is_known_by_hearsay_asks_for_all_others():
    names = [standby(N2), standby(N3), standby(N4)]
    assert plan("ANY 2 (n2, n3)", *names, hearsay=True).needed == 3  # type: ignore[union-attr]
    missing = plan("ANY 2 (n2, n3)", standby(N2), standby(N3), standby(N4, answers=False), hearsay=True)
    assert isinstance(missing, Obstacle)
    assert missing.reason is PhaseReason.FENCE_INCOMPLETE


def test_who_may_have_been_promoted_is_the_only_one_to_be_chosen():
    promotion = replace(made("ANY 1 (n2, n3)", standby(N2), standby(N3)), pinned=N2)
    assert choose_candidate(promotion, {N2: received(1, 1), N3: received(1, 2)}) == N2
    assert choose_candidate(replace(promotion, needed=1), {N3: received(1, 2)}) is None


def test_the_next_cohort_lists_the_old_primary_so_that_it_counts_once_it_is_back():
    promotion = made("ANY 1 (n2, n3)", standby(N2), standby(N3))
    assert next_rule(promotion, N2, (N3,)) == SyncRule("ANY", 1, ("n1", "n3"))


def test_no_more_confirmations_are_asked_for_than_standbys_remain():
    promotion = made("ANY 2 (n2, n3, n4)", standby(N2), standby(N3), standby(N4, answers=False))
    assert next_rule(promotion, N2, (N3,)) == SyncRule("ANY", 1, ("n1", "n3", "n4"))


def test_with_nobody_left_writes_wait_unless_losing_is_allowed():
    promotion = made("ANY 1 (n2, n3)", standby(N2), standby(N3))
    assert next_rule(promotion, N2, ()).k == 1
    lossy = plan("ANY 1 (n2, n3)", standby(N2), policy=FailoverPolicy(may_lose=True))
    assert isinstance(lossy, PromotionPlan)
    assert next_rule(lossy, N2, ()).text() == ""


def test_asynchronous_stays_asynchronous_and_all_stays_all():
    lossy = plan("", standby(N2), standby(N3), policy=FailoverPolicy(may_lose=True))
    assert isinstance(lossy, PromotionPlan)
    assert next_rule(lossy, N2, (N3,)).text() == ""
    assert next_rule(made("ANY 1 (*)", standby(N2), standby(N3)), N2, (N3,)).text() == "ANY 1 (*)"


@pytest.mark.parametrize(
    ("in_recovery", "timeline", "fenced", "rival"),
    [
        (False, 2, (1, 1), True),
        (False, 2, (2, 1), True),
        (False, 2, (), True),
        (False, 1, (2, 2), False),
        (True, 2, (1, 1), False),
    ],
    ids=["promoted", "promoted and followed", "alone", "a primary of the past", "a standby"],
)
def test_who_is_promoted_already_is_a_rival_unless_it_is_of_the_past(
    in_recovery: bool, timeline: int, fenced: tuple[int, ...], rival: bool
) -> None:
    claim = RoleClaim(in_recovery, 7, Term(timeline), Lsn(0))
    others = [RoleClaim(True, 7, Term(one), Lsn(0)) for one in fenced]
    assert is_rival(claim, others) is rival
