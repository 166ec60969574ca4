"""decisions/lanes: placement by expected wait, lanes kept for fast statements, stalled heads."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.decisions.lanes import (
    PACK,
    Defer,
    Head,
    LaneLimits,
    LaneLoad,
    fast_lanes,
    goes_on,
    place_alone,
    place_fast,
    place_slow,
    reserve,
    stalled,
    surplus,
)
from router.model.policy import PoolPolicy

LIMITS = LaneLimits(window=4, max_size=3, slow_s=0.01, grow_s=0.002, window_s=0.01)
FAST = 0.0001


def lane(
    in_flight: int = 0, expected_s: float = 0.0, *, private: bool = False, slow: int = 0, stalled: bool = False
) -> LaneLoad:
    return LaneLoad(in_flight, expected_s, private, slow, stalled)


IDLE = lane()
SHORT = lane(2, 0.0002)
BUSY = lane(2, 0.001)
DEEP = lane(3, 0.004)
FULL = lane(4, 0.001)
HEAVY = lane(2, 0.00995)
SLOW = lane(1, 0.1, slow=1)
STUCK = lane(2, 0.0002, stalled=True)
PRIVATE = lane(private=True)

# name: lanes, spread -> index
PLACE_FAST: dict[str, tuple[list[LaneLoad], int, int]] = {
    "no lane": ([], 9, -1),
    "the first lane with a short wait": ([BUSY, SHORT, IDLE], 9, 1),
    "an idle one before a long wait": ([BUSY, DEEP, IDLE], 9, 2),
    "the least expected wait": ([DEEP, BUSY], 9, 1),
    "never beyond the window": ([FULL], 9, -1),
    "never beyond the window in seconds": ([HEAVY], 9, -1),
    "never behind a slow one": ([SLOW], 9, -1),
    "never behind a stalled head": ([STUCK], 9, -1),
    "never on a private lane": ([PRIVATE], 9, -1),
    "only as many lanes as help": ([BUSY, IDLE], 1, 0),
    "those not for fast ones do not count": ([SLOW, PRIVATE, STUCK, BUSY, IDLE], 1, 3),
    "full ones count": ([FULL, IDLE], 1, -1),
}


@pytest.mark.parametrize("name", PLACE_FAST)
def test_place_fast(name: str) -> None:
    lanes, spread, expected = PLACE_FAST[name]
    assert place_fast(lanes, FAST, LIMITS, spread) == expected


def test_a_statement_wider_than_the_window_runs_on_an_idle_lane() -> None:
    assert place_fast([SHORT, IDLE], 0.5, LIMITS) == 1


# name: lanes, known, opening, lanes that fast ones need -> placement
PLACE_SLOW: dict[str, tuple[list[LaneLoad], bool, int, int, int | Defer]] = {
    "the first lane is opened": ([], True, 0, 1, Defer.OPEN),
    "an idle lane, the last": ([IDLE, IDLE, BUSY], True, 0, 1, 1),
    "a lane of its own": ([BUSY], True, 0, 1, Defer.OPEN),
    "also while another is opened": ([BUSY], True, 1, 1, Defer.OPEN),
    "as many as may be": ([BUSY], True, 2, 1, Defer.WAIT),
    "unknown: a burst opens one at a time": ([BUSY], False, 1, 1, Defer.WAIT),
    "unknown: shares where fast ones keep a lane": ([BUSY, DEEP], False, 1, 1, 0),
    "shares when the pool is full": ([DEEP, BUSY, PRIVATE], True, 0, 1, 1),
    "never behind another slow one": ([SLOW, BUSY, DEEP], True, 0, 1, 1),
    "one lane is left to fast ones": ([SLOW, SLOW, IDLE], True, 0, 1, Defer.WAIT),
    "so many are left as they need": ([SLOW, BUSY, IDLE], True, 0, 2, Defer.WAIT),
    "but one slow one runs": ([BUSY, DEEP, IDLE], True, 0, 3, 2),
    "also on the only lane there is": ([BUSY, PRIVATE, PRIVATE], True, 0, 1, 0),
    "one at a time": ([SLOW, PRIVATE, PRIVATE], True, 0, 1, Defer.WAIT),
    "none is left where there are no fast ones": ([SLOW, SLOW, IDLE], True, 0, 0, 2),
    "nor the last one kept back": ([SLOW, IDLE], True, 1, 0, 1),
    "a stalled lane is no fast one": ([STUCK, SLOW, IDLE], True, 0, 1, Defer.WAIT),
    "windows are full": ([FULL, FULL, FULL], True, 0, 1, Defer.WAIT),
}


@pytest.mark.parametrize("name", PLACE_SLOW)
def test_place_slow(name: str) -> None:
    lanes, known, opening, needs, expected = PLACE_SLOW[name]
    assert place_slow(lanes, LIMITS, known=known, opening=opening, fast_needs=needs) == expected


ALONE: dict[str, tuple[list[LaneLoad], int, int | Defer]] = {
    "the first one is opened": ([], 0, Defer.OPEN),
    "last idle lane": ([IDLE, IDLE, BUSY], 0, 1),
    "never beside others": ([BUSY, DEEP], 0, Defer.OPEN),
    "never on a private lane": ([PRIVATE, BUSY], 0, Defer.OPEN),
    "pool is full": ([BUSY, BUSY, PRIVATE], 0, Defer.WAIT),
    "pool will be full": ([BUSY], 2, Defer.WAIT),
}


@pytest.mark.parametrize("name", ALONE)
def test_place_alone(name: str) -> None:
    lanes, opening, expected = ALONE[name]
    assert place_alone(lanes, LIMITS, opening) == expected


loads = st.lists(
    st.builds(
        lambda flight, cost, private, slow, stuck: LaneLoad(
            flight, cost * flight, private, min(slow, flight), stuck and flight > 0),
        st.integers(0, 4), st.floats(0, 0.01), st.booleans(), st.integers(0, 1), st.booleans()),
    max_size=3,
)


@given(loads, st.floats(0, 0.01), st.integers(1, 4))
def test_bounds_of_fast_ones_hold_for_every_load(lanes: list[LaneLoad], cost_s: float, spread: int) -> None:
    index = place_fast(lanes, cost_s, LIMITS, spread)
    usable = [one for one in lanes if not one.private and not one.slow and not one.stalled]
    if index >= 0:
        chosen = lanes[index]
        assert chosen in usable[:spread]
        assert chosen.in_flight < LIMITS.window
        assert chosen.in_flight == 0 or chosen.expected_s + cost_s <= LIMITS.window_s + 1e-12
        if chosen.expected_s > LIMITS.grow_s * PACK:
            assert all(
                one.expected_s >= chosen.expected_s or one.in_flight >= LIMITS.window for one in usable[:spread])
    else:
        for one in usable[:spread]:
            assert one.in_flight > 0
            assert one.in_flight >= LIMITS.window or one.expected_s + cost_s > LIMITS.window_s - 1e-12


@given(loads, st.booleans(), st.integers(0, 3), st.integers(0, 4))
def test_bounds_of_slow_ones_hold_for_every_load(lanes: list[LaneLoad], known: bool, opening: int, needs: int) -> None:
    got = place_slow(lanes, LIMITS, known=known, opening=opening, fast_needs=needs)
    private = sum(one.private for one in lanes)
    slow = sum(not one.private and (one.slow > 0 or one.stalled) for one in lanes)
    if isinstance(got, int):
        chosen = lanes[got]
        assert not chosen.private
        assert chosen.slow == 0
        assert not chosen.stalled
        assert chosen.in_flight < LIMITS.window
    if got is Defer.OPEN:
        assert len(lanes) + opening < LIMITS.max_size
    if got is not Defer.WAIT and slow:
        assert LIMITS.max_size - private - slow - 1 >= needs, "fast ones keep what they need"
    if got is Defer.WAIT:  # something is there, or coming, that will end the wait
        assert lanes or opening


@given(loads, st.integers(0, 3))
def test_bounds_of_work_alone_hold_for_every_load(lanes: list[LaneLoad], opening: int) -> None:
    got = place_alone(lanes, LIMITS, opening)
    if isinstance(got, int):
        assert lanes[got].in_flight == 0
        assert not lanes[got].private
    if got is Defer.OPEN:
        assert len(lanes) + opening < LIMITS.max_size
    if got is Defer.WAIT:
        assert lanes or opening


def test_reserve_takes_the_shared_lane_that_falls_idle_first() -> None:
    assert reserve([DEEP, BUSY, PRIVATE]) == 1
    assert reserve([STUCK, DEEP]) == 1
    assert reserve([STUCK, PRIVATE]) == 0
    assert reserve([PRIVATE]) is None
    assert reserve([]) is None


def test_the_wait_of_a_fast_statement_is_the_shortest_lane_and_its_part_of_the_line() -> None:
    found = fast_lanes([DEEP, BUSY, SLOW, PRIVATE, STUCK, IDLE], 0.004, 2)
    assert (found.lanes, found.wait_s) == (2, pytest.approx(0.001 + 0.002))
    assert fast_lanes([SLOW, PRIVATE], 0.0, 2).wait_s == float("inf")


def test_a_head_has_stalled_after_many_times_its_cost_and_never_before_slow_s() -> None:
    heads = [
        Head(9.0, 0.0001, 8.0), Head(9.995, 0.0001, 9.995), Head(9.0, 0.2, 9.0), None, Head(float("inf"), 0.0, 0.0)]
    assert stalled(heads, LIMITS, 10.0) == [0]
    assert stalled(heads, LIMITS, 10.1) == [0, 1]
    assert stalled(heads, LIMITS, 10.7) == [0, 1, 2]


def test_a_server_that_answers_on_no_other_lane_may_stand_still() -> None:
    mine = Head(9.0, 0.0001, 8.0)
    assert not goes_on([mine], 0)
    assert not goes_on([mine, None, Head(8.5, 0.0001, 8.9)], 0)
    assert goes_on([mine, Head(9.4, 0.0001, 9.4)], 0)
    assert goes_on([mine, Head(float("inf"), 0.0, 9.4)], 0), "also one that is idle now"


def test_lanes_unused_for_long_are_surplus() -> None:
    assert surplus([IDLE, IDLE, BUSY, PRIVATE], [1.0, 2.5, 0.0, 0.0], 2.0, 4.0) == [0]


def test_load_of_an_empty_lane_is_exactly_zero() -> None:
    load = LaneLoad()
    for cost in (0.1, 0.2, 0.3):
        load.add(cost, slow=True)
    for cost in (0.1, 0.2, 0.3):
        load.remove(cost, slow=True)
    assert (load.in_flight, load.expected_s, load.slow) == (0, 0.0, 0)


def test_the_limits_are_the_policys() -> None:
    limits = LaneLimits.of(PoolPolicy(max_size=7, lane_window=5, slow_s=0.5, grow_s=0.1, lane_window_s=0.2,
                                      stall_factor=3.0))
    assert limits == LaneLimits(window=5, max_size=7, slow_s=0.5, grow_s=0.1, window_s=0.2, stall=3.0)
