"""Permits on virtual time: the line, cancellation at every turn, what makes room, and grants that change."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

import pytest

from router.engine.connection_budget import PRESS_S, Budgets, EndpointBudget
from router.engine.making_room import FLOOR_S, SHARE_S, TURN_S
from router.engine.tenant_claims import NoLanePools
from router.model.identity import ClusterName, EndpointName, TenantName
from router.model.ledger import CeilingWish, Demand, FloorWish, Grant
from router.model.policy import PoolPolicy
from router.model.topology import Endpoint
from tests.support.sweeping import Sweep, sweep
from tests.support.virtual_time import settle, virtual

PG1 = EndpointName("pg1")
CLOSING_TAKES = 0.005


def endpoint(cap: int) -> Endpoint:
    return Endpoint(PG1, ClusterName("main"), "127.0.0.1", max_connections=cap)


class Holder:
    """ports.BudgetHolder: a pool with connections that are numbers."""

    _number = itertools.count()

    def __init__(
        self, budget: EndpointBudget, min_size: int = 0, *, tenant: str = "", policy: PoolPolicy | None = None
    ) -> None:
        self.budget = budget
        self.tenant = TenantName(tenant or f"tenant{next(self._number)}")
        self.policy = policy or PoolPolicy(min_size=min_size, max_size=max(8, min_size))
        self.min_size = min_size
        self.unused: list[float] = []
        """When each idle connection was last used."""
        self.lanes: list[bool] = []
        """Lent lanes; True: asked to run dry."""
        self.closing = 0
        self.waiting = 0
        budget.join(self)

    @property
    def size(self) -> int:
        return self.idle + len(self.lanes)

    @property
    def leaving(self) -> int:
        return self.closing + sum(self.lanes)

    @property
    def keeps(self) -> int:
        return self.size - sum(self.lanes)

    @property
    def idle(self) -> int:
        return len(self.unused)

    def idle_since(self, *, below_min: bool) -> float | None:
        if not below_min and self.size <= self.min_size:
            return None
        return min(self.unused, default=None)

    def close_idle(self) -> None:
        self.unused.remove(min(self.unused))
        self.closing += 1
        asyncio.get_running_loop().call_later(CLOSING_TAKES, self.closed)

    def closed(self) -> None:
        self.closing -= 1
        self.budget.give_back(self)

    def retire_lane(self) -> bool:
        if False not in self.lanes:
            return False
        self.lanes[self.lanes.index(False)] = True
        return True

    async def open(self, count: int = 1) -> None:
        """Open so many, each in its turn."""
        for _ in range(count):
            self.waiting += 1
            try:
                assert await self.budget.take(self)
            finally:
                self.waiting -= 1
            self.lanes.append(False)

    def rest(self, count: int = 1) -> None:
        """So many lanes become idle."""
        for _ in range(count):
            self.lanes.remove(False)
            self.unused.append(asyncio.get_running_loop().time())
        self.budget.look_again()

    def close(self) -> None:
        """A lane ends, those first that were asked to."""
        self.lanes.remove(True in self.lanes)
        self.budget.give_back(self)


class FakeLanePools(NoLanePools):
    """What tenants have used, and who is asked for lanes."""

    def __init__(self, times: Callable[[], Mapping[TenantName, float]] = dict) -> None:
        self.times = times
        self.asked: Callable[[EndpointName, Mapping[TenantName, float]], object] = lambda *_: None

    def free_lanes(self, endpoint: EndpointName, patience: Mapping[TenantName, float], most: int) -> None:
        self.asked(endpoint, patience)

    def database_times(self, endpoint: EndpointName) -> Mapping[TenantName, float]:
        return self.times()


def budget_of(granted: int) -> EndpointBudget:
    return EndpointBudget(PG1, granted, lambda: None)


# --- the line ------------------------------------------------------------------------------------------------------


@virtual
async def test_permits_are_given_up_to_the_grant_and_then_in_turn() -> None:
    budget = budget_of(2)
    one, two = Holder(budget), Holder(budget)
    await one.open(2)
    assert not budget.try_take(two)
    order: list[int] = []

    async def open_(number: int, holder: Holder) -> None:
        await holder.open()
        order.append(number)

    waiting = [asyncio.create_task(open_(number, two)) for number in range(3)]
    await settle()
    assert (budget.in_use, budget.waiting, order) == (2, 3, [])
    one.close()
    await settle()
    assert order == [0]
    assert not budget.try_take(one), "nobody overtakes"
    one.close()
    await settle()
    assert order == [0, 1]
    two.close()
    await asyncio.gather(*waiting)
    assert (order, budget.in_use, budget.waiting) == ([0, 1, 2], 2, 0)
    budget.close()


@virtual
async def test_who_withdraws_leaves_the_line_and_gets_nothing() -> None:
    budget = budget_of(1)
    one, two, three = (Holder(budget) for _ in range(3))
    await one.open()
    second, third = asyncio.create_task(budget.take(two)), asyncio.create_task(three.open())
    await settle()
    budget.withdraw(two)
    assert await second is False
    one.close()
    await third
    assert (budget.in_use, budget.waiting) == (1, 0)
    budget.leave(three)
    budget.close()


def test_a_take_cancelled_at_any_turn_loses_no_permit() -> None:
    async def story(cancel: Sweep) -> None:
        budget = budget_of(1)
        one, two, three = (Holder(budget) for _ in range(3))
        await one.open()
        loop = asyncio.get_running_loop()
        loop.call_later(0.01, one.close)
        taken = await cancel.act(budget.take(two))
        if taken is True:
            assert budget.in_use == 1
            budget.give_back(two)
        await asyncio.wait_for(three.open(), 1)
        assert (budget.in_use, budget.waiting) == (1, 0)
        budget.close()

    assert sweep(story) > 2


# --- making room ---------------------------------------------------------------------------------------------------


@virtual
async def test_idle_connections_of_others_are_closed_least_recently_used_first() -> None:
    budget = budget_of(4)
    one, two, poor = Holder(budget), Holder(budget), Holder(budget)
    await one.open(2)
    await two.open(2)
    one.rest()
    await asyncio.sleep(1)
    two.rest()
    before = asyncio.get_running_loop().time()
    await poor.open()
    assert (one.idle, two.idle) == (0, 1)
    assert asyncio.get_running_loop().time() - before == pytest.approx(CLOSING_TAKES), "at once, not at the next look"
    await poor.open()
    assert (two.idle, budget.in_use) == (0, 4)
    budget.close()


@virtual
async def test_no_more_is_closed_than_is_wanted_and_min_size_is_kept() -> None:
    budget = budget_of(4)
    rich, poor = Holder(budget, min_size=3), Holder(budget)
    await rich.open(4)
    rich.rest(4)
    opening = asyncio.create_task(poor.open(2))
    await asyncio.sleep(0.1)
    assert (rich.idle, len(poor.lanes), budget.waiting) == (3, 1, 1)
    opening.cancel()
    await asyncio.wait({opening})
    assert budget.waiting == 0
    budget.close()


@virtual
async def test_what_becomes_idle_later_is_closed_then() -> None:
    budget = budget_of(1)
    one, two = Holder(budget), Holder(budget)
    await one.open()
    opening = asyncio.create_task(two.open())
    await asyncio.sleep(0.01)
    one.rest()
    await asyncio.wait_for(opening, CLOSING_TAKES + 0.001)
    budget.close()


@virtual
async def test_lane_pools_are_asked_when_no_connection_is_idle() -> None:
    budgets = Budgets()
    asked: list[EndpointName] = []
    pools = FakeLanePools()
    pools.asked = lambda one, _: asked.append(one)
    budgets.serve_lanes(pools)
    budget = budgets.of(endpoint(1))
    one, two = Holder(budget), Holder(budget)
    await one.open()
    opening = asyncio.create_task(two.open())
    await settle()
    assert asked == [PG1]
    one.rest()
    await opening
    budgets.close()


@virtual
async def test_a_busy_pool_gives_lanes_up_until_it_has_at_most_one_more() -> None:
    budget = budget_of(5)
    rich, poor = Holder(budget), Holder(budget)
    await rich.open(5)
    opening = asyncio.create_task(poor.open(5))
    for given in range(1, 3):
        await asyncio.sleep(PRESS_S + 0.001)
        assert sum(rich.lanes) == 1
        rich.close()
        await settle()
        assert len(poor.lanes) == given
    await asyncio.sleep(0.5)
    assert (len(rich.lanes), sum(rich.lanes), len(poor.lanes)) == (3, 0, 2), "stable"
    opening.cancel()
    await asyncio.wait({opening})
    budget.close()


@virtual
async def test_more_busy_pools_than_connections_take_turns() -> None:
    budget = budget_of(1)
    one, two = Holder(budget), Holder(budget)
    budget.lane_pools = FakeLanePools(lambda: {one.tenant: asyncio.get_running_loop().time()})
    await one.open()
    opening = asyncio.create_task(two.open())
    await asyncio.sleep(TURN_S - PRESS_S)
    assert one.lanes == [False]
    await asyncio.sleep(3 * PRESS_S)
    assert one.lanes == [True]
    one.close()
    await opening
    budget.close()


# --- shares of tenants ---------------------------------------------------------------------------------------------


class Busy:
    """A tenant with more work than it can have connections for; each piece takes piece_s of a connection."""

    def __init__(self, budget: EndpointBudget, name: str, *, callers: int = 20, piece_s: float = 0.02,
                 policy: PoolPolicy | None = None) -> None:
        self.holder = Holder(budget, tenant=name, policy=policy)
        self.served_s = 0.0
        self.callers = callers
        self.piece_s = piece_s
        self.working = 0
        self.most = 0

    async def run(self) -> None:
        """One connection after another, each used until it is asked back."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self.callers):
                group.create_task(self._work())

    def let_go(self) -> None:
        """Its callers are gone: what they left is closed."""
        while self.holder.lanes:
            self.holder.close()
        self.working = self.holder.waiting = 0

    async def _work(self) -> None:
        holder = self.holder
        loop = asyncio.get_running_loop()
        while True:
            holder.waiting += 1
            try:
                assert await holder.budget.take(holder)
            finally:
                holder.waiting -= 1
            holder.lanes.append(False)
            self.working += 1
            self.most = max(self.most, self.working)
            while True not in holder.lanes:
                await asyncio.sleep(self.piece_s)
                self.served_s += self.piece_s
            self.working -= 1
            holder.lanes.remove(True)
            holder.closing += 1
            loop.call_later(CLOSING_TAKES, holder.closed)


