"""Prepared statements on lanes, against real PostgreSQL: whatever happens to the schema, nobody meets our plans."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
import pytest

from router.devcluster import DevCluster
from router.engine.calls import Call
from router.engine.lane_pool import LanePool
from router.engine.positions import PositionBehind
from router.model.identity import Generation, Lsn, Term, lsn_from_text
from router.model.observation import FaultKind
from router.model.policy import PoolPolicy
from router.model.reasons import CloseReason
from router.model.request import Access, Method, Statement
from router.model.token import Token, decode
from router.ports import Lane, Unit
from router.postgres.endpoint_pool import PsycopgEndpointPool
from router.system import SystemClock
from tests.contracts.promises import fault_of, run_on, soon, submit, tags, values
from tests.contracts.real_pool import make_real_pool
from tests.support import builders
from tests.support.builders import now, request
from tests.support.eventually import eventually
from tests.support.lane_world import free_runs

pytestmark = pytest.mark.pg

CAPACITY = 4
FURNISH = """
DROP SCHEMA IF EXISTS plans CASCADE; CREATE SCHEMA plans; CREATE SCHEMA IF NOT EXISTS elsewhere;
CREATE TABLE plans.things (id int, name text); INSERT INTO plans.things VALUES (1, 'one');
CREATE TYPE plans.mood AS ENUM ('calm');
CREATE TABLE plans.notes (n int);
"""


@pytest.fixture
async def pool(pg_cluster_each: DevCluster) -> AsyncIterator[PsycopgEndpointPool]:
    pool = make_real_pool(pg_cluster_each, Access.READ_WRITE, PoolPolicy(max_size=2, prepared_statements=CAPACITY))
    yield pool
    await pool.close(CloseReason.SHUTDOWN)


@pytest.fixture
async def lane(pool: PsycopgEndpointPool, elsewhere: Any) -> Lane:
    return await pool.open_lane(soon())


@pytest.fixture
def elsewhere(pg_cluster_each: DevCluster) -> Iterator[psycopg.Connection[Any]]:
    """Another session of the same tenant, where the schema is changed; nothing of it is prepared."""
    with psycopg.connect(pg_cluster_each.tenant_dsn("acme"), autocommit=True, prepare_threshold=None) as connection:
        connection.execute(FURNISH)
        yield connection
        connection.execute("DROP SCHEMA plans CASCADE; DROP SCHEMA elsewhere CASCADE")


def with_params(sql: str, *params: bytes) -> tuple[Unit, asyncio.Future[Unit]]:
    future: asyncio.Future[Unit] = asyncio.get_running_loop().create_future()
    return Unit((Statement(sql.encode(), params),), future.set_result), future


async def ask(lane: Lane, sql: str, *params: bytes) -> Unit:
    unit, future = with_params(sql, *params)
    lane.submit(unit)
    return await future


async def make_ready(lane: Lane, sql: str, *params: bytes) -> None:
    """Run it until it is prepared."""
    for _ in range(3):
        assert (await ask(lane, sql, *params)).fault is None
    assert sql.encode() in await names_of(lane)


async def names_of(lane: Lane) -> dict[bytes | None, bytes | None]:
    """What the server has prepared on this connection: names by text, of ours alone."""
    unit = await run_on(lane, r"select statement, name from pg_prepared_statements where name like 'pointsman\_%'")
    cells = unit.results[0].cells
    assert cells is not None
    return {cells.get_value(row, 0): cells.get_value(row, 1) for row in range(cells.ntuples)}


def rows(unit: Unit) -> list[tuple[str | None, ...]]:
    assert unit.fault is None, unit.fault
    cells = unit.results[0].cells
    assert cells is not None
    read = [[cells.get_value(row, column) for column in range(cells.nfields)] for row in range(cells.ntuples)]
    return [tuple(None if cell is None else cell.decode() for cell in row) for row in read]


CHANGES = {
    "a column more": ("select * from plans.things", b"", "alter table plans.things add color text"),
    "a column less": ("select * from plans.things", b"", "alter table plans.things drop name"),
    "another result type": (
        "select id from plans.things",
        b"",
        "alter table plans.things alter id type text using 'no ' || id",
    ),
    "a parameter of a type that cannot be compared": (
        "select name from plans.things where id = $1",
        b"1",
        "alter table plans.things alter id type text",
    ),
    "a parameter that is out of range": (
        "select name from plans.things where id = $1",
        b"1",
        "alter table plans.things alter id type bigint; update plans.things set id = 3000000000",
        b"3000000000",
    ),
    "a parameter that the old type cannot read": (
        "select name from plans.things where id = $1",
        b"1",
        "alter table plans.things alter id type text; update plans.things set id = 'first'",
        b"first",
    ),
    "another table of the same name": (
        "select * from plans.things",
        b"",
        "drop table plans.things; create table plans.things (alone bytea); insert into plans.things values ('x')",
    ),
    "a value more of an enum": ("select $1::plans.mood", b"calm", "alter type plans.mood add value 'wild'", b"wild"),
    "another function of the same name": (
        "select * from plans.f()",
        b"",
        "drop function plans.f(); create function plans.f() returns text language sql as $$select 'new'$$",
    ),
}


@pytest.mark.parametrize("case", CHANGES)
async def test_a_changed_schema_shows_as_it_does_unprepared(
    lane: Lane, elsewhere: psycopg.Connection[Any], case: str
) -> None:
    elsewhere.execute("create function plans.f() returns int language sql as 'select 1'")
    sql, before, change, *rest = CHANGES[case]
    first = [before] if before else []
    then = [rest[0]] if rest else first
    await make_ready(lane, sql, *first)
    elsewhere.execute(change)
    unprepared = psycopg.RawCursor(elsewhere).execute(sql, [value.decode() for value in then]).fetchall()
    expected = [tuple(_text(cell) for cell in row) for row in unprepared]
    for _ in range(3):
        assert rows(await ask(lane, sql, *then)) == expected
    assert sql.encode() in await names_of(lane), "prepared again"
    await lane.give_back()


def _text(cell: object) -> str | None:
    if cell is None:
        return None
    return "\\x" + cell.hex() if isinstance(cell, bytes) else str(cell)


async def test_another_search_path_is_followed(lane: Lane, elsewhere: psycopg.Connection[Any]) -> None:
    elsewhere.execute("create table elsewhere.things (other bool); insert into elsewhere.things values (true)")
    await run_on(lane, "set search_path to plans")
    await make_ready(lane, "select * from things")
    await run_on(lane, "set search_path to elsewhere")
    for _ in range(3):
        assert rows(await ask(lane, "select * from things")) == [("t",)]
    await lane.give_back(tainted=True)


@pytest.mark.parametrize("word", ["discard all", "discard plans", "deallocate all"])
async def test_what_is_deallocated_is_prepared_anew(lane: Lane, word: str) -> None:
    await make_ready(lane, "select 41")
    assert (await run_on(lane, word)).fault is None
    units = await asyncio.gather(*(submit(lane, "select 41") for _ in range(5)))
    assert [values(unit) for unit in units] == [[b"41"]] * 5
    await make_ready(lane, "select 41")
    await lane.give_back(tainted=True)


async def test_a_name_that_is_taken_is_passed_over_and_left_alone(lane: Lane) -> None:
    await run_on(lane, "prepare pointsman_1_ as select 'not ours'")
    for _ in range(4):
        assert values(await run_on(lane, "select 42")) == [b"42"]
    names = await names_of(lane)
    assert names[b"prepare pointsman_1_ as select 'not ours'"] == b"pointsman_1_"
    assert names[b"select 42"] == b"pointsman_2_"
    await lane.give_back(tainted=True)


async def test_an_error_about_the_callers_own_name_is_the_callers(lane: Lane) -> None:
    for _ in range(3):
        fault = fault_of(await run_on(lane, "execute nobody_prepared_this"))
        assert (fault.sqlstate, fault.stale_statement) == ("26000", False)
    await lane.give_back()


async def test_a_write_is_done_once_when_its_plan_is_outdated(
    lane: Lane, elsewhere: psycopg.Connection[Any]
) -> None:
    sql = "insert into plans.notes values (1) returning *"
    await make_ready(lane, sql)
    elsewhere.execute("delete from plans.notes; alter table plans.notes add more text")
    units = await asyncio.gather(*(submit(lane, sql) for _ in range(7)))
    assert all(rows(unit) == [("1", None)] for unit in units)
    assert elsewhere.execute("select count(*) from plans.notes").fetchone() == (7,)
    await lane.give_back()


async def test_the_position_of_a_write_that_was_sent_again_is_not_the_one_before_it(
    pool: PsycopgEndpointPool, elsewhere: psycopg.Connection[Any]
) -> None:
    """The question had left together with the write; the second try stands behind it."""
    policy = PoolPolicy(max_size=2)
    lanes = LanePool(pool, policy, SystemClock(), free_runs(policy, SystemClock()))
    slot = await lanes.pin(soon())
    insert = Statement(b"insert into plans.notes values (1) returning *")

    async def token_of_write() -> Token:
        asked = request(Method.EXECUTE, "insert")
        call = Call(builders.tenant(), asked, now(), None)
        call.token = Token(7, Term(1), Lsn(1), now=True).encode()
        behind = PositionBehind()
        unit = await lanes.run_pinned(slot, (insert,), asked.deadline, commits=True, behind=behind)
        assert unit.results[0].command_tag == "INSERT 0 1"
        await behind.note(call, unit, now())
        return decode(call.token)

    for _ in range(3):
        assert not (await token_of_write()).now
    elsewhere.execute("alter table plans.notes add more text")
    for _ in range(2):
        before = position(elsewhere)
        token = await token_of_write()
        assert token.now or before < token.lsn <= position(elsewhere)
    assert not token.now, "its plan is good again"
    lanes.release(slot)
    await lanes.close(CloseReason.SHUTDOWN)


def position(connection: psycopg.Connection[Any]) -> Lsn:
    row = connection.execute("select pg_current_wal_insert_lsn()::text").fetchone()
    assert row is not None
    return lsn_from_text(row[0])


async def test_answers_stay_in_order_while_some_are_sent_again(
    lane: Lane, elsewhere: psycopg.Connection[Any]
) -> None:
    await make_ready(lane, "select * from plans.things")
    elsewhere.execute("alter table plans.things add color text")
    order: list[int] = []
    made = ["select * from plans.things" if n % 3 == 1 else f"select {n}" for n in range(12)]
    futures = []
    for n, sql in enumerate(made):
        unit, future = with_params(sql)
        told = unit.done
        unit.done = lambda one, n=n, told=told: (order.append(n), told(one))  # type: ignore[misc]
        lane.submit(unit)
        futures.append(future)
    assert lane.in_flight == 12
    units = await asyncio.gather(*futures)
    assert order == list(range(12))
    assert [rows(unit) for unit in units] == [
        [("1", "one", None)] if n % 3 == 1 else [(str(n),)] for n in range(12)
    ]
    assert (lane.in_flight, lane.in_transaction) == (0, False)
    await lane.give_back()


async def test_a_lane_that_ends_meanwhile_tells_everybody_once(
    lane: Lane, elsewhere: psycopg.Connection[Any]
) -> None:
    await make_ready(lane, "select * from plans.things")
    elsewhere.execute("alter table plans.things add color text")
    order: list[int] = []
    futures = [submit(lane, sql) for sql in ("select * from plans.things", "select 1", "select pg_sleep(30)")]
    for n, future in enumerate(futures):
        future.add_done_callback(lambda _, n=n: order.append(n))  # type: ignore[misc]
    await eventually(lambda: asyncio.to_thread(_sleeps, elsewhere), within_s=5, what="a backend that sleeps")
    assert not any(future.done() for future in futures), "the second waits for the first, which is behind the third"
    assert lane.in_flight == 3
    lane.abandon(CloseReason.ABANDONED)
    again, answered, slept = await asyncio.gather(*futures)
    await asyncio.sleep(0)
    assert (fault_of(again).kind, fault_of(slept).kind) == (FaultKind.CLOSED, FaultKind.CLOSED)
    assert values(answered) == [b"1"]
    assert order == [0, 1, 2]


def _sleeps(elsewhere: psycopg.Connection[Any]) -> bool:
    return elsewhere.execute("select 1 from pg_stat_activity where wait_event = 'PgSleep'").fetchone() is not None


# --- transactions --------------------------------------------------------------------------------------------------


async def test_what_stands_behind_a_commit_goes_by_name(lane: Lane, elsewhere: psycopg.Connection[Any]) -> None:
    """The question for the commit's position does, with each batch."""
    for number in range(3):
        begun = await run_on(lane, "BEGIN", "insert into plans.notes values (1)", commits=False)
        assert tags(begun) == ["BEGIN", "INSERT 0 1"]
        committed, behind = submit(lane, "COMMIT"), submit(lane, "select 43")
        assert (tags(await committed), values(await behind)) == (["COMMIT"], [b"43"])
        if number == 1:
            assert b"select 43" in await names_of(lane)
    await run_on(lane, "BEGIN", "do $$begin execute 'deallocate all'; end$$", commits=False)
    committed, behind = submit(lane, "COMMIT"), submit(lane, "select 43")
    assert (tags(await committed), values(await behind)) == (["COMMIT"], [b"43"]), "whatever became of its plan"
    assert elsewhere.execute("select count(*) from plans.notes").fetchone() == (3,)
    await lane.give_back(tainted=True)


