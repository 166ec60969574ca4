"""ports.EndpointPool over lanes that only take time: for simulations of thousands of statements on virtual time.

A statement's text is its time in microseconds, as in b"50 point". Each lane works on one unit after the other; cores
bounds how many lanes compute at once; a text that ends in "sleep" needs none.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from router.model.identity import Generation
from router.model.observation import Fault, FaultKind, Stage
from router.model.reasons import CloseReason
from router.model.result import StatementResult
from router.ports import CopyChannel, PoolStatistics, Unit


class TimedPool:
    """Lends timed lanes."""

    def __init__(self, max_size: int, cores: int = 1 << 30, connect_s: float = 0.005) -> None:
        self.generation = Generation(1)
        self.lanes: list[TimedLane] = []
        self.most_lanes = 0
        self.opened = 0
        self.submitted: list[Unit] = []
        """All that lanes were given, in their order."""
        self.begun: list[bytes] = []
        """Texts of the statements that the server has begun."""
        self.takes: Callable[[TimedLane, bytes], float] = lambda _, sql: float(sql.split()[0]) * 1e-6
        """How long a statement takes (seconds); tests replace it."""
        self._max_size = max_size
        self._connect_s = connect_s
        self._cores = cores
        self._queue: deque[Callable[[], None]] = deque()
        self._opening = 0

    async def open_lane(self, deadline: float) -> TimedLane:
        assert len(self.lanes) + self._opening < self._max_size, "more lanes than the pool may have"
        self._opening += 1
        try:
            await asyncio.sleep(self._connect_s)
        finally:
            self._opening -= 1
        self.opened += 1
        lane = TimedLane(self)
        self.lanes.append(lane)
        self.most_lanes = max(self.most_lanes, len(self.lanes))
        return lane

    def compute(self, start: Callable[[], None]) -> None:
        """Start now, or when a core is free."""
        if self._cores > 0:
            self._cores -= 1
            start()
        else:
            self._queue.append(start)

    def computed(self) -> None:
        if self._queue:
            self._queue.popleft()()
        else:
            self._cores += 1

    def fence(self, generation: Generation) -> None:
        self.generation = generation
        for lane in list(self.lanes):
            lane.abandon(CloseReason.GENERATION)

    async def close(self, reason: CloseReason) -> None:
        for lane in list(self.lanes):
            lane.abandon(reason)
        await asyncio.sleep(0)

    def statistics(self) -> PoolStatistics:
        return PoolStatistics(len(self.lanes), 0, len(self.lanes), self._opening, 0, self._max_size)


class TimedLane:
    """ports.Lane."""

    in_failed_transaction = altered = False

    def __init__(self, pool: TimedPool) -> None:
        self.pool = pool
        self.generation = pool.generation
        self.usable = True
        self._loop = asyncio.get_running_loop()
        self._inbox: list[Unit] = []
        self._units: deque[Unit] = deque()
        self._busy = False
        self.most_in_flight = 0

    @property
    def in_flight(self) -> int:
        return len(self._inbox) + len(self._units)

    @property
    def in_transaction(self) -> bool:
        return self.usable and self.in_flight > 0

    def submit(self, unit: Unit) -> None:
        self.pool.submitted.append(unit)
        if not self.usable:
            self._fail(unit, Stage.SEND, FaultKind.CONNECTION_LOST)
            return
        if not self._inbox:
            self._loop.call_soon(self._send)
        self._inbox.append(unit)
        self.most_in_flight = max(self.most_in_flight, self.in_flight)

    def submit_now(self, *units: Unit) -> None:
        for unit in units:
            self.submit(unit)
        self._send()

    def open_copy(self, unit: Unit) -> CopyChannel:
        raise NotImplementedError

    def _send(self) -> None:
        if not self.usable:
            return
        for unit in self._inbox:
            unit.sent, unit.sent_at = True, self._loop.time()
            self._units.append(unit)
        self._inbox.clear()
        self._next()

    def _next(self) -> None:
        if self._busy or not self._units:
            return
        self._busy = True
        sql = self._units[0].statements[0].sql
        self.pool.begun.append(sql)
        takes = self.pool.takes(self, sql)
        if sql.endswith(b"sleep"):
            self._loop.call_later(takes, self._answer, False)
        else:
            self.pool.compute(lambda: self._loop.call_later(takes, self._answer, True) and None)

    def _answer(self, computed: bool) -> None:
        if computed:
            self.pool.computed()
        self._busy = False
        if not self.usable:
            return
        unit = self._units.popleft()
        unit.results.append(StatementResult(None, "SELECT 1", 1))
        unit.done_at = self._loop.time()
        unit.done(unit)
        self._next()

    def _fail(self, unit: Unit, stage: Stage, kind: FaultKind) -> None:
        unit.fault = Fault(kind, stage, message="timed")
        unit.done_at = self._loop.time()
        self._loop.call_soon(unit.done, unit)

    def abandon(self, reason: CloseReason) -> None:
        if not self.usable:
            return
        self.usable = False
        self.pool.lanes.remove(self)
        kind = {CloseReason.GENERATION: FaultKind.STALE, CloseReason.CONNECTION_LOST: FaultKind.CONNECTION_LOST}.get(
            reason, FaultKind.CLOSED)
        for unit in self._units:
            self._fail(unit, Stage.EXECUTE, kind)
        for unit in self._inbox:
            self._fail(unit, Stage.SEND, kind)
        self._units.clear()
        self._inbox.clear()

    async def cancel(self) -> bool:
        await asyncio.sleep(0.2)  # never heard: the lane is abandoned
        return False

    def resume_reading(self) -> None: ...

    def forget_prepared(self) -> None:
        """Nothing is prepared here."""

    async def give_back(self, *, tainted: bool = False) -> None:
        if self.usable:
            assert not self.in_flight
            self.usable = False
            self.pool.lanes.remove(self)
