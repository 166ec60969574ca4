"""The way in that all requests share: refused when the router ends, else a place among the tenant's running ones."""

from __future__ import annotations

from router.engine.calls import Call, Register
from router.engine.tenants import TenantRuntime
from router.model.errors import Code, RouterError
from router.model.reasons import RefuseReason
from router.model.request import OnFailover
from router.ports import Clock


class Admitting:
    """check_open(), whatever the kind of request wants looked at, enter(); the end is runtime.admission.leave()."""

    def __init__(self, register: Register, clock: Clock) -> None:
        self._register = register
        self._clock = clock
        self.draining = False
        """Set once: from then on every new request is refused; what runs goes on."""

    def check_open(self) -> None:
        """RouterError DRAINING once the router ends."""
        if self.draining:
            raise RouterError(
                Code.UNAVAILABLE,
                RefuseReason.DRAINING,
                "the router is shutting down; nothing was executed",
                retry_after_s=0.1,
            )

    async def enter(self, runtime: TenantRuntime, call: Call) -> None:
        """Wait for a place. RouterError RESOURCE_EXHAUSTED when there is none in time, TENANT_PAUSED."""
        if not runtime.admission.try_enter():
            request, options = call.request, call.request.options
            while runtime.admission.tenant.paused:
                patient = options.on_failover is OnFailover.WAIT
                await runtime.pause.over(runtime.tenant, request.deadline, patient=patient)
            await runtime.admission.enter(request.deadline, options.priority)
            call.queued_s = self._clock.now() - call.started
        self._register.admit(call)
        runtime.budget.earn(self._clock.now())
