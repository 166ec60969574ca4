"""The lanes of one pool and the lines in front of them: who gets which lane, when one is opened, when one ends.

decisions/lanes says where a unit goes; this file carries it out. What has a lane is never moved; what still waits
here can be refused or cancelled without a trace. Three lines, so that a slow statement that waits for a lane of its
own, or work that waits for a lane alone, does not stop fast statements that could run at once; each line is first
come, first served, and of the heads that can be placed the one that has waited longest goes first.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Coroutine
from typing import TypeVar

from router.decisions.lanes import Defer, LaneLimits, LaneLoad, PlacementWant, Sharing, place, reserve
from router.engine.expiry import Expired, wait_until
from router.model.identity import Generation
from router.model.observation import AttemptFailed, Fault, FaultKind, Stage
from router.model.policy import PoolPolicy
from router.model.reasons import CloseReason
from router.ports import Clock, EndpointPool, Lane, Unit

IDLE_LANE_S = 2.0
"""A lane unused for this long goes back to its pool, where idle connections are counted and closed."""
SLOW_S = 0.01
"""A statement that takes longer gets a lane of its own."""
GROW_S = 0.002
"""Fast statements that would wait longer than this get another lane."""
OPEN_AGAIN_S = 1.0
"""After a failed attempt to open one more, the lanes that are there must do for this long."""

_T = TypeVar("_T")


class Slot(LaneLoad):
    """A lane, its load, and who uses it."""

    __slots__ = ("answered_at", "idle_since", "lane", "pinned", "reserved", "stopping", "tainted", "units")

    def __init__(self, lane: Lane, now: float) -> None:
        super().__init__()
        self.lane = lane
        self.units: deque[Unit] = deque()
        """Submitted and not done, in the order of their answers."""
        self.answered_at = 0.0
        self.idle_since = now
        self.pinned = False
        """Lent to one caller, who ends that with LanePool.release."""
        self.reserved = False
        """Shared no longer: it runs dry for work that waits for a lane alone."""
        self.stopping: asyncio.Task[bool] | None = None
        """A cancel request is on its way: until it has arrived for certain, nobody else may use the lane."""
        self.tainted = False


class _Waiting:
    __slots__ = ("future", "number", "want")

    def __init__(self, want: PlacementWant, number: int, future: asyncio.Future[Slot]) -> None:
        self.want = want
        self.number = number
        self.future = future


_Line = OrderedDict[_Waiting, None]
ALONE = PlacementWant(Sharing.ALONE)


def assumed(cost_s: float | None) -> float:
    """What a statement of this learned cost counts as on its lane (seconds)."""
    return cost_s if cost_s is not None else SLOW_S


class LanePlaces:
    """Slots and lines. Synchronous except for waiting, so that nothing can come between a decision and its effect.

    Invariant: after each call no head of a line could be placed.
    """

    def __init__(self, pool: EndpointPool, policy: PoolPolicy, clock: Clock) -> None:
        self.slots: list[Slot] = []
        self.opening = 0
        self._pool = pool
        self._policy = policy
        self._clock = clock
        self._limits = LaneLimits(policy.lane_window, policy.max_size, SLOW_S, GROW_S)
        self._alone: _Line = OrderedDict()
        self._slow: _Line = OrderedDict()
        self._fast: _Line = OrderedDict()
        self._number = 0
        self._no_more_until = 0.0
        self._tasks: set[asyncio.Task[object]] = set()
        self._closed = False

    @property
    def waiting(self) -> int:
        """Units that wait for a lane."""
        return len(self._alone) + len(self._slow) + len(self._fast)

    @property
    def busy(self) -> bool:
        """Whether anything runs, waits or is being cleaned up."""
        if self.waiting or self.opening or self._tasks:
            return True
        return any(slot.private or slot.in_flight for slot in self.slots)

    # --- taking and putting back -------------------------------------------------------------------------------

    async def take(self, want: PlacementWant, deadline: float) -> Slot:
        """A lane at once when there is one and nobody waits before us, else in our turn. AttemptFailed."""
        if self._closed:
            raise AttemptFailed(Fault(FaultKind.CLOSED, Stage.ACQUIRE, message="pool is closed"))
        line = self._line(want)
        slot = None if line else self._place(want, self.waiting + 1)
        return slot if slot is not None else await self._wait(line, want, deadline)

    def put_back(self, slot: Slot) -> None:
        """Something on the slot ended: an empty one is free again, or ends when it is not fit for others."""
        if slot.in_flight == 0 and not slot.pinned and slot.stopping is None:
            slot.idle_since = self._clock.now()
            slot.private = slot.reserved = False
            lane = slot.lane
            if slot.tainted or not lane.usable or lane.in_flight or lane.in_transaction:
                self._end(slot)
        self._serve()

    def _line(self, want: PlacementWant) -> _Line:
        if want.sharing is Sharing.ALONE:
            return self._alone
        return self._fast if want.cost_s is not None and want.cost_s <= SLOW_S else self._slow

    def _place(self, want: PlacementWant, demand: int) -> Slot | None:
        """A slot, taken, or None; opens a lane where that is the verdict. demand: how many wait, with this one."""
        while True:
            verdict = place(self.slots, want, self._limits_now(), self.opening)
            if not isinstance(verdict, Defer):
                slot = self.slots[verdict.index]
                if slot.lane.usable:
                    return self._take(slot, want)
                self._retire(slot)
            elif verdict is Defer.OPEN and self.opening < demand:
                self._open()
                if want.sharing is Sharing.ALONE or want.cost_s is None or want.cost_s > SLOW_S:
                    return None  # it waits for a lane of its own
            else:
                if want.sharing is Sharing.ALONE and verdict is Defer.WAIT:
                    self._reserve()
                return None

    def _limits_now(self) -> LaneLimits:
        if self._no_more_until and self.slots:
            if self._clock.now() < self._no_more_until:
                limits = self._limits
                return LaneLimits(limits.window, len(self.slots), limits.slow_s, limits.grow_s)
            self._no_more_until = 0.0
        return self._limits

    @staticmethod
    def _take(slot: Slot, want: PlacementWant) -> Slot:
        if want.sharing is Sharing.ALONE:
            slot.private = slot.pinned = True
        else:
            slot.add(assumed(want.cost_s))  # here, so that one idle lane is not handed to a whole line
        return slot

    def _retire(self, slot: Slot) -> None:
        """Dead or too old: it takes nothing new, and ends with its last answer."""
        if slot.in_flight:
            slot.private = True
        else:
            self._end(slot)

    def _reserve(self) -> None:
        if any(slot.reserved for slot in self.slots):
            return
        index = reserve(self.slots)
        if index is not None:
            self.slots[index].private = self.slots[index].reserved = True

    # --- waiting -----------------------------------------------------------------------------------------------

    async def _wait(self, line: _Line, want: PlacementWant, deadline: float) -> Slot:
        self._number += 1
        waiting = _Waiting(want, self._number, asyncio.get_running_loop().create_future())
        line[waiting] = None
        until = min(deadline, self._clock.now() + self._policy.acquire_timeout_s)
        try:
            return await wait_until(waiting.future, until)
        except asyncio.CancelledError:
            self._decline(waiting)
            raise
        except Expired:
            raise AttemptFailed(self._timed_out(deadline)) from None
        finally:
            line.pop(waiting, None)
            if not self._alone:
                self._unreserve()

    def _decline(self, waiting: _Waiting) -> None:
        """Cancelled: what was handed over in the same loop turn goes to the next in line."""
        future = waiting.future
        if not future.done() or future.cancelled() or future.exception() is not None:
            return
        slot = future.result()
        if waiting.want.sharing is Sharing.ALONE:
            slot.pinned = False
        else:
            slot.remove(assumed(waiting.want.cost_s))
        self.put_back(slot)

    def _unreserve(self) -> None:
        """Nobody waits for a lane alone any more: the lane that was running dry for it is shared again."""
        for slot in self.slots:
            if slot.reserved and slot.stopping is None:
                slot.private = slot.reserved = False
                self._serve()

    def _timed_out(self, deadline: float) -> Fault:
        stats = self._pool.statistics()
        return Fault(
            FaultKind.SILENT if self._clock.now() >= deadline else FaultKind.POOL_TIMEOUT,
            Stage.ACQUIRE,
            message=f"no connection in time: {stats.leased} of {stats.max_size} in use, {self.waiting} waiting",
        )

    def _serve(self) -> None:
        """Give what is free to those who wait."""
        if not self.waiting:
            return
        lines = [line for line in (self._alone, self._slow, self._fast) if line]
        while lines:
            line = min(lines, key=_waited_longest) if len(lines) > 1 else lines[0]
            head = next(iter(line))
            if not head.future.done():
                slot = self._place(head.want, self.waiting)
                if slot is None:
                    lines.remove(line)
                    continue
                head.future.set_result(slot)
            del line[head]
            if not line:
                lines.remove(line)

    # --- opening and ending lanes ------------------------------------------------------------------------------

    def _open(self) -> None:
        self.opening += 1
        self.spawn(self._open_one())

    async def _open_one(self) -> None:
        fault: Fault | None = None
        try:
            lane = await self._pool.open_lane(self._clock.now() + self._policy.acquire_timeout_s)
        except AttemptFailed as failure:
            fault = failure.fault
        except Exception as error:
            # A bug of an edge; whoever waits must not wait for it in vain.
            fault = Fault(FaultKind.CONNECT_FAILED, Stage.CONNECT, message=f"unexpected {type(error).__name__}")
            raise
        finally:
            self.opening -= 1
            if fault is not None:
                self._could_not_open(fault)
        if fault is not None:
            return
        if self._closed:
            await lane.give_back()
            return
        self.slots.append(Slot(lane, self._clock.now()))
        self._serve()

    def _could_not_open(self, fault: Fault) -> None:
        """Without any lane, everyone who waits is told why, at once; else the lanes that are there must do."""
        if not self.slots:
            self._fail_lines(fault)
            return
        self._no_more_until = self._clock.now() + OPEN_AGAIN_S
        asyncio.get_running_loop().call_later(OPEN_AGAIN_S, self._serve)
        self._serve()

    def _fail_lines(self, fault: Fault) -> None:
        for line in (self._alone, self._slow, self._fast):
            for waiting in line:
                if not waiting.future.done():
                    waiting.future.set_exception(AttemptFailed(fault))
            line.clear()

    def _end(self, slot: Slot) -> None:
        if slot in self.slots:
            self.slots.remove(slot)
            self.spawn(slot.lane.give_back(tainted=slot.tainted))

    def give_back_idle(self) -> None:
        """Called now and then: idle lanes go back to the pool, which closes idle connections."""
        now = self._clock.now()
        if self.waiting:
            return
        for slot in list(self.slots):
            if not slot.private and slot.in_flight == 0 and now - slot.idle_since >= IDLE_LANE_S:
                self._end(slot)

    def fence(self, generation: Generation) -> None:
        """Connections of an older generation are destroyed now; who waits gets a new one."""
        self._pool.fence(generation)
        self.slots = [slot for slot in self.slots if slot.pinned or slot.lane.usable]
        self._no_more_until = 0.0
        self._serve()

    def cut(self, reason: CloseReason) -> None:
        """The server is gone: what is in flight there fails now, not at its deadline."""
        for slot in self.slots:
            slot.lane.abandon(reason)
        self.slots = [slot for slot in self.slots if slot.pinned]
        self._serve()

    async def close(self, reason: CloseReason) -> None:
        """End everything."""
        self._closed = True
        self._fail_lines(Fault(FaultKind.CLOSED, Stage.ACQUIRE, message=f"pool closed: {reason.value}"))
        await self._pool.close(reason)
        self.slots.clear()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(set(self._tasks))

    def spawn(self, work: Coroutine[object, object, _T]) -> asyncio.Task[_T]:
        """Run beside; ends with close()."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _waited_longest(line: _Line) -> int:
    return next(iter(line)).number
