"""Failover stories: a real primary with replicas, a router as its own process, callers through the SDK."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Awaitable, Callable

import pointsman
import psycopg
import pytest

from router.devcluster import DevCluster
from tests.support.running_router import RunningRouter, running_router

pytestmark = [pytest.mark.pg, pytest.mark.chaos]


class Load:
    """Callers in a closed loop at a total rate; every answer is counted, the longest gap between writes measured."""

    def __init__(self, db: pointsman.Client) -> None:
        self.db = db
        self.outcomes: Counter[str] = Counter()
        self.acknowledged: list[int] = []
        self.unknown: list[int] = []
        self.write_times: list[float] = []
        self.errors: list[BaseException] = []
        self._next = 0
        self._stopping = False

    async def setup(self) -> None:
        await self.db.execute("create table if not exists ledger (id int primary key, kind text)")

    async def read(self) -> None:
        await self.db.query("select count(*) from accounts", read="any", timeout=10)
        self.outcomes["read"] += 1

    async def strong_read(self) -> None:
        await self.db.query("select max(id) from ledger", timeout=10)
        self.outcomes["strong read"] += 1

    async def batch(self) -> None:
        number = self._take()
        sql = "insert into ledger values ($1, 'batch')"
        try:
            await self.db.batch([(sql, [number]), "select 1"], timeout=10)
        except pointsman.OutcomeUnknown:
            self.unknown.append(number)
            self.outcomes["batch unknown"] += 1
            return
        self._acknowledge(number, "batch")

    async def write(self) -> None:
        number = self._take()
        try:
            await self.db.execute("insert into ledger values ($1, 'write')", number, timeout=10)
        except pointsman.OutcomeUnknown:
            self.unknown.append(number)
            self.outcomes["write unknown"] += 1
            return
        self._acknowledge(number, "write")

    def _take(self) -> int:
        self._next += 1
        return self._next

    def _acknowledge(self, number: int, kind: str) -> None:
        self.acknowledged.append(number)
        self.write_times.append(time.monotonic())
        self.outcomes[kind] += 1

    async def _loop(self, act: Callable[[], Awaitable[None]], rate: float) -> None:
        while not self._stopping:
            began = time.monotonic()
            try:
                await act()
            except Exception as error:
                self.errors.append(error)
            await asyncio.sleep(max(0.0, 1 / rate - (time.monotonic() - began)))

    async def run(self, seconds: float, event: Callable[[], Awaitable[None]], before: float = 1.0) -> None:
        """200 requests a second for a while, with an event in between."""
        acts = [self.read] * 6 + [self.strong_read] * 2 + [self.batch] * 8 + [self.write] * 4
        callers = [asyncio.create_task(self._loop(act, 10)) for act in acts]
        await asyncio.sleep(before)
        await event()
        await asyncio.sleep(seconds - before)
        self._stopping = True
        await asyncio.gather(*callers)

    def longest_write_gap(self) -> float:
        times = sorted(self.write_times)
        return max(after - before for before, after in itertools.pairwise(times))


def ledger(cluster: DevCluster) -> set[int]:
    server = cluster.primary()
    with psycopg.connect(cluster.tenant_dsn("acme", server)) as connection:
        return {row[0] for row in connection.execute("select id from ledger")}


def says(load: Load, router: RunningRouter) -> str:
    return f"{dict(load.outcomes)} errors={load.errors[:3]!r} of {len(load.errors)}\n{router.log.read_text()[-3000:]}"


async def test_the_primary_is_killed_under_load(fresh_cluster: DevCluster) -> None:
    cluster = fresh_cluster
    async with running_router(cluster) as router, router.connect() as db:
        load = Load(db)
        await load.setup()
        old = cluster.primary()

        async def kill() -> None:
            await asyncio.to_thread(old.kill)

        await load.run(6, kill)
        assert not load.errors, says(load, router)
        gap = load.longest_write_gap()
        print(f"\nwrite gap {gap:.2f} s, {dict(load.outcomes)}")
        assert gap < 3, says(load, router)
        surviving = ledger(cluster)
        lost = set(load.acknowledged) - surviving
        assert not lost, f"{len(lost)} acknowledged writes lost of {len(load.acknowledged)}"
        assert len(load.unknown) <= 24, says(load, router)
        assert cluster.primary().name != old.name

        # The old primary comes back as it was, writable on its old timeline: nobody may write to it.
        before = len(load.acknowledged)
        await asyncio.to_thread(old.start)
        again = Load(db)
        again._next = 1_000_000
        await again.run(3, lambda: asyncio.sleep(0))
        assert not again.errors, says(again, router)
        with psycopg.connect(cluster.tenant_dsn("acme", old)) as connection:
            on_old = {row[0] for row in connection.execute("select id from ledger where id > 1000000")}
        assert not on_old
        assert len(again.acknowledged) > 100
        assert before == len(load.acknowledged)


async def test_someone_else_promotes_and_the_router_follows(fresh_cluster: DevCluster) -> None:
    cluster = fresh_cluster
    async with running_router(cluster, mode="follow") as router, router.connect() as db:
        load = Load(db)
        await load.setup()
        old = cluster.primary()

        async def fail_over() -> None:
            await asyncio.to_thread(old.kill)
            await asyncio.sleep(0.5)
            await asyncio.to_thread(cluster.fail_over)

        await load.run(6, fail_over)
        assert not load.errors, says(load, router)
        print(f"\nwrite gap {load.longest_write_gap():.2f} s, {dict(load.outcomes)}")
        assert set(load.acknowledged) <= ledger(cluster)


async def test_a_replica_dies_and_readers_see_nothing(fresh_cluster: DevCluster) -> None:
    cluster = fresh_cluster
    async with running_router(cluster) as router, router.connect() as db:
        load = Load(db)
        await load.setup()
        replica = cluster.standbys()[0]

        async def kill() -> None:
            await asyncio.to_thread(replica.kill)

        await load.run(3, kill)
        assert not load.errors, says(load, router)
        assert load.outcomes["read"] > 100
        served = {(await db.query("select 1", read="replica", timeout=5)).receipt.endpoint for _ in range(20)}
        assert replica.name not in served
        assert load.longest_write_gap() < 1


async def test_a_replica_freezes_and_readers_wait_a_little(fresh_cluster: DevCluster) -> None:
    cluster = fresh_cluster
    async with running_router(cluster) as router, router.connect() as db:
        load = Load(db)
        await load.setup()
        replica = cluster.standbys()[0]

        async def freeze() -> None:
            replica.freeze()

        try:
            await load.run(5, freeze)
            assert not load.errors, says(load, router)
            served = {(await db.query("select 1", read="replica", timeout=5)).receipt.endpoint for _ in range(20)}
            assert replica.name not in served, says(load, router)
        finally:
            replica.thaw()


async def test_a_backend_crash_restarts_the_primary_and_nobody_is_promoted(fresh_cluster: DevCluster) -> None:
    cluster = fresh_cluster
    async with running_router(cluster) as router, router.connect() as db:
        load = Load(db)
        await load.setup()
        old = cluster.primary()

        async def crash() -> None:
            await asyncio.to_thread(old.crash_one_backend)

        await load.run(4, crash)
        assert not load.errors, says(load, router)
        assert cluster.primary().name == old.name
        assert set(load.acknowledged) <= ledger(cluster)
        print(f"\nwrite gap {load.longest_write_gap():.2f} s, {dict(load.outcomes)}")
