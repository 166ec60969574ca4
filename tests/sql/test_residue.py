"""What a statement leaves behind in its session, and who asks for what others drew from sequences."""

from __future__ import annotations

import pytest

from router.model.reasons import RefuseReason
from router.model.request import Residue
from router.sql.inspector import CACHED_TEXTS, PARSED_BYTES, PostgastInspector

LONG = "x" * PARSED_BYTES
NONE = [
    f"insert into t select temp from s -- {LONG}", f"select temp from t -- {LONG}",
    f"create table t as table s -- {LONG}",
    "select 1", "select count(*), max(a) from t where lower(b) = any ($1)", "insert into t (a, b) values (1, 2)",
    "update t set a = coalesce(a, 0) + 1", "set local work_mem = '1MB'", "select set_config('a.b', 'x', true)",
    "select pg_advisory_xact_lock(1)", "select nextval('s')", "select pg_catalog.now()",
    "create table t (a numeric(3, 1))",
    "create type e as enum ('a')", "create domain public.d as int", "create type pg_temporary.c as (a int)",
    "create temp table t (a int) on commit drop", "notify c", "select * from generate_series(1, 3) as g (n)",
]  # fmt: skip
DISCARD = [
    "set work_mem = '1MB'", "set time zone 'utc'", "reset all", "listen c", "unlisten *", "prepare p as select 1",
    "deallocate all", "discard temp", "create temp table t (a int)", "declare c cursor with hold for select 1",
    "select pg_advisory_lock(1)", "select set_config('work_mem', '1MB', false)", "call p()", "do $$ begin end $$",
    "create type pg_temp.e as enum ('a')", "create type pg_temp.c as (a int)", "create type pg_temp.b",
    "create type pg_temp.r as range (subtype = int)", "create domain pg_temp.d as int",
    "create aggregate pg_temp.a(int) (sfunc = int4pl, stype = int)", 'create collation pg_temp.c from "C"',
    "create operator pg_temp.+ (function = int4pl, leftarg = int, rightarg = int)",
    "create statistics pg_temp.s on a, b from t", "create conversion pg_temp.c for 'UTF8' to 'LATIN1' from f",
    "create text search dictionary pg_temp.d (template = simple)", "create operator family pg_temp.f using btree",
    "create text search configuration pg_temp.c (copy = simple)", "create function pg_temp_3.f() returns int return 1",
    "create operator class pg_temp.c for type int using btree as operator 1 <", "create view pg_temp_12.v as select 1",
    "create procedure pg_temp.p() language sql as ''", "create foreign table pg_temp.f (a int) server s",
    "import foreign schema x from server s into pg_temp", "create extension citext schema pg_temp_3",
    f"select 1 as a into temp t -- {LONG}", f"with x as (select 1) select * into /* a */ pg_temp.t from x -- {LONG}",
    f"select 1 as a into local temporary t -- {LONG}", f"create type pg_temp.e as enum ('{LONG}')",
    f"create temp table t (a int) -- {LONG}", "create temp table t (a int) newest", "create type pg_temp.e as newest",
    "create table pg_temp_3.t (a int)", "create table pg_temp.t as select 1", "select 1 as a into pg_temp_3.t",
]  # fmt: skip
"""Also outside of a transaction's own session."""
DESTROY = [
    "set a.b = 'x'", "set role other", "set session authorization other", "set seed = 0.5", "load 'x'",
    "select setseed(0.5)", "select dblink_connect('c', 'host=x')", "select set_config('a.b', 'x', false)",
    "select set_config($1, $2, $3)", "select set_config('work' || '_mem', '1MB', false)",
    "select set_config('role', 'x', false)", "do $$ begin perform set_config('a.b', 'x', false); end $$",
    "explain analyze select setseed(0.5)", "declare c cursor for select setseed(0.5)",
    "select 1 from t where U&\"sets\\0065ed\"(0.5) is null", "create temp table t as select setseed(1)",
    f"select set_config('a.b', 'x', false) -- {'x' * PARSED_BYTES}",
]  # fmt: skip
UNKNOWN = [
    "select mine()", "select public.lower('x')", "insert into t select mine(a) from s", "select * from mine()",
    "with x as (select mine()) select * from x", "select pg_catalog.pg_some_new_function()", "update t set a = mine(a)",
    f"select (1) -- {'x' * PARSED_BYTES}", "select newer syntax (1)",
]  # fmt: skip
"""Nothing is known; only an interactive transaction can be cleaned up after."""


@pytest.mark.parametrize(
    ("sql", "outside", "inside"),
    [
        *((sql, Residue.NONE, Residue.NONE) for sql in NONE),
        *((sql, Residue.DISCARD, Residue.DISCARD) for sql in DISCARD),
        *((sql, Residue.DESTROY, Residue.DESTROY) for sql in DESTROY),
        *((sql, Residue.NONE, Residue.DISCARD) for sql in UNKNOWN),
    ],
)
def test_what_is_left_behind(sql: str, outside: Residue, inside: Residue):
    inspector = PostgastInspector()
    assert inspector.inspect(sql.encode()).residue is outside
    assert inspector.inspect_in_session(sql.encode()).residue is inside
    assert inspector.inspect_in_session(sql.encode()).residue is inside
    assert inspector.inspect(sql.encode()).residue is outside


@pytest.mark.parametrize(
    ("sql", "leads"),
    [
        ("set local search_path to pg_temp, public", True), ("set local schema 'pg_temp'", True),
        ("set local search_path to none_such, pg_temp_3", True), ("set local search_path to public", False),
        ("set local search_path to default", False), ("set local work_mem = '1MB'", False),
        ("select set_config('search_path', 'pg_temp, public', true)", True), ("select set_config($1, $2, true)", True),
        (f"set local search_path to pg_temp, {LONG}", True), (f"set local search_path to {LONG}", False),
        ("select set_config('search_path', $1, true)", True), ("select set_config('search_path', 'a, b', true)", False),
        ("select set_config('work_mem', $1, true)", False), ("select 'set_config(search_path, pg_temp)'", False),
    ],
)  # fmt: skip
def test_who_may_lead_what_is_created_into_the_sessions_own_schema(sql: str, leads: bool):
    traits = PostgastInspector().inspect(sql.encode())
    assert traits.path_to_temporary is leads
    assert (traits.refuse, traits.residue) == (None, Residue.NONE)


@pytest.mark.parametrize(
    ("sql", "reads"),
    [
        ("select lastval()", True), ("select currval('s')", True), ("insert into t values (currval('s'))", True),
        ("select nextval('s'), currval('s')", False), ("select lastval from t", False), ("select 'lastval()'", False),
    ],
)  # fmt: skip
def test_who_asks_for_what_its_session_drew(sql: str, reads: bool):
    traits = PostgastInspector().inspect(sql.encode())
    assert traits.reads_sequences is reads
    assert traits.refuse is (RefuseReason.SESSION_STATE if reads else None)
    assert traits.refuse_in_transaction is None
    assert not traits.residue


def test_the_memory_of_sessions_statements_is_bounded_too():
    inspector = PostgastInspector()
    for number in range(CACHED_TEXTS + 10):
        inspector.inspect_in_session(b"select mine(%d)" % number)
    assert len(inspector._in_session) == CACHED_TEXTS
