"""Copies with an idempotency key on scripted servers: their rows once, whatever is lost and however often they come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from router.model.errors import Code, Executed, bad_request
from router.model.policy import TenantPolicy
from router.model.reasons import RefuseReason
from router.model.request import CancelOutcome, Method
from tests.engine.test_copies import IN, data, endless
from tests.support.builders import Engine, now
from tests.support.fake_replies import Lost, Reply
from tests.support.talk import refusal, rest
from tests.support.virtual_time import virtual


async def keyed(engine: Engine, source: AsyncIterator[bytes] | None = None, sql: str = IN, **kwargs: Any) -> Any:
    return await engine.copy_in(sql, source or data(b"a\n", b"bc\n"), key="k", **kwargs)


@virtual
async def test_the_row_goes_before_the_data_and_its_hash_and_answer_after_it() -> None:
    engine = Engine()
    answer = await keyed(engine)
    assert (answer.rows, answer.size_bytes, answer.command_tag, answer.receipt.replayed) == (5, 5, "COPY 5", False)
    words = [text.split()[0] for text in engine.server().seen]
    assert words == [b"BEGIN", b"SET", b"INSERT", b"SET", b"copy", b"UPDATE", b"SET", b"COMMIT", b"SELECT"]
    again = await keyed(engine, data(b"a", b"\nb", b"c\n"))
    assert (again.rows, again.size_bytes, again.command_tag, again.receipt.replayed) == (5, 5, "COPY 5", True)
    assert (engine.server().committed, engine.server().copied) == ([IN.encode()], 5)
    await rest(engine)


@virtual
async def test_other_data_with_the_key_is_refused() -> None:
    engine = Engine()
    await keyed(engine)
    for source in (data(b"a\n", b"xx\n"), data(b"a\n"), data(b"a\nbc\n", b"more\n"), data()):
        error = await refusal(keyed(engine, source))
        assert (error.code, error.reason) == (Code.INVALID_ARGUMENT, RefuseReason.KEY_REUSED)
        assert error.executed is Executed.NO
    assert (engine.server().committed, engine.server().copied) == ([IN.encode()], 5)
    await rest(engine)


@virtual
async def test_another_request_with_the_key_is_refused_before_it_sends_data() -> None:
    engine = Engine()
    await keyed(engine)
    asked = []

    async def source() -> AsyncIterator[bytes]:
        asked.append(True)
        yield b""

    error = await refusal(keyed(engine, source(), sql="copy other from stdin"))
    assert (error.reason, asked) == (RefuseReason.KEY_REUSED, [])
    error = await refusal(engine.run(Method.EXECUTE, "insert a", key="k"))
    assert error.reason is RefuseReason.KEY_REUSED
    await engine.run(Method.EXECUTE, "insert a", key="other")
    error = await refusal(engine.copy_in(IN, source(), key="other"))
    assert (error.reason, asked) == (RefuseReason.KEY_REUSED, [])
    await rest(engine)


@virtual
async def test_a_replay_keeps_no_lane_and_ends_by_its_deadline_without_a_lie() -> None:
    engine = Engine()
    await keyed(engine)
    began = now()
    running = engine.start(keyed(engine, endless(), timeout=0.5))
    await asyncio.sleep(0.2)
    assert all(pool.in_flight == 0 for _, pool in engine.pools)
    error = await refusal(running)
    assert now() - began < 0.6
    assert (error.code, error.executed) == (Code.DEADLINE_EXCEEDED, Executed.MAYBE)
    wrong = bad_request(RefuseReason.BAD_REQUEST, "two starts")
    error = await refusal(keyed(engine, data(b"a\n", then=wrong)))
    assert (error.reason, error.executed) == (RefuseReason.BAD_REQUEST, Executed.MAYBE)
    running = engine.start(keyed(engine, endless(), request_id="again"))
    await asyncio.sleep(0.2)
    assert engine.executor.cancel(engine.tenant.name, "again") is CancelOutcome.CANCELLING
    error = await refusal(running)
    assert (error.code, error.executed) == (Code.CANCELLED, Executed.MAYBE)
    await rest(engine)


@pytest.mark.parametrize("how", [Lost.BEFORE, Lost.AFTER])
@virtual
async def test_a_commit_without_its_answer_is_looked_up(how: Lost) -> None:
    engine = Engine()
    engine.server().script[b"COMMIT"] = [Reply(lost=how)]
    if how is Lost.AFTER:
        answer = await keyed(engine)
        assert (answer.rows, answer.size_bytes, answer.receipt.replayed) == (5, 5, True)
        assert answer.receipt.attempts == 2
    else:
        error = await refusal(keyed(engine))
        assert (error.code, error.reason) == (Code.UNAVAILABLE, RefuseReason.BACKEND_LOST)
        assert error.executed is Executed.ROLLED_BACK
        assert not (await keyed(engine)).receipt.replayed
    assert engine.server().committed == [IN.encode()]
    await rest(engine)


@pytest.mark.parametrize("done", [True, False])
@virtual
async def test_a_commit_lost_in_a_failover_is_looked_up_on_the_next_primary(done: bool) -> None:
    engine = Engine()
    engine.server("b").keys = engine.server().keys
    engine.server().script[b"COMMIT"] = [Reply(lost=Lost.AFTER if done else Lost.BEFORE)]
    working = engine.start(keyed(engine))
    await asyncio.sleep(0.03)
    engine.supervisor.lose_primary()
    asyncio.get_running_loop().call_later(1.0, engine.supervisor.promote, "b")
    if done:
        answer = await working
        assert (answer.receipt.endpoint, answer.receipt.replayed) == ("b", True)
    else:
        assert (await refusal(working)).executed is Executed.ROLLED_BACK
    await rest(engine)


@virtual
async def test_a_commit_that_cannot_be_looked_up_is_in_doubt() -> None:
    engine = Engine()
    engine.server().script[b"COMMIT"] = [Reply(lost=Lost.AFTER)]
    working = engine.start(keyed(engine, timeout=1.0))
    await asyncio.sleep(0.03)
    engine.supervisor.lose_primary()
    error = await refusal(working)
    assert (error.reason, error.executed) == (RefuseReason.OUTCOME_UNKNOWN, Executed.MAYBE)
    engine.supervisor.promote("a")
    assert (await keyed(engine)).receipt.replayed
    await rest(engine)


@virtual
async def test_a_commit_without_its_standby_is_looked_up_until_it_is_proven() -> None:
    engine = Engine()
    engine.server().script[b"COMMIT"] = [Reply(local_commit=True)]
    assert (await keyed(engine)).receipt.replayed
    assert engine.server().committed == [IN.encode()]
    await rest(engine)


@virtual
async def test_a_commit_that_is_refused_is_undone_and_says_why() -> None:
    engine = Engine()
    engine.server().script[b"COMMIT"] = [Reply(error="40001")]
    error = await refusal(keyed(engine))
    assert (error.reason, error.executed) == (RefuseReason.SERIALIZATION, Executed.ROLLED_BACK)
    assert engine.server().committed == []
    assert not (await keyed(engine)).receipt.replayed
    await rest(engine)


@virtual
async def test_lost_among_its_data_it_is_undone_and_its_key_is_free() -> None:
    engine = Engine()
    asyncio.get_running_loop().call_later(0.1, engine.server().kill_all)
    error = await refusal(keyed(engine, endless()))
    assert (error.reason, error.executed) == (RefuseReason.BACKEND_LOST, Executed.ROLLED_BACK)
    assert not (await keyed(engine)).receipt.replayed
    assert engine.server().committed == [IN.encode()]
    await rest(engine)


@pytest.mark.parametrize("where", [b"BEGIN READ WRITE", IN.encode()])
@virtual
async def test_lost_before_any_data_it_is_opened_again(where: bytes) -> None:
    engine = Engine()
    engine.server().script[where] = [Reply(lost=Lost.BEFORE)]
    answer = await keyed(engine)
    assert (answer.receipt.attempts, answer.receipt.replayed) == (2, False)
    assert engine.server().committed == [IN.encode()]
    await rest(engine)


@pytest.mark.parametrize("place", [IN.encode(), b"finish " + IN.encode()])
@virtual
async def test_refused_by_postgresql_it_is_undone_and_its_key_is_free(place: bytes) -> None:
    engine = Engine()
    engine.server().script[place] = Reply(error="22P02")
    error = await refusal(keyed(engine))
    assert (error.executed, error.numbers["sqlstate"]) == (Executed.ROLLED_BACK, "22P02")
    engine.server().script.clear()
    assert not (await keyed(engine)).receipt.replayed
    await rest(engine)


@virtual
async def test_a_source_that_fails_leaves_the_key_free() -> None:
    engine = Engine()
    wrong = bad_request(RefuseReason.BAD_REQUEST, "two starts")
    error = await refusal(keyed(engine, data(b"x", then=wrong)))
    assert (error.reason, error.executed) == (RefuseReason.BAD_REQUEST, Executed.ROLLED_BACK)
    assert not (await keyed(engine)).receipt.replayed
    await rest(engine)


@virtual
async def test_past_its_deadline_among_its_data_it_is_undone() -> None:
    engine = Engine()
    error = await refusal(keyed(engine, endless(), timeout=0.5))
    assert (error.code, error.executed) == (Code.DEADLINE_EXCEEDED, Executed.ROLLED_BACK)
    await engine.quiet(0.5)
    assert not (await keyed(engine)).receipt.replayed
    await rest(engine)


@virtual
async def test_what_takes_long_after_its_data_may_still_be_cancelled_but_never_its_commit() -> None:
    engine = Engine()
    engine.server().script[b"finish " + IN.encode()] = Reply(takes=1.0, effect=True)
    running = engine.start(keyed(engine, request_id="copy"))
    await asyncio.sleep(0.2)
    assert engine.executor.cancel(engine.tenant.name, "copy") is CancelOutcome.CANCELLING
    error = await refusal(running)
    assert (error.code, error.executed) == (Code.CANCELLED, Executed.ROLLED_BACK)
    engine.server().script = {b"COMMIT": [Reply(takes=1.0)]}
    running = engine.start(keyed(engine, request_id="copy"))
    await asyncio.sleep(0.2)
    assert engine.executor.cancel(engine.tenant.name, "copy") is CancelOutcome.NOT_CANCELLABLE
    assert (await running).rows == 5
    assert engine.server().committed == [IN.encode()]
    await rest(engine)


@virtual
async def test_twins_are_done_once() -> None:
    engine = Engine()
    engine.server().script[b"finish " + IN.encode()] = Reply(takes=0.3, effect=True, tag="COPY 5", affected=5)
    answers = await asyncio.gather(*(keyed(engine) for _ in range(4)))
    assert sorted(one.receipt.replayed for one in answers) == [False, True, True, True]
    assert {one.rows for one in answers} == {5}
    assert engine.server().committed == [IN.encode()]
    await rest(engine)


@virtual
async def test_a_twin_waits_for_as_long_as_the_first_ones_data_comes() -> None:
    engine = Engine(policy=TenantPolicy(key_wait_s=0.2, max_attempts=2))
    first = engine.start(keyed(engine, data(*[b"x"] * 30, every=0.1)))
    await asyncio.sleep(0.1)
    error = await refusal(keyed(engine, timeout=1.0))
    assert error.executed is Executed.MAYBE
    assert (await keyed(engine, data(*[b"x"] * 30))).receipt.replayed
    assert not (await first).receipt.replayed
    await rest(engine)


@pytest.mark.parametrize("fault", ["missing", "forbidden"])
@virtual
async def test_without_a_table_nothing_is_copied(fault: str) -> None:
    engine = Engine()
    setattr(engine.server().keys, fault, True)
    error = await refusal(keyed(engine))
    assert (error.code, error.reason, error.executed) == (
        Code.FAILED_PRECONDITION, RefuseReason.IDEMPOTENCY_NOT_CONFIGURED, Executed.NO
    )  # fmt: skip
    assert IN.encode() not in engine.server().seen
    await rest(engine)


@virtual
async def test_a_copy_cancelled_while_its_twin_commits_is_never_told_as_undone() -> None:
    told = set()
    for wait_ms in range(55, 62):
        engine = Engine()
        engine.server().script[b"finish " + IN.encode()] = Reply(takes=0.05, effect=True, tag="COPY 5", affected=5)
        first = engine.start(keyed(engine))
        await asyncio.sleep(0.002)
        second = engine.start(keyed(engine, request_id="second"))
        await asyncio.sleep(wait_ms / 1000)
        if engine.executor.cancel(engine.tenant.name, "second") is CancelOutcome.CANCELLING:
            error = await refusal(second)
            told.add(error.executed)
        await asyncio.gather(first, second, return_exceptions=True)
        assert engine.server().committed == [IN.encode()]
        await rest(engine)
    assert told == {Executed.MAYBE}