async def test_in_a_transaction_begun_earlier_nothing_goes_by_name(
    lane: Lane, elsewhere: psycopg.Connection[Any]
) -> None:
    """Its error could not be undone: so it must not come."""
    await make_ready(lane, "select * from plans.things")
    assert tags(await run_on(lane, "BEGIN", "select 1", commits=False)) == ["BEGIN", "SELECT 1"]
    elsewhere.execute("alter table plans.things add color text")
    for _ in range(3):
        assert rows(await run_on(lane, "select * from plans.things", commits=False)) == [("1", "one", None)]
    assert tags(await run_on(lane, "COMMIT")) == ["COMMIT"]
    await make_ready(lane, "select * from plans.things")
    await lane.give_back()


async def test_a_transaction_that_begins_with_its_statements_is_sent_again_whole(
    lane: Lane, elsewhere: psycopg.Connection[Any]
) -> None:
    for sql in ("insert into plans.notes values (1)", "select * from plans.things"):
        await make_ready(lane, sql)
    elsewhere.execute("delete from plans.notes; alter table plans.things add color text")
    steps = ("BEGIN", "insert into plans.notes values (1)", "select * from plans.things", "select 3")
    unit = await run_on(lane, *steps, commits=False)
    assert unit.fault is None
    assert tags(unit) == ["BEGIN", "INSERT 0 1", "SELECT 1", "SELECT 1"]
    assert lane.in_transaction
    assert not lane.in_failed_transaction
    assert tags(await run_on(lane, "COMMIT")) == ["COMMIT"]
    assert elsewhere.execute("select count(*) from plans.notes").fetchone() == (1,)
    await lane.give_back()


