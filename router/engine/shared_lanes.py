"""Reads that share lanes: started by a call, answered by a call, with nothing of their own in between but one object.

Learned costs, deadlines and the rescue of reads behind a stalled head are here; who gets which lane is lane_places.
One timer serves all reads of a pool: it is set to the nearest deadline, and runs every TICK_S while reads stand behind
one another or wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from router.decisions.lane_costs import CostBook
from router.decisions.lanes import Head, fast_lanes, goes_on, stalled
from router.engine.lane_places import LanePlaces
from router.engine.lane_slots import Slot
from router.engine.running import PoolRuns
from router.engine.shared_read import Sending, SharedRead
from router.model.observation import Fault, FaultKind, Stage
from router.model.policy import PoolPolicy
from router.model.reasons import CloseReason
from router.ports import Clock, EndpointPool, Unit

TICK_S = 0.01
"""A deadline is noticed at most this late (seconds)."""
STUCK_S = 1.0
"""A shared lane whose unit is this far past its deadline is abandoned: the units behind it go elsewhere."""
GRACE_S = 0.01
"""An answer that nobody waits for any more has this long before anything is done about it: most are on their way."""
_NEVER = float("inf")


class SharedLanes:
    """The reads of one lane pool. Nothing here raises or awaits."""

    def __init__(
        self,
        pool: EndpointPool,
        policy: PoolPolicy,
        clock: Clock,
        runs: PoolRuns,
        stop: Callable[[Slot, Unit], object],
    ) -> None:
        self.costs = CostBook(policy.slow_s)
        self.places = LanePlaces(pool, policy, clock, runs, self._send, self._refuse)
        self._runs = runs
        self.used_at = clock.now()
        self._answered = 0
        self._worked_s = 0.0
        """Answers ever, and the time of lanes that the fast ones among them took (seconds)."""
        self.read_s = 0.0
        """Time of lanes that reads have taken (seconds)."""
        self._pool = pool
        self._clock = clock
        self._stop = stop
        self._most_rescues = policy.lane_window
        self._rescued: list[SharedRead] = []
        """Reads sent again, or waiting for it, that have no answer yet."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._answering: list[Slot] = []
        """Slots with answers of this turn, to be learned from at its end."""
        self._timer: asyncio.TimerHandle | None = None
        self._earliest = _NEVER
        """No deadline of a read under way is earlier."""
        self._ticking = False
        """The timer is set to TICK_S, not to the next deadline."""
        self._done = self._on_done  # bound once, not once per read

    def start(self, read: SharedRead) -> None:
        """LanePool.start_shared."""
        places = self.places
        cost = read.cost = self.costs.of(read.statement.sql)
        if not places.slots or places.closed:
            refusal = places.refusal(of_read=True)
            if refusal is not None:
                self._refuse((read,), refusal)
                return
        if not (places.fast if cost.fast else places.slow).living:
            slot = places.slot_for(cost)
            if slot is not None:
                self._send(read, slot)
                return
        places.join(read)
        if not self._ticking:
            self._tick_soon()

    def _send(self, read: SharedRead, slot: Slot) -> None:
        cost = read.cost
        unit = Sending(read, slot, cost, self._done)
        if read.rescued:
            read.sendings = (*read.sendings, unit)
        else:
            read.sendings = (unit,)
        slot.in_flight += 1
        if not slot.running:
            self._runs.began(slot)
        slot.expected_s += unit.counted_s
        if unit.counts_slow:
            slot.slow += 1
        slot.units.append(unit)
        slot.lane.submit(unit)
        if read.deadline < self._earliest:
            self._earliest = read.deadline
            if not self._ticking:
                self._set_timer(read.deadline)
        if slot.in_flight > 1 and not self._ticking:
            self._tick_soon()

    # --- answers -----------------------------------------------------------------------------------------------

    def _on_done(self, unit: Unit) -> None:
        assert isinstance(unit, Sending)
        slot, fault = unit.slot, unit.fault
        slot.units.popleft()
        in_flight = slot.in_flight = slot.in_flight - 1
        slot.expected_s = slot.expected_s - unit.counted_s if in_flight else 0.0
        if unit.counts_slow:
            slot.slow -= 1
        definite = fault is None or fault.kind is FaultKind.SERVER_ERROR
        if definite and unit.sent:
            self._note(slot, unit)
        read = unit.read
        mine = not read.over and (definite or not self._runs_elsewhere(read, unit))
        if mine:
            read.over = True
            read.results = unit.results
            read.fault = fault
            read.sent_at = unit.sent_at
            read.done_at = unit.done_at
            read.sendings = ()  # no cycle left behind: thousands a second would wait for the collector
            if read.waiting:
                read.line.left(read)
        if not in_flight:
            self.places.put_back(slot)
        else:
            self.places.serve()
        if mine:
            self._tell(read)

    def _note(self, slot: Slot, unit: Sending) -> None:
        """The answer's time is shared out at the end of this turn, when it is known how many came in it."""
        answers = slot.answers
        if not answers:
            slot.stalled = False
            slot.turn_at = max(unit.sent_at, slot.answered_at)
            slot.answered_at = unit.done_at
            if not self._answering:
                self._running_loop().call_soon(self._learn)
            self._answering.append(slot)
        answers[unit.cost] = answers.get(unit.cost, 0) + 1

    def _learn(self) -> None:
        changed = False
        for slot in self._answering:
            self.used_at = slot.answered_at
            head = slot.units[0] if slot.units else None
            dry = head is None or not head.sent or head.sent_at >= slot.answered_at
            took_s = max(0.0, slot.answered_at - slot.turn_at)
            self.read_s += took_s
            self._runs.note_turn(slot.answers, took_s)
            if self.costs.learn(slot.answers, took_s, dry=dry):
                changed = True
            for cost, count in slot.answers.items():
                self._answered += count
                if cost.fast:
                    self._worked_s += cost.expected_s * count
                    self.places.spread.fast_at = slot.answered_at
                self.costs.touch(cost, slot.answered_at)
            slot.answers = {}
        self._answering.clear()
        if self.places.waiting:
            if changed:
                self.places.sort()
            self.places.serve()  # what costs less than was thought may fit now

    @staticmethod
    def _runs_elsewhere(read: SharedRead, unit: Sending) -> bool:
        """Whether another sending may still bring the answer that this one did not."""
        return read.waiting or any(other is not unit and not other.done_at for other in read.sendings)

    def _tell(self, read: SharedRead) -> None:
        try:
            read.answered(read)
        except Exception as error:
            # It must not end the lane whose answer this was.
            self._running_loop().call_exception_handler({"message": "a read's caller failed", "exception": error})

    def _refuse(self, reads: Iterable[SharedRead], fault: Fault) -> None:
        for read in reads:
            if any(not unit.done_at for unit in read.sendings):
                continue  # it waited for its second sending; the first may still be answered
            read.over = True
            read.fault = fault
            read.done_at = self._clock.now()
        for read in reads:
            if read.over:
                self._tell(read)

    # --- nobody waits any more ---------------------------------------------------------------------------------

    def give_up(self, read: SharedRead) -> None:
        """LanePool.give_up."""
        read.answered = _nobody
        if not read.over:
            waited = read.waiting
            self._drop(read)
            if waited:
                self.places.serve()  # who stood behind it may fit

    def _drop(self, read: SharedRead) -> None:
        read.over = True
        if read.waiting:
            read.line.left(read)
        for unit in read.sendings:
            if not unit.done_at:
                self._running_loop().call_later(GRACE_S, self._after_grace, unit)
        read.sendings = ()

    def _after_grace(self, unit: Sending) -> None:
        """Alone on its lane the unit is stopped. With neighbours, the lane is ended once it is stuck for certain."""
        if unit.done_at:
            return
        if unit.slot.in_flight == 1:
            self._stop_alone(unit)
        else:
            self._running_loop().call_later(STUCK_S - GRACE_S, self._after_stuck, unit)

    def _after_stuck(self, unit: Sending) -> None:
        if unit.done_at:
            return
        if unit.slot.in_flight == 1:
            self._stop_alone(unit)
        else:
            self.learn_stuck(unit.slot)
            unit.slot.lane.abandon(CloseReason.ABANDONED)

    def _stop_alone(self, unit: Sending) -> None:
        unit.slot.private = True  # or the cancel request could hit whoever comes next
        self._stop(unit.slot, unit)
        self.places.serve()  # it no longer counts as a lane that slow ones have taken

    def learn_stuck(self, slot: Slot) -> None:
        """What runs at the head of a lane that is given up costs at least what it has taken so far."""
        head = slot.units[0]
        if head.sent:
            cost = head.cost if isinstance(head, Sending) else self.costs.of(head.statements[0].sql)
            if self.costs.learn_stuck(cost, self._clock.now() - max(head.sent_at, slot.answered_at)):
                self.places.sort()

    # --- the timer ---------------------------------------------------------------------------------------------

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        return self._loop

    def _set_timer(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._running_loop().call_at(when, self._tick)

    def _tick_soon(self) -> None:
        self._ticking = True
        self._set_timer(self._clock.now() + TICK_S)

    def _tick(self) -> None:
        self._timer = None
        now = self._clock.now()
        places = self.places
        late = self._late(now) if now >= self._earliest or places.waiting else []
        self._rescue(now)
        there = fast_lanes(places.slots, places.fast.expected_s, places.spread.lanes)
        places.spread.step(there.wait_s, there.lanes, self._answered, self._worked_s, now)
        places.grow()
        places.serve()
        self._ticking = places.fast.living + places.slow.living > 0 or any(
            slot.in_flight > 1 and not slot.pinned for slot in places.slots
        )
        if self._ticking or late:
            self.used_at = now
        if self._ticking:
            self._set_timer(now + TICK_S)
        elif self._earliest < _NEVER:
            self._set_timer(max(self._earliest, now + TICK_S))
        for read in late:
            self._tell(read)

    def _late(self, now: float) -> list[SharedRead]:
        """Reads whose time is over; afterwards the earliest deadline is exact."""
        places = self.places
        late = places.overdue(now)
        for read in late:
            self._expire(read, places.timed_out(read.deadline), now)
        self._earliest = min((read.until for line in (places.fast, places.slow) for read in line.reads()),
                             default=_NEVER)
        for slot in places.slots:
            for unit in slot.units:
                if not isinstance(unit, Sending) or unit.read.over:
                    continue
                if unit.read.deadline <= now:
                    self._expire(unit.read, self.silent(unit, Stage.EXECUTE), now)
                    late.append(unit.read)
                elif unit.read.deadline < self._earliest:
                    self._earliest = unit.read.deadline
        return late

    def _expire(self, read: SharedRead, fault: Fault, now: float) -> None:
        self._drop(read)
        read.fault = fault
        read.done_at = now

    def silent(self, unit: Unit, stage: Stage) -> Fault:
        """No answer before the deadline."""
        return Fault(
            FaultKind.SILENT,
            stage if unit.sent else Stage.SEND,
            message="no answer before the deadline",
            generation=self._pool.generation,
        )

    # --- rescue ------------------------------------------------------------------------------------------------

    def _rescue(self, now: float) -> None:
        """Send again what stands behind a head that takes much too long; decisions/lanes says which heads do."""
        places = self.places
        reads: list[SharedRead] = []
        heads = [self._head(slot) for slot in places.slots]
        rescued = self._rescued = [read for read in self._rescued if not read.over]
        for index in stalled(heads, places.limits, now):
            slot = places.slots[index]
            slot.stalled = True
            behind = [unit.read for unit in list(slot.units)[1:] if isinstance(unit, Sending)]
            behind = [read for read in behind if not read.over and not read.rescued]
            # Nothing proves that the server answers: one read goes to find out.
            reads += behind if goes_on(heads, index) else behind[: not rescued and not reads]
        del reads[max(0, self._most_rescues - len(rescued)) :]
        for read in reads:
            read.rescued = True
        if reads:
            rescued += reads
            places.put_first(reads)

    @staticmethod
    def _head(slot: Slot) -> Head | None:
        if slot.pinned:
            return None
        if not slot.units or not slot.units[0].sent:
            return Head(_NEVER, 0.0, slot.answered_at)
        unit = slot.units[0]
        assert isinstance(unit, Sending)
        return Head(max(unit.sent_at, slot.answered_at), unit.counted_s, slot.answered_at)

    def close(self) -> None:
        """No timer any more: whatever runs ends with its lane."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._ticking = True  # no new one either


def _nobody(_: SharedRead) -> None:
    """Who is told of a read that was given up."""
