"""Lane pools on virtual time: what lanes leave behind, and what happens when server, primary or pool go."""

from __future__ import annotations

import asyncio

from router.model.identity import Generation
from router.model.observation import FaultKind, Stage
from router.model.policy import PoolPolicy
from router.model.reasons import CloseReason
from router.model.request import Residue
from tests.support.builders import now
from tests.support.fake_replies import Lost, Reply
from tests.support.lane_world import World, failure
from tests.support.virtual_time import settle, virtual

# --- giving back ---------------------------------------------------------------------------------------------------


@virtual
async def test_an_open_transaction_is_rolled_back_before_its_lane_is_used_again() -> None:
    world = World(max_size=1)
    slot = await world.pool.pin(now() + 5)
    await world.write(slot, b"BEGIN")
    await world.write(slot, b"insert a")
    ending = world.pool.release(slot)
    assert ending is not None
    await ending
    await world.read()
    await world.end()
    assert world.server.committed == []
    assert world.destroyed.total() == 0


@virtual
async def test_a_lane_given_in_the_turn_in_which_all_are_sent_on_is_not_used_by_who_waited() -> None:
    world = World(max_size=1)
    slot = await world.pool.pin(now() + 5)
    waits = [asyncio.create_task(world.pool.pin(now() + 5)) for _ in range(2)]
    await settle()
    world.pool.release(slot)
    world.pool.send_on("writes are held")
    for one in waits:
        fault = await failure(one)
        assert (fault.kind, fault.message) == (FaultKind.STALE, "writes are held")
    again = await world.pool.pin(now() + 5)
    assert again is slot, "it is free"
    world.pool.release(again)
    await world.end()


@virtual
async def test_a_rollback_without_an_answer_costs_the_connection() -> None:
    world = World(max_size=1)
    slot = await world.pool.pin(now() + 5)
    await world.write(slot, b"BEGIN")
    world.server.script[b"ROLLBACK"] = Reply(silent=True)
    world.pool.release(slot)
    await world.read()
    await world.end()
    assert world.destroyed == {CloseReason.OUT_OF_SYNC: 1}


@virtual
async def test_a_tainted_lane_is_not_used_again() -> None:
    world = World(max_size=1)
    slot = await world.pool.pin(now() + 5)
    slot.residue = Residue.DESTROY
    world.pool.release(slot)
    await world.read()
    await world.end()
    assert world.destroyed == {CloseReason.TAINTED: 1}
    assert world.inner.opened == 2


@virtual
async def test_a_lane_past_its_lifetime_ends_also_under_steady_load() -> None:
    world = World(max_size=1, lifetime_s=1.0)
    await world.learn()
    until = now() + 3

    async def flood() -> None:
        while now() < until:
            assert (await world.read()).fault is None

    await asyncio.gather(*(flood() for _ in range(5)))
    assert world.inner.opened >= 3
    await world.end()


@virtual
async def test_idle_lanes_go_back_and_busy_ones_stay() -> None:
    world = World(max_size=2)
    slot = await world.pool.pin(now() + 5)
    await world.read()
    await asyncio.sleep(PoolPolicy().lane_idle_s + 0.1)
    world.pool.give_back_idle()
    await settle()
    assert world.pool.lanes == 1
    assert world.inner.statistics().idle == 1
    world.pool.release(slot)
    await world.end()


# --- the server goes, the primary moves, the pool ends -------------------------------------------------------------


@virtual
async def test_a_lost_connection_fails_what_ran_on_it_and_nothing_else() -> None:
    world = World(max_size=2)
    await world.learn()
    slot = await world.pool.pin(now() + 5)
    world.server.script[b"insert a"] = [Reply(takes=0.1, lost=Lost.AFTER, effect=True)]
    writing = asyncio.create_task(world.write(slot, b"insert a"))
    reads = [world.read(world.slow(b"select slow", 0.3))]
    fault = await failure(writing)
    assert (fault.kind, fault.stage) == (FaultKind.CONNECTION_LOST, Stage.COMMIT)
    assert (await reads[0]).fault is None
    world.pool.release(slot)
    await world.end()
    assert world.destroyed == {CloseReason.CONNECTION_LOST: 1}


