"""Primaries that freeze, are cut off from the router only, or fail twice: promoted when right, and not when not."""

from __future__ import annotations

import asyncio
import time

import pointsman
import pytest
from pointsman import Executed
from pointsman.v1 import admin_service_pb2 as pb

from router.devcluster import DevCluster
from tests.failover.load import Load, ledger, says
from tests.support.eventually import eventually, rows_of
from tests.support.proxy import Network, Proxy
from tests.support.running_router import RunningRouter, running_router

pytestmark = [pytest.mark.pg, pytest.mark.chaos]


async def health(router: RunningRouter, name: str) -> str:
    return pb.EndpointHealth.Name((await router.endpoint(name)).health).removeprefix("ENDPOINT_HEALTH_")


async def test_a_frozen_primary_is_replaced_and_its_thawed_self_shut_out(fresh_cluster: DevCluster) -> None:
    cluster = fresh_cluster
    async with running_router(cluster) as router, router.connect() as db:
        load = Load(db)
        await load.setup()
        old = cluster.servers["n1"]

        async def freeze() -> None:
            await asyncio.to_thread(old.freeze)

        try:
            await load.run(4.5, freeze)
        finally:
            old.thaw()
        gap = load.longest_write_gap()
        print(f"\nwrite gap {gap:.2f} s, {load.says()}")
        assert not load.errors, says(load, router)
        assert gap < 3, says(load, router)
        assert set(load.acknowledged) <= ledger(cluster)
        assert len(load.unknown) <= 24

        async def quarantined() -> bool:
            return await health(router, "n1") == "QUARANTINED"

        await eventually(quarantined, within_s=5, what="the thawed primary QUARANTINED")
        again = Load(db)
        again._next = 1_000_000
        await again.run(2, lambda: asyncio.sleep(0))
        assert not again.errors, says(again, router)
        assert len(again.acknowledged) > 100
        served = {(await db.query("select 1", read="any", timeout=5)).receipt.endpoint for _ in range(30)}
        assert "n1" not in served
        on_old = await asyncio.to_thread(
            rows_of, cluster.tenant_dsn("acme", old), "select id from ledger where id > 1000000"
        )
        assert not on_old
        assert await health(router, "n1") == "QUARANTINED"


@pytest.mark.parametrize("network", [Network.REFUSES, Network.HANGS])
async def test_a_network_cut_between_router_and_primary_promotes_nobody(
    fresh_cluster: DevCluster, network: Network
) -> None:
    """The standbys still hear the primary: replacing it would make two."""
    cluster = fresh_cluster
    async with (
        Proxy(cluster.servers["n1"].port) as proxy,
        running_router(cluster, ports={"n1": proxy.port}) as router,
        router.connect(consistency="eventual") as db,
    ):
        await db.execute("create table ledger (id int primary key, kind text)")
        await proxy.become(network)
        began = time.monotonic()
        # Reads that do not need the primary go on all the time.
        while time.monotonic() - began < 3:
            assert await db.query_value("select 1", read="replica", timeout=2) == 1
            await asyncio.sleep(0.05)
        assert {one.name for one in cluster.standbys()} == {"n2", "n3"}, router.log.read_text()[-3000:]
        with pytest.raises(pointsman.Error) as caught:
            await db.execute("insert into ledger values (1, 'cut')", timeout=0.5)
        assert caught.value.executed is Executed.NO, caught.value
        # A write that may wait is done as soon as the network is back.
        waiting = asyncio.create_task(db.execute("insert into ledger values (2, 'waited')", timeout=8))
        await asyncio.sleep(0.3)
        assert not waiting.done()
        await proxy.become(Network.PASSES)
        proxy.drop()
        began = time.monotonic()
        receipt = (await waiting).receipt
        print(f"\n{network.value}: write done {time.monotonic() - began:.2f} s after the network came back")
        assert receipt.endpoint == "n1"
        assert receipt.held_us > 0
        assert cluster.primary().name == "n1"
        log = router.log.read_text()
        assert '"after": "promoting"' not in log
        assert ledger(cluster) == {2}


async def test_two_failovers_in_a_row_lose_nothing(fresh_cluster: DevCluster) -> None:
    cluster = fresh_cluster
    async with running_router(cluster) as router, router.connect() as db:
        load = Load(db)
        await load.setup()

        async def fail_twice() -> None:
            for _ in range(2):
                old = cluster.primary()
                seen = len(load.acknowledged)
                await asyncio.to_thread(old.kill)

                async def moved(seen: int = seen, name: str = old.name) -> bool:
                    return len(load.acknowledged) > seen + 20 and (await router.endpoint(name)).role != 1

                await eventually(moved, within_s=10, what="writes on another primary", pause_s=0.05)
                await asyncio.to_thread(cluster.rejoin, old.name)
                await eventually(lambda name=old.name: up(router, name), within_s=8, what=f"{old.name} as a replica")
                await asyncio.sleep(1)  # min_gap_s

        await load.run(1, fail_twice)
        print(f"\ntwo failovers, longest write gap {load.longest_write_gap():.2f} s, {load.says()}")
        assert not load.errors, says(load, router)
        assert load.longest_write_gap() < 3
        assert set(load.acknowledged) <= ledger(cluster)
        assert [await health(router, name) for name in ("n1", "n2", "n3")] == ["UP"] * 3
        assert (await router.endpoint(cluster.primary().name)).timeline == 3


async def up(router: RunningRouter, name: str) -> bool:
    return await health(router, name) == "UP"