async def share_out(cap: int, seconds: float, *tenants: Busy) -> dict[str, float]:
    """Connection seconds that each got."""
    budget = tenants[0].holder.budget
    budget.lane_pools = FakeLanePools(lambda: {one.holder.tenant: one.served_s for one in tenants})
    running = [asyncio.create_task(one.run()) for one in tenants]
    await asyncio.sleep(seconds)
    for task in running:
        task.cancel()
    await asyncio.wait(running)
    budget.close()
    return {one.holder.tenant: one.served_s for one in tenants}


def jain(served: Iterable[float]) -> float:
    values = [*served]
    return sum(values) ** 2 / (len(values) * sum(value * value for value in values))


@virtual
async def test_three_tenants_on_ten_connections_are_served_alike() -> None:
    budget = budget_of(10)
    served = await share_out(10, 12.0, Busy(budget, "a", callers=50), Busy(budget, "b"), Busy(budget, "c", callers=10))
    assert jain(served.values()) >= 0.99, served
    assert sum(served.values()) >= 0.95 * 10 * 12, "hardly anything is lost to changing hands"


@virtual
async def test_many_more_tenants_than_connections_are_served_alike() -> None:
    budget = budget_of(4)
    served = await share_out(4, 15.0, *(Busy(budget, f"t{number}", callers=2) for number in range(9)))
    assert jain(served.values()) >= 0.98, served
    assert sum(served.values()) >= 0.9 * 4 * 15


