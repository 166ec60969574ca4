"""An endpoint's pool behind the tenant's login breaker: a login that is refused is not tried by every request.

decisions/login_breaker says when one may try. Everybody else is told at once what the server said last. When another
login of the tenant does in its stead, who waits here is sent to the pool that has it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

from router.decisions.login_breaker import LoginBreaker, Try, refuses_login
from router.model.identity import EndpointName, Generation, TenantName
from router.model.observation import AttemptFailed, Fault, FaultKind, Stage
from router.model.reasons import CloseReason
from router.model.topology import Login, Tenant
from router.ports import Clock, EndpointPool, Lane, PoolStatistics

MOVED = "another login of the tenant is in use by now"


class LoginBreakers:
    """One for each tenant and endpoint; another login or database begins with a closed one."""

    def __init__(self) -> None:
        self._breakers: dict[tuple[TenantName, EndpointName], tuple[Login, str, LoginBreaker]] = {}

    def of(self, tenant: Tenant, endpoint: EndpointName) -> LoginBreaker:
        """The breaker for a tenant's pools on an endpoint."""
        key = (tenant.name, endpoint)
        known = self._breakers.get(key)
        if known is not None and known[:2] == (tenant.login, tenant.database):
            return known[2]
        breaker = LoginBreaker()
        self._breakers[key] = (tenant.login, tenant.database, breaker)
        return breaker

    def refuses(self, tenant: TenantName, endpoint: EndpointName) -> bool:
        """Whether the login that was tried last there was refused."""
        known = self._breakers.get((tenant, endpoint))
        return known is not None and known[2].refused > 0

    def forget(self, gone: set[TenantName]) -> None:
        """Tenants that were removed from the configuration."""
        self._breakers = {key: known for key, known in self._breakers.items() if key[0] not in gone}


class GuardedPool:
    """ports.EndpointPool."""

    def __init__(
        self,
        inner: EndpointPool,
        breaker: LoginBreaker,
        clock: Clock,
        accepted: Callable[[], None] = lambda: None,
        rescued: Callable[[Fault], Awaitable[bool]] | None = None,
    ) -> None:
        """accepted: a login succeeded. rescued: one failed; True: another login is in use, in another pool."""
        self._inner = inner
        self._breaker = breaker
        self._clock = clock
        self._accepted = accepted
        self._rescued = rescued

    def __repr__(self) -> str:
        return repr(self._inner)

    @property
    def generation(self) -> Generation:
        """ports.EndpointPool.generation."""
        return self._inner.generation

    async def open_lane(self, deadline: float) -> Lane:
        """ports.EndpointPool.open_lane."""
        breaker = self._breaker
        # A connection that is open already asks for no login, and proves none.
        idle = self._inner.statistics().idle > 0
        what = Try.AT_WILL if idle else breaker.begin(self._clock.now())
        if what is None:
            raise AttemptFailed(self._refused())
        try:
            lane = await self._inner.open_lane(deadline)
        except AttemptFailed as failure:
            # One failed connect is told to all who wait for one, as shared: it was one login.
            if refuses_login(failure.fault) and (what is Try.PROBE or not failure.fault.shared):
                breaker.refusal(what, failure.fault, self._clock.now())
            else:
                breaker.unknown(what)
            if failure.fault.kind is FaultKind.CONNECT_FAILED and await self._is_rescued(failure.fault, deadline):
                raise AttemptFailed(Fault(FaultKind.STALE, Stage.ACQUIRE, message=MOVED)) from None
            raise
        except BaseException:
            breaker.unknown(what)
            raise
        if idle:
            breaker.unknown(what)
        else:
            breaker.accepted()
            self._accepted()
        return lane

    async def _is_rescued(self, fault: Fault, deadline: float) -> bool:
        if self._rescued is None:
            return False
        try:
            async with asyncio.timeout_at(deadline):
                return await self._rescued(fault)
        except TimeoutError:
            return False

    def _refused(self) -> Fault:
        breaker = self._breaker
        assert breaker.fault is not None
        words = f"{breaker.fault.message} ({breaker.refused} times in a row; not tried again for "
        words += f"{max(0.0, breaker.again_at - self._clock.now()):.1f} s)"
        return replace(breaker.fault, message=words)

    def fence(self, generation: Generation) -> None:
        """ports.EndpointPool.fence."""
        self._inner.fence(generation)

    async def close(self, reason: CloseReason) -> None:
        """ports.EndpointPool.close."""
        await self._inner.close(reason)

    def statistics(self) -> PoolStatistics:
        """ports.EndpointPool.statistics."""
        return self._inner.statistics()
