"""Tenants that want more than an endpoint has, on real servers: who is served how much, and who waits for whom."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time
from collections.abc import AsyncIterator, Callable, Iterator

import pointsman
import pytest

from router.devcluster import DevCluster
from tests.support.dev_cluster import TENANTS, new_cluster
from tests.support.running_router import Config, RunningRouter, running_router, tenant

pytestmark = pytest.mark.pg

CAP = 10
THIRD = "initech"


@pytest.fixture(scope="module")
def lone_server() -> Iterator[DevCluster]:
    """One primary with three tenants."""
    cluster = new_cluster(replicas=0)
    try:
        cluster.create_tenant(THIRD, TENANTS["acme"])
        yield cluster
    finally:
        cluster.stop()


def of_three(pools: dict[str, Config]) -> Callable[[Config], None]:
    """Three tenants on a cap of ten; whatever their pools say besides."""

    def edit(config: Config) -> None:
        config["clusters"]["main"]["mode"] = "follow"
        for endpoint in config["clusters"]["main"]["endpoints"].values():
            endpoint["max_connections"] = CAP
        third = tenant(THIRD, tokens=["env:POINTSMAN_TEST_THIRD"])
        third["login"]["password"] = "file:acme.password"
        config["tenants"][THIRD] = third
        for name, section in config["tenants"].items():
            section["pool"] = {"max_size": CAP, **pools.get(name, {})}

    return edit


@contextlib.asynccontextmanager
async def sharing(cluster: DevCluster, **pools: Config) -> AsyncIterator[RunningRouter]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POINTSMAN_TEST_THIRD", "token-of-the-third")
        async with running_router(cluster, edit=of_three(pools)) as router:
            router.tokens[THIRD] = "token-of-the-third"
            yield router


class Load:
    """So many callers of one tenant that ask again as soon as they are answered."""

    def __init__(self, db: pointsman.Client, callers: int, sql: str, *, writes: bool = False) -> None:
        self.took_s: list[float] = []
        self._sql = sql
        self._db = db
        self._tasks = [asyncio.create_task(self._call(writes and number % 2 == 1)) for number in range(callers)]

    async def _call(self, writes: bool) -> None:
        call = self._db.execute if writes else self._db.query
        while True:
            began = time.perf_counter()
            await call(self._sql, timeout=10)
            self.took_s.append(time.perf_counter() - began)

    def begin(self) -> None:
        """Measure from here on."""
        self.took_s.clear()

    def percentile_s(self, percent: int) -> float:
        return statistics.quantiles(self.took_s, n=100)[percent - 1]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)


async def test_three_tenants_on_ten_connections_get_the_same_database_time(lone_server: DevCluster) -> None:
    async with (
        sharing(lone_server) as router,
        router.connect("acme") as acme,
        router.connect("globex") as globex,
        router.connect(THIRD) as third,
    ):
        first = Load(acme, 60, "select pg_sleep(0.02)", writes=True)
        await asyncio.sleep(0.5)
        loads = [first, Load(globex, 12, "select pg_sleep(0.02)"), Load(third, 8, "select pg_sleep(0.02)")]
        await asyncio.sleep(0.7)
        for load in loads:
            load.begin()
        await asyncio.sleep(2.0)
        served = [len(load.took_s) for load in loads]
        pools = (await router.operate("ListPools")).pools
        for load in loads:
            await load.stop()
    jain = sum(served) ** 2 / (3 * sum(count * count for count in served))
    assert jain >= 0.95, served
    assert {pool.tenant: pool.due for pool in pools}.keys() == {"acme", "globex", THIRD}
    assert sum({pool.tenant: pool.due for pool in pools}.values()) == CAP


async def test_a_crowd_of_another_tenant_is_hardly_felt(lone_server: DevCluster) -> None:
    async with (
        sharing(lone_server, globex={"floor": 6}) as router,  # five callers, and the lane that is kept for fast reads
        router.connect("acme") as acme,
        router.connect("globex") as globex,
    ):
        calm = Load(globex, 5, "select pg_sleep(0.02)")
        await asyncio.sleep(0.3)
        calm.begin()
        await asyncio.sleep(1.2)
        solo_s, solo = [calm.percentile_s(one) for one in (50, 99)], len(calm.took_s)
        crowd = Load(acme, 100, "select pg_sleep(0.05)", writes=True)
        await asyncio.sleep(0.7)
        calm.begin()
        await asyncio.sleep(1.2)
        crowded_s, crowded = [calm.percentile_s(one) for one in (50, 99)], len(calm.took_s)
        await crowd.stop()
        await calm.stop()
    figures = (solo_s, crowded_s, solo, crowded)
    # The crowd's callers take half of this machine's processors: how late the last of a hundred is says more of them.
    assert crowded_s[0] <= 1.3 * solo_s[0], figures
    assert crowded >= 0.8 * solo, figures
