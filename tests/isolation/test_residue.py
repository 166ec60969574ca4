"""What one borrower of a connection leaves behind, the next one of the same tenant does not find."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pointsman
import pytest

from tests.isolation.stage import Stage

pytestmark = pytest.mark.pg

SAME, NEW = "the same connection, made new", "another connection"


@dataclass(frozen=True)
class Kind:
    """sql is run in one transaction; probe is asked before and after it, and must answer the same."""

    name: str
    probe: str
    sql: tuple[str, ...]
    then: str = SAME
    ends: str = "commit"


def _setting(name: str) -> str:
    return f"SELECT current_setting('{name}', true)"


def _kind(name: str, probe: str, *sql: str, then: str = SAME, ends: str = "commit") -> Kind:
    return Kind(name, probe, sql, then, ends)


_LOCKS = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
_TEMP = "SELECT count(*) FROM pg_class WHERE relpersistence = 't' AND pg_table_is_visible(oid)"

_IN_PG_TEMP = "SELECT " + " + ".join(
    f"(SELECT count(*) FROM {table} WHERE {column} = pg_my_temp_schema())"
    for table, column in (
        ("pg_type", "typnamespace"), ("pg_proc", "pronamespace"), ("pg_operator", "oprnamespace"),
        ("pg_collation", "collnamespace"), ("pg_conversion", "connamespace"), ("pg_ts_dict", "dictnamespace"),
        ("pg_ts_config", "cfgnamespace"), ("pg_statistic_ext", "stxnamespace"),
    )
)  # fmt: skip

KINDS = (
    _kind("a setting", _setting("work_mem"), "SET work_mem = '77MB'"),
    _kind("a time zone", _setting("TimeZone"), "SET TIME ZONE 'Asia/Tokyo'"),
    _kind("a search path", _setting("search_path"), "SET search_path = pg_temp, public"),
    _kind("a time-out", _setting("statement_timeout"), "SET statement_timeout = 12345"),
    _kind("a lock time-out", _setting("lock_timeout"), "SET lock_timeout = 12345"),
    _kind("a style of dates", _setting("DateStyle"), "SET DateStyle = 'German'"),
    _kind("an encoding", _setting("client_encoding"), "DO $$ BEGIN SET client_encoding = 'LATIN1'; END $$"),
    _kind("durability", _setting("synchronous_commit"), "SET synchronous_commit = off"),
    _kind("an isolation level", _setting("default_transaction_isolation"),
          "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE"),
    _kind("read-only", _setting("default_transaction_read_only"), "SET default_transaction_read_only = on"),
    _kind("row security", _setting("row_security"), "SET row_security = off"),
    _kind("several settings", "SELECT sum(hashtext(name || setting)) FROM pg_settings WHERE source = 'session'",
          "SET jit = off", "SET enable_seqscan = off",
          "SET maintenance_work_mem = '2MB'"),  # temp_buffers cannot be set once a session has had temporary tables
    _kind("a setting rolled back", _setting("work_mem"), "SET work_mem = '77MB'", ends="rollback"),
    _kind("a setting, then an error", _setting("work_mem"), "SET work_mem = '77MB'", "SELECT 1/0", ends="error"),
    _kind("a setting, then silence", _setting("work_mem"), "SET work_mem = '77MB'", ends="close"),
    _kind("set_config", _setting("work_mem"), "SELECT set_config('work_mem', '77MB', false)"),
    _kind("set_config by computation", _setting("work_mem"), "SELECT set_config('work' || '_mem', '77MB', false)",
          then=NEW),
    _kind("a name of its own", _setting("own.secret"), "SET own.secret = 'x'", then=NEW),
    _kind("a name of its own by set_config", _setting("own.other"), "SELECT set_config('own.other', 'x', false)",
          then=NEW),
    _kind("a role", "SELECT current_user::text", 'SET ROLE "{me}"', then=NEW),
    _kind("a session authorization", "SELECT session_user::text", 'SET SESSION AUTHORIZATION "{me}"', then=NEW),
    _kind("a setting in a block", _setting("work_mem"), "DO $$ BEGIN EXECUTE 'SET work_mem = ''77MB'''; END $$"),
    _kind("set_config in a block", _setting("work_mem"),
          "DO $$ BEGIN PERFORM set_config('work_mem', '77MB', false); END $$", then=NEW),
    _kind("a setting in a function", _setting("work_mem"), "SELECT hidden()"),
    _kind("a setting in a function of a table", _setting("work_mem"), "SELECT * FROM hidden() AS h"),
    _kind("a setting in a procedure", _setting("work_mem"), "CALL hidden_too()"),
    _kind("a temporary table", _TEMP, "CREATE TEMP TABLE left_behind (a int)"),
    _kind("a temporary table of a query", _TEMP, "CREATE TEMP TABLE left_behind AS SELECT 1 AS a"),
    _kind("SELECT INTO", _TEMP, "SELECT 1 AS a INTO TEMP left_behind"),
    _kind("a temporary view", _TEMP, "CREATE TEMP VIEW left_behind AS SELECT 1 AS a"),
    _kind("a temporary sequence", _TEMP, "CREATE TEMP SEQUENCE left_behind"),
    _kind("a temporary function", "SELECT count(*) FROM pg_proc WHERE pronamespace = pg_my_temp_schema()",
          "CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql AS 'SELECT 1'"),
    *(_kind(f"a temporary {name}", _IN_PG_TEMP, sql) for name, sql in (
        ("enum", "CREATE TYPE pg_temp.e AS ENUM ('a')"),
        ("row type", "CREATE TYPE pg_temp.c AS (a int)"),
        ("range type", "CREATE TYPE pg_temp.r AS RANGE (subtype = int)"),
        ("domain", "CREATE DOMAIN pg_temp.d AS int"),
        ("aggregate", "CREATE AGGREGATE pg_temp.a(int) (sfunc = int4pl, stype = int)"),
        ("operator", "CREATE OPERATOR pg_temp.+ (function = int4pl, leftarg = int, rightarg = int)"),
        ("collation", 'CREATE COLLATION pg_temp.c FROM "C"'),
        ("conversion", "CREATE CONVERSION pg_temp.c FOR 'LATIN1' TO 'UTF8' FROM iso8859_1_to_utf8"),
        ("dictionary", "CREATE TEXT SEARCH DICTIONARY pg_temp.d (template = simple)"),
        ("search configuration", "CREATE TEXT SEARCH CONFIGURATION pg_temp.c (copy = simple)"),
        ("statistic", "CREATE STATISTICS pg_temp.s ON owner, secret FROM vault"),
        ("procedure", "CREATE PROCEDURE pg_temp.p() LANGUAGE sql AS ''"),
    )),
    _kind("a type where the path leads", _IN_PG_TEMP, "SET LOCAL search_path TO pg_temp, public",
          "CREATE TYPE e AS ENUM ('a')"),
    _kind("a table where a computed path leads", _TEMP, "SELECT set_config('search_path', lower('PG_TEMP'), true)",
          "CREATE TABLE left_behind (a int)"),
    _kind("a table in a block", _TEMP, "DO $$ BEGIN CREATE TEMP TABLE left_behind (a int); END $$"),
    _kind("a prepared statement", "SELECT count(*) FROM pg_prepared_statements WHERE name = 'mine'",
          "PREPARE mine AS SELECT 1"),
    _kind("a prepared statement in a block", "SELECT count(*) FROM pg_prepared_statements WHERE name = 'mine'",
          "DO $$ BEGIN EXECUTE 'PREPARE mine AS SELECT 1'; END $$"),
    _kind("a cursor", "SELECT count(*) FROM pg_cursors WHERE name = 'held'",
          "DECLARE held CURSOR WITH HOLD FOR SELECT 1"),
    _kind("a channel", "SELECT count(*) FROM pg_listening_channels()", "LISTEN here"),
    _kind("a lock", _LOCKS, "SELECT pg_advisory_lock(7)"),
    _kind("a shared lock", _LOCKS, "SELECT pg_advisory_lock_shared(7, 8)"),
    _kind("a tried lock", _LOCKS, "SELECT pg_try_advisory_lock(9)"),
    _kind("a lock in a function", _LOCKS, "SELECT hidden_lock()"),
    _kind("a seed", "SELECT random() BETWEEN 0 AND 1", "SELECT setseed(0.5)", then=NEW),
    _kind("a seed by SET", "SELECT random() BETWEEN 0 AND 1", "SET seed = 0.5", then=NEW),
    _kind("lastval", "SELECT lastval()", "SELECT nextval('own_seq')"),
    _kind("currval", "SELECT currval('own_seq')", "SELECT nextval('own_seq')"),
    _kind("a library", _setting("work_mem"), "LOAD 'auto_explain'", then=NEW, ends="error"),
    _kind("an open savepoint", "SELECT txid_current_if_assigned()", "SAVEPOINT", "SET work_mem = '77MB'", ends="close"),
)  # fmt: skip

_FUNCTIONS = """
CREATE OR REPLACE FUNCTION hidden() RETURNS text LANGUAGE plpgsql AS
$$ BEGIN EXECUTE 'SET work_mem = ''77MB'''; RETURN 'x'; END $$;
CREATE OR REPLACE PROCEDURE hidden_too() LANGUAGE plpgsql AS $$ BEGIN EXECUTE 'SET work_mem = ''77MB'''; END $$;
CREATE OR REPLACE FUNCTION hidden_lock() RETURNS text LANGUAGE plpgsql AS
$$ BEGIN EXECUTE 'SELECT pg_advisory_lock(5)'; RETURN 'x'; END $$;
"""


@contextlib.asynccontextmanager
async def borrower(played: Stage) -> AsyncIterator[pointsman.Client]:
    async with played.connect("da") as db:
        for text in _FUNCTIONS.strip().split(";\nCREATE"):
            await db.execute(text if text.startswith("CREATE") else f"CREATE{text}")
        yield db


async def probed(db: pointsman.Client, kind: Kind) -> tuple[object, int]:
    """The probe's answer (or its error's SQLSTATE), and the backend that gave it; as a new borrower."""
    async with db.transaction() as tx:
        pid = await tx.query_value("SELECT pg_backend_pid()")
        try:
            return await tx.query_value(kind.probe), pid
        except pointsman.Error as error:
            await tx.rollback()
            return error.sqlstate, pid


async def dirty(db: pointsman.Client, kind: Kind, me: str) -> int:
    """Run what leaves something behind; the backend it ran on."""
    tx = db.transaction()
    entered = await tx.__aenter__()
    pid = int(await entered.query_value("SELECT pg_backend_pid()"))
    try:
        for text in kind.sql:
            if text == "SAVEPOINT":
                await entered.savepoint().__aenter__()
            else:
                await entered.execute(text.replace("{me}", me))
    except pointsman.Error:
        assert kind.ends == "error"
    match kind.ends:
        case "commit":
            await tx.__aexit__(None, None, None)
        case "rollback":
            await entered.rollback()
        case _:
            await tx.__aexit__(ZeroDivisionError, ZeroDivisionError(), None)
    return pid


def test_there_are_enough_kinds():
    assert len(KINDS) >= 30
    assert len({kind.name for kind in KINDS}) == len(KINDS)


async def test_nothing_that_a_borrower_leaves_is_visible_to_the_next(played: Stage):
    failures: list[str] = []
    me = played.places["da"].login
    async with borrower(played) as db:
        for kind in KINDS:
            await db.execute("SELECT 1")
            clean, _ = await probed(db, kind)
            ran_on = await dirty(db, kind, me)
            found, pid = await probed(db, kind)
            if found != clean:
                failures.append(f"{kind.name}: {found!r} is visible, {clean!r} was before")
            if (pid == ran_on) != (kind.then is SAME):
                failures.append(f"{kind.name}: expected {kind.then}")
    assert not failures, "\n".join(failures)
    print(f"residue: {len(KINDS)} kinds, 0 visible")


@pytest.mark.parametrize(
    ("sql", "probe"),
    [
        ("DO $$ BEGIN EXECUTE 'SET work_mem = ''77MB'''; END $$", _setting("work_mem")),
        ("CALL hidden_too()", _setting("work_mem")),
        ("DO $$ BEGIN CREATE TEMP TABLE left_behind (a int); END $$", _TEMP),
    ],
)
async def test_blocks_and_procedures_alone_leave_nothing_either(played: Stage, sql: str, probe: str):
    async with borrower(played) as db:
        before = (await db.execute(probe)).rows[0][0]
        for _ in range(3):
            await db.execute(sql)
            await db.batch([sql])
            assert (await db.execute(probe)).rows[0][0] == before


@pytest.mark.parametrize(
    "steps",
    [
        ("SET LOCAL search_path TO none_such, pg_temp", "CREATE TYPE e AS ENUM ('a')"),
        ("SELECT set_config('search_path', $1, true)", "CREATE DOMAIN d AS int"),
        ("SET LOCAL search_path TO pg_temp", "SELECT 1 AS a INTO left_behind"),
    ],
)
async def test_nor_does_a_batch_whose_path_leads_to_the_sessions_own_schema(played: Stage, steps: tuple[str, ...]):
    async with borrower(played) as db:
        before = (await db.execute(_IN_PG_TEMP)).rows[0][0]
        for _ in range(3):
            await db.batch([pointsman.Step(sql, ["pg_temp"] * sql.count("$1")) for sql in steps])
            assert (await db.execute(_IN_PG_TEMP)).rows[0][0] == before


async def test_what_is_a_transactions_own_is_never_forgotten(played: Stage):
    async with borrower(played) as db:
        async with db.transaction() as tx:
            mine = await tx.query_value("SELECT nextval('own_seq')")
            assert await tx.query_value("SELECT lastval()") == mine
            assert await tx.query_value("SELECT currval('own_seq')") == mine
            await tx.execute("SET work_mem = '77MB'")
            assert await tx.query_value(_setting("work_mem")) == "77MB"
        drawn, told = await db.batch(
            [pointsman.Step("SELECT nextval('own_seq')", want_rows=True),
             pointsman.Step("SELECT currval('own_seq')", want_rows=True)]
        )  # fmt: skip
        assert drawn.rows[0][0] == told.rows[0][0]
        with pytest.raises(pointsman.Error) as caught:
            await db.batch(["SELECT lastval()"])
        assert caught.value.sqlstate == "55000"


async def test_prepared_statements_go_on_after_a_session_was_made_new(played: Stage):
    async with borrower(played) as db:
        for round_ in range(6):
            rows = (await db.execute("SELECT $1::int + 1 AS n", round_)).rows
            assert rows[0]["n"] == round_ + 1
            async with db.transaction() as tx:
                await tx.execute("SET work_mem = '77MB'")
                assert await tx.query_value("SELECT $1::int + 1 AS n", round_) == round_ + 1