@virtual
async def test_weights_hold_also_where_there_is_less_than_one_connection_each() -> None:
    budget = budget_of(2)
    policy = PoolPolicy(weight=300)
    tenants = [Busy(budget, "heavy", policy=policy), *(Busy(budget, f"light{number}") for number in range(3))]
    served = await share_out(2, 24.0, *tenants)
    light = [served[f"light{number}"] for number in range(3)]
    assert jain(light) >= 0.98
    assert served["heavy"] / sum(light) == pytest.approx(1.0, abs=0.15), served


@virtual
async def test_a_floor_is_given_at_once_and_what_it_leaves_is_lent() -> None:
    budget = budget_of(10)
    crowd = [Busy(budget, f"t{number}") for number in range(9)]
    calm = Busy(budget, "calm", callers=4, policy=PoolPolicy(floor=4))
    budget.lane_pools = FakeLanePools(lambda: {one.holder.tenant: one.served_s for one in (*crowd, calm)})
    running = [asyncio.create_task(one.run()) for one in crowd]
    await asyncio.sleep(2.0)
    assert sum(one.working for one in crowd) >= 9, "all of it is lent"
    running.append(asyncio.create_task(calm.run()))
    await asyncio.sleep(0.25)
    assert calm.working == 4
    seen: Counter[int] = Counter()
    for _ in range(40):
        await asyncio.sleep(0.05)
        seen[calm.working] += 1
    assert seen == {4: 40}
    for task in running:
        task.cancel()
    await asyncio.wait(running)
    budget.close()


