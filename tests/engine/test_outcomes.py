"""What became of a keyed write: its row's word, unless someone of this router is at work on it."""

from __future__ import annotations

import asyncio

import pytest

from router.model.errors import Code
from router.model.identity import TenantName
from router.model.policy import TenantPolicy
from router.model.request import Method, WriteOutcome
from tests.support.builders import Engine, now, request
from tests.support.fake_replies import Lost, Reply
from tests.support.talk import refusal, rest
from tests.support.virtual_time import virtual

E = Method.EXECUTE


async def outcome(engine: Engine, key: str = "k") -> WriteOutcome:
    return (await engine.outcomes.of_key(engine.tenant, key, now() + 5, "")).outcome


@virtual
async def test_what_its_row_says() -> None:
    engine = Engine()
    assert await outcome(engine) is WriteOutcome.NOT_FOUND
    engine.server().script[b"insert a"] = [Reply(takes=0.3, tag="INSERT 0 1", affected=1, effect=True)]
    writing = engine.start(engine.run(E, "insert a", key="k"))
    await asyncio.sleep(0.1)
    assert await outcome(engine) is WriteOutcome.RUNNING
    await writing
    found = await engine.outcomes.of_key(engine.tenant, "k", now() + 5, "")
    assert (found.outcome, found.command_tags) == (WriteOutcome.COMMITTED, ("INSERT 0 1",))
    assert await outcome(engine, "other") is WriteOutcome.NOT_FOUND
    await rest(engine)


@virtual
async def test_a_write_between_two_attempts_has_no_row_and_is_running() -> None:
    engine = Engine()
    engine.server().script[b"BEGIN READ WRITE"] = [Reply(lost=Lost.BEFORE)]
    writing = engine.start(engine.run(E, "insert a", key="k"))
    await asyncio.sleep(0.02)
    assert engine.server().keys.rows == {}
    assert engine.server().running() == []
    assert await outcome(engine) is WriteOutcome.RUNNING
    await writing
    assert await outcome(engine) is WriteOutcome.COMMITTED
    await rest(engine)


@pytest.mark.parametrize("told", [WriteOutcome.RUNNING, WriteOutcome.UNKNOWN, WriteOutcome.NOT_FOUND])
@virtual
async def test_the_other_processes_are_asked_before_the_row(told: WriteOutcome) -> None:
    engine = Engine()
    asked: list[tuple[str, str, str]] = []

    async def elsewhere(tenant: TenantName, key: str, request_id: str) -> WriteOutcome:
        asked.append((tenant, key, request_id))
        assert not any(text.startswith(b"SELECT request_hash") for text in engine.server().seen)
        return told

    engine.outcomes.ask_elsewhere(elsewhere)
    assert await outcome(engine) is told
    await engine.run(E, "insert a", key="k")
    engine.server().seen.clear()
    assert await outcome(engine) is WriteOutcome.COMMITTED, "the row knows better"
    engine.server().seen.clear()
    found = await engine.outcomes.of_request(engine.tenant, "an-id", now() + 5)
    running = told is WriteOutcome.RUNNING
    assert found.outcome is (WriteOutcome.RUNNING if running else WriteOutcome.UNKNOWN), "without a key nobody can tell"
    assert asked == [("acme", "k", ""), ("acme", "k", ""), ("acme", "", "an-id")]
    await rest(engine)


@virtual
async def test_a_write_that_waits_for_its_turn_is_running_and_only_for_its_tenant() -> None:
    engine = Engine(policy=TenantPolicy(max_in_flight=2))
    waiting = request(E, "insert a", key="k", request_id="an-id")
    call = engine.register.enter(engine.tenant, waiting)
    assert await outcome(engine) is WriteOutcome.RUNNING
    assert (await engine.outcomes.of_request(engine.tenant, "an-id", now() + 5)).outcome is WriteOutcome.RUNNING
    assert engine.outcomes.here(TenantName("other"), "k", "") is WriteOutcome.NOT_FOUND
    engine.register.finish(call, None)
    assert await outcome(engine) is WriteOutcome.NOT_FOUND
    await rest(engine)


@virtual
async def test_a_process_that_hangs_is_not_waited_for_beyond_the_deadline() -> None:
    engine = Engine()

    async def elsewhere(tenant: TenantName, key: str, request_id: str) -> WriteOutcome:
        await asyncio.sleep(1.0)
        return WriteOutcome.NOT_FOUND

    engine.outcomes.ask_elsewhere(elsewhere)
    began = now()
    error = await refusal(engine.outcomes.of_key(engine.tenant, "k", now() + 0.2, ""))
    assert error.code is Code.DEADLINE_EXCEEDED
    assert now() - began < 0.3
    began = now()
    found = await engine.outcomes.of_request(engine.tenant, "an-id", now() + 0.2)
    assert (found.outcome, now() - began < 0.3) == (WriteOutcome.UNKNOWN, True)
    await rest(engine)
