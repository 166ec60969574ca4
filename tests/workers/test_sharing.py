"""Messages between the ledgers and simulated workers: whatever is lost to a death, the cap holds."""

from __future__ import annotations

import asyncio
import functools
import random
from collections import Counter
from collections.abc import Sequence

from router.decisions.connection_ledger import WorkerId
from router.engine.connection_budget import Budgets, EndpointBudget
from router.model.identity import ClusterName, EndpointName
from router.model.ledger import Demand, Grant
from router.model.policy import PoolPolicy
from router.model.topology import Cluster, Endpoint, Login, Topology
from router.workers.sharing import Sharing
from tests.engine.test_connection_budget import Busy, FakeLanePools, Holder
from tests.support.virtual_time import VirtualClock, virtual

MAIN, N1, N2 = ClusterName("main"), EndpointName("n1"), EndpointName("n2")


def _topology(**caps: int) -> Topology:
    endpoints = tuple(
        Endpoint(EndpointName(name), MAIN, "127.0.0.1", max_connections=cap) for name, cap in caps.items()
    )
    return Topology({MAIN: Cluster(MAIN, endpoints, Login("control"))}, {})


def _endpoint(cap: int) -> Endpoint:
    return Endpoint(N1, MAIN, "127.0.0.1", max_connections=cap)


class StillClock(VirtualClock):
    """Without a loop."""

    def now(self) -> float:
        return 0.0


class Workers:
    """Their ends: who obeys at once, opens what it may, and says so."""

    def __init__(self) -> None:
        self.granted: dict[tuple[WorkerId, EndpointName], Grant] = {}
        self.wants: dict[WorkerId, int] = {}
        self.sharing = Sharing(self.take, StillClock())

    def take(self, worker: WorkerId, grants: Sequence[Grant]) -> None:
        for grant in grants:
            self.granted[worker, grant.endpoint] = grant

    def report(self, worker: WorkerId) -> None:
        want = self.wants.get(worker, 0)
        self.sharing.hear(
            worker,
            [
                Demand(name, one.connections, min(want, one.connections), max(0, want - one.connections), one.number)
                for (who, name), one in list(self.granted.items())
                if who == worker
            ],
        )

    def total(self, endpoint: EndpointName) -> int:
        return sum(one.connections for (_, name), one in self.granted.items() if name == endpoint)


def test_two_workers_divide_every_cap_and_one_that_wants_gets_from_one_that_does_not() -> None:
    world = Workers()
    world.sharing.apply(_topology(n1=10, n2=4))
    one, two = WorkerId(1), WorkerId(2)
    for worker in (one, two):
        world.sharing.join(worker)
        world.report(worker)
    world.wants = {one: 9, two: 1}
    for _ in range(4):
        world.report(one)
        world.report(two)
    assert world.total(N1) == 10
    assert world.total(N2) == 4
    assert world.granted[one, N1].connections == 9


def test_a_dead_workers_part_comes_back_only_when_it_is_gone() -> None:
    world = Workers()
    world.sharing.apply(_topology(n1=6))
    one, two = WorkerId(1), WorkerId(2)
    for worker in (one, two):
        world.sharing.join(worker)
    world.wants = {one: 6, two: 6}
    for _ in range(4):
        world.report(one)
        world.report(two)
    assert [world.granted[worker, N1].connections for worker in (one, two)] == [3, 3]
    for _ in range(3):
        world.report(one)  # two is silent: what it has may still be open
    assert world.granted[one, N1].connections == 3
    del world.granted[two, N1]
    world.sharing.gone(two)
    world.report(one)
    assert world.granted[one, N1].connections == 6


def test_a_new_cap_and_a_new_endpoint_reach_everybody() -> None:
    world = Workers()
    world.sharing.apply(_topology(n1=4))
    world.sharing.join(WorkerId(1))
    world.report(WorkerId(1))
    world.sharing.apply(_topology(n1=8, n2=5))
    world.report(WorkerId(1))
    assert world.total(N1) == 8
    assert world.total(N2) == 5


def test_the_cap_holds_whoever_comes_and_goes() -> None:
    chance = random.Random(7)
    for _ in range(30):
        world, living, next_one = Workers(), set[WorkerId](), 1
        world.sharing.apply(_topology(n1=7))
        for _ in range(30):
            match chance.choice(("join", "die", "report", "report", "report", "want")):
                case "join" if len(living) < 4:
                    living.add(WorkerId(next_one))
                    world.sharing.join(WorkerId(next_one))
                    next_one += 1
                case "die" if living:
                    dead = chance.choice(sorted(living))
                    living.discard(dead)
                    world.granted.pop((dead, N1), None)
                    world.sharing.gone(dead)
                case "want" if living:
                    world.wants[chance.choice(sorted(living))] = chance.randrange(9)
                case "report" if living:
                    world.report(chance.choice(sorted(living)))
            assert world.total(N1) <= 7, world.granted