async def test_what_was_committed_on_the_way_is_not_sent_again(
    lane: Lane, elsewhere: psycopg.Connection[Any]
) -> None:
    await make_ready(lane, "select * from plans.things")
    elsewhere.execute("alter table plans.things add color text")
    steps = ("BEGIN", "insert into plans.notes values (1)", "COMMIT", "select * from plans.things")
    fault = fault_of(await run_on(lane, *steps))
    assert (fault.sqlstate, fault.stale_statement, fault.step) == ("0A000", True, 3)
    assert elsewhere.execute("select count(*) from plans.notes").fetchone() == (1,)
    assert rows(await run_on(lane, "select * from plans.things")) == [("1", "one", None)]
    await lane.give_back()


# --- what is prepared ----------------------------------------------------------------------------------------------


async def test_first_uses_in_one_turn_prepare_once(lane: Lane) -> None:
    units = await asyncio.gather(*(submit(lane, "select 43") for _ in range(9)))
    assert [values(unit) for unit in units] == [[b"43"]] * 9
    assert await names_of(lane) == {b"select 43": b"pointsman_1_"}
    await lane.give_back()


async def test_texts_seen_once_and_very_long_ones_are_not_prepared(lane: Lane) -> None:
    await asyncio.gather(*(submit(lane, f"select {n}") for n in range(50)))
    long = "select 1 /*" + "x" * 65536 + "*/"
    for _ in range(3):
        assert values(await run_on(lane, long)) == [b"1"]
    assert await names_of(lane) == {}
    await lane.give_back()


