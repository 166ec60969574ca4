"""Lane pools on virtual time: deadlines of what runs, how it is stopped, and what is never harmed by that."""

from __future__ import annotations

import asyncio

import pytest

from router.engine.lane_pool import CANCEL_S, COMMIT_LINGER_S, GRACE_S, STUCK_S
from router.model.observation import FaultKind, Stage
from router.model.reasons import CloseReason
from tests.support.builders import now
from tests.support.fake_lane import FakeLane
from tests.support.fake_replies import Reply
from tests.support.lane_world import FAST, World, failure
from tests.support.virtual_time import settle, virtual

# --- deadlines of what runs ----------------------------------------------------------------------------------------


@virtual
async def test_a_shared_statement_ends_at_its_deadline_and_is_stopped_in_postgresql() -> None:
    world = World()
    before = now()
    fault = await failure(world.read(world.slow(b"select slow", 60), timeout=0.5))
    assert (fault.kind, fault.stage, now() - before) == (FaultKind.SILENT, Stage.EXECUTE, pytest.approx(0.5))
    await asyncio.sleep(GRACE_S + 0.01)
    assert world.server.running() == []
    assert world.server.cancelled == [b"select slow"]
    await world.end()
    assert world.destroyed.total() == 0, "cancelled, not abandoned"


@virtual
async def test_an_answer_just_after_the_deadline_costs_nobody_a_cancel() -> None:
    world = World()
    await failure(world.read(world.slow(b"select slow", 0.505), timeout=0.5))
    await world.end()
    assert world.server.cancelled == []
    assert world.destroyed.total() == 0


@virtual
async def test_a_given_up_statement_keeps_its_place_until_its_answer() -> None:
    """Its lane is not idle: who runs alone must not be put behind it, nor be hit by its cancel."""
    world = World(max_size=2)
    world.inner.cancel_takes = 0.05
    slow = world.slow(b"select slow", 60)
    reading = world.read(slow)
    await asyncio.sleep(0.1)
    reading.cancel()
    await settle()
    slot = await world.pool.pin(now() + 5)
    unit = await world.write(slot, b"select pg_sleep(0.3)")
    assert unit.fault is None
    assert world.server.cancelled == [slow]
    world.pool.release(slot)
    await world.end()


@virtual
async def test_a_stuck_lane_is_abandoned_and_its_neighbours_are_told() -> None:
    world = World(max_size=1)
    await world.learn()
    world.server.script[FAST] = [Reply(silent=True)]
    stuck = world.read(timeout=0.2)
    behind = [world.read() for _ in range(3)]
    assert (await failure(stuck)).kind is FaultKind.SILENT
    before = now()
    faults = [await failure(one) for one in behind[1:]]
    assert {(fault.kind, fault.stage) for fault in faults} == {(FaultKind.CLOSED, Stage.EXECUTE)}
    assert now() - before == pytest.approx(STUCK_S)
    assert world.server.cancelled == [], "a cancel could have hit a neighbour"
    assert (await behind[0]).rescued, "it had been chosen to find out whether another lane answers"
    await world.read()
    await world.end()


@virtual
async def test_a_cancel_on_its_way_does_not_reach_what_runs_next_on_a_pinned_lane() -> None:
    world = World()
    world.inner.cancel_takes = 0.05
    slot = await world.pool.pin(now() + 5)
    first = asyncio.ensure_future(world.write(slot, b"select pg_sleep(0.02)"))
    await asyncio.sleep(0.01)
    assert world.pool.stop_running(slot)
    assert (await first).fault is None, "it was faster than the cancel"
    before = now()
    late = await failure(world.write(slot, b"insert a", 0.01))
    assert (late.kind, late.stage, now() - before) == (FaultKind.SILENT, Stage.SEND, pytest.approx(0.01))
    unit = await world.write(slot, b"select pg_sleep(0.3)")
    assert (unit.fault, world.server.cancelled) == (None, [])
    assert b"insert a" not in world.server.seen
    world.pool.release(slot)
    await world.end()


