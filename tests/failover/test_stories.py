"""Failover stories: a real primary with replicas, a router as its own process, callers through the SDK."""

from __future__ import annotations

import asyncio

import psycopg
import pytest

from router.devcluster import DevCluster
from tests.failover.load import Load, ledger, says
from tests.support.running_router import running_router

pytestmark = [pytest.mark.pg, pytest.mark.chaos]


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
        assert '"after": "promoting"' in router.log.read_text()

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
