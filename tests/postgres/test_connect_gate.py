"""A storm of first callers opens at most two connections to an endpoint at once, whoever they are; whose connects hang
does not keep its neighbours from theirs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from router.devcluster import DevCluster
from router.model.identity import ClusterName, EndpointName, Generation, TenantName
from router.model.policy import ClusterPolicy, PoolPolicy
from router.model.reasons import CloseReason
from router.model.request import Access
from router.model.topology import Cluster, Endpoint, Login, Secret, Tenant
from router.postgres.connect_gate import SLOW_S, ConnectGate
from router.postgres.endpoint_pool import PsycopgEndpointPool, PsycopgPoolFactory
from router.system import SystemChance
from tests.postgres.test_lane import make_pool, soon
from tests.support.budgets import roomy
from tests.support.builders import Recorder
from tests.support.eventually import eventually
from tests.support.virtual_time import settle, virtual

NOISY, QUIET = TenantName("noisy"), TenantName("quiet")


@pytest.mark.pg
async def test_two_connects_in_flight_per_endpoint(pg_cluster: DevCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    pools = [make_pool(pg_cluster) for _ in range(4)]
    for pool in pools[1:]:
        pool._opener.gate = pools[0]._opener.gate  # one factory gives all pools of an endpoint the same gate
    now = most = 0
    connect = psycopg.AsyncConnection.connect

    async def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.01)
        try:
            return await connect(*args, **kwargs)
        finally:
            now -= 1

    monkeypatch.setattr(psycopg.AsyncConnection, "connect", counted)
    lanes = await asyncio.gather(*(pool.open_lane(soon()) for pool in pools for _ in range(3)))
    assert len(lanes) == 12
    assert most == 2
    for lane in lanes:
        await lane.give_back()
    for pool in pools:
        await pool.close(CloseReason.SHUTDOWN)


# --- real servers: a tenant that locks its own catalogue, and a reload ---------------------------------------------


def main_cluster(pg: DevCluster, policy: ClusterPolicy | None = None) -> Cluster:
    server = pg.primary()
    endpoint = Endpoint(EndpointName(server.name), ClusterName("main"), "127.0.0.1", server.port)
    control = Login("pointsman_control", Secret(pg.control_password))
    return Cluster(ClusterName("main"), (endpoint,), control, policy=policy or ClusterPolicy())


def pool_of(factory: PsycopgPoolFactory, name: str, cluster: Cluster, access: Access) -> PsycopgEndpointPool:
    login = Login(name, Secret(f"{name}-secret"))
    owner = Tenant(TenantName(name), cluster.name, name, login, pool=PoolPolicy(max_size=8))
    return factory.make(owner, cluster, cluster.endpoints[0], access, Generation(1))


@pytest.mark.pg
async def test_a_tenant_that_locks_its_own_catalogue_keeps_nobody_else_from_connecting(pg_cluster: DevCluster) -> None:
    factory, cluster = PsycopgPoolFactory(SystemChance(), Recorder(), roomy), main_cluster(pg_cluster)
    noisy = [pool_of(factory, "acme", cluster, access) for access in (Access.READ_WRITE, Access.READ_ONLY)]
    quiet = pool_of(factory, "globex", cluster, Access.READ_WRITE)
    loop = asyncio.get_running_loop()
    with psycopg.connect(pg_cluster.primary().superuser_dsn, dbname="acme") as holder:
        holder.execute("lock table pg_class in access exclusive mode")
        hanging = [asyncio.create_task(pool.open_lane(soon())) for pool in noisy]
        await eventually(lambda: quiet._opener.gate.counted == 2, within_s=0.4, what="both in their connects")
        began = loop.time()
        lane = await quiet.open_lane(soon())
        took = loop.time() - began
        assert not any(one.done() for one in hanging)
        holder.rollback()
        for one in await asyncio.gather(*hanging, return_exceptions=True):
            if not isinstance(one, BaseException):
                await one.give_back()
    await lane.give_back()
    for pool in (*noisy, quiet):
        await pool.close(CloseReason.SHUTDOWN)
    assert took < 1.0


@pytest.mark.pg
async def test_what_bounds_connects_is_in_force_at_once_after_a_reload(
    pg_cluster: DevCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    factory, cluster = PsycopgPoolFactory(SystemChance(), Recorder(), roomy), main_cluster(pg_cluster)
    timeouts: list[int] = []
    may_go_on = asyncio.Event()
    connect = psycopg.AsyncConnection.connect

    async def held(*args: Any, **kwargs: Any) -> Any:
        timeouts.append(kwargs["connect_timeout"])
        await may_go_on.wait()
        return await connect(*args, **kwargs)

    monkeypatch.setattr(psycopg.AsyncConnection, "connect", held)
    each = [(name, access) for name in ("acme", "globex") for access in Access] * 2
    pools = [pool_of(factory, name, cluster, access) for name, access in each]
    opening = [asyncio.create_task(one.open_lane(soon())) for one in pools]
    gate = pools[0]._opener.gate
    try:
        await eventually(lambda: (len(timeouts), len(gate._line)) == (2, 6), within_s=0.4, what="two are in")
        assert timeouts == [3, 3]
        policy = replace(cluster.policy, connects_in_flight=8, connect_timeout_s=7.0)
        factory.apply([replace(cluster, policy=policy)])
        assert (gate.counted, gate._line) == (8, {})
        await eventually(lambda: timeouts == [3, 3, *[7] * 6], within_s=1.0, what="eight are in")
        assert {one._opener.gate.timeout_s for one in pools} == {7.0}  # within which a connection proves itself
    finally:
        may_go_on.set()
        for lane in await asyncio.gather(*opening):
            await lane.give_back()
        for one in pools:
            await one.close(CloseReason.SHUTDOWN)


# --- the gate by itself, on virtual time ---------------------------------------------------------------------------


class Crowd:
    """Connects through one gate, of which the test says how long they take."""

    def __init__(self, **policy: Any) -> None:
        self.gate = ConnectGate(ClusterPolicy(**policy))
        self.began: list[tuple[str, float]] = []
        self._start = asyncio.get_running_loop().time()

    def connect(self, tenant: TenantName, takes_s: float) -> asyncio.Task[None]:
        return asyncio.create_task(self._connect(tenant, takes_s))

    async def _connect(self, tenant: TenantName, takes_s: float) -> None:
        async with self.gate.place(tenant):
            self.began.append((tenant, round(asyncio.get_running_loop().time() - self._start, 3)))
            await asyncio.sleep(takes_s)


async def all_of(tasks: list[asyncio.Task[None]]) -> None:
    waited: Awaitable[Any] = asyncio.gather(*tasks, return_exceptions=True)
    await waited


@virtual
async def test_a_connect_that_hangs_gives_its_place_back_after_a_while() -> None:
    crowd = Crowd()
    tasks = [crowd.connect(NOISY, 3.0), crowd.connect(NOISY, 3.0), crowd.connect(QUIET, 0.01)]
    await all_of(tasks)
    assert crowd.began == [("noisy", 0.0), ("noisy", 0.0), ("quiet", SLOW_S)]
    assert (crowd.gate.counted, dict(crowd.gate.under_way), crowd.gate.slow) == (0, {}, {"noisy"})


@virtual
async def test_while_others_wait_a_tenant_has_one_place() -> None:
    crowd = Crowd()
    tasks = [crowd.connect(NOISY, 0.1) for _ in range(4)]
    await settle()
    tasks += [crowd.connect(QUIET, 0.1) for _ in range(4)]
    await all_of(tasks)
    assert [tenant for tenant, _ in crowd.began] == ["noisy", "noisy", *["quiet", "noisy"] * 2, "quiet", "quiet"]


@virtual
async def test_whose_connects_hang_goes_behind_others_until_one_does_not() -> None:
    crowd = Crowd(connects_in_flight=1)
    await all_of([crowd.connect(NOISY, 3.0)])
    tasks = [crowd.connect(QUIET, 0.1), crowd.connect(NOISY, 0.2), crowd.connect(QUIET, 0.1), crowd.connect(QUIET, 0.1)]
    await all_of(tasks)
    assert [tenant for tenant, _ in crowd.began[1:]] == ["quiet", "quiet", "quiet", "noisy"]
    assert not crowd.gate.slow


@virtual
async def test_no_place_is_lost_to_who_is_cancelled() -> None:
    crowd = Crowd(connects_in_flight=1)
    async with crowd.gate.place(NOISY):
        second, third = crowd.connect(QUIET, 0.1), crowd.connect(QUIET, 0.1)
        await settle()
        third.cancel()
        await settle()
    second.cancel()  # it has just been let in, and does not know yet
    await all_of([second, third])
    assert (crowd.gate.counted, dict(crowd.gate.under_way), crowd.began) == (0, {}, [])
    await all_of([crowd.connect(QUIET, 0.1)])
    assert len(crowd.began) == 1
