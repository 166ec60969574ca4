"""decisions/retry_budget and decisions/backoff."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.decisions.backoff import delay
from router.decisions.retry_budget import RetryBudget
from router.model.policy import RetryPolicy

POLICY = RetryPolicy(backoff_s=0.02, backoff_max_s=1.0)


def taken(budget: RetryBudget, now: float) -> int:
    count = 0
    while budget.take(now):
        count += 1
    return count


def test_a_few_are_allowed_from_the_start() -> None:
    assert taken(RetryBudget(0.1, 5.0, 100.0), 100.0) == 5


def test_requests_allow_their_share_instead() -> None:
    budget = RetryBudget(0.1, 5.0, 0.0)
    for _ in range(310):
        budget.earn(0.5)
    assert taken(budget, 0.6) == 31


def test_nothing_is_saved_up_for_longer_than_the_window() -> None:
    budget = RetryBudget(0.1, 5.0, 0.0)
    for second in range(1000):
        for _ in range(20):
            budget.earn(float(second))
    assert taken(budget, 1000.0) <= 20
    assert taken(budget, 1005.0) == 0, "spent"
    assert taken(budget, 1020.0) == 5, "long ago"


def test_several_share_what_stands_above_them() -> None:
    above = RetryBudget(0.1, 5.0, 0.0)
    budgets = [RetryBudget(0.1, 5.0, 0.0, above) for _ in range(20)]
    for budget in budgets:
        for _ in range(10):
            budget.earn(0.0)
    assert [taken(budget, 0.0) for budget in budgets[:5]] == [5, 5, 5, 5, 0]


@given(st.lists(st.tuples(st.sampled_from(["request", "request", "repeat"]), st.floats(0, 0.4)), max_size=400))
def test_never_more_than_its_share_of_any_ten_seconds(calls: list[tuple[str, float]]) -> None:
    budget, now, requests, repeats = RetryBudget(0.3, 4.0, 0.0), 0.0, [], []
    for what, pause in calls:
        now += pause
        if what == "request":
            budget.earn(now)
            requests.append(now)
        elif budget.take(now):
            repeats.append(now)
            made = sum(1 for at in repeats if at > now - 10)
            asked = sum(1 for at in requests if at > now - 10)
            assert made <= max(4.0, 0.3 * asked + 1e-9), (now, made, asked)


@given(st.integers(1, 5000), st.floats(0, 1, exclude_max=True))
def test_delay_is_within_its_bound(attempt: int, draw: float) -> None:
    assert 0 <= delay(attempt, draw, POLICY) <= 1.0


@pytest.mark.parametrize(("attempt", "bound"), [(0, 0.02), (1, 0.02), (2, 0.04), (3, 0.08), (7, 1.0), (2000, 1.0)])
def test_delay_doubles_up_to_its_bound(attempt: int, bound: float) -> None:
    assert delay(attempt, 0.5, POLICY) == pytest.approx(bound / 2)
    assert delay(attempt, 0.0, POLICY) == 0.0
