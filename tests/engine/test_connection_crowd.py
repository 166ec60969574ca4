"""Many tenants that wait for connections at once, as after a failover: what their pools are asked, and who is served.

Counts, not times: how often the budget reads what a pool has and wants.
"""

from __future__ import annotations

import asyncio
import random

import pytest

from router.engine.connection_budget import PRESS_S, EndpointBudget
from router.model.identity import TenantName
from router.model.policy import PoolPolicy
from tests.engine.test_connection_budget import Busy, Holder, budget_of, jain, share_out
from tests.support.virtual_time import settle, virtual

CAP = 10


class Counted(Holder):
    """A pool that counts how often it is asked."""

    asked = 0

    def __getattribute__(self, name: str) -> object:
        if name in ("waiting", "leaving", "keeps", "idle_since"):
            Counted.asked += 1
        return super().__getattribute__(name)


class Crowd:
    """Pools of as many tenants, of whom CAP have a lane each, and all others begin to wait in one moment."""

    def __init__(self, tenants: int) -> None:
        self.budget = budget_of(CAP)
        self.holders = [Counted(self.budget, tenant=f"t{number}") for number in range(tenants)]
        self.opening: list[asyncio.Task[None]] = []

    async def begin(self) -> None:
        for holder in self.holders[:CAP]:
            await holder.open()
        self.opening = [asyncio.create_task(holder.open()) for holder in self.holders[CAP:]]

    async def end(self) -> None:
        for task in self.opening:
            task.cancel()
        await asyncio.wait(self.opening)
        self.budget.close()


async def _asked_by_joining(tenants: int) -> float:
    """For each that begins to wait, by the budget."""
    crowd = Crowd(tenants)
    await crowd.begin()
    Counted.asked = 0
    await settle()
    asked = Counted.asked
    assert crowd.budget.waiting == tenants - CAP
    await crowd.end()
    return asked / tenants


@virtual
async def test_whoever_begins_to_wait_costs_no_more_the_more_pools_there_are() -> None:
    """Each asked all: 9.8 million times for a thousand."""
    few, many = await _asked_by_joining(50), await _asked_by_joining(500)
    assert many <= few
    assert few < 10


@virtual
async def test_each_pool_is_asked_a_few_times_a_tick_whoever_waits() -> None:
    crowd = Crowd(400)
    await crowd.begin()
    await asyncio.sleep(0.5)
    Counted.asked = 0
    ticks = 10
    await asyncio.sleep(ticks * PRESS_S)
    assert Counted.asked <= 4 * 400 * ticks
    await crowd.end()


@virtual
async def test_permits_given_back_in_one_moment_ask_all_pools_once() -> None:
    crowd = Crowd(400)
    await crowd.begin()
    await settle()
    Counted.asked = 0
    for holder in crowd.holders[:CAP]:
        holder.close()
    await settle()
    assert sum(len(holder.lanes) for holder in crowd.holders) == CAP
    assert Counted.asked <= 4 * 400
    await crowd.end()


@virtual
async def test_a_crowd_is_served_alike() -> None:
    budget = budget_of(12)
    served = await share_out(12, 20.0, *(Busy(budget, f"t{number}", callers=2) for number in range(120)))
    assert jain(served.values()) >= 0.95, jain(served.values())
    assert sum(served.values()) >= 0.9 * 12 * 20


@virtual
async def test_a_floor_is_given_in_the_midst_of_a_crowd_before_the_order_is_computed_again() -> None:
    crowd = Crowd(400)
    await crowd.begin()
    await settle()
    crowd.holders[0].close()  # the order is known from here on
    calm = Holder(crowd.budget, tenant="calm", policy=PoolPolicy(floor=2))
    opening = asyncio.create_task(calm.open(2))
    await settle()
    crowd.holders[1].close()
    await settle()
    crowd.holders[2].close()
    await asyncio.wait_for(opening, 0.001)
    await crowd.end()


@virtual
async def test_who_comes_when_the_order_is_known_waits_behind_those_who_came_before() -> None:
    crowd = Crowd(60)
    await crowd.begin()
    await settle()
    crowd.holders[0].close()
    late = Holder(crowd.budget, tenant="late")
    opening = asyncio.create_task(late.open())
    await settle()
    for holder in crowd.holders[1:CAP]:
        holder.close()
    await settle()
    assert not opening.done()
    assert [len(holder.lanes) for holder in crowd.holders[CAP : 2 * CAP]] == [1] * CAP
    crowd.opening.append(opening)
    await crowd.end()


