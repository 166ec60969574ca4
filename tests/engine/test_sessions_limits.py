"""Interactive transactions: limits of age, idleness and number, misuse, and what they leave on a connection."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from router.model.errors import Code, Executed
from router.model.events import Outcome
from router.model.policy import PoolPolicy, TenantPolicy
from router.model.reasons import CloseReason, RefuseReason
from router.model.request import Method, ReadFrom
from tests.support.builders import Engine, now
from tests.support.fake_replies import Reply
from tests.support.talk import Talk, refusal, rest
from tests.support.virtual_time import settle, virtual

# --- limits --------------------------------------------------------------------------------------------------------


@virtual
async def test_an_idle_session_expires_loudly() -> None:
    engine = Engine(policy=TenantPolicy(idle_in_transaction_s=2.0))
    talk = await Talk.begin(engine)
    for _ in range(3):
        await talk.run("insert a")
        await engine.quiet(1.9)
    await engine.quiet(0.2)
    error = await refusal(talk.commit())
    assert (error.code, error.reason, error.executed) == (
        Code.ABORTED, RefuseReason.TRANSACTION_EXPIRED, Executed.ROLLED_BACK)
    assert "idle_in_transaction_s" in error.message
    assert engine.server().committed == []
    await rest(engine)


@virtual
async def test_an_old_session_expires_loudly_also_while_a_statement_runs() -> None:
    engine = Engine(policy=TenantPolicy(max_transaction_s=2.0))
    for sql in ("select pg_sleep(60)", "insert stuck"):
        engine.server().script[b"insert stuck"] = Reply(silent=True, ignores_cancel=True)
        talk = await Talk.begin(engine)
        await talk.run("insert a")
        before = now()
        error = await refusal(talk.run(sql, 70))
        assert error.reason is RefuseReason.TRANSACTION_EXPIRED
        assert now() - before < 2.2
        assert await refusal(talk.commit()) is error
    assert engine.server().committed == []
    await rest(engine)


@pytest.mark.parametrize("waits", ["hold", "connect"])
@virtual
async def test_a_session_that_expires_while_it_waits_takes_no_connection_later(waits: str) -> None:
    engine = Engine(policy=TenantPolicy(max_transaction_s=0.5))
    if waits == "hold":
        engine.supervisor.lose_primary()
        asyncio.get_running_loop().call_later(0.6, engine.supervisor.promote, "b")
    else:
        engine.server().connect_takes = 0.6
    talk = await Talk.begin(engine)
    assert (await refusal(talk.run("insert a"))).reason is RefuseReason.TRANSACTION_EXPIRED
    await engine.quiet(1)
    assert (await refusal(talk.commit())).reason is RefuseReason.TRANSACTION_EXPIRED
    await rest(engine)


@virtual
async def test_a_commit_on_its_way_does_not_expire() -> None:
    engine = Engine(policy=TenantPolicy(max_transaction_s=1.0))
    engine.server().script[b"COMMIT"] = [Reply(takes=2.0)]
    talk = await Talk.begin(engine)
    await talk.run("insert a")
    await talk.commit()
    assert engine.server().committed == [b"insert a"]
    assert engine.register.counts(engine.tenant.name) == {Outcome.SERVED: 1}
    await rest(engine)


@virtual
async def test_open_transactions_are_bounded_per_tenant_also_over_a_reload() -> None:
    engine = Engine(policy=TenantPolicy(max_transactions=2))
    talks = [await Talk.begin(engine) for _ in range(2)]
    error = await refusal(Talk.begin(engine))
    assert (error.code, error.reason, error.numbers["limit"]) == (Code.RESOURCE_EXHAUSTED, RefuseReason.QUOTA, 2)
    engine.tenant = replace(engine.tenant, policy=TenantPolicy(max_transactions=3))
    talks.append(await Talk.begin(engine))
    await refusal(Talk.begin(engine))
    for talk in talks:
        await talk.session.close()
    assert engine.runtime.transactions == 0
    assert engine.register.counts(engine.tenant.name)[Outcome.REFUSED] == 2
    await rest(engine)


@virtual
async def test_a_draining_router_begins_none_and_finishes_those_it_has() -> None:
    engine = Engine()
    talk = await Talk.begin(engine)
    await talk.run("insert a")
    engine.sessions.drain()
    assert (await refusal(Talk.begin(engine))).reason is RefuseReason.DRAINING
    await talk.commit()
    await rest(engine)


# --- misuse and session state --------------------------------------------------------------------------------------


@virtual
async def test_transaction_control_as_a_statement_is_refused() -> None:
    engine = Engine()
    talk = await Talk.begin(engine)
    for sql in ("commit", "rollback", "begin"):
        assert (await refusal(talk.run(sql))).reason is RefuseReason.TRANSACTION_CONTROL
    await talk.run("insert a")
    await talk.commit()
    await rest(engine)


@virtual
async def test_a_statement_that_ends_the_transaction_all_the_same_ends_the_session() -> None:
    engine = Engine()
    talk = await Talk.begin(engine)
    await talk.run("insert a")
    engine.sessions.inspector.inspect = lambda sql: type(engine.sessions.inspector)().inspect(b"x")  # type: ignore[method-assign]
    error = await refusal(talk.run("ROLLBACK"))
    assert error.reason is RefuseReason.TRANSACTION_MISUSE
    assert (await refusal(talk.commit())).reason is RefuseReason.TRANSACTION_MISUSE
    await rest(engine)


@virtual
async def test_a_session_does_one_thing_at_a_time() -> None:
    engine = Engine()
    talk = await Talk.begin(engine)
    running = engine.start(talk.run("select pg_sleep(1)"))
    await settle()
    assert (await refusal(talk.run("insert a"))).reason is RefuseReason.TRANSACTION_MISUSE
    await running
    await talk.commit()
    await rest(engine)


@pytest.mark.parametrize("reply", [Reply(), Reply(error="22012")])
@pytest.mark.parametrize("discarded", [True, False])
@virtual
async def test_what_changes_session_state_leaves_nothing_also_when_it_failed(reply: Reply, discarded: bool) -> None:
    engine = Engine("a", pool=PoolPolicy(max_size=1))
    if not discarded:
        engine.server().script[b"DISCARD ALL"] = Reply(error="53200")
    for first in (True, False):
        talk = await Talk.begin(engine)
        engine.server().script[b"set x = 1"] = [reply]
        if not first:
            await talk.run("insert a")
        if reply.error:
            await refusal(talk.run("set x = 1"))
        else:
            await talk.run("set x = 1")
        await talk.session.rollback()
    (inner,) = engine.inner_pools()
    assert inner.destroyed == ({} if discarded else {CloseReason.TAINTED: 2})
    assert engine.server().seen.count(b"DISCARD ALL") == 2
    assert engine.server().committed == []
    await rest(engine)


@virtual
async def test_a_read_only_transaction_may_run_on_a_replica() -> None:
    engine = Engine()
    talk = await Talk.begin(engine, read_only=True, read=ReadFrom.REPLICA)
    await talk.run("select 1")
    assert talk.session.receipt().endpoint == "b"
    assert engine.runtime.in_flight["b"] == 1
    await talk.commit()
    assert engine.server("b").seen[0] == b"BEGIN READ ONLY"
    await rest(engine)


@virtual
async def test_sessions_do_not_disturb_requests() -> None:
    engine = Engine("a", pool=PoolPolicy(max_size=2))
    talk = await Talk.begin(engine)
    await talk.run("insert mine")
    await asyncio.gather(*(engine.run(Method.EXECUTE, "insert other") for _ in range(10)))
    await talk.session.rollback()
    assert engine.server().committed == [b"insert other"] * 10
    await rest(engine)
