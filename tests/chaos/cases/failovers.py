"""Primaries that are killed, frozen, replaced by others, or moved as planned: how long writes wait, and what fails."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable

import psycopg

from router.devcluster import Server
from tests.chaos import nemeses
from tests.chaos.cases.run import Found, Run
from tests.chaos.checker import WRITES
from tests.chaos.figures import none_of, times
from tests.chaos.history import Event, History, Kind, Outcome
from tests.chaos.load import Load
from tests.chaos.stage import Stage, staged
from tests.chaos.workloads import TIMELINE_SQL

GIVE_UP_S = 20.0
BREATH_S = 0.7
"""Undisturbed load between two faults; longer than a failover needs to be forgotten."""

Strike = Callable[[Stage, Server], Awaitable[object]]


async def again_and_again(run: Run, stage: Stage, load: Load, strike: Strike, moves: bool = True) -> list[float]:
    """`size` times: strike, wait for the first write that a new primary acknowledged with a copy, mend. The waits."""
    waits = []
    for number in range(run.size):
        run.tell(f"{number + 1} of {run.size}", number / run.size)
        await asyncio.sleep(BREATH_S)
        server, timeline = await stage.primary(), await stage.timeline()
        began = time.monotonic()
        striking = asyncio.create_task(_awaited(strike(stage, server)))
        first = await load.first_write_after(began, timeline, GIVE_UP_S)
        await striking
        waits.append(first.ended - began if first else GIVE_UP_S)
        if first is None:
            run.notes.append(f"round {number + 1}: no write within {GIVE_UP_S:g} s")
        stage.history.note(f"first write after {waits[-1]:.2f} s")
        await stage.calm()
    await asyncio.sleep(BREATH_S)
    return waits


async def _awaited(what: Awaitable[object]) -> object:
    return await what


async def killed(run: Run) -> Found:
    """kill -9 of the postmaster and all its children, promote mode."""
    async with staged() as stage:
        load = run.load(stage, await run.mix(stage), rate=330)

        async def strike(stage: Stage, server: Server) -> None:
            stage.history.note(f"kill -9 {server.name}")
            await stage.do(server.kill)

        async with load.going():
            waits = await again_and_again(run, stage, load, strike)
        await stage.calm()
        figures = [
            times("kill -9 → first synchronously acknowledged write", waits, p50=0.8, most=2.0),
            run.errors(stage.history, "errors of reads and keyed writes", Kind.STRONG_READ, Kind.REPLICA_READ),
            *await run.verdict(stage),
        ]
        return Found(figures, run.notes, stage.history)


async def frozen(run: Run) -> Found:
    """Every process of the primary suspended: nothing is refused, nothing answers."""
    async with staged() as stage:
        load = run.load(stage, await run.mix(stage))

        async def strike(stage: Stage, server: Server) -> None:
            async with nemeses.frozen(stage, server):
                await asyncio.sleep(4.0)

        async with load.going():
            waits = await again_and_again(run, stage, load, strike)
        await stage.calm()
        figures = [
            times("silent freeze → first synchronously acknowledged write", waits, most=3.0),
            run.errors(stage.history, "errors of reads and keyed writes", Kind.STRONG_READ, Kind.REPLICA_READ),
            *await run.verdict(stage),
        ]
        return Found(figures, run.notes, stage.history)


async def followed(run: Run) -> Found:
    """Someone else promotes; a prober beside the router says when the new primary took its first write."""
    async with staged(mode="follow") as stage:
        load = run.load(stage, await run.mix(stage))
        delays: list[float] = []
        writable: list[float] = []

        async def strike(stage: Stage, server: Server) -> None:
            to = (await stage.do(stage.cluster.standbys))[0]
            stage.history.note(f"kill -9 {server.name}")
            await stage.do(server.kill)
            await asyncio.sleep(0.4)
            probing = asyncio.create_task(stage.do(_first_write_at, stage, to))
            await stage.do(stage.cluster.fail_over, to.name)
            writable.append(await probing)
            stage.history.events.append(Event(writable[-1], f"{to.name} is writable"))

        async with load.going():
            for number in range(run.size):
                run.tell(f"{number + 1} of {run.size}", number / run.size)
                await asyncio.sleep(BREATH_S)
                server, timeline = await stage.primary(), await stage.timeline()
                began = time.monotonic()
                striking = asyncio.create_task(strike(stage, server))
                first = await load.first_write_after(began, timeline, GIVE_UP_S)
                await striking
                delays.append(max(0.0, first.ended - writable[-1]) if first else GIVE_UP_S)
                await stage.calm()
        figures = [
            times("new primary writable → first write through the router", delays, p99=0.25),
            run.errors(stage.history, "errors of reads and keyed writes", Kind.STRONG_READ, Kind.REPLICA_READ),
            *await run.verdict(stage),
        ]
        return Found(figures, run.notes, stage.history)


def _first_write_at(stage: Stage, server: Server) -> float:
    """When a server acknowledged its first write, asked every 5 ms over one connection."""
    until = time.monotonic() + GIVE_UP_S
    with psycopg.connect(stage.cluster.tenant_dsn("acme", server), autocommit=True) as connection:
        while time.monotonic() < until:
            try:
                connection.execute(f"insert into probes select {TIMELINE_SQL}")  # type: ignore[arg-type]
                return time.monotonic()
            except (psycopg.errors.ReadOnlySqlTransaction, psycopg.errors.ObjectNotInPrerequisiteState):
                time.sleep(0.005)
    raise AssertionError(f"{server.name} took no write within {GIVE_UP_S:g} s")


async def switched(run: Run) -> Found:
    """Planned switchovers, to and fro."""
    async with staged() as stage:
        load = run.load(stage, await run.mix(stage))
        told: list[float] = []
        gaps: list[float] = []
        refused = 0
        async with load.going():
            for number in range(run.size):
                run.tell(f"{number + 1} of {run.size}", number / run.size)
                await asyncio.sleep(BREATH_S)
                began = time.monotonic()
                pause = await nemeses.switch_over(stage, run.chance)
                refused += pause is None
                await asyncio.sleep(0.3)
                gaps.append(longest_gap(stage.history, began, time.monotonic()))
                if pause is not None:
                    told.append(pause)
                await stage.calm()
        await asyncio.sleep(0)
        figures = [
            run.errors(stage.history, "errors of all requests", *Kind),
            times("longest gap between acknowledged writes", gaps, p99=0.3),
            times("pause of writes as the router tells it", told),
            none_of("switchovers refused or undone", refused, run.size, "switchovers"),
            *await run.verdict(stage),
        ]
        return Found(figures, run.notes, stage.history)


def longest_gap(history: History, since: float, until: float) -> float:
    """The longest time without an acknowledged write in a span."""
    ends = [one.ended for one in history.of(*WRITES) if one.outcome is Outcome.OK and since <= one.ended <= until]
    marks = [since, *sorted(ends), until]
    return max(after - before for before, after in itertools.pairwise(marks))
