"""Runs CopyOut and CopyIn: admit, route or hold, open, pass the data on, judge.

CopyOut may be repeated until its first byte leaves. CopyIn may wait for a primary and be opened again until its first
byte is taken, then never. It is undone by whatever ends it before its CopyDone, and has an open outcome after that,
which the row of its key tells if it has one (keyed_copies.py).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import TypeVar

from router.decisions.retry import Replayability, classify
from router.engine.admitting import Admitting
from router.engine.attempts import Attempts, at_route, replayability
from router.engine.calls import Call, Register
from router.engine.copy_filling import fill
from router.engine.copy_run import CopyRun, begin
from router.engine.endpoints import Pools
from router.engine.judging import refused
from router.engine.key_rows import Stored, look_on_primary
from router.engine.keyed_copies import CopyDigest, begin_in, compare, found_after_commit
from router.engine.lane_pool import LanePool, Slot
from router.engine.placement import Placement
from router.engine.positions import position_wanted
from router.engine.registered import not_registered
from router.engine.tenants import TenantRuntime, Tenants
from router.model.copying import CopyAnswer, CopyLayout
from router.model.errors import Executed
from router.model.observation import AttemptFailed
from router.model.request import Request
from router.model.result import StatementResult
from router.model.topology import Tenant
from router.model.views import WaitPhase
from router.ports import Clock, StatementInspector

_Opened = TypeVar("_Opened", CopyRun, CopyRun | Stored)


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
        self._admitting = Admitting(register, clock)

    def drain(self) -> None:
        """From now on every new copy is refused; what runs goes on."""
        self._admitting.draining = True

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
        run = await self._open(runtime, call, begin)
        started = self._clock.now()
        try:
            yield run.layout
            while piece := await run.read():
                call.copied_bytes += len(piece)
                yield piece
            if position_wanted(call.request) is not None:
                await run.note_position(call, self._clock.now())
        except AttemptFailed as failure:
            raise self._attempts.error(runtime, call, failure.fault, run.replayability(_facts(call))) from failure
        finally:
            self._close(runtime, call, run, started)
        call.answered = True
        yield _answer(call, run.result)

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
        if call.request.keyed:
            self._tenants.note_key(call.tenant.name)
        opened = await self._open(runtime, call, begin_in)
        if isinstance(opened, Stored):
            return self._committed(call, await compare(call, source, opened))
        digest = CopyDigest(call) if call.request.keyed else None
        started = self._clock.now()
        try:
            try:
                await self._fill(opened, call, source, digest)
            finally:
                self._close(runtime, call, opened, started)
        except AttemptFailed as failure:
            facts = opened.replayability(_facts(call))
            if digest is None or classify(failure.fault, facts).executed is not Executed.MAYBE:
                raise self._attempts.error(runtime, call, failure.fault, facts) from failure
            # The data is not here any more, so the copy cannot be repeated; but its key's row can tell.
            look = functools.partial(self._look_up, runtime, call, digest)
            return self._committed(call, await self._attempts.again(runtime, call, failure, look, facts))
        return self._committed(call, opened.result)

    async def _fill(
        self, run: CopyRun, call: Call, source: AsyncIterator[bytes], digest: CopyDigest | None
    ) -> None:
        await fill(run, call, source, None if digest is None else digest.update)
        call.stop_running = None
        if digest is None:
            await run.note_position(call, self._clock.now())
        else:
            await run.commit(call, digest.closing(call, run.result))

    async def _look_up(self, runtime: TenantRuntime, call: Call, digest: CopyDigest) -> StatementResult:
        found = await look_on_primary(runtime, call, self._placement, self._pools, self._clock)
        return found_after_commit(call, found, digest)

    def _committed(self, call: Call, result: StatementResult) -> CopyAnswer:
        self._placement.note_commit(call)
        return _answer(call, result)

    # --- both --------------------------------------------------------------------------------------------------

    async def _admit(self, runtime: TenantRuntime, call: Call) -> None:
        request = call.request
        self._admitting.check_open()
        if runtime.registered is not None:
            raise not_registered("COPY names tables, and its query is any SQL")
        if request.nested_query:
            traits = self._inspector.inspect_nested(request.nested_query)
            if traits.refuse_as_read is not None:
                raise refused(traits.refuse_as_read, traits)
        await self._admitting.enter(runtime, call)

    async def _open(
        self, runtime: TenantRuntime, call: Call, begin: Callable[[LanePool, Slot, Call], Awaitable[_Opened]]
    ) -> _Opened:
        open_once = functools.partial(self._open_once, runtime, call, begin)
        try:
            return await open_once()
        except AttemptFailed as failure:
            return await self._attempts.again(runtime, call, failure, open_once, _facts(call))

    async def _open_once(
        self, runtime: TenantRuntime, call: Call, begin: Callable[[LanePool, Slot, Call], Awaitable[_Opened]]
    ) -> _Opened:
        """What begin() makes of a lane; the lane is its own to give back, once it has begun."""
        access = call.request.access
        route = await self._placement.route(runtime, call, access)
        pool = self._pools.get(runtime.tenant, route.endpoint, access, route.generation)
        call.attempts += 1
        runtime.in_flight[route.endpoint] += 1
        opened: _Opened | None = None
        try:
            slot = await pool.pin(call.request.deadline)
            now = self._clock.now()
            call.acquired_s = now - call.phase_since
            call.enter(WaitPhase.EXECUTE, now)
            opened = await begin(pool, slot, call)
            call.executed_s = self._clock.now() - now
            return opened
        except AttemptFailed as error:
            raise at_route(error, route) from error
        finally:
            if not isinstance(opened, CopyRun):  # else it goes on
                runtime.in_flight[route.endpoint] -= 1

    def _close(self, runtime: TenantRuntime, call: Call, run: CopyRun, started: float) -> None:
        call.stop_running = None
        call.committing = False
        call.streamed_s = self._clock.now() - started
        runtime.in_flight[call.endpoint] -= 1
        run.close()



def _facts(call: Call) -> Replayability:
    """PostgreSQL undoes a COPY of which the end was not sent, as it does with a batch without its COMMIT."""
    return replace(replayability(call), batch=True)


def _answer(call: Call, result: StatementResult) -> CopyAnswer:
    call.rows = result.rows_affected
    return CopyAnswer(result.rows_affected, call.copied_bytes, result.command_tag, call.receipt(), result.notices)
