"""Copies through the whole stack: data whole, atomic, bounded in memory, and what a failover or a cancel leaves."""

from __future__ import annotations

import asyncio
import datetime as dt
import io
from collections.abc import AsyncIterator, Iterator
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import pointsman
import pytest

from tests.stories.conftest import Neighbour
from tests.support.dev_cluster import MakeCluster
from tests.support.eventually import eventually
from tests.support.running_router import RunningRouter, running_router

pytestmark = pytest.mark.pg


@pytest.fixture
async def table(db: pointsman.Client) -> AsyncIterator[str]:
    await db.execute("drop table if exists parcels")
    await db.execute("create table parcels (id int primary key, label text, weight numeric check (weight > 0))")
    yield "parcels"
    await db.execute("drop table parcels")


async def count(db: pointsman.Client, table: str = "parcels") -> int:
    return int(await db.query_value(f"select count(*) from {table}"))


async def test_out_to_a_file_and_in_again(db: pointsman.Client, table: str, tmp_path: Path) -> None:
    await db.execute("insert into parcels select g, 'p ' || g, g * 1.5 from generate_series(1, 50000) g")
    told: list[tuple[int, int | None]] = []
    path = tmp_path / "parcels.csv"
    done = await db.copy_out(
        table, to=path, format="csv", header=True, progress=lambda size, rows: told.append((size, rows))
    )
    assert (done.rows, done.bytes, done.command_tag) == (50_000, path.stat().st_size, "COPY 50000")
    assert done.receipt.role == "primary"
    assert path.read_text().startswith("id,label,weight\n1,p 1,1.5\n")
    assert [told[-1], all(rows is None for _, rows in told[:-1])] == [(done.bytes, 50_000), True]
    await db.execute("delete from parcels")
    filled = await db.copy_in(table, path, format="csv", header=True)
    assert (filled.rows, filled.bytes) == (50_000, done.bytes)
    assert await db.query_value("select sum(weight) = 1.5 * 50000 * 50001 / 2 from parcels")


async def test_out_of_a_query_and_of_a_replica(eventual_db: pointsman.Client) -> None:
    query = "select g, ')' from generate_series(1, 3) g -- all"
    data = [piece async for piece in eventual_db.copy_out(query=query, read="any")]
    assert b"".join(data) == b"1\t)\n2\t)\n3\t)\n"
    stream = await eventual_db.copy_out(query="select pg_is_in_recovery()", read="replica")
    assert [piece async for piece in stream] == [b"t\n"]
    assert stream.result is not None
    assert stream.result.receipt.role == "replica"


async def test_rows_of_python_values(db: pointsman.Client) -> None:
    await db.execute("drop table if exists kinds")
    await db.execute(
        "create table kinds (n int, t text, b bool, r float8, d date, u uuid, x bytea, a int[], j jsonb, m numeric)"
    )
    day, uuid = dt.date(2024, 2, 29), UUID(int=5)
    row = (1, "tab\t \\ line\nend\r é \\N", True, 0.1, day, uuid, b"\0\xff\\", [1, None], {"a": "\\"}, Decimal("1.10"))
    empty = (None,) * 10
    done = await db.copy_rows("kinds", [row, empty, *((n, *row[1:]) for n in range(2, 5000))])
    assert done.rows == 5000
    same = await db.query("select * from kinds where n = 1 or n is null order by n")
    assert [tuple(one) for one in same] == [row, empty]
    partly = await db.copy_rows(("public", "kinds"), ((n,) for n in range(3)), ["n"])
    assert partly.rows == 3
    await db.execute("drop table kinds")


async def test_bad_data_names_its_line_and_leaves_nothing(db: pointsman.Client, table: str) -> None:
    with pytest.raises(pointsman.DataError) as failed:
        await db.copy_in(table, b"1\tone\t1\n2\ttwo\theavy\n")
    assert failed.value.executed is pointsman.Executed.ROLLED_BACK
    assert failed.value.pg is not None
    assert "COPY parcels, line 2, column weight" in failed.value.pg.context
    with pytest.raises(pointsman.UniqueViolation):
        await db.copy_in(table, b"1\tone\t1\n1\ttwo\t1\n")
    assert await count(db) == 0


async def test_mistakes_are_told_in_words(db: pointsman.Client, table: str) -> None:
    for query in ("select 1) to program 'x' --", "delete from parcels returning id"):
        with pytest.raises(pointsman.InvalidRequest):
            async for _ in db.copy_out(query=query):
                pass
    with pytest.raises(pointsman.UndefinedTable):
        await db.copy_out("nowhere", to=io.BytesIO())
    with pytest.raises(pointsman.UndefinedColumn) as failed:
        await db.copy_out(query="select  nowhere from parcels", to=io.BytesIO())
    assert failed.value.pg is not None
    assert failed.value.pg.position == len("select  n"), "as the caller counts"
    with pytest.raises(pointsman.UndefinedColumn):
        await db.copy_in(table, b"1\n", columns=["nowhere"])
    await db.execute("create sequence if not exists copy_counter")
    await db.execute("insert into parcels values (1)")
    with pytest.raises(pointsman.ReadOnlyViolation):
        await db.copy_out(query="select nextval('copy_counter') from parcels", to=io.BytesIO())
    assert await count(db) == 1


