"""The lanes of one pool and the lines in front of them: who gets which lane, when one is opened, when one ends.

decisions/lanes says where work goes; this file carries it out. What has a lane is never moved; what still waits here
can be refused or cancelled without a trace. Three lines, so that a slow read that waits for a lane of its own, or work
that waits for a lane alone, does not stop fast reads that could run at once; each line is first come, first served,
and of the heads that can be placed the one that has waited longest goes first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import replace
from typing import TypeVar

from router.decisions.lane_costs import Cost
from router.decisions.lane_growth import Spread
from router.decisions.lanes import Defer, LaneLimits, fast_lanes, place_alone, place_fast, place_slow, reserve, surplus
from router.engine.expiry import Expired
from router.engine.lane_lines import AloneLine, AloneWait, Line, by_number, closed_fault, late_fault, refuse_all
from router.engine.lane_opening import OPEN_AGAIN_S, LaneOpener
from router.engine.lane_slots import Slot
from router.engine.running import PoolRuns
from router.engine.shared_read import SharedRead
from router.model.identity import Generation
from router.model.observation import AttemptFailed, Fault, FaultKind, Stage
from router.model.policy import PoolPolicy
from router.model.reasons import CloseReason
from router.model.request import Residue
from router.ports import Clock, EndpointPool, Lane

_NOBODY = 1 << 62
_T = TypeVar("_T")


class LanePlaces:
    """Slots and lines. Synchronous except for waiting, so that nothing can come between a decision and its effect.

    Invariant: after each call no head of a line could be placed. hand: gives a read to its lane; refuse: ends reads
    that get none.
    """

    def __init__(
        self,
        pool: EndpointPool,
        policy: PoolPolicy,
        clock: Clock,
        runs: PoolRuns,
        hand: Callable[[SharedRead, Slot], None],
        refuse: Callable[[Iterable[SharedRead], Fault], None],
    ) -> None:
        self.slots: list[Slot] = []
        self.used_at = 0.0
        """When a lane last fell idle (monotonic seconds)."""
        self.fast = Line()
        self.slow = Line()
        self.closed = False
        self.limits = LaneLimits.of(policy)
        self.spread = Spread(policy.grow_s, policy.max_size)
        self._pool = pool
        self._policy = policy
        self._clock = clock
        self.runs, runs.serve, runs.slots = runs, self.serve, lambda: self.slots
        self._hand = hand
        self._refuse = refuse
        self._alone = AloneLine()
        self._number = 0
        self._tasks: set[asyncio.Task[object]] = set()
        told = self._opened, self._not_opened, self._too_slow, self._some_wait_on
        self._opener = LaneOpener(pool, policy.acquire_timeout_s, clock, *told)

    @property
    def opening(self) -> int:
        """Lanes being opened."""
        return self._opener.opening

    @property
    def waiting(self) -> int:
        """Units that wait for a lane."""
        return len(self._alone) + self.slow.living + self.fast.living

    @property
    def busy(self) -> bool:
        """Whether anything runs, waits or is being cleaned up."""
        if self.waiting or len(self._tasks) > self.opening:  # a lane being opened, for nobody, does no work
            return True
        return any(slot.private or slot.in_flight for slot in self.slots)

    # --- reads -------------------------------------------------------------------------------------------------

    def slot_for(self, cost: Cost) -> Slot | None:
        """Where a read of this cost goes now; opens a lane where that is the verdict. Nobody of its kind waits."""
        return self._for_fast(cost.expected_s) if cost.fast else self._for_slow(cost)

    def _for_fast(self, cost_s: float) -> Slot | None:
        while True:
            index = place_fast(self.slots, cost_s, self.limits, self.spread.lanes)
            if index < 0:
                return None
            slot = self.slots[index]
            if slot.lane.usable:
                return slot
            self._retire(slot)

    def _for_slow(self, cost: Cost) -> Slot | None:
        while True:
            known, needs = cost.answers > 0, self.spread.needs(self._clock.now(), self.fast.living)
            verdict = place_slow(self.slots, self._limits_now(), known=known, opening=self.opening, fast_needs=needs)
            slot = self.slots[verdict] if isinstance(verdict, int) else None
            if slot is not None and slot.lane.usable:
                return slot if slot.running or self.runs.may_begin() else None
            if slot is not None:
                self._retire(slot)
                continue
            if verdict is Defer.WAIT or self.opening > self.waiting or not self.runs.may_begin():
                return None
            self.spawn(self._opener.open())
            if cost.answers:
                return None

    def refusal(self, *, of_read: bool = False) -> Fault | None:
        """Why nobody gets a lane now, and there is no use in waiting for one. Reads have other places to go to."""
        if self.closed:
            return closed_fault()
        if self.slots:
            return None
        return self._opener.refusal() or (self._opener.slow if of_read else None)

    def join(self, read: SharedRead) -> None:
        """A read waits in its line. Its cost is set."""
        read.queued = True
        self._number += 1
        read.number = self._number
        read.until = min(read.deadline, self._clock.now() + self._policy.acquire_timeout_s)
        if read.cost.fast:
            self.fast.join(read)
            if self.fast.living == 1:
                self.grow()
        else:
            self.slow.join(read)

    def overdue(self, now: float) -> list[SharedRead]:
        """Reads that have waited as long as they may; they have left their lines."""
        return [*self.fast.overdue(now), *self.slow.overdue(now)]

    def put_first(self, reads: list[SharedRead]) -> None:
        """These have been on a lane before: nobody waits longer than they."""
        for read in reads:
            read.number = 0
            read.until = read.deadline
        self.fast.restore([*(read for read in reads if read.cost.fast), *self.fast.reads()])
        self.slow.restore([*(read for read in reads if not read.cost.fast), *self.slow.reads()])

    def sort(self) -> None:
        """A cost has changed its kind: those who wait are in the wrong line."""
        reads = by_number(self.fast, self.slow)
        self.fast.restore([read for read in reads if read.cost.fast])
        self.slow.restore([read for read in reads if not read.cost.fast])

    def grow(self) -> None:
        """Open the lanes that fast reads lack. Called while some wait, and now and then."""
        slots, spread = self.slots, self.spread.lanes
        room = self._limits_now().max_size - len(slots) - self.opening
        there = fast_lanes(slots, self.fast.expected_s, spread)
        if room <= 0 or (not self.fast.living and (not there.lanes or there.wait_s <= self.limits.grow_s)):
            return
        for _ in range(min(room, spread - there.lanes - self.opening)):
            self.spawn(self._opener.open())

    def have(self, lanes: int) -> None:
        """Open lanes until there are so many."""
        for _ in range(min(lanes, self.limits.max_size) - len(self.slots) - self.opening):
            self.spawn(self._opener.open())

    # --- work alone --------------------------------------------------------------------------------------------

    async def take_alone(self, deadline: float) -> Slot:
        """A lane for one alone: at once when there is one and nobody waits before us, else in turn. AttemptFailed."""
        refusal = self.refusal()
        if refusal is not None:
            raise AttemptFailed(refusal)
        slot = None if self._alone else self._for_one_alone(self.waiting + 1)
        if slot is None and self.slow.living:
            self.serve()  # the lane that runs dry for us is no longer one that slow reads wait for
        return slot or await self._wait(deadline)

    def _for_one_alone(self, demand: int) -> Slot | None:
        """A slot, taken, or None; opens a lane where that is the verdict. demand: how many wait, with this one."""
        while True:
            verdict = place_alone(self.slots, self._limits_now(), self.opening)
            slot = self.slots[verdict] if isinstance(verdict, int) else None
            if slot is not None and not slot.lane.usable:
                self._retire(slot)
                continue
            if verdict is Defer.WAIT:
                self._reserve()
            elif not self.runs.may_begin():
                return None
            elif slot is not None:
                slot.pin(self._clock.now())
                self.runs.began(slot)
            elif self.opening < demand:
                self.spawn(self._opener.open())
            return slot

    async def _wait(self, deadline: float) -> Slot:
        self._number += 1
        wait = self._alone.join(self._number, min(deadline, self._clock.now() + self._policy.acquire_timeout_s))
        try:
            return await self._alone.slot(wait)
        except (asyncio.CancelledError, AttemptFailed):
            slot = self._alone.declined(wait)
            if slot is not None:  # handed over in the same turn: to the next in line
                slot.pinned = False
                self.put_back(slot)
            raise
        except Expired:
            raise AttemptFailed(self.timed_out(deadline)) from None
        finally:
            if not self._alone:
                self._unreserve()

    def _reserve(self) -> None:
        index = None if any(slot.reserved for slot in self.slots) else reserve(self.slots)
        if index is not None:
            self.slots[index].private = self.slots[index].reserved = True

    def _unreserve(self) -> None:
        """Nobody waits for a lane alone any more: the lane that was running dry for it is shared again."""
        for slot in self.slots:
            if slot.reserved and slot.stopping is None:
                slot.private = slot.reserved = False
                self.serve()

    def timed_out(self, deadline: float) -> Fault:
        """Why who waited gets no lane."""
        return late_fault(self._pool.statistics(), self.waiting, expired=self._clock.now() >= deadline)

    # --- putting back and serving ------------------------------------------------------------------------------

    def put_back(self, slot: Slot) -> None:
        """Something on the slot ended: an empty one is free again, or ends when it is not fit for others."""
        if slot.empty:
            self.runs.ended(slot)
            slot.idle_since = self.used_at = self._clock.now()
            slot.private = slot.reserved = slot.stalled = False
            lane = slot.lane
            if slot.residue or not lane.usable or lane.in_flight or lane.in_transaction:
                self._end(slot)
        self.serve()

    def serve(self) -> None:
        """Give what is free to those who wait."""
        if self.slow.living or self._alone:
            self._serve_all()
        elif self.fast.living:
            self._serve_fast()

    def _serve_fast(self) -> None:
        while (read := self.fast.head()) is not None:
            slot = self._for_fast(read.cost.expected_s)
            if slot is None:
                return
            self.fast.take()
            self._hand(read, slot)

    def _serve_all(self) -> None:
        """One head at a time, of those that can be placed the one that has waited longest."""
        alone_free = slow_free = fast_free = True
        while True:
            alone = self._alone.head() if alone_free else None
            slow = self.slow.head() if slow_free else None
            fast = self.fast.head() if fast_free else None
            first = min(one.number if one is not None else _NOBODY for one in (alone, slow, fast))
            if first == _NOBODY:
                break
            if alone is not None and alone.number == first:
                alone_free = self._serve_alone(alone)
                slow_free = True  # the lane that runs dry for it counts no longer
            elif slow is not None and slow.number == first:
                slow_free = self._serve_read(self.slow, slow)
            elif fast is not None:
                fast_free = self._serve_read(self.fast, fast)
        if self.fast.living:
            self.grow()

    def _serve_alone(self, wait: AloneWait) -> bool:
        slot = self._for_one_alone(self.waiting)
        if slot is not None:
            self._alone.give(wait, slot)
        return slot is not None

    def _serve_read(self, line: Line, read: SharedRead) -> bool:
        slot = self.slot_for(read.cost)
        if slot is not None:
            line.take()
            self._hand(read, slot)
        return slot is not None

    # --- opening and ending lanes ------------------------------------------------------------------------------

    def _opened(self, lane: Lane) -> None:
        self.slots.append(Slot(lane, self._clock.now()))
        self.serve()

    def _not_opened(self, fault: Fault) -> None:
        """Without any lane, everyone who waits is told why, at once; else the lanes that are there must do."""
        if not self.slots:
            self.fail_lines(fault)
            return
        self._opener.rest()
        asyncio.get_running_loop().call_later(OPEN_AGAIN_S, self.go_on)
        self.serve()

    def _some_wait_on(self) -> bool:
        """Without any lane, each waits for its own time."""
        now = self._clock.now()
        return not self.slots and any(line.lasts(now) for line in (self._alone, self.fast, self.slow))

    def _too_slow(self, fault: Fault) -> None:
        if not self.slots:
            self.fail_lines(fault, AloneLine())  # writes wait on: they have no other place

    def go_on(self) -> None:
        """The server may be well again: what could not be opened may be tried now."""
        self._opener.go_on()
        self.serve()

    def _limits_now(self) -> LaneLimits:
        room = self._opener.room(len(self.slots), self.limits.max_size)
        return self.limits if room == self.limits.max_size else replace(self.limits, max_size=room)

    def _retire(self, slot: Slot) -> None:
        """Dead or too old: it takes nothing new, and ends with its last answer."""
        if slot.in_flight:
            slot.private = True
        else:
            self._end(slot)

    def fail_lines(self, fault: Fault, alone: AloneLine | None = None) -> None:
        for read, told in refuse_all(self._alone if alone is None else alone, (self.fast, self.slow), fault):
            self._refuse((read,), told)

    def _end(self, slot: Slot) -> None:
        if slot in self.slots:
            self.slots.remove(slot)
            self.spawn(slot.lane.give_back(tainted=slot.residue is not Residue.NONE))

    @property
    def idle_since(self) -> float | None:
        """When the lane that has been unused longest was last used; None when all are in use."""
        return min((one.idle_since for one in self.slots if not one.private and one.in_flight == 0), default=None)

    def give_back_idle(self, idle_s: float) -> None:
        """Lanes unused for this long go back to the pool, which closes idle connections."""
        if self.waiting:
            return
        unused = surplus(self.slots, [slot.idle_since for slot in self.slots], idle_s, self._clock.now())
        for slot in [self.slots[index] for index in unused]:
            self._end(slot)

    def end_retired(self) -> None:
        """Lanes that may take nothing new, and have nothing, end now."""
        for slot in [one for one in self.slots if one.empty and not one.lane.usable]:
            self._end(slot)

    def fence(self, generation: Generation) -> None:
        """Connections of an older generation are destroyed now; who waits is told, and asks again where to go."""
        self._pool.fence(generation)
        # Older ones were abandoned by that. A younger one past its lifetime stays until its last answer.
        self.slots = [slot for slot in self.slots if slot.pinned or slot.lane.generation == generation]
        self._opener.go_on()
        # They were routed before the change: a new connection from here could lead to a former primary.
        self.fail_lines(Fault(FaultKind.STALE, Stage.ACQUIRE, message="the primary changed while it waited"))

    def cut(self, reason: CloseReason) -> None:
        """The server is gone: what is in flight there fails now, not at its deadline."""
        for slot in self.slots:
            slot.lane.abandon(reason)
        self.slots = [slot for slot in self.slots if slot.pinned]
        self.serve()

    async def close(self, reason: CloseReason) -> None:
        """End everything."""
        self.closed = self._opener.closed = True
        self.runs.runs.leave(self.runs)
        self.fail_lines(closed_fault(reason.value))
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