@virtual
async def test_a_ceiling_holds_while_connections_are_free_and_does_not_stand_in_others_way() -> None:
    budget = budget_of(10)
    bound = Busy(budget, "bound", policy=PoolPolicy(ceiling=3))
    running = [asyncio.create_task(bound.run())]
    await asyncio.sleep(1.0)
    assert (bound.working, budget.in_use, budget.waiting) == (3, 3, 0)
    other = Holder(budget)
    await asyncio.wait_for(other.open(7), 0.001)
    running[0].cancel()
    await asyncio.wait(running)
    budget.close()


@virtual
async def test_both_pools_of_a_tenant_share_its_ceiling() -> None:
    budget = budget_of(10)
    policy = PoolPolicy(ceiling=2)
    reads, writes = Holder(budget, tenant="bound", policy=policy), Holder(budget, tenant="bound", policy=policy)
    await reads.open(2)
    opening = asyncio.create_task(writes.open())
    await asyncio.sleep(TURN_S + 2 * PRESS_S)
    assert sum(reads.lanes) == 1, "one of the reads' is asked back, though the endpoint has room"
    reads.close()
    await opening
    reads.rest()
    opening = asyncio.create_task(writes.open())
    await asyncio.wait_for(opening, 0.1)
    assert (budget.in_use, reads.idle, len(writes.lanes)) == (2, 0, 2)
    budget.close()


@virtual
async def test_a_worker_has_as_much_of_a_ceiling_as_the_ledger_gave_it() -> None:
    budgets = Budgets(divided=True)
    budget = budgets.of(endpoint(8))
    holder = Holder(budget, policy=PoolPolicy(ceiling=4))
    budgets.on_grant(Grant(PG1, 4, 1))
    assert budgets.report() == [Demand(PG1, 4, 0, 0, 1)]
    opening = asyncio.create_task(holder.open(6))
    await settle()
    asks = {holder.tenant: CeilingWish(4, 0, 1)}
    assert budgets.report() == [Demand(PG1, 4, 0, 0, 1, ceilings=asks)], "not a word of the cap yet"
    budgets.on_grant(Grant(PG1, 4, 2, ceilings={holder.tenant: 2}))
    await settle()
    assert len(holder.lanes) == 2
    asks = {holder.tenant: CeilingWish(4, 2, 3)}
    assert budgets.report() == [Demand(PG1, 4, 2, 0, 2, ceilings=asks)], "more of the cap would be of no use"
    opening.cancel()
    await asyncio.wait({opening})
    budgets.close()


@virtual
async def test_a_lower_part_of_a_ceiling_is_obeyed_with_what_is_idle_first_and_told_as_it_is_met() -> None:
    told: list[Demand] = []
    budgets = Budgets(divided=True)
    budgets.changed = lambda: told.extend(budgets.report())
    budget = budgets.of(endpoint(8))
    policy = PoolPolicy(ceiling=4, min_size=1)
    reads, writes = Holder(budget, 1, tenant="bound", policy=policy), Holder(budget, tenant="bound", policy=policy)
    budgets.on_grant(Grant(PG1, 8, 1, ceilings={reads.tenant: 4}))
    await reads.open(1)
    await writes.open(3)
    reads.rest()
    told.clear()
    budgets.on_grant(Grant(PG1, 8, 2, ceilings={reads.tenant: 2}))
    await asyncio.sleep(2 * PRESS_S)
    assert (reads.size, writes.lanes.count(True), len(writes.lanes)) == (0, 1, 3)
    assert not budget.try_take(reads)
    writes.close()
    await asyncio.sleep(3 * PRESS_S)
    assert writes.lanes == [False, False], "no more than is too much"
    assert [one.ceilings[reads.tenant].in_use for one in told] == [4, 3, 2], "others may wait for it"
    budgets.on_grant(Grant(PG1, 8, 3))
    await asyncio.sleep(2 * PRESS_S)
    assert writes.lanes == [True, True]
    writes.close()
    writes.close()
    assert budgets.report() == [Demand(PG1, 8, 0, 0, 3)]
    budgets.close()


@virtual
async def test_lanes_of_a_tenant_within_its_share_may_pause_for_longer() -> None:
    budgets = Budgets()
    asked: list[Mapping[TenantName, float]] = []
    pools = FakeLanePools()
    pools.asked = lambda _, patience: asked.append(patience)
    budgets.serve_lanes(pools)
    budget = budgets.of(endpoint(4))
    calm, floored = Holder(budget, tenant="calm"), Holder(budget, tenant="floored", policy=PoolPolicy(floor=1))
    greedy = Holder(budget, tenant="greedy")
    await calm.open()
    await floored.open()
    await greedy.open(2)
    opening = asyncio.create_task(greedy.open())
    await settle()
    assert asked[0] == {"calm": SHARE_S, "floored": FLOOR_S}
    opening.cancel()
    await asyncio.wait({opening})
    budget.close()


