"""COPY against real PostgreSQL: data whole, memory bounded, every end proven, the connection fit for others or gone."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator

import psycopg
import pytest

from router.devcluster import DevCluster
from router.model.copying import CopyEncoding, CopyFormat, CopyLayout, CopySource, CopyTable
from router.model.observation import Fault, FaultKind, Stage
from router.model.reasons import CloseReason
from router.model.request import Access
from router.ports import CopyChannel, Lane, Unit
from router.postgres.copy_channel import MAX_CHUNK_BYTES, MAX_CHUNKS
from router.postgres.endpoint_pool import PsycopgEndpointPool
from tests.postgres.test_lane import make_pool, soon, unit, values
from tests.support.dev_cluster import MakeCluster

pytestmark = pytest.mark.pg

SERIES = "copy (select g, 'row ' || g from generate_series(1, {}) g) to stdout"


@pytest.fixture
async def pool(pg_cluster_each: DevCluster) -> AsyncIterator[PsycopgEndpointPool]:
    pool = make_pool(pg_cluster_each)
    yield pool
    await pool.close(CloseReason.SHUTDOWN)


@pytest.fixture
async def lane(pool: PsycopgEndpointPool) -> AsyncIterator[Lane]:
    lane = await pool.open_lane(soon())
    await run(lane, "drop table if exists copied", "create table copied (n int check (n <> 13), t text)")
    yield lane
    if lane.usable:
        await run(lane, "drop table copied")
    await lane.give_back()


async def run(lane: Lane, *sql: str) -> Unit:
    made, done = unit(*sql)
    lane.submit(made)
    await done
    assert made.fault is None, made.fault
    return made


async def count(lane: Lane) -> int:
    return int(values(await run(lane, "select count(*) from copied"))[0][0] or b"")


def copy(lane: Lane, sql: str) -> tuple[CopyChannel, Unit, asyncio.Future[Unit]]:
    made, done = unit(sql, commits=False)
    return lane.open_copy(made), made, done


async def rest_of(channel: CopyChannel) -> list[bytes]:
    pieces = []
    while piece := await channel.read():
        pieces.append(piece)
    return pieces


def fault_of(made: Unit) -> Fault:
    assert made.fault is not None
    return made.fault


async def check_reusable(pool: PsycopgEndpointPool, lane: Lane) -> None:
    """In pipeline mode again, in sync, and of use to the next one."""
    assert (lane.in_flight, lane.in_transaction, lane.usable) == (0, False, True)
    assert values(await run(lane, "select 41")) == [[b"41"]]
    assert values(await run(lane, "select 42")) == [[b"42"]]


@pytest.mark.parametrize("rows", [0, 1, 2, 100_000])
async def test_out(pool: PsycopgEndpointPool, lane: Lane, rows: int) -> None:
    channel, made, done = copy(lane, SERIES.format(rows))
    await channel.started()
    assert channel.layout == CopyLayout(2, binary=False)
    pieces = await rest_of(channel)
    await done
    assert b"".join(pieces) == b"".join(b"%d\trow %d\n" % (n, n) for n in range(1, rows + 1))
    assert [one.command_tag for one in made.results] == [f"COPY {rows}"]
    assert made.results[0].rows_affected == rows
    assert all(len(piece) <= MAX_CHUNK_BYTES for piece in pieces)
    assert len(pieces) <= rows * 20 // (64 << 10) + 3, "rows are coalesced"
    assert await channel.read() == b""
    await check_reusable(pool, lane)


async def test_first_rows_leave_early(lane: Lane) -> None:
    # PostgreSQL itself keeps rows back until its own buffer of 8 KiB is full.
    slow = "select repeat('x', 3000), pg_sleep(case when g > 9 then 5 else 0 end) from generate_series(1, 10) g"
    channel, _, done = copy(lane, f"copy ({slow}) to stdout")
    began = time.monotonic()
    await channel.read()
    assert time.monotonic() - began < 2
    channel.drop()
    await lane.cancel()
    await done


async def test_a_row_larger_than_a_piece(lane: Lane) -> None:
    channel, _, done = copy(lane, "copy (select repeat('x', 3000000)) to stdout")
    pieces = await rest_of(channel)
    await done
    assert b"".join(pieces) == b"x" * 3_000_000 + b"\n"
    assert max(len(piece) for piece in pieces) == MAX_CHUNK_BYTES


async def test_in(pool: PsycopgEndpointPool, lane: Lane) -> None:
    channel, made, done = copy(lane, "copy copied from stdin")
    await channel.started()
    assert channel.layout == CopyLayout(2, binary=False)
    lines = b"".join(b"%d\trow %d\n" % (n, n) for n in range(100, 100_100))
    for at in range(0, len(lines), 100_001):
        assert await channel.write(lines[at : at + 100_001])
    assert not made.commits
    channel.finish(commits=True)
    assert made.commits
    await done
    assert made.fault is None
    assert made.results[0].rows_affected == 100_000
    assert await count(lane) == 100_000
    assert not await channel.write(b"late")
    await check_reusable(pool, lane)


async def test_in_without_any_data(lane: Lane) -> None:
    channel, made, done = copy(lane, "copy copied from stdin")
    await channel.started()
    channel.finish(commits=True)
    await done
    assert (made.fault, made.results[0].command_tag) == (None, "COPY 0")


async def test_binary_round_trip(pool: PsycopgEndpointPool, lane: Lane) -> None:
    await run(lane, "insert into copied select g, case when g % 7 > 0 then repeat('é', g % 100) end "
                    "from generate_series(20, 3000) g")
    binary = CopyEncoding(CopyFormat.BINARY)
    table = CopySource(CopyTable("copied", columns=("t", "n")))
    channel, _, done = copy(lane, table.out_sql(binary).decode())
    pieces = await rest_of(channel)
    await done
    assert channel.layout == CopyLayout(2, binary=True)
    await run(lane, "create table again (like copied)")
    into = CopySource(CopyTable("again", columns=("t", "n")))
    channel, made, done = copy(lane, into.in_sql(binary).decode())
    await channel.started()
    for piece in pieces:
        assert await channel.write(piece)
    channel.finish(commits=True)
    await done
    assert made.fault is None
    same = await run(lane, "select count(*) from (table again except all table copied) d", "select count(*) from again")
    assert values(same) == [[b"0"], [b"2981"]]
    await run(lane, "drop table again")


async def test_quoting_reaches_what_it_names(lane: Lane) -> None:
    await run(lane, 'create table "odd ""name""; drop" ("co\'l" text, "\\ é" text)')
    table = CopySource(CopyTable('odd "name"; drop', "public", ("\\ é", "co'l")))
    encoding = CopyEncoding(CopyFormat.CSV, header=True, delimiter="|", null_text="it's", quote="\\")
    channel, made, done = copy(lane, table.in_sql(encoding).decode())
    await channel.started()
    assert await channel.write(b"first|second\n1|it's\n\\it's\\|2\n")
    channel.finish(commits=True)
    await done
    assert made.fault is None
    channel, made, done = copy(lane, table.out_sql(encoding).decode())
    assert b"".join(await rest_of(channel)) == "\\\\\\ é\\|co'l\n1|it's\n\\it's\\|2\n".encode()
    await done
    await run(lane, 'drop table "odd ""name""; drop"')


async def test_an_error_at_the_start(pool: PsycopgEndpointPool, lane: Lane) -> None:
    for sql, sqlstate in (("copy nowhere to stdout", "42P01"), ("copy nowhere from stdin", "42P01"), ("cop", "42601")):
        channel, made, done = copy(lane, sql)
        await channel.started()
        assert channel.layout is None
        assert await channel.read() == b""
        assert not await channel.write(b"x")
        await done
        fault = fault_of(made)
        assert (fault.kind, fault.sqlstate, fault.stage) == (FaultKind.SERVER_ERROR, sqlstate, Stage.EXECUTE)
        assert fault.endpoint
        await check_reusable(pool, lane)


async def test_an_error_in_the_middle_of_out(pool: PsycopgEndpointPool, lane: Lane) -> None:
    channel, made, done = copy(lane, "copy (select 1 / (50000 - g) from generate_series(1, 100000) g) to stdout")
    pieces = await rest_of(channel)
    await done
    assert 0 < b"".join(pieces).count(b"\n") < 50_000
    assert (fault_of(made).kind, fault_of(made).sqlstate) == (FaultKind.SERVER_ERROR, "22012")
    await check_reusable(pool, lane)


async def test_a_statement_that_is_no_copy_ends_the_connection(pool: PsycopgEndpointPool) -> None:
    for sql in ("select 1", "copy (select 1) to stdout; select 2"):
        lane = await pool.open_lane(soon())
        channel, made, done = copy(lane, sql)
        await channel.started()
        await done
        expected = FaultKind.SERVER_ERROR if ";" in sql else FaultKind.PROTOCOL
        assert fault_of(made).kind is expected
        assert lane.usable is (expected is FaultKind.SERVER_ERROR)
        await lane.give_back()


@pytest.mark.parametrize(("line", "sqlstate"), [(b"x\ty\n", "22P02"), (b"13\tbad luck\n", "23514")])
async def test_bad_data_is_undone_and_heard_of_early(
    pool: PsycopgEndpointPool, lane: Lane, line: bytes, sqlstate: str
) -> None:
    channel, made, done = copy(lane, "copy copied from stdin")
    await channel.started()
    assert await channel.write(b"1\tfine\n" * 10_000 + line)
    written = 0
    while await channel.write(b"2\tfine\n" * 10_000) and written < 1000:
        written += 1
        await asyncio.sleep(0.001)
    assert written < 1000, "the rest of the data is in vain, and is not taken"
    await done
    fault = fault_of(made)
    assert (fault.kind, fault.sqlstate, fault.stage) == (FaultKind.SERVER_ERROR, sqlstate, Stage.EXECUTE)
    assert fault.detail is not None
    assert "COPY copied" in fault.detail.context
    assert await count(lane) == 0
    await check_reusable(pool, lane)


async def test_bad_data_in_the_last_piece(pool: PsycopgEndpointPool, lane: Lane) -> None:
    channel, made, done = copy(lane, "copy copied from stdin")
    await channel.started()
    await channel.write(b"1\tfine\n13\tbad luck\n")
    channel.finish(commits=True)
    await done
    assert (fault_of(made).sqlstate, fault_of(made).stage) == ("23514", Stage.COMMIT)
    assert await count(lane) == 0
    await check_reusable(pool, lane)


async def test_notices_do_not_stop_a_copy(pool: PsycopgEndpointPool, lane: Lane) -> None:
    await run(
        lane,
        "create or replace function told() returns trigger language plpgsql as "
        "$$ begin raise notice 'ESES %', repeat('E', 2000); return new; end $$",
        "create trigger told before insert on copied for each row execute function told()",
    )
    channel, made, done = copy(lane, "copy copied from stdin")
    await channel.started()
    for _ in range(200):
        assert await channel.write(b"1\tfine\n" * 5)
        await asyncio.sleep(0)
    channel.finish(commits=True)
    await done
    assert made.fault is None
    assert made.results[0].rows_affected == 1000
    assert made.results[0].notices[0].message.startswith("ESES")


async def test_fail_undoes_it_for_certain(pool: PsycopgEndpointPool, lane: Lane) -> None:
    channel, made, done = copy(lane, "copy copied from stdin")
    await channel.started()
    await channel.write(b"1\tfine\n")
    channel.fail("the caller went away")
    channel.finish(commits=True)  # too late
    await done
    fault = fault_of(made)
    assert (fault.sqlstate, made.commits) == ("57014", False)
    assert "the caller went away" in fault.message
    assert await count(lane) == 0
    await check_reusable(pool, lane)


async def test_fail_before_the_start(pool: PsycopgEndpointPool, lane: Lane) -> None:
    channel, made, done = copy(lane, "copy copied from stdin")
    channel.fail("never mind")
    await done
    assert fault_of(made).sqlstate == "57014"
    await check_reusable(pool, lane)


@pytest.mark.usefixtures("patient_cancels")
async def test_a_cancel_stops_out_also_while_nobody_reads(pool: PsycopgEndpointPool, lane: Lane) -> None:
    endless = "copy (select generate_series(1, 500000000), 'minutes, if it is not stopped') to stdout"
    channel, made, done = copy(lane, endless)
    assert await channel.read()
    await asyncio.sleep(0.2)
    channel.drop()
    await lane.cancel()
    await asyncio.wait_for(done, 30)  # some 8 MB lie in the sockets, to be read first
    assert fault_of(made).sqlstate == "57014"
    assert await channel.read() == b""
    await check_reusable(pool, lane)


async def test_a_cancel_that_works_before_it_is_known_to_have_arrived_ends_the_lane(
    pool: PsycopgEndpointPool, lane: Lane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a busy machine: PostgreSQL has obeyed, but the end of the request's own connection was not seen in time."""
    send = psycopg.AsyncConnection.cancel_safe

    async def unheard(connection: psycopg.AsyncConnection[object], *, timeout: float) -> None:
        await send(connection, timeout=10)
        raise psycopg.errors.CancellationTimeout("cancellation timeout expired")

    monkeypatch.setattr(psycopg.AsyncConnection, "cancel_safe", unheard)
    channel, made, done = copy(lane, "copy (select generate_series(1, 500000000)) to stdout")
    assert await channel.read()
    channel.drop()
    await lane.cancel()
    await asyncio.wait_for(done, 30)  # some 8 MB lie in the sockets, to be read first
    assert fault_of(made).sqlstate == "57014"
    assert (lane.in_flight, lane.usable) == (0, False)
    await lane.give_back()
    assert pool.statistics().idle == 0, "another request that may still arrive would hit whoever has it next"


