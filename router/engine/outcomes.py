"""What became of a write whose answer did not arrive: told by its key's row on the present primary, or not at all.

Without a key nothing in the database can tell: a transaction id is used again after a failover, so that the new
primary would speak of a stranger's.
"""

from __future__ import annotations

import functools
from dataclasses import replace

from router.decisions import keys
from router.decisions.keys import KeyTrouble
from router.decisions.retry import Replayability
from router.engine.attempts import Attempts, at_route
from router.engine.calls import Call, Register
from router.engine.endpoints import Pools
from router.engine.keyed_writes import restored
from router.engine.lane_pool import LanePool, Slot
from router.engine.placement import Placement
from router.engine.tenants import TenantRuntime, Tenants
from router.model.errors import RouterError
from router.model.identity import TenantName
from router.model.observation import AttemptFailed, FaultKind, Stage
from router.model.request import Access, Method, Request, WriteOutcome
from router.model.result import OutcomeFound
from router.model.topology import Tenant
from router.ports import Clock, StatementInspector

_FACTS = Replayability(Access.READ_WRITE, batch=True, keyed=True)
"""Looking changes nothing: it may be repeated from anywhere."""
_PROBE_S = 0.05
"""A key without a row that is waited for this long is held by an open transaction."""


class Outcomes:
    """Looks up outcomes. Raises RouterError only (and CancelledError when its caller goes away)."""

    def __init__(
        self,
        tenants: Tenants,
        register: Register,
        placement: Placement,
        pools: Pools,
        attempts: Attempts,
        _: StatementInspector,
        clock: Clock,
    ) -> None:
        self._tenants = tenants
        self._register = register
        self._placement = placement
        self._pools = pools
        self._attempts = attempts
        self._clock = clock

    def of_request(self, tenant: TenantName, request_id: str) -> OutcomeFound:
        """Of a request without a key: only whether it is under way here."""
        found = self._register.find(tenant, request_id)
        return OutcomeFound(WriteOutcome.UNKNOWN if found is None else WriteOutcome.RUNNING)

    async def of_key(self, tenant: Tenant, key: str, deadline: float, request_id: str) -> OutcomeFound:
        """Of a keyed write, by the present primary."""
        runtime = self._tenants.of(tenant)
        request = Request(Method.GET_OUTCOME, (), deadline, request_id=request_id, idempotency_key=key)
        call = self._register.enter(tenant, request)
        try:
            if not runtime.admission.try_enter():
                await runtime.admission.enter(deadline)
                call.queued_s = self._clock.now() - call.started
            self._register.admit(call)
            try:
                found = await self._look_until_answered(runtime, call)
            finally:
                runtime.admission.leave()
        except BaseException as error:
            stopped = self._register.failed(call, error)
            if stopped is not None:
                raise stopped from None
            raise
        self._register.finish(call, None)
        return found

    async def _look_until_answered(self, runtime: TenantRuntime, call: Call) -> OutcomeFound:
        attempt = functools.partial(self._attempt, runtime, call)
        try:
            try:
                found = await attempt()
            except AttemptFailed as failure:
                found = await self._attempts.again(runtime, call, failure, attempt, _FACTS)
        except RouterError as error:
            fault = error.fault
            unproven = fault is not None and fault.kind in (FaultKind.SILENT, FaultKind.LOCAL_COMMIT)
            if fault is None or not unproven or fault.stage is not Stage.COMMIT:
                raise
            # The row is there, but no standby confirms that it will be there after a failover.
            found = OutcomeFound(WriteOutcome.UNKNOWN)
        if found.outcome is WriteOutcome.COMMITTED:
            self._placement.note_commit(call)
        return replace(found, receipt=call.receipt())

    async def _attempt(self, runtime: TenantRuntime, call: Call) -> OutcomeFound:
        route = await self._placement.route(runtime, call, Access.READ_WRITE)
        pool = self._pools.get(runtime.tenant, route.endpoint, Access.READ_WRITE, route.generation)
        call.attempts += 1
        runtime.in_flight[route.endpoint] += 1
        try:
            slot = await pool.pin(call.request.deadline)
            started = self._clock.now()
            try:
                return await look(pool, slot, call)
            finally:
                call.executed_s = self._clock.now() - started
                pool.release(slot)
        except AttemptFailed as failure:
            raise at_route(failure, route) from failure
        finally:
            runtime.in_flight[route.endpoint] -= 1


async def look(pool: LanePool, slot: Slot, call: Call) -> OutcomeFound:
    """One look at a key's row, and at who holds it. RouterError IDEMPOTENCY_NOT_CONFIGURED."""
    key, deadline = keys.Key(call.tenant.name, call.request.idempotency_key), call.request.deadline
    while True:
        found = await _committed(pool, slot, key, deadline)
        if found is not None:
            return found
        try:
            unit = await pool.run_pinned(slot, keys.probing(key, _PROBE_S), deadline, commits=False)
        except AttemptFailed as failure:
            if keys.trouble(failure.fault, at_row=failure.fault.step == keys.PROBE_PLACE) is KeyTrouble.BUSY:
                return OutcomeFound(WriteOutcome.RUNNING)
            raise
        cells = unit.results[keys.PROBE_PLACE].cells
        if cells is not None and cells.ntuples:
            return OutcomeFound(WriteOutcome.NOT_FOUND)
        # It was committed between the two.


async def _committed(pool: LanePool, slot: Slot, key: keys.Key, deadline: float) -> OutcomeFound | None:
    statements = keys.looking(key, after_failure=False)
    try:
        unit = await pool.run_pinned(slot, statements, deadline, commits=True, final=True)
    except AttemptFailed as failure:
        at_row = failure.fault.step == len(statements) + keys.LOOK_PLACE
        if keys.trouble(failure.fault, at_row=at_row) is KeyTrouble.NOT_CONFIGURED:
            raise keys.not_configured(failure.fault) from failure
        raise
    cells = unit.results[keys.LOOK_PLACE].cells
    if cells is None or not cells.ntuples:
        return None
    tags = tuple(one.command_tag if one is not None else "" for one in restored(cells.get_value(0, 1)))
    return OutcomeFound(WriteOutcome.COMMITTED, int(cells.get_value(0, 2) or 0), tags)
