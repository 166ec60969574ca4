"""Tenants come, change, pause and go while the router runs, on two workers, and a neighbour notices nothing."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pointsman
import pytest
import yaml
from pointsman.v1 import admin_service_pb2 as pb

from router.devcluster import DevCluster
from tests.support.eventually import eventually
from tests.support.running_router import Config, Edit, RunningRouter, running_router, tenant

pytestmark = pytest.mark.pg

ROUNDS = 20


def in_files(folder: Path, *names: str, workers: int = 1, watch_s: float = 0.0) -> Edit:
    """The configuration with these tenants in files of their own."""

    def edit(config: Config) -> None:
        folder.mkdir()
        for name in names:
            (folder / f"{name}.yaml").write_text(yaml.safe_dump(tenant(name)))
        del config["tenants"]
        config["tenants_dir"] = str(folder)
        config["server"]["workers"] = workers
        config["server"]["watch_s"] = watch_s

    return edit


class Orders:
    """One operator's orders."""

    def __init__(self, router: RunningRouter) -> None:
        self.router = router
        self.took: list[float] = []

    async def __call__(self, method: str, **fields: Any) -> Any:
        began = time.monotonic()
        done = await self.router.operate(method, getattr(pb, f"{method}Request")(tenant="globex", **fields))
        self.took.append(time.monotonic() - began)
        assert method == "GetTenant" or list(done.behind) == []
        return done


@contextlib.asynccontextmanager
async def under_load(router: RunningRouter) -> AsyncIterator[list[float]]:
    """acme reads and writes all the time; how long each took. Any error fails the test."""
    took: list[float] = []
    going = True

    async def call(db: pointsman.Client, n: int) -> None:
        while going:
            began = time.monotonic()
            if n % 2:
                await db.query("select 1", timeout=5)
            else:
                await db.execute("update accounts set score = score where id = $1", n, timeout=5)
            took.append(time.monotonic() - began)
            await asyncio.sleep(0.005)

    async with router.connect() as db:
        callers = [asyncio.create_task(call(db, n)) for n in range(4)]
        try:
            yield took
            going = False
            await asyncio.gather(*callers)
        finally:
            for one in callers:
                one.cancel()


async def one_life(orders: Orders, db: pointsman.Client, document: str) -> None:
    """globex comes, changes, is paused and resumed, and goes."""
    await orders("CreateTenant", document=document)
    assert await db.query_value("select 1", timeout=5) == 1
    seen = await orders("GetTenant")
    await orders("ChangeTenant", document=f"{seen.document}limits: {{max_in_flight: 9}}\n", version=seen.version)
    await orders("PauseTenant")
    waiting = asyncio.create_task(db.query_value("select 2", timeout=5))
    with pytest.raises(pointsman.Unavailable) as refused:
        await db.query("select 1", on_failover="fail", timeout=5)
    assert refused.value.reason == "TENANT_PAUSED"
    assert not waiting.done()
    await orders("ResumeTenant")
    assert await waiting == 2
    await orders("RemoveTenant")
    with pytest.raises(pointsman.Unauthenticated):
        await db.query("select 1", timeout=5)


async def test_a_neighbour_lives_twenty_lives_and_acme_notices_nothing(pg_cluster: DevCluster, tmp_path: Path) -> None:
    document = yaml.safe_dump(tenant("globex"))
    async with running_router(pg_cluster, edit=in_files(tmp_path / "tenants", "acme", workers=2)) as router:
        orders = Orders(router)
        async with under_load(router) as took, router.connect("globex") as db:
            await eventually(lambda: len(took) >= 40, within_s=20, what="calls on a quiet router")
            calm, before = list(took), len(took)
            for _ in range(ROUNDS):
                await one_life(orders, db, document)
            busy = took[before:]
        assert len(busy) > ROUNDS
        noise = max(0.1, 4 * max(calm))
        assert max(busy) < noise, f"{max(busy):.3f} s, alone {max(calm):.3f}"
        assert statistics.median(busy) < max(0.02, 4 * statistics.median(calm))
        middle, order = statistics.median(busy), statistics.median(orders.took)
        print(f"{len(busy)} calls of acme: p50 {middle:.4f} s, worst {max(busy):.3f}, alone {max(calm):.3f}")
        print(f"{len(orders.took)} orders: p50 {order:.3f} s, worst {max(orders.took):.3f}")
        assert [one.name for one in (await router.operate("ListTenants")).tenants] == ["acme"]
        assert not list((tmp_path / "tenants").glob("globex*"))


