"""What became of a write whose answer did not arrive: told by its key's row on the present primary, or not at all.

Without a key nothing in the database can tell: a transaction id is used again after a failover, so that the new
primary would speak of a stranger's. A write that waits in the router (for a primary, for a connection, between two
attempts) has no row yet, and is no less under way; so it is looked for here, and in the router's other processes.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from dataclasses import replace

from router.decisions.retry import Replayability
from router.engine.admitting import Admitting
from router.engine.attempts import Attempts
from router.engine.calls import Call, Register
from router.engine.endpoints import Pools
from router.engine.key_rows import Stored, look_on_primary
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


Elsewhere = Callable[[TenantName, str, str], Awaitable[WriteOutcome]]
"""Asks the other processes of this router for a write by its tenant and its key or request id: RUNNING, NOT_FOUND when
none of them is at work on it, UNKNOWN when one did not answer."""


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
        self._admitting = Admitting(register, clock)
        self._elsewhere: Elsewhere | None = None

    def ask_elsewhere(self, elsewhere: Elsewhere) -> None:
        """This process has others beside it."""
        self._elsewhere = elsewhere

    def here(self, tenant: TenantName, key: str, request_id: str) -> WriteOutcome:
        """RUNNING or NOT_FOUND: whether this process is at work on the write of that key, or else request id."""
        if key:
            running = any(
                call.request.idempotency_key == key and call.request.method is not Method.GET_OUTCOME
                for call in self._register.under_way(tenant)
            )
        else:
            running = self._register.find(tenant, request_id) is not None
        return WriteOutcome.RUNNING if running else WriteOutcome.NOT_FOUND

    async def _anywhere(self, tenant: TenantName, key: str, request_id: str, deadline: float) -> WriteOutcome:
        found = self.here(tenant, key, request_id)
        if found is not WriteOutcome.NOT_FOUND or self._elsewhere is None:
            return found
        try:
            # A process that hangs is waited for longer than some callers have time.
            async with asyncio.timeout_at(deadline):
                return await self._elsewhere(tenant, key, request_id)
        except TimeoutError:
            return WriteOutcome.UNKNOWN

    async def of_request(self, tenant: Tenant, request_id: str, deadline: float) -> OutcomeFound:
        """Of a request without a key: only whether this router is at work on it."""
        self._tenants.of(tenant).admission.count()
        found = await self._anywhere(tenant.name, "", request_id, deadline)
        return OutcomeFound(WriteOutcome.RUNNING if found is WriteOutcome.RUNNING else WriteOutcome.UNKNOWN)

    async def of_key(self, tenant: Tenant, key: str, deadline: float, request_id: str) -> OutcomeFound:
        """Of a keyed write, by the present primary."""
        runtime = self._tenants.of(tenant)
        request = Request(Method.GET_OUTCOME, (), deadline, request_id=request_id, idempotency_key=key)
        call = self._register.enter(tenant, request)
        try:
            await self._admitting.enter(runtime, call)
            try:
                # Before the look: what ends in between is found by it.
                at_work = await self._anywhere(tenant.name, key, "", deadline)
                found = await self._look_until_answered(runtime, call)
                if found.outcome is WriteOutcome.NOT_FOUND:
                    found = replace(found, outcome=at_work)
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
        match await look_on_primary(runtime, call, self._placement, self._pools, self._clock):
            case Stored() as stored:
                tags = tuple(one.command_tag if one is not None else "" for one in stored.results())
                return OutcomeFound(WriteOutcome.COMMITTED, stored.began_us, tags)
            case outcome:
                return OutcomeFound(outcome)
