"""The cap of an endpoint, as PostgreSQL itself counts it: never passed, and no permit is ever lost."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import pytest

from router.devcluster import DevCluster
from router.devcluster.server import free_port
from router.engine.connection_budget import Budgets, EndpointBudget
from router.engine.directory import Directory
from router.engine.endpoints import Pools
from router.engine.lane_pool import LanePool
from router.engine.running import Runs
from router.model.identity import ClusterName, EndpointName, Generation, TenantName
from router.model.ledger import Grant
from router.model.observation import AttemptFailed, FaultKind
from router.model.policy import PoolPolicy
from router.model.reasons import CloseReason
from router.model.request import Access, Statement
from router.model.topology import Cluster, Endpoint, Login, Secret, Tenant, Topology
from router.postgres.endpoint_pool import PsycopgEndpointPool, PsycopgPoolFactory
from router.system import SystemChance, SystemClock
from tests.contracts.promises import run_on, submit
from tests.engine.test_connection_budget import Holder
from tests.support.backends import OF_TENANTS, counted
from tests.support.builders import Recorder
from tests.support.dev_cluster import TENANTS
from tests.support.eventually import eventually
from tests.support.lane_world import free_runs

pytestmark = pytest.mark.pg

CAP = 5
MAIN = ClusterName("main")


def soon(seconds: float = 5.0) -> float:
    return asyncio.get_running_loop().time() + seconds


class World:
    """Tenants' pools on one endpoint with a cap of 5."""

    def __init__(self, pg: DevCluster) -> None:
        self.server = pg.primary()
        self.budgets = Budgets()
        self.factory = PsycopgPoolFactory(SystemChance(), Recorder(), self.budgets.of)
        self.endpoint = Endpoint(
            EndpointName(self.server.name), MAIN, "127.0.0.1", self.server.port, max_connections=CAP
        )
        self.cluster = Cluster(MAIN, (self.endpoint,), Login("pointsman_control", Secret(pg.control_password)))
        self.pools: list[PsycopgEndpointPool] = []
        self.query = OF_TENANTS

    @property
    def budget(self) -> EndpointBudget:
        return self.budgets.of(self.endpoint)

    def tenant(self, name: str, **policy: object) -> Tenant:
        pool = PoolPolicy(**{"max_size": CAP, **policy})  # type: ignore[arg-type]
        return Tenant(TenantName(name), MAIN, name, Login(name, Secret(TENANTS[name])), pool=pool)

    def pool(self, name: str, access: Access = Access.READ_WRITE, **policy: object) -> PsycopgEndpointPool:
        pool = self.factory.make(self.tenant(name, **policy), self.cluster, self.endpoint, access, Generation(1))
        self.pools.append(pool)
        return pool

    async def begin(self) -> None:
        """The server is shared: what others have opened there before is not counted."""
        with self.server.connect() as connection:
            row = connection.execute("select clock_timestamp()::text").fetchone()
        assert row is not None
        self.query = f"{OF_TENANTS} and backend_start > '{row[0]}'"

    def backends(self) -> int:
        """As the server counts them. Blocks."""
        with self.server.connect() as connection:
            row = connection.execute(self.query, [list(TENANTS)]).fetchone()
        assert row is not None
        return int(row[0])

    def counted(self) -> contextlib.AbstractAsyncContextManager[list[int]]:
        """Numbers of backends, as often as can be asked."""
        return counted(self.server, self.query, pause_s=0)

    async def close(self) -> None:
        for pool in self.pools:
            await pool.close(CloseReason.SHUTDOWN)
        await eventually(lambda: self.budget.in_use == 0, within_s=10, what="what is free again")
        await eventually(lambda: self.backends() == 0, within_s=10, what="what is free again")
        assert self.budget.waiting == 0
        self.budgets.close()


@pytest.fixture
async def world(pg_cluster: DevCluster) -> AsyncIterator[World]:
    made = World(pg_cluster)
    await made.begin()
    yield made
    await made.close()


async def use(pool: PsycopgEndpointPool, sql: str, deadline_s: float = 10.0) -> None:
    lane = await pool.open_lane(soon(deadline_s))
    try:
        assert (await run_on(lane, sql)).fault is None
    finally:
        await lane.give_back()


async def test_two_tenants_under_load_never_pass_the_cap_and_both_are_served(world: World) -> None:
    pools = [world.pool("acme"), world.pool("globex"), world.pool("globex", Access.READ_ONLY)]
    served = [0, 0, 0]
    until = soon(2.0)

    async def load(number: int) -> None:
        while soon(0) < until:
            await use(pools[number], "select pg_sleep(0.002)")
            served[number] += 1

    async with world.counted() as seen:
        await asyncio.gather(*(load(number) for number in (0, 1, 2) for _ in range(6)))
    assert len(seen) > 20
    assert max(seen) <= CAP, "PostgreSQL saw more connections than the cap allows"
    assert max(seen) == CAP
    assert min(served) * 5 >= max(served), served


