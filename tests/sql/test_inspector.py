"""The StatementInspector contract over postgast: what runs alone, what only in Transact, what nowhere."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.model.reasons import RefuseReason
from router.model.request import StatementTraits
from router.ports import StatementInspector
from router.sql.inspector import CACHED_TEXTS, PARSED_BYTES, PostgastInspector

# Parts of it may stay when it fails; PostgreSQL takes most of them in no transaction block.
COMMIT_INSIDE = [
    "call p()",
    "do $$ begin commit; end $$",
    "do language plpgsql E'begin \\x43ommit; end'",
    "do $$ begin call p(); end $$",
    "do $$ plpy.commit() $$ language plpython3u",
    "vacuum t",
    "analyze",
    "cluster",
    "reindex table concurrently t",
    "create unique index concurrently i on t (a)",
    "drop index concurrently i",
    "alter table t detach partition p concurrently",
    "create database d",
    "drop database d",
    "alter database d set tablespace s",
    "create tablespace s location '/s'",
    "drop tablespace s",
    "create subscription s connection 'x' publication p",
    "drop subscription s",
    # not our grammar, or more than is parsed
    "call p(a ==> )",
    "  /* why */ Vacuum (newest 1) t, ;",
    "repack t",
    "create index concurrently i on t (a) newest",
    "do $$ begin " + "perform 1; " * 1000 + "commit; end $$",
    "do E'begin " + "perform 1; " * 1000 + "\\x43ommit; end'",
    "call p('" + "x" * PARSED_BYTES + "')",
    "create index concurrently i on t (a) where a in (" + "1, " * PARSED_BYTES + "1)",
]
WHOLE = [
    "select 1",
    "insert into t values ('call p()')",
    "update t set concurrently = 1",
    "create index i on t (a)",
    "drop index i",
    "drop table t",
    "alter table t detach partition p",
    "alter table t add b int",
    "refresh materialized view concurrently m",
    "explain analyze select 1",
    "truncate t",
    "do $$ begin raise exception 'no more'; end $$",
    "do $$ begin " + "perform 1; " * 1000 + "end $$",
    "nonsense",
    "create table t (a int) newest",
    "select '" + "x" * PARSED_BYTES + "'",
]

# sql: kind. Runs everywhere.
FREE = {
    "select 1": "select",
    "  SELECT * FROM t WHERE a = $1;": "select",
    "select ';' as semicolon": "select",
    "select 'into' || \"into\" from t": "select",
    "/* why */ select 1": "select",
    "-- why\nselect 1": "select",
    "values (1), (2)": "select",
    "table t": "select",
    "(select 1) union (select 2)": "select",
    "with w as (insert into t values (1) returning a) select * from w": "select",
    "with w as (select 1) delete from t": "delete",
    "insert into t values ($1, 'a;b') returning id": "insert",
    "INSERT INTO t SELECT set_config('a.b', '1', true)": "insert",
    "update t set a = 1 ; ": "update",
    "delete from t": "delete",
    "merge into t using s on t.a = s.a when matched then do nothing": "merge",
    "call p()": "call",
    "do $$ begin perform 1; perform 2; end $$": "do",
    "explain analyze select 1": "explain",
    "show all": "show",
    "create table t (a int)": "ddl",
    "create temp table t (a int) on commit drop": "ddl",
    "create temp table t on commit drop as select 1": "ddl",
    "create table t as select 1": "ddl",
    "select a into kept from t": "ddl",
    "create index concurrently i on t (a)": "ddl",
    "create function f() returns int language sql begin atomic; select 1; end": "ddl",
    "create function f() returns int language sql as 'select 1; select 2'": "ddl",
    "alter table t add b int": "ddl",
    "alter table t rename to u": "ddl",
    "drop table t": "ddl",
    "truncate t": "ddl",
    "comment on table t is 'x'": "ddl",
    "grant select on t to r": "ddl",
    "vacuum t": "utility",
    "notify c, 'p'": "utility",
    "lock table t": "utility",
    "fetch 5 from c": "utility",
    "set local work_mem = '1MB'": "set",
    "set constraints all deferred": "set",
    "select pg_advisory_xact_lock(1)": "select",
    "select 'call set_config(a) one day; or not'": "select",
    "copy t to '/tmp/x'": "copy",
    "copy t from program 'ls'": "copy",
}

# sql: kind. Needs a session of its own.
SESSION = {
    "set work_mem = '1MB'": "set",
    "SET TIME ZONE 'utc'": "set",
    "set role other": "set",
    "set session authorization other": "set",
    "set session characteristics as transaction read only": "set",
    "reset all": "set",
    "reset role": "set",
    "discard all": "session",
    "listen c": "session",
    "unlisten *": "session",
    "prepare p as select 1": "session",
    "execute p(1)": "session",
    "deallocate all": "session",
    "load 'auto_explain'": "session",
    "declare c cursor for select 1": "cursor",
    "declare c cursor with hold for select 1": "cursor",
    "create temp table t (a int)": "ddl",
    "create temporary table t as select 1": "ddl",
    "create temp table t as execute p": "ddl",
    "create table pg_temp.t (a int)": "ddl",
    "select 1 into temp t": "ddl",
    "create temp view v as select 1": "ddl",
    "create temp sequence s": "ddl",
    "create function pg_temp.f() returns int language sql as 'select 1'": "ddl",
    "explain analyze create temp table t as select 1": "ddl",
    "explain analyze execute p": "session",
    "select set_config('search_path', 'x', false)": "session",
    "select pg_catalog.set_config('search_path', 'x', $1)": "session",
    "SELECT Set_Config('search_path', 'x', 'f')": "session",
    'select U&"\\0073et_config"(\'search_path\', \'x\', false)': "session",
    "select * from t where (select pg_advisory_lock(id)) is not null": "session",
    "select pg_try_advisory_lock_shared(1, 2)": "session",
    "select pg_advisory_unlock_all()": "session",
    "insert into t select dblink_connect('c', 'host=x')": "session",
    "select setseed(0.5)": "session",
    "explain analyze select pg_advisory_lock(1)": "session",
    "do $$ begin perform pg_advisory_lock(1); end $$": "session",
}

# sql: the reason, everywhere.
REFUSED = {
    "": RefuseReason.STATEMENT_MISSING,
    " ; ;": RefuseReason.STATEMENT_MISSING,
    "-- nothing": RefuseReason.STATEMENT_MISSING,
    "/* nothing */;": RefuseReason.STATEMENT_MISSING,
    "select 1; select 2": RefuseReason.SEVERAL_STATEMENTS,
    "select 1; commit": RefuseReason.SEVERAL_STATEMENTS,
    "begin; select 1; commit": RefuseReason.SEVERAL_STATEMENTS,
    "select 1; create tabel t (a int)": RefuseReason.SEVERAL_STATEMENTS,
    "begin": RefuseReason.TRANSACTION_CONTROL,
    "start transaction isolation level serializable": RefuseReason.TRANSACTION_CONTROL,
    "commit": RefuseReason.TRANSACTION_CONTROL,
    "end": RefuseReason.TRANSACTION_CONTROL,
    "/* x */ rollback": RefuseReason.TRANSACTION_CONTROL,
    "abort and chain": RefuseReason.TRANSACTION_CONTROL,
    "savepoint a": RefuseReason.TRANSACTION_CONTROL,
    "rollback to a": RefuseReason.TRANSACTION_CONTROL,
    "release a": RefuseReason.TRANSACTION_CONTROL,
    "prepare transaction 'x'": RefuseReason.TRANSACTION_CONTROL,
    "commit prepared 'x'": RefuseReason.TRANSACTION_CONTROL,
    "copy t from stdin": RefuseReason.COPY_NOT_HERE,
    "copy (select 1) to stdout with csv": RefuseReason.COPY_NOT_HERE,
    "select 1\0; drop table t": RefuseReason.BAD_REQUEST,
}

# PostgreSQL's own error says it better.
UNKNOWN = ["selec 1", "select from where", "create tabel t (a int)", "select 1; selec 2", "'", "ÿ"]


def inspect(sql: str) -> StatementTraits:
    inspector: StatementInspector = PostgastInspector()
    return inspector.inspect(sql.encode())


@pytest.mark.parametrize("sql", [
    "set client_encoding = 'LATIN1'",
    "set local client_encoding to sql_ascii",
    'set "Client_Encoding" = latin1',
    "set names 'win1252'",
    "select set_config('client_encoding', 'latin1', true), t from u",
    "select set_config('CLIENT_ENCODING', $1, false)",
])
def test_an_encoding_that_texts_do_not_travel_in_is_refused_everywhere(sql: str) -> None:
    for traits in (PostgastInspector().inspect(sql.encode()), PostgastInspector().inspect_in_session(sql.encode())):
        assert (traits.refuse, traits.refuse_in_transaction) == (RefuseReason.NOT_SUPPORTED,) * 2
        assert "UTF-8" in traits.message


@pytest.mark.parametrize("sql", [
    "set client_encoding = 'utf-8'",
    "set names 'UNICODE'",
    "set client_encoding to default",
    "reset client_encoding",
    "select set_config('client_encoding', 'UTF8', true)",
])
def test_the_encoding_that_they_travel_in_may_be_set(sql: str) -> None:
    assert PostgastInspector().inspect_in_session(sql.encode()).refuse_in_transaction is None


@pytest.mark.parametrize("sql", [*COMMIT_INSIDE, *WHOLE], ids=lambda sql: sql[:40])
def test_what_may_commit_on_its_way_is_known(sql: str) -> None:
    traits = PostgastInspector().inspect(sql.encode())
    assert traits.refuse is None
    assert traits.commits_inside is (sql in COMMIT_INSIDE)


@pytest.mark.parametrize("sql", FREE)
def test_runs_anywhere(sql: str) -> None:
    got = inspect(sql)
    assert (got.kind, got.refuse, got.refuse_in_transaction) == (FREE[sql], None, None)
    assert not got.reads_sequences
    assert not got.path_to_temporary


@pytest.mark.parametrize("sql", SESSION)
def test_needs_a_session_of_its_own(sql: str) -> None:
    got = inspect(sql)
    assert (got.kind, got.refuse, got.refuse_in_transaction) == (SESSION[sql], RefuseReason.SESSION_STATE, None)
    assert got.residue
    assert "Transact" in got.message


@pytest.mark.parametrize("sql", REFUSED)
def test_refused_everywhere(sql: str) -> None:
    got = inspect(sql)
    assert got.refuse is REFUSED[sql]
    assert got.refuse_in_transaction is REFUSED[sql]
    assert got.message


@pytest.mark.parametrize("sql", UNKNOWN)
def test_left_to_postgresql(sql: str) -> None:
    got = inspect(sql)
    assert got.refuse is None
    assert got.refuse_in_transaction is None


def test_set_transaction_is_allowed_where_it_works() -> None:
    got = inspect("set transaction isolation level serializable")
    assert got.refuse is RefuseReason.TRANSACTION_CONTROL
    assert got.refuse_in_transaction is None
    assert not got.residue


@pytest.mark.parametrize("sql", ["begin", "select 1; select 2", "savepoint s"])
def test_message_names_what_to_use(sql: str) -> None:
    message = inspect(sql).message
    assert "Transact" in message


def test_text_that_is_not_utf8_is_left_to_postgresql() -> None:
    assert PostgastInspector().inspect(b"with w as (select '\xff') select 1; ").refuse is None


LONG = " " * PARSED_BYTES


@pytest.mark.parametrize("start", ["select 1", "/* a */ insert into t values (1)", "create function f() as 'a;b'"])
def test_long_text_is_judged_by_its_first_words(start: str) -> None:
    assert inspect(start + LONG + "'; '").refuse is None


@pytest.mark.parametrize(
    ("start", "reason"),
    [
        ("begin", RefuseReason.TRANSACTION_CONTROL),
        ("-- x\n ( /* ; */ commit", RefuseReason.TRANSACTION_CONTROL),
        ("prepare transaction 'x'", RefuseReason.TRANSACTION_CONTROL),
        ("prepare p as select 1", RefuseReason.SESSION_STATE),
        ("set x = 1", RefuseReason.SESSION_STATE),
        ("create temp table t (a int)", RefuseReason.SESSION_STATE),
        ("create local temporary table t (a int)", RefuseReason.SESSION_STATE),
        ("declare c cursor for select 1", RefuseReason.SESSION_STATE),
        ("select set_config('a', 'b', false)", RefuseReason.SESSION_STATE),
        ("copy t from stdin", RefuseReason.COPY_NOT_HERE),
    ],
)
def test_long_text_is_refused_like_a_short_one(start: str, reason: RefuseReason) -> None:
    assert inspect(start).refuse is reason or start.startswith("-- x")
    assert inspect(f"{start}{LONG}';'").refuse is reason


@pytest.mark.parametrize("sql", ["set local a = 1", "set constraints all deferred", "\x01\x02", "copy t to '/x'"])
def test_long_text_that_is_free(sql: str) -> None:
    assert inspect(f"{sql}{LONG}';'").refuse is None


def test_text_too_deep_for_the_parser_is_judged_by_its_first_words() -> None:
    assert inspect("select ';' || 1" + "+1" * 500).kind == "select"
    assert inspect("explain select ';', pg_advisory_lock(1)" + "+1" * 500).refuse is RefuseReason.SESSION_STATE


@pytest.mark.parametrize(
    "piece",
    [b"+1", b" union select 1", b" join t on true", b"(", b"/*", b"--\n", b" ", b"';", b"setseed", b"query_to_xml",
     b" into/*", b" into ", b' u&"', b"setseed\"  "],
)  # fmt: skip
def test_hostile_text_costs_little_and_crashes_nothing(piece: bytes) -> None:
    for size in (PARSED_BYTES - 100, 1_000_000):
        sql = b"explain select ';'" + piece * (size // len(piece))
        started = time.perf_counter()
        PostgastInspector().inspect(sql)
        assert time.perf_counter() - started < 1.0


def test_answers_are_kept_and_bounded() -> None:
    inspector = PostgastInspector()
    first = inspector.inspect(b"set a = 1")
    assert inspector.inspect(b"set a = 1") is first
    for number in range(CACHED_TEXTS):
        inspector.inspect(b"select %d" % number)
    assert len(inspector) == CACHED_TEXTS
    assert inspector.inspect(b"set a = 1") == first
    inspector.inspect(b"select 1" + b" " * PARSED_BYTES)
    assert len(inspector) == CACHED_TEXTS


@given(st.one_of(st.binary(max_size=60), st.text("selctbgin;'\"$-/*() \n", max_size=40).map(str.encode)))
def test_never_raises(sql: bytes) -> None:
    assert isinstance(PostgastInspector().inspect(sql), StatementTraits)


@pytest.mark.parametrize(
    "sql",
    [
        "select 1",
        "select 1 --",
        "select ')' , $$ ) $$, \")\", 1 /* ) */ -- )",
        "values (1), (2)",
        "table t",
        "with x as (select 1) select * from x",
        "(select 1)",
        r"select '\'",
        "select selec newer grammar (1)",
        "select " + ", ".join(["(1)"] * 5000),
    ],
)
def test_a_query_may_stand_between_parentheses(sql: str) -> None:
    assert PostgastInspector().inspect_nested(sql.encode()).refuse is None


@pytest.mark.parametrize(
    ("sql", "reason"),
    [
        ("select 1) to program 'x' --", RefuseReason.BAD_REQUEST),
        ("select 1) to stdout; drop table t; copy (select 1", RefuseReason.BAD_REQUEST),
        ("select (1", RefuseReason.BAD_REQUEST),
        ("select ')", RefuseReason.BAD_REQUEST),
        ("select 1 /* ", RefuseReason.BAD_REQUEST),
        ("select $a$ 1", RefuseReason.BAD_REQUEST),
        ("select 1; select 2", RefuseReason.SEVERAL_STATEMENTS),
        ("select 1;", RefuseReason.SEVERAL_STATEMENTS),
        ("", RefuseReason.STATEMENT_MISSING),
        ("-- nothing", RefuseReason.STATEMENT_MISSING),
        ("select 1\0", RefuseReason.BAD_REQUEST),
        ("insert into t values (1) returning a", RefuseReason.BAD_REQUEST),
        ("delete from t returning a", RefuseReason.BAD_REQUEST),
        ("select 1 into t", RefuseReason.BAD_REQUEST),
        ("drop table t", RefuseReason.BAD_REQUEST),
        ("select set_config('a.b', 'c', false)", RefuseReason.SESSION_STATE),
        ("commit", RefuseReason.TRANSACTION_CONTROL),
        ("select 1" + " " * (64 << 10), RefuseReason.BAD_REQUEST),
    ],
)
def test_what_is_no_query_whole_in_itself_may_not(sql: str, reason: RefuseReason) -> None:
    traits = PostgastInspector().inspect_nested(sql.encode())
    assert traits.refuse is reason
    assert traits.message