async def test_what_runs_when_its_tenant_is_removed_ends_and_its_connections_close(
    pg_cluster: DevCluster, tmp_path: Path
) -> None:
    before = sessions(pg_cluster)  # the shared router of other stories has some, too
    async with running_router(pg_cluster, edit=in_files(tmp_path / "tenants", "acme", "globex")) as router:
        orders = Orders(router)
        async with router.connect("globex") as db:
            running = asyncio.create_task(db.query_value("select 7 from pg_sleep(0.6)", timeout=5))
            async with db.transaction() as transaction:
                await transaction.execute("update accounts set score = score where id = 1")
                await orders("PauseTenant")
                await transaction.query("select 1")
            await orders("ResumeTenant")
            lost = asyncio.create_task(removed_inside(db, orders))
            assert await running == 7
            with pytest.raises(pointsman.Error):
                await lost

        async def gone() -> bool:
            pools = (await router.operate("ListPools")).pools
            return all(one.tenant != "globex" for one in pools)

        await eventually(gone, within_s=2, what="what ran there has let go of its connection")
        await eventually(lambda: sessions(pg_cluster) <= before, within_s=4, what="closed connections")


async def removed_inside(db: pointsman.Client, orders: Orders) -> None:
    async with db.transaction() as transaction:
        await transaction.execute("update accounts set score = score where id = 1")
        await orders("RemoveTenant")
        await transaction.execute("update accounts set score = score where id = 2")


def sessions(cluster: DevCluster) -> set[int]:
    """Process ids of globex' sessions, through whatever router."""
    import psycopg

    with psycopg.connect(cluster.tenant_dsn("acme"), autocommit=True) as connection:
        rows = connection.execute(
            "select pid from pg_stat_activity where application_name like 'pointsman/globex%'"
        ).fetchall()
    return {row[0] for row in rows}


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_removed_tenant_leaves_the_metrics_page(
    pg_cluster: DevCluster, tmp_path: Path, workers: int
) -> None:
    async with running_router(pg_cluster, edit=in_files(tmp_path / "tenants", "acme", workers=workers)) as router:
        orders = Orders(router)
        admitted = 'pointsman_requests_admitted_total{method="query",tenant="%s"}'

        async def read(calls: int) -> None:
            for name in ("acme", "globex"):
                async with router.connect(name) as db:
                    for _ in range(calls):
                        await db.query("select 1", timeout=5)

        for _ in range(2):
            await orders("CreateTenant", document=yaml.safe_dump(tenant("globex")))
            await read(3)
            if workers > 1:  # counted by some that have ended, and by some that have not
                await asyncio.to_thread(restart_workers, router)
                await read(2)
            counted = 3 if workers == 1 else 5
            found = await asyncio.to_thread(router.scrape)
            assert found[admitted % "globex"] == counted
            async with router.connect("globex") as db:
                running = asyncio.create_task(db.query("select pg_sleep(0.5)", timeout=5))
                await asyncio.sleep(0.2)
                await orders("RemoveTenant")
                await running
            found = await asyncio.to_thread(router.scrape)
            assert not [name for name in found if "globex" in name and "_total" in name]
            assert found[admitted % "acme"] >= counted
            await eventually(lambda: "globex" not in str(router.scrape()), within_s=5, what="the end of its pools")


def restart_workers(router: RunningRouter) -> None:
    with router.operator() as operator:
        list(operator.stream("RestartWorkers", pb.RestartWorkersRequest(), 40))


