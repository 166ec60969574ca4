"""decisions/pace and decisions/request_rate: how long a queue takes, and how many requests a second."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.decisions.pace import FORGET_S, Pace
from router.decisions.request_rate import RequestRate


def measured(per_s: float, seconds: float = 2.0, start: float = 50.0) -> tuple[Pace, float]:
    pace = Pace()
    pace.begin(start)
    now = start
    for number in range(1, int(per_s * seconds) + 1):
        now = start + number / per_s
        pace.left(now)
    return pace, now


def test_nothing_is_known_before_anything_was_measured() -> None:
    pace = Pace()
    pace.begin(5.0)
    pace.left(5.01)
    assert pace.wait_s(1000, 5.01) == 0.0


@given(st.floats(2.0, 5000.0), st.integers(0, 5000))
def test_the_wait_is_what_is_ahead_at_the_measured_pace(per_s: float, ahead: int) -> None:
    pace, now = measured(per_s)
    assert pace.wait_s(ahead, now) == pytest.approx(ahead / per_s, rel=0.05)


def test_a_pace_that_changes_is_learned_within_two_seconds_and_a_stop_is_noticed_at_once() -> None:
    pace, now = measured(100.0)
    for number in range(1, 2001):
        pace.left(now + number / 1000.0)
    now += 2.0
    assert pace.wait_s(1000, now) == pytest.approx(1.0, rel=0.15)
    assert pace.wait_s(10, now + 3.0) == pytest.approx(30.0, rel=0.1)


def test_a_long_pause_forgets_and_a_short_one_does_not() -> None:
    pace, now = measured(100.0)
    pace.begin(now + 1.0)
    assert pace.wait_s(100, now + 1.0) == pytest.approx(1.0, rel=0.05)
    pace.begin(now + 1.0 + FORGET_S + 0.1)
    assert pace.wait_s(100, now + 1.1 + FORGET_S) == 0.0


def test_a_bucket_gives_a_burst_then_its_rate_and_says_when_the_next_one_comes() -> None:
    rate = RequestRate(10.0, 3.0, 0.0)
    assert [rate.take(0.0) for _ in range(3)] == [0.0] * 3
    assert rate.take(0.0) == pytest.approx(0.1)
    assert rate.take(0.05) == pytest.approx(0.05)
    assert rate.take(0.1) == 0.0
    assert [rate.take(100.0) for _ in range(4)] == [0.0, 0.0, 0.0, pytest.approx(0.1)]


@given(st.floats(0.5, 1000.0), st.integers(1, 50), st.lists(st.floats(0, 0.5), max_size=300))
def test_never_more_than_the_burst_and_the_rate_allow(per_s: float, burst: int, pauses: list[float]) -> None:
    rate, now, taken = RequestRate(per_s, float(burst), 0.0), 0.0, 0
    for pause_s in pauses:
        now += pause_s
        taken += rate.take(now) == 0.0
        assert taken <= burst + per_s * now + 1e-6
