"""Shared reads: answered once, by callback; in their order; and sent again when they stand behind a stalled head."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import random
import weakref
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from router.decisions.lane_costs import CostBook
from router.decisions.lanes import Defer, place_alone, place_fast, place_slow
from router.engine.lane_pool import LanePool, Slot
from router.engine.shared_lanes import TICK_S
from router.engine.shared_read import Sending, SharedRead
from router.model.identity import Generation
from router.model.observation import AttemptFailed, FaultKind, Stage
from router.model.policy import PoolPolicy
from router.model.reasons import CloseReason
from router.model.request import Statement
from router.ports import Unit
from tests.support.builders import now
from tests.support.lane_world import free_runs
from tests.support.timed_lanes import TimedLane, TimedPool
from tests.support.virtual_time import VirtualClock, run_virtual, settle, virtual

FAST = b"100 point"
SLOW = b"100000 sleep"
LATE_S = TICK_S + 0.0005


class Read(SharedRead):
    """Remembers how often it was answered."""

    __slots__ = ("__weakref__", "answers", "began", "given_up", "late_s")

    def __init__(self, sql: bytes, deadline: float) -> None:
        super().__init__(Statement(sql), deadline, lambda _: self._count())
        self.began = now()
        self.answers = 0
        self.given_up = False
        self.late_s = 0.0

    def _count(self) -> None:
        self.answers += 1
        self.late_s = now() - self.deadline


class World:
    """A lane pool over lanes that only take time."""

    def __init__(self, max_size: int = 4, **policy: Any) -> None:
        self.inner = TimedPool(max_size)
        limits = PoolPolicy(max_size=max_size, **policy)
        self.pool = LanePool(self.inner, limits, VirtualClock(), free_runs(limits))
        self.places = self.pool._places
        self.reads: list[Read] = []

    def start(self, sql: bytes = FAST, timeout: float = 5.0) -> Read:
        read = Read(sql, now() + timeout)
        self.reads.append(read)
        self.pool.start_shared(read)
        return read

    async def learn(self, sql: bytes = FAST) -> None:
        for _ in range(3):
            await self.pool.run_shared(Statement(sql), now() + 5)

    def stall(self, seconds: float) -> None:
        """The next statement takes this long."""
        usual = self.inner.takes

        def takes(lane: TimedLane, sql: bytes) -> float:
            self.inner.takes = usual
            return seconds

        self.inner.takes = takes

    async def two_lanes(self) -> None:
        """Two lanes, both idle."""
        slots = await asyncio.gather(self.pool.pin(now() + 5), self.pool.pin(now() + 5))
        for slot in slots:
            self.pool.release(slot)

    def check_served(self) -> None:
        """No head of a line could be placed."""
        places, limits = self.places, self.places._limits_now()
        fast, slow = places.fast.head(), places.slow.head()
        if fast is not None:
            assert place_fast(places.slots, fast.cost.expected_s, limits, places.spread.lanes) < 0
        if slow is not None:
            verdict = place_slow(places.slots, limits, known=slow.cost.answers > 0, opening=places.opening,
                                 fast_needs=places.spread.needs(now(), places.fast.living))
            assert not isinstance(verdict, int)
            assert verdict is Defer.WAIT or places.opening
        if len(places._alone):
            assert not isinstance(place_alone(places.slots, limits, places.opening), int)

    async def end(self) -> None:
        """All has ended, and was accounted for."""
        await asyncio.sleep(10)
        assert not self.pool.busy
        for slot in self.places.slots:
            assert (slot.in_flight, slot.expected_s, slot.slow, len(slot.units)) == (0, 0.0, 0, 0)
        assert (self.places.fast.expected_s, self.places.slow.expected_s) == (0.0, 0.0)
        await self.pool.close(CloseReason.SHUTDOWN)
        for read in self.reads:
            assert read.answers == (0 if read.given_up else 1)


# --- slow ones -----------------------------------------------------------------------------------------------------


@virtual
async def test_slow_reads_have_every_lane_where_there_are_no_fast_ones() -> None:
    """Else one lane of each pool is held for nobody, and given up and opened again while others wait for it."""
    world = World(max_size=4)
    await world.learn(SLOW)
    began = now()
    slow = [world.start(SLOW) for _ in range(4)]
    await asyncio.sleep(0.15)
    assert all(read.answers == 1 and read.done_at - began < 0.12 for read in slow)
    await world.end()


@virtual
async def test_one_lane_is_kept_for_fast_reads_while_some_are_expected() -> None:
    """Also when they come one at a time, and nothing ever waits."""
    world = World(max_size=4)
    await world.learn(SLOW)
    for _ in range(40):
        await world.learn(FAST)
        await asyncio.sleep(0.2)
    slow = [world.start(SLOW) for _ in range(8)]
    await asyncio.sleep(0.02)
    fast = world.start(FAST)
    await asyncio.sleep(0.01)
    assert fast.answers == 1
    assert sum(read.answers for read in slow) == 0
    await world.end()


@virtual
async def test_a_fast_read_that_comes_after_a_while_gets_the_next_lane_not_the_last() -> None:
    world = World(max_size=4)
    await world.learn(SLOW)
    await world.learn(FAST)
    await asyncio.sleep(60)
    slow = [world.start(SLOW) for _ in range(20)]
    await asyncio.sleep(0.05)
    fast = world.start(FAST)
    await asyncio.sleep(0.1)
    assert fast.answers == 1
    assert sum(read.answers for read in slow) == 4
    await world.end()


# --- one read ------------------------------------------------------------------------------------------------------


@virtual
async def test_a_read_is_answered_by_a_call() -> None:
    world = World()
    read = world.start()
    assert read.answers == 0
    await asyncio.sleep(0.01)
    assert (read.answers, read.fault, len(read.results)) == (1, None, 1)
    assert read.began < read.sent_at < read.done_at <= now()
    assert read.queued, "the first waits for its lane"
    assert not world.start().queued
    await world.end()


def test_a_sending_has_every_field_of_a_unit() -> None:
    read = SharedRead(Statement(b"a"), 1.0, lambda _: None)
    sending = Sending(read, Slot(None, 0.0), CostBook(0.01).of(b"a"), lambda _: None)  # type: ignore[arg-type]
    plain = Unit((read.statement,), sending.done, commits=False)
    for one in dataclasses.fields(Unit):
        assert getattr(sending, one.name) == getattr(plain, one.name), one.name


@virtual
async def test_the_deadline_is_kept_to_a_tick_whatever_else_goes_on() -> None:
    world = World(max_size=1)
    await world.learn()
    world.stall(60)
    timeouts = [0.1 + number * 0.0037 for number in range(30)]
    reads = [world.start(timeout=timeout) for timeout in random.Random(5).sample(timeouts, len(timeouts))]
    await asyncio.sleep(0.5)
    for read in reads:
        assert read.fault is not None
        assert read.fault.kind is FaultKind.SILENT
        assert 0 <= read.late_s <= LATE_S
    await world.end()


@virtual
async def test_who_waits_for_a_lane_is_told_by_the_acquire_timeout() -> None:
    world = World(max_size=1, acquire_timeout_s=0.5)
    await world.learn()
    slot = await world.pool.pin(now() + 5)
    read = world.start(timeout=3.0)
    await asyncio.sleep(0.52)
    assert read.fault is not None
    assert (read.fault.kind, read.fault.stage, read.sent_at) == (FaultKind.POOL_TIMEOUT, Stage.ACQUIRE, 0.0)
    world.pool.release(slot)
    await world.end()


@virtual
async def test_a_closed_pool_answers_at_once() -> None:
    world = World()
    await world.learn()
    waiting = world.start()
    await world.pool.close(CloseReason.SHUTDOWN)
    late = world.start()
    await settle()
    for read in (waiting, late):
        assert read.answers == 1
        assert read.fault is not None
        assert read.fault.kind is FaultKind.CLOSED


@virtual
async def test_giving_up_is_silent_wherever_the_read_is() -> None:
    world = World(max_size=1)
    await world.learn()
    reads = [world.start() for _ in range(60)]
    for read in (reads[0], reads[5], reads[59]):
        read.given_up = True
        world.pool.give_up(read)
        world.pool.give_up(read)
    assert world.pool.waiting > 0
    await world.end()


@virtual
async def test_a_caller_that_fails_harms_nobody() -> None:
    world = World(max_size=1)
    reported: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context["exception"]))
    await world.learn()

    def broken(_: SharedRead) -> None:
        raise KeyError("a bug")

    world.pool.start_shared(SharedRead(Statement(FAST), now() + 5, broken))
    world.start()
    await world.end()
    assert [type(one) for one in reported] == [KeyError]


@virtual
async def test_answered_reads_leave_nothing_to_the_collector() -> None:
    world = World()
    await world.learn()
    gc.disable()
    try:
        gone = [weakref.ref(world.start()) for _ in range(100)]
        await asyncio.sleep(0.1)
        world.reads.clear()
        world.inner.submitted.clear()
        # answered by a closure over the read itself: the test's own cycle
        for one in gone:
            read = one()
            assert read is not None
            del read.answered
        del read
        assert not any(one() for one in gone)
    finally:
        gc.enable()
    await world.end()


# --- order ---------------------------------------------------------------------------------------------------------


@virtual
async def test_no_newcomer_overtakes_who_waits_for_the_same_kind() -> None:
    world = World(max_size=1, lane_window=2)
    await world.learn()
    order: list[int] = []

    def start(number: int) -> None:
        def answered(_: SharedRead) -> None:
            order.append(number)
            if number < 100:
                start(number + 100)

        world.pool.start_shared(SharedRead(Statement(FAST), now() + 5, answered))

    for number in range(20):
        start(number)
    await asyncio.sleep(0.1)
    assert order == [*range(20), *range(100, 120)]
    await world.end()


@virtual
async def test_a_statement_that_proves_fast_takes_all_its_waiters_to_the_fast_line() -> None:
    world = World(max_size=8)
    began = now()
    reads = [world.start() for _ in range(50)]
    await asyncio.sleep(0.05)
    assert all(read.answers for read in reads)
    assert max(read.done_at for read in reads) - began < 0.015, "not one after the other, each as an unknown one"
    assert world.inner.opened <= 2
    await world.end()


# --- rescue --------------------------------------------------------------------------------------------------------


@virtual
async def test_reads_behind_a_stalled_head_are_answered_elsewhere() -> None:
    world = World(max_size=2)
    await world.two_lanes()
    await world.learn()
    world.stall(2.0)
    reads = [world.start() for _ in range(10)]
    await asyncio.sleep(0.1)
    assert [read.answers for read in reads] == [0, *[1] * 9]
    assert all(read.rescued and len(read.results) == 1 for read in reads[1:])
    assert max(read.done_at for read in reads[1:]) - reads[0].began < 0.05
    await asyncio.sleep(2)
    assert reads[0].fault is None
    assert all(len(read.results) == 1 for read in reads), "the late answer changes nothing"
    assert len(world.inner.begun) == 3 + 10 + 9
    await world.end()


@virtual
async def test_a_server_that_stands_still_gets_one_more_statement_not_all_again() -> None:
    world = World(max_size=4)
    await world.two_lanes()
    await world.learn()
    world.inner.takes = lambda _, sql: 3.0
    reads = [world.start() for _ in range(60)]
    await asyncio.sleep(1.0)
    assert sum(read.rescued for read in reads) <= 1
    newcomers = [world.start() for _ in range(20)]
    await asyncio.sleep(1.0)
    assert sum(read.rescued for read in [*reads, *newcomers]) <= 1
    world.inner.takes = lambda _, sql: 0.0001
    await asyncio.sleep(2)
    await world.end()


@virtual
async def test_a_lane_that_is_lost_leaves_its_reads_to_their_second_sending() -> None:
    world = World(max_size=2)
    await world.two_lanes()
    await world.learn()
    world.stall(2.0)
    reads = [world.start() for _ in range(5)]
    await asyncio.sleep(0.0005)
    stalled = reads[0].sendings[0].slot
    world.inner.takes = lambda lane, sql: 0.02
    await asyncio.sleep(0.055)
    assert reads[1].answers == 1, "sent first, to find out whether the server goes on"
    assert all(len(read.sendings) == 2 for read in reads[2:])
    stalled.lane.abandon(CloseReason.CONNECTION_LOST)
    await asyncio.sleep(1)
    assert reads[0].fault is not None
    assert [read.fault for read in reads[1:]] == [None] * 4
    await world.end()


@virtual
async def test_newcomers_do_not_join_a_stalled_lane() -> None:
    world = World(max_size=2)
    await world.learn()
    world.stall(2.0)
    reads = [world.start(), world.start()]
    await asyncio.sleep(0.03)
    newcomer = world.start()
    await asyncio.sleep(0.02)
    assert newcomer.answers == 1
    assert reads[1].answers == 1, "the newcomer's answer proved that the server goes on"
    await world.end()


# --- any order -----------------------------------------------------------------------------------------------------


class Schedule:
    """Reads, work alone, stalls, losses and fences in an order drawn from one seed."""

    def __init__(self, seed: int) -> None:
        self.draw = draw = random.Random(seed)
        self.world = World(
            max_size=draw.choice([1, 2, 4, 7]), acquire_timeout_s=draw.choice([0.05, 2.0]),
            lane_window=draw.choice([1, 3, 32]), lane_window_s=draw.choice([0.003, 0.05]))
        self.inner = self.world.inner
        self.inner.takes = self.takes
        self.pins: set[asyncio.Task[None]] = set()

    def takes(self, lane: TimedLane, sql: bytes) -> float:
        usual = float(sql.split()[0]) * 1e-6
        return usual * self.draw.choice([1, 1, 1, 1, 1, 2, 0.5]) if self.draw.random() < 0.97 else self.draw.random()

    async def pin(self) -> None:
        try:
            slot = await self.world.pool.pin(now() + self.draw.uniform(0.01, 1))
        except AttemptFailed:
            return
        try:
            await asyncio.sleep(self.draw.uniform(0, 0.05))
        finally:
            self.world.pool.release(slot)

    def act(self) -> None:
        draw, world = self.draw, self.world
        match draw.choice(["reads", "reads", "reads", "slow", "new", "give up", "pin", "unpin", "lose", "cut", "fence",
                           "idle"]):
            case "reads":
                for _ in range(draw.choice([1, 1, 5, 40])):
                    world.start(draw.choice([FAST, b"300 point"]), draw.choice([0.005, 0.1, 2.0]))
            case "slow":
                world.start(SLOW, draw.choice([0.05, 2.0]))
            case "new":
                for _ in range(draw.choice([1, 6])):
                    world.start(b"%d new" % draw.choice([100, 20000, draw.randrange(30000)]), 2.0)
            case "give up":
                for read in world.reads:
                    if not read.answers and draw.random() < 0.3:
                        read.given_up = True
                        world.pool.give_up(read)
            case "pin":
                self.pins.add(asyncio.ensure_future(self.pin()))
            case "unpin":
                for task in self.pins:
                    task.cancel()
            case "lose" if self.inner.lanes:
                draw.choice(self.inner.lanes).abandon(CloseReason.CONNECTION_LOST)
            case "cut" if draw.random() < 0.3:
                world.pool.cut(CloseReason.CONNECTION_LOST)
            case "fence" if draw.random() < 0.3:
                world.pool.fence(Generation(self.inner.generation + 1))
            case "idle":
                world.pool.give_back_idle(draw.choice([0.0, 2.0]))

    async def run(self) -> None:
        for _ in range(self.draw.randint(5, 40)):
            self.act()
            self.world.check_served()
            await asyncio.sleep(self.draw.choice([0, 0, 0.0001, 0.001, 0.02, 0.3]))
            self.world.check_served()
        await asyncio.sleep(5)
        if self.pins:
            await asyncio.wait(self.pins)
        await self.world.end()
        self.check()

    def check(self) -> None:
        # Not later than its deadline; what took long in our own turn of the loop is not counted on virtual time.
        for read in self.world.reads:
            assert read.late_s <= LATE_S
            assert read.fault is not None or read.given_up or len(read.results) == 1
        self.check_order()

    def check_order(self) -> None:
        """Reads of one text are first sent in the order in which they came."""
        number = {read: position for position, read in enumerate(self.world.reads)}
        sent: dict[bytes, list[int]] = {}
        seen: set[SharedRead] = set()
        for unit in self.inner.submitted:
            if isinstance(unit, Sending) and isinstance(unit.read, Read) and unit.read not in seen:
                seen.add(unit.read)
                sent.setdefault(unit.statements[0].sql, []).append(number[unit.read])
        for numbers in sent.values():
            assert numbers == sorted(numbers)
        sendings = [unit.read for unit in self.inner.submitted if isinstance(unit, Sending)]
        assert all(sendings.count(read) <= 2 for read in seen)


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(st.integers(0, 1 << 32))
@example(3234087354)  # a slow read could share a lane from when another was kept for work alone, and was not told
def test_the_promises_hold_in_any_order(seed: int) -> None:
    async def main() -> None:
        await Schedule(seed).run()

    run_virtual(main())


@pytest.mark.parametrize("seed", range(5))
def test_the_promises_hold_in_a_long_run(seed: int) -> None:
    async def main() -> None:
        schedule = Schedule(seed)
        for _ in range(300):
            schedule.act()
            await asyncio.sleep(schedule.draw.choice([0, 0.001, 0.01]))
            schedule.world.check_served()
        await schedule.run()

    run_virtual(main())
