"""A cluster that a real Patroni manages, a router in follow mode before it: switchovers, failovers and kills."""

from __future__ import annotations

import asyncio
import itertools
import time

from router.devcluster import Server
from tests.chaos.cases.failovers import BREATH_S, GIVE_UP_S, longest_gap
from tests.chaos.cases.run import Found, Run, Skipped
from tests.chaos.figures import Figure, times
from tests.chaos.history import Kind
from tests.chaos.patroni import NoPatroni, PatroniCluster, wait_settled
from tests.chaos.stage import Stage, StageBroken, staged

WINDOW_S = 20.0
"""Patroni needs a few of its loops of 1 s to find the next primary."""
STRIKES = ("patronictl switchover", "kill -9 of the primary", "patronictl failover")


async def patroni(run: Run) -> Found:
    """Patroni moves the primary in three ways in turn; every time, writes must find the new one."""
    try:
        cluster = await asyncio.to_thread(PatroniCluster)
    except NoPatroni as reason:
        raise Skipped(str(reason)) from None
    try:
        await asyncio.to_thread(wait_settled, cluster)
        async with staged(mode="follow", cluster=cluster, window_s=WINDOW_S) as stage:
            return await _played(run, stage, cluster)
    finally:
        await asyncio.to_thread(cluster.stop)


async def _played(run: Run, stage: Stage, cluster: PatroniCluster) -> Found:
    load = run.load(stage, await run.mix(stage), timeout=WINDOW_S)
    gaps: dict[str, list[float]] = {strike: [] for strike in STRIKES}
    async with load.going():
        for number, strike in zip(range(run.size), itertools.cycle(STRIKES), strict=False):
            run.tell(f"{number + 1} of {run.size}: {strike}", number / run.size)
            await asyncio.sleep(BREATH_S)
            server, timeline = await stage.primary(), await stage.timeline()
            stage.history.note(f"{strike} ({server.name})")
            began = time.monotonic()
            await asyncio.to_thread(_strike, cluster, strike, server)
            if not await _moved(stage, timeline):
                run.notes.append(f"{strike} of {server.name}: no other primary within {GIVE_UP_S:g} s")
            await asyncio.to_thread(wait_settled, cluster)
            await _agreed(stage)
            gaps[strike].append(longest_gap(stage.history, began, time.monotonic()))
        await asyncio.sleep(BREATH_S)
    figures: list[Figure] = [
        run.errors(stage.history, "errors of reads and keyed writes", Kind.STRONG_READ, Kind.REPLICA_READ),
        *(times(f"{strike}: longest gap between acknowledged writes", took) for strike, took in gaps.items() if took),
        *await run.verdict(stage),
    ]
    return Found(figures, run.notes, stage.history)


def _strike(cluster: PatroniCluster, strike: str, server: Server) -> None:
    to = cluster.synchronous()
    if strike == STRIKES[0]:
        cluster.order("switchover", cluster.scope, "--leader", server.name, "--candidate", to, "--force")
    elif strike == STRIKES[1]:
        cluster.kill_primary(server)
    else:
        cluster.order("failover", cluster.scope, "--candidate", to, "--force")


async def _moved(stage: Stage, timeline: int) -> bool:
    until = time.monotonic() + GIVE_UP_S
    while time.monotonic() < until:
        seen = await stage.do(stage.cluster.observe)
        if max((one.timeline or 0 for one in seen.values()), default=0) > timeline:
            return True
        await asyncio.sleep(0.1)
    return False


async def _agreed(stage: Stage) -> None:
    """Wait until the router has Patroni's primary."""
    until = time.monotonic() + GIVE_UP_S
    while (view := await stage.router_view()).primary != (await stage.primary()).name:
        if time.monotonic() > until:
            raise StageBroken(f"the router's primary is {view.primary or 'none'}: {view.detail}")
        await asyncio.sleep(0.1)
