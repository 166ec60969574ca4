"""The lines in front of a pool's lanes, first come, first served: reads that share a lane, work that waits for one
alone."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from dataclasses import replace

from router.engine.expiry import wait_until
from router.engine.lane_slots import Slot
from router.engine.shared_read import SharedRead
from router.model.observation import AttemptFailed, Fault, FaultKind, Stage
from router.ports import PoolStatistics


class Line:
    """Reads of one kind that wait for a lane, first come, first served. Whoever leaves early is skipped in its turn."""

    __slots__ = ("_reads", "expected_s", "living")

    def __init__(self) -> None:
        self._reads: deque[SharedRead] = deque()
        self.living = 0
        """Reads that wait; those that left early are not counted."""
        self.expected_s = 0.0
        """Sum of their expected costs (seconds)."""

    def join(self, read: SharedRead) -> None:
        """Behind all others."""
        read.waiting = True
        read.line = self
        read.expected_s = read.cost.expected_s
        self.living += 1
        self.expected_s += read.expected_s
        self._reads.append(read)

    def head(self) -> SharedRead | None:
        """Who has waited longest."""
        reads = self._reads
        while reads:
            read = reads[0]
            if read.waiting:
                return read
            reads.popleft()
        return None

    def take(self) -> None:
        """The head has its lane."""
        self.left(self._reads.popleft())

    def left(self, read: SharedRead) -> None:
        """It waits no longer."""
        read.waiting = False
        self.living -= 1
        self.expected_s = self.expected_s - read.expected_s if self.living else 0.0

    def reads(self) -> list[SharedRead]:
        """All that wait, in their order."""
        return [read for read in self._reads if read.waiting]

    def lasts(self, now: float) -> bool:
        """Somebody's time has not passed."""
        return any(read.waiting and read.until > now for read in self._reads)

    def overdue(self, now: float) -> list[SharedRead]:
        """Whose time has passed; they have left."""
        late = [read for read in self.reads() if read.until <= now]
        for read in late:
            self.left(read)
        return late

    def restore(self, reads: list[SharedRead]) -> None:
        """These wait now, in this order."""
        self._reads = deque(reads)
        self.living = len(reads)
        for read in reads:
            read.waiting = True
            read.line = self
            read.expected_s = read.cost.expected_s
        self.expected_s = sum(read.expected_s for read in reads)


class AloneWait:
    """Who waits for a lane alone."""

    __slots__ = ("future", "number", "sent_on", "until")

    def __init__(self, number: int, until: float, future: asyncio.Future[Slot]) -> None:
        self.number = number
        """Its place among all that wait."""
        self.until = until
        """It waits no longer than this (monotonic seconds)."""
        self.future = future
        self.sent_on: Fault | None = None
        """It was given a lane, and its task has not used it yet when all were refused."""


class AloneLine:
    """Those who wait for a lane alone, each in a task of its own."""

    __slots__ = ("_given", "_waits")

    def __init__(self) -> None:
        self._waits: OrderedDict[AloneWait, None] = OrderedDict()
        self._given: set[AloneWait] = set()
        """Who has a lane, and learns of it in this turn of the loop."""

    def __len__(self) -> int:
        return len(self._waits)

    def head(self) -> AloneWait | None:
        """Who has waited longest."""
        waits = self._waits
        while waits:
            wait = next(iter(waits))
            if not wait.future.done():
                return wait
            del waits[wait]
        return None

    def join(self, number: int, until: float) -> AloneWait:
        """Behind all others."""
        wait = AloneWait(number, until, asyncio.get_running_loop().create_future())
        self._waits[wait] = None
        return wait

    async def slot(self, wait: AloneWait) -> Slot:
        """What it is given. Expired once the loop's clock passes its time; AttemptFailed when the line is refused, also
        right after it was given something, which is then to be had by declined()."""
        try:
            slot = await wait_until(wait.future, wait.until)
        finally:
            self._waits.pop(wait, None)
            self._given.discard(wait)
        if wait.sent_on is not None:
            raise AttemptFailed(wait.sent_on)
        return slot

    def lasts(self, now: float) -> bool:
        """Somebody's time has not passed."""
        return any(wait.until > now and not wait.future.done() for wait in self._waits)

    def give(self, wait: AloneWait, slot: Slot) -> None:
        """It has its lane."""
        wait.future.set_result(slot)
        self._waits.pop(wait, None)
        self._given.add(wait)

    @staticmethod
    def declined(wait: AloneWait) -> Slot | None:
        """Its task was cancelled, or sent on, in the turn in which it was given this."""
        future = wait.future
        if not future.done() or future.cancelled() or future.exception() is not None:
            return None
        return future.result()

    def refuse(self, fault: Fault, others: Fault) -> None:
        """Nobody gets any. others: what all but the first are told."""
        for wait in self._given:
            wait.sent_on = others
        for wait in self._waits:
            if not wait.future.done():
                wait.future.set_exception(AttemptFailed(fault))
                fault = others
        self._waits.clear()


def by_number(*lines: Line) -> list[SharedRead]:
    """All reads of these lines, in the order in which they came."""
    return sorted([read for line in lines for read in line.reads()], key=lambda read: read.number)


def refuse_all(alone: AloneLine, lines: tuple[Line, ...], fault: Fault) -> list[tuple[SharedRead, Fault]]:
    """Nobody gets any lane: reads have left their lines, and are to be told what stands beside them.

    A connect that failed was made for whoever has waited longest; the others only shared it.
    """
    others = replace(fault, shared=True) if fault.stage is Stage.CONNECT else fault
    reads = by_number(*lines)
    for read in reads:
        read.line.left(read)
    first = alone.head()
    before = bool(reads) and (first is None or reads[0].number < first.number)
    alone.refuse(others if before else fault, others)
    return [(read, fault if before and index == 0 else others) for index, read in enumerate(reads)]


def late_fault(stats: PoolStatistics, waiting: int, *, expired: bool) -> Fault:
    """No lane became free in time. expired: the caller has no time left either."""
    words = f"no connection in time: {stats.leased} of {stats.max_size} in use, {waiting} waiting"
    if stats.in_line:
        words += "; the endpoint's cap, or the tenant's ceiling, is used up"
    return Fault(FaultKind.SILENT if expired else FaultKind.POOL_TIMEOUT, Stage.ACQUIRE, message=words)


def closed_fault(why: str = "before") -> Fault:
    """The pool was closed."""
    return Fault(FaultKind.CLOSED, Stage.ACQUIRE, message=f"pool closed: {why}")
