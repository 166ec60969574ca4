"""Runs units on the lanes of one tenant on one endpoint for one access, each to its answer or to its deadline.

Who gets which lane is lane_places, reads that share lanes are shared_lanes. Here: work that has its lane alone, and
stopping what has run out of time without harming a neighbour and without ever cancelling a COMMIT.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from router.decisions.lane_costs import Cost
from router.engine.expiry import Expired, wait_until
from router.engine.lane_slots import Slot, has_arrived
from router.engine.running import PoolRuns
from router.engine.shared_lanes import GRACE_S, STUCK_S, SharedLanes
from router.engine.shared_read import SharedRead
from router.model.identity import Generation
from router.model.observation import AttemptFailed, Fault, FaultKind, Stage
from router.model.policy import PoolPolicy
from router.model.reasons import CloseReason
from router.model.request import Residue, Statement
from router.ports import Clock, CopyChannel, EndpointPool, PoolStatistics, Unit

__all__ = ["CANCEL_S", "COMMIT_LINGER_S", "GRACE_S", "STUCK_S", "LanePool", "SharedRead", "Slot"]

CANCEL_S = 0.08
"""After a cancel request, the answer has this long to come; with what is around it, a caller is told at most 100 ms
after its deadline."""
ROLLBACK_S = 0.5
"""A ROLLBACK has this long, then the connection is closed, which rolls back as well."""
DISCARD_S = 0.5
"""A DISCARD ALL has this long, then the connection is closed."""
COMMIT_LINGER_S = 30.0
"""A COMMIT without an answer keeps its connection this long after the caller was told that the outcome is unknown."""

_ROLLBACK = Statement(b"ROLLBACK")
_DISCARD = Statement(b"DISCARD ALL")


class LanePool:
    """Runs units. Every public coroutine raises AttemptFailed, and ends by its deadline plus CANCEL_S."""

    def __init__(self, pool: EndpointPool, policy: PoolPolicy, clock: Clock, runs: PoolRuns) -> None:
        self._pool = pool
        self._policy = policy
        self._clock = clock
        self._runs = runs
        self._shared = SharedLanes(pool, policy, clock, runs, self.stop)
        self._places = self._shared.places
        self._pinned_s = 0.0
        """Connection seconds of pinned uses that have ended."""

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

    @property
    def database_s(self) -> float:
        """Connection seconds that its statements and transactions have taken so far, with those that run now."""
        now = self._clock.now()
        return self._shared.read_s + self._pinned_s + sum(slot.running_s(now) for slot in self._places.slots)

    @property
    def used_at(self) -> float:
        """When it was last in use, to a second (monotonic seconds)."""
        return max(self._shared.used_at, self._places.used_at)

    # --- shared ------------------------------------------------------------------------------------------------

    def start_shared(self, read: SharedRead) -> None:
        """Run a read beside others. Never raises. read.answered is called once: with the answer, with SILENT by its
        deadline plus TICK_S, or when it gets no lane; before this returns only when the pool is closed."""
        self._shared.start(read)

    def give_up(self, read: SharedRead) -> None:
        """Nobody waits for this read any more: answered is not called. What waits leaves; what runs is stopped where
        that harms no neighbour."""
        self._shared.give_up(read)

    async def run_shared(
        self, statement: Statement, deadline: float, also: Statement | None = None
    ) -> SharedRead:
        """Run a read beside others, and another statement right behind it. It comes back final, without a fault."""
        read = _AwaitedRead(statement, deadline, _wake, also)
        future = read.future = asyncio.get_running_loop().create_future()
        self._shared.start(read)
        try:
            await future
        except asyncio.CancelledError:
            self._shared.give_up(read)
            raise
        if read.fault is not None:
            raise AttemptFailed(read.fault)
        return read

    def prepare(self, generation: Generation, lanes: int) -> None:
        """Have so many lanes of a generation that is to come, before anybody asks for one."""
        self.fence(generation)
        self._places.have(lanes)

    def go_on(self) -> None:
        """The server answers again: what could not be opened may be tried now."""
        self._places.go_on()

    # --- pinned ------------------------------------------------------------------------------------------------

    async def pin(self, deadline: float) -> Slot:
        """A lane for one caller alone. The caller ends with release()."""
        return await self._places.take_alone(deadline)

    async def run_pinned(
        self,
        slot: Slot,
        statements: Sequence[Statement],
        deadline: float,
        *,
        commits: bool,
        final: bool = False,
        tells_executed: bool = False,
        behind: Unit | None = None,
    ) -> Unit:
        """Run a unit on a pinned lane. final: it is a COMMIT, never cancelled once sent; without it, commits means that
        PostgreSQL commits by itself once the statements have run, and with tells_executed it is not cancelled from
        then on. behind: leaves with it, and is answered after it, whoever waits for that."""
        unit = _PinnedRun(statements, _run_ended, commits=commits, tells_executed=tells_executed)
        if slot.stopping is not None or slot.given_up:
            await self._cancel_arrived(slot, unit, deadline)
        unit.slot, unit.ended = slot, (ended := asyncio.get_running_loop().create_future())
        unit.cost = None if final else self._runs.cost_of(self._shared.costs, statements)
        slot.units.append(unit)
        if behind is None:
            slot.lane.submit_now(unit)
        else:
            self._attach(slot, behind)
            slot.lane.submit_now(unit, behind)
        try:
            await wait_until(ended, deadline)
        except asyncio.CancelledError:
            if not final and not _is_committing(unit):
                self.stop(slot, unit)
            raise
        except Expired:
            if final or _is_committing(unit):
                raise AttemptFailed(self._shared.silent(unit, Stage.COMMIT)) from None
            stopping = self.stop(slot, unit)
            await asyncio.wait({stopping})
            if stopping.cancelled() or not stopping.result():
                raise AttemptFailed(self._shared.silent(unit, Stage.COMMIT if commits else Stage.EXECUTE)) from None
        if unit.fault is not None:
            raise AttemptFailed(unit.fault)
        if unit.cost is not None and not tells_executed:
            self._runs.note(unit.cost, unit.done_at - unit.sent_at)
        return unit

    async def _cancel_arrived(self, slot: Slot, unit: Unit, deadline: float) -> None:
        """A cancel that is on its way was meant for what ran before. AttemptFailed when it may come later."""
        if slot.stopping is not None:
            await asyncio.wait({slot.stopping}, timeout=max(0.0, deadline - self._clock.now()))
        if slot.stopping is not None:
            raise AttemptFailed(self._shared.silent(unit, Stage.SEND))
        if slot.given_up:
            raise AttemptFailed(Fault(FaultKind.CLOSED, Stage.SEND, message="a cancel request may hit what runs here"))

    def submit(self, slot: Slot, unit: Unit) -> None:
        """Give a unit to a pinned lane; its answer comes by unit.done."""
        self._attach(slot, unit)
        slot.lane.submit_now(unit)

    def open_copy(self, slot: Slot, unit: Unit) -> CopyChannel:
        """The same for the unit of a COPY, whose data goes through the channel."""
        self._attach(slot, unit)
        return slot.lane.open_copy(unit)

    @staticmethod
    def _attach(slot: Slot, unit: Unit) -> None:
        def answered(unit: Unit) -> None:
            slot.units.popleft()
            slot.answered_at = unit.done_at
            if _in_doubt(unit):
                slot.residue = Residue.DESTROY

        done, unit.done = unit.done, answered
        _also(unit, done)
        slot.units.append(unit)

    def stop_running(self, slot: Slot) -> bool:
        """Stop what runs on a pinned lane because its caller no longer wants it. False when nothing runs there that
        could be stopped without hiding its outcome.

        Its own answer, or its lane's end within CANCEL_S, reaches whoever waits for it.
        """
        if not slot.units or _is_committing(slot.units[0]):
            return False
        self.stop(slot, slot.units[0])
        return True

    def stop(self, slot: Slot, unit: Unit) -> asyncio.Task[bool]:
        """Cancel what runs alone on a lane; without an answer in time, end the lane. True: it was answered.

        A pinned lane ends, too, when the request may arrive later: it would hit the caller's next statement, or COMMIT.
        False then, unless the unit was a transaction of its own: an open one is undone."""
        if slot.stopping is None:
            slot.stopping = self._places.spawn(self._stop(slot, unit))
        return slot.stopping

    async def _stop(self, slot: Slot, unit: Unit) -> bool:
        answered: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        _also(unit, lambda _: None if answered.done() else answered.set_result(True))
        cancelling = asyncio.create_task(slot.lane.cancel())
        try:
            # Both: a request that has not arrived yet would hit whoever runs here next.
            await asyncio.wait({answered, cancelling}, timeout=CANCEL_S)
        finally:
            timely = answered.done()
            slot.given_up = slot.pinned and not (timely and has_arrived(cancelling))
            if not timely:
                self._shared.learn_stuck(slot)
                slot.lane.abandon(CloseReason.ABANDONED)
            elif slot.given_up:
                slot.lane.abandon(CloseReason.CANCEL_UNCONFIRMED)
            elif not cancelling.done():
                slot.residue = Residue.DESTROY
            cancelling.cancel()
            slot.stopping = None
            self._places.put_back(slot)
        return timely and (unit.commits or not slot.given_up)

    def release(self, slot: Slot) -> asyncio.Task[None] | None:
        """End a pinned use. What takes time (an answer still due, ROLLBACK, DISCARD) happens beside; the task says
        when.

        Synchronous, so that no cancellation can come between the end of the work and the return of its lane.
        """
        lane = slot.lane
        unclean = lane.in_transaction or slot.residue is Residue.DISCARD
        if slot.units or slot.stopping is not None or (unclean and lane.usable):
            return self._places.spawn(self._clean_up(slot))
        self._unpin(slot)
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
        if slot.residue is Residue.DISCARD and lane.usable and not lane.in_transaction:
            await self._discard(slot)
        self._unpin(slot)

    def _unpin(self, slot: Slot) -> None:
        self._pinned_s += self._clock.now() - slot.pinned_at
        slot.pinned = False
        if slot.lane.altered:
            slot.residue = Residue.DESTROY
        self._places.put_back(slot)

    async def _discard(self, slot: Slot) -> None:
        """Make the session new. It stays tainted unless PostgreSQL says that it did."""
        discard = Unit((_DISCARD,), lambda _: None, commits=False)
        self.submit(slot, discard)
        if await self._answered(discard, DISCARD_S) and discard.fault is None:
            slot.lane.forget_prepared()
            slot.residue = Residue.NONE

    async def _answered(self, unit: Unit, timeout_s: float) -> bool:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        _also(unit, lambda _: None if done.done() else done.set_result(None))
        await asyncio.wait({done}, timeout=timeout_s)
        return done.done()

    # --- all lanes ---------------------------------------------------------------------------------------------

    @property
    def idle_since(self) -> float | None:
        """When the lane that has been unused longest was last used; None when all are in use."""
        return self._places.idle_since

    def give_back_idle(self, idle_s: float | None = None) -> None:
        """Called now and then: lanes unused for this long (lane_idle_s) go back to the pool, which closes idle
        connections; what was not seen for long is forgotten."""
        self._places.give_back_idle(self._policy.lane_idle_s if idle_s is None else idle_s)
        self._shared.costs.forget(self._clock.now())

    def end_retired(self) -> None:
        """Lanes that were asked to run dry and have nothing to do end now, not with their next answer."""
        self._places.end_retired()

    def fence(self, generation: Generation) -> None:
        """Connections of an older generation are destroyed now; who waits fails with STALE, unsent: it was routed
        before the primary changed, and a new connection could lead it to the one before."""
        self._places.fence(generation)

    def send_on(self, why: str) -> None:
        """Another pool is in use: who waits here is told to ask again where to go; what runs goes on."""
        self._places.fail_lines(Fault(FaultKind.STALE, Stage.ACQUIRE, message=why))

    def cut(self, reason: CloseReason) -> None:
        """The server is gone: what is in flight there fails now, not at its deadline."""
        self._places.cut(reason)

    async def close(self, reason: CloseReason) -> None:
        """End everything."""
        self._shared.close()
        await self._places.close(reason)


class _PinnedRun(Unit):
    """What a task runs on its pinned lane, without a closure."""

    __slots__ = ("cost", "ended", "slot")

    cost: Cost | None
    """What is known of it, where that is looked at."""
    ended: asyncio.Future[None]
    slot: Slot


def _is_committing(unit: Unit) -> bool:
    """Its statements have run, and what they did is being committed: a cancel would only end the wait for the standby,
    and have PostgreSQL acknowledge what a failover may lose."""
    return unit.commits and len(unit.results) >= len(unit.statements)


def _in_doubt(unit: Unit) -> bool:
    """The server ends waits for its standby early: no place for the next write."""
    return unit.fault is not None and unit.fault.kind is FaultKind.LOCAL_COMMIT


def _run_ended(unit: Unit) -> None:
    assert isinstance(unit, _PinnedRun)
    unit.slot.units.popleft()
    unit.slot.answered_at = unit.done_at
    if _in_doubt(unit):
        unit.slot.residue = Residue.DESTROY
    if not unit.ended.done():
        unit.ended.set_result(None)


class _AwaitedRead(SharedRead):
    """A read whose caller is a task."""

    __slots__ = ("future",)

    future: asyncio.Future[None]


def _wake(read: SharedRead) -> None:
    assert isinstance(read, _AwaitedRead)
    if not read.future.done():
        read.future.set_result(None)


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
