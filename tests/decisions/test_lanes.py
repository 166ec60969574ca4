"""decisions/lanes: placement by expected wait, growth by expected wait, learned costs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.decisions.lanes import (
    CostBook,
    Defer,
    LaneLimits,
    LaneLoad,
    PlacementWant,
    Sharing,
    Use,
    place,
    place_alone,
    place_shared,
    reserve,
)

LIMITS = LaneLimits(window=4, max_size=3, slow_s=0.01, grow_s=0.002)
FAST, SLOW, UNKNOWN = 0.0001, 0.5, None


def lane(in_flight: int = 0, expected_s: float = 0.0, *, private: bool = False) -> LaneLoad:
    return LaneLoad(in_flight, expected_s, private)


BUSY = lane(2, 0.001)
FULL = lane(4, 0.001)
DEEP = lane(3, 0.004)
IDLE = lane()
PRIVATE = lane(0, 0.0, private=True)

# name: lanes, cost, opening, queued_s -> placement
SHARED: dict[str, tuple[list[LaneLoad], float | None, int, float, Use | Defer]] = {
    "the first one is opened": ([], FAST, 0, 0.0, Defer.OPEN),
    "the first one is being opened": ([], FAST, 1, 0.0, Defer.WAIT),
    "fast: first idle lane": ([BUSY, IDLE, IDLE], FAST, 0, 0.0, Use(1)),
    "fast: least expected wait": ([lane(1, 0.0015), BUSY], FAST, 0, 0.0, Use(1)),
    "fast: no new lane for a short wait": ([BUSY], FAST, 0, 0.0, Use(0)),
    "fast: a new lane for a long wait": ([DEEP, lane(3, 0.003)], FAST, 0, 0.0, Defer.OPEN),
    "fast: a long wait, but one is being opened": ([DEEP, lane(3, 0.003)], FAST, 1, 0.0, Use(1)),
    "fast: a long wait, but the pool is full": ([DEEP, lane(3, 0.003), DEEP], FAST, 0, 0.0, Use(1)),
    "fast: what waits in the router counts": ([BUSY], FAST, 0, 0.0015, Defer.OPEN),
    "fast: windows are full, the wait is short": ([FULL], FAST, 0, 0.0, Defer.WAIT),
    "fast: windows are full, the wait is long": ([lane(4, 0.003)], FAST, 0, 0.0, Defer.OPEN),
    "fast: not on a private lane": ([PRIVATE, BUSY], FAST, 0, 0.0, Use(1)),
    "fast: only private lanes": ([PRIVATE], FAST, 0, 0.0, Defer.OPEN),
    "fast: only private lanes, pool is full": ([PRIVATE, PRIVATE, PRIVATE], FAST, 0, 0.0, Defer.WAIT),
    "slow: idle lane": ([BUSY, IDLE], SLOW, 0, 0.0, Use(1)),
    "slow: a lane of its own": ([BUSY], SLOW, 0, 0.0, Defer.OPEN),
    "slow: also while another is opened": ([BUSY], SLOW, 1, 0.0, Defer.OPEN),
    "slow: shares when the pool is full": ([BUSY, DEEP, PRIVATE], SLOW, 0, 0.0, Use(0)),
    "unknown: idle lane": ([BUSY, IDLE], UNKNOWN, 0, 0.0, Use(1)),
    "unknown: a lane of its own": ([BUSY], UNKNOWN, 0, 0.0, Defer.OPEN),
    "unknown: a burst opens one at a time": ([BUSY], UNKNOWN, 1, 0.0, Use(0)),
}


@pytest.mark.parametrize("name", SHARED)
def test_place_shared(name: str) -> None:
    lanes, cost_s, opening, queued_s, expected = SHARED[name]
    assert place(lanes, PlacementWant(Sharing.SHARED, cost_s), LIMITS, opening, queued_s) == expected


ALONE: dict[str, tuple[list[LaneLoad], int, Use | Defer]] = {
    "the first one is opened": ([], 0, Defer.OPEN),
    "last idle lane": ([IDLE, IDLE, BUSY], 0, Use(1)),
    "never beside others": ([BUSY, DEEP], 0, Defer.OPEN),
    "never on a private lane": ([PRIVATE, BUSY], 0, Defer.OPEN),
    "pool is full": ([BUSY, BUSY, PRIVATE], 0, Defer.WAIT),
    "pool will be full": ([BUSY], 2, Defer.WAIT),
}


@pytest.mark.parametrize("name", ALONE)
def test_place_alone(name: str) -> None:
    lanes, opening, expected = ALONE[name]
    assert place(lanes, PlacementWant(Sharing.ALONE), LIMITS, opening) == expected


loads = st.lists(
    st.builds(
        lambda flight, cost, private: LaneLoad(flight, cost * flight, private),
        st.integers(0, 4), st.floats(0, 1), st.booleans()),
    max_size=3,
)


@given(loads, st.none() | st.floats(0, 1), st.integers(0, 3), st.floats(0, 1))
def test_bounds_hold_for_every_load(lanes: list[LaneLoad], cost_s: float | None, opening: int, queued_s: float) -> None:
    for got in (place_shared(lanes, cost_s, LIMITS, opening, queued_s), place_alone(lanes, LIMITS, opening)):
        if isinstance(got, Use):
            assert not lanes[got.index].private
            assert lanes[got.index].in_flight < LIMITS.window
        if got is Defer.OPEN:
            assert len(lanes) + opening < LIMITS.max_size
        if got is Defer.WAIT:  # something is there, or coming, that will end the wait
            assert lanes or opening
    alone = place_alone(lanes, LIMITS, opening)
    assert not isinstance(alone, Use) or lanes[alone.index].in_flight == 0


def test_steady_fast_load_stays_on_few_lanes() -> None:
    """Ten fast callers, each sending its next statement when the last is answered: one lane serves them."""
    lanes, limits = [lane()], LaneLimits(window=32, max_size=8, slow_s=0.01, grow_s=0.002)
    for _ in range(1000):
        got = place_shared(lanes, FAST, limits)
        if got is Defer.OPEN:
            lanes.append(lane())
            continue
        assert isinstance(got, Use)
        lanes[got.index].add(FAST)
        if sum(one.in_flight for one in lanes) >= 10:
            next(one for one in lanes if one.in_flight).remove(FAST)
    assert len(lanes) == 1


def test_reserve_takes_the_shared_lane_that_falls_idle_first() -> None:
    assert reserve([DEEP, BUSY, PRIVATE]) == 1
    assert reserve([PRIVATE]) is None
    assert reserve([]) is None


def test_load_of_an_empty_lane_is_exactly_zero() -> None:
    load = LaneLoad()
    for cost in (0.1, 0.2, 0.3):
        load.add(cost)
    for cost in (0.1, 0.2, 0.3):
        load.remove(cost)
    assert (load.in_flight, load.expected_s) == (0, 0.0)


def test_cost_is_learned_up_fast_and_down_slowly() -> None:
    book = CostBook()
    assert book.cost(b"a", 0.0) is None
    book.learn(b"a", 0.001, 0.0)
    assert book.cost(b"a", 0.0) == 0.001
    book.learn(b"a", 0.101, 1.0)
    assert book.cost(b"a", 1.0) == pytest.approx(0.051)
    book.learn(b"a", 0.001, 2.0)
    assert book.cost(b"a", 2.0) == pytest.approx(0.046)


def test_old_costs_are_forgotten() -> None:
    book = CostBook(forget_s=60.0)
    book.learn(b"a", 5.0, 0.0)
    assert book.cost(b"a", 60.0) == 5.0
    assert book.cost(b"a", 61.0) is None
    book.learn(b"a", 0.001, 61.0)
    assert book.cost(b"a", 61.0) == 0.001


def test_book_keeps_the_latest() -> None:
    book = CostBook(limit=3)
    for text in (b"a", b"b", b"c", b"a", b"d"):
        book.learn(text, 0.1, 0.0)
    assert len(book) == 3
    assert book.cost(b"b", 0.0) is None
    assert book.cost(b"a", 0.0) is not None