async def test_lanes_that_never_rest_are_shared_out(world: World) -> None:
    """As the engine uses them: a lane is kept as long as there is work for it."""
    clock = SystemClock()
    served = {"acme": 0, "globex": 0}
    tenants = {name: world.tenant(name) for name in served}
    directory = Directory(Topology({}, {one.name: one for one in tenants.values()}))
    ways = (Recorder(), Runs(clock, SystemChance()), directory)
    pools = Pools(world.factory, clock, lambda _: world.cluster, *ways)
    world.budgets.serve_lanes(pools)
    until = soon(2.0)

    async def load(name: str) -> None:
        while soon(0) < until:
            pool = pools.get(tenants[name], world.endpoint.name, Access.READ_WRITE, Generation(1))
            slot = await pool.pin(soon())
            await pool.run_pinned(slot, [Statement(b"select pg_sleep(0.002)")], soon(), commits=False)
            pool.release(slot)
            served[name] += 1

    try:
        async with world.counted() as seen:
            first = [asyncio.create_task(load("acme")) for _ in range(6)]
            await asyncio.sleep(0.3)  # acme has all five, and always work for them
            await asyncio.gather(*first, *(load("globex") for _ in range(6)))
    finally:
        await pools.close()
    assert max(seen) == CAP
    assert min(served.values()) * 4 >= max(served.values()), served


async def test_what_an_idle_tenant_has_open_is_had_by_another_at_once(world: World) -> None:
    acme, globex = world.pool("acme", min_size=0), world.pool("globex", min_size=0)
    for lane in [await acme.open_lane(soon()) for _ in range(CAP)]:
        await lane.give_back()
    assert acme.statistics().idle == CAP
    before = soon(0)
    lanes = [await globex.open_lane(soon()) for _ in range(4)]
    assert soon(0) - before < 1.0
    assert (globex.statistics().leased, acme.statistics().idle, world.budget.in_use) == (4, 1, CAP)
    for lane in lanes:
        await lane.give_back()
    await use(acme, "select 1")
    assert acme.statistics().idle == 1, "its last one was kept"


async def test_min_size_is_kept(world: World) -> None:
    acme, globex = world.pool("acme", min_size=2), world.pool("globex")
    for lane in [await acme.open_lane(soon()) for _ in range(CAP)]:
        await lane.give_back()
    lanes = [await globex.open_lane(soon()) for _ in range(3)]
    with pytest.raises(AttemptFailed) as failed:
        await globex.open_lane(soon(0.3))
    assert failed.value.fault.kind is FaultKind.POOL_TIMEOUT
    assert "5 of 5" in failed.value.fault.message
    await asyncio.sleep(0)
    assert (world.budget.waiting, acme.statistics().idle) == (0, 2)
    for lane in lanes:
        await lane.give_back()


async def test_whose_time_has_passed_leaves_the_line_to_those_of_its_pool_who_wait_on(world: World) -> None:
    acme = world.pool("acme")
    lanes = [await acme.open_lane(soon()) for _ in range(CAP)]
    policy = PoolPolicy(max_size=CAP, acquire_timeout_s=0.4)
    globex = LanePool(world.pool("globex"), policy, SystemClock(), free_runs(policy, SystemClock()))
    order: list[str] = []

    async def wait(what: str, work: Awaitable[Any]) -> Any:
        done = await work
        order.append(what)
        return done

    first = asyncio.create_task(globex.pin(soon()))
    await asyncio.sleep(0.3)
    second = asyncio.create_task(wait("second", globex.pin(soon())))
    other = Holder(world.budget, tenant="other")
    third = asyncio.create_task(wait("third", other.open()))
    with pytest.raises(AttemptFailed) as failed:
        await first
    assert failed.value.fault.kind is FaultKind.POOL_TIMEOUT
    assert "cap" in failed.value.fault.message
    await asyncio.sleep(0.1)
    await lanes.pop().give_back()
    await asyncio.wait({second, third}, return_when=asyncio.FIRST_COMPLETED)
    await asyncio.sleep(0)
    assert order == ["second"]
    for lane in lanes:
        await lane.give_back()
    await third
    other.close()
    globex.release(await second)
    await globex.close(CloseReason.SHUTDOWN)


