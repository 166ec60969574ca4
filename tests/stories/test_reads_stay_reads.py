"""A read changes nothing, neither rows nor the connection that it shares; nor does a transaction that is read-only."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pointsman
import psycopg
import pytest

from router.devcluster import DevCluster
from tests.support.running_router import RunningRouter

pytestmark = pytest.mark.pg

FUNCTIONS = (
    "create table if not exists kept (n int)",
    "create or replace function unlock() returns int language plpgsql as "
    "$$ begin perform set_config('default_transaction_read_only', 'off', false); return 1; end $$",
    "create or replace function leads_astray() returns int language plpgsql as "
    "$$ begin execute 'set search_path to pg_temp'; return 1; end $$",
    "create or replace function turns_the_clock() returns int language plpgsql as "
    "$$ begin execute 'set time zone ''Asia/Tokyo'''; return 1; end $$",
    "create or replace procedure writes() language plpgsql as $$ begin insert into kept values (1); end $$",
    "create or replace view unlocking as select unlock() as one",
    "truncate kept",
)
UNLOCK = "set_config('default_transaction_read_only', 'off', false)"
QUOTED = UNLOCK.replace("'", "''")


async def furnish(db: pointsman.Client) -> None:
    for sql in FUNCTIONS:
        await db.execute(sql)


async def all_rows(db: pointsman.Client, sql: str) -> None:
    async for _ in db.stream(sql):
        pass


async def copied(db: pointsman.Client, sql: str) -> None:
    async for _ in db.copy_out(query=sql):
        pass


async def transact(db: pointsman.Client, *sql: str) -> None:
    async with db.transaction(read_only=True) as tx:
        for one in sql:
            await tx.execute(one)


async def check_reads_cannot_write(db: pointsman.Client) -> None:
    """On whichever connection: one at a time they all take the same."""
    for _ in range(4):
        with pytest.raises(pointsman.Error) as caught:
            await db.query("insert into kept values (2)")
        assert caught.value.sqlstate == "25006"
    assert await db.query_value("select count(*) from kept") == 0


@pytest.mark.parametrize(
    "sql",
    [
        "do $$ begin commit; set transaction read write; insert into kept values (2); end $$",
        "do $$ begin set default_transaction_read_only = off; end $$",
        "do $$ begin set time zone 'Asia/Tokyo'; end $$",
        "call writes()",
        "vacuum kept",
        "analyze kept",
        f"select {UNLOCK}",
        f"select * from ts_stat('select to_tsvector({QUOTED})')",
        f"select ts_rewrite('a'::tsquery, 'select ''a''::tsquery, ''b''::tsquery from {QUOTED}')",
        f"select query_to_xml('select {QUOTED}', true, true, '')",
        f"select query_to_xml('select ' || '{QUOTED}', true, true, '')",
        "set default_transaction_read_only = off",
        "select lo_create(0)",
        "select lowrite(lo_open(lo_from_bytea(0, 'x'), 131072), 'y')",
    ],
)
async def test_what_is_no_read_is_refused_as_one(router_each: RunningRouter, sql: str) -> None:
    async with router_each.connect() as db:
        await furnish(db)
        before = await db.query_value("select count(*) from pg_largeobject_metadata")
        sent: list[Callable[[], Awaitable[object]]] = [lambda: db.query(sql), lambda: all_rows(db, sql)]
        if sql.startswith("select"):
            sent.append(lambda: copied(db, sql))
        for send in sent:
            with pytest.raises(pointsman.Error) as caught:
                await send()
            assert caught.value.reason in ("WRITE_ON_READ_METHOD", "SESSION_STATE")
            assert caught.value.executed is pointsman.Executed.NO
        await check_reads_cannot_write(db)
        assert await db.query_value("select current_setting('TimeZone')") == "UTC"
        assert await db.query_value("select count(*) from pg_largeobject_metadata") == before


@pytest.mark.parametrize("sql", ["select unlock()", "select * from unlocking"])
@pytest.mark.parametrize("rpc", ["query", "stream", "copy_out"])
async def test_a_read_that_unlocks_its_connection_unseen_is_the_last_one_there(
    router_each: RunningRouter, sql: str, rpc: str
) -> None:
    send = {"query": pointsman.Client.query, "stream": all_rows, "copy_out": copied}[rpc]
    async with router_each.connect() as db:
        await furnish(db)
        for _ in range(3):
            await send(db, sql)
            await check_reads_cannot_write(db)


async def test_a_write_that_changes_its_session_unseen_leaves_it_to_nobody(router_each: RunningRouter) -> None:
    async with router_each.connect() as db:
        await furnish(db)
        path = await db.query_value("select current_setting('search_path')")
        major = await db.query_value("select current_setting('server_version_num')::int / 10000")
        for _ in range(3):
            await db.execute("select turns_the_clock()")
            assert (await db.execute("select current_setting('TimeZone')")).rows[0][0] == "UTC"
            if major >= 18:  # which reports it
                await db.execute("select leads_astray()")
                assert (await db.execute("select current_setting('search_path')")).rows[0][0] == path
                await db.query("select leads_astray()")
                assert await db.query_value("select current_setting('search_path')") == path


@pytest.mark.parametrize(
    "unlock",
    [
        "set local transaction_read_only to off",
        "set transaction read write",
        "set local transaction_read_only to default",
        "select set_config('transaction_read_only', 'off', true)",
        "do $$ begin set local transaction_read_only = off; insert into kept values (3); end $$",
        "call writes()",
    ],
)
async def test_nothing_makes_a_read_only_transaction_writable(router_each: RunningRouter, unlock: str) -> None:
    async with router_each.connect() as db:
        await furnish(db)
        with pytest.raises(pointsman.Error) as caught:
            await db.batch([unlock, "insert into kept values (3)"], read_only=True)
        assert caught.value.executed in (pointsman.Executed.NO, pointsman.Executed.ROLLED_BACK)
        with pytest.raises(pointsman.Error):
            await transact(db, unlock, "insert into kept values (3)")
        assert await db.query_value("select count(*) from kept") == 0


LAST_CHANCE = "set local transaction_read_only to off"


@pytest.mark.parametrize(
    ("before", "writes"),
    [
        ((), True),
        (("show work_mem",), True),
        (("savepoint a",), False),
        (("select 1",), False),
        (("select 1", "savepoint a"), False),
        (("do $$ begin end $$",), False),
    ],
)
def test_postgresql_lets_only_set_do_that_and_only_before_the_first_query(
    pg_cluster_each: DevCluster, before: tuple[str, ...], writes: bool
) -> None:
    """The fact that the rules rest on: no function can, as whoever calls it is a query."""
    dsn = pg_cluster_each.primary().superuser_dsn
    with psycopg.connect(dsn, autocommit=True) as connection:
        unlocked = True
        connection.execute("begin read only")
        try:
            for sql in (*before, LAST_CHANCE):
                connection.execute(sql.encode())
        except psycopg.errors.ActiveSqlTransaction:
            unlocked = False
        connection.execute("rollback")
    assert unlocked is writes
