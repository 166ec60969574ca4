"""Where the kernel lends a hand: cables that are pulled, and a disk that is full."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import Counter

import psycopg

from router.devcluster import DevCluster, Server
from tests.chaos import nemeses, private
from tests.chaos.cases.run import Found, Run, Skipped
from tests.chaos.figures import CaseResult, Figure, none_of, times
from tests.chaos.history import Kind, Outcome
from tests.chaos.load import Load
from tests.chaos.stage import Stage, staged
from tests.support.dev_cluster import TENANTS, new_cluster, new_data_root
from tests.support.proxy import Network, Proxy
from tests.support.running_router import Config

CALLERS = "callers"
DISK_MIB = 220


async def partition(run: Run) -> Found:
    """The router in a network namespace; its cable to the primary or to all is pulled, or the primary is alone."""
    cluster = await asyncio.to_thread(new_cluster)
    try:
        with private.namespace([CALLERS, *cluster.servers]) as space:
            return await _partitioned(run, cluster, space)
    except private.NotAllowed as reason:
        raise Skipped(f"no network namespaces: {reason}") from None
    finally:
        await asyncio.to_thread(cluster.stop)


async def _partitioned(run: Run, cluster: DevCluster, space: private.Namespace) -> Found:
    async with contextlib.AsyncExitStack() as stack:
        proxies = {}
        for name, server in cluster.servers.items():
            proxies[name] = await stack.enter_async_context(Proxy(server.port, host=space.wires[name].here))

        def into_the_namespace(config: Config) -> None:
            for key in ("listen", "admin_listen"):
                config["server"][key] = config["server"][key].replace("127.0.0.1", space.wires[CALLERS].there)
            config["server"]["allow_plaintext"] = True
            for name, endpoint in config["clusters"]["main"]["endpoints"].items():
                endpoint["host"], endpoint["port"] = space.wires[name].here, proxies[name].port

        stage = await stack.enter_async_context(
            staged(cluster=cluster, edit=into_the_namespace, prefix=space.prefix)
        )
        load = run.load(stage, await run.mix(stage), rate=150, processes=24)
        needless, waits = 0, []
        async with load.going():
            for number in range(run.size):
                await asyncio.sleep(0.7)
                kind = number % 3
                run.tell(f"{number + 1} of {run.size}", number / run.size)
                server, before = await stage.primary(), await stage.timeline()
                if kind == 2:
                    waits.append(await _primary_alone(stage, space, server, load))
                else:
                    await _pull(stage, space, [server.name] if kind == 0 else list(cluster.servers), run)
                await stage.calm()
                needless += kind != 2 and await stage.timeline() != before
        await stage.calm()
        figures = [
            none_of("promotions because the router was cut off", needless, run.size - len(waits), "partitions"),
            times("primary cut off from all → first write through the router", waits, most=4.0),
            run.errors(stage.history, "errors of reads and keyed writes", Kind.STRONG_READ, Kind.REPLICA_READ),
            *await run.verdict(stage),
        ]
        return Found(figures, run.notes, stage.history)


async def _pull(stage: Stage, space: private.Namespace, names: list[str], run: Run) -> None:
    stage.history.note(f"cable between router and {', '.join(names)} pulled")
    for name in names:
        space.wires[name].down()
    await asyncio.sleep(run.chance.uniform(1.0, 3.5))
    for name in names:
        space.wires[name].up()
    stage.history.note("cable plugged in")


async def _primary_alone(stage: Stage, space: private.Namespace, server: Server, load: Load) -> float:
    """The primary lives and hears nobody: neither the router nor its standbys."""
    timeline = await stage.timeline()
    async with nemeses.cut_replication_of(stage, server, Network.HANGS):
        began = stage.history.note(f"cable between router and {server.name} pulled")
        space.wires[server.name].down()
        first = await load.first_write_after(began, timeline, 20.0)
        stage.history.note("cable plugged in")
        space.wires[server.name].up()
    return float(first.ended - began) if first else 20.0


# --- a full disk -----------------------------------------------------------------------------------------------------


async def disk_full(run: Run) -> Found:
    """The primary's disk fills up: statements fail, then the log cannot grow and the server dies; `size` times."""
    if private.is_private():
        return await _full(run)
    arguments = ["--cases", "disk_full", "--count", str(run.size), "--seed", str(run.seed), "--json"]
    try:
        printed = await asyncio.to_thread(private.run_private, arguments)
    except private.NotAllowed as reason:
        raise Skipped(f"no mount of our own: {reason}") from None
    result = CaseResult.from_json(json.loads(printed)["cases"][0])
    if result.failed:
        raise AssertionError(result.failed)
    return Found(result.figures, result.notes, strip=result.strip)


async def _full(run: Run) -> Found:
    waits: list[float] = []
    told: Counter[str] = Counter()
    figures: list[Figure] = []
    history = None
    for number in range(run.size):
        run.tell(f"{number + 1} of {run.size}", number / run.size)
        cluster = await asyncio.to_thread(_on_small_disk)
        try:
            async with staged(cluster=cluster) as stage:
                figures, history = await _fill_up(run, stage, waits, told), stage.history
        finally:
            await asyncio.to_thread(cluster.stop)
        if any(one.reached is False for one in figures):
            break
    run.notes.append(f"told while the disk was full: {dict(told) or 'nothing but success'}")
    return Found([times("the log could not grow → first write through the router", waits, most=5.0), *figures],
                 run.notes, history)


def _on_small_disk() -> DevCluster:
    """A cluster whose primary has a small disk of its own."""
    cluster = DevCluster(new_data_root(), 2, fsync=False, temporary=True)
    cluster.create()
    for name, password in TENANTS.items():
        cluster.create_tenant(name, password)
        cluster.load_demo(name)
    primary = cluster.primary()
    primary.stop()
    private.small_disk(primary.data_dir, DISK_MIB)
    primary.start()
    return cluster


async def _fill_up(run: Run, stage: Stage, waits: list[float], told: Counter[str]) -> list[Figure]:
    load = run.load(stage, await run.mix(stage), rate=200, processes=24, timeout=8.0)
    async with load.going():
        await asyncio.sleep(1)
        server, timeline = await stage.primary(), await stage.timeline()
        filler = await stage.do(private.fill, server.data_dir)
        full = stage.history.note(f"the disk of {server.name} is full")
        await asyncio.sleep(2)
        began = stage.history.note("the log must grow")
        await stage.do(_grow_log, server)
        first = await load.first_write_after(began, timeline, 15.0)
        waits.append(first.ended - began if first else 15.0)
        filler.unlink()
        await stage.calm()
    for one in stage.history.operations:
        if full <= one.ended <= began + 1 and one.outcome is not Outcome.OK:
            told[one.reason] += 1
    await stage.calm()
    figures = await run.verdict(stage)
    return [one for one in figures if not one.what.startswith("attempts")]


def _grow_log(server: Server) -> None:
    """Begin new segments of the log until there is no room for one and the server dies."""
    until = time.monotonic() + 5
    with contextlib.suppress(psycopg.Error), server.connect() as connection:
        while time.monotonic() < until:
            # Log without data: an insert would fail for lack of room in its table first, and harmlessly.
            connection.execute("select pg_logical_emit_message(true, 'chaos', repeat('x', 1000000))")
            connection.execute("select pg_switch_wal()")