async def test_an_exception_of_the_source_rolls_back(db: pointsman.Client, table: str) -> None:
    def source() -> Iterator[bytes]:
        yield b"1\tone\t1\n"
        yield b"".join(b"%d\tx\t1\n" % n for n in range(2, 50_000))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await db.copy_in(table, source())
    await eventually_free(db)
    assert await count(db) == 0


async def test_a_cancel_rolls_back(db: pointsman.Client, table: str) -> None:
    given = asyncio.Event()

    async def source() -> AsyncIterator[bytes]:
        yield b"".join(b"%d\tx\t1\n" % n for n in range(50_000))
        given.set()
        await asyncio.Event().wait()

    running = asyncio.create_task(db.copy_in(table, source()))
    await given.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await eventually_free(db)
    assert await count(db) == 0


async def eventually_free(db: pointsman.Client) -> None:
    """Until no COPY runs any more."""
    asked = "select count(*) from pg_stat_activity where query ilike 'copy%stdin%' and state = 'active'"

    async def free() -> bool:
        return bool(await db.query_value(asked) == 0)

    await eventually(free, within_s=3, what="the copy ends")


async def test_a_timeout_rolls_back(db: pointsman.Client, table: str) -> None:
    async def source() -> AsyncIterator[bytes]:
        yield b"1\tx\t1\n"
        await asyncio.Event().wait()

    with pytest.raises(pointsman.DeadlineExceeded) as failed:
        await db.copy_in(table, source(), timeout=0.5)
    assert failed.value.executed is pointsman.Executed.ROLLED_BACK
    with pytest.raises(pointsman.DeadlineExceeded):
        await db.copy_out(query="select pg_sleep(20)", to=io.BytesIO(), timeout=0.5)
    await eventually_free(db)
    assert await count(db) == 0


async def test_cancelled_by_its_id(db: pointsman.Client, table: str) -> None:
    async def source() -> AsyncIterator[bytes]:
        yield b"1\tx\t1\n"
        assert await db.cancel("a-copy-to-be-cancelled")
        await asyncio.Event().wait()

    with pytest.raises(pointsman.Cancelled) as failed:
        await db.copy_in(table, source(), request_id="a-copy-to-be-cancelled")
    assert failed.value.executed is pointsman.Executed.ROLLED_BACK
    assert await count(db) == 0


async def test_a_slow_reader_costs_the_router_no_memory(
    router: RunningRouter, db: pointsman.Client, neighbour: Neighbour
) -> None:
    size = "select repeat('x', 1000) from generate_series(1, 100000)"
    await db.copy_out(query=size, to=io.BytesIO())  # warm
    router.reset_peak_memory()
    before = router.memory_bytes()
    async with db.copy_out(query=size) as stream:
        got = 0
        async for piece in stream:
            got += len(piece)
            if got < 2_000_000:
                await asyncio.sleep(0.05)
    assert got > 100_000_000
    assert router.peak_memory_bytes() - before < 32 << 20
    assert not neighbour.errors


async def test_a_slow_table_costs_the_router_no_memory(
    router: RunningRouter, db: pointsman.Client, table: str
) -> None:
    async def source() -> AsyncIterator[bytes]:
        for n in range(400):
            yield b"%d\t%b\t1\n" % (n, b"x" * 100_000)

    lock = db.transaction()
    async with lock as tx:
        await tx.execute("lock table parcels in share mode")
        router.reset_peak_memory()
        before = router.memory_bytes()
        running = asyncio.create_task(db.copy_in(table, source()))
        await asyncio.sleep(0.5)
        assert not running.done()
    assert (await running).rows == 400
    assert router.peak_memory_bytes() - before < 32 << 20


async def test_copies_wait_for_a_failover_to_end(make_cluster: MakeCluster, tmp_path: Path) -> None:
    cluster = make_cluster()
    async with running_router(cluster) as router, router.connect() as db:
        await db.execute("create table parcels (id int)")
        async def source() -> AsyncIterator[bytes]:
            for n in range(1000):
                yield b"%d\n" % n

        cluster.primary().kill()
        filling = asyncio.create_task(db.copy_in("parcels", source(), timeout=20))
        read = await db.copy_out("accounts", to=tmp_path / "a.csv", timeout=20)
        filled = await filling
        assert filled.rows == 1000
        assert filled.receipt.held_us > 0
        assert read.rows > 0
        assert await count(db) == 1000


async def test_a_primary_that_dies_among_the_data_undoes_it(make_cluster: MakeCluster) -> None:
    cluster = make_cluster()
    async with running_router(cluster) as router, router.connect() as db:
        await db.execute("create table parcels (id int)")

        async def source() -> AsyncIterator[bytes]:
            yield b"".join(b"%d\n" % n for n in range(100_000))
            await asyncio.sleep(0.2)
            cluster.primary().kill()
            while True:
                await asyncio.sleep(0.05)
                yield b"1\n"

        with pytest.raises((pointsman.Unavailable, pointsman.Aborted)) as failed:
            await db.copy_in("parcels", source())
        assert failed.value.executed is pointsman.Executed.ROLLED_BACK
        assert await count(db) == 0
