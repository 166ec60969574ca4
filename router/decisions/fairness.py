"""Whether a tenant's request may run now, must wait its turn, or is better refused at once.

Here: the verdict for one tenant, from its own counts and limits. Not here: the queue itself (the engine).
"""

from __future__ import annotations

from enum import Enum, unique

from router.decisions.refusal import Refuse
from router.model.errors import Code
from router.model.policy import TenantPolicy
from router.model.reasons import RefuseReason

SOONEST_S = 0.05
"""Nobody is told to come back sooner (seconds)."""
CAUTION = 1.25
"""What is begun and not done in time is lost to everybody, so a wait is taken to be this much longer than expected."""


@unique
class Admit(Enum):
    """Not refused."""

    GO = "go"
    WAIT = "wait"


def admit(
    in_flight: int, queued: int, policy: TenantPolicy, deadline_left_s: float, expected_wait_s: float = 0.0
) -> Admit | Refuse:
    """Judge a request that arrives. expected_wait_s: until it would be answered, by the pace at which
    those ahead of it are (seconds); 0 when unknown.

    Nobody overtakes: while others wait, there is no going straight in. A request that would die in the queue is
    refused on arrival, when its caller can still do something else.
    """
    hopeless = expected_wait_s * CAUTION > deadline_left_s
    if in_flight < policy.max_in_flight and queued == 0 and not hopeless:
        return Admit.GO
    numbers = {"limit": policy.max_in_flight, "in_use": in_flight, "waiting": queued, "scope": "tenant"}
    state = f"{in_flight} of {policy.max_in_flight} running, {queued} of {policy.max_queue} waiting"
    if queued >= policy.max_queue:
        return Refuse(
            RefuseReason.QUEUE_FULL,
            Code.RESOURCE_EXHAUSTED,
            f"the tenant's queue is full (limits.max_queue): {state}; come back later, or send fewer at once",
            numbers,
            max(expected_wait_s, 0.5),
        )
    if hopeless:
        return Refuse(
            RefuseReason.HOPELESS_DEADLINE,
            Code.RESOURCE_EXHAUSTED,
            f"it would be done in about {expected_wait_s:.3g} s, its deadline is in {deadline_left_s:.3g} s: {state}; "
            "come back later, or with more time",
            {**numbers, "expected_wait_ms": round(expected_wait_s * 1e3)},
            max(expected_wait_s, SOONEST_S),
        )
    return Admit.WAIT
