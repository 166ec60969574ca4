"""The cap of an endpoint, over the whole stack: more callers than connections, of two tenants, and nobody fails."""

from __future__ import annotations

import asyncio
import time

import pointsman
import pytest

from router.devcluster import DevCluster
from tests.support.backends import OF_TENANTS, counted
from tests.support.dev_cluster import TENANTS
from tests.support.eventually import eventually
from tests.support.running_router import Config, RunningRouter, running_router

pytestmark = pytest.mark.pg

CAP = 5
SECONDS = 1.5
DEAF = """do $$ begin
  loop begin perform pg_sleep(30); exception when query_canceled then null; end; end loop;
end $$"""


def capped(cap: int, config: Config) -> None:
    for endpoint in config["clusters"]["main"]["endpoints"].values():
        endpoint["max_connections"] = cap
    for tenant in config["tenants"].values():
        tenant["pool"] = {"max_size": cap}


async def work(db: pointsman.Client, number: int, until: float) -> int:
    """Calls of all kinds, until then; how many."""
    calls = 0
    while time.monotonic() < until:
        match (number + calls) % 4:
            case 0:
                await db.execute("update accounts set score = score where id = 1")
            case 1:
                await db.query("select pg_sleep(0.005)", read="primary")
            case 2:
                async with db.transaction() as transaction:
                    await transaction.query("select pg_sleep(0.002)")
            case _:
                await db.query("select count(*) from accounts", read="primary")
        calls += 1
    return calls


async def test_many_callers_of_two_tenants_on_five_connections(fresh_cluster: DevCluster) -> None:
    async with (
        running_router(fresh_cluster, edit=lambda config: capped(CAP, config)) as router,
        router.connect("acme") as acme,
        router.connect("globex") as globex,
    ):
        async with counted(fresh_cluster.primary()) as seen:
            until = time.monotonic() + SECONDS
            many = [work(acme, number, until) for number in range(20)]
            few = [work(globex, number, until) for number in range(4)]
            calls = await asyncio.gather(*many, *few)
        assert max(seen) == CAP
        assert min(sum(calls[:20]), sum(calls[20:])) > 20, calls
        primary = await router.endpoint(fresh_cluster.primary().name)
        assert (primary.connections_cap, primary.connections_granted) == (CAP, CAP)
        samples = router.scrape()
        name = f'{{cluster="main",endpoint="{primary.name}"}}'
        assert samples[f"pointsman_endpoint_connections_cap{name}"] == CAP
        assert samples[f"pointsman_endpoint_connections_in_use{name}"] <= CAP


async def test_a_cap_is_changed_by_a_reload_without_an_error(fresh_cluster: DevCluster) -> None:
    async with (
        running_router(fresh_cluster, edit=lambda config: capped(CAP, config)) as router,
        router.connect("acme") as acme,
    ):
        until = time.monotonic() + SECONDS
        working = asyncio.gather(*(work(acme, number, until) for number in range(12)))
        await asyncio.sleep(SECONDS / 3)
        router.edit_config(lambda config: capped(2, config))
        assert (await router.operate("ReloadConfig")).applied
        await eventually(
            lambda: _at_most_two(router, fresh_cluster), within_s=2, what="at most two connections", pause_s=0.02
        )
        async with counted(fresh_cluster.primary()) as seen:
            assert all(await working)
        assert max(seen) <= 2


async def test_a_router_that_has_ended_has_no_connection_left_at_the_server(fresh_cluster: DevCluster) -> None:
    """The next one, started at once, finds all of the cap free. A backend that cannot be cancelled outlives its client,
    by up to a second."""
    async with (
        running_router(fresh_cluster, grace_s=0.2) as router,
        router.connect("acme") as acme,
    ):
        running = [asyncio.create_task(acme.execute(DEAF)) for _ in range(2)]
        await eventually(lambda: _backends(fresh_cluster, running="pg_sleep") == 2, within_s=5, what="both run")
        began = time.monotonic()
        assert await router.terminate() == 0
        assert _backends(fresh_cluster) == 0
        assert time.monotonic() - began < 4
        assert all(isinstance(one, pointsman.Error) for one in await asyncio.gather(*running, return_exceptions=True))


def _backends(cluster: DevCluster, running: str = "") -> int:
    with cluster.primary().connect() as connection:
        query = f"{OF_TENANTS} and query like '%%{running}%%'"
        row = connection.execute(query, [list(TENANTS)]).fetchone()
    assert row is not None
    return int(row[0])


async def _at_most_two(router: RunningRouter, cluster: DevCluster) -> bool:
    primary = await router.endpoint(cluster.primary().name)
    return bool(primary.connections_in_use <= 2)
