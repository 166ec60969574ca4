"""The waiting room of one cluster while it fails over: bounded in time, count, bytes and per tenant.

A held request keeps no connection. The end is level-triggered: whenever the published state has a primary, the room
empties by slow start, newcomers behind those who wait. Prior art: Vitess' vtgate buffer, whose list of past bugs is
this file's test list (lost wake-up, slot not given back on cancel, restart after shutdown).
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable

from router.model.errors import Code, RouterError
from router.model.events import HoldEnded, HoldStarted, Phase
from router.model.identity import TenantName
from router.model.policy import HoldPolicy
from router.model.reasons import HoldEndReason, RefuseReason
from router.model.state import ClusterState
from router.ports import Clock, EventSink

_SERVING = (Phase.STEADY, Phase.DRAINING)
_REFUSAL = {
    HoldEndReason.WINDOW: RefuseReason.HOLD_WINDOW,
    HoldEndReason.DEADLINE: RefuseReason.HOLD_WINDOW,
    HoldEndReason.FULL: RefuseReason.HOLD_FULL,
    HoldEndReason.SHARE: RefuseReason.HOLD_SHARE,
    HoldEndReason.SHUTDOWN: RefuseReason.DRAINING,
    HoldEndReason.DRY_RUN: RefuseReason.HOLD_OFF,
}


class _Held:
    __slots__ = ("future", "since", "size", "tenant", "timer")

    def __init__(self, tenant: TenantName, size: int, since: float, future: asyncio.Future[HoldEndReason]) -> None:
        self.tenant = tenant
        self.size = size
        self.since = since
        self.future = future
        self.timer: asyncio.TimerHandle | None = None


class HoldingRoom:
    """Requests of one cluster that wait for a primary.

    Invariants: entered = released + ended otherwise + held now; held <= max_requests; bytes <= max_bytes; nobody
    stays longer than window_s; after close nobody enters.
    """

    def __init__(
        self,
        state: ClusterState,
        policy: HoldPolicy,
        clock: Clock,
        events: EventSink,
        on_drained: Callable[[], None] = lambda: None,
    ) -> None:
        self._name = state.name
        self._policy = policy
        self._clock = clock
        self._events = events
        self._on_drained = on_drained
        self._queues: OrderedDict[TenantName, deque[_Held]] = OrderedDict()
        self._count = 0
        self._bytes = 0
        self._serving = state.phase in _SERVING
        self._draining = state.phase is Phase.DRAINING
        self._batch = policy.release_start
        self._release_timer: asyncio.TimerHandle | None = None
        self._closed = False
        self.entered = 0
        self.ended: dict[HoldEndReason, int] = dict.fromkeys(HoldEndReason, 0)

    def __repr__(self) -> str:
        return f"<HoldingRoom {self._name} held={self._count} bytes={self._bytes} serving={self._serving}>"

    @property
    def held(self) -> int:
        """Requests waiting now."""
        return self._count

    @property
    def window_s(self) -> float:
        """Longest wait of one request (seconds)."""
        return self._policy.window_s

    def held_of(self, tenant: TenantName) -> int:
        """Requests of one tenant waiting now."""
        return len(self._queues.get(tenant, ()))

    def set_policy(self, policy: HoldPolicy) -> None:
        """Take new bounds; who already waits keeps the window it entered with."""
        self._policy = policy

    def on_state(self, state: ClusterState) -> None:
        """Called after each publication of the cluster's state, synchronously."""
        serving = state.phase in _SERVING
        if serving and not self._serving:
            self._batch = self._policy.release_start
        self._serving = serving
        self._draining = state.phase is Phase.DRAINING
        if serving and self._release_timer is None:
            self._release()

    async def wait(
        self, tenant: TenantName, size: int, deadline: float, *, why: str = "", before_s: float = 0.0
    ) -> float:
        """Wait until released; returns the seconds waited. why, and what the request had waited before: for the error.

        RouterError UNAVAILABLE when the room is full, the tenant's share is used up, the window ends or the router
        shuts down. The caller has checked the state in this same loop turn, so no wake-up can be missed.
        """
        now = self._clock.now()
        refusal = self._refusal(tenant, size)
        if refusal is not None:
            raise self._error(refusal, before_s)
        window_end = now + self._policy.window_s
        held = self._enter(tenant, size, now, min(window_end, deadline), window_end <= deadline)
        try:
            reason = await held.future
        except asyncio.CancelledError:
            self._leave(held, HoldEndReason.CANCELLED)
            raise
        waited = self._clock.now() - held.since
        if reason is not HoldEndReason.RELEASED:
            raise self._error(reason, before_s + waited, why)
        return waited

    def _refusal(self, tenant: TenantName, size: int) -> HoldEndReason | None:
        policy = self._policy
        if self._closed:
            return HoldEndReason.SHUTDOWN
        if policy.dry_run:
            return HoldEndReason.DRY_RUN
        if self._count >= policy.max_requests or self._bytes + size > policy.max_bytes:
            return HoldEndReason.FULL
        if self.held_of(tenant) >= max(1, int(policy.max_requests * policy.tenant_share)):
            return HoldEndReason.SHARE
        return None

    def _enter(self, tenant: TenantName, size: int, now: float, until: float, by_window: bool) -> _Held:
        loop = asyncio.get_running_loop()
        held = _Held(tenant, size, now, loop.create_future())
        reason = HoldEndReason.WINDOW if by_window else HoldEndReason.DEADLINE
        held.timer = loop.call_later(max(0.0, until - now), self._leave, held, reason)
        self._queues.setdefault(tenant, deque()).append(held)
        self._count += 1
        self._bytes += size
        self.entered += 1
        self._events.emit(HoldStarted(tenant, self._name))
        if self._serving and self._release_timer is None:
            # Entered behind others while the room empties, or after a state change: never wait for a next one.
            self._release_timer = loop.call_later(self._policy.release_step_s, self._release)
        return held

    def _leave(self, held: _Held, reason: HoldEndReason) -> None:
        queue = self._queues.get(held.tenant)
        if queue is None or held not in queue:
            return
        queue.remove(held)
        if not queue:
            del self._queues[held.tenant]
        self._count -= 1
        self._bytes -= held.size
        self.ended[reason] += 1
        if held.timer is not None:
            held.timer.cancel()
        if not held.future.done():
            held.future.set_result(reason)
        self._events.emit(HoldEnded(held.tenant, self._name, reason, self._clock.now() - held.since))

    def _release(self) -> None:
        """Let the next batch go, twice as many as before; tenants take turns."""
        self._release_timer = None
        if not self._serving:
            return
        for _ in range(self._batch):
            if not self._queues:
                break
            tenant, queue = next(iter(self._queues.items()))
            self._queues.move_to_end(tenant)
            self._leave(queue[0], HoldEndReason.RELEASED)
        if self._queues:
            self._batch *= 2
            loop = asyncio.get_running_loop()
            self._release_timer = loop.call_later(self._policy.release_step_s, self._release)
        elif self._draining:
            self._on_drained()

    def close(self) -> None:
        """Shutdown: everybody leaves with a refusal, nobody enters again."""
        self._closed = True
        if self._release_timer is not None:
            self._release_timer.cancel()
            self._release_timer = None
        for queue in list(self._queues.values()):
            for held in list(queue):
                self._leave(held, HoldEndReason.SHUTDOWN)

    def _error(self, reason: HoldEndReason, waited: float, why: str = "") -> RouterError:
        policy = self._policy
        why = why or "no primary"
        words = {
            HoldEndReason.WINDOW: f"{why} after waiting {waited:.1f} s (window {policy.window_s:g} s)",
            HoldEndReason.DEADLINE: f"{why} (waited {waited:.1f} s, until the deadline)",
            HoldEndReason.FULL: f"{self._count} requests already wait for a primary (limit {policy.max_requests})",
            HoldEndReason.SHARE: "this tenant's share of the requests that may wait for a primary is used up",
            HoldEndReason.DRY_RUN: "there is no primary, and holding is off (dry run)",
            HoldEndReason.SHUTDOWN: "the router is shutting down",
        }.get(reason, reason.value)
        return RouterError(
            Code.UNAVAILABLE,
            _REFUSAL.get(reason, RefuseReason.HOLD_WINDOW),
            f"cluster {self._name}: {words}; nothing was executed",
            retry_after_s=1.0,
            numbers={"held": self._count, "limit": policy.max_requests, "waited_ms": round(waited * 1000)},
        )
