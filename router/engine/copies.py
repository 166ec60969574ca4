"""Runs CopyOut and CopyIn: admit, route or hold, open, pass the data on, judge.

CopyOut may be repeated until its first byte leaves. CopyIn may wait for a primary and be opened again until its first
byte is taken, then never. It is undone by whatever ends it before its CopyDone, and has an open outcome after that.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace

from router.decisions.retry import Replayability
from router.engine.attempts import Attempts, at_route, replayability
from router.engine.calls import Call, Register
from router.engine.copy_run import CopyRun
from router.engine.endpoints import Pools
from router.engine.placement import Placement
from router.engine.positions import position_wanted
from router.engine.registered import not_registered
from router.engine.tenants import TenantRuntime, Tenants
from router.model.copying import CopyAnswer, CopyLayout
from router.model.errors import Code, Executed, RouterError
from router.model.observation import AttemptFailed
from router.model.reasons import RefuseReason
from router.model.request import Method, Request
from router.model.topology import Tenant
from router.model.views import WaitPhase
from router.ports import Clock, StatementInspector


class Copies:
    """Copies for callers. Raises RouterError only (and CancelledError when its caller goes away)."""

    def __init__(
        self,
        tenants: Tenants,
        register: Register,
        placement: Placement,
        pools: Pools,
        attempts: Attempts,
        inspector: StatementInspector,
        clock: Clock,
    ) -> None:
        self._tenants = tenants
        self._register = register
        self._placement = placement
        self._pools = pools
        self._attempts = attempts
        self._inspector = inspector
        self._clock = clock
        self._draining = False

    def drain(self) -> None:
        """From now on every new copy is refused; what runs goes on."""
        self._draining = True

    # --- out ---------------------------------------------------------------------------------------------------

    async def copy_out(
        self, tenant: Tenant, request: Request
    ) -> AsyncGenerator[CopyLayout | bytes | CopyAnswer, None]:
        """The layout, the data in pieces of at most 128 KiB, the answer. Closing the generator stops it."""
        runtime = self._tenants.of(tenant)
        call = self._register.enter(tenant, request)
        try:
            await self._admit(runtime, call)
            try:
                # Closed explicitly: an abandoned inner generator would keep its lane until it is collected.
                async with contextlib.aclosing(self._out_admitted(runtime, call)) as items:
                    async for item in items:
                        yield item
            finally:
                runtime.admission.leave()
        except BaseException as error:
            stopped = self._register.failed(call, error)
            if stopped is not None:
                raise stopped from None
            raise
        self._register.finish(call, None)

    async def _out_admitted(
        self, runtime: TenantRuntime, call: Call
    ) -> AsyncGenerator[CopyLayout | bytes | CopyAnswer, None]:
        run = await self._open(runtime, call)
        started = self._clock.now()
        try:
            yield run.layout
            while piece := await run.read():
                call.copied_bytes += len(piece)
                yield piece
            if position_wanted(call.request) is not None:
                await run.note_position(call, self._clock.now())
        except AttemptFailed as failure:
            raise self._error(runtime, call, run, failure) from failure
        finally:
            self._close(runtime, call, run, started)
        call.answered = True
        yield _answer(call, run)

    # --- in ----------------------------------------------------------------------------------------------------

    async def copy_in(self, tenant: Tenant, request: Request, source: AsyncIterator[bytes]) -> CopyAnswer:
        """Fill a table with what the source gives; its end commits, an exception of it undoes everything."""
        runtime = self._tenants.of(tenant)
        call = self._register.enter(tenant, request)
        try:
            await self._admit(runtime, call)
            try:
                answer = await self._in_admitted(runtime, call, source)
            finally:
                runtime.admission.leave()
        except BaseException as error:
            stopped = self._register.failed(call, error)
            if stopped is not None:
                raise stopped from None
            raise
        self._register.finish(call, None)
        return answer

    async def _in_admitted(self, runtime: TenantRuntime, call: Call, source: AsyncIterator[bytes]) -> CopyAnswer:
        run = await self._open(runtime, call)
        started = self._clock.now()
        try:
            await self._fill(run, call, source)
            call.stop_running = None
            await run.note_position(call, self._clock.now())
        except AttemptFailed as failure:
            raise self._error(runtime, call, run, failure) from failure
        finally:
            self._close(runtime, call, run, started)
        self._placement.note_commit(call)
        return _answer(call, run)

    async def _fill(self, run: CopyRun, call: Call, source: AsyncIterator[bytes]) -> None:
        # A task of its own, so that PostgreSQL's refusal ends the wait for a caller that sends nothing.
        pumping = asyncio.create_task(_pump(run, call, source))
        pumping.add_done_callback(_look_at)
        try:
            await asyncio.wait({pumping, run.ended}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            pumping.cancel()
        await asyncio.wait({pumping})
        problem = asyncio.CancelledError() if pumping.cancelled() else pumping.exception()
        if problem is not None and not run.ended.done():
            await self._undo(run, problem)
            raise problem
        if not run.ended.done():
            run.finish()
            call.committing = run.committing
            await asyncio.wait({run.ended})
        run.check()

    @staticmethod
    async def _undo(run: CopyRun, problem: BaseException) -> None:
        """The source failed: stop, and be certain of it before anyone is told."""
        if run.stop():
            await asyncio.wait({run.ended})
        if isinstance(problem, RouterError):
            problem.executed = Executed.ROLLED_BACK

    # --- both --------------------------------------------------------------------------------------------------

    async def _admit(self, runtime: TenantRuntime, call: Call) -> None:
        request = call.request
        if self._draining:
            raise RouterError(
                Code.UNAVAILABLE,
                RefuseReason.DRAINING,
                "the router is shutting down; nothing was copied",
                retry_after_s=0.1,
            )
        if request.idempotency_key:
            raise RouterError(
                Code.FAILED_PRECONDITION,
                RefuseReason.IDEMPOTENCY_NOT_CONFIGURED,
                "this router keeps no idempotency table for the tenant: send the copy without a key, or not at all",
            )
        if runtime.registered is not None:
            raise not_registered("COPY names tables, and its query is any SQL")
        if request.nested_query:
            traits = self._inspector.inspect_nested(request.nested_query)
            if traits.refuse is not None:
                raise RouterError(Code.INVALID_ARGUMENT, traits.refuse, traits.message)
        if not runtime.admission.try_enter():
            await runtime.admission.enter(request.deadline)
            call.queued_s = self._clock.now() - call.started
        self._register.admit(call)
        runtime.budget.earn(self._clock.now())

    async def _open(self, runtime: TenantRuntime, call: Call) -> CopyRun:
        open_once = functools.partial(self._open_once, runtime, call)
        try:
            return await open_once()
        except AttemptFailed as failure:
            return await self._attempts.again(runtime, call, failure, open_once, _facts(call))

    async def _open_once(self, runtime: TenantRuntime, call: Call) -> CopyRun:
        """A copy whose data can flow: up to here it can be repeated."""
        access = call.request.access
        route = await self._placement.route(runtime, call, access)
        pool = self._pools.get(runtime.tenant, route.endpoint, access, route.generation)
        call.attempts += 1
        runtime.in_flight[route.endpoint] += 1
        run = None
        try:
            slot = await pool.pin(call.request.deadline)
            now = self._clock.now()
            call.acquired_s = now - call.phase_since
            call.enter(WaitPhase.EXECUTE, now)
            run = CopyRun(pool, slot, call.request)
            call.stop_running = run.stop
            await (run.begin_out() if call.request.method is Method.COPY_OUT else run.begin_in())
            call.executed_s = self._clock.now() - now
            return run
        except BaseException as error:
            call.stop_running = None
            runtime.in_flight[route.endpoint] -= 1
            if run is not None:
                run.close()
            if isinstance(error, AttemptFailed):
                raise at_route(error, route) from error
            raise

    def _close(self, runtime: TenantRuntime, call: Call, run: CopyRun, started: float) -> None:
        call.stop_running = None
        call.committing = False
        call.streamed_s = self._clock.now() - started
        runtime.in_flight[call.endpoint] -= 1
        run.close()

    def _error(self, runtime: TenantRuntime, call: Call, run: CopyRun, failure: AttemptFailed) -> RouterError:
        return self._attempts.error(runtime, call, failure.fault, run.replayability(_facts(call)))


async def _pump(run: CopyRun, call: Call, source: AsyncIterator[bytes]) -> None:
    """From the caller to PostgreSQL: the next piece is asked for once there is room for it."""
    async for data in source:
        if not await run.write(data):
            await asyncio.wait({run.ended})
            return
        call.copied_bytes += len(data)


def _look_at(task: asyncio.Task[None]) -> None:
    """An exception that comes after the caller went away is nobody's any more."""
    if not task.cancelled():
        task.exception()


def _facts(call: Call) -> Replayability:
    """PostgreSQL undoes a COPY of which the end was not sent, as it does with a batch without its COMMIT."""
    return replace(replayability(call), batch=True)


def _answer(call: Call, run: CopyRun) -> CopyAnswer:
    result = run.result
    call.rows = result.rows_affected
    return CopyAnswer(result.rows_affected, call.copied_bytes, result.command_tag, call.receipt(), result.notices)
