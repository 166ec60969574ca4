"""Runs units on the lanes of one tenant on one endpoint for one access, each to its answer or to its deadline.

Who gets which lane is lane_places. Here: submitting, waiting, and stopping what has run out of time without harming
a neighbour and without ever cancelling a COMMIT.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from router.decisions.lanes import CostBook, PlacementWant, Sharing
from router.engine.expiry import Expired, wait_until
from router.engine.lane_places import ALONE, LanePlaces, Slot, assumed
from router.model.identity import Generation
from router.model.observation import AttemptFailed, Fault, FaultKind, Stage
from router.model.policy import PoolPolicy
from router.model.reasons import CloseReason
from router.model.request import Statement
from router.ports import Clock, EndpointPool, PoolStatistics, Unit

__all__ = ["CANCEL_S", "COMMIT_LINGER_S", "STUCK_S", "LanePool", "Slot"]

STUCK_S = 1.0
"""A shared lane whose unit is this far past its deadline is abandoned: the units behind it go elsewhere."""
GRACE_S = 0.01
"""An answer that nobody waits for any more has this long before anything is done about it: most are on their way."""
CANCEL_S = 0.1
"""After a cancel request, the answer has this long to come."""
ROLLBACK_S = 0.5
"""A ROLLBACK has this long, then the connection is closed, which rolls back as well."""
COMMIT_LINGER_S = 30.0
"""A COMMIT without an answer keeps its connection this long after the caller was told that the outcome is unknown."""

_ROLLBACK = Statement(b"ROLLBACK")


class LanePool:
    """Runs units. Every public coroutine raises AttemptFailed, and ends by its deadline plus CANCEL_S."""

    def __init__(self, pool: EndpointPool, policy: PoolPolicy, clock: Clock) -> None:
        self._pool = pool
        self._clock = clock
        self._costs = CostBook()
        self._places = LanePlaces(pool, policy, clock)
        self.used_at = clock.now()

    def __repr__(self) -> str:
        return f"<LanePool {self._pool!r} lanes={self.lanes} in_flight={self.in_flight} waiting={self.waiting}>"

    @property
    def lanes(self) -> int:
        """Lanes open now."""
        return len(self._places.slots)

    @property
    def in_flight(self) -> int:
        """Units on all lanes."""
        return sum(len(slot.units) for slot in self._places.slots)

    @property
    def waiting(self) -> int:
        """Units that wait for a lane."""
        return self._places.waiting

    @property
    def busy(self) -> bool:
        """Whether anything runs, waits or is being cleaned up."""
        return self._places.busy

    @property
    def generation(self) -> Generation:
        """Of the connections that are lent now."""
        return self._pool.generation

    def statistics(self) -> PoolStatistics:
        """Of the connections underneath."""
        return self._pool.statistics()

    # --- shared ------------------------------------------------------------------------------------------------

    async def run_shared(self, statement: Statement, deadline: float) -> Unit:
        """Run a read beside others. Its unit comes back final, without a fault."""
        self.used_at = self._clock.now()
        cost = self._costs.cost(statement.sql, self.used_at)
        slot = await self._places.take(PlacementWant(Sharing.SHARED, cost), deadline)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        counted = assumed(cost)

        def answered(unit: Unit) -> None:
            # Here, not in the caller's task: the load stays until the answer, also when its caller is long gone.
            self._learn(slot, unit)
            slot.units.popleft()
            slot.remove(counted)
            if not done.done():
                done.set_result(None)
            self._places.put_back(slot)

        unit = Unit((statement,), answered, commits=False)
        slot.units.append(unit)
        slot.lane.submit(unit)
        try:
            await wait_until(done, deadline)
        except asyncio.CancelledError:
            self._give_up(slot, unit)
            raise
        except Expired:
            self._give_up(slot, unit)
            raise AttemptFailed(self._silent(unit, Stage.EXECUTE)) from None
        if unit.fault is not None:
            raise AttemptFailed(unit.fault)
        return unit

    def _learn(self, slot: Slot, unit: Unit) -> None:
        """An answer's cost is its time at the head of the lane, not the time behind its neighbours."""
        if unit.sent and (unit.fault is None or unit.fault.kind is FaultKind.SERVER_ERROR):
            took = unit.done_at - max(unit.sent_at, slot.answered_at)
            self._costs.learn(unit.statements[0].sql, max(0.0, took), unit.done_at)
            slot.answered_at = unit.done_at

    def _learn_stuck(self, slot: Slot) -> None:
        """What runs at the head of a lane that is given up costs at least what it has taken so far."""
        head = slot.units[0]
        if head.sent:
            now = self._clock.now()
            self._costs.learn(head.statements[0].sql, now - max(head.sent_at, slot.answered_at), now)

    def _give_up(self, slot: Slot, unit: Unit) -> None:
        """Nobody waits for this unit any more."""
        if not unit.done_at:
            self._places.spawn(self._watch(slot, unit))

    async def _watch(self, slot: Slot, unit: Unit) -> None:
        """Alone on its lane the unit is stopped. With neighbours, the lane is ended once it is stuck for certain."""
        await self._clock.sleep(GRACE_S)
        if slot.in_flight > 1 and not unit.done_at:
            await self._clock.sleep(STUCK_S - GRACE_S)
        if unit.done_at:
            return
        if slot.in_flight == 1:
            slot.private = True  # or the cancel request could hit whoever comes next
            self.stop(slot, unit)
        else:
            self._learn_stuck(slot)
            slot.lane.abandon(CloseReason.ABANDONED)

    # --- pinned ------------------------------------------------------------------------------------------------

    async def pin(self, deadline: float) -> Slot:
        """A lane for one caller alone. The caller ends with release()."""
        self.used_at = self._clock.now()
        return await self._places.take(ALONE, deadline)

    async def run_pinned(
        self, slot: Slot, statements: Sequence[Statement], deadline: float, *, commits: bool, final: bool = False
    ) -> Unit:
        """Run a unit on a pinned lane. final: it is a COMMIT, never cancelled once sent."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        unit = Unit(statements, lambda _: None if done.done() else done.set_result(None), commits=commits)
        self.submit(slot, unit)
        try:
            await wait_until(done, deadline)
        except asyncio.CancelledError:
            if not final:
                self.stop(slot, unit)
            raise
        except Expired:
            if final:
                raise AttemptFailed(self._silent(unit, Stage.COMMIT)) from None
            stopping = self.stop(slot, unit)
            await asyncio.wait({stopping})
            if stopping.cancelled() or not stopping.result():
                raise AttemptFailed(self._silent(unit, Stage.COMMIT if commits else Stage.EXECUTE)) from None
        if unit.fault is not None:
            raise AttemptFailed(unit.fault)
        return unit

    def submit(self, slot: Slot, unit: Unit) -> None:
        """Give a unit to a pinned lane; its answer comes by unit.done."""

        def answered(_: Unit) -> None:
            slot.units.popleft()

        done, unit.done = unit.done, answered
        _also(unit, done)
        slot.units.append(unit)
        slot.lane.submit(unit)

    def stop_running(self, slot: Slot) -> bool:
        """Stop what runs on a pinned lane because its caller no longer wants it. False when nothing runs there.

        Its own answer, or its lane's end within CANCEL_S, reaches whoever waits for it.
        """
        if not slot.units:
            return False
        self.stop(slot, slot.units[0])
        return True

    def stop(self, slot: Slot, unit: Unit) -> asyncio.Task[bool]:
        """Cancel what runs alone on a lane; without an answer in time, end the lane. True: it was answered."""
        if slot.stopping is None:
            slot.stopping = self._places.spawn(self._stop(slot, unit))
        return slot.stopping

    async def _stop(self, slot: Slot, unit: Unit) -> bool:
        answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        _also(unit, lambda _: None if answered.done() else answered.set_result(None))
        cancelling = asyncio.create_task(slot.lane.cancel())
        try:
            # Both: a request that has not arrived yet would hit whoever runs here next.
            await asyncio.wait({answered, cancelling}, timeout=CANCEL_S)
        finally:
            timely = answered.done()
            if not timely:
                self._learn_stuck(slot)
                slot.lane.abandon(CloseReason.ABANDONED)
            elif not cancelling.done():
                slot.tainted = True
            cancelling.cancel()
            slot.stopping = None
            self._places.put_back(slot)
        return timely

    def release(self, slot: Slot) -> asyncio.Task[None] | None:
        """End a pinned use. What takes time (an answer still due, ROLLBACK) happens beside; the task says when.

        Synchronous, so that no cancellation can come between the end of the work and the return of its lane.
        """
        lane = slot.lane
        if slot.units or slot.stopping is not None or (lane.in_transaction and lane.usable):
            return self._places.spawn(self._clean_up(slot))
        slot.pinned = False
        self._places.put_back(slot)
        return None

    async def _clean_up(self, slot: Slot) -> None:
        lane = slot.lane
        if slot.stopping is not None:
            await asyncio.wait({slot.stopping})
        if slot.units and not await self._answered(slot.units[-1], COMMIT_LINGER_S):
            # A COMMIT was neither used nor cut until now.
            lane.abandon(CloseReason.ABANDONED)
        if lane.in_transaction and lane.usable:
            rollback = Unit((_ROLLBACK,), lambda _: None, commits=False)
            self.submit(slot, rollback)
            await self._answered(rollback, ROLLBACK_S)
        slot.pinned = False
        self._places.put_back(slot)

    async def _answered(self, unit: Unit, timeout_s: float) -> bool:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        _also(unit, lambda _: None if done.done() else done.set_result(None))
        await asyncio.wait({done}, timeout=timeout_s)
        return done.done()

    def _silent(self, unit: Unit, stage: Stage) -> Fault:
        return Fault(
            FaultKind.SILENT,
            stage if unit.sent else Stage.SEND,
            message="no answer before the deadline",
            generation=self._pool.generation,
        )

    # --- all lanes ---------------------------------------------------------------------------------------------

    def give_back_idle(self) -> None:
        """Called now and then: idle lanes go back to the pool, which closes idle connections."""
        self._places.give_back_idle()

    def fence(self, generation: Generation) -> None:
        """Connections of an older generation are destroyed now; who waits gets a new one."""
        self._places.fence(generation)

    def cut(self, reason: CloseReason) -> None:
        """The server is gone: what is in flight there fails now, not at its deadline."""
        self._places.cut(reason)

    async def close(self, reason: CloseReason) -> None:
        """End everything."""
        await self._places.close(reason)


def _also(unit: Unit, call: Callable[[Unit], None]) -> None:
    """Have one more told when the unit is done; at once when it is."""
    if unit.done_at:
        call(unit)
        return
    before = unit.done

    def both(one: Unit) -> None:
        before(one)
        call(one)

    unit.done = both