async def test_killed_backends_give_their_permits_back(world: World) -> None:
    acme, globex = world.pool("acme"), world.pool("globex")
    idle, *lanes = [await acme.open_lane(soon()) for _ in range(CAP)]
    await idle.give_back()
    with world.server.connect() as connection:
        connection.execute("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'acme'")
    await eventually(lambda: not any(lane.usable for lane in lanes), within_s=2, what="what is free again")
    async with asyncio.timeout(2):
        for lane in [await globex.open_lane(soon()) for _ in range(CAP)]:
            await lane.give_back()
    await use(acme, "select 1")


async def test_an_abandoned_connection_counts_until_its_backend_is_gone(world: World) -> None:
    acme, globex = world.pool("acme"), world.pool("globex")
    lanes = [await acme.open_lane(soon()) for _ in range(CAP)]
    running = submit(lanes[0], "select pg_sleep(30)")
    await asyncio.sleep(0.05)
    async with world.counted() as seen:
        lanes[0].abandon(CloseReason.ABANDONED)
        await running
        lane = await globex.open_lane(soon())
    assert max(seen) == CAP
    for one in (lane, *lanes[1:]):
        await one.give_back()


async def test_a_backend_that_is_slow_to_end_counts_until_then(world: World) -> None:
    """One that does not look at its socket, as in a COMMIT that waits for a standby which is away."""
    acme, globex = world.pool("acme"), world.pool("globex")
    lanes = [await acme.open_lane(soon()) for _ in range(CAP)]
    for one in lanes:
        assert (await run_on(one, "select set_config('client_connection_check_interval', '0', false)")).fault is None
    running = [submit(one, "select pg_sleep(3)") for one in lanes[1:]]
    await asyncio.sleep(0.05)
    async with world.counted() as seen:
        for one in lanes[1:]:
            one.abandon(CloseReason.ABANDONED)
        await asyncio.gather(*running)
        with pytest.raises(AttemptFailed, match="5 of 5"):
            await globex.open_lane(soon(2.0))
        more = [await globex.open_lane(soon()) for _ in range(CAP - 1)]
    assert max(seen) == CAP
    for one in (lanes[0], *more):
        await one.give_back()


async def test_a_backend_that_is_slow_to_end_is_not_waited_for_once_the_server_is_gone(world: World) -> None:
    acme = world.pool("acme")
    lane = await acme.open_lane(soon())
    assert (await run_on(lane, "select set_config('client_connection_check_interval', '0', false)")).fault is None
    running = submit(lane, "select pg_sleep(5)")
    await asyncio.sleep(0.05)
    lane.abandon(CloseReason.ABANDONED)
    await running
    await acme.close(CloseReason.SHUTDOWN)
    await asyncio.sleep(2)
    assert world.budget.in_use == 1
    world.budget.gone = True
    await eventually(lambda: world.budget.in_use == 0, within_s=0.5, what="the permit")


async def test_rows_that_come_after_the_end_are_no_end_of_the_server(world: World) -> None:
    """The router's own machine answered them with a reset, and the permit came back while the backend went on."""
    acme, globex = world.pool("acme"), world.pool("globex")
    lanes = [await acme.open_lane(soon()) for _ in range(CAP)]
    # More than the 8 KiB that PostgreSQL collects: it sends once for each row.
    running = [submit(one, "select pg_sleep(0.5), repeat('x', 9000) from generate_series(1, 100)") for one in lanes]
    await asyncio.sleep(0.3)
    async with world.counted() as seen:
        for one in lanes:
            one.abandon(CloseReason.ABANDONED)
        await asyncio.gather(*running)
        lanes = [await globex.open_lane(soon()) for _ in range(CAP)]
    assert max(seen) == CAP
    for one in lanes:
        await one.give_back()


async def test_an_end_behind_rows_that_nobody_takes_is_found(world: World) -> None:
    """A backend whose rows have no room ends when it looks at its socket; its end stands behind them."""
    acme = world.pool("acme")
    lane = await acme.open_lane(soon())
    lane._detach()  # nobody reads
    pgconn = lane.connection.pgconn
    pgconn.send_query_params(b"select repeat('x', 1000) from generate_series(1, 1000000)", None)
    pgconn.pipeline_sync()
    pgconn.flush()
    await asyncio.sleep(0.5)
    lane.abandon(CloseReason.ABANDONED)
    await acme.close(CloseReason.SHUTDOWN)
    await eventually(lambda: world.budget.in_use == 0, within_s=4, what="the permit")
    assert world.backends() == 0


async def test_connections_at_the_end_of_their_life_are_replaced_under_the_cap(world: World) -> None:
    acme, globex = world.pool("acme", lifetime_s=0.2), world.pool("globex", lifetime_s=0.2)
    until = soon(1.5)

    async def load(pool: PsycopgEndpointPool) -> None:
        while soon(0) < until:
            await use(pool, "select 1")
            await asyncio.sleep(0.001)

    async with world.counted() as seen:
        await asyncio.gather(*(load(pool) for pool in (acme, globex) for _ in range(4)))
    assert max(seen) <= CAP


