"""What must hold while nothing works: deadlines, few repetitions, and the way back when an outsider lets go."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from router.model.reasons import RetryReason
from tests.chaos import checker, nemeses
from tests.chaos.cases.run import Found, Run
from tests.chaos.figures import Figure, none_of, times
from tests.chaos.history import Kind, Outcome
from tests.chaos.stage import Stage, staged
from tests.chaos.workloads import Sleeps
from tests.support.proxy import Network
from tests.support.running_router import Config

FAULTS = ("swallow", "freeze", "exhaust_connections", "isolate", "freeze_standbys", "swallow_answers", "kill", "cut")
FREE = (RetryReason.NOT_SENT.value, RetryReason.KEY_BUSY.value)
"""Reasons to repeat what cost no server anything; the retry budget does not bound them."""


def _small_pool(config: Config) -> None:
    """So that statements that sleep fill it, too."""
    config["tenants"]["acme"]["pool"] = {"max_size": 6}


@dataclass(frozen=True)
class Counted:
    """What the router's own counters said at one moment."""

    requests: float
    repeated: float
    """Attempts made again that a server had to work for."""
    free: float
    """Attempts made again because nothing had been sent, or a twin had the key."""
    connects: float = 0.0
    """Connections that could not be opened."""


def counted(page: Mapping[str, float]) -> Counted:
    """Out of a metrics page."""
    requests = sum(value for name, value in page.items() if name.startswith("pointsman_requests_total{"))
    repeats = {name: value for name, value in page.items() if name.startswith("pointsman_retries_total{")}
    free = sum(value for name, value in repeats.items() if any(f'reason="{one}"' in name for one in FREE))
    connects = sum(value for name, value in page.items() if name.startswith("pointsman_connect_failures_total{"))
    return Counted(requests, sum(repeats.values()) - free, free, connects)


def repeats_by_reason(page: Mapping[str, float]) -> str:
    """What was repeated and why, and the connects that failed, for a note."""
    counts: Counter[str] = Counter()
    for name, value in page.items():
        if name.startswith("pointsman_retries_total{"):
            counts[name.partition('reason="')[2].partition('"')[0]] += round(value)
    failed = counted(page).connects
    return f"repeated: {dict(counts.most_common())}; {failed:,.0f} connects failed"


def amplification(samples: Sequence[Counted], window: int = 10) -> Figure:
    """Attempts sent to servers per request in the worst window of so many samples (a second apart), as if each request
    had reached one at least once. Connects have a goal of their own, per second; with them it is told beside."""
    goal, what = "≤ 1.10", "attempts sent to servers per request, worst 10 s"
    pairs = [(before, after) for before, after in zip(samples, samples[window:] or samples[-1:], strict=False)
             if after.requests - before.requests >= 100]
    if not pairs:
        return Figure(what, goal, "not measured", 0)
    ratios = [1 + (after.repeated - before.repeated) / (after.requests - before.requests) for before, after in pairs]
    with_connects = max(ratio + (after.connects - before.connects) / (after.requests - before.requests)
                        for ratio, (before, after) in zip(ratios, pairs, strict=True))
    n = round(samples[-1].requests - samples[0].requests)
    free, connects = samples[-1].free - samples[0].free, samples[-1].connects - samples[0].connects
    said = (f"{max(ratios):.3f} over {n:,} requests ({with_connects:.3f} with the {connects:,.0f} connects that failed)"
            f"; {free:,.0f} times a request looked again without asking a server")
    return Figure(what, goal, said, n, max(ratios), max(ratios) <= 1.10, ratios)


async def _count(stage: Stage, samples: list[Counted]) -> None:
    while True:
        samples.append(counted(await stage.do(stage.router.scrape)))
        await asyncio.sleep(1)


