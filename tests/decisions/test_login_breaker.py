"""decisions/login_breaker: a refused login is tried by one, with pauses; a good one closes the breaker."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.decisions.backoff import FIRST_PAUSE_S, LONGEST_PAUSE_S
from router.decisions.login_breaker import OPENS_AFTER, LoginBreaker, Try, refuses_login
from router.model.observation import Fault, FaultKind, Stage

WRONG = Fault(FaultKind.CONNECT_FAILED, Stage.CONNECT, "28P01", "password authentication failed")


def opened(now: float = 0.0) -> LoginBreaker:
    breaker = LoginBreaker()
    for _ in range(OPENS_AFTER):
        assert breaker.begin(now) is Try.AT_WILL
        breaker.refusal(Try.AT_WILL, WRONG, now)
    return breaker


def test_it_opens_after_refusals_in_a_row_and_lets_one_probe_after_each_pause() -> None:
    breaker, now, pause_s = opened(), 0.0, FIRST_PAUSE_S
    for _ in range(8):
        assert breaker.begin(now + pause_s - 0.01) is None
        now += pause_s
        assert breaker.begin(now) is Try.PROBE
        assert breaker.begin(now) is None, "one probe"
        breaker.refusal(Try.PROBE, WRONG, now)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
    assert pause_s == LONGEST_PAUSE_S


def test_an_accepted_login_closes_it_and_begins_the_count_anew() -> None:
    breaker = opened()
    assert breaker.begin(FIRST_PAUSE_S) is Try.PROBE
    breaker.accepted()
    assert breaker.fault is None
    for _ in range(OPENS_AFTER - 1):
        breaker.refusal(Try.AT_WILL, WRONG, 9.0)
    assert all(breaker.begin(9.0) is Try.AT_WILL for _ in range(5))


def test_a_probe_that_says_nothing_leaves_the_next_one_to_probe() -> None:
    breaker = opened()
    assert breaker.begin(FIRST_PAUSE_S) is Try.PROBE
    breaker.unknown(Try.PROBE)
    assert breaker.begin(FIRST_PAUSE_S) is Try.PROBE


@pytest.mark.parametrize("refused", [True, False])
def test_a_connect_that_began_before_it_opened_says_nothing_about_the_probe(refused: bool) -> None:
    breaker = opened()
    assert breaker.begin(FIRST_PAUSE_S) is Try.PROBE
    if refused:
        breaker.refusal(Try.AT_WILL, WRONG, FIRST_PAUSE_S)
    else:
        breaker.unknown(Try.AT_WILL)
    assert breaker.begin(100.0) is None, "the probe is under way yet"
    assert breaker.refused == OPENS_AFTER
    breaker.refusal(Try.PROBE, WRONG, FIRST_PAUSE_S)
    assert breaker.again_at == FIRST_PAUSE_S + 2 * FIRST_PAUSE_S, "doubled once"


@pytest.mark.parametrize(
    ("kind", "sqlstate", "expected"),
    [
        (FaultKind.CONNECT_FAILED, "28P01", True),
        (FaultKind.CONNECT_FAILED, "28000", True),
        (FaultKind.CONNECT_FAILED, "3D000", True),
        (FaultKind.CONNECT_FAILED, "53300", False),
        (FaultKind.CONNECT_FAILED, "", False),
        (FaultKind.CONNECT_REFUSED, "", False),
        (FaultKind.SERVER_ERROR, "28000", False),
        (FaultKind.POOL_TIMEOUT, "", False),
    ],
)
def test_what_says_that_the_login_is_wrong(kind: FaultKind, sqlstate: str, expected: bool) -> None:
    assert refuses_login(Fault(kind, Stage.CONNECT, sqlstate)) is expected


@given(st.lists(st.tuples(st.floats(0, 0.5), st.sampled_from(["ask", "refuse", "unknown"])), max_size=200))
def test_the_server_sees_at_most_one_login_a_second_once_it_is_open(steps: list[tuple[float, str]]) -> None:
    breaker, now, began, under_way = opened(), 0.0, [], False
    for pause_s, what in steps:
        now += pause_s
        if what == "ask" and breaker.begin(now) is Try.PROBE:
            assert not under_way
            under_way = True
            began.append(now)
        elif under_way and what == "refuse":
            under_way = False
            breaker.refusal(Try.PROBE, WRONG, now)
        # A probe without an answer may be repeated at once: nobody was refused by it.
    assert all(later - earlier >= FIRST_PAUSE_S - 1e-9 for earlier, later in itertools.pairwise(began))
