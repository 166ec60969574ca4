"""Keyed writes on scripted servers: once, whatever is lost on the way and however often they are repeated."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from router.model.errors import Code, Executed
from router.model.policy import RetryPolicy, TenantPolicy
from router.model.reasons import RefuseReason
from router.model.request import Method
from tests.support.builders import Engine
from tests.support.fake_replies import Lost, Reply
from tests.support.talk import refusal, rest
from tests.support.virtual_time import virtual

E, B = Method.EXECUTE, Method.EXECUTE_BATCH


async def keyed(engine: Engine, *sql: str, key: str = "k", method: Method = E, **kwargs: Any) -> Any:
    return await engine.run(method, *(sql or ("insert a",)), key=key, **kwargs)


@virtual
async def test_the_row_goes_first_and_the_answer_last() -> None:
    engine = Engine()
    answer = await keyed(engine)
    assert (answer.results[0].command_tag, answer.receipt.replayed) == ("INSERT 0 1", False)
    words = [text.split()[0] for text in engine.server().seen]
    assert words == [b"BEGIN", b"SET", b"INSERT", b"SET", b"insert", b"UPDATE", b"SET", b"COMMIT", b"SELECT"]
    again = await keyed(engine)
    assert (again.results[0].command_tag, again.receipt.replayed) == ("INSERT 0 1", True)
    assert engine.server().committed == [b"insert a"]
    await rest(engine)


@virtual
async def test_another_request_with_the_key_is_refused() -> None:
    engine = Engine()
    await keyed(engine)
    error = await refusal(keyed(engine, "insert b"))
    assert (error.code, error.reason, error.executed) == (
        Code.INVALID_ARGUMENT, RefuseReason.KEY_REUSED, Executed.NO
    )  # fmt: skip
    assert engine.server().committed == [b"insert a"]
    await rest(engine)


@pytest.mark.parametrize("how", [Lost.BEFORE, Lost.AFTER])
@pytest.mark.parametrize("where", [b"BEGIN READ WRITE", b"insert a", b"COMMIT"])
@virtual
async def test_a_lost_connection_is_no_error(how: Lost, where: bytes) -> None:
    engine = Engine()
    engine.server().script[where] = [Reply(lost=how, effect=where == b"insert a")]
    answer = await keyed(engine)
    assert answer.results[0].command_tag == "INSERT 0 1"
    assert answer.receipt.attempts == 2
    assert answer.receipt.replayed == ((how, where) == (Lost.AFTER, b"COMMIT"))
    assert engine.server().committed == [b"insert a"]
    await rest(engine)


@pytest.mark.parametrize("done", [True, False])
@virtual
async def test_a_failover_in_which_it_is_held(done: bool) -> None:
    engine = Engine()
    engine.server("b").keys = engine.server().keys
    engine.server().script[b"COMMIT"] = [Reply(lost=Lost.AFTER if done else Lost.BEFORE)]
    working = engine.start(keyed(engine))
    await asyncio.sleep(0.03)
    engine.supervisor.lose_primary()
    asyncio.get_running_loop().call_later(1.0, engine.supervisor.promote, "b")
    answer = await working
    assert (answer.receipt.endpoint, answer.receipt.replayed) == ("b", done)
    assert answer.receipt.held_s > 0.5
    assert len(engine.server().committed + engine.server("b").committed) == 1
    await rest(engine)


@virtual
async def test_twins_are_done_once() -> None:
    engine = Engine()
    engine.server().script[b"insert a"] = Reply(takes=0.3, tag="INSERT 0 1", affected=1, effect=True)
    answers = await asyncio.gather(*(keyed(engine) for _ in range(5)))
    assert sorted(answer.receipt.replayed for answer in answers) == [False, True, True, True, True]
    assert engine.server().committed == [b"insert a"]
    await rest(engine)


@virtual
async def test_a_twin_waits_again_and_again_until_its_deadline_and_does_not_lie() -> None:
    engine = Engine(policy=TenantPolicy(key_wait_s=0.2, max_attempts=2), retry=RetryPolicy(budget_least=1.0))
    engine.server().script[b"insert a"] = Reply(takes=3.0, tag="INSERT 0 1", affected=1, effect=True)
    first = engine.start(keyed(engine))
    await asyncio.sleep(0.05)
    error = await refusal(keyed(engine, timeout=1.5))
    assert error.executed is Executed.MAYBE, error.message
    assert (await keyed(engine, timeout=4.0)).receipt.replayed
    assert not (await first).receipt.replayed
    await rest(engine)


@virtual
async def test_what_is_not_sent_after_a_lost_commit_is_still_in_doubt() -> None:
    engine = Engine()
    engine.server().script[b"COMMIT"] = [Reply(lost=Lost.AFTER)]
    working = engine.start(keyed(engine, timeout=1.0))
    await asyncio.sleep(0.03)
    engine.supervisor.lose_primary()
    error = await refusal(working)
    assert (error.reason, error.executed) == (RefuseReason.OUTCOME_UNKNOWN, Executed.MAYBE)
    assert engine.server().committed == [b"insert a"]
    engine.supervisor.promote("a")
    assert (await keyed(engine)).receipt.replayed
    await rest(engine)


@virtual
async def test_a_work_error_after_a_lost_commit_is_definite() -> None:
    engine = Engine()
    engine.server().script[b"COMMIT"] = [Reply(lost=Lost.BEFORE)]
    usual = Reply(tag="INSERT 0 1", affected=1, effect=True)
    engine.server().script[b"insert a"] = [usual, Reply(error="23514")]
    error = await refusal(keyed(engine))
    assert (error.reason, error.executed) == (RefuseReason.CHECK_VIOLATION, Executed.ROLLED_BACK)
    assert engine.server().committed == []
    assert not (await keyed(engine)).receipt.replayed
    await rest(engine)


@virtual
async def test_a_commit_without_its_standby_is_looked_up_until_it_is_proven() -> None:
    engine = Engine()
    engine.server().script[b"COMMIT"] = [Reply(local_commit=True)]
    answer = await keyed(engine)
    assert answer.receipt.replayed
    assert engine.server().committed == [b"insert a"]
    await rest(engine)


@pytest.mark.parametrize("fault", ["missing", "forbidden"])
@virtual
async def test_without_a_table_nothing_is_executed(fault: str) -> None:
    engine = Engine()
    setattr(engine.server().keys, fault, True)
    for method in (E, B):
        error = await refusal(keyed(engine, method=method))
        assert (error.code, error.reason, error.executed) == (
            Code.FAILED_PRECONDITION, RefuseReason.IDEMPOTENCY_NOT_CONFIGURED, Executed.NO
        )  # fmt: skip
    assert b"insert a" not in engine.server().seen
    await rest(engine)