async def deadlines(run: Run) -> Found:
    """Requests with 0.1 to 1 s of time, under frozen servers, swallowing networks, full pools and full servers."""
    async with staged(proxied=True, edit=_small_pool) as stage:
        workloads = await run.mix(stage)
        workloads += [Sleeps(run.numbers, run.chance)] * 2
        load = run.load(stage, workloads, rate=200, processes=64, timeout=lambda chance: chance.uniform(0.1, 1.0))
        number = 0
        async with load.going():
            while len(stage.history.operations) < run.size or number < len(FAULTS) // 2:
                name = FAULTS[number % len(FAULTS)]
                done = len(stage.history.operations)
                run.tell(f"{done:,} of {run.size:,} requests, {name}", min(1.0, done / run.size))
                await nemeses.NEMESES[name].hit(stage, run.chance)
                await asyncio.sleep(0.5)
                await stage.calm()
                number += 1
        await stage.calm()
        missed = sum(1 for one in stage.history.operations if one.outcome is not Outcome.OK)
        run.notes.append(f"{missed:,} of {len(stage.history.operations):,} requests could not be served in their time; "
                         f"faults: {', '.join(dict.fromkeys(FAULTS[:number]))}")
        figures = await run.verdict(stage)
        return Found([one for one in figures if not one.what.startswith("attempts")], run.notes, stage.history)


async def retries(run: Run) -> Found:
    """A full outage for `size` seconds, then as long connections that break all the time: how much is repeated."""
    async with staged(proxied=True) as stage:
        load = run.load(stage, await run.mix(stage), rate=300, processes=48, timeout=1.0)
        rates: list[float] = []
        samples: list[Counted] = []
        async with load.going():
            counting = asyncio.create_task(_count(stage, samples))
            await asyncio.sleep(1)
            for how in (Network.REFUSES, Network.HANGS):
                run.tell(f"full outage: {how.value}", 0.25)
                stage.history.note(f"full outage: {how.value}")
                await stage.network(how)
                rates += await _connects(stage, run.size / 2)
                await stage.network(Network.PASSES)
                for proxy in stage.proxies.values():
                    proxy.drop()
                await asyncio.sleep(1)
            run.tell("connections break", 0.6)
            stage.history.note("connections break every 0.2 s")
            until = time.monotonic() + run.size
            while time.monotonic() < until:
                for proxy in stage.proxies.values():
                    proxy.reset()
                await asyncio.sleep(0.2)
            stage.history.note("the network is well")
            await asyncio.sleep(1)
            counting.cancel()
        await stage.calm()
        run.notes.append(repeats_by_reason(await stage.do(stage.router.scrape)))
        most = max(one.attempts for one in stage.history.operations)
        run.notes.append(f"most attempts of one request: {most}, failed connects included")
        figures = [
            amplification(samples),
            _rate("connects a second to one server in a full outage, after the first second", rates, 10.0),
            *await run.verdict(stage),
        ]
        return Found(figures, run.notes, stage.history)


async def _connects(stage: Stage, seconds: float) -> list[float]:
    """Connects a second to each server, as the proxies count them, from the second second on."""
    await asyncio.sleep(1)
    before = {name: proxy.accepted for name, proxy in stage.proxies.items()}
    await asyncio.sleep(max(1.0, seconds - 1))
    return [(proxy.accepted - before[name]) / max(1.0, seconds - 1) for name, proxy in stage.proxies.items()]


def _rate(what: str, rates: Sequence[float], most: float) -> Figure:
    worst = max(rates, default=0.0)
    return Figure(what, f"≤ {most:g}", f"{worst:.1f} at most", len(rates), worst, worst <= most, rates)


async def connections(run: Run) -> Found:
    """An outsider holds every connection of the primary that it can get, for `size` seconds."""
    async with staged() as stage:
        load = run.load(stage, await run.mix(stage), rate=150, processes=24, timeout=2.0)
        before = await stage.timeline()
        async with load.going():
            await asyncio.sleep(1)
            server = await stage.primary()
            async with nemeses.hogged(stage, server) as taken:
                await asyncio.sleep(run.size)
            released = time.monotonic()
            await asyncio.sleep(2.0)
        await stage.calm()
        back = [one.ended - released for one in stage.history.of(*checker.WRITES)
                if one.outcome is Outcome.OK and one.ended > released]
        run.notes.append(f"the outsider had {taken} connections for {run.size} s")
        figures = [
            times("outsider gone → first write", back[:1], most=1.0),
            none_of("needless promotions", (await stage.timeline()) - before, 1, "trial"),
            run.errors(stage.history, "errors of reads and keyed writes after that, and before", Kind.STRONG_READ),
            *await run.verdict(stage),
        ]
        return Found(figures, run.notes, stage.history)
