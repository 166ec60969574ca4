"""Interactive transactions: every end other than a confirmed COMMIT is a rollback, and says so."""

from __future__ import annotations

import asyncio

import pytest

from router.model.errors import Code, Executed
from router.model.events import Outcome
from router.model.reasons import RefuseReason
from router.model.request import Isolation, TransactionState
from tests.support.builders import Engine, now
from tests.support.fake_replies import Lost, Reply
from tests.support.talk import Talk, refusal, rest
from tests.support.virtual_time import virtual


@virtual
async def test_a_connection_is_borrowed_with_the_first_statement_and_not_before() -> None:
    engine = Engine()
    talk = await Talk.begin(engine, isolation=Isolation.SERIALIZABLE)
    await engine.quiet(1)
    assert engine.inner_pools() == []
    assert talk.session.status is TransactionState.IDLE
    await talk.run("insert a")
    assert talk.session.status is TransactionState.IN_TRANSACTION
    assert engine.server().seen[0] == b"BEGIN ISOLATION LEVEL SERIALIZABLE READ WRITE"
    await talk.commit()
    assert talk.session.status is TransactionState.IDLE
    assert engine.server().committed == [b"insert a"]
    assert engine.register.counts(engine.tenant.name) == {Outcome.SERVED: 1}
    await rest(engine)


@virtual
async def test_an_empty_transaction_needs_no_server() -> None:
    engine = Engine()
    await (await Talk.begin(engine)).commit()
    await (await Talk.begin(engine)).session.rollback()
    await (await Talk.begin(engine)).session.close()
    assert engine.inner_pools() == []
    await rest(engine)


@virtual
async def test_the_commit_of_a_failed_transaction_says_that_it_was_rolled_back() -> None:
    engine = Engine()
    talk = await Talk.begin(engine)
    await talk.run("insert a")
    error = await refusal(talk.run("select 1/0"))
    assert error.reason is RefuseReason.BAD_DATA
    assert talk.session.status is TransactionState.IN_ERROR
    error = await refusal(talk.commit())
    assert (error.code, error.executed) == (Code.ABORTED, Executed.ROLLED_BACK)
    assert engine.server().committed == []
    assert await refusal(talk.run("insert b")) is error, "and goes on saying so"
    await rest(engine)


@virtual
async def test_a_savepoint_is_the_way_out_of_a_failed_transaction() -> None:
    engine = Engine()
    talk = await Talk.begin(engine)
    await talk.run("insert a")
    await talk.savepoint('odd "name"')
    await refusal(talk.run("select 1/0"))
    await talk.rollback_to('odd "name"')
    assert talk.session.status is TransactionState.IN_TRANSACTION
    await talk.session.release('odd "name"', now() + 5)
    await talk.run("insert b")
    await talk.commit()
    assert engine.server().committed == [b"insert a", b"insert b"]
    assert b'SAVEPOINT "odd ""name"""' in engine.server().seen
    for name in ("", "x" * 64, "a\0b"):
        talk = await Talk.begin(engine)
        assert (await refusal(talk.savepoint(name))).reason is RefuseReason.BAD_REQUEST
        await talk.session.close()
    await rest(engine)


@virtual
async def test_a_first_statement_that_fails_leaves_a_session_that_lives() -> None:
    engine = Engine()
    talk = await Talk.begin(engine)
    assert (await refusal(talk.run("select 1/0"))).reason is RefuseReason.BAD_DATA
    assert talk.session.status is TransactionState.IN_ERROR
    await talk.session.rollback()
    await rest(engine)


@pytest.mark.parametrize("trouble", [Reply(lost=Lost.BEFORE), Reply(error="40001"), Reply(error="0A000", stale=True)])
@virtual
async def test_before_the_first_answer_begin_may_be_repeated(trouble: Reply) -> None:
    engine = Engine()
    engine.server().script[b"insert a"] = [trouble]
    talk = await Talk.begin(engine)
    await talk.run("insert a")
    assert talk.session.receipt().attempts == 2
    await talk.commit()
    assert engine.server().committed == [b"insert a"]
    await rest(engine)


@virtual
async def test_the_first_statement_waits_for_a_primary() -> None:
    engine = Engine()
    engine.supervisor.lose_primary()
    asyncio.get_running_loop().call_later(1.0, engine.supervisor.promote, "b")
    talk = await Talk.begin(engine)
    await talk.run("insert a")
    assert talk.session.receipt().held_s == pytest.approx(1.0)
    await talk.commit()
    assert engine.server("b").committed == [b"insert a"]
    await rest(engine)


