"""Reads without a task: what can begin at once begins at once, and a callback ends it.

A task costs more than all that a point read needs from us, so a read whose route, admission and statement need no
waiting is started by a plain call; its lane's answer is its end. Whatever is not that simple (a queue, a hold, a
refusal, a first attempt that failed) is Executor's, on a task; both count and judge the same way.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable

from router.decisions.routing import Route
from router.engine.attempts import at_route
from router.engine.calls import Call, Register, cancelled_error
from router.engine.endpoints import Pools
from router.engine.lane_pool import LanePool
from router.engine.placement import Placement, take
from router.engine.positions import note, position_wanted
from router.engine.registered import resolves
from router.engine.shared_read import SharedRead
from router.engine.tenants import TenantRuntime, Tenants
from router.model.errors import Executed, RouterError
from router.model.observation import AttemptFailed
from router.model.request import Access, Request
from router.model.result import Answer
from router.model.topology import Tenant
from router.model.views import WaitPhase
from router.ports import StatementInspector


class QuickRead(SharedRead):
    """A read under way: the unit that a lane carries, and its call. When told is called, it has answer or error."""

    __slots__ = ("_owner", "answer", "call", "error", "pool", "repeating", "route", "runtime", "tag", "told")

    def __init__(
        self,
        owner: QuickReads,
        runtime: TenantRuntime,
        call: Call,
        route: Route,
        pool: LanePool,
        tag: int,
        told: Callable[[QuickRead], None],
    ) -> None:
        request = call.request
        also = None if request.after is None else position_wanted(request)
        super().__init__(request.steps[0].statement, request.deadline, owner.answered, also)
        self._owner = owner
        self.runtime = runtime
        self.call = call
        self.route = route
        self.pool = pool
        self.tag = tag
        """Of whoever started it."""
        self.told = told
        self.error: Exception | None = None
        """RouterError, or a mistake of our own."""
        self.repeating = False

    answer: Answer
    """Set when it has ended without an error."""

    @property
    def request(self) -> Request:
        """What it answers."""
        return self.call.request

    def cancel(self) -> None:
        """Its caller no longer wants it; told is called with the error CANCELLED, or with what was faster."""
        self._owner.cancel(self, tell=True)

    def abandon(self) -> None:
        """Its caller has gone: as cancel, but told is not called."""
        self._owner.cancel(self, tell=False)


class QuickReads:
    """Starts reads and ends them. Called from the event loop only."""

    def __init__(
        self,
        finish: Callable[[TenantRuntime, Call, AttemptFailed], Awaitable[Answer]],
        tenants: Tenants,
        register: Register,
        placement: Placement,
        pools: Pools,
        inspector: StatementInspector,
    ) -> None:
        """finish: what brings a request to its end whose first attempt failed here."""
        self._finish = finish
        self._tenants = tenants
        self._register = register
        self._placement = placement
        self._pools = pools
        self._inspector = inspector
        self._tasks: set[asyncio.Task[None]] = set()

    def start(
        self, tenant: Tenant, request: Request, tag: int, told: Callable[[QuickRead], None]
    ) -> QuickRead | None:
        """Begin a Query. None: it cannot begin at once, nothing was counted, and Executor.run is its way."""
        runtime = self._tenants.of(tenant)
        if request.options.hedge or tenant.policy.hedge_reads:
            return None
        if runtime.registered is not None and not resolves(runtime.registered, request):
            return None
        if self._inspector.inspect(request.steps[0].statement.sql).refuse_as_read is not None:
            return None
        route = self._placement.route_now(runtime, request)
        if route is None:
            return None
        try:
            pool = self._pools.get(runtime.tenant, route.endpoint, Access.READ_ONLY, route.generation)
        except (AttemptFailed, RouterError):
            return None
        if not runtime.admission.try_enter():
            return None
        call = self._register.enter_without_task(tenant, request)
        self._register.admit(call)
        runtime.budget.earn(call.started)
        take(call, route)
        call.phase = WaitPhase.EXECUTE
        call.attempts = 1
        runtime.in_flight[route.endpoint] += 1
        call.read = read = QuickRead(self, runtime, call, route, pool, tag, told)
        pool.start_shared(read)
        return read

    def answered(self, shared: SharedRead) -> None:
        """Called by the lane pool."""
        assert isinstance(shared, QuickRead)
        read = shared
        call = read.call
        call.read = None  # here, so that no cycle is left behind: thousands a second would wait for the collector
        self._measure(read)
        if read.fault is not None:
            task = asyncio.get_running_loop().create_task(self._repeat(read))
            self._tasks.add(task)
            task.add_done_callback(functools.partial(self._repeated, read))
            call.task = task
            return
        read.runtime.admission.leave()
        if len(read.statements) > 1:
            note(call, read.results.pop())
        call.rows = read.results[0].rows_affected
        read.answer = Answer([*read.results], call.receipt())
        self._register.finish(call, None)
        read.told(read)

    @staticmethod
    def _measure(read: QuickRead) -> None:
        call = read.call
        read.runtime.in_flight[read.route.endpoint] -= 1
        sent = read.sent_at
        if sent:
            call.acquired_s = max(0.0, sent - call.started)
            call.executed_s = max(0.0, read.done_at - sent)

    async def _repeat(self, read: QuickRead) -> None:
        """The first attempt failed: from here on it is a request like any other, on a task."""
        assert read.fault is not None
        read.repeating = True
        failure = at_route(AttemptFailed(read.fault), read.route)
        try:
            read.answer = await self._finish(read.runtime, read.call, failure)
        except Exception as error:
            read.error = error

    def _repeated(self, read: QuickRead, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            read.error = cancelled_error(Executed.NO)
            if not read.repeating:  # before its first step: nobody else has counted it
                read.runtime.admission.leave()
                self._register.finish(read.call, None, cancelled=True)
        read.told(read)

    def cancel(self, read: QuickRead, *, tell: bool) -> None:
        """See QuickRead."""
        call = read.call
        if not tell:
            read.told = _nobody
        if call.read is None:
            if call.task is not None:  # repeated: the task ends it
                call.task.cancel()
            return
        call.read = None
        read.pool.give_up(read)
        self._measure(read)
        read.runtime.admission.leave()
        read.error = cancelled_error(Executed.NO)
        self._register.finish(call, read.error if tell else None, cancelled=True)
        read.told(read)


def _nobody(read: QuickRead) -> None:
    """Told instead of a caller that has gone."""