async def test_a_slow_reader_stops_postgresql(lane: Lane, pg_cluster_each: DevCluster) -> None:
    channel, _, done = copy(lane, "copy (select repeat('x', 1000) from generate_series(1, 50000)) to stdout")
    assert await channel.read()
    most = 0
    for _ in range(20):
        await asyncio.sleep(0.02)
        most = max(most, len(channel._chunks))  # type: ignore[attr-defined]
    assert MAX_CHUNKS <= most <= MAX_CHUNKS + 1
    other = await make_one(pg_cluster_each)
    state = await run(other[1], "select wait_event from pg_stat_activity where query like 'copy (select repeat%'")
    assert values(state)[0][0] == b"ClientWrite"
    await other[1].give_back()
    await other[0].close(CloseReason.SHUTDOWN)
    assert sum(len(piece) for piece in await rest_of(channel)) > 49_000_000
    await done


async def make_one(pg: DevCluster) -> tuple[PsycopgEndpointPool, Lane]:
    pool = make_pool(pg)
    return pool, await pool.open_lane(soon())


async def test_a_slow_postgresql_stops_the_writer(pool: PsycopgEndpointPool, lane: Lane) -> None:
    lock = await pool.open_lane(soon())
    held, done_lock = unit("begin", "lock table copied in share mode", commits=False)
    lock.submit(held)
    await done_lock
    # COPY itself waits for the lock, so it has not begun; a trigger that sleeps makes it slow once it has.
    channel, made, done = copy(lane, "copy copied from stdin")
    await asyncio.sleep(0.1)
    assert channel.layout is None
    await run(lock, "rollback")
    await lock.give_back()
    await channel.started()
    await run_slow_trigger(pool, channel, made, done)


