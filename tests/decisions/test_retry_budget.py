"""decisions/retry_budget and decisions/backoff."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.decisions.backoff import delay
from router.decisions.retry_budget import RetryBudget
from router.model.policy import RetryPolicy

POLICY = RetryPolicy(budget_ratio=0.1, budget_per_s=1.0, budget_burst=5.0, backoff_s=0.02, backoff_max_s=1.0)


def taken(budget: RetryBudget, now: float) -> int:
    count = 0
    while budget.take(now):
        count += 1
    return count


def test_starts_full() -> None:
    assert taken(RetryBudget(POLICY, 100.0), 100.0) == 5


def test_requests_earn_a_share() -> None:
    budget = RetryBudget(POLICY, 0.0)
    taken(budget, 0.0)
    for _ in range(31):
        budget.earn(0.0)
    assert taken(budget, 0.0) == 3


def test_time_earns_too() -> None:
    budget = RetryBudget(POLICY, 0.0)
    taken(budget, 0.0)
    assert taken(budget, 2.5) == 2
    assert taken(budget, 3.0) == 1


def test_savings_are_bounded() -> None:
    budget = RetryBudget(POLICY, 0.0)
    for second in range(1000):
        budget.earn(float(second))
    assert budget.tokens == 5.0


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 2)), max_size=200))
def test_never_more_than_the_budget(calls: list[tuple[bool, float]]) -> None:
    budget, now, requests, retries = RetryBudget(POLICY, 0.0), 0.0, 0, 0
    for is_request, pause in calls:
        now += pause
        if is_request:
            budget.earn(now)
            requests += 1
        else:
            retries += budget.take(now)
        assert retries <= 5 + 0.1 * requests + now + 1e-6


@given(st.integers(1, 5000), st.floats(0, 1, exclude_max=True))
def test_delay_is_within_its_bound(attempt: int, draw: float) -> None:
    assert 0 <= delay(attempt, draw, POLICY) <= 1.0


@pytest.mark.parametrize(("attempt", "bound"), [(0, 0.02), (1, 0.02), (2, 0.04), (3, 0.08), (7, 1.0), (2000, 1.0)])
def test_delay_doubles_up_to_its_bound(attempt: int, bound: float) -> None:
    assert delay(attempt, 0.5, POLICY) == pytest.approx(bound / 2)
    assert delay(attempt, 0.0, POLICY) == 0.0
