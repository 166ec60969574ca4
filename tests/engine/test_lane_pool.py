"""Lane pools on virtual time: who gets which lane, and when."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from router.engine.lane_opening import FIRST_REST_S, OPEN_AGAIN_S
from router.model.observation import FaultKind, Stage
from tests.support.builders import now
from tests.support.lane_world import FAST, World, failure
from tests.support.virtual_time import settle, virtual

# --- sharing -------------------------------------------------------------------------------------------------------


@virtual
async def test_fast_statements_share_one_lane() -> None:
    world = World(max_size=8)
    await world.learn()
    units = await asyncio.gather(*(world.read() for _ in range(4)))
    assert all(unit.results for unit in units)
    assert world.inner.opened == 1
    assert world.inner.lanes[0].most_in_flight > 1
    await world.end()


@virtual
async def test_the_first_calls_of_an_unknown_statement_do_not_open_the_whole_pool() -> None:
    world = World(max_size=8)
    await asyncio.gather(*(world.read(b"select 2") for _ in range(50)))
    assert world.inner.opened <= 4
    await world.end()


@virtual
async def test_many_fast_statements_open_more_lanes_by_expected_wait() -> None:
    world = World(max_size=4)
    await world.learn()
    await asyncio.gather(*(world.read() for _ in range(200)))
    assert 1 < world.inner.opened <= 4
    await world.end()


@virtual
async def test_fast_statements_do_not_wait_for_the_lane_that_is_being_opened() -> None:
    world = World(max_size=4)
    await world.learn()
    world.server.connect_takes = 1.0
    before = now()
    await asyncio.gather(*(world.read() for _ in range(20)))
    assert now() - before < 0.1
    await world.end()


@virtual
async def test_a_slow_statement_gets_a_lane_where_nobody_waits_behind_it() -> None:
    world = World(max_size=4)
    await world.learn()
    slow = world.slow(b"select slow", 0.5)
    await asyncio.gather(world.read(slow), world.read(slow))
    running = world.read(slow)
    await asyncio.sleep(0.1)
    before = now()
    await asyncio.gather(*(world.read() for _ in range(10)))
    assert now() - before < 0.05
    await running
    await world.end()


@virtual
async def test_slow_statements_that_wait_for_a_lane_do_not_stop_fast_ones() -> None:
    world = World(max_size=4)
    await world.learn()
    slow = world.slow(b"select slow", 0.5)
    await world.read(slow)
    keep = [world.read(slow) for _ in range(2)]
    await asyncio.sleep(0.02)
    world.server.connect_hangs = True
    waits = [world.read(slow, timeout=1.0) for _ in range(3)]
    await asyncio.sleep(0.02)
    before = now()
    await asyncio.gather(*(world.read() for _ in range(10)))
    assert now() - before < 0.51, "they wait at most for a lane that is there"
    await asyncio.gather(*keep, *waits, return_exceptions=True)
    world.server.connect_hangs = False
    await asyncio.sleep(6)
    await world.end()


@virtual
async def test_the_window_bounds_what_is_in_flight_on_a_lane() -> None:
    world = World(max_size=1, lane_window=5)
    await world.learn()
    await asyncio.gather(*(world.read() for _ in range(40)))
    assert max(lane.most_in_flight for lane in world.inner.lanes) == 5
    await world.end()


@virtual
async def test_each_line_is_first_come_first_served() -> None:
    world = World(max_size=1)
    order: list[int] = []

    async def one(number: int) -> None:
        slot = await world.pool.pin(now() + 5)
        order.append(number)
        await world.write(slot, b"insert a")
        world.pool.release(slot)

    await asyncio.gather(*(one(number) for number in range(20)))
    assert order == list(range(20))
    await world.end()


@virtual
async def test_an_answer_costs_its_time_at_the_head_of_the_lane_not_behind_its_neighbours() -> None:
    world = World(max_size=1)
    await world.learn()
    await asyncio.gather(*(world.read() for _ in range(32)))
    assert world.cost(FAST).expected_s == pytest.approx(0.0005, rel=0.2)
    await world.end()


# --- alone ---------------------------------------------------------------------------------------------------------


@virtual
async def test_a_pinned_lane_is_nobody_elses() -> None:
    world = World(max_size=2)
    slot = await world.pool.pin(now() + 5)
    await asyncio.gather(*(world.read() for _ in range(20)), world.write(slot, b"select pg_sleep(0.2)"))
    assert world.inner.lanes[0].most_in_flight == 1
    world.pool.release(slot)
    await world.end()


@virtual
async def test_one_who_waits_alone_opens_one_lane_whatever_else_goes_on() -> None:
    world = World(max_size=8)
    await world.learn()
    world.server.connect_takes = 0.2
    reads = [world.read() for _ in range(3)]
    pinned = asyncio.create_task(world.pool.pin(now() + 5))
    for _ in range(30):
        await asyncio.gather(*reads)
        reads = [world.read() for _ in range(3)]
    await asyncio.gather(*reads)
    world.pool.release(await pinned)
    assert world.inner.opened <= 2
    await world.end()


@virtual
async def test_a_lane_runs_dry_for_work_that_waits_alone_while_reads_flood() -> None:
    world = World(max_size=1)
    await world.learn()
    flooding = True

    async def flood() -> None:
        while flooding:
            await world.read()

    floods = [asyncio.create_task(flood()) for _ in range(10)]
    await asyncio.sleep(0.1)
    before = now()
    slot = await world.pool.pin(now() + 1)
    assert now() - before < 0.1
    await asyncio.sleep(0.1)
    world.pool.release(slot)
    flooding = False
    await asyncio.gather(*floods)
    await world.end()


@virtual
async def test_reads_are_not_starved_by_work_that_runs_alone() -> None:
    world = World(max_size=1)
    await world.learn()
    flooding = True

    async def flood() -> None:
        while flooding:
            slot = await world.pool.pin(now() + 5)
            await world.write(slot, b"insert a")
            world.pool.release(slot)

    floods = [asyncio.create_task(flood()) for _ in range(10)]
    await asyncio.sleep(0.1)
    before = now()
    await world.read()
    assert now() - before < 0.1
    flooding = False
    await asyncio.gather(*floods)
    await world.end()


@virtual
async def test_a_lane_reserved_in_vain_is_shared_again_at_once() -> None:
    world = World(max_size=1, lane_window_s=1.0)
    await world.learn(world.slow(b"select a", 0.008))
    before = [world.read(b"select a") for _ in range(5)]
    await settle()
    fault = await failure(world.pool.pin(now() + 0.01))
    assert fault.kind is FaultKind.SILENT
    behind = world.read(b"select a")
    await settle()
    assert world.pool.waiting == 0, "it went to the lane that had been reserved"
    await asyncio.gather(*before, behind)
    await world.end()


# --- waiting for a lane --------------------------------------------------------------------------------------------


@virtual
async def test_who_waits_is_told_by_the_deadline_or_the_acquire_timeout() -> None:
    world = World(max_size=1, acquire_timeout_s=1.0)
    slot = await world.pool.pin(now() + 5)
    before = now()
    fault = await failure(world.pool.pin(now() + 0.3))
    assert (fault.kind, fault.stage, now() - before) == (FaultKind.SILENT, Stage.ACQUIRE, pytest.approx(0.3))
    before = now()
    fault = await failure(world.pool.pin(now() + 30))
    assert (fault.kind, fault.stage, now() - before) == (FaultKind.POOL_TIMEOUT, Stage.ACQUIRE, pytest.approx(1.0))
    assert "1 of 1 in use" in fault.message
    world.pool.release(slot)
    await world.end()


@virtual
async def test_a_failed_connect_is_told_to_all_who_wait_at_once() -> None:
    world = World(max_size=4)
    world.server.connect_error = "refused"
    before = now()
    faults = await asyncio.gather(
        *(failure(world.read()) for _ in range(5)), *(failure(world.pool.pin(now() + 5)) for _ in range(5))
    )
    assert {fault.kind for fault in faults} == {FaultKind.CONNECT_REFUSED}
    assert now() - before < 0.05
    world.server.connect_error = None
    await asyncio.sleep(FIRST_REST_S)
    await world.read()
    await world.end()


@virtual
async def test_when_no_more_lanes_can_be_opened_those_that_are_there_must_do() -> None:
    world = World(max_size=4)
    await world.learn()
    slow = world.slow(b"select slow", 0.2)
    await world.read(slow)
    first = world.read(slow)
    await asyncio.sleep(0.05)
    world.server.connect_error = "53300"
    await asyncio.gather(*(world.read(slow) for _ in range(3)), first)
    slot = await world.pool.pin(now() + 5)
    waits = world.read(timeout=4.0)
    await asyncio.sleep(OPEN_AGAIN_S / 2)
    world.server.connect_error = None
    before = now()
    await waits
    assert now() - before <= OPEN_AGAIN_S, "opening is tried again while someone waits"
    world.pool.release(slot)
    await world.end()


@virtual
async def test_an_edge_that_breaks_does_not_leave_anyone_waiting() -> None:
    world = World()
    reported: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context["exception"]))

    async def broken(_: float) -> Any:
        raise KeyError("a bug")

    world.inner.open_lane = broken  # type: ignore[method-assign]
    before = now()
    fault = await failure(world.pool.pin(now() + 5))
    assert (fault.kind, now() - before) == (FaultKind.CONNECT_FAILED, 0)
    del world.inner.open_lane  # type: ignore[attr-defined]
    await world.end()