async def test_files_of_the_folder_are_watched_one_by_one(pg_cluster: DevCluster, tmp_path: Path) -> None:
    folder = tmp_path / "tenants"
    edit = in_files(folder, "acme", watch_s=0.1)
    async with running_router(pg_cluster, edit=edit) as router, under_load(router), router.connect("globex") as db:
        write_soon(folder / "globex.yaml", yaml.safe_dump(tenant("globex")))
        await eventually(lambda: "tenants.globex" in router.log.read_text(), within_s=4, what="the new tenant")
        assert await db.query_value("select 1", timeout=5) == 1
        write_soon(folder / "globex.yaml", yaml.safe_dump(tenant("globex", cluster="elsewhere")))
        await eventually(
            lambda: router.scrape()["pointsman_config_refused_seconds"] > 0, within_s=4, what="a refused file"
        )
        info = await router.operate("GetServerInfo")
        assert "globex.yaml:1: cluster" in info.config_problem, info
        assert await db.query_value("select 1", timeout=5) == 1, "it stays as it was"
        (folder / "globex.yaml").unlink()
        await eventually(
            lambda: "tenants.globex: removed" in router.log.read_text(), within_s=4, what="the removal"
        )
        with pytest.raises(pointsman.Unauthenticated):
            await db.query("select 1", timeout=5)
        assert (await router.operate("GetServerInfo")).config_problem == ""


def write_soon(path: Path, text: str) -> None:
    """As careful people do: the whole file at once."""
    (path.parent / f".{path.name}").write_text(text)
    (path.parent / f".{path.name}").rename(path)


async def at_once(*calls: Awaitable[object]) -> None:
    """All of them to their ends; then the first one's error."""
    for one in await asyncio.gather(*calls, return_exceptions=True):
        if isinstance(one, BaseException):
            raise one


async def paused_inside(db: pointsman.Client) -> None:
    async with db.transaction() as one:
        await one.query("select 1")
        await asyncio.sleep(0.25)
        await one.query("select 1")


LIMITS: dict[str, tuple[str, Callable[[pointsman.Client], Awaitable[object]]]] = {
    "rate_per_s: 0.5, rate_burst: 1": ("QUOTA", lambda db: at_once(db.query("select 1"), db.query("select 1"))),
    "max_in_flight: 1, max_queue: 0": (
        "QUEUE_FULL", lambda db: at_once(db.query("select pg_sleep(0.1)"), db.query("select pg_sleep(0.1)"))
    ),
    "max_result_bytes: 1000": ("RESULT_TOO_LARGE", lambda db: db.query("select repeat('x', 2000)", max_bytes=9000)),
    "default_timeout_s: 0.1, max_timeout_s: 0.1": ("DEADLINE", lambda db: db.query("select pg_sleep(0.25)", timeout=5)),
    "max_transactions: 1": ("QUOTA", lambda db: at_once(paused_inside(db), paused_inside(db))),
    "max_transaction_s: 0.1": ("TRANSACTION_EXPIRED", paused_inside),
    "idle_in_transaction_s: 0.1": ("TRANSACTION_EXPIRED", paused_inside),
}


async def test_each_limit_of_a_tenant_holds_from_the_order_on(pg_cluster: DevCluster, tmp_path: Path) -> None:
    """Given while the router runs and its client is connected, and met by the next call; taken back, gone."""
    document = yaml.safe_dump(tenant("globex"))
    told: dict[str, str] = {}
    async with running_router(pg_cluster, edit=in_files(tmp_path / "tenants", "globex")) as router:
        orders = Orders(router)
        async with router.connect("globex") as db:
            for limits, (_, call) in LIMITS.items():
                await call(db)
                await orders("ChangeTenant", document=f"{document}limits: {{{limits}}}\n")
                try:
                    await call(db)
                    told[limits] = "nothing"
                except pointsman.Error as refused:
                    told[limits] = refused.reason
                await orders("ChangeTenant", document=document)
    assert told == {limits: reason for limits, (reason, _) in LIMITS.items()}
