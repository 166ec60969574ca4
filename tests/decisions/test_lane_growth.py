"""decisions/lane_growth: lanes are doubled while that helps, and a trial in vain is undone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.decisions.lane_growth import EXPECTED_S, FILLED, HOLD_S, Spread

GROW_S = 0.002


def drive(
    spread: Spread, seconds: float, rate: Callable[[int], float], wait_s: Callable[[int], float], start: float = 0.0,
    opens: bool = True,
) -> list[int]:
    """Ticks; rate and wait_s follow from the lanes in use. The numbers of lanes that were seen."""
    now, answered, seen = start, 0.0, [spread.lanes]
    lanes = spread.lanes
    while now < start + seconds:
        now += 0.01
        answered += rate(lanes) * 0.01
        spread.step(wait_s(lanes), lanes, int(answered), 0.0, now)
        lanes = spread.lanes if opens else lanes
        if spread.lanes != seen[-1]:
            seen.append(spread.lanes)
    return seen


def test_lanes_that_help_are_added_until_the_wait_is_short() -> None:
    spread = Spread(GROW_S, 40)
    seen = drive(spread, 2.0, lambda lanes: 5000.0 * lanes, lambda lanes: 0.012 / lanes)
    assert seen == [1, 2, 4, 8]


def test_never_more_than_the_pool_may_have() -> None:
    spread = Spread(GROW_S, 5)
    assert max(drive(spread, 5.0, lambda lanes: 5000.0 * lanes, lambda _: 1.0)) == 5


def test_a_trial_in_vain_is_undone_and_comes_ever_later() -> None:
    spread = Spread(GROW_S, 40)
    seen = drive(spread, 60.0, lambda lanes: 5000.0 * min(lanes, 4), lambda _: 0.05)
    assert max(seen) == 8
    assert seen[-1] in (4, 8)
    assert seen.count(8) <= 7, "1, 2, 4, 8, 16, 32 s between them"
    assert seen.count(8) >= 3, "but it is tried again"


def test_lanes_that_are_of_no_more_use_are_left() -> None:
    spread = Spread(GROW_S, 40)
    drive(spread, 2.0, lambda lanes: 5000.0 * lanes, lambda lanes: 0.012 / lanes)
    assert spread.lanes == 8
    drive(spread, 60.0, lambda lanes: 3000.0, lambda lanes: 0.0001, start=1000.0)
    assert spread.lanes == 1


def test_lanes_that_are_of_use_are_kept() -> None:
    spread = Spread(GROW_S, 40)
    drive(spread, 2.0, lambda lanes: 5000.0 * lanes, lambda lanes: 0.012 / lanes)
    seen = drive(spread, 60.0, lambda lanes: 5000.0 * lanes, lambda lanes: 0.012 / lanes, start=2.0)
    assert seen[0] == 8
    assert seen[-1] == 8
    assert set(seen) == {8, 4}, "fewer were tried"
    assert len(seen) <= 11, "and ever later"


def test_lanes_that_cannot_be_opened_end_the_trial() -> None:
    spread = Spread(GROW_S, 40)
    seen = drive(spread, 10 * HOLD_S, lambda lanes: 5000.0 * lanes, lambda _: 0.05, opens=False)
    assert max(seen) == 2


def test_a_short_wait_changes_nothing() -> None:
    spread = Spread(GROW_S, 40)
    assert drive(spread, 5.0, lambda _: 5000.0, lambda _: GROW_S * 0.99) == [1]


@pytest.mark.parametrize(("load", "needs"), [(0.0, 0), (0.5, 1), (FILLED + 0.01, 2), (2.4, 4), (5.0, 9)])
def test_fast_statements_need_the_lanes_that_their_work_fills(load: float, needs: int) -> None:
    spread = Spread(GROW_S, 40)
    for tick in range(1, 40):
        spread.step(0.0, 1, tick, load * tick * 0.01, 1000 + tick * 0.01)
    spread.fast_at = 1000.4 if load else spread.fast_at
    assert spread.needs(1000.4) == pytest.approx(needs, abs=1 if load else 0)
    for tick in range(40, 600):
        spread.step(0.0, 1, tick, load * 0.4, 1000 + tick * 0.01)
    assert spread.needs(1006) == bool(load), "the need passes"
    assert spread.needs(1006 + EXPECTED_S) == 0, "and in the end none is expected"


@given(st.lists(st.tuples(st.floats(0, 0.1), st.integers(0, 12), st.integers(0, 1000), st.floats(0.0, 3.0)),
                max_size=60))
def test_lanes_stay_within_bounds(steps: list[tuple[float, int, int, float]]) -> None:
    spread = Spread(GROW_S, 10)
    now, answered, worked_s = 1000.0, 0, 0.0
    for wait_s, lanes, more, later in steps:
        now += later
        answered += more
        worked_s += more * 1e-4
        spread.step(wait_s, lanes, answered, worked_s, now)
        assert 1 <= spread.lanes <= 10
        assert spread.needs(now) >= 0
