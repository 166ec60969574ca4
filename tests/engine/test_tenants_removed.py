"""A tenant leaves the configuration while its requests are on their way: nothing of it comes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from router.engine.directory import removed
from router.engine.key_expiry import MOST_BETWEEN_S, ROUND_S, KeyExpiry
from router.model.errors import Code, Executed
from router.model.events import Outcome
from router.model.policy import PoolPolicy, TenantPolicy
from router.model.reasons import RefuseReason
from router.model.request import Method, Request
from router.model.topology import TenantChanges
from tests.support.builders import Engine, now
from tests.support.talk import Talk, refusal, rest
from tests.support.virtual_time import virtual


async def nothing() -> AsyncIterator[bytes]:
    yield b"1\n"


async def in_session(engine: Engine) -> None:
    await (await Talk.begin(engine)).run("insert a")


WAYS: dict[str, Callable[[Engine], Awaitable[Any]]] = {
    "query": lambda engine: engine.run(Method.QUERY, "select 1"),
    "quick query": lambda engine: engine.quick_read("select 1"),
    "execute": lambda engine: engine.run(Method.EXECUTE, "insert a"),
    "with a key": lambda engine: engine.run(Method.EXECUTE, "insert a", key="k"),
    "stream": lambda engine: engine.stream("select 1"),
    "copy out": lambda engine: engine.copy_out("copy (select 1) to stdout"),
    "copy in": lambda engine: engine.copy_in("copy t from stdin", nothing(), key="k"),
    "outcome": lambda engine: engine.outcomes.of_key(engine.tenant, "k", now() + 5, "id"),
    "transaction": in_session,
}


def remove(engine: Engine) -> None:
    engine.take(TenantChanges(removed=(engine.tenant.name,)))


def expiry_of(engine: Engine) -> KeyExpiry:
    def configured() -> dict[Any, Any]:
        return {one.name: one for one in engine.directory}

    parts = (engine.clusters, engine.pools, lambda _: True, engine.clock, engine.chance)
    return KeyExpiry(engine.tenants, configured, *parts)


async def end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})


@pytest.mark.parametrize("copies", [False, True])
@virtual
async def test_a_keyed_write_that_gets_its_lane_late_leaves_no_tenant_whose_keys_are_seen_to(copies: bool) -> None:
    engine = Engine(pool=PoolPolicy(max_size=1), policy=TenantPolicy(max_in_flight=1 if copies else 10))
    expiring = engine.start(expiry_of(engine).run())
    first = engine.start(engine.run(Method.EXECUTE, "select pg_sleep(2)"))
    await asyncio.sleep(0.1)
    second = engine.start(WAYS["copy in" if copies else "with a key"](engine))
    await asyncio.sleep(0.1)
    remove(engine)
    await first
    if copies:
        assert (await refusal(second)).reason is RefuseReason.UNAUTHENTICATED, "it waited for admission"
    else:
        assert (await second).results, "it waited for a lane that was its own already"
    connects = engine.server().connects
    await asyncio.sleep(300)
    assert engine.tenants.known == set()
    assert len(engine.pools) == 0
    assert engine.server().connects == connects
    assert engine.server().backends == []
    await end(expiring)
    await rest(engine)


@pytest.mark.parametrize("way", WAYS)
@virtual
async def test_what_waits_for_a_primary_is_refused(way: str) -> None:
    engine = Engine()
    engine.supervisor.lose_primary()
    held = engine.start(WAYS[way](engine))
    await asyncio.sleep(0.1)
    remove(engine)
    engine.supervisor.promote("b")
    error = await refusal(held)
    assert (error.code, error.reason, error.executed) == (
        Code.UNAUTHENTICATED, RefuseReason.UNAUTHENTICATED, Executed.NO)
    assert engine.tenants.known == set()
    assert len(engine.pools) == 0
    assert [server.connects for server in engine.servers.values()] == [0, 0]
    await rest(engine)


@pytest.mark.parametrize("way", WAYS)
@virtual
async def test_who_comes_late_is_refused_and_brings_nothing_back(way: str) -> None:
    """Proved before the removal, as the rest of a message of many calls is."""
    engine = Engine()
    await engine.run(Method.EXECUTE, "insert a")
    remove(engine)
    assert (await refusal(WAYS[way](engine))).reason is RefuseReason.UNAUTHENTICATED
    assert engine.tenants.known == engine.register.known == set()
    assert len(engine.pools) == 0
    await rest(engine)


@virtual
async def test_the_counts_of_a_removed_tenant_are_forgotten_also_those_of_what_still_ran() -> None:
    engine = Engine()
    await engine.run(Method.EXECUTE, "insert a")
    running = engine.start(engine.run(Method.EXECUTE, "select pg_sleep(1)"))
    await asyncio.sleep(0.1)
    remove(engine)
    assert engine.register.known == set()
    assert (await running).results
    engine.executor.refused(engine.tenant.name, Method.QUERY, removed(engine.tenant.name))
    assert engine.register.known == set()
    engine.tenant = engine.tenant
    await engine.run(Method.EXECUTE, "insert a")
    assert engine.register.counts(engine.tenant.name) == {Outcome.SERVED: 1}
    await rest(engine)


@virtual
async def test_a_listener_that_comes_late_is_refused() -> None:
    engine = Engine()
    remove(engine)
    opening = engine.listeners.open(engine.tenant, Request(Method.LISTEN, (), now() + 5), ["c"])
    assert (await refusal(opening)).reason is RefuseReason.UNAUTHENTICATED
    assert engine.tenants.known == set()
    await rest(engine)


@virtual
async def test_a_tenant_that_comes_back_is_visited_again_where_it_had_no_table_for_keys() -> None:
    engine = Engine()
    engine.server().keys.missing = True
    visiting = engine.start(expiry_of(engine).visit())
    await asyncio.sleep(2 * MOST_BETWEEN_S)
    asked = len(engine.server().seen)
    assert asked
    remove(engine)
    await asyncio.sleep(ROUND_S)
    engine.server().keys.missing = False
    engine.tenant = engine.tenant
    await asyncio.sleep(ROUND_S)
    assert engine.server().keys.purges == [0]
    await end(visiting)
    await rest(engine)
