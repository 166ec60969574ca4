"""What goes wrong. A nemesis strikes, leaves the fault in force for a while, and takes it away again.

Whatever state it leaves (a dead or stale server, a cut network), `Stage.calm` mends afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pointsman
import psycopg
from pointsman.v1 import admin_service_pb2 as pb

from router.console.trouble import Trouble
from router.devcluster import DevClusterError, Server, StopMode, processes, replication
from tests.chaos.history import Kind
from tests.chaos.load import Load
from tests.chaos.stage import Stage, StageBroken
from tests.chaos.workloads import request_id
from tests.support.proxy import Network, Proxy

Strike = Callable[[Stage, random.Random], Awaitable[None]]


@dataclass(frozen=True)
class Nemesis:
    """One kind of fault. proxied: needs the proxies. moves: a promotion is the right answer, or a possible one."""

    name: str
    strike: Strike
    proxied: bool = False
    moves: bool = False

    async def hit(self, stage: Stage, chance: random.Random) -> None:
        """Strike where that is possible: earlier faults may have left nobody to be struck."""
        try:
            await self.strike(stage, chance)
        except (StageBroken, DevClusterError, psycopg.Error) as error:
            stage.history.note(f"{self.name} found nothing to strike: {str(error)[:80]}")


async def kill(stage: Stage, chance: random.Random) -> None:
    server = await stage.primary()
    stage.history.note(f"kill -9 {server.name}")
    await stage.do(server.kill)
    await _somebody_promotes(stage)


async def _somebody_promotes(stage: Stage) -> None:
    """In follow mode the router waits for others: here they are.

    They are careful: of two standbys the one that has received less may lack what was acknowledged.
    """
    if not stage.moves and len(await stage.do(stage.cluster.standbys)) == len(stage.cluster.servers) - 1:
        await asyncio.sleep(0.4)
        with contextlib.suppress(DevClusterError, psycopg.Error):
            await stage.do(stage.cluster.fail_over)
            stage.history.note("somebody promoted")


async def freeze(stage: Stage, chance: random.Random) -> None:
    server = await stage.primary()
    async with frozen(stage, server):
        await asyncio.sleep(chance.uniform(0.3, 5.0))


@asynccontextmanager
async def frozen(stage: Stage, server: Server) -> AsyncIterator[None]:
    """Every process of a server is suspended while the block runs."""
    stage.history.note(f"SIGSTOP {server.name}")
    await stage.do(server.freeze)
    try:
        yield
    finally:
        server.thaw()
        stage.history.note(f"SIGCONT {server.name}")


async def freeze_postmaster(stage: Stage, chance: random.Random) -> None:
    server = await stage.primary()
    stage.history.note(f"SIGSTOP {server.name}, postmaster only")
    await stage.do(server.freeze_postmaster)
    await asyncio.sleep(chance.uniform(0.3, 2.0))
    server.thaw()


def walsenders(server: Server) -> list[int]:
    """Their process ids."""
    with server.connect() as connection:
        return [row[0] for row in connection.execute("select pid from pg_stat_replication")]


@asynccontextmanager
async def frozen_replication(stage: Stage, server: Server) -> AsyncIterator[None]:
    """Nothing more of the log leaves a server: what is committed there has no copy, and commits wait."""
    pids = await stage.do(walsenders, server)
    processes.signal_each(pids, signal.SIGSTOP)
    stage.history.note(f"SIGSTOP walsenders of {server.name}")
    try:
        yield
    finally:
        processes.signal_each([pid for pid in pids if processes.is_stopped(pid)], signal.SIGCONT)


async def freeze_walsenders(stage: Stage, chance: random.Random) -> None:
    async with frozen_replication(stage, await stage.primary()):
        await asyncio.sleep(chance.uniform(0.2, 1.5))


async def freeze_standbys(stage: Stage, chance: random.Random) -> None:
    async with contextlib.AsyncExitStack() as stack:
        for server in await stage.do(stage.cluster.standbys):
            await stack.enter_async_context(frozen(stage, server))
        await asyncio.sleep(chance.uniform(0.2, 1.5))


async def kill_standby(stage: Stage, chance: random.Random) -> None:
    standbys = await stage.do(stage.cluster.standbys)
    if not standbys:
        return  # on a busy machine none may answer in time just now
    server = chance.choice(standbys)
    stage.history.note(f"kill -9 {server.name}, a standby")
    await stage.do(server.kill)


async def crash_backend(stage: Stage, chance: random.Random) -> None:
    server = await stage.primary()
    stage.history.note(f"kill -9 of one backend of {server.name}")
    with contextlib.suppress(psycopg.OperationalError):
        await stage.do(server.crash_one_backend)


async def shut_down(stage: Stage, chance: random.Random) -> None:
    server, mode = await stage.primary(), chance.choice([StopMode.FAST, StopMode.IMMEDIATE])
    stage.history.note(f"{mode.name.lower()} shutdown of {server.name}")
    await stage.do(server.stop, mode)
    await _somebody_promotes(stage)


async def _network(stage: Stage, how: Network, seconds: float, *names: str) -> None:
    stage.history.note(f"router to {', '.join(names) or 'everyone'}: network {how.value}")
    await stage.network(how, *names)
    await asyncio.sleep(seconds)
    await stage.network(Network.PASSES, *names)
    for name in names or tuple(stage.proxies):
        stage.proxies[name].drop()
    stage.history.note("network passes")


async def cut(stage: Stage, chance: random.Random) -> None:
    await _network(stage, Network.REFUSES, chance.uniform(0.2, 3.0), (await stage.primary()).name)


async def swallow(stage: Stage, chance: random.Random) -> None:
    await _network(stage, Network.HANGS, chance.uniform(0.2, 3.0), (await stage.primary()).name)


async def swallow_answers(stage: Stage, chance: random.Random) -> None:
    await _network(stage, Network.SWALLOWS_ANSWERS, chance.uniform(0.05, 1.0), (await stage.primary()).name)


async def isolate(stage: Stage, chance: random.Random) -> None:
    await _network(stage, chance.choice([Network.REFUSES, Network.HANGS]), chance.uniform(0.3, 3.0))


async def reset(stage: Stage, chance: random.Random) -> None:
    stage.history.note("every connection is reset, three times")
    for _ in range(3):
        for proxy in stage.proxies.values():
            proxy.reset()
        await asyncio.sleep(chance.uniform(0.02, 0.3))


async def delay(stage: Stage, chance: random.Random) -> None:
    seconds = chance.uniform(0.02, 0.2)
    stage.history.note(f"network to everyone {seconds * 1000:.0f} ms slower each way")
    for proxy in stage.proxies.values():
        proxy.delay_s = seconds
    await asyncio.sleep(chance.uniform(0.5, 2.0))
    for proxy in stage.proxies.values():
        proxy.delay_s = 0.0


@asynccontextmanager
async def hogged(stage: Stage, server: Server) -> AsyncIterator[int]:
    """An outsider has every connection that a server has left; how many it took."""
    taken: list[psycopg.Connection[object]] = []

    def hog() -> None:
        with contextlib.suppress(psycopg.OperationalError):
            while True:
                taken.append(server.connect())

    stage.history.note(f"an outsider takes every connection of {server.name}")
    await stage.do(hog)
    try:
        yield len(taken)
    finally:
        for one in taken:
            one.close()
        stage.history.note("the outsider has gone")


@asynccontextmanager
async def cut_replication_of(stage: Stage, server: Server, how: Network) -> AsyncIterator[None]:
    """The network between a primary and its standbys is like this while the block runs. Seen by nobody else."""
    async with Proxy(server.port) as proxy:
        for standby in await stage.do(stage.cluster.standbys):
            await stage.do(_follow_through, standby, proxy.port)
        for _ in range(100):
            if proxy.connections >= len(await stage.do(stage.cluster.standbys)):
                break
            await asyncio.sleep(0.02)
        stage.history.note(f"{server.name} to its standbys: network {how.value}")
        await proxy.become(how)
        try:
            yield
        finally:
            await proxy.become(Network.PASSES)
            proxy.drop()
            for standby in await stage.do(stage.cluster.standbys):
                with contextlib.suppress(psycopg.Error):
                    await stage.do(_follow_through, standby, server.port, proxy.port)
            stage.history.note("the standbys' network passes")


def _follow_through(standby: Server, port: int, only_from: int = 0) -> None:
    """Let a standby reach its primary by another port; only one that uses a given port, if any is given."""
    with standby.connect() as connection:
        row = connection.execute("show primary_conninfo").fetchone()
        found = re.search(r"port=(\d+)", row[0] if row else "")
        if found and (not only_from or int(found[1]) == only_from):
            source = f"{row[0][: found.start()]}port={port}{row[0][found.end() :]}"  # type: ignore[index]
            replication.set_parameters(standby, primary_conninfo=source)


async def cut_replication(stage: Stage, chance: random.Random) -> None:
    server = await stage.primary()
    async with cut_replication_of(stage, server, chance.choice([Network.REFUSES, Network.HANGS])):
        await asyncio.sleep(chance.uniform(0.5, 3.0))


async def isolate_primary(stage: Stage, chance: random.Random) -> None:
    """Alive, and cut off from router and standbys alike: it must be replaced, and must not be believed later."""
    server = await stage.primary()
    async with cut_replication_of(stage, server, Network.HANGS):
        await _network(stage, Network.HANGS, chance.uniform(3.0, 6.0), server.name)


async def cancel_storm(stage: Stage, chance: random.Random) -> None:
    """Callers cancel, go away and come back, for a while; at times while every COMMIT waits for frozen standbys."""
    load = stage.load
    if load is None:
        return
    async with contextlib.AsyncExitStack() as stack:
        if chance.random() < 0.5:
            await stack.enter_async_context(frozen_replication(stage, await stage.primary()))
        stage.history.note("cancel storm")
        until = time.monotonic() + chance.uniform(0.5, 1.5)
        while time.monotonic() < until:
            for process in chance.sample(sorted(load.running), k=min(4, len(load.running))):
                if process in load.running:
                    await call_off(load, process, chance)
            await asyncio.sleep(chance.uniform(0.0, 0.03))


async def call_off(load: Load, process: int, chance: random.Random) -> None:
    """End what a process waits for: by CancelQuery where the operation has a name, else by going away."""
    call, one = load.running[process]
    if one.kind is Kind.APPEND and chance.random() < 0.5:
        # That the request has ended, or that there is no primary any more, is as good.
        with contextlib.suppress(pointsman.Error):
            await load.caller(process).cancel(request_id(one.value))
    else:
        call.cancel()


async def exhaust_connections(stage: Stage, chance: random.Random) -> None:
    async with hogged(stage, await stage.primary()):
        await asyncio.sleep(chance.uniform(0.5, 2.5))


async def kill_router(stage: Stage, chance: random.Random) -> None:
    stage.history.note("kill -9 of the router")
    stage.router.process.kill()
    await asyncio.sleep(chance.uniform(0.0, 0.5))
    await stage.do(stage.router.relaunch)
    stage.history.note("the router serves again")


async def freeze_router(stage: Stage, chance: random.Random) -> None:
    stage.history.note("SIGSTOP of the router")
    os.kill(stage.router.process.pid, signal.SIGSTOP)
    await asyncio.sleep(chance.uniform(0.2, 2.0))
    os.kill(stage.router.process.pid, signal.SIGCONT)
    stage.history.note("SIGCONT of the router")


async def switch_over(stage: Stage, chance: random.Random) -> float | None:
    """Planned; the pause of writes that the router tells, None when it was refused."""
    server = await stage.primary()
    standbys = [one.name for one in await stage.do(stage.cluster.standbys)]
    if not standbys:
        return None
    to = chance.choice(standbys)
    stage.history.note(f"switchover from {server.name} to {to}")

    def order() -> float | None:
        request = pb.SwitchoverRequest(cluster="main", to=to, timeout_ms=10_000)
        with stage.router.operator() as operator:
            steps = list(operator.stream("Switchover", request, 15))
        return float(steps[-1].pause_s) if steps and steps[-1].done else None

    try:
        pause: float | None = await stage.do(order)
    except Trouble as error:
        stage.history.note(f"switchover refused: {str(error)[:200]}")
        return None
    stage.history.note("switched over")
    return pause


async def _switch(stage: Stage, chance: random.Random) -> None:
    await switch_over(stage, chance)


NEMESES: Mapping[str, Nemesis] = {one.name: one for one in (
    Nemesis("kill", kill, moves=True),
    Nemesis("freeze", freeze, moves=True),
    Nemesis("freeze_postmaster", freeze_postmaster, moves=True),
    Nemesis("freeze_walsenders", freeze_walsenders),
    Nemesis("freeze_standbys", freeze_standbys),
    Nemesis("kill_standby", kill_standby),
    Nemesis("crash_backend", crash_backend),
    Nemesis("shut_down", shut_down, moves=True),
    Nemesis("cut", cut, proxied=True),
    Nemesis("swallow", swallow, proxied=True),
    Nemesis("swallow_answers", swallow_answers, proxied=True),
    Nemesis("isolate", isolate, proxied=True),
    Nemesis("reset", reset, proxied=True),
    Nemesis("delay", delay, proxied=True),
    Nemesis("cut_replication", cut_replication),
    Nemesis("isolate_primary", isolate_primary, proxied=True, moves=True),
    Nemesis("exhaust_connections", exhaust_connections),
    Nemesis("cancel_storm", cancel_storm),
    Nemesis("kill_router", kill_router),
    Nemesis("freeze_router", freeze_router),
    Nemesis("switch_over", _switch, moves=True),
)}


def schedule(
    chance: random.Random, length: int, *, proxied: bool = True, without: Collection[str] = ()
) -> list[Nemesis]:
    """A random order of random nemeses; half of the kinds are left out of each, so that the others meet more often."""
    able = [one for one in NEMESES.values() if (proxied or not one.proxied) and one.name not in without]
    kinds = chance.sample(able, k=max(3, len(able) // 2))
    return [chance.choice(kinds) for _ in range(length)]
