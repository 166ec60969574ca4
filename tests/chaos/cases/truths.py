"""Writes whose outcome is hard to know: cut off around their COMMIT, cancelled while it waits, and very many."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Iterator

import pointsman

from tests.chaos import checker, nemeses
from tests.chaos.callers import Caller
from tests.chaos.cases.run import Found, Run
from tests.chaos.figures import none_of
from tests.chaos.history import Kind, Operation, Outcome
from tests.chaos.load import Load
from tests.chaos.stage import Stage, staged
from tests.chaos.workloads import Appends, Batches, CancellableAppends, Transactions, request_id
from tests.support.proxy import Network
from tests.support.running_router import Config

WRITERS = 24


async def cut_off(run: Run) -> Found:
    """Un-keyed writes through a network that loses answers, or everything, and then resets; `size` unknown outcomes."""
    async with staged(proxied=True) as stage:
        workloads = [Appends(run.numbers, run.chance), Batches(run.numbers, run.chance),
                     Transactions(run.numbers, run.chance)]
        await run.set_up(stage, workloads)
        load = run.load(stage, workloads, rate=0, processes=WRITERS, timeout=5.0)
        rounds = 0
        async with load.going():
            while (unknown := _unknown(stage)) < run.size and rounds < 20 * run.size:
                run.tell(f"{unknown} of {run.size} unknown outcomes", unknown / run.size)
                rounds += 1
                await _cut(stage, run.chance)
                await asyncio.sleep(run.chance.uniform(0.1, 0.3))
        await stage.calm()
        figures = await run.verdict(stage)
        run.notes.append(f"{_unknown(stage):,} outcomes told to be unknown in {rounds} cuts")
        # Resets follow one another faster than in any outage: how often the router repeats is asked elsewhere.
        asked = [one for one in figures if one.n and not one.what.startswith("attempts")]
        return Found(asked, run.notes, stage.history)


def _unknown(stage: Stage) -> int:
    return sum(1 for one in stage.history.operations if one.outcome is Outcome.UNKNOWN)


async def _cut(stage: Stage, chance: random.Random) -> None:
    """A cut at a random moment of the writes in flight, of one of four kinds; a reset follows each."""
    how = chance.choice([Network.SWALLOWS_ANSWERS, Network.SWALLOWS_ANSWERS, Network.HANGS, Network.PASSES])
    stage.history.note("reset" if how is Network.PASSES else f"{how.value}, reset")
    await stage.network(how)
    await asyncio.sleep(chance.uniform(0.0, 0.06))
    for proxy in stage.proxies.values():
        proxy.reset()
    await stage.network(Network.PASSES)


# --- cancels at COMMIT -----------------------------------------------------------------------------------------------


async def cancelled(run: Run) -> Found:
    """Replication is frozen, so that COMMITs wait; callers cancel, run out of time, or go away; then a failover."""

    def wide(config: Config) -> None:
        config["tenants"]["acme"]["pool"] = {"max_size": 40}

    counted, per_round = 0, 32
    async with staged(edit=wide) as stage:
        workload = CancellableAppends(run.numbers, run.chance)
        await run.set_up(stage, [workload])
        await stage.calm()
        for number in itertools.count(1):
            run.tell(f"{counted} of {run.size}, failover {number}", counted / run.size)
            counted += await _round(run, stage, workload, per_round)
            await stage.calm()
            if counted >= run.size:
                break
            await asyncio.sleep(0.5)
        await stage.calm()
        answers = [await stage.do(stage.rows, query) for query in checker.QUERIES]
        found = checker.truth(stage.history.of(Kind.APPEND), checker.survivors(answers, 0).ledger)
        run.notes.append(f"{found.acknowledged:,} acknowledged, {found.unknown:,} unknown, in {number} failovers")
        figures = [
            none_of("writes acknowledged though cancelled at COMMIT, and lost", len(found.lost), counted,
                    "cancels at COMMIT"),
            none_of("told to be without effect, and there", len(found.told_failed), found.writes, "writes"),
            checker.late_figure(stage.history),
        ]
        return Found(figures, run.notes)


async def _round(run: Run, stage: Stage, workload: CancellableAppends, count: int) -> int:
    """Writes that begin around the freeze, each called off in its own way at its own moment, then kill -9."""
    server, timeline = await stage.primary(), await stage.timeline()
    load = Load(stage.history, stage.callers(2, 2), [workload], processes=count,
                timeout=lambda chance: chance.uniform(0.15, 1.5), seed=run.chance.getrandbits(30))
    first = len(stage.history.operations)
    async with nemeses.frozen_replication(stage, server):
        frozen_at = stage.history.note("writes begin")
        tasks = [asyncio.create_task(_call_off(load, workload, process, run.chance)) for process in range(count)]
        # Before the standbys notice the silence and connect anew: their timeout is two seconds.
        await asyncio.sleep(1.2)
        stage.history.note(f"kill -9 {server.name}")
        await stage.do(server.kill)
    await asyncio.gather(*tasks)
    for caller in load.callers:
        await caller.close()
    mine = stage.history.operations[first:]
    return sum(1 for one in mine if one.invoked >= frozen_at and (one.cancelled or one.outcome is not Outcome.OK
                                                                  or one.timeline <= timeline))


async def _call_off(load: Load, workload: CancellableAppends, process: int, chance: random.Random) -> Operation:
    """One write: ended by CancelQuery, by its caller going away, or by its deadline."""
    await asyncio.sleep(chance.uniform(0.0, 0.3))
    how = chance.choice(["cancel", "leave", "deadline"])
    writing = asyncio.create_task(load.run(process, workload))
    await asyncio.sleep(chance.uniform(0.0, 0.8))
    call, one = load.running.get(process, (None, None))
    if how == "cancel" and one is not None:
        await _cancel(load.caller(process), one)
    elif how == "leave" and call is not None:
        call.cancel()
    return await writing


async def _cancel(caller: Caller, one: Operation) -> None:
    try:
        await caller.cancel(request_id(one.value))
    except pointsman.Error:
        return  # it had ended, or there is no primary any more: then nothing was cancelled


# --- many of them ----------------------------------------------------------------------------------------------------


async def volume(run: Run) -> Found:
    """As many writes as go through, with something going wrong every few seconds, until `size` were acknowledged."""
    async with staged() as stage:
        load = run.load(stage, await run.mix(stage, writes_only=True), rate=0, processes=48)
        names: list[str] = []
        async with load.going():
            for number, fault in enumerate(_faults(run.chance), 1):
                done = acknowledged(stage)
                run.tell(f"{done:,} of {run.size:,}, fault {number}: {fault.name}", done / run.size)
                if done >= run.size and number > 3:
                    break
                await asyncio.sleep(run.chance.uniform(1.0, 4.0))
                names.append(fault.name)
                await fault.hit(stage, run.chance)
                await stage.calm()
        await stage.calm()
        run.notes.append(f"{len(names)} faults: {', '.join(sorted(set(names)))}")
        return Found(await run.verdict(stage), run.notes, stage.history)


def _faults(chance: random.Random) -> Iterator[nemeses.Nemesis]:
    """Without end, beginning with a kill."""
    yield nemeses.NEMESES["kill"]
    while True:
        yield from nemeses.schedule(chance, 6, proxied=False)


def acknowledged(stage: Stage) -> int:
    """Writes acknowledged so far."""
    return sum(1 for one in stage.history.of(*checker.WRITES) if one.outcome.acknowledged)