async def test_constant_staleness_leaves_nothing_behind(lane: Lane, elsewhere: psycopg.Connection[Any]) -> None:
    texts = [f"select *, {n} as n from plans.things" for n in range(CAPACITY)]
    for turn in range(12):
        elsewhere.execute(f"alter table plans.things add column c{turn} int")
        for _ in range(2):
            units = await asyncio.gather(*(submit(lane, sql) for sql in texts))
            assert all(len(rows(unit)[0]) == turn + 4 for unit in units)
        assert len(await names_of(lane)) <= CAPACITY
    await lane.give_back()


async def test_a_stream_goes_before_names_that_are_to_be_closed(
    lane: Lane, elsewhere: psycopg.Connection[Any]
) -> None:
    sql = "select name from plans.things where id = $1"
    await make_ready(lane, sql, b"1")
    elsewhere.execute("alter table plans.things alter id type text")
    assert rows(await ask(lane, sql, b"1")) == [("one",)]
    chunks: list[int] = []
    unit = await run_on(
        lane,
        "select g from generate_series(1, 10) g",
        on_rows=lambda cells: bool(chunks.append(cells.ntuples)) or True,  # type: ignore[func-returns-value]
        chunk_rows=5,
        commits=False,
    )
    assert unit.fault is None
    assert sum(chunks) == 10
    assert lane.usable
    await lane.give_back()


