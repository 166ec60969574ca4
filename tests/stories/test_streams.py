"""Streams: any size in little memory, at the caller's pace, ended by the caller or honestly by the server."""

from __future__ import annotations

import asyncio
import time

import grpc
import pointsman
import pytest
from pointsman import Executed

from router.devcluster import DevCluster
from tests.stories.conftest import undisturbed
from tests.support.eventually import ask, eventually, until_gone
from tests.support.running_router import RunningRouter

pytestmark = pytest.mark.pg

MB = 1 << 20


def wide(rows: int, mark: str = "") -> str:
    """About 220 bytes a row."""
    return f"select i, repeat('x', 200) as t, i * 1.5 as f from generate_series(1, {rows}) i /* {mark} */"


def ever_slower(mark: str) -> str:
    """Two chunks at once, then a row every 10 ms."""
    return f"select i, case when i > 1000 then pg_sleep(0.01) end from generate_series(1, 100000) i /* {mark} */"


async def test_a_long_result_passes_through_in_little_memory(router: RunningRouter, db: pointsman.Client) -> None:
    async for _ in db.stream(wide(20_000)):
        pass  # warm: buffers that are made once
    async with undisturbed(router) as neighbour:
        router.reset_peak_memory()
        before = router.memory_bytes()
        began = time.monotonic()
        count = total = 0
        stream = db.stream(wide(200_000))
        async for rows in stream.chunks():
            count += len(rows)
            total += sum(row.i for row in rows)
        took = time.monotonic() - began
        growth = router.peak_memory_bytes() - before
        assert (count, total) == (200_000, 200_000 * 200_001 // 2)
        assert stream.rowcount == 200_000
        assert growth < 24 * MB, f"{growth / MB:.1f} MiB for a result of about 45 MiB"
        print(f"\n200k rows in {took:.2f} s, the router grew by {growth / MB:.1f} MiB")
        assert neighbour.slowest_s < 1


async def test_the_rows_of_a_slow_statement_come_as_postgresql_sends_them(db: pointsman.Client) -> None:
    """It sends 8 KiB at a time, so the end of a longer row leaves with the next row."""
    began = time.monotonic()
    arrivals = []
    async for row in db.stream("select i, repeat('x', 8500), pg_sleep(0.2) from generate_series(1, 6) i"):
        arrivals.append(time.monotonic() - began)
        assert row.i == len(arrivals)
    print("\narrivals: " + ", ".join(f"{when:.2f}" for when in arrivals))
    for number, when in enumerate(arrivals[:-1]):
        assert when < 0.2 * (number + 2) + 0.15


async def test_a_slow_reader_holds_back_postgresql_and_nobody_else(
    router: RunningRouter, db: pointsman.Client, pg_cluster: DevCluster
) -> None:
    mark = f"slow reader {time.monotonic_ns()}"
    async with undisturbed(router):
        stream = db.stream(wide(2_000_000, mark))  # 440 MB, were it read
        first = await stream.next_chunk()
        assert first is not None
        router.reset_peak_memory()
        before = router.memory_bytes()
        await eventually(lambda: held_back(pg_cluster, mark), within_s=5, what="PostgreSQL waiting for the client")
        # Meanwhile the same client goes on with everything else.
        for number in range(30):
            assert await db.query_value("select $1::int", number, timeout=2) == number
        async with db.transaction() as tx:
            assert await tx.query_value("select 1") == 1
        other = db.stream("select generate_series(1, 10000)")
        assert len([row async for row in other]) == 10_000
        await asyncio.sleep(0.5)
        growth = router.peak_memory_bytes() - before
        assert growth < 24 * MB, f"{growth / MB:.1f} MiB"
        assert await held_back(pg_cluster, mark), "still waiting, not done"
        await stream.aclose()
        await until_gone(pg_cluster, mark, 1)


async def held_back(cluster: DevCluster, mark: str) -> bool:
    sql = "select count(*) from pg_stat_activity where wait_event = 'ClientWrite' and query like %s"
    return bool(await asyncio.to_thread(ask, cluster, sql, f"%{mark}%"))


@pytest.mark.parametrize("how", ["aclose", "break", "task", "channel"])
async def test_an_early_end_cancels_the_statement(
    router: RunningRouter, db: pointsman.Client, pg_cluster: DevCluster, how: str
) -> None:
    mark = f"early {how} {time.monotonic_ns()}"
    sql = ever_slower(mark)
    if how == "aclose":
        stream = db.stream(sql)
        await stream.next_chunk()
        await stream.aclose()
    elif how == "break":
        async for _ in db.stream(sql):
            break
    elif how == "task":
        started = asyncio.Event()

        async def read() -> None:
            async for _ in db.stream(sql):
                started.set()

        task = asyncio.create_task(read())
        await started.wait()
        task.cancel()
        await asyncio.wait({task})
    else:
        async with router.connect() as other:
            await other.stream(sql).next_chunk()
    took = await until_gone(pg_cluster, mark, 1)
    print(f"\nbackend free {took * 1000:.0f} ms after {how}")
    assert await db.query_value("select 1") == 1


async def test_a_failure_in_mid_stream_is_no_end(
    router: RunningRouter, db: pointsman.Client, pg_cluster: DevCluster
) -> None:
    async with undisturbed(router):
        mark = f"killed {time.monotonic_ns()}"
        stream = db.stream(ever_slower(mark))
        seen = len(await stream.next_chunk() or [])
        kill = "select pg_terminate_backend(pid) from pg_stat_activity where query like %s and pid <> pg_backend_pid()"
        assert await asyncio.to_thread(ask, pg_cluster, kill, f"%{mark}%")

        async def read_on() -> None:
            nonlocal seen
            while (rows := await stream.next_chunk()) is not None:
                seen += len(rows)

        with pytest.raises(pointsman.Error) as caught:
            await read_on()
        assert 0 < seen < 100_000
        assert caught.value.code in (grpc.StatusCode.ABORTED, grpc.StatusCode.UNAVAILABLE)
        assert caught.value.reason == "BACKEND_LOST"
        assert caught.value.executed is Executed.ROLLED_BACK
        assert stream.rowcount is None
        assert stream.receipt is None


async def test_an_error_after_rows_is_an_error_too(db: pointsman.Client) -> None:
    stream = db.stream("select 10 / (5000 - i) from generate_series(1, 5000) i")
    rows = 0

    async def read_on() -> None:
        nonlocal rows
        async for _ in stream:
            rows += 1

    with pytest.raises(pointsman.DataError) as caught:
        await read_on()
    assert caught.value.sqlstate == "22012"
    assert rows < 5000
    assert await db.query_value("select 1") == 1


async def test_before_the_first_row_a_lost_backend_is_only_a_retry(
    db: pointsman.Client, pg_cluster: DevCluster
) -> None:
    mark = f"retried {time.monotonic_ns()}"
    stream = db.stream(f"select pg_sleep(0.6), 7 as n /* {mark} */")
    reading = asyncio.create_task(stream.next_chunk())
    await asyncio.sleep(0.3)
    kill = "select pg_terminate_backend(pid) from pg_stat_activity where query like %s and pid <> pg_backend_pid()"
    assert await asyncio.to_thread(ask, pg_cluster, kill, f"%{mark}%")
    rows = await reading
    assert rows is not None
    assert rows[0].n == 7
    assert await stream.next_chunk() is None
    assert stream.receipt is not None
    assert stream.receipt.attempts == 2


async def test_a_stream_has_a_deadline_when_it_asks_for_one(db: pointsman.Client, pg_cluster: DevCluster) -> None:
    mark = f"in time {time.monotonic_ns()}"
    began = time.monotonic()

    async def read() -> None:
        async for _ in db.stream(ever_slower(mark), timeout=0.5):
            pass

    with pytest.raises(pointsman.DeadlineExceeded):
        await read()
    assert time.monotonic() - began < 0.65
    await until_gone(pg_cluster, mark, 1)
