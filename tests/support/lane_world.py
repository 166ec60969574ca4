"""A lane pool over a scripted server, and what tests of it do."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable
from typing import Any

import pytest

from router.decisions.lane_costs import Cost
from router.engine.lane_pool import LanePool, SharedRead, Slot
from router.engine.running import EndpointRuns, PoolRuns
from router.model.identity import EndpointName, TenantName
from router.model.observation import AttemptFailed, Fault
from router.model.policy import PoolPolicy
from router.model.reasons import CloseReason
from router.model.request import Statement
from router.ports import Clock, Unit
from tests.support.builders import now
from tests.support.fake_endpoint_pool import FakeEndpointPool
from tests.support.fake_replies import Reply
from tests.support.fake_server import FakeServer
from tests.support.virtual_time import FixedChance, VirtualClock, settle

FAST = b"select 1"


def free_runs(policy: PoolPolicy, clock: Clock | None = None) -> PoolRuns:
    """Whatever is open may run."""
    clock = clock or VirtualClock()
    return PoolRuns(EndpointRuns(EndpointName("pg1"), clock, FixedChance()), TenantName("acme"), policy)


class World:
    """A lane pool over a scripted server."""

    def __init__(self, max_size: int = 2, lifetime_s: float = 1800.0, **policy: Any) -> None:
        self.server = FakeServer()
        self.inner = FakeEndpointPool(self.server, max_size=max_size, lifetime_s=lifetime_s)
        self.policy = PoolPolicy(max_size=max_size, **policy)
        self.pool = LanePool(self.inner, self.policy, VirtualClock(), free_runs(self.policy))

    def read(self, sql: bytes = FAST, timeout: float = 5.0) -> asyncio.Task[SharedRead]:
        return asyncio.create_task(self.pool.run_shared(Statement(sql), now() + timeout))

    def cost(self, sql: bytes = FAST) -> Cost:
        """What the pool believes of a statement."""
        return self.pool._shared.costs.of(sql)

    async def learn(self, sql: bytes = FAST) -> None:
        """Let the pool know that a statement is fast."""
        for _ in range(3):
            await self.pool.run_shared(Statement(sql), now() + 5)

    async def write(self, slot: Slot, sql: bytes, timeout: float = 5.0, *, final: bool = False) -> Unit:
        return await self.pool.run_pinned(slot, (Statement(sql),), now() + timeout, commits=True, final=final)

    async def run(self, slot: Slot, sql: bytes, timeout: float = 5.0) -> Unit:
        """A statement of a transaction."""
        return await self.pool.run_pinned(slot, (Statement(sql),), now() + timeout, commits=False)

    def slow(self, sql: bytes, takes: float, **reply: Any) -> bytes:
        self.server.script[sql] = Reply(takes=takes, rows=((b"1",),), **reply)
        return sql

    async def end(self) -> None:
        """All must have come back."""
        await asyncio.sleep(PoolPolicy().lane_idle_s + 6)  # also an attempt to connect that nobody waits for any more
        assert not self.pool.busy
        self.inner.check_conserved()
        self.pool.give_back_idle()
        await settle()
        self.inner.check_conserved(leased=0)
        self.destroyed = Counter(self.inner.destroyed)  # before the idle ones are closed
        await self.pool.close(CloseReason.SHUTDOWN)


async def failure(work: Awaitable[Any]) -> Fault:
    with pytest.raises(AttemptFailed) as failed:
        await work
    return failed.value.fault
