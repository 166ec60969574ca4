"""Callers of one tenant in a process of their own: what they cost is not taken for lateness of their neighbours.

`python -m tests.chaos.crowd` reads a Plan and then orders as JSON lines, and answers each: "go" and "rest" at once,
"measure" after so many seconds with what was served and refused in them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pointsman

from tests.benchmarks.starting import own_environment, python_module, read_line, started

ANSWER_S = 60.0
_TICK_S = 0.002


@dataclass(frozen=True)
class Plan:
    """Who calls what."""

    address: str
    tenant: str
    token: str
    sql: str
    callers: int = 1
    """Each asks again as soon as it is answered."""
    writes: int = 0
    """Every so many-th caller sends it as a write; 0: all read."""
    per_s: float = 0.0
    """Instead: so many calls a second, whatever becomes of them; all of them writes."""
    timeout: float = 10.0


@dataclass
class Count:
    """What came of the calls that ended while it was measured."""

    seconds: float = 0.0
    served: list[float] = field(default_factory=list)
    """How long each took (seconds)."""
    refused: list[float] = field(default_factory=list)
    """The same of those that were refused with RESOURCE_EXHAUSTED."""
    failed: dict[str, int] = field(default_factory=dict)
    """Whatever else there was, by reason."""

    @property
    def per_s(self) -> float:
        """Served a second."""
        return len(self.served) / self.seconds if self.seconds else 0.0


class _Callers:
    def __init__(self, plan: Plan, db: pointsman.Client) -> None:
        self.plan = plan
        self.count = Count()
        self.failed: Counter[str] = Counter()
        self._db = db
        self._tasks: set[asyncio.Task[None]] = set()

    def go(self) -> None:
        if self.plan.per_s:
            self._spawn(self._offer())
            return
        for number in range(self.plan.callers):
            self._spawn(self._again(writes=self.plan.writes > 0 and number % self.plan.writes == 0))

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def rest(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _again(self, *, writes: bool) -> None:
        while True:
            await self._call(writes=writes)

    async def _offer(self) -> None:
        start, sent = time.perf_counter(), 0
        while True:
            for _ in range(int((time.perf_counter() - start) * self.plan.per_s) - sent):
                self._spawn(self._call(writes=True))
                sent += 1
            await asyncio.sleep(_TICK_S)

    async def _call(self, *, writes: bool) -> None:
        call = self._db.execute if writes else self._db.query
        began = time.perf_counter()
        try:
            await call(self.plan.sql, timeout=self.plan.timeout)
        except pointsman.Error as error:
            if isinstance(error, pointsman.ResourceExhausted):
                self.count.refused.append(time.perf_counter() - began)
            else:
                self.failed[error.reason or error.code.name] += 1
        else:
            self.count.served.append(time.perf_counter() - began)

    async def measure(self, seconds: float) -> Count:
        self.count, self.failed = Count(), Counter()
        began = time.perf_counter()
        await asyncio.sleep(seconds)
        count, self.count = self.count, Count()
        count.seconds, count.failed = time.perf_counter() - began, dict(self.failed)
        return count


async def _main() -> None:
    def line() -> Any:
        return json.loads(sys.stdin.readline() or "null")

    plan = Plan(**await asyncio.to_thread(line))
    async with pointsman.connect(plan.address, tenant=plan.tenant, token=plan.token) as db:
        callers = _Callers(plan, db)
        while (order := await asyncio.to_thread(line)) is not None:
            answer: Any = {}
            match order["do"]:
                case "go":
                    callers.go()
                case "rest":
                    await callers.rest()
                case "measure":
                    answer = asdict(await callers.measure(order["seconds"]))
            print(json.dumps(answer), flush=True)
        await callers.rest()


class Crowd:
    """The process, from outside."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process = process
        self._log = log

    async def go(self) -> None:
        """They begin to call."""
        await self._order({"do": "go"})

    async def rest(self) -> None:
        """They stop; what is under way is cancelled."""
        await self._order({"do": "rest"})

    async def measure(self, seconds: float) -> Count:
        """What came of the calls that ended from now on."""
        return Count(**await self._order({"do": "measure", "seconds": seconds}, seconds))

    def send(self, line: dict[str, Any]) -> None:
        """One line to it."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(line).encode() + b"\n")
        self._process.stdin.flush()

    async def _order(self, order: dict[str, Any], seconds: float = 0.0) -> dict[str, Any]:
        self.send(order)
        answer = await asyncio.to_thread(read_line, self._process, seconds + ANSWER_S, self._log)
        told: dict[str, Any] = json.loads(answer)
        return told


@asynccontextmanager
async def crowd(plan: Plan, log: Path) -> AsyncIterator[Crowd]:
    """The process, connected; it ends with the block."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with started(python_module("tests.chaos.crowd"), log, env=own_environment(), **pipes) as process:
        callers = Crowd(process, log)
        callers.send(asdict(plan))
        try:
            yield callers
        finally:
            assert process.stdin is not None
            process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):  # `started` ends it then
                await asyncio.to_thread(process.wait, 5)


if __name__ == "__main__":
    asyncio.run(_main())
