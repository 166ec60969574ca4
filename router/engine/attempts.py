"""Again, when that is harmless: the only import of tenacity, and the only retry loop of the router.

The first attempt runs plainly (entering tenacity costs 18 µs a call); this loop starts with its failure. What may be
repeated is decisions/retry's word; how often, the budget's, the deadline's and max_attempts'.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeVar

from tenacity import AsyncRetrying, RetryCallState

from router.decisions import retry
from router.decisions.backoff import delay
from router.decisions.retry import Action, Replayability, Verdict
from router.decisions.routing import Route
from router.engine.calls import Call, cancelled_error
from router.engine.clusters import Clusters
from router.engine.tenants import TenantRuntime
from router.model.errors import Code, Executed, RouterError
from router.model.events import AttemptRetried
from router.model.observation import AttemptFailed, Fault, FaultKind
from router.model.policy import RetryPolicy
from router.model.reasons import RefuseReason, RetryReason
from router.model.request import Access, Method
from router.ports import Chance, Clock, EventSink

_T = TypeVar("_T")
_HOLD_PAUSE_S = 0.05
"""Between attempts on the primary: time for the supervisor to see what we saw, and to begin a hold."""
_QUERY_CANCELED = "57014"
_FREE = (RetryReason.NOT_SENT, RetryReason.KEY_BUSY)
"""What was never sent, or waited for a lock only, costs the server nothing: no budget and no count bound it; nor what
failed with another request's connect."""


def replayability(call: Call, *, first_row_sent: bool = False, interactive: bool = False) -> Replayability:
    """What is at stake when this call is repeated."""
    request = call.request
    read_only = request.access is Access.READ_ONLY or (request.mode is not None and request.mode.read_only)
    batch = request.method is Method.EXECUTE_BATCH or request.keyed
    return Replayability(
        Access.READ_ONLY if read_only else Access.READ_WRITE,
        batch=batch,
        interactive=interactive,
        keyed=request.keyed,
        first_row_sent=first_row_sent,
        commits_inside=request.commits_inside and not batch,
        escapes=read_only and bool(request.escape),
    )


def at_route(failure: AttemptFailed, route: Route) -> AttemptFailed:
    """The failure with the endpoint it happened at, where the edge did not know it."""
    fault = failure.fault
    if fault.endpoint:
        return failure
    return AttemptFailed(replace(fault, endpoint=route.endpoint, generation=route.generation))


