"""A paused tenant: its new requests wait here, in front of admission, until it is resumed, or for as long as a failover
may take."""

from __future__ import annotations

import asyncio

from router.engine.expiry import Expired, wait_until
from router.model.errors import Code, RouterError
from router.model.policy import HoldPolicy
from router.model.reasons import RefuseReason
from router.model.topology import Tenant


class Pause:
    """Who waits for the end of a tenant's pause."""

    def __init__(self, window_s: float = HoldPolicy.window_s) -> None:
        """window_s: longest wait of one request."""
        self.window_s = window_s
        self._places: dict[asyncio.Future[None], None] = {}

    @property
    def waiting(self) -> int:
        """Requests and transactions that wait."""
        return len(self._places)

    async def over(self, tenant: Tenant, deadline: float, *, patient: bool) -> None:
        """Wait for its end. RouterError TENANT_PAUSED when it comes too late, or the caller is not patient; QUEUE_FULL
        when max_queue wait already."""
        if not patient:
            raise self._paused(tenant)
        if len(self._places) >= tenant.policy.max_queue:
            raise self._full(tenant)
        loop = asyncio.get_running_loop()
        place: asyncio.Future[None] = loop.create_future()
        self._places[place] = None
        try:
            await wait_until(place, min(deadline, loop.time() + self.window_s))
        except Expired:
            raise self._paused(tenant) from None
        finally:
            del self._places[place]

    def end(self) -> None:
        """All go on, in the order in which they came."""
        for place in self._places:
            if not place.done():
                place.set_result(None)

    def turn_away(self) -> None:
        """The tenant is gone, and nobody will end its pause."""
        for place in self._places:
            if not place.done():
                place.set_exception(Expired())

    def _paused(self, tenant: Tenant) -> RouterError:
        return RouterError(
            Code.UNAVAILABLE,
            RefuseReason.TENANT_PAUSED,
            f"tenant {tenant.name} is paused by an operator; nothing was executed",
            retry_after_s=1.0,
            numbers={"waiting": len(self._places), "scope": "tenant"},
        )

    def _full(self, tenant: Tenant) -> RouterError:
        limit = tenant.policy.max_queue
        return RouterError(
            Code.RESOURCE_EXHAUSTED,
            RefuseReason.QUEUE_FULL,
            f"tenant {tenant.name} is paused, and {limit} requests already wait (limits.max_queue)",
            retry_after_s=1.0,
            numbers={"limit": limit, "waiting": len(self._places), "scope": "tenant"},
        )
