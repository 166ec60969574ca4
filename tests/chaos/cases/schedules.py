"""Random faults from a seed: no two primaries, no needless promotion, and a router that dies in the middle of one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

import psycopg

from tests.chaos import checker, nemeses
from tests.chaos.cases.run import Found, Run
from tests.chaos.figures import Figure, none_of, times
from tests.chaos.history import Kind
from tests.chaos.load import Load
from tests.chaos.stage import Stage, StageBroken, staged
from tests.support.proxy import Network

FAULTS = 3
"""Of one schedule."""
CONVERGED_S = 5.0


async def split_brain(run: Run) -> Found:
    """`size` schedules of random faults, the returning primary among them, in follow and in promote mode in turn."""
    writes = pairs = late = statements = broken = 0
    history = None
    for number in range(run.size):
        run.tell(f"schedule {number + 1} of {run.size}", number / run.size)
        mode = "follow" if number % 4 == 3 else "promote"
        async with staged(mode=mode, proxied=True) as stage:
            load = run.load(stage, await run.mix(stage), rate=150, processes=24)
            names: list[str] = []
            async with load.going():
                for fault in nemeses.schedule(run.chance, FAULTS):
                    await asyncio.sleep(run.chance.uniform(0.2, 1.0))
                    names.append(fault.name)
                    await fault.hit(stage, run.chance)
                    arrived, looked = await _late_arrivals(stage)
                    late, statements = late + arrived, statements + looked
                    if run.chance.random() < 0.7:
                        await _calm(stage, f"schedule {number + 1} ({mode}: {', '.join(names)})")
            await _calm(stage, f"schedule {number + 1} ({mode}: {', '.join(names)})")
            found = checker.two_timelines(stage.history)
            pairs += len(found)
            writes += sum(1 for one in stage.history.of(*checker.WRITES) if one.outcome.acknowledged)
            figures = await run.verdict(stage)
            for one in figures:
                if one.reached is False:
                    run.notes.append(f"schedule {number + 1} ({mode}: {', '.join(names)}): {one.what}: {one.said}")
            bad = [one for one in figures if one.reached is False and not one.what.startswith("attempts")]
            broken += bool(bad)
            history = stage.history
    return Found([
        none_of("schedules with writes acknowledged on two timelines", pairs, run.size,
                f"schedules ({writes:,} writes)"),
        none_of("writes that reached a former primary after a newer one had served", late, run.size,
                f"schedules ({statements:,} rows on former primaries)"),
        none_of("schedules in which anything was lost, doubled, told wrong, stale or late", broken,
                run.size, "schedules"),
    ], run.notes, history)


async def _calm(stage: Stage, words: str) -> None:
    try:
        await stage.calm()
    except StageBroken as error:
        raise StageBroken(f"{words}: {error}") from None


async def _late_arrivals(stage: Stage) -> tuple[int, int]:
    """Rows on servers that think they are primary beside the newest one: (asked for too late, looked at)."""
    seen = await stage.do(stage.cluster.observe)
    claims = {name: one.timeline or 0 for name, one in seen.items() if not one.in_recovery}
    late = looked = 0
    for name, timeline in claims.items():
        if timeline == max(claims.values()):
            continue
        try:
            rows = await stage.do(stage.rows, "select id from ledger", stage.cluster.servers[name])
        except psycopg.Error:
            continue
        looked += len(rows)
        found = checker.late_arrivals(stage.history, [row[0] for row in rows], timeline)
        late += len(found)
        if found:
            stage.history.note(f"{name}, timeline {timeline} beside {max(claims.values())}, has late rows {found[:9]}")
    return late, looked


# --- nobody is promoted without need ---------------------------------------------------------------------------------


async def _lost_probe(stage: Stage, chance: random.Random) -> None:
    stage.history.note("one probe is lost")
    await stage.network(Network.HANGS, (await stage.primary()).name)
    await asyncio.sleep(0.4)
    await stage.network(Network.PASSES)


async def _router_cut_off(stage: Stage, chance: random.Random) -> None:
    how = chance.choice([Network.REFUSES, Network.HANGS])
    stage.history.note(f"the router is cut off from everyone: {how.value}")
    await stage.network(how)
    await asyncio.sleep(chance.uniform(1.0, 4.0))
    await stage.network(Network.PASSES)
    for proxy in stage.proxies.values():
        proxy.drop()


NEEDLESS: Sequence[tuple[str, Callable[[Stage, random.Random], Awaitable[None]]]] = (
    ("crash restart", nemeses.crash_backend),
    ("one lost probe", _lost_probe),
    ("router cut off", _router_cut_off),
    ("router cut off from the primary", nemeses.cut),
    ("primary swallowed for the router", nemeses.swallow),
    ("connections exhausted", nemeses.exhaust_connections),
    ("router restarted", nemeses.kill_router),
    ("walsenders frozen", nemeses.freeze_walsenders),
)


async def needless(run: Run) -> Found:
    """Trouble that is no reason for a promotion."""
    promoted: list[str] = []
    async with staged(proxied=True) as stage:
        load = run.load(stage, await run.mix(stage), rate=150, processes=24)
        async with load.going():
            for number in range(run.size):
                name, strike = NEEDLESS[number % len(NEEDLESS)]
                run.tell(f"{number + 1} of {run.size}: {name}", number / run.size)
                before = (await stage.primary()).name, await stage.timeline()
                await strike(stage, run.chance)
                await asyncio.sleep(run.chance.uniform(0.5, 1.5))
                await stage.calm()
                after = (await stage.primary()).name, await stage.timeline()
                if after != before:
                    promoted.append(name)
        await stage.calm()
        run.notes += [f"promoted without need: {name}" for name in promoted]
        figures = await run.verdict(stage)
        return Found([none_of("needless promotions", len(promoted), run.size, "trials"), *figures], run.notes,
                     stage.history)


# --- the router dies during a promotion ------------------------------------------------------------------------------

_STEP = re.compile(r'^(?=.*"event": "failover step done").*"step": "([^"]+)"', re.MULTILINE)


async def router_killed(run: Run) -> Found:
    """kill -9 of the router after each step of a promotion that it logs; `size` times each."""
    waits: list[float] = []
    steps: list[str] = []
    async with staged() as stage:
        load = run.load(stage, await run.mix(stage), rate=150, processes=24)
        async with load.going():
            await asyncio.sleep(0.7)
            steps = await _steps_of_a_promotion(stage)
            for number, nth in enumerate([n for _ in range(run.size) for n in range(len(steps) + 1)]):
                run.tell(f"{number + 1} of {run.size * (len(steps) + 1)}", number / run.size / (len(steps) + 1))
                await asyncio.sleep(1.1)
                waits.append(await _killed_at(run, stage, load, nth))
                when = f"after {steps[nth - 1]}" if nth else "when it had begun"
                run.notes.append(f"killed {when}: first write after {waits[-1]:.2f} s")
                if waits[-1] > CONVERGED_S:
                    run.notes.append(f"the next router meanwhile: {_story(stage.router.log.read_text())}")
                await stage.calm()
        await stage.calm()
        run.notes.append(f"killed when the promotion had begun, and after each of: {', '.join(steps)}")
        figures = await run.verdict(stage)
        return Found([times("router killed → first write through the next one", waits, most=CONVERGED_S), *figures],
                     run.notes, stage.history)


def _story(log: str) -> str:
    """What a router did to its cluster, out of its log, shortly."""
    told = []
    for line in log.splitlines():
        with contextlib.suppress(ValueError):
            fields = json.loads(line)
            if str(fields.get("event", "")).startswith(("failover", "cluster phase", "endpoint health")):
                wanted = ("timestamp", "event", "step", "endpoint", "before", "after", "reason", "took_ms", "detail")
                told.append(" ".join(str(fields[key]) for key in wanted if key in fields))
    return "; ".join(told[-40:])


async def _steps_of_a_promotion(stage: Stage) -> list[str]:
    server = await stage.primary()
    await stage.do(server.kill)
    await stage.calm()
    return [str(step) for step in _STEP.findall(stage.router.log.read_text())]


async def _killed_at(run: Run, stage: Stage, load: Load, nth: int) -> float:
    """Kill the primary, and the router once it has logged `nth` steps; until the next router has served a write."""
    server, timeline = await stage.primary(), await stage.timeline()
    log, until = stage.router.log, time.monotonic() + 10
    offset = log.stat().st_size
    killing = asyncio.create_task(stage.do(server.kill))
    stage.history.note(f"kill -9 {server.name}")

    def wait() -> None:
        while time.monotonic() < until:
            text = log.read_bytes()[offset:].decode()
            if len(_STEP.findall(text)) >= nth if nth else '"promoting"' in text:
                return
            time.sleep(0.001)

    await stage.do(wait)
    stage.router.process.send_signal(signal.SIGKILL)
    killed = stage.history.note(f"kill -9 of the router after step {nth}")
    await killing
    await stage.do(stage.router.relaunch)
    first = await load.first_write_after(killed, timeline, 20.0)
    if first is None:
        run.notes.append(f"killed after step {nth}: no write within 20 s")
        return 20.0
    return float(first.ended - killed)


# --- hours of it -----------------------------------------------------------------------------------------------------


async def segment(run: Run, minutes: float) -> Found:
    """Random faults for a while, of every kind, on a cluster of its own; everything is asked of the survivors."""
    until = time.monotonic() + minutes * 60
    names: list[str] = []
    async with staged(proxied=True) as stage:
        load = run.load(stage, await run.mix(stage, lists=True), rate=200, processes=32)
        async with load.going():
            while time.monotonic() < until:
                for fault in nemeses.schedule(run.chance, FAULTS):
                    run.tell(f"fault {len(names) + 1}: {fault.name}", 1 - (until - time.monotonic()) / minutes / 60)
                    await asyncio.sleep(run.chance.uniform(0.5, 3.0))
                    names.append(fault.name)
                    await fault.hit(stage, run.chance)
                await _calm(stage, f"after {', '.join(names[-2 * FAULTS:])}")
        await _calm(stage, "at the end")
        figures: list[Figure] = await run.verdict(stage, lists=True)
        errors = run.errors(stage.history, "errors of reads and keyed writes", Kind.STRONG_READ, Kind.REPLICA_READ)
        # No goal: while the router itself is dead, its callers must see it.
        figures.append(replace(errors, goal="", reached=None))
        run.notes.append(f"{len(names)} faults: {', '.join(sorted(set(names)))}")
        return Found(figures, run.notes, stage.history)