async def run_slow_trigger(
    pool: PsycopgEndpointPool, channel: CopyChannel, made: Unit, done: asyncio.Future[Unit]
) -> None:
    channel.fail("again, with the trigger")
    await done
    lane = await pool.open_lane(soon())
    await run(
        lane,
        "create or replace function slow() returns trigger language plpgsql as "
        "$$ begin perform pg_sleep(30); return new; end $$",
        "create trigger slow before insert on copied for each row execute function slow()",
    )
    channel, made, done = copy(lane, "copy copied from stdin")
    await channel.started()
    taken = 0
    piece = b"1\t" + b"x" * 100_000 + b"\n"
    try:
        async with asyncio.timeout(1.0):
            while await channel.write(piece):
                taken += len(piece)
    except TimeoutError:
        pass
    assert taken < 32 << 20, "the writer waits"
    channel.fail("slow")
    await lane.cancel()
    await asyncio.wait_for(done, 2)
    assert fault_of(made).sqlstate == "57014"
    assert await count(lane) == 0
    await check_reusable(pool, lane)
    await lane.give_back()


@pytest.mark.parametrize("direction", ["out", "in", "in after the end"])
async def test_abandoned(pool: PsycopgEndpointPool, direction: str) -> None:
    lane = await pool.open_lane(soon())
    await run(lane, "drop table if exists copied", "create table copied (n int, t text)")
    channel, made, done = copy(lane, SERIES.format(5_000_000) if direction == "out" else "copy copied from stdin")
    await channel.started()
    if direction == "out":
        assert await channel.read()
    else:
        assert await channel.write(b"1\tx\n")
    if direction == "in after the end":
        channel.finish(commits=True)
    lane.abandon(CloseReason.ABANDONED)
    assert not await channel.write(b"1\tx\n")
    channel.finish(commits=True)
    channel.fail("too late")
    channel.drop()
    await asyncio.wait_for(done, 1)
    assert fault_of(made).kind is FaultKind.CLOSED
    assert fault_of(made).stage is (Stage.COMMIT if direction == "in after the end" else Stage.EXECUTE)
    assert (await channel.read(), lane.usable) == (b"", False)
    await lane.give_back()
    assert pool.statistics().leased == 0