class Attempts:
    """Judges failures, tells the supervisor what they prove, and repeats what may be repeated."""

    def __init__(
        self, clusters: Clusters, policy: RetryPolicy, clock: Clock, chance: Chance, events: EventSink
    ) -> None:
        self._clusters = clusters
        self._policy = policy
        self._clock = clock
        self._chance = chance
        self._events = events

    async def again(
        self,
        runtime: TenantRuntime,
        call: Call,
        failure: AttemptFailed,
        attempt: Callable[[], Awaitable[_T]],
        facts: Replayability | None = None,
    ) -> _T:
        """Repeat after a first failure, as long as that is harmless and allowed; RouterError when it is not."""
        pending = [failure]
        at_stake = facts or replayability(call)
        verdict: Verdict | None = None

        async def once() -> _T:
            if pending:
                raise pending.pop()
            return await attempt()

        def may_repeat(state: RetryCallState) -> bool:
            nonlocal verdict
            failed = state.outcome.exception() if state.outcome is not None else None
            if not isinstance(failed, AttemptFailed):
                return False
            verdict = self.judge(runtime, failed.fault, at_stake)  # once per failure: it is reported there
            cost = failed.fault.cost_a_server
            call.spared += not cost
            return self._may_repeat(runtime, call, verdict, free=not cost or verdict.retry_reason in _FREE)

        loop = AsyncRetrying(
            retry=may_repeat, wait=lambda _: call.pause_s, sleep=self._clock.sleep, reraise=True
        )
        try:
            return await loop(once)
        except AttemptFailed as last:
            answer = self._answer(call, last.fault, verdict or retry.classify(last.fault, at_stake))
            raise _with_doubt(call, answer) from last
        except RouterError as error:
            if not call.in_doubt:
                raise
            raise _with_doubt(call, error) from error

    def error(self, runtime: TenantRuntime, call: Call, fault: Fault, facts: Replayability) -> RouterError:
        """The answer to a failed attempt that is not repeated; tells the supervisor what the fault proves."""
        return self._answer(call, fault, self.judge(runtime, fault, facts))

    def _answer(self, call: Call, fault: Fault, verdict: Verdict) -> RouterError:
        cancelled = fault.sqlstate == _QUERY_CANCELED and fault.kind is FaultKind.SERVER_ERROR
        undone = verdict.executed is not Executed.MAYBE
        if call.cancel_asked:
            if cancelled or (fault.kind is FaultKind.CLOSED and undone):
                return cancelled_error(verdict.executed)
        elif cancelled and self._clock.now() >= call.request.deadline:
            return RouterError(
                Code.DEADLINE_EXCEEDED,
                RefuseReason.DEADLINE,
                "the deadline passed while the statement ran; it was cancelled"
                + (" and undone" if undone else retry.PARTS_STAY),
                executed=verdict.executed,
                numbers={"sqlstate": fault.sqlstate, "endpoint": call.endpoint},
            )
        error = retry.error(verdict, fault)
        error.numbers.setdefault("attempts", call.charged)
        if call.endpoint:
            error.numbers.setdefault("endpoint", call.endpoint)
        return error

    def judge(self, runtime: TenantRuntime, fault: Fault, facts: Replayability) -> Verdict:
        """decisions/retry's verdict; what it proves about a server is passed on at once."""
        verdict = retry.classify(fault, facts)
        if verdict.primary_evidence and fault.endpoint and not fault.shared:
            cluster = self._clusters.get(runtime.tenant.cluster)
            if cluster is not None:
                cluster.supervisor.report_fault(fault)
        return verdict

    def _may_repeat(self, runtime: TenantRuntime, call: Call, verdict: Verdict, *, free: bool) -> bool:
        if verdict.action is Action.FAIL or call.cancel_asked:
            return False
        left = call.request.deadline - self._clock.now()
        if left <= self._policy.reserve_s:
            return False
        if not free:
            spent = call.charged >= runtime.tenant.policy.max_attempts
            if spent or not runtime.budget.take(self._clock.now()):
                return False
        call.in_doubt = call.in_doubt or verdict.executed is Executed.MAYBE
        if verdict.action is Action.RETRY_ELSEWHERE and call.endpoint:
            call.tried = (*call.tried, call.endpoint)
        pause = self._draw_pause(call, verdict, left)
        self._events.emit(
            AttemptRetried(
                runtime.tenant.name,
                call.request.method,
                verdict.retry_reason or RetryReason.NOT_SENT,
                call.attempts,
                call.endpoint,
                pause,
            )
        )
        call.pause_s = pause
        return True

    def _draw_pause(self, call: Call, verdict: Verdict, left: float) -> float:
        if verdict.action is Action.RETRY_ELSEWHERE and len(call.tried) == 1:
            return 0.0  # another server is as fresh as the first one was
        if verdict.action is Action.HOLD:
            pause = _HOLD_PAUSE_S
        else:
            pause = delay(call.attempts, self._chance.draw(), self._policy)
        return min(pause, left / 2, left - self._policy.reserve_s)


def _with_doubt(call: Call, error: RouterError) -> RouterError:
    """What the last attempt knows of itself says nothing about one before it that may have been done."""
    if not call.in_doubt or error.executed in (Executed.MAYBE, Executed.YES):
        return error
    return RouterError(
        Code.UNKNOWN,
        RefuseReason.OUTCOME_UNKNOWN,
        f"an attempt of this write may have been committed, and could not be looked up: {error.message}",
        executed=Executed.MAYBE,
        numbers={**error.numbers, "then": error.reason.value},
        fault=error.fault,
    )