async def test_a_connection_on_which_an_answer_is_owed_is_replaced(world: World) -> None:
    acme = world.pool("acme")
    lane = await acme.open_lane(soon())
    pgconn = lane.connection.pgconn
    await lane.give_back()
    pgconn.send_query(b"select 1")
    other = await acme.open_lane(soon())
    assert other.connection.pgconn is not pgconn
    await other.give_back()
    await use(acme, "select 1")


@pytest.mark.parametrize("turns", range(8))
async def test_given_a_connection_cancelled_and_fenced_in_one_moment(world: World, turns: int) -> None:
    """turns: of the event loop, between the cancellation of who was given the connection and the fence."""
    acme = world.pool("acme", max_size=1)
    lane = await acme.open_lane(soon())
    waiting = asyncio.create_task(acme.open_lane(soon()))
    await asyncio.sleep(0.002)
    giving = asyncio.ensure_future(lane.give_back())
    waiting.cancel()
    for _ in range(turns):
        await asyncio.sleep(0)
    acme.fence(Generation(2))
    await asyncio.gather(giving, waiting, return_exceptions=True)
    await eventually(lambda: world.budget.in_use == 0, within_s=3, what="what is free again")


async def test_fences_and_abandons_at_any_time_lose_no_permit(world: World) -> None:
    draw = random.Random(7)
    pools = [world.pool("acme"), world.pool("globex", min_size=1)]
    until = soon(1.5)

    async def load(pool: PsycopgEndpointPool) -> None:
        while soon(0) < until:
            with contextlib.suppress(AttemptFailed):
                lane = await pool.open_lane(soon(0.2))
                done = submit(lane, "select pg_sleep(0.003)")
                if draw.random() < 0.2:
                    await asyncio.sleep(draw.random() * 0.004)
                    lane.abandon(CloseReason.ABANDONED)
                await done
                await lane.give_back(tainted=draw.random() < 0.2)

    async def fence() -> None:
        generation = 1
        while soon(0) < until:
            await asyncio.sleep(draw.random() * 0.1)
            generation += 1
            draw.choice(pools).fence(Generation(generation))

    async with world.counted() as seen:
        await asyncio.gather(fence(), *(load(pool) for pool in pools for _ in range(5)))
    assert max(seen) <= CAP


async def test_cancelling_borrowers_at_any_time_loses_no_permit(world: World) -> None:
    draw = random.Random(11)
    acme, globex = world.pool("acme"), world.pool("globex")
    for _ in range(150):
        tasks = [asyncio.create_task(use(draw.choice((acme, globex)), "select 1")) for _ in range(8)]
        await asyncio.sleep(draw.random() * 0.006)
        for task in tasks:
            if draw.random() < 0.7:
                task.cancel()
        await asyncio.wait(tasks)
        assert world.budget.in_use <= CAP
    for pool in (acme, globex):  # nothing is left in anybody's way
        async with asyncio.timeout(3):
            for lane in [await pool.open_lane(soon()) for _ in range(CAP)]:
                await lane.give_back()


async def test_a_server_that_takes_no_connection_costs_no_permit(world: World) -> None:
    real, world.endpoint = world.endpoint, Endpoint(
        world.endpoint.name, MAIN, "127.0.0.1", free_port(), max_connections=CAP
    )
    closed = world.pool("acme", min_size=2)
    world.endpoint = real
    for _ in range(5):
        before = soon(0)
        with pytest.raises(AttemptFailed) as failed:
            await closed.open_lane(soon())
        assert failed.value.fault.kind is FaultKind.CONNECT_REFUSED
        assert soon(0) - before < 1
    await eventually(lambda: world.budget.in_use == 0, within_s=2, what="what is free again")


async def test_a_lowered_grant_is_met_at_once_by_what_is_idle_and_soon_by_what_is_busy(world: World) -> None:
    acme = world.pool("acme", min_size=2)
    lanes = [await acme.open_lane(soon()) for _ in range(CAP)]
    for lane in lanes[2:]:
        await lane.give_back()
    world.budgets.on_grant(Grant(world.endpoint.name, 1, 1))
    await eventually(lambda: world.budget.in_use == 2, within_s=1, what="what is free again")
    await eventually(lambda: not all(lane.usable for lane in lanes[:2]), within_s=1, what="what is free again")
    for lane in lanes[:2]:
        await lane.give_back()
    await eventually(lambda: world.budget.in_use == 1, within_s=1, what="what is free again")
    world.budgets.on_grant(Grant(world.endpoint.name, CAP, 2))
    for lane in [await acme.open_lane(soon()) for _ in range(CAP)]:
        await lane.give_back()