@virtual
async def test_a_refused_primary_is_reported_from_here_as_well() -> None:
    engine = Engine("a")
    engine.server().connect_error = "refused"
    talk = await Talk.begin(engine)
    await refusal(talk.run("insert a", 0.3))
    assert {fault.endpoint for fault in engine.supervisor.faults} == {"a"}
    await talk.session.close()
    await rest(engine)


@virtual
async def test_after_the_first_answer_nothing_is_repeated() -> None:
    engine = Engine()
    talk = await Talk.begin(engine)
    await talk.run("insert a")
    engine.server().script[b"insert b"] = [Reply(lost=Lost.BEFORE)]
    error = await refusal(talk.run("insert b"))
    assert (error.code, error.reason, error.executed) == (
        Code.ABORTED, RefuseReason.TRANSACTION_LOST, Executed.ROLLED_BACK)
    assert (await refusal(talk.commit())).reason is RefuseReason.TRANSACTION_LOST
    assert talk.session.status is TransactionState.IDLE
    assert engine.server().committed == []
    await talk.session.close()
    await rest(engine)


@pytest.mark.parametrize("lost", Lost)
@virtual
async def test_a_commit_without_an_answer_has_an_open_outcome(lost: Lost) -> None:
    engine = Engine()
    talk = await Talk.begin(engine)
    await talk.run("insert a")
    engine.server().script[b"COMMIT"] = [Reply(lost=lost)]
    error = await refusal(talk.commit())
    assert (error.reason, error.executed) == (RefuseReason.OUTCOME_UNKNOWN, Executed.MAYBE)
    await rest(engine)


@virtual
async def test_a_commit_past_its_deadline_is_not_cancelled() -> None:
    engine = Engine()
    talk = await Talk.begin(engine)
    await talk.run("insert a")
    engine.server().script[b"COMMIT"] = [Reply(takes=3.0)]
    before = now()
    error = await refusal(talk.commit(0.5))
    assert (error.executed, now() - before) == (Executed.MAYBE, pytest.approx(0.5))
    await talk.session.close()
    await talk.session.rollback()
    await engine.quiet(3)
    assert engine.server().committed == [b"insert a"]
    await rest(engine)


@virtual
async def test_a_constraint_checked_at_commit_is_a_rollback() -> None:
    engine = Engine()
    talk = await Talk.begin(engine)
    await talk.run("insert a")
    engine.server().script[b"COMMIT"] = [Reply(error="23503")]
    error = await refusal(talk.commit())
    assert (error.reason, error.executed) == (RefuseReason.FOREIGN_KEY_VIOLATION, Executed.ROLLED_BACK)
    await rest(engine)


@virtual
async def test_rollback_is_done_when_it_returns() -> None:
    engine = Engine()
    talk = await Talk.begin(engine)
    await talk.run("insert a")
    await talk.session.rollback()
    assert engine.server().seen[-1] == b"ROLLBACK"
    assert engine.server().committed == []
    await talk.session.rollback()
    assert (await refusal(talk.run("insert b"))).reason is RefuseReason.TRANSACTION_MISUSE
    await rest(engine)


@pytest.mark.parametrize("state", ["in transaction", "failed", "running"])
@virtual
async def test_close_always_rolls_back(state: str) -> None:
    engine = Engine()
    talk = await Talk.begin(engine)
    await talk.run("insert a")
    if state == "failed":
        await refusal(talk.run("select 1/0"))
    elif state == "running":
        running = engine.start(talk.run("select pg_sleep(60)", 70))
        await asyncio.sleep(0.1)
        running.cancel()
        await asyncio.wait({running})
    await talk.session.close()
    await talk.session.close()
    await engine.quiet(0.3)
    assert engine.server().running() == []
    assert engine.server().committed == []
    await rest(engine)
    assert engine.register.counts(engine.tenant.name) == {Outcome.CANCELLED: 1}


@virtual
async def test_a_deadline_stops_the_statement_and_leaves_the_session_in_error() -> None:
    engine = Engine()
    talk = await Talk.begin(engine)
    await talk.run("insert a")
    await talk.savepoint("p")
    error = await refusal(talk.run("select pg_sleep(60)", 0.5))
    assert (error.code, error.executed) == (Code.DEADLINE_EXCEEDED, Executed.ROLLED_BACK)
    await talk.rollback_to("p")
    await talk.commit()
    assert engine.server().committed == [b"insert a"]
    await rest(engine)


@virtual
async def test_a_statement_that_cannot_be_stopped_ends_the_session() -> None:
    engine = Engine()
    talk = await Talk.begin(engine)
    await talk.run("insert a")
    engine.server().script[b"insert b"] = Reply(silent=True, ignores_cancel=True)
    error = await refusal(talk.run("insert b", 0.5))
    assert error.executed is Executed.ROLLED_BACK
    assert await refusal(talk.commit()) is error
    await rest(engine)
    assert engine.server().committed == []
