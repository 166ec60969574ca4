"""A tenant becomes another one while requests wait: what was judged for the former never runs as the new one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from router.decisions.latencies import YOUNG
from router.model.errors import Code, Executed
from router.model.identity import ClusterName
from router.model.policy import PoolPolicy, TenantPolicy
from router.model.reasons import RefuseReason
from router.model.request import Access, Method, Options, ReadFrom
from router.model.topology import IsolationMode, Login, TenantChanges
from tests.support.builders import Engine, now
from tests.support.fake_replies import Reply
from tests.support.talk import Talk, refusal, rest
from tests.support.virtual_time import virtual

ESCAPE = "reset role"
SHARED = Login("shared")
BEHIND_A_ROLE: dict[str, Any] = {
    "isolation": IsolationMode.REGISTERED, "role": "acme_rows", "login": SHARED, "statements": {"one": "select 1"},
}  # fmt: skip
OTHERS: dict[str, dict[str, Any]] = {
    "isolation": BEHIND_A_ROLE,
    "database": {"database": "elsewhere"},
    "cluster": {"cluster": ClusterName("other")},
}


async def nothing() -> AsyncIterator[bytes]:
    yield b"1\n"


WAYS: dict[str, Callable[[Engine], Awaitable[Any]]] = {
    "query": lambda engine: engine.run(Method.QUERY, ESCAPE),
    "execute": lambda engine: engine.run(Method.EXECUTE, ESCAPE),
    "batch": lambda engine: engine.run(Method.EXECUTE_BATCH, ESCAPE),
    "with a key": lambda engine: engine.run(Method.EXECUTE, ESCAPE, key="k"),
    "stream": lambda engine: engine.stream(ESCAPE),
    "copy out": lambda engine: engine.copy_out(f"copy ({ESCAPE}) to stdout"),
    "copy in": lambda engine: engine.copy_in("copy t from stdin", nothing()),
    "outcome": lambda engine: engine.outcomes.of_key(engine.tenant, "k", now() + 5, "id"),
}


@pytest.mark.parametrize("what", OTHERS)
@pytest.mark.parametrize("way", WAYS)
@virtual
async def test_what_waits_for_admission_or_a_primary_is_not_run_as_the_tenant_of_now(way: str, what: str) -> None:
    engine = Engine(policy=TenantPolicy(max_in_flight=1))
    engine.supervisor.lose_primary()
    held = engine.start(WAYS[way](engine))
    await asyncio.sleep(0.1)
    queued = engine.start(WAYS[way](engine))
    await asyncio.sleep(0.1)
    engine.change(**OTHERS[what])
    engine.supervisor.promote("a")
    began = now()
    for one in (held, queued):
        error = await refusal(one)
        assert (error.code, error.reason) == (Code.UNAVAILABLE, RefuseReason.TENANT_CHANGED)
        assert (error.executed, error.retry_after_s) == (Executed.NO, 0.05)
    assert now() - began < 0.1
    assert engine.server().seen == []
    assert engine.server().connects == 0
    await rest(engine)


@virtual
async def test_a_transaction_that_has_begun_nothing_yet_ends() -> None:
    engine = Engine()
    talk = await Talk.begin(engine)
    engine.change(**BEHIND_A_ROLE)
    error = await refusal(talk.run(ESCAPE))
    assert (error.reason, error.executed) == (RefuseReason.TENANT_CHANGED, Executed.NO)
    assert await refusal(talk.commit()) is error, "it would have committed nothing"
    assert engine.server().seen == []
    assert engine.server().logins[SHARED] == 0
    await rest(engine)


@virtual
async def test_a_transaction_on_a_connection_of_before_goes_on_there() -> None:
    engine = Engine()
    talk = await Talk.begin(engine)
    await talk.run("insert a")
    engine.change(**BEHIND_A_ROLE)
    await talk.run("insert b")
    await talk.commit()
    assert engine.server().committed == [b"insert a", b"insert b"]
    assert engine.server().logins[SHARED] == 0
    await rest(engine)


@virtual
async def test_a_read_is_not_hedged_as_the_tenant_of_now() -> None:
    engine = Engine("a", "b", "c")
    options = Options(read=ReadFrom.REPLICA, hedge=True)
    for server in engine.servers.values():
        server.script[b"select 1"] = Reply(takes=0.005, rows=((b"1",),))
    for _ in range(YOUNG + 20):
        await engine.run(Method.QUERY, "select 1", options=options)
    for server in engine.servers.values():
        server.script[b"select 1"] = Reply(takes=0.1, rows=((b"1",),))
    before = sum(server.seen.count(b"select 1") for server in engine.servers.values())
    reading = engine.start(engine.run(Method.QUERY, "select 1", options=options))
    await asyncio.sleep(0.002)
    engine.change(**BEHIND_A_ROLE)
    assert not (await reading).receipt.hedged
    assert sum(server.seen.count(b"select 1") for server in engine.servers.values()) == before + 1
    await rest(engine)


@virtual
async def test_another_password_or_other_limits_are_no_other_tenant() -> None:
    engine = Engine(policy=TenantPolicy(max_in_flight=1))
    engine.supervisor.lose_primary()
    talk = await Talk.begin(engine)
    works = (engine.run(Method.QUERY, "select 1"), engine.run(Method.EXECUTE, "insert a"), WAYS["copy in"](engine))
    running = [engine.start(work) for work in works]
    await asyncio.sleep(0.1)
    engine.change(login=Login("another"), pool=PoolPolicy(max_size=2))
    engine.change(policy=replace(engine.tenant.policy, max_in_flight=2, idle_in_transaction_s=9.0))
    engine.supervisor.promote("a")
    await asyncio.gather(*running)
    await talk.run("insert a")
    await talk.commit()
    await rest(engine)


@virtual
async def test_who_comes_after_the_change_does_not_notice_it() -> None:
    engine = Engine()
    engine.take(TenantChanges((replace(engine.tenant, **BEHIND_A_ROLE),)))
    # On its way since before: it is judged by what the tenant is now.
    assert (await engine.run(Method.QUERY, "@one")).results
    assert (await engine.quick_read("@one")).results
    assert (await refusal(engine.run(Method.EXECUTE, ESCAPE))).reason is RefuseReason.NOT_REGISTERED
    assert {key.access for key, _ in engine.pools} == {Access.READ_ONLY}
    assert set(engine.server().logins) | set(engine.server("b").logins) == {SHARED}
    await rest(engine)
