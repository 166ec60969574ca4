"""What the lane pool costs per unit of work, without PostgreSQL: `python -m tests.engine.measure_lane_pool`.

Lanes that answer everything they were given once a loop turn. Not a test: figures depend on the machine; compare two
versions in one go.
"""

from __future__ import annotations

import asyncio
import statistics
from time import perf_counter
from typing import Any

from router.engine.lane_pool import LanePool
from router.model.identity import Generation
from router.model.policy import PoolPolicy
from router.model.reasons import CloseReason
from router.model.request import Statement
from router.model.result import StatementResult
from router.ports import PoolStatistics, Unit
from router.system import SystemClock
from tests.support.lane_world import free_runs

try:
    from router.engine.shared_read import SharedRead
except ImportError:  # a version before it, to compare with
    SharedRead = None  # type: ignore[assignment,misc]

READS = 20_000
ROUNDS = 7
RESULT = StatementResult(None, "SELECT 1", 1)


class InstantLane:
    """Answers in the next turn."""

    generation = Generation(1)
    usable = True
    in_transaction = False
    in_failed_transaction = altered = False

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._units: list[Unit] = []
        self.in_flight = 0

    def submit(self, unit: Unit) -> None:
        if not self._units:
            self._loop.call_soon(self._answer)
        self._units.append(unit)

    def _answer(self) -> None:
        units, self._units = self._units, []
        now = self._loop.time()
        for unit in units:
            unit.sent = True
            unit.sent_at = now
            unit.done_at = now
            unit.results.append(RESULT)
            unit.done(unit)

    def abandon(self, reason: CloseReason) -> None: ...

    def forget_prepared(self) -> None: ...

    async def give_back(self, *, tainted: bool = False) -> None: ...


class InstantPool:
    """Lends such lanes."""

    generation = Generation(1)

    async def open_lane(self, deadline: float) -> Any:
        return InstantLane()

    async def close(self, reason: CloseReason) -> None: ...

    def statistics(self) -> PoolStatistics:
        return PoolStatistics()


def _pool() -> LanePool:
    instant: Any = InstantPool()
    return LanePool(instant, PoolPolicy(), SystemClock(), free_runs(PoolPolicy(), SystemClock()))


async def reads_by_call(callers: int) -> float:
    """Each caller starts its next read when the last is answered, by callback."""
    pool, loop, statement = _pool(), asyncio.get_running_loop(), Statement(b"select 1")
    await pool.run_shared(statement, loop.time() + 5)
    left, done = READS, loop.create_future()
    deadline = loop.time() + 60

    def answered(_: Any) -> None:
        nonlocal left
        left -= 1
        if left >= callers:
            pool.start_shared(SharedRead(statement, deadline, answered))
        elif left == 0:
            done.set_result(None)

    began = perf_counter()
    for _ in range(callers):
        pool.start_shared(SharedRead(statement, deadline, answered))
    await done
    took = perf_counter() - began
    await pool.close(CloseReason.SHUTDOWN)
    return took / READS * 1e6


async def reads_by_task(callers: int) -> float:
    """The same with a task per caller."""
    pool, loop, statement = _pool(), asyncio.get_running_loop(), Statement(b"select 1")
    await pool.run_shared(statement, loop.time() + 5)

    async def caller() -> None:
        for _ in range(READS // callers):
            await pool.run_shared(statement, loop.time() + 30)

    began = perf_counter()
    await asyncio.gather(*(caller() for _ in range(callers)))
    took = perf_counter() - began
    await pool.close(CloseReason.SHUTDOWN)
    return took / READS * 1e6


async def executes(callers: int) -> float:
    """pin, run, release."""
    pool, loop, statement = _pool(), asyncio.get_running_loop(), Statement(b"update")

    async def caller() -> None:
        for _ in range(READS // callers):
            slot = await pool.pin(loop.time() + 30)
            await pool.run_pinned(slot, (statement,), loop.time() + 30, commits=True)
            pool.release(slot)

    began = perf_counter()
    await asyncio.gather(*(caller() for _ in range(callers)))
    took = perf_counter() - began
    await pool.close(CloseReason.SHUTDOWN)
    return took / READS * 1e6


def main() -> None:
    cases: list[tuple[str, Any, int]] = [("read, task per caller", reads_by_task, n) for n in (1, 16, 256)]
    if SharedRead is not None:
        cases += [("read, by call", reads_by_call, n) for n in (1, 16, 256)]
    cases += [("pin, run, release", executes, n) for n in (1, 4)]
    for name, work, callers in cases:
        found = [asyncio.run(work(callers)) for _ in range(ROUNDS)]
        print(f"{name:24} {callers:4} callers {statistics.median(found):7.2f} µs (least {min(found):.2f})")


if __name__ == "__main__":
    main()
