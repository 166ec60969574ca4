"""decisions/fairness: one tenant's admission."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.decisions.fairness import Admit, admit
from router.decisions.refusal import Refuse
from router.model.errors import Code
from router.model.policy import TenantPolicy
from router.model.reasons import RefuseReason

POLICY = TenantPolicy(max_in_flight=2, max_queue=3)


@pytest.mark.parametrize(
    ("in_flight", "queued", "expected"),
    [(0, 0, Admit.GO), (1, 0, Admit.GO), (2, 0, Admit.WAIT), (1, 1, Admit.WAIT), (5, 2, Admit.WAIT)],
)
def test_go_or_wait(in_flight: int, queued: int, expected: Admit) -> None:
    assert admit(in_flight, queued, POLICY, 1.0) is expected


def test_full_queue_is_refused_with_numbers() -> None:
    got = admit(2, 3, POLICY, 1.0, 2.0)
    assert isinstance(got, Refuse)
    assert (got.reason, got.code, got.retry_after_s) == (RefuseReason.QUEUE_FULL, Code.RESOURCE_EXHAUSTED, 2.0)
    assert got.numbers == {"limit": 2, "in_use": 2, "waiting": 3, "scope": "tenant"}


def test_hopeless_deadline_is_refused_on_arrival() -> None:
    got = admit(2, 1, POLICY, 0.5, 0.6)
    assert isinstance(got, Refuse)
    assert got.reason is RefuseReason.HOPELESS_DEADLINE
    assert isinstance(admit(2, 1, POLICY, 0.7, 0.6), Refuse), "too close to be begun"
    assert admit(2, 1, POLICY, 0.8, 0.6) is Admit.WAIT


@given(st.integers(0, 10), st.integers(0, 10), st.floats(-1, 10), st.floats(0, 10))
def test_never_over_a_limit(in_flight: int, queued: int, left: float, wait: float) -> None:
    got = admit(in_flight, queued, POLICY, left, wait)
    if got is Admit.GO:
        assert in_flight < POLICY.max_in_flight
        assert queued == 0
    if got is Admit.WAIT:
        assert queued < POLICY.max_queue