@virtual
async def test_fencing_ends_old_connections_and_tells_who_waits() -> None:
    world = World(max_size=1)
    slot = await world.pool.pin(now() + 5)
    writing = asyncio.create_task(world.write(slot, b"select pg_sleep(60)", 5))
    waiting = world.read()
    await asyncio.sleep(0.1)
    before = now()
    world.pool.fence(Generation(2))
    fault = await failure(writing)
    assert (fault.kind, now() - before) == (FaultKind.STALE, 0)
    assert (await failure(waiting)).kind is FaultKind.STALE
    world.pool.release(slot)
    await world.read()
    assert [lane.generation for lane in world.inner.lanes] == [1, 2]
    await world.end()


@virtual
async def test_a_connection_opened_for_the_old_generation_is_not_lent_in_the_new_one() -> None:
    world = World(max_size=1)
    world.server.connect_takes = 0.2
    reading = world.read()
    await asyncio.sleep(0.1)
    world.pool.fence(Generation(2))
    assert (await failure(reading)).kind is FaultKind.STALE
    await world.read()
    assert [lane.generation for lane in world.inner.lanes] == [2]
    await world.end()


@virtual
async def test_who_waits_is_not_sent_to_the_primary_of_the_past() -> None:
    """The pool of a former primary may well get a connection to it; what was routed there before must not use it."""
    world = World(max_size=1)
    world.server.connect_takes = 0.5
    write = asyncio.create_task(world.pool.pin(now() + 5))
    await asyncio.sleep(0.2)
    world.pool.fence(Generation(2))
    fault = await failure(write)
    assert (fault.kind, fault.stage, fault.sent) == (FaultKind.STALE, Stage.ACQUIRE, False)
    await world.end()


@virtual
async def test_cutting_ends_everything_now_and_later_work_opens_anew() -> None:
    world = World(max_size=2)
    slow = world.slow(b"select slow", 60)
    running = [world.read(slow) for _ in range(2)]
    waiting = asyncio.create_task(world.pool.pin(now() + 5))
    await asyncio.sleep(0.1)
    before = now()
    world.pool.cut(CloseReason.CONNECTION_LOST)
    faults = [await failure(one) for one in running]
    assert ({fault.kind for fault in faults}, now() - before) == ({FaultKind.CONNECTION_LOST}, 0)
    world.pool.release(await waiting)
    await world.end()


@virtual
async def test_closing_tells_everyone_and_a_late_release_is_no_error() -> None:
    world = World(max_size=1)
    slot = await world.pool.pin(now() + 5)
    running = asyncio.create_task(world.write(slot, b"select pg_sleep(60)"))
    waiting = [world.read(), asyncio.create_task(world.pool.pin(now() + 5))]
    await asyncio.sleep(0.1)
    before = now()
    await world.pool.close(CloseReason.SHUTDOWN)
    for one in waiting:
        assert (await failure(one)).kind is FaultKind.CLOSED
    assert (await failure(running)).kind is FaultKind.CLOSED
    assert now() - before < 0.01
    world.pool.release(slot)
    assert (await failure(world.pool.pin(now() + 5))).kind is FaultKind.CLOSED
    assert (await failure(world.read())).kind is FaultKind.CLOSED
    world.inner.check_conserved(leased=0)


# --- sessions that are made new ------------------------------------------------------------------------------------


@virtual
async def test_what_discard_all_takes_away_costs_no_connection() -> None:
    world = World(max_size=1)
    slot = await world.pool.pin(now() + 5)
    await world.write(slot, b"BEGIN")
    slot.residue = Residue.DISCARD
    ending = world.pool.release(slot)
    assert ending is not None
    waiting = asyncio.create_task(world.pool.pin(now() + 5))
    await settle()
    assert not waiting.done(), "nobody gets it before it is clean"
    await ending
    again = await waiting
    assert again.residue is Residue.NONE
    world.pool.release(again)
    await world.end()
    assert world.destroyed.total() == 0
    assert world.inner.opened == 1


@virtual
async def test_a_discard_that_fails_or_says_nothing_costs_the_connection() -> None:
    for reply in (Reply(error="57014"), Reply(silent=True)):
        world = World(max_size=1)
        slot = await world.pool.pin(now() + 5)
        slot.residue = Residue.DISCARD
        world.server.script[b"DISCARD ALL"] = reply
        world.pool.release(slot)
        await world.read()
        await world.end()
        assert world.destroyed.total() == 1
        assert world.inner.opened == 2