@virtual
async def test_a_worker_holds_the_floors_that_the_ledger_gave_it() -> None:
    budgets = Budgets(divided=True)
    asked: list[Mapping[TenantName, float]] = []
    pools = FakeLanePools()
    pools.asked = lambda _, patience: asked.append(patience)
    budgets.serve_lanes(pools)
    budget = budgets.of(endpoint(8))
    calm, greedy = Holder(budget, tenant="calm", policy=PoolPolicy(floor=1)), Holder(budget, tenant="greedy")
    budgets.on_grant(Grant(PG1, 4, 1))
    await calm.open()
    await greedy.open(3)
    opening = asyncio.create_task(greedy.open())
    await settle()
    assert asked[-1] == {"calm": SHARE_S}, "its floor is elsewhere"
    assert budgets.report() == [Demand(PG1, 4, 4, 1, 1, {calm.tenant: FloorWish(1, 1)})]
    budgets.on_grant(Grant(PG1, 4, 2, {calm.tenant: 1}))
    await asyncio.sleep(PRESS_S)
    assert asked[-1] == {"calm": FLOOR_S}
    calm.rest()
    assert budgets.report()[0].floors == {calm.tenant: FloorWish(1, 0)}, "what is idle may be the floor's elsewhere"
    opening.cancel()
    await asyncio.wait({opening})
    budgets.close()


# --- grants --------------------------------------------------------------------------------------------------------


@virtual
async def test_nothing_is_opened_before_the_first_grant_and_what_waits_is_reported_at_once() -> None:
    told: list[list[Demand]] = []
    budgets = Budgets(divided=True)
    budgets.changed = lambda: told.append(budgets.report())
    budget = budgets.of(endpoint(10))
    holder = Holder(budget)
    opening = asyncio.create_task(holder.open(3))
    await settle()
    assert told == [[Demand(PG1, 0, 0, 1, 0)]]
    budgets.on_grant(Grant(PG1, 2, 1))
    await settle()
    assert budgets.report() == [Demand(PG1, 2, 2, 1, 1)]
    budgets.on_grant(Grant(PG1, 3, 3))
    await opening
    budgets.on_grant(Grant(PG1, 1, 2))
    assert budget.granted == 3, "it came late"
    budgets.close()


@virtual
async def test_a_lower_grant_is_obeyed_at_once_and_reported_again_when_it_is_met() -> None:
    told: list[Demand] = []
    budgets = Budgets(divided=True)
    budgets.changed = lambda: told.extend(budgets.report())
    budgets.on_grant(Grant(PG1, 5, 1))
    holder = Holder(budgets.of(endpoint(10)), min_size=2)
    await holder.open(5)
    holder.rest(3)
    told.clear()
    budgets.on_grant(Grant(PG1, 1, 2))
    await asyncio.sleep(2 * PRESS_S)
    assert budgets.report() == [Demand(PG1, 1, 2, 0, 2)], "below min_size, too"
    assert sum(holder.lanes) == 1
    assert not told
    holder.close()
    assert told == [Demand(PG1, 1, 1, 0, 2)]
    assert not budgets.of(endpoint(10)).try_take(holder)
    budgets.close()


@virtual
async def test_a_new_cap_reaches_a_router_of_one_process_and_a_gone_endpoint_is_forgotten() -> None:
    budgets = Budgets()
    budget = budgets.of(endpoint(1))
    holder = Holder(budget)
    await holder.open()
    budgets.apply([endpoint(2)])
    assert budget.try_take(holder)
    budgets.apply([])
    assert [one.endpoint for one in budgets] == [PG1], "its connections are still open"
    budget.give_back(holder)
    budget.give_back(holder)
    budgets.apply([])
    assert budgets.of(endpoint(1)) is budget, "its pool might still open one"
    budget.leave(holder)
    budgets.apply([])
    assert list(budgets) == []
    budgets.apply([endpoint(3)])
    assert [(one.endpoint, one.granted) for one in budgets] == [(PG1, 3)]
    budgets.close()


@virtual
async def test_in_a_divided_router_a_new_cap_is_the_ledgers_business() -> None:
    budgets = Budgets(divided=True)
    budget = budgets.of(endpoint(1))
    budgets.apply([endpoint(9)])
    assert budget.granted == 0
    budgets.close()