async def test_a_copy_on_a_lane_that_has_ended(pool: PsycopgEndpointPool) -> None:
    lane = await pool.open_lane(soon())
    lane.abandon(CloseReason.ABANDONED)
    channel, made, done = copy(lane, "copy copied from stdin")
    assert not done.done()
    await channel.started()
    await done
    assert (fault_of(made).stage, made.sent) == (Stage.SEND, False)


async def test_the_server_dies(make_cluster: MakeCluster) -> None:
    pg = make_cluster(replicas=1)
    pool = make_pool(pg)
    lane, other = await pool.open_lane(soon()), await pool.open_lane(soon())
    await run(other, "create table copied (n int, t text)")
    coming, made_out, done_out = copy(lane, SERIES.format(5_000_000))
    going, made_in, done_in = copy(other, "copy copied from stdin")
    assert await coming.read()
    await going.started()
    await going.write(b"1\tx\n" * 1000)
    pids = (lane.connection.pgconn.backend_pid, other.connection.pgconn.backend_pid)  # type: ignore[attr-defined]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    await rest_of(coming)
    await asyncio.wait_for(asyncio.gather(done_out, done_in), 3)
    assert fault_of(made_out).kind is FaultKind.CONNECTION_LOST
    assert fault_of(made_in).kind is FaultKind.CONNECTION_LOST
    assert fault_of(made_in).stage is Stage.EXECUTE, "CopyDone was not sent: it is undone"
    assert pool.statistics().leased == 0
    await pool.close(CloseReason.SHUTDOWN)