async def test_failing_transactions_leave_nothing_behind(lane: Lane) -> None:
    """A close that travels behind a failed statement is not carried out, and must be sent again."""
    for n in range(20):
        for _ in range(2):
            unit = await run_on(lane, "select 1/0", f"select {n} as bounded")
            assert fault_of(unit).sqlstate == "22012"
            assert values(await run_on(lane, f"select {n} as bounded_too")) == [b"%d" % n]
    assert len(await names_of(lane)) <= CAPACITY
    await lane.give_back()


async def test_a_text_that_cannot_be_prepared_fails_as_it_does_unprepared(lane: Lane) -> None:
    unprepared = fault_of(await run_on(lane, "selec 1"))
    for _ in range(3):
        for fault in map(fault_of, await asyncio.gather(*(submit(lane, "selec 1") for _ in range(4)))):
            assert (fault.sqlstate, fault.detail) == ("42601", unprepared.detail)
            assert not fault.stale_statement
    assert await names_of(lane) == {}
    await lane.give_back()


async def test_a_callers_own_mistake_keeps_the_plan(lane: Lane) -> None:
    sql = "select name from plans.things where id = $1"
    await make_ready(lane, sql, b"1")
    name = (await names_of(lane))[sql.encode()]
    fault = fault_of(await ask(lane, sql, b"not a number"))
    assert fault.sqlstate == "22P02"
    assert rows(await ask(lane, sql, b"1")) == [("one",)]
    assert (await names_of(lane))[sql.encode()] == name
    await lane.give_back()


async def test_a_plan_that_proved_outdated_is_made_anew(lane: Lane, elsewhere: psycopg.Connection[Any]) -> None:
    """Else every use of it would be sent twice."""
    sql = "select name from plans.things where id = $1"
    await make_ready(lane, sql, b"1")
    name = (await names_of(lane))[sql.encode()]
    elsewhere.execute("alter table plans.things alter id type text")
    for _ in range(2):
        assert rows(await ask(lane, sql, b"1")) == [("one",)]
    assert (await names_of(lane))[sql.encode()] != name
    await lane.give_back()


async def test_a_new_connection_has_nothing_prepared(pool: PsycopgEndpointPool, lane: Lane) -> None:
    await make_ready(lane, "select 44")
    pool.fence(Generation(2))
    other = await pool.open_lane(soon())
    assert values(await run_on(other, "select 44")) == [b"44"]
    await make_ready(other, "select 44")
    await other.give_back()
