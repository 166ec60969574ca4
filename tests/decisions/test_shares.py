"""decisions/shares: floors, weights, ceilings; who is next by weighted database time; nobody saves up credit."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.decisions.shares import LONG_TURN_S, MOST_AHEAD_S, TURN_S, Claim, Turns, dues, targets, turn


def claim(keeps: int = 0, wants: int = 100, **more: float) -> Claim:
    return Claim(keeps, wants, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("cap", "claims", "expected"),
    [
        (10, [], []),
        (10, [claim(2, 0), claim(0, 3)], [2, 3]),
        (10, [claim(), claim()], [5, 5]),
        (10, [claim(), claim(), claim(0, 2)], [4, 4, 2]),
        (10, [claim(weight=300), claim(weight=100), claim(weight=100)], [6, 2, 2]),
        (10, [claim(floor=6), claim(), claim()], [6, 2, 2]),
        (10, [claim(0, 1, floor=6), claim(), claim()], [1, 4.5, 4.5]),
        (10, [claim(floor=3), claim()], [5, 5]),
        (10, [claim(ceiling=2), claim()], [2, 8]),
        (10, [claim(weight=900, ceiling=2), claim(), claim(floor=5)], [2, 3, 5]),
        (4, [claim(floor=6), claim(floor=2), claim()], [3, 1, 0]),
        (1, [claim(), claim()], [0.5, 0.5]),
        (0, [claim(), claim(floor=1)], [0, 0]),
    ],
)
def test_what_is_due(cap: int, claims: list[Claim], expected: list[float]) -> None:
    assert dues(claims, cap) == pytest.approx(expected)


claims_ = st.lists(
    st.builds(
        Claim,
        keeps=st.integers(0, 12),
        wants=st.integers(0, 30),
        floor=st.integers(0, 5),
        weight=st.integers(1, 1000).map(float),
        ceiling=st.integers(5, 40),
        time_s=st.floats(0, 100),
    ),
    max_size=12,
)


@given(claims_, st.integers(0, 60))
def test_nothing_is_left_over_and_floors_and_ceilings_hold(claims: list[Claim], cap: int) -> None:
    due, whole = dues(claims, cap), targets(claims, cap)
    used = min(cap, sum(one.most for one in claims))
    assert sum(due) == pytest.approx(used)
    assert sum(whole) == used, "work conserving"
    for one, fraction, count in zip(claims, due, whole, strict=True):
        assert abs(count - fraction) < 1
        assert count <= one.most
        if sum(other.least for other in claims) <= cap:
            assert count >= one.least


@given(claims_, st.integers(1, 60))
def test_nobody_gets_more_while_somebody_of_less_for_its_weight_wants_some(claims: list[Claim], cap: int) -> None:
    due = dues(claims, cap)
    if sum(one.least for one in claims) > cap:
        return
    for poor, its in zip(claims, due, strict=True):
        for rich, others in zip(claims, due, strict=True):
            if its < poor.most - 1e-6 and others > rich.least + 1e-6:
                assert others / rich.weight <= its / poor.weight + 1e-6


def test_a_part_goes_to_who_is_behind_and_stays_there_for_a_turn() -> None:
    ahead = claim(1, time_s=TURN_S * 0.9)
    assert targets([ahead, claim(time_s=0.0)], 1) == [1, 0]
    assert targets([claim(1, time_s=TURN_S * 1.1), claim(time_s=0.0)], 1) == [0, 1]
    assert targets([claim(3, time_s=LONG_TURN_S * 0.9), claim(2)], 5) == [3, 2]
    assert targets([claim(3, time_s=LONG_TURN_S * 1.1), claim(2)], 5) == [2, 3]


def test_next_is_who_lacks_its_due_then_who_is_behind_then_who_was_first() -> None:
    def in_turn(claims: list[Claim], cap: int) -> list[int]:
        due = targets(claims, cap)
        return sorted(range(len(claims)), key=lambda one: turn(claims[one].keeps - due[one], claims[one].time_s))

    served = claim(5, 1, time_s=0.0)
    lacking = claim(1, 4, time_s=50.0)
    assert in_turn([served, lacking], 8) == [1, 0]
    assert in_turn([claim(time_s=2.0), claim(time_s=1.0), claim(time_s=1.0)], 2) == [1, 2, 0]


def run_turns(weights: list[float], cap: int, rounds: int) -> list[float]:
    """Tenants that always want more on a cap, each connection used all the time, moved as targets say."""
    turns: Turns[int] = Turns()
    turns.begin()
    keeps, served, step_s = [0] * len(weights), [0.0] * len(weights), 0.02
    everybody = list(range(len(weights)))
    for _ in range(rounds):
        turns.step({one: keeps[one] * step_s for one in everybody}, dict(enumerate(weights)), everybody)
        claims = [Claim(keeps[one], 50, weight=weights[one], time_s=turns.of(one)) for one in everybody]
        keeps = targets(claims, cap)
        for one in everybody:
            served[one] += keeps[one] * step_s
    return served


def jain(shares: list[float]) -> float:
    return sum(shares) ** 2 / (len(shares) * sum(share * share for share in shares))


def test_three_tenants_on_ten_connections_get_the_same_database_time() -> None:
    served = run_turns([100.0] * 3, 10, 2000)
    assert jain(served) > 0.999
    assert sum(served) == pytest.approx(10 * 2000 * 0.02)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(50, 400).map(float), min_size=2, max_size=6), st.integers(1, 12))
def test_database_time_follows_the_weights(weights: list[float], cap: int) -> None:
    served = run_turns(weights, cap, 1500)
    assert jain([one / weight for one, weight in zip(served, weights, strict=True)]) >= 0.95


def test_who_was_idle_begins_where_the_others_are() -> None:
    turns: Turns[str] = Turns()
    turns.begin()
    weights = {"busy": 100.0, "other": 100.0}
    for _ in range(100):
        turns.step({"busy": 0.1, "other": 0.1}, weights, ["busy", "other"])
    turns.step({}, {**weights, "late": 100.0}, ["busy", "other", "late"])
    assert turns.of("late") == turns.time_s == pytest.approx(turns.of("busy"))


def test_who_needed_little_while_others_waited_has_no_credit_either() -> None:
    turns: Turns[str] = Turns()
    turns.begin()
    weights = {"busy": 100.0, "modest": 100.0}
    for _ in range(100):
        turns.step({"busy": 0.1, "modest": 0.01}, weights, ["busy"])
    turns.step({}, weights, ["busy", "modest"])
    assert turns.of("modest") == pytest.approx(turns.of("busy"), abs=0.11)


def test_what_was_used_while_nobody_waited_is_forgotten_and_what_was_used_beyond_a_share_in_the_end() -> None:
    turns: Turns[str] = Turns()
    turns.begin()
    weights = {"floored": 100.0, "poor": 100.0}
    for _ in range(1000):
        turns.step({"floored": 0.9, "poor": 0.1}, weights, ["floored", "poor"])
    assert turns.of("floored") - turns.of("poor") == pytest.approx(MOST_AHEAD_S, abs=0.5)
    turns.begin()
    assert turns.of("floored") == turns.of("poor")
