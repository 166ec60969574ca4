"""The kinds of work: N tasks that call in a loop until the time is over, and what it took them."""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

from tests.benchmarks.callers.contract import ACCOUNTS, BRANCHES, TELLERS, Caller, Job, Target
from tests.benchmarks.figures import percentile

SLOW_S = 0.1
"""How long a slow statement of the mixed case takes."""

Answer = dict[str, Any]


@dataclass
class _Timed:
    """Durations of the operations that count, and when the last one ended."""

    latencies: list[float] = field(default_factory=list)
    last: float = 0.0


async def _loop(callers: int, seconds: float, operation: Callable[[random.Random, _Timed], Awaitable[None]]) -> Answer:
    timed = _Timed()
    start = perf_counter()
    end = start + seconds

    async def one(chance: random.Random) -> None:
        while perf_counter() < end:
            await operation(chance, timed)

    await asyncio.gather(*(one(random.Random(number)) for number in range(callers)))
    ordered = sorted(timed.latencies)
    if not ordered:
        return {"operations": 0, "elapsed_s": perf_counter() - start}
    return {
        "operations": len(ordered),
        "elapsed_s": timed.last - start,
        "p50_ms": percentile(ordered, 0.5) * 1000,
        "p99_ms": percentile(ordered, 0.99) * 1000,
    }


async def point_reads(caller: Caller, target: Target, job: Job) -> Answer:
    """Reads by key; with `slow_share`, so many of the calls are slow statements instead, which are not timed."""
    slow_share = float(job.get("slow_share", 0.0))

    async def operation(chance: random.Random, timed: _Timed) -> None:
        if slow_share and chance.random() < slow_share:
            await caller.sleep(SLOW_S)
            return
        aid = chance.randrange(1, ACCOUNTS + 1)
        start = perf_counter()
        row = await caller.point_read(aid)
        timed.last = perf_counter()
        timed.latencies.append(timed.last - start)
        if row[0] != aid:
            raise RuntimeError(f"account {aid} was asked for, {row!r} came")

    return await _loop(target.callers, float(job["seconds"]), operation)


async def transfers(caller: Caller, target: Target, job: Job) -> Answer:
    """pgbench's TPC-B-like transactions."""

    async def operation(chance: random.Random, timed: _Timed) -> None:
        start = perf_counter()
        await caller.transfer(
            chance.randrange(1, ACCOUNTS + 1), chance.randrange(1, TELLERS + 1), chance.randrange(1, BRANCHES + 1),
            chance.randrange(-5000, 5001),
        )
        timed.last = perf_counter()
        timed.latencies.append(timed.last - start)

    return await _loop(target.callers, float(job["seconds"]), operation)


async def stream(caller: Caller, target: Target, job: Job) -> Answer:
    """One large result; an operation is a row."""
    return await _once(caller.stream(int(job["rows"])), expected=int(job["rows"]))


async def copy_out(caller: Caller, target: Target, job: Job) -> Answer:
    """One COPY into a file of its own; an operation is a byte."""
    with tempfile.TemporaryDirectory(prefix="pointsman-bench-copy-") as directory:
        path = Path(directory, "rows")
        answer = await _once(caller.copy_out(int(job["rows"]), str(path)))
        _check_size(path, answer["operations"])
        return answer


def _check_size(path: Path, told: int) -> None:
    found = path.stat().st_size
    if found != told:
        raise RuntimeError(f"{told} bytes were told, {found} are in the file")


async def _once(work: Awaitable[int], expected: int | None = None) -> Answer:
    start = perf_counter()
    done = await work
    if expected is not None and done != expected:
        raise RuntimeError(f"{expected} rows were asked for, {done} came")
    return {"operations": done, "elapsed_s": perf_counter() - start}


KINDS: dict[str, Callable[[Caller, Target, Job], Awaitable[Answer]]] = {
    "point_reads": point_reads,
    "transfers": transfers,
    "stream": stream,
    "copy_out": copy_out,
}