@virtual
async def test_a_pinned_statement_is_cancelled_at_its_deadline() -> None:
    world = World()
    slot = await world.pool.pin(now() + 5)
    before = now()
    fault = await failure(world.write(slot, b"select pg_sleep(60)", 0.5))
    assert (fault.kind, fault.sqlstate) == (FaultKind.SERVER_ERROR, "57014")
    assert now() - before == pytest.approx(0.5, abs=0.01)
    unit = await world.write(slot, b"insert a")
    assert unit.fault is None
    world.pool.release(slot)
    await world.end()
    assert world.destroyed.total() == 0


@virtual
async def test_an_ignored_cancel_costs_the_connection_and_little_time() -> None:
    world = World()
    world.slow(b"update a", 60, ignores_cancel=True)
    slot = await world.pool.pin(now() + 5)
    before = now()
    fault = await failure(world.write(slot, b"update a", 0.5))
    assert (fault.kind, fault.stage) == (FaultKind.SILENT, Stage.COMMIT)
    assert now() - before <= 0.5 + CANCEL_S + 0.001
    world.pool.release(slot)
    await world.end()
    assert world.destroyed == {CloseReason.ABANDONED: 1}


@virtual
async def test_a_frozen_server_costs_no_more_than_the_deadline() -> None:
    world = World(max_size=2)
    await world.learn()
    slot = await world.pool.pin(now() + 5)
    world.server.freeze()
    before = now()
    faults = await asyncio.gather(
        failure(world.write(slot, b"insert a", 0.5)), *(failure(world.read(timeout=0.5)) for _ in range(20))
    )
    assert {fault.kind for fault in faults} == {FaultKind.SILENT}
    assert now() - before <= 0.5 + CANCEL_S + 0.001
    world.pool.release(slot)
    await asyncio.sleep(2 * STUCK_S)
    world.server.thaw()
    await world.end()


@virtual
async def test_a_commit_is_never_cancelled_and_keeps_its_connection_until_its_answer() -> None:
    world = World()
    world.server.script[b"COMMIT"] = Reply(takes=5.0)
    slot = await world.pool.pin(now() + 5)
    await world.write(slot, b"BEGIN")
    await world.write(slot, b"insert a")
    before = now()
    fault = await failure(world.write(slot, b"COMMIT", 0.5, final=True))
    assert (fault.kind, fault.stage, now() - before) == (FaultKind.SILENT, Stage.COMMIT, pytest.approx(0.5))
    world.pool.release(slot)
    await asyncio.sleep(1)
    assert world.server.running() == [b"COMMIT"]
    assert world.pool.busy
    await asyncio.sleep(4)
    assert world.server.committed == [b"insert a"]
    assert world.server.cancelled == []
    await world.end()
    assert world.destroyed.total() == 0
    assert world.inner.returned == 1


@virtual
async def test_a_commit_that_is_never_answered_gives_its_connection_up_in_the_end() -> None:
    world = World()
    world.server.script[b"COMMIT"] = Reply(silent=True)
    slot = await world.pool.pin(now() + 5)
    await world.write(slot, b"BEGIN")
    committing = asyncio.create_task(world.write(slot, b"COMMIT", 60, final=True))
    await asyncio.sleep(0.1)
    committing.cancel()
    await asyncio.wait({committing})
    world.pool.release(slot)
    await asyncio.sleep(COMMIT_LINGER_S - 1)
    assert world.pool.busy
    assert world.server.cancelled == []
    await asyncio.sleep(2)
    await world.end()
    assert world.destroyed == {CloseReason.ABANDONED: 1}


@virtual
async def test_a_lane_is_not_lent_while_a_cancel_request_may_still_arrive() -> None:
    """The statement ends by itself while its cancel is on the way: the request must not hit who comes next."""
    world = World(max_size=1)
    world.inner.cancel_takes = 0.05
    slot = await world.pool.pin(now() + 5)
    world.slow(b"select slow", 0.51)
    unit = await world.write(slot, b"select slow", 0.5)
    assert unit.fault is None, "it answered in time after all"
    world.pool.release(slot)
    slot = await world.pool.pin(now() + 5)
    unit = await world.write(slot, b"select pg_sleep(0.3)")
    assert unit.fault is None
    world.pool.release(slot)
    await world.end()
    assert world.server.cancelled == []
    assert world.destroyed.total() == 0, "it was confirmed in time"


