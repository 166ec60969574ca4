"""Chunks against real PostgreSQL: many rows at once from a fast statement, each row at once from a slow one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import pytest

from router.devcluster import DevCluster
from router.model.observation import FaultKind
from router.model.reasons import CloseReason
from router.model.result import Cells
from router.ports import Unit
from router.postgres import row_mode
from router.postgres.endpoint_pool import PsycopgEndpointPool
from tests.postgres.test_lane import make_pool, soon, unit

pytestmark = pytest.mark.pg


@pytest.fixture
async def pool(pg_cluster: DevCluster) -> AsyncIterator[PsycopgEndpointPool]:
    pool = make_pool(pg_cluster)
    yield pool
    await pool.close(CloseReason.SHUTDOWN)


class Arrivals:
    """When how many rows came, in seconds since it was made."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.seen: list[tuple[float, int]] = []

    def __call__(self, cells: Cells) -> bool:
        self.seen.append((time.monotonic() - self.began, cells.ntuples))
        return True

    @property
    def sizes(self) -> list[int]:
        return [size for _, size in self.seen]


def stream(sql: str, on_rows: Callable[[Cells], bool]) -> tuple[Unit, asyncio.Future[Unit]]:
    return unit(sql, on_rows=on_rows, chunk_rows=32, commits=False)


async def test_a_fast_statement_comes_in_full_chunks(pool: PsycopgEndpointPool) -> None:
    lane = await pool.open_lane(soon())
    for _ in range(2):  # decided anew for each statement
        arrivals = Arrivals()
        one, done = stream("select g, repeat('x', 100) from generate_series(1, 10000) g", arrivals)
        lane.submit(one)
        await done
        assert one.fault is None
        assert sum(arrivals.sizes) == 10_000
        assert set(arrivals.sizes[:-1]) == {32}
    await lane.give_back()


@pytest.mark.parametrize(("row_bytes", "rows"), [(1000, 32), (10_000, 6), (60_000, 1), (1_000_000, 1)])
async def test_long_rows_come_in_small_chunks(pool: PsycopgEndpointPool, row_bytes: int, rows: int) -> None:
    lane = await pool.open_lane(soon())
    arrivals = Arrivals()
    one, done = stream(f"select repeat('x', {row_bytes}) from generate_series(1, 100) g", arrivals)
    lane.submit(one)
    await done
    assert set(arrivals.sizes[:-1]) == {rows}
    await lane.give_back()


def message(letter: bytes, body: bytes) -> bytes:
    return letter + (len(body) + 4).to_bytes(4, "big") + body


@pytest.mark.parametrize(
    ("waiting", "size"),
    [
        (b"", None),
        (b"D\0\0", None),
        (message(b"1", b"") + message(b"2", b"") + message(b"T", b"x" * 30) + message(b"D", b"y" * 50), 54),
        (message(b"T", b"x" * 30) + message(b"D", b"y" * 5000)[:9], 5004),
        (message(b"2", b"") + b"T\0\1\0\0cut off", None),
        (message(b"E", b"SERROR"), None),
        (b"\x17\x03\x03 ciphertext", None),
        (b"1\0\0\0\0" * 10, None),
    ],
)
def test_the_length_of_the_first_row_is_read_off_the_wire(waiting: bytes, size: int | None) -> None:
    assert row_mode.first_row_bytes(waiting) == size


async def test_a_slow_statements_row_is_there_when_postgresql_has_sent_it(pool: PsycopgEndpointPool) -> None:
    """PostgreSQL sends 8 KiB at a time, so the end of a longer row leaves with the next row."""
    lane = await pool.open_lane(soon())
    arrivals = Arrivals()
    one, done = stream("select repeat('x', 8500), pg_sleep(0.2) from generate_series(1, 5)", arrivals)
    lane.submit(one)
    await done
    assert arrivals.sizes == [1] * 5
    for number, (when, _) in enumerate(arrivals.seen[:-1]):
        assert 0.2 * (number + 2) <= when < 0.2 * (number + 2) + 0.1
    await lane.give_back()


async def test_short_rows_of_a_slow_statement_are_not_kept_for_a_full_chunk(pool: PsycopgEndpointPool) -> None:
    lane = await pool.open_lane(soon())
    arrivals = Arrivals()
    one, done = stream("select i, repeat('x', 100), pg_sleep(0.01) from generate_series(1, 150) i", arrivals)
    lane.submit(one)
    await done
    assert arrivals.sizes == [1] * 150
    assert arrivals.seen[0][0] < 0.9  # of 1.5 s
    await lane.give_back()


@pytest.mark.parametrize("rows", [0, 1, 5])
async def test_a_short_result_does_not_wait(pool: PsycopgEndpointPool, rows: int) -> None:
    lane = await pool.open_lane(soon())
    took = []
    for _ in range(5):
        arrivals = Arrivals()
        one, done = stream(f"select generate_series(1, {rows})", arrivals)
        lane.submit(one)
        await done
        took.append(time.monotonic() - arrivals.began)
        assert sum(arrivals.sizes) == rows
        assert [result.command_tag for result in one.results] == [f"SELECT {rows}"]
    assert min(took) < 0.02
    await lane.give_back()


async def test_an_error_is_the_statements_own_also_before_a_mode_is_chosen(pool: PsycopgEndpointPool) -> None:
    lane = await pool.open_lane(soon())
    one, done = stream("select 1/0", Arrivals())
    lane.submit(one)
    await done
    assert one.fault is not None
    assert one.fault.sqlstate == "22012"
    await lane.give_back()
    assert pool.statistics().idle == 1


async def test_a_lane_may_end_before_a_mode_is_chosen(
    pool: PsycopgEndpointPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_mode, "LOOK_S", 0.3)
    lane = await pool.open_lane(soon())
    arrivals = Arrivals()
    one, done = stream("select g, repeat('x', 100), pg_sleep(0.001) from generate_series(1, 200) g", arrivals)
    lane.submit(one)
    await asyncio.sleep(0.25)  # the first 8 KiB are there, the second look is due later
    lane.abandon(CloseReason.ABANDONED)
    await done
    await asyncio.sleep(0.4)
    assert one.fault is not None
    assert one.fault.kind is FaultKind.CLOSED
    assert arrivals.seen == []


async def test_a_statement_that_was_interrupted_counts_as_fast(pool: PsycopgEndpointPool) -> None:
    """As on a machine with too few processors: 8 KiB, a pause, then everything."""
    lane = await pool.open_lane(soon())
    arrivals = Arrivals()
    sql = "select g, repeat('x', 100), case when g = 90 then pg_sleep(0.008) end from generate_series(1, 5000) g"
    one, done = stream(sql, arrivals)
    lane.submit(one)
    await done
    assert set(arrivals.sizes[:-1]) == {32}
    await lane.give_back()
