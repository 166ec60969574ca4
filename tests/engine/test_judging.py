"""What is no read is not run as one, and a read-only transaction is called undone only where that is certain."""

from __future__ import annotations

import pytest

from router.decisions.keys import ASSERT_DURABILITY
from router.engine.judging import SessionTraces
from router.model.errors import Code, Executed
from router.model.reasons import RefuseReason
from router.model.request import Method, Residue, StatementTraits, TransactionMode
from tests.support.builders import Engine, request
from tests.support.fake_replies import Lost, Reply
from tests.support.talk import Talk, refusal, rest
from tests.support.virtual_time import virtual

READ_ONLY = TransactionMode(read_only=True)


def engine_that_takes(*sql: str) -> Engine:
    """Its servers know these statements, too."""
    engine = Engine()
    for server in engine.servers.values():
        server.script.update({one.encode(): Reply(tag=one.upper()) for one in sql})
    return engine


@pytest.mark.parametrize("sql", ["do x", "call p()"])
@virtual
async def test_a_block_or_a_procedure_is_no_read(sql: str) -> None:
    engine = engine_that_takes("do x", "call p()", "unlock it")
    assert engine.executor.start(engine.tenant, request(Method.QUERY, sql), 1, lambda _: None) is None

    async def streamed() -> None:
        async for _ in engine.executor.stream(engine.tenant, request(Method.STREAM_QUERY, sql)):
            pass

    for refused in (engine.run(Method.QUERY, sql), engine.quick_read(sql), streamed()):
        error = await refusal(refused)
        assert (error.code, error.reason) == (Code.FAILED_PRECONDITION, RefuseReason.WRITE_ON_READ_METHOD)
        assert error.executed is Executed.NO
        assert "Execute" in error.message
    assert engine.inner_pools() == []
    await engine.run(Method.EXECUTE, sql)
    await rest(engine)


@pytest.mark.parametrize("lost", Lost)
@virtual
async def test_a_read_only_batch_that_may_have_acted_is_not_done_twice(lost: Lost) -> None:
    engine = engine_that_takes("do x", "call p()", "unlock it")
    engine.server().script[b"COMMIT"] = [Reply(lost=lost)]
    error = await refusal(engine.run(Method.EXECUTE_BATCH, "do x", "select 1", mode=READ_ONLY))
    assert (error.reason, error.executed) == (RefuseReason.OUTCOME_UNKNOWN, Executed.MAYBE)
    assert engine.server().seen.count(b"do x") + engine.server("b").seen.count(b"do x") == 1
    assert ASSERT_DURABILITY.sql in engine.server().seen
    await rest(engine)


@pytest.mark.parametrize("key", ["", "k"])
@virtual
async def test_a_read_only_batch_that_only_reads_is_repeated_as_ever(key: str) -> None:
    engine = engine_that_takes("do x", "call p()", "unlock it")
    engine.server().script[b"COMMIT"] = [Reply(lost=Lost.AFTER)]
    answer = await engine.run(Method.EXECUTE_BATCH, "select 1", mode=READ_ONLY, key=key)
    assert answer.receipt.attempts == 2
    assert ASSERT_DURABILITY.sql not in engine.server().seen
    await rest(engine)


@virtual
async def test_a_read_only_batch_with_a_block_is_repeated_before_its_commit() -> None:
    engine = engine_that_takes("do x", "call p()", "unlock it")
    engine.server().script[b"do x"] = [Reply(lost=Lost.BEFORE), Reply(tag="DO")]
    answer = await engine.run(Method.EXECUTE_BATCH, "do x", mode=READ_ONLY)
    assert answer.receipt.attempts == 2
    await rest(engine)


@virtual
async def test_nothing_makes_a_read_only_batch_writable() -> None:
    engine = engine_that_takes("do x", "call p()", "unlock it")
    error = await refusal(engine.run(Method.EXECUTE_BATCH, "unlock it", "insert a", mode=READ_ONLY))
    assert (error.reason, error.executed) == (RefuseReason.TRANSACTION_CONTROL, Executed.NO)
    assert engine.inner_pools() == []
    await engine.run(Method.EXECUTE_BATCH, "unlock it", "insert a")
    await rest(engine)


@virtual
async def test_nor_a_read_only_transaction() -> None:
    engine = engine_that_takes("do x", "call p()", "unlock it")
    talk = await Talk.begin(engine, read_only=True)
    error = await refusal(talk.run("unlock it"))
    assert error.reason is RefuseReason.TRANSACTION_CONTROL
    await talk.run("select 1")
    await talk.commit()
    assert b"unlock it" not in engine.server().seen
    talk = await Talk.begin(engine)
    await talk.run("unlock it")
    await talk.commit()
    await rest(engine)


@pytest.mark.parametrize(
    ("sql", "reason", "executed"),
    [
        ("do x", RefuseReason.OUTCOME_UNKNOWN, Executed.MAYBE),
        ("select 1", RefuseReason.TRANSACTION_LOST, Executed.ROLLED_BACK),
    ],
)
@virtual
async def test_a_read_only_transaction_lost_at_its_commit_is_told_as_it_is(
    sql: str, reason: RefuseReason, executed: Executed
) -> None:
    engine = engine_that_takes("do x", "call p()", "unlock it")
    talk = await Talk.begin(engine, read_only=True)
    await talk.run(sql)
    engine.server().script[b"COMMIT"] = [Reply(lost=Lost.AFTER)]
    error = await refusal(talk.commit())
    assert (error.reason, error.executed) == (reason, executed)
    await rest(engine)


def test_what_is_created_where_the_path_leads_to_the_sessions_own_schema_is_left_there() -> None:
    path, made = StatementTraits("set", path_to_temporary=True), StatementTraits("ddl")
    traces = SessionTraces()
    assert traces.take(made, b"create type t") == (Residue.NONE, False)
    assert traces.take(path, b"set local search_path to pg_temp") == (Residue.NONE, False)
    assert traces.take(StatementTraits("select"), b"select 1") == (Residue.NONE, False)
    assert traces.take(made, b"create type t") == (Residue.DISCARD, False)
