"""Runs requests: inspect, admit, route or hold, run on a lane, judge, again. One request's whole way is this file."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncGenerator, Callable

from router.engine.admitting import Admitting
from router.engine.attempts import Attempts, at_route
from router.engine.batches import check_guards, run_batch
from router.engine.calls import Call, Register
from router.engine.endpoints import Pools
from router.engine.hedging import Hedging, is_hedged
from router.engine.judging import judge_steps
from router.engine.keyed_writes import run_keyed
from router.engine.lane_pool import LanePool
from router.engine.placement import Placement
from router.engine.positions import PositionBehind, note, position_wanted
from router.engine.quick_reads import QuickRead, QuickReads
from router.engine.registered import resolve_steps
from router.engine.streams import RowStream
from router.engine.tenants import TenantRuntime, Tenants
from router.model.errors import RouterError
from router.model.identity import TenantName
from router.model.observation import AttemptFailed
from router.model.request import CancelOutcome, Method, Request
from router.model.result import Answer, Cells, StatementResult
from router.model.topology import Tenant
from router.model.views import WaitPhase
from router.ports import Clock, StatementInspector


class Executor:
    """The engine's front. Raises RouterError only (and CancelledError when its caller goes away)."""

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
        self._reads = QuickReads(self.finish, tenants, register, placement, pools, inspector)
        self._hedging = Hedging(placement, pools, clock, register.events)
        self._admitting = Admitting(register, clock)

    # --- one answer --------------------------------------------------------------------------------------------

    async def run(self, tenant: Tenant, request: Request) -> Answer:
        """Run a request to its answer."""
        runtime = self._tenants.of(tenant)
        return await self.finish(runtime, self._register.enter(tenant, request), None)

    def start(
        self, tenant: Tenant, request: Request, tag: int, told: Callable[[QuickRead], None]
    ) -> QuickRead | None:
        """Begin a Query without a task; told is called once, later, when it has ended. None: run() is its way."""
        return None if self._admitting.draining else self._reads.start(tenant, request, tag, told)

    async def finish(self, runtime: TenantRuntime, call: Call, failure: AttemptFailed | None) -> Answer:
        """Bring a registered request to its end. failure: of its first attempt, when it is admitted and was tried."""
        try:
            if failure is None:
                await self._admit(runtime, call)
            try:
                answer = await self._attempt_until_answered(runtime, call, failure)
            finally:
                runtime.admission.leave()
        except BaseException as error:
            stopped = self._register.failed(call, error)
            if stopped is not None:
                raise stopped from None
            raise
        self._register.finish(call, None)
        return answer

    async def _admit(self, runtime: TenantRuntime, call: Call) -> None:
        request = call.request
        self._admitting.check_open()
        check_guards(request.steps)
        if runtime.registered is not None:
            resolve_steps(runtime.registered, request)
        judge_steps(self._inspector, request)
        await self._admitting.enter(runtime, call)

    async def _attempt_until_answered(
        self, runtime: TenantRuntime, call: Call, failure: AttemptFailed | None
    ) -> Answer:
        results: list[StatementResult | None] | None = None
        if failure is None:
            try:
                results = await self._attempt(runtime, call)
            except AttemptFailed as failed:
                failure = failed
        if failure is not None:
            results = await self._attempts.again(
                runtime, call, failure, functools.partial(self._attempt, runtime, call)
            )
        assert results is not None
        if call.writes:
            self._placement.note_commit(call)
        call.rows = sum(one.rows_affected for one in results if one is not None)
        return Answer(results, call.receipt())

    async def _attempt(self, runtime: TenantRuntime, call: Call) -> list[StatementResult | None]:
        access = call.request.access
        route = await self._placement.route(runtime, call, access)
        call.attempts += 1
        pool = self._pools.get(runtime.tenant, route.endpoint, access, route.generation)
        runtime.in_flight[route.endpoint] += 1
        call.acquired_s = 0.0
        started = self._clock.now()
        try:
            return await self._run_on(pool, runtime, call)
        except AttemptFailed as failure:
            raise at_route(failure, route) from failure
        finally:
            runtime.in_flight[route.endpoint] -= 1
            call.executed_s = max(0.0, self._clock.now() - started - call.acquired_s)

    async def _run_on(self, pool: LanePool, runtime: TenantRuntime, call: Call) -> list[StatementResult | None]:
        request = call.request
        if request.method is Method.QUERY:
            call.phase = WaitPhase.EXECUTE
            also = position_wanted(request)
            if is_hedged(request, call.tenant.policy):
                read = await self._hedging.run(runtime, call, pool)
            else:
                read = await pool.run_shared(request.steps[0].statement, request.deadline, also)
            call.acquired_s = max(0.0, read.sent_at - call.phase_since)
            if also is not None:
                note(call, read.results.pop())
            return [*read.results]
        slot = await pool.pin(request.deadline)
        slot.residue = request.residue
        now = self._clock.now()
        call.acquired_s = now - call.phase_since
        call.enter(WaitPhase.EXECUTE, now)
        call.stop_running = functools.partial(pool.stop_running, slot)
        try:
            if request.keyed:
                self._tenants.note_key(call.tenant.name)
                return await run_keyed(pool, slot, call)
            if request.method is Method.EXECUTE_BATCH:
                return await run_batch(pool, slot, call)
            statements = (request.steps[0].statement,)
            waits, behind = self._placement.waits_for_standby(call), PositionBehind()
            unit = await pool.run_pinned(
                slot, statements, request.deadline, commits=True, tells_executed=waits, behind=behind
            )
            await behind.note(call, unit, self._clock.now())
            return [*unit.results]
        finally:
            call.stop_running = None
            call.committing = False
            pool.release(slot)

    # --- rows as they come -------------------------------------------------------------------------------------

    async def stream(self, tenant: Tenant, request: Request) -> AsyncGenerator[Cells | Answer, None]:
        """Chunks of rows, then the Answer. Closing the generator cancels what runs."""
        runtime = self._tenants.of(tenant)
        call = self._register.enter(tenant, request)
        try:
            await self._admit(runtime, call)
            try:
                # Closed explicitly: an abandoned inner generator would keep its lane until it is collected.
                async with contextlib.aclosing(self._stream_admitted(runtime, call)) as items:
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

    async def _stream_admitted(self, runtime: TenantRuntime, call: Call) -> AsyncGenerator[Cells | Answer, None]:
        open_stream = functools.partial(self._open_stream, runtime, call)
        try:
            stream = await open_stream()
        except AttemptFailed as failure:
            stream = await self._attempts.again(runtime, call, failure, open_stream)
        started = self._clock.now()
        try:
            while (cells := await stream.next_chunk()) is not None:
                call.rows += cells.ntuples
                yield cells
        except AttemptFailed as failure:
            raise self._attempts.error(runtime, call, failure.fault, stream.replayability()) from failure
        else:
            await stream.note_position(call, self._clock.now())
        finally:
            call.stop_running = None
            call.streamed_s = self._clock.now() - started
            runtime.in_flight[call.endpoint] -= 1
            stream.close()
        call.answered = True
        yield Answer([*stream.results], call.receipt())

    async def _open_stream(self, runtime: TenantRuntime, call: Call) -> RowStream:
        """A stream whose first chunk (or end) has come: up to here it can be repeated."""
        access = call.request.access
        route = await self._placement.route(runtime, call, access)
        pool = self._pools.get(runtime.tenant, route.endpoint, access, route.generation)
        call.attempts += 1
        runtime.in_flight[route.endpoint] += 1
        stream = None
        try:
            slot = await pool.pin(call.request.deadline)
            now = self._clock.now()
            call.acquired_s = now - call.phase_since
            call.enter(WaitPhase.EXECUTE, now)
            stream = RowStream(pool, slot, call.request)
            call.stop_running = stream.stop
            await stream.first()
            call.executed_s = self._clock.now() - now
            return stream
        except BaseException as error:
            call.stop_running = None
            runtime.in_flight[route.endpoint] -= 1
            if stream is not None:
                stream.close()
            if isinstance(error, AttemptFailed):
                raise at_route(error, route) from error
            raise

    # --- beside ------------------------------------------------------------------------------------------------

    def cancel(self, tenant: TenantName, request_id: str) -> CancelOutcome:
        """Ask the running requests of this tenant that have this id to stop."""
        return self._register.cancel(tenant, request_id)

    def stop(self, tenant: TenantName, request: Request) -> CancelOutcome:
        """Ask this very request to stop: others may have its id."""
        return self._register.stop(tenant, request)

    def refused(self, tenant_name: TenantName, method: Method, error: RouterError) -> None:
        """Count a request that never reached run() or stream()."""
        self._register.refused(tenant_name, method, error)

    def drain(self) -> None:
        """From now on every new request is refused; what runs goes on."""
        self._admitting.draining = True

    @property
    def under_way(self) -> int:
        """Requests not yet answered."""
        return len(self._register)