@virtual
async def test_who_may_have_one_more_is_served_though_the_order_was_computed_without_it() -> None:
    budget = budget_of(3)
    other, *bound = (Holder(budget, policy=PoolPolicy(ceiling=ceiling)) for ceiling in (0, 1, 1))
    for holder in (other, *bound):
        await holder.open()
    opening = [asyncio.create_task(holder.open()) for holder in bound]
    await settle()
    other.close()
    bound[0].close()
    await settle()
    assert ([task.done() for task in opening], budget.in_use) == ([True, False], 2)
    bound[1].close()
    await asyncio.gather(*opening)
    budget.close()


@virtual
async def test_whoever_is_closed_for_a_crowd_is_closed_in_one_look() -> None:
    """In a crowd the next look is some milliseconds away."""
    budget = budget_of(100)
    rich = [Holder(budget, tenant=f"r{number}") for number in range(50)]
    for holder in rich:
        await holder.open(2)
        holder.rest(2)
    poor = [Holder(budget, tenant=f"p{number}") for number in range(300)]
    opening = [asyncio.create_task(holder.open()) for holder in poor]
    await asyncio.sleep(PRESS_S)
    assert sum(holder.size for holder in rich) == 0
    for task in opening:
        task.cancel()
    await asyncio.wait(opening)
    budget.close()


class Walk:
    """Pools that do anything at any time; what must hold is looked at after each step."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.budget = EndpointBudget(budget_of(0).endpoint, 4, lambda: None)
        self.takes: dict[asyncio.Task[bool], Holder] = {}
        policies = [PoolPolicy(), PoolPolicy(floor=2), PoolPolicy(ceiling=2), PoolPolicy(weight=300)]
        self.holders = [
            Holder(self.budget, tenant=f"t{number % 7}", policy=policies[number % 7 % 4]) for number in range(14)
        ]

    async def run(self, steps: int) -> None:
        for _ in range(steps):
            await self.step()
            self.look()
        self.budget.regrant(8)
        for task in self.takes:
            task.cancel()
        await asyncio.sleep(0.1)
        while busy := [holder for holder in self.holders if holder.lanes or holder.unused]:
            for holder in busy:
                holder.unused.clear() if holder.unused else holder.lanes.pop()
                self.budget.give_back(holder)
        assert (self.budget.in_use, self.budget.waiting) == (0, 0)
        self.budget.close()

    async def step(self) -> None:
        draw, holder = self.draw, self.draw.choice(self.holders)
        match draw.choice(("take", "take", "close", "rest", "withdraw", "cancel", "grant", "ceiling", "time", "turn")):
            case "take":
                holder.waiting += 1
                task = asyncio.create_task(self.budget.take(holder))
                self.takes[task] = holder
                task.add_done_callback(self.taken)
            case "close" if holder.lanes:
                holder.close()
            case "rest" if False in holder.lanes:
                holder.rest()
            case "withdraw":
                self.budget.withdraw(holder)
            case "cancel" if self.takes:
                draw.choice([*self.takes]).cancel()
            case "grant":
                self.budget.regrant(draw.randrange(7), None, self.budget.claims.ceilings)
            case "ceiling":
                parts = {TenantName("t2"): draw.randrange(3), TenantName("t6"): draw.randrange(3)}
                self.budget.regrant(self.budget.granted, None, parts if draw.random() < 0.7 else None)
            case "time":
                await asyncio.sleep(draw.random() * draw.choice((0.0001, 0.03, 0.3)))
            case "turn":
                await asyncio.sleep(0)
            case _:
                return

    def taken(self, task: asyncio.Task[bool]) -> None:
        holder = self.takes.pop(task)
        holder.waiting -= 1
        if not task.cancelled() and task.result():
            holder.lanes.append(False)

    def look(self) -> None:
        budget = self.budget
        if budget.in_use < budget.granted:
            alone = [place.holder for place in budget._line if not place.future.done()]
            assert all(budget.claims.room(holder) <= 0 for holder in alone), "a permit is free, and somebody waits"


@pytest.mark.parametrize("seed", range(40))
def test_whatever_happens_no_permit_is_lost_and_nobody_waits_beside_a_free_one(seed: int) -> None:
    @virtual
    async def story() -> None:
        await Walk(seed).run(300)

    story()
