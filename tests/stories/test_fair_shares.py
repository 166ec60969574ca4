"""Tenants that want more than an endpoint has, on real servers: who is served how much, and who waits for whom."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pointsman
import pytest

from router.devcluster import DevCluster, Server
from tests.support.backends import counted
from tests.support.dev_cluster import TENANTS, new_cluster
from tests.support.running_router import Config, RunningRouter, started_router, tenant

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


def of_three(pools: dict[str, Config], cap: int = CAP) -> Callable[[Config], None]:
    """Three tenants on one cap; whatever their pools say besides."""

    def edit(config: Config) -> None:
        config["clusters"]["main"]["mode"] = "follow"
        for endpoint in config["clusters"]["main"]["endpoints"].values():
            endpoint["max_connections"] = cap
        third = tenant(THIRD, tokens=["env:POINTSMAN_TEST_THIRD"])
        third["login"]["password"] = "file:acme.password"
        config["tenants"][THIRD] = third
        for name, section in config["tenants"].items():
            section["pool"] = {"max_size": cap, **pools.get(name, {})}

    return edit


@contextlib.contextmanager
def sharing(cluster: DevCluster, edit: Callable[[Config], None]) -> Iterator[RunningRouter]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POINTSMAN_TEST_THIRD", "token-of-the-third")
        with started_router(cluster, edit=edit) as router:
            router.tokens[THIRD] = "token-of-the-third"
            yield router


@pytest.fixture(scope="module")
def equals(lone_server: DevCluster) -> Iterator[RunningRouter]:
    """Three tenants with the same share."""
    with sharing(lone_server, of_three({})) as router:
        yield router


@pytest.fixture(scope="module")
def unequals(lone_server: DevCluster) -> Iterator[RunningRouter]:
    """One has a floor for five callers, and the lane that is kept for fast reads; one has two connections."""

    def edit(config: Config) -> None:
        of_three({"globex": {"floor": 6}, THIRD: {"max_size": 2}})(config)
        config["tenants"][THIRD]["limits"] = {"max_in_flight": 4}

    with sharing(lone_server, edit) as router:
        yield router


@pytest.fixture(scope="module")
def workers(lone_server: DevCluster) -> Iterator[RunningRouter]:
    """Two workers, and a tenant with a floor of one connection over both."""

    def edit(config: Config) -> None:
        of_three({"globex": {"floor": 1}}, cap=4)(config)
        config["server"]["workers"] = 2

    with sharing(lone_server, edit) as router:
        yield router


@pytest.fixture(scope="module")
def bounded(lone_server: DevCluster) -> Iterator[RunningRouter]:
    """Two workers, and a tenant with a ceiling of one connection."""

    def edit(config: Config) -> None:
        of_three({THIRD: {"ceiling": 1}})(config)
        config["server"]["workers"] = 2

    with sharing(lone_server, edit) as router:
        yield router


class Load:
    """So many callers of one tenant that ask again as soon as they are answered."""

    def __init__(self, db: pointsman.Client, callers: int, sql: str, *, writes: int = 0) -> None:
        """writes: every so many-th caller sends it as a write."""
        self.took_s: list[float] = []
        self._sql = sql
        self._db = db
        chosen = [writes > 0 and number % writes == 0 for number in range(callers)]
        self._tasks = [asyncio.create_task(self._call(one)) for one in chosen]

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


async def test_three_tenants_on_ten_connections_get_the_same_database_time(equals: RunningRouter) -> None:
    async with equals.connect("acme") as acme, equals.connect("globex") as globex, equals.connect(THIRD) as third:
        first = Load(acme, 60, "select pg_sleep(0.02)", writes=2)
        await asyncio.sleep(0.3)
        loads = [first, Load(globex, 12, "select pg_sleep(0.02)"), Load(third, 8, "select pg_sleep(0.02)")]
        await asyncio.sleep(0.6)
        for load in loads:
            load.begin()
        await asyncio.sleep(1.8)
        served = [len(load.took_s) for load in loads]
        pools = (await equals.operate("ListPools")).pools
        for load in loads:
            await load.stop()
    jain = sum(served) ** 2 / (3 * sum(count * count for count in served))
    assert jain >= 0.95, served
    assert {pool.tenant: pool.due for pool in pools}.keys() == {"acme", "globex", THIRD}
    assert sum({pool.tenant: pool.due for pool in pools}.values()) == CAP


async def test_a_crowd_of_another_tenant_is_hardly_felt(unequals: RunningRouter) -> None:
    async with unequals.connect("acme") as acme, unequals.connect("globex") as globex:
        calm = Load(globex, 5, "select pg_sleep(0.02)")
        await asyncio.sleep(0.2)
        calm.begin()
        await asyncio.sleep(0.8)
        solo_s, solo = [calm.percentile_s(one) for one in (50, 99)], len(calm.took_s)
        crowd = Load(acme, 100, "select pg_sleep(0.05)", writes=2)
        await asyncio.sleep(0.5)
        calm.begin()
        await asyncio.sleep(0.8)
        crowded_s, crowded = [calm.percentile_s(one) for one in (50, 99)], len(calm.took_s)
        await crowd.stop()
        await calm.stop()
    figures = (solo_s, crowded_s, solo, crowded)
    # The crowd's callers take half of this machine's processors: how late the last of a hundred is says more of them.
    assert crowded_s[0] <= 1.3 * solo_s[0], figures
    assert crowded >= 0.8 * solo, figures


async def test_a_floor_of_one_is_held_over_two_workers(workers: RunningRouter) -> None:
    """A caller that pauses longer than lent connections may be unused still finds the connection that it had: in each
    worker half of the floor had been rounded to none."""
    async with contextlib.AsyncExitStack() as stack:
        calm = await stack.enter_async_context(workers.connect("globex"))
        crowd = []
        for name in ("acme", THIRD) * 4:  # each client has a connection of its own, to one of the workers
            db = await stack.enter_async_context(workers.connect(name))
            crowd.append(Load(db, 8, "select pg_sleep(0.05)"))
        await asyncio.sleep(0.5)
        await calm.query("select 1", timeout=10)
        await asyncio.sleep(0.5)
        sessions = []
        for _ in range(6):
            sessions.append(await calm.query_value("select pg_backend_pid()", timeout=10))
            await asyncio.sleep(0.4)
        for load in crowd:
            await load.stop()
    assert len(set(sessions)) == 1, sessions


async def test_a_ceiling_of_one_over_two_workers_is_one_and_serves_callers_of_both(
    bounded: RunningRouter, lone_server: DevCluster
) -> None:
    """Each worker had one of its own."""
    server = lone_server.primary()
    await asyncio.to_thread(end_sessions, server)
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(bounded.connect(THIRD)) for _ in range(8)]
        of_third = f"select count(*) from pg_stat_activity where usename = '{THIRD}' and %s::text[] is not null"
        seen = await stack.enter_async_context(counted(server, of_third))
        for one in clients:  # each has a connection of its own, to one of the workers
            await one.execute("select 1", timeout=4)
        loads = [Load(one, 2, "select pg_sleep(0.01)") for one in clients]
        await asyncio.sleep(3.0)
        served = [len(load.took_s) for load in loads]
        for load in loads:
            await load.stop()
    assert max(seen) == 1
    assert min(served) > 0, served


def end_sessions(server: Server) -> None:
    """Whatever tenants have open, also through the other router: what is counted then is one router's."""
    with server.connect() as connection:
        ended = "select count(pg_terminate_backend(pid, 5000)) from pg_stat_activity where usename = any(%s)"
        connection.execute(ended, [[*TENANTS, THIRD]])


