"""What is no read though PostgreSQL lets it pass for one, and what a read-only transaction does not stop."""

from __future__ import annotations

import pytest

from router.model.reasons import RefuseReason
from router.model.request import Escape, Residue, StatementTraits
from router.sql.inspector import PARSED_BYTES, PostgastInspector

LONG = "x" * PARSED_BYTES

READS = [
    "select 1", "values (1)", "table t", "show all", "explain analyze select f(1)",
    "with w as (select 1) select * from w", "select lo_get(1)",
    "select ts_rewrite('a'::tsquery, 'b'::tsquery, 'c'::tsquery)",
    "select * from ts_stat('select to_tsvector(a) from t')", "select query_to_xml('select 1', true, true, '')",
    "set local work_mem = '1MB'", "insert into t values (1)", "update t set a = 1", "create table t (a int)",
    f"select '{LONG}'", "nonsense",
]  # fmt: skip
"""Left to PostgreSQL, whose read-only mode refuses some."""
NO_READS = [
    "do $$ begin end $$", "DO LANGUAGE sql 'x'", "call p()", "vacuum t", "analyze", "reindex table t", "cluster",
    "alter system set work_mem = '1MB'", "checkpoint",
    "create index concurrently i on t (a)", "select lo_create(0)", "select pg_catalog.lo_unlink(a) from t",
    "select lowrite(lo_open(1, 131072), 'x')", "explain analyze select lo_from_bytea(0, 'x')",
    # not our grammar, or more than is parsed
    "call p(a ==> )", "do newest $$ begin end $$", f"do $$ {LONG} $$", f"call p('{LONG}')",
]  # fmt: skip
IN_A_SESSION_ONLY = [
    "set default_transaction_read_only = off", "set session characteristics as transaction read write",
    "select set_config('default_transaction_read_only', 'off', false)", "begin", "select 1; select 2",
    "select * from ts_stat('select to_tsvector(set_config(''default_transaction_read_only'', ''off'', false))')",
    "select * from ts_stat($1)", "select * from ts_stat(sqlquery => 'select 1')", "select ts_rewrite('a'::tsquery, $1)",
    "select query_to_xml('select setseed' || '(1)', true, true, '')", "select query_to_xml('nonsense', true, true, '')",
    "with w as (select query_to_xmlschema(a, true, true, '') from t) select 1", f"select ts_stat(a) -- {LONG}",
    f"set work_mem to '{LONG}'",
]  # fmt: skip


def inspect(sql: str) -> StatementTraits:
    return PostgastInspector().inspect(sql.encode())


@pytest.mark.parametrize("sql", READS, ids=lambda sql: sql[:40])
def test_these_may_be_sent_as_reads(sql: str) -> None:
    assert inspect(sql).refuse_as_read is None


@pytest.mark.parametrize("sql", NO_READS, ids=lambda sql: sql[:40])
def test_these_run_as_writes_only(sql: str) -> None:
    traits = inspect(sql)
    assert traits.refuse_as_read is RefuseReason.WRITE_ON_READ_METHOD
    assert traits.refuse is None
    assert "use Execute" in traits.message


@pytest.mark.parametrize("sql", IN_A_SESSION_ONLY, ids=lambda sql: sql[:40])
def test_these_run_on_no_shared_connection(sql: str) -> None:
    traits = inspect(sql)
    assert traits.refuse is not None
    assert traits.refuse_as_read is traits.refuse


def test_what_begins_as_if_it_left_something_is_taken_to_do_so() -> None:
    for sql in ("set work_mem to newest 1", "call p(a ==> )", "do newest 'x'", "prepare newest as select"):
        assert inspect(sql).residue is not Residue.NONE, sql
    assert inspect("nonsense").residue is Residue.NONE


@pytest.mark.parametrize(
    ("escape", "sql"),
    [
        *((Escape.CERTAIN, sql) for sql in (
            "set transaction read write", "set transaction isolation level serializable, read write",
            "set local transaction_read_only to off", "set transaction_read_only = 0",
            'set "Transaction_Read_Only" = no', "reset transaction_read_only",
            "set local transaction_read_only to default")),
        *((Escape.POSSIBLE, sql) for sql in (
            "do $$ begin end $$", "call p()", "notify c", "nonsense", "select lo_create(0)",
            f"set local transaction_read_only to off -- {LONG}", f"x {LONG}",
            f"reset transaction_read_only -- {LONG}")),
        *((Escape.NONE, sql) for sql in (
            "select 1", "select f()", "insert into t values (1)", "set transaction read only", "set local jit = off",
            "set transaction isolation level serializable", "set transaction_read_only = on", "show all",
            "declare c cursor for select 1", "fetch c", "lock table t", "explain analyze delete from t",
            f"select '{LONG}'",
            # PostgreSQL lets no function do it, as whoever calls it is a query
            "select set_config('transaction_read_only', 'off', true)")),
    ],
    ids=lambda one: one[:40] if isinstance(one, str) else one.name,
)  # fmt: skip
def test_what_a_read_only_transaction_does_not_stop(escape: Escape, sql: str) -> None:
    assert inspect(sql).escape is escape
