"""What callers may see: their own writes on lagging replicas, and transactions that have an order."""

from __future__ import annotations

import asyncio
import random

from router.devcluster import Server, replication
from tests.chaos import checker, nemeses
from tests.chaos.callers import SdkCaller
from tests.chaos.cases.run import Found, Run, Skipped
from tests.chaos.figures import Figure, none_of
from tests.chaos.history import Kind
from tests.chaos.load import Load
from tests.chaos.stage import TENANT, Stage, staged
from tests.chaos.workloads import Lists, OwnReads

PROCESSES = 16
LISTS_FAULTS = ("kill", "crash_backend", "freeze_walsenders", "switch_over", "kill_standby", "freeze")


async def own_reads(run: Run) -> Found:
    """Each process writes and reads back from replicas that lag by up to 2 s, or whose replay is paused."""
    async with staged() as stage:
        await _ask_for_tokens(stage)
        workload = OwnReads(run.numbers, run.chance, processes=PROCESSES)
        await run.set_up(stage, [workload])
        callers = stage.callers(PROCESSES // 2, PROCESSES // 2, session=True)
        load = Load(stage.history, callers, [workload], processes=PROCESSES, rate=0, seed=run.seed)
        async with load.going():
            while len(stage.history.operations) < run.size:
                done = len(stage.history.operations)
                run.tell(f"{done:,} of {run.size:,}", done / run.size)
                await _lag(stage, run.chance)
        await stage.do(_catch_up, stage)
        await stage.calm()
        stale, looked, replicas = checker.stale_own_reads(stage.history)
        run.notes.append(f"{replicas:,} of {looked:,} reads were answered by replicas")
        figures = [
            none_of("reads that did not see what their caller had written or read", stale, looked, "reads"),
            run.errors(stage.history, "errors", Kind.OWN_READ, keyed=False),
            checker.late_figure(stage.history),
        ]
        return Found(figures, run.notes, stage.history)


async def _ask_for_tokens(stage: Stage) -> None:
    caller = SdkCaller(stage.router.connect(TENANT))
    try:
        await caller.write("select 1", timeout=5)
        if not caller.db.token:
            raise Skipped("the router sends no consistency tokens")
    finally:
        await caller.close()


async def _lag(stage: Stage, chance: random.Random) -> None:
    """One standby lags or stops replaying for a while, sometimes both."""
    standbys = await stage.do(stage.cluster.standbys)
    for server in standbys:
        delay, paused = chance.choice([0, 0, 200, 2000]), chance.random() < 0.3
        stage.history.note(f"{server.name} {'stops replaying' if paused else f'replays {delay} ms late'}")
        await stage.do(_replay, server, delay, paused)
    await asyncio.sleep(chance.uniform(0.5, 1.5))


def _replay(server: Server, delay_ms: int, paused: bool) -> None:
    replication.set_parameters(server, recovery_min_apply_delay=f"{delay_ms}ms")
    with server.connect() as connection:
        connection.execute("select pg_wal_replay_pause()" if paused else "select pg_wal_replay_resume()")


def _catch_up(stage: Stage) -> None:
    for server in stage.cluster.standbys():
        _replay(server, 0, False)


async def isolation(run: Run) -> Found:
    """List-append transactions, serializable, on the primary, by batches and interactively, under faults."""
    async with staged() as stage:
        workload = Lists(run.numbers, run.chance)
        await run.set_up(stage, [workload])
        load = run.load(stage, [workload], rate=0, processes=16)
        number = 0
        async with load.going():
            while (done := len(stage.history.operations)) < run.size or number < 2:
                run.tell(f"{done:,} of {run.size:,} transactions", min(1.0, done / run.size))
                await asyncio.sleep(run.chance.uniform(0.5, 2.0))
                await nemeses.NEMESES[run.chance.choice(LISTS_FAULTS)].hit(stage, run.chance)
                await stage.calm()
                number += 1
        await stage.calm()
        verdict = await run.verdict(stage, lists=True)
        figures: list[Figure] = [one for one in verdict if one.what.startswith(("anomalies", "requests"))]
        read = sum(1 for one in stage.history.of(Kind.LISTS) if any(step[0] == "read" for step in one.value))
        run.notes.append(f"{number} faults, {read:,} transactions with reads")
        return Found(figures, run.notes, stage.history)
