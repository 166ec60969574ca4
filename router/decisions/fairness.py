"""Whether a tenant's request may run now, must wait its turn, or is better refused at once.

Here: the verdict for one tenant, from its own counts and limits. Not here: the queue itself (the engine).
"""

from __future__ import annotations

from enum import Enum, unique

from router.decisions.refusal import Refuse
from router.model.errors import Code
from router.model.policy import TenantPolicy
from router.model.reasons import RefuseReason


@unique
class Admit(Enum):
    """Not refused."""

    GO = "go"
    WAIT = "wait"


def admit(
    in_flight: int, queued: int, policy: TenantPolicy, deadline_left_s: float, expected_wait_s: float = 0.0
) -> Admit | Refuse:
    """Judge a request that arrives. expected_wait_s: what the queue is thought to take (seconds); 0 when unknown.

    Nobody overtakes: while others wait, there is no going straight in. A request that would die in the queue is
    refused on arrival, when its caller can still do something else.
    """
    if in_flight < policy.max_in_flight and queued == 0:
        return Admit.GO
    numbers = {"limit": policy.max_in_flight, "in_use": in_flight, "waiting": queued, "scope": "tenant"}
    state = f"{in_flight} of {policy.max_in_flight} running, {queued} of {policy.max_queue} waiting"
    if queued >= policy.max_queue:
        come_back = max(expected_wait_s, 0.5)
        return Refuse(
            RefuseReason.QUEUE_FULL, Code.RESOURCE_EXHAUSTED, f"the tenant's queue is full: {state}", numbers, come_back
        )
    if expected_wait_s > deadline_left_s:
        return Refuse(
            RefuseReason.HOPELESS_DEADLINE,
            Code.RESOURCE_EXHAUSTED,
            f"the wait of about {expected_wait_s:.3g} s would outlast the deadline: {state}",
            numbers,
            expected_wait_s,
        )
    return Admit.WAIT
