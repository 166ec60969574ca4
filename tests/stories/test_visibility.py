"""What the router shows of its work: requests that can be named and cancelled, figures that add up, no secrets."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pointsman
import pytest

from router.devcluster import DevCluster
from tests.stories.conftest import undisturbed
from tests.support.dev_cluster import TENANTS
from tests.support.eventually import until_gone, until_running
from tests.support.running_router import Config, RunningRouter, running_router

pytestmark = pytest.mark.pg


async def test_a_request_is_cancelled_by_its_name(router: RunningRouter, db: pointsman.Client, pg_cluster: DevCluster):
    async with undisturbed(router), router.connect() as other, router.connect("globex") as foreign:
        starts: list[Callable[[str, str], Awaitable[Any]]] = [
            lambda sql, name: db.query(sql, request_id=name),
            lambda sql, name: db.execute(sql, request_id=name),
            lambda sql, name: db.batch([sql], request_id=name),
            lambda sql, name: db.stream(sql, request_id=name).next_chunk(),
        ]
        for number, start in enumerate(starts):
            name = f"request-{number}-{time.monotonic_ns()}"
            task = asyncio.ensure_future(start(f"select pg_sleep(20) /* {name} */", name))
            await until_running(pg_cluster, name)
            assert not await foreign.cancel(name), "another tenant must not reach it"
            assert await other.cancel(name)
            with pytest.raises(pointsman.Cancelled) as caught:
                await asyncio.wait_for(task, 1)
            assert caught.value.safe_to_repeat
            await until_gone(pg_cluster, name, 1)
            assert not await other.cancel(name)
        assert await db.query_value("select 1") == 1


async def test_the_equations_of_the_metrics_hold(pg_cluster: DevCluster) -> None:
    async with running_router(pg_cluster) as router:
        async with router.connect() as db, router.connect("globex") as other:
            bad: list[Awaitable[Any]] = [db.query("selct"), db.execute("begin"), db.query("select 1/0")]
            bad += [db.query("select pg_sleep(5)", timeout=1.0), db.execute("insert into shelves values (null)")]
            good: list[Awaitable[Any]] = [db.query("select 1") for _ in range(20)]
            good += [db.execute("update counters set n = n"), db.batch(["select 1", "select 2"])]
            good += [other.query("select 1")]
            await asyncio.gather(*bad, *good, return_exceptions=True)
            async for _ in db.stream("select generate_series(1, 5000)"):
                pass
            async with db.transaction() as tx:
                await tx.execute("select 1")
            task = asyncio.create_task(db.query("select pg_sleep(5)"))
            await asyncio.sleep(0.2)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await asyncio.sleep(0.3)
            page = await asyncio.to_thread(router.scrape)
        counted = ("requests_admitted_total", "requests_total", "requests_in_flight", "request_errors_total")
        figures: dict[str, Counter[str]] = {name: Counter() for name in TENANTS}
        for sample, value in page.items():
            found = re.match(rf"pointsman_({'|'.join(counted)})\{{(.*)\}}", sample)
            labels = dict(re.findall(r'(\w+)="([^"]*)"', found[2])) if found else {}
            if found and labels.get("tenant") in figures:
                figures[labels["tenant"]][labels.get("outcome") or found[1]] += int(value)
        for name, one in figures.items():
            ended = one["served"] + one["failed"] + one["cancelled"]
            assert one["requests_admitted_total"] == ended + one["requests_in_flight"], (name, one)
            assert one["requests_in_flight"] == 0
            assert one["request_errors_total"] == one["failed"] + one["cancelled"] + one["refused"], (name, one)
        acme = figures["acme"]
        assert (acme["cancelled"], acme["refused"], figures["globex"]["served"]) == (1, 1, 1), acme
        assert acme["served"] == 24, acme
        assert acme["failed"] == 4, acme
        assert page['pointsman_cluster_phase{cluster="main",phase="steady"}'] == 1


async def test_nothing_secret_leaves_the_router(pg_cluster: DevCluster) -> None:
    canary = "canary7f3a"

    def debug(config: Config) -> None:
        config["log"]["level"] = "debug"

    async with running_router(pg_cluster, edit=debug) as router:
        async with router.connect() as db:
            await db.execute(f"create table if not exists {canary}_table (id int primary key, t text)")
            calls: list[Awaitable[Any]] = [
                db.query(f"select '{canary}_literal', $1::text", f"{canary}_parameter"),
                db.query(f"select {canary}_column"),
                db.query("select $1::int", f"{canary}_not_a_number"),
                db.execute(f"insert into {canary}_table values (1, $1), (1, $1)", f"{canary}_value"),
                db.query(f"selct {canary}_syntax"),
                db.query(f"select pg_sleep(3), '{canary}_late'", timeout=0.2),
                db.execute(f"do $$ begin raise exception '{canary}_raised'; end $$"),
                db.batch([f"select '{canary}_batch'", "select 1/0"]),
                db.stream(f"select '{canary}_stream', 1/0").next_chunk(),
            ]
            await asyncio.gather(*calls, return_exceptions=True)
            async with router.connect(token=f"{canary}_token", timeout=2) as stranger:
                with pytest.raises(pointsman.Unauthenticated):
                    await stranger.query("select 1")
            (router.config.parent / "canary.password").write_text(f"{canary}_password")
            router.edit_config(
                lambda config: config["tenants"]["globex"]["login"].update(password="file:canary.password")
            )
            await router.operate("ReloadConfig")
            async with router.connect("globex", timeout=2) as other:
                assert await other.query_value("select 1") == 1  # with its former password, as the new one is refused
            running = asyncio.create_task(db.query(f"select pg_sleep(1), '{canary}_running'"))
            await asyncio.sleep(0.3)
            shown = [str(await router.operate(f"List{what}")) for what in ("Waiters", "Tenants", "Pools", "Endpoints")]
            shown += [str(await router.operate("GetServerInfo")), str(await asyncio.to_thread(router.scrape))]
            await running
            await db.execute(f"drop table {canary}_table")
        await router.terminate()
        log = router.log.read_text()
        for text in (log, *shown):
            at = text.find(canary)
            assert at < 0, text[max(0, at - 300) : at + 100]
            for secret in (*TENANTS.values(), *router.tokens.values(), pg_cluster.control_password, "operator-token"):
                assert secret not in text
        lines = [line for line in log.splitlines() if "serves callers on" not in line]
        events = Counter(json.loads(line)["event"] for line in lines)
        assert events["request finished"] >= 10, events
        assert events["new login refused, the former one goes on"], events
        assert all({"event", "level", "timestamp"} <= json.loads(line).keys() for line in lines)