async def test_streams_opened_at_once_all_end_and_never_pass_the_cap(
    equals: RunningRouter, lone_server: DevCluster
) -> None:
    async def read(db: pointsman.Client) -> int:
        return len([row async for row in db.stream("select generate_series(1, 50)", timeout=30)])

    server = lone_server.primary()
    await asyncio.to_thread(end_sessions, server)
    async with equals.connect("acme") as acme, equals.connect("globex") as globex, counted(server) as seen:
        rows = await asyncio.gather(*(read((acme, globex)[number % 2]) for number in range(150)))
    assert rows == [50] * 150
    assert max(seen) <= CAP


async def test_an_overloaded_tenant_is_served_at_capacity(unequals: RunningRouter) -> None:
    """Two connections, statements of 50 ms, callers that can wait for half a second, and ten times too many of them."""
    async with unequals.connect(THIRD) as db:
        closed = Load(db, 4, "select pg_sleep(0.05)", writes=1)
        await asyncio.sleep(0.2)
        closed.begin()
        began = time.perf_counter()
        await asyncio.sleep(1.0)
        capacity = len(closed.took_s) / (time.perf_counter() - began)
        await closed.stop()
        served, refused_s, others = await offered(db, capacity * 10, 2.5)
    goodput = sum(1 for at in served if 1.0 <= at < 2.5) / 1.5
    figures = f"capacity {capacity:.1f}/s, goodput {goodput}/s, {len(refused_s)} refused (median "
    figures += f"{statistics.median(refused_s) * 1e3:.1f} ms), others {others}"
    assert goodput >= 0.9 * capacity, figures
    assert statistics.median(refused_s) < 0.01, figures


async def offered(
    db: pointsman.Client, per_s: float, seconds: float
) -> tuple[list[float], list[float], Counter[str]]:
    """Open loop: when calls were served, how long refusals took, and what else there was."""
    served: list[float] = []
    refused_s: list[float] = []
    others: Counter[str] = Counter()
    start = time.perf_counter()

    async def call() -> None:
        began = time.perf_counter()
        try:
            await db.execute("select pg_sleep(0.05)", timeout=0.5)
            served.append(time.perf_counter() - start)
        except pointsman.Error as error:
            if error.reason == "HOPELESS_DEADLINE":
                refused_s.append(time.perf_counter() - began)
            else:
                others[error.reason] += 1

    async with asyncio.TaskGroup() as group:
        sent = 0
        while (at := time.perf_counter() - start) < seconds:
            for _ in range(int(at * per_s) - sent):
                group.create_task(call())
                sent += 1
            await asyncio.sleep(0.002)
    return served, refused_s, others
