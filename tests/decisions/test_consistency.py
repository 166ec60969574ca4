"""What a token asks of a read, on whichever side of a failover it was made; and which replicas fulfil it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.decisions.consistency import Ahead, Need, ahead, behind, is_past, judge, nearest, past, worth_waiting
from router.decisions.refusal import Refuse
from router.decisions.routing import Want, candidates, token_at
from router.model.errors import Code
from router.model.events import Health, Phase
from router.model.identity import ClusterName, EndpointName, Generation, Lsn, Term, TopologyNumber
from router.model.reasons import RefuseReason
from router.model.request import Access, ReadFrom
from router.model.state import ClusterState, EndpointState
from router.model.token import Token, decode
from router.model.topology import Role

A, B, C = EndpointName("a"), EndpointName("b"), EndpointName("c")
SYSTEM = 42


def endpoint(name: EndpointName, role: Role, lsn: int, term: int = 3, lag_s: float = 0.0) -> EndpointState:
    return EndpointState(name, role, Health.UP, term=Term(term), lsn=Lsn(lsn), lag_s=lag_s)


STATE = ClusterState(
    ClusterName("main"),
    Phase.STEADY,
    A,
    Term(3),
    Generation(1),
    {
        A: endpoint(A, Role.PRIMARY, 900),
        B: endpoint(B, Role.REPLICA, 800),
        C: endpoint(C, Role.REPLICA, 700),
    },
    TopologyNumber(5),
    system_id=SYSTEM,
    history=((Term(1), Lsn(100)), (Term(2), Lsn(500))),
)
FOUND = candidates(STATE, Want(Access.READ_ONLY, ReadFrom.REPLICA), {})


def token(timeline: int, lsn: int, *, unconfirmed: bool = True) -> Token:
    return Token(SYSTEM, Term(timeline), Lsn(lsn), unconfirmed)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (token(3, 950), Need(Lsn(950), Term(3))),
        (token(2, 500), Need(Lsn(500), Term(2))),
        (token(1, 100), Need(Lsn(100), Term(1))),
        (replace(token(2, 500), now=True), Need(Lsn(500), Term(2), now=True)),
        # All that was visible was confirmed, so nothing was lost; where it lies is not known: the reading of a primary
        # was ahead of it, that of a replica may have been one of the next timeline.
        (token(2, 501, unconfirmed=False), Need(Lsn(500), Term(2), now=True)),
        (token(1, 499, unconfirmed=False), Need(Lsn(100), Term(1), now=True)),
        (token(4, 1), Ahead(Term(4), Term(3))),
    ],
)
def test_what_is_needed(asked: Token, expected: object) -> None:
    assert judge(asked, STATE) == expected


@pytest.mark.parametrize(
    ("asked", "numbers"),
    [
        (token(2, 501), {"position": "0/1F5", "timeline": 2, "switch_point": "0/1F4", "lost_bytes": 1}),
        (token(1, 300), {"position": "0/12C", "timeline": 1, "switch_point": "0/64", "lost_bytes": 200}),
    ],
)
def test_what_was_lost_with_its_timeline_is_told_with_numbers(asked: Token, numbers: dict[str, object]) -> None:
    got = judge(asked, STATE)
    assert isinstance(got, Refuse)
    assert (got.reason, got.code) == (RefuseReason.TOKEN_LOST, Code.FAILED_PRECONDITION)
    assert got.numbers == {**numbers, "now_timeline": 3}


def test_a_branch_that_is_no_ancestor_is_lost() -> None:
    state = replace(STATE, history=((Term(1), Lsn(100)),))
    got = judge(token(2, 50), state)
    assert isinstance(got, Refuse)
    assert got.reason is RefuseReason.TOKEN_LOST
    assert "no ancestor" in got.message


def test_a_history_not_read_yet_is_waited_for_and_one_that_cannot_be_read_is_not() -> None:
    assert isinstance(judge(token(2, 50), replace(STATE, history=None)), Ahead)
    assert isinstance(judge(token(2, 50), replace(STATE, history=())), Refuse)
    assert judge(token(2, 50, unconfirmed=False), replace(STATE, history=None)) == Need(Lsn(50), Term(2), now=True)


def test_another_systems_token_is_refused_and_an_unknown_systems_is_waited_for() -> None:
    got = judge(replace(token(3, 1), system_id=1), STATE)
    assert isinstance(got, Refuse)
    assert (got.reason, got.code) == (RefuseReason.TOKEN_FOREIGN, Code.FAILED_PRECONDITION)
    assert isinstance(judge(token(3, 1), replace(STATE, system_id=0)), Ahead)


@pytest.mark.parametrize(
    ("lsn", "asked", "served"),
    [
        (700, {}, {B, C}),
        (701, {}, {B}),
        (801, {}, set()),
        (801, {C: Lsn(801)}, {C}),
        (801, {B: Lsn(1), C: Lsn(9)}, set()),
    ],
)
def test_only_replicas_that_are_past_it_take_it(
    lsn: int, asked: dict[EndpointName, Lsn], served: set[EndpointName]
) -> None:
    chosen = past(FOUND, STATE, Need(Lsn(lsn), Term(3)), asked)
    assert {route.endpoint for route in chosen.routes} == served
    assert [one.name for one in chosen.among] == [route.endpoint for route in chosen.routes]
    assert chosen.otherwise == FOUND.otherwise


def test_a_replica_on_an_older_timeline_does_not_count_however_far_it_is() -> None:
    stale = endpoint(B, Role.REPLICA, 10_000, term=2)
    assert not is_past(stale, Need(Lsn(600), Term(3)))
    assert is_past(stale, Need(Lsn(400), Term(2))), "what both timelines have"


def test_what_a_replica_said_before_it_was_in_doubt_does_not_count() -> None:
    """A crash takes it back, and the first read may come before the first probe."""
    doubted = replace(endpoint(B, Role.REPLICA, 500), health=Health.SUSPECT)
    assert not is_past(doubted, Need(Lsn(400), Term(3)))
    assert is_past(doubted, Need(Lsn(400), Term(3)), Lsn(450)), "asked since"


def test_the_primary_takes_everything() -> None:
    found = candidates(STATE, Want(Access.READ_ONLY, ReadFrom.ANY), {})
    assert {route.endpoint for route in past(found, STATE, Need(Lsn(10**9), Term(3)), {}).routes} == {A}


@pytest.mark.parametrize(
    ("lags", "worth"), [((0.0, 0.0), True), ((2.0, 0.05), True), ((2.0, 0.2), False), ((-1.0, 9.0), False)]
)
def test_waiting_is_for_those_that_may_catch_up(lags: tuple[float, float], worth: bool) -> None:
    lagging = {name: replace(STATE.endpoints[name], lag_s=lag) for name, lag in zip((B, C), lags, strict=True)}
    state = replace(STATE, endpoints={**STATE.endpoints, **lagging})
    assert worth_waiting(FOUND, state, 0.1) is worth


def test_the_replica_that_has_come_furthest_is_asked() -> None:
    assert nearest(FOUND, STATE, {}, frozenset()) == B
    assert nearest(FOUND, STATE, {C: Lsn(850)}, frozenset()) == C
    assert nearest(FOUND, STATE, {}, frozenset({B})) == C
    assert nearest(FOUND, STATE, {}, frozenset({B, C})) is None


def test_refusals_name_their_numbers() -> None:
    late = behind(FOUND, STATE, Need(Lsn(850), Term(3)), 0.1)
    assert (late.reason, late.numbers["best"], late.numbers["position"]) == (RefuseReason.NO_REPLICA, "0/320", "0/352")
    early = ahead(token(4, 1), STATE, 0.1)
    assert early.reason is RefuseReason.TOKEN_AHEAD
    assert (early.numbers["timeline"], early.numbers["known_timeline"]) == (4, 3)


def test_an_unasked_answer_shows_the_last_known_position_and_now() -> None:
    assert decode(token_at(STATE, A)) == Token(SYSTEM, Term(3), Lsn(900), unconfirmed=True, now=True)
    assert decode(token_at(replace(STATE, synchronous=True), B)) == Token(SYSTEM, Term(3), Lsn(800), now=True)
    assert token_at(replace(STATE, system_id=0), A) == b""


@pytest.mark.parametrize(
    ("term", "synchronous", "before", "confirmed"),
    [
        (3, True, 0, True),
        (3, False, 2, False),
        (2, False, 2, True),
        (2, True, 0, False),
        (1, True, 2, False),
        (4, True, 2, False),
    ],
)
def test_what_a_replica_shows_was_confirmed_as_its_own_timeline_was(
    term: int, synchronous: bool, before: int, confirmed: bool
) -> None:
    follower = endpoint(B, Role.REPLICA, 800, term)
    state = replace(
        STATE, synchronous=synchronous, confirmed_before=Term(before), endpoints={**STATE.endpoints, B: follower}
    )
    shown = decode(token_at(state, B))
    assert (shown.timeline, shown.unconfirmed) == (term, not confirmed)


def test_a_read_on_a_replica_that_followed_before_it_was_probed_loses_nothing() -> None:
    """Seen once: its position lay 200 bytes beyond the switch, its token was of the timeline before."""
    follower = endpoint(C, Role.REPLICA, 490, 2)
    promoted = replace(
        STATE, synchronous=True, confirmed_before=Term(2), endpoints={**STATE.endpoints, C: follower}
    )
    told = replace(decode(token_at(promoted, C)), lsn=Lsn(700), now=False)
    need = judge(told, STATE)
    assert need == Need(Lsn(500), Term(2), now=True), "500 alone would be less than was seen"


@given(
    st.integers(1, 4),
    st.integers(0, 1000),
    st.booleans(),
    st.dictionaries(st.sampled_from([B, C]), st.integers(0, 1000)),
)
def test_no_replica_behind_the_token_is_ever_chosen(
    timeline: int, lsn: int, unconfirmed: bool, asked: dict[EndpointName, int]
) -> None:
    need = judge(token(timeline, lsn, unconfirmed=unconfirmed), STATE)
    if not isinstance(need, Need):
        return
    known = {name: Lsn(at) for name, at in asked.items()}
    for route in past(FOUND, STATE, need, known).routes:
        assert max(STATE.endpoints[route.endpoint].lsn, known.get(route.endpoint, 0)) >= need.lsn
        assert need.lsn == lsn or not unconfirmed