@virtual
async def test_nobody_joins_a_lane_whose_statement_is_being_cancelled() -> None:
    world = World(max_size=1)
    await world.learn()
    world.inner.cancel_takes = 0.05
    fast = world.slow(b"select fast", 0.008)
    await world.read(fast)
    giving_up = world.read(world.slow(b"select slow", 0.52), timeout=0.5)
    await asyncio.sleep(0.515)
    world.slow(b"select fast", 0.2)
    assert (await world.read(fast)).fault is None
    await failure(giving_up)
    await world.end()
    assert world.server.cancelled == []
    assert world.destroyed.total() == 0


@virtual
async def test_a_cancel_request_without_confirmation_costs_the_connection() -> None:
    world = World(max_size=1)
    world.inner.cancel_takes = 0.3
    slot = await world.pool.pin(now() + 5)
    world.slow(b"select slow", 0.55)
    unit = await world.write(slot, b"select slow", 0.5)
    assert unit.fault is None
    world.pool.release(slot)
    slot = await world.pool.pin(now() + 5)
    assert (await world.write(slot, b"select pg_sleep(0.6)")).fault is None
    world.pool.release(slot)
    await world.end()
    assert world.destroyed == {CloseReason.CANCEL_UNCONFIRMED: 1}
    assert world.server.cancelled == []


@virtual
async def test_a_cancel_that_may_come_late_ends_the_transaction_it_could_hit() -> None:
    """The statement answers 20 ms after its deadline; its cancel request hangs, and arrives half a second later."""
    world = World(max_size=1)
    world.inner.cancel_takes = 0.5
    slot = await world.pool.pin(now() + 5)
    await world.run(slot, b"BEGIN")
    fault = await failure(world.run(slot, world.slow(b"update a", 0.52), 0.5))
    assert (fault.kind, fault.stage) == (FaultKind.SILENT, Stage.EXECUTE), "undone for certain: no COMMIT was sent"
    for final in (False, True):
        late = await failure(world.write(slot, b"COMMIT", final=final))
        assert (late.kind, late.stage) == (FaultKind.CLOSED, Stage.SEND), "no evidence against the server"
    world.pool.release(slot)
    await asyncio.sleep(1)
    assert b"COMMIT" not in world.server.seen
    assert world.server.cancelled == []
    await world.end()
    assert world.destroyed == {CloseReason.CANCEL_UNCONFIRMED: 1}


@virtual
async def test_a_cancel_of_which_nobody_knows_whether_it_arrived_ends_the_transaction_at_once() -> None:
    """Its caller asked for it, and would run the next statement as soon as this one has answered."""
    world = World(max_size=1)
    slot = await world.pool.pin(now() + 5)
    await world.run(slot, b"BEGIN")
    lane = slot.lane
    assert isinstance(lane, FakeLane)
    lane.cancel = _breaks  # type: ignore[method-assign]
    first = asyncio.ensure_future(world.run(slot, world.slow(b"update a", 0.02)))
    await asyncio.sleep(0.01)
    assert world.pool.stop_running(slot)
    assert (await first).fault is None
    late = await failure(world.write(slot, b"COMMIT", final=True))
    assert (late.kind, late.stage) == (FaultKind.CLOSED, Stage.SEND)
    world.pool.release(slot)
    await world.end()
    assert b"COMMIT" not in world.server.seen
    assert world.destroyed == {CloseReason.CANCEL_UNCONFIRMED: 1}


async def _breaks() -> bool:
    return False


@virtual
async def test_a_write_alone_that_was_answered_is_known_whatever_became_of_its_cancel() -> None:
    world = World(max_size=1)
    world.inner.cancel_takes = 0.5
    slot = await world.pool.pin(now() + 5)
    unit = await world.write(slot, world.slow(b"insert a", 0.52), 0.5)
    assert unit.fault is None
    world.pool.release(slot)
    await asyncio.sleep(1)
    await world.end()
    assert world.destroyed == {CloseReason.CANCEL_UNCONFIRMED: 1}