class RealWorkers:
    """Two budgets of two workers, whose messages take no time."""

    def __init__(self, cap: int) -> None:
        self.sharing = Sharing(self.tell, VirtualClock())
        self.sharing.apply(_topology(n1=cap))
        self.budgets: dict[WorkerId, Budgets] = {}
        for worker in (WorkerId(1), WorkerId(2)):
            budgets = self.budgets[worker] = Budgets(divided=True)
            budgets.of(_endpoint(cap))
            self.sharing.join(worker)
            budgets.changed = functools.partial(self.report_soon, worker)
            self.report_soon(worker)

    def tell(self, worker: WorkerId, grants: Sequence[Grant]) -> None:
        for grant in grants:
            self.budgets[worker].on_grant(grant)

    def report_soon(self, worker: WorkerId) -> None:
        asyncio.get_running_loop().call_soon(lambda: self.sharing.hear(worker, self.budgets[worker].report()))

    async def report(self) -> None:
        """As workers do now and then."""
        while True:
            await asyncio.sleep(0.5)
            for worker in self.budgets:
                self.report_soon(worker)

    def budget(self, worker: int) -> EndpointBudget:
        found = self.budgets[WorkerId(worker)].find(N1)
        assert found is not None
        return found


@virtual
async def test_a_floor_of_one_is_held_whichever_of_two_workers_its_tenant_calls() -> None:
    """It was rounded to none in each."""
    world = RealWorkers(4)
    policy = PoolPolicy(floor=1)
    crowd = [Busy(world.budget(worker), f"t{number}", callers=3) for worker in (1, 2) for number in range(2)]
    calm = {worker: Busy(world.budget(worker), "calm", callers=3, policy=policy) for worker in (1, 2)}
    for worker in (1, 2):
        own = [one for one in (*crowd, calm[worker]) if one.holder.budget is world.budget(worker)]
        times = functools.partial(lambda own: {one.holder.tenant: one.served_s for one in own}, own)
        world.budget(worker).lane_pools = FakeLanePools(times)
    running = [asyncio.create_task(one.run()) for one in crowd] + [asyncio.create_task(world.report())]
    await asyncio.sleep(2.0)
    for worker in (1, 2):
        calling = asyncio.create_task(calm[worker].run())
        await asyncio.sleep(0.5)
        seen = Counter[bool]()
        for _ in range(30):
            await asyncio.sleep(0.05)
            seen[calm[worker].working >= 1] += 1
            assert world.budget(1).in_use + world.budget(2).in_use <= 4
        assert seen == {True: 30}
        calling.cancel()
        await asyncio.wait({calling})
        calm[worker].let_go()
        await asyncio.sleep(1.0)
    for task in running:
        task.cancel()
    await asyncio.wait(running)
    for budgets in world.budgets.values():
        budgets.close()


@virtual
async def test_a_ceiling_of_one_is_served_whichever_of_two_workers_its_tenant_calls() -> None:
    """Each worker had one of its own."""
    world = RealWorkers(8)
    policy = PoolPolicy(ceiling=1)
    bound = {worker: Busy(world.budget(worker), "bound", callers=3, policy=policy) for worker in (1, 2)}
    reporting = asyncio.create_task(world.report())

    def opened() -> int:
        return world.budget(1).in_use + world.budget(2).in_use

    for worker in (1, 2, 1):
        calling = asyncio.create_task(bound[worker].run())
        await asyncio.sleep(0.1)
        assert (bound[worker].working, opened()) == (1, 1), "at once, though the other one had it"
        calling.cancel()
        await asyncio.wait({calling})
        bound[worker].let_go()
    calling_both = [asyncio.create_task(bound[worker].run()) for worker in (1, 2)]
    served = {worker: bound[worker].served_s for worker in (1, 2)}
    for _ in range(200):
        await asyncio.sleep(0.05)
        assert opened() <= 1
    gained = [bound[worker].served_s - served[worker] for worker in (1, 2)]
    assert min(gained) >= 0.35 * 10, gained
    assert sum(gained) >= 0.8 * 10, gained
    await _end(world, reporting, *calling_both)


@virtual
async def test_a_ceiling_is_all_of_one_worker_and_then_shared_with_the_other() -> None:
    """A worker had the part of it that its part of the cap was."""
    world = RealWorkers(16)
    policy = PoolPolicy(ceiling=5)
    bound = {worker: Busy(world.budget(worker), "bound", callers=9, policy=policy) for worker in (1, 2)}
    tasks = [asyncio.create_task(world.report()), asyncio.create_task(bound[1].run())]
    await asyncio.sleep(0.1)
    assert bound[1].working == 5
    tasks.append(asyncio.create_task(bound[2].run()))
    for _ in range(20):
        await asyncio.sleep(0.05)
        assert world.budget(1).in_use + world.budget(2).in_use <= 5
    assert sorted(bound[worker].working for worker in (1, 2)) == [2, 3]
    await _end(world, *tasks)


@virtual
async def test_an_endpoint_that_was_removed_and_is_added_again_is_granted_again() -> None:
    """The workers had forgotten its grants, the ledger had not, and took it that they had them."""
    world = RealWorkers(10)
    reporting = asyncio.create_task(world.report())
    await asyncio.sleep(1.0)
    assert sum(world.budget(worker).granted for worker in (1, 2)) == 10
    for budgets in world.budgets.values():
        budgets.apply([])
    world.sharing.apply(_topology())
    await asyncio.sleep(1.0)
    assert not any(list(budgets) for budgets in world.budgets.values())
    for budgets in world.budgets.values():
        budgets.apply([_endpoint(10)])
    world.sharing.apply(_topology(n1=10))
    holders = [Holder(world.budgets[WorkerId(worker)].of(_endpoint(10))) for worker in (1, 2)]
    opening = asyncio.gather(*(one.open(4) for one in holders))
    async with asyncio.timeout(1.0):
        await opening
    assert sum(world.budget(worker).granted for worker in (1, 2)) == 10
    await _end(world, reporting)


async def _end(world: RealWorkers, *tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    for budgets in world.budgets.values():
        budgets.close()
