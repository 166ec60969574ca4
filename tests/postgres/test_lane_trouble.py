"""Lanes stay in step whatever passes over them: notices, errors at Sync, odd and huge results, COPY, careless calls."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator
from typing import Any

import pytest

from router.devcluster import DevCluster
from router.model.observation import FaultKind
from router.model.policy import PoolPolicy
from router.model.reasons import CloseReason
from router.model.request import Access, Statement
from router.ports import Lane, Unit
from tests.contracts.promises import fault_of, run_on, soon, submit, tags, values
from tests.contracts.real_pool import make_real_pool
from tests.support.dev_cluster import MakeCluster

pytestmark = pytest.mark.pg


@pytest.fixture
async def lane(pg_cluster_each: DevCluster) -> AsyncIterator[Lane]:
    pool = make_real_pool(pg_cluster_each, Access.READ_WRITE, PoolPolicy(max_size=1))
    yield await pool.open_lane(soon())
    await pool.close(CloseReason.SHUTDOWN)


def send(lane: Lane, sql: bytes, *params: bytes) -> asyncio.Future[Unit]:
    done: asyncio.Future[Unit] = asyncio.get_running_loop().create_future()
    lane.submit(Unit((Statement(sql, params),), done.set_result))
    return done


async def in_step(lane: Lane) -> None:
    assert values(await run_on(lane, "select 'in step'")) == [b"in step"]
    assert (lane.in_flight, lane.in_transaction, lane.usable) == (0, False, True)


async def test_notices_stay_with_the_unit_that_raised_them(lane: Lane) -> None:
    futures = []
    for n in range(12):
        futures.append(submit(lane, f"do $$begin raise warning 'from {n}'; end$$"))
        futures.append(submit(lane, f"select {n}"))
    units = await asyncio.gather(*futures)
    for n in range(12):
        assert [notice.message for notice in units[2 * n].results[0].notices] == [f"from {n}"]
        assert units[2 * n + 1].results[0].notices == ()
    many = await run_on(lane, "do $$begin for i in 1..1000 loop raise warning '%', i; end loop; end$$")
    assert len(many.results[0].notices) == 20
    await in_step(lane)


async def test_an_error_of_the_sync_itself_stays_with_its_unit(lane: Lane) -> None:
    """A deferred constraint speaks after the last statement was answered."""
    await run_on(lane, "drop table if exists deferred")
    await run_on(lane, "create table deferred (n int unique deferrable initially deferred)")
    for _ in range(3):
        first, failing, two, last = (
            submit(lane, "select 1"),
            submit(lane, "insert into deferred values (7), (7)"),
            submit(lane, "select 2", "insert into deferred values (8), (8)", "select 3"),
            submit(lane, "select 4"),
        )
        assert values(await first) == [b"1"]
        assert (fault_of(await failing).sqlstate, fault_of(await failing).step) == ("23505", 0)
        assert (fault_of(await two).sqlstate, fault_of(await two).step) == ("23505", 2)
        assert values(await last) == [b"4"]
    assert values(await run_on(lane, "select count(*) from deferred")) == [b"0"]
    await run_on(lane, "drop table deferred")
    await in_step(lane)


async def test_odd_statements_answer_and_leave_the_lane_in_step(lane: Lane) -> None:
    for _ in range(3):
        empty, comment, none, no_columns, wide = await asyncio.gather(
            submit(lane, ""),
            submit(lane, "-- nothing"),
            submit(lane, "select 1 where false"),
            submit(lane, "select from generate_series(1, 3)"),
            submit(lane, "select " + ", ".join(f"{n} as c{n}" for n in range(1600))),
        )
        assert [tags(one) for one in (empty, comment)] == [[""], [""]]
        assert [one.results[0].cells for one in (empty, comment)] == [None, None]
        assert (tags(none), values(none)) == (["SELECT 0"], [])
        cells = no_columns.results[0].cells
        assert cells is not None
        assert (cells.ntuples, cells.nfields) == (3, 0)
        cells = wide.results[0].cells
        assert cells is not None
        assert (cells.nfields, cells.get_value(0, 1599)) == (1600, b"1599")
    await in_step(lane)


async def test_huge_values_pass_both_ways_beside_small_ones(lane: Lane) -> None:
    """More than all buffers on the way hold, so that neither side may wait for the other to read first."""
    huge = b"x" * 8_000_000
    futures = []
    for n in range(6):
        futures.append(send(lane, b"select $1::text", huge))
        futures.append(send(lane, b"select %d" % n))
    units = await asyncio.wait_for(asyncio.gather(*futures), 20)
    for n in range(6):
        (value,) = values(units[2 * n])
        assert value == huge
        assert values(units[2 * n + 1]) == [b"%d" % n]
    await in_step(lane)


@pytest.mark.parametrize("copy", ["copy (select 1) to stdout", "copy pg_temp.copied from stdin"])
async def test_copy_ends_the_lane_and_only_its_own_caller_is_blamed(lane: Lane, copy: str) -> None:
    await run_on(lane, "create temp table copied (n int)")
    before, culprit, behind = submit(lane, "select 1"), submit(lane, copy), submit(lane, "select 2", commits=False)
    await asyncio.wait_for(asyncio.gather(before, culprit, behind), 5)
    assert values(await before) == [b"1"]
    assert fault_of(await culprit).kind is FaultKind.PROTOCOL
    assert fault_of(await behind).kind is FaultKind.CLOSED, "no evidence against the server"
    assert not lane.usable


async def test_an_answer_that_is_far_too_large_ends_its_lane_and_only_its_own_caller_is_blamed(lane: Lane) -> None:
    huge = "select repeat('x', 1000) from generate_series(1, 100000)"
    before, culprit, behind = submit(lane, "select 1"), submit(lane, huge), submit(lane, "select 2", commits=False)
    await asyncio.wait_for(asyncio.gather(before, culprit, behind), 10)
    assert values(await before) == [b"1"]
    assert fault_of(await culprit).kind is FaultKind.TOO_LARGE
    assert fault_of(await behind).kind is FaultKind.CLOSED, "no evidence against the server"
    assert not lane.usable


async def test_a_callers_broken_callback_is_its_own(lane: Lane) -> None:
    loop = asyncio.get_running_loop()
    told: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: told.append(context))

    def careless(_: Unit) -> None:
        raise ZeroDivisionError

    futures = []
    for n in range(5):
        futures.append(submit(lane, f"select {n}"))
        lane.submit(Unit((Statement(b"select 'careless'"),), careless))
    units = await asyncio.wait_for(asyncio.gather(*futures), 5)
    assert [values(unit) for unit in units] == [[b"%d" % n] for n in range(5)]
    await in_step(lane)
    assert [type(context["exception"]) for context in told] == [ZeroDivisionError] * 5


async def test_a_lane_that_is_abandoned_by_an_answer_reads_no_further(lane: Lane) -> None:
    futures: list[asyncio.Future[Unit]] = []
    lane.submit(Unit((Statement(b"select 1"),), lambda _: lane.abandon(CloseReason.ABANDONED)))
    futures.extend(submit(lane, f"select {n}") for n in range(3))
    units = await asyncio.wait_for(asyncio.gather(*futures), 5)
    assert [fault_of(unit).kind for unit in units] == [FaultKind.CLOSED] * 3


@pytest.mark.parametrize("way", ["abandoned", "given back"])
async def test_a_lane_that_ended_needs_no_garbage_collector(pg_cluster: DevCluster, way: str) -> None:
    """It holds a connection, and its pool counts on it to be forgotten."""
    pool = make_real_pool(pg_cluster, Access.READ_WRITE, PoolPolicy(max_size=1))
    lane = await pool.open_lane(soon())
    for _ in range(3):
        assert values(await run_on(lane, "select 46")) == [b"46"]
    ended = weakref.ref(lane)
    gc.disable()
    try:
        if way == "abandoned":
            lane.abandon(CloseReason.ABANDONED)
        else:
            await lane.give_back()
        await asyncio.sleep(0.05)
        del lane
        assert ended() is None
    finally:
        gc.enable()
    await pool.close(CloseReason.SHUTDOWN)


async def test_a_restart_of_the_server_ends_all_units_and_new_lanes_begin_anew(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(replicas=0)
    server = cluster.primary()
    pool = make_real_pool(cluster, Access.READ_WRITE, PoolPolicy(max_size=1))
    lane = await pool.open_lane(soon())
    for _ in range(3):
        assert values(await run_on(lane, "select 45")) == [b"45"]
    futures = [submit(lane, "select pg_sleep(30)"), *(submit(lane, "select 45") for _ in range(3))]
    await asyncio.sleep(0.05)
    await asyncio.to_thread(server.kill)
    for unit in await asyncio.wait_for(asyncio.gather(*futures), 5):
        assert fault_of(unit).kind is FaultKind.CONNECTION_LOST
    await asyncio.to_thread(server.start)
    fresh = await pool.open_lane(soon(10))
    for _ in range(3):
        assert values(await run_on(fresh, "select 45")) == [b"45"]
    await fresh.give_back()
    await pool.close(CloseReason.SHUTDOWN)