async def test_a_read_only_connection_refuses_to_be_filled(pg_cluster: DevCluster) -> None:
    pool = make_pool(pg_cluster, Access.READ_ONLY)
    lane = await pool.open_lane(soon())
    channel, made, done = copy(lane, "copy accounts from stdin")
    await channel.started()
    await done
    assert fault_of(made).sqlstate == "25006"
    await check_reusable(pool, lane)
    await lane.give_back()
    await pool.close(CloseReason.SHUTDOWN)


async def test_a_commit_that_no_standby_confirmed_is_told(make_cluster: MakeCluster) -> None:
    pg = make_cluster(replicas=1)
    pool = make_pool(pg)
    lane = await pool.open_lane(soon())
    await run(lane, "create table copied (n int, t text)")
    (standby,) = (one for one in pg.servers.values() if one is not pg.primary())
    standby.freeze()
    try:
        channel, made, done = copy(lane, "copy copied from stdin")
        await channel.started()
        await channel.write(b"1\tx\n")
        channel.finish(commits=True)
        await asyncio.sleep(0.2)
        assert not done.done(), "the commit waits for its standby"
        asked = "select pg_cancel_backend(pid) from pg_stat_activity where wait_event = 'SyncRep'"
        with psycopg.connect(pg.primary().superuser_dsn, autocommit=True) as connection:
            assert connection.execute(asked).fetchall() == [(True,)]
        await asyncio.wait_for(done, 2)
    finally:
        standby.thaw()
    assert (fault_of(made).kind, fault_of(made).stage) == (FaultKind.LOCAL_COMMIT, Stage.COMMIT)
    assert made.results[0].command_tag == "COPY 1"
    await check_reusable(pool, lane)
    await lane.give_back()
    await pool.close(CloseReason.SHUTDOWN)
