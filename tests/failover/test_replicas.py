"""Replicas that lag, die, or are cut off: reads go where they are right, and writes notice nothing."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pointsman
import pytest
from pointsman import Executed

from router.devcluster import DevCluster
from tests.failover.load import Load, says
from tests.support.eventually import ask, eventually
from tests.support.proxy import Network, Proxy
from tests.support.running_router import running_router

pytestmark = [pytest.mark.pg, pytest.mark.chaos]


async def served(db: pointsman.Client, count: int = 20, **options: Any) -> Counter[tuple[str, str]]:
    """Endpoints and route reasons of replica reads."""
    answers = [await db.query("select 1", read="replica", timeout=5, **options) for _ in range(count)]
    return Counter((one.receipt.endpoint, one.receipt.route_reason) for one in answers)


async def used(db: pointsman.Client, **options: Any) -> set[str]:
    return {endpoint for endpoint, _ in await served(db, **options)}


async def test_a_replica_that_lags_is_left_out_and_comes_back(pg_cluster: DevCluster) -> None:
    cluster = pg_cluster
    behind = cluster.servers["n2"]
    async with running_router(cluster) as router, router.connect(consistency="eventual") as db:
        load = Load(db)
        await load.setup()
        figures: dict[str, float] = {}

        async def lag() -> None:
            await asyncio.to_thread(ask, cluster, "select pg_wal_replay_pause()", server=behind)

            async def left_out() -> bool:
                return await used(db, max_staleness=0.5) == {"n3"}

            figures["out"] = await eventually(left_out, within_s=4, what="reads of at most 0.5 s staleness on n3 only")
            assert await used(db, max_staleness=60) == {"n2", "n3"}, "whoever takes older rows may still read there"
            shown = await router.endpoint("n2")
            assert shown.lag_s > 0.4
            assert shown.lag_bytes > 0
            await asyncio.to_thread(ask, cluster, "select pg_wal_replay_resume()", server=behind)

            async def back() -> bool:
                return await used(db, max_staleness=0.5) == {"n2", "n3"}

            figures["back"] = await eventually(back, within_s=4, what="n2 back in rotation")

        try:
            await load.run(2, lag, before=0.3)
        finally:
            await asyncio.to_thread(ask, cluster, "select pg_wal_replay_resume()", server=behind)
        print(f"\nout after {figures['out']:.2f} s, back after {figures['back']:.2f} s; {load.says()}")
        assert not load.errors, says(load, router)


async def test_without_replicas_reads_fall_back_to_the_primary(fresh_cluster: DevCluster) -> None:
    cluster = fresh_cluster
    async with running_router(cluster) as router, router.connect(consistency="eventual") as db:
        assert await used(db) == {"n2", "n3"}
        for replica in cluster.standbys():
            await asyncio.to_thread(replica.kill)
        fallen = await served(db)
        assert {endpoint for endpoint, _ in fallen} == {"n1"}, fallen
        await eventually(lambda: both_down(router), within_s=3, what="two replicas DOWN")
        assert await served(db) == {("n1", "fallback_primary"): 20}
        with pytest.raises(pointsman.Unavailable) as caught:
            await db.query("select 1", read="replica", fallback="fail", timeout=2)
        # All are excluded, so none is: the router has tried them all the same.
        assert caught.value.reason in ("NO_REPLICA", "NO_BACKEND")
        assert caught.value.executed is Executed.NO
        # They return, and reads with them.
        for name in ("n2", "n3"):
            await asyncio.to_thread(cluster.servers[name].start)

        async def back() -> bool:
            return await used(db) == {"n2", "n3"}

        await eventually(back, within_s=8, what="both replicas in rotation", pause_s=0.1)


async def both_down(router: Any) -> bool:
    return all([(await router.endpoint(name)).health_reason.startswith("connect_refused") for name in ("n2", "n3")])


async def test_a_replica_of_a_former_primary_is_left_out_and_pointed_at_the_present_one(
    fresh_cluster: DevCluster,
) -> None:
    """Somebody promotes n2 and leaves n1 running: n3 goes on streaming from it, and says that it lacks nothing."""
    cluster = fresh_cluster
    two, three = cluster.servers["n2"], cluster.servers["n3"]
    async with running_router(cluster) as router, router.connect(consistency="eventual") as db:
        assert await used(db) == {"n2", "n3"}
        await asyncio.to_thread(cluster.promote, "n2")

        async def left_out() -> bool:
            return await used(db, max_staleness=1) == {"n2"}

        out = await eventually(left_out, within_s=4, what="reads of at most 1 s staleness on the primary only")
        said = await asyncio.to_thread(ask, cluster, "select status from pg_stat_wal_receiver", server=three)
        assert said == "streaming"
        assert (await router.endpoint("n3")).lag_s >= 1

        async def pointed() -> bool:
            conninfo = await asyncio.to_thread(ask, cluster, "show primary_conninfo", server=three)
            return f"port={two.port}" in conninfo.replace("'", "")

        at = await eventually(pointed, within_s=8, what="n3 pointed at n2", pause_s=0.1)
        print(f"\nleft out after {out:.2f} s, pointed at n2 {at:.2f} s later")


async def test_a_replica_behind_a_network_that_hangs(pg_cluster: DevCluster) -> None:
    cluster = pg_cluster
    async with (
        Proxy(cluster.servers["n2"].port) as proxy,
        running_router(cluster, ports={"n2": proxy.port}) as router,
        router.connect(consistency="eventual") as db,
    ):
        load = Load(db)
        await load.setup()

        async def cut() -> None:
            await proxy.become(Network.HANGS)

        await load.run(2.5, cut, before=0.5)
        assert not load.errors, says(load, router)
        assert await used(db) == {"n3"}
        print(f"\nwrite gap {load.longest_write_gap():.2f} s, {load.says()}")
        assert load.longest_write_gap() < 1
        await proxy.become(Network.PASSES)
        proxy.drop()

        async def back() -> bool:
            return await used(db) == {"n2", "n3"}

        await eventually(back, within_s=6, what="n2 back in rotation", pause_s=0.1)


async def test_connections_that_are_reset_cost_no_reader_an_error(pg_cluster: DevCluster) -> None:
    cluster = pg_cluster
    async with Proxy(cluster.servers["n2"].port) as two, Proxy(cluster.servers["n3"].port) as three:
        ports = {"n2": two.port, "n3": three.port}
        async with running_router(cluster, ports=ports) as router, router.connect(consistency="eventual") as db:
            load = Load(db)
            await load.setup()

            async def break_often() -> None:
                for _ in range(5):
                    two.reset()
                    await asyncio.sleep(0.15)
                    three.reset()
                    await asyncio.sleep(0.15)

            await load.run(2, break_often, before=0.2)
            assert not load.errors, says(load, router)
            assert load.outcomes["read"] > 100
