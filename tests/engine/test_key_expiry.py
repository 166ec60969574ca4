"""Old idempotency keys: deleted beside the requests, of every configured tenant, for next to nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from router.decisions.keys import PURGE_ROWS
from router.engine.key_expiry import MOST_BETWEEN_S, ROUND_S, KeyExpiry
from router.model.identity import EndpointName, TenantName
from router.model.policy import TenantPolicy
from router.model.request import Method
from router.model.topology import Tenant
from tests.support.builders import Engine, tenant
from tests.support.talk import rest
from tests.support.virtual_time import virtual

E = Method.EXECUTE


def expiry_of(
    engine: Engine,
    configured: dict[TenantName, Tenant] | None = None,
    has_room: Callable[[EndpointName], bool] = lambda _: True,
) -> KeyExpiry:
    tenants = {engine.tenant.name: engine.tenant} if configured is None else configured
    return KeyExpiry(
        engine.tenants, lambda: tenants, engine.clusters, engine.pools, has_room, engine.clock, engine.chance
    )


async def end(task: asyncio.Task[None]) -> None:
    assert not task.done()
    task.cancel()
    await asyncio.wait({task})


def many(count: int) -> dict[TenantName, Tenant]:
    return {TenantName(f"t{number}"): tenant(f"t{number}") for number in range(count)}


@virtual
async def test_old_keys_are_deleted_some_at_a_time_while_nobody_waits() -> None:
    engine = Engine(policy=TenantPolicy(key_age_s=60.0))
    running = engine.start(expiry_of(engine).run())
    await engine.run(E, "insert a")
    await asyncio.sleep(200)
    assert engine.server().keys.purges == [], "this tenant has no keys"
    await engine.run(E, "insert a", key="k")
    engine.server().keys.old = 2 * PURGE_ROWS + 5
    await asyncio.sleep(100)
    assert engine.server().keys.purges[:4] == [PURGE_ROWS, PURGE_ROWS, 5, 0][: len(engine.server().keys.purges)]
    assert engine.server().keys.old == 0
    engine.supervisor.lose_primary()
    before = len(engine.server().keys.purges)
    await asyncio.sleep(200)
    assert len(engine.server().keys.purges) == before
    engine.supervisor.promote("a")
    engine.server().kill_all()
    await asyncio.sleep(200)
    await end(running)
    await rest(engine)


@virtual
async def test_a_tenant_that_sends_nothing_is_visited_and_its_connection_closed() -> None:
    engine = Engine()
    engine.server().keys.old = PURGE_ROWS + 5
    visiting = engine.start(expiry_of(engine).visit())
    await asyncio.sleep(2 * MOST_BETWEEN_S)
    assert engine.server().keys.purges == [PURGE_ROWS, 5]
    assert engine.server().keys.old == 0
    assert list(engine.pools) == []
    assert engine.server().backends == []
    await asyncio.sleep(ROUND_S / 2)
    assert len(engine.server().keys.purges) == 2, "once a round"
    await asyncio.sleep(ROUND_S)
    assert len(engine.server().keys.purges) == 3
    await end(visiting)
    await rest(engine)


@virtual
async def test_many_tenants_are_visited_one_at_a_time_over_the_whole_round() -> None:
    engine = Engine()
    most = 0

    def has_room(_: EndpointName) -> bool:
        nonlocal most
        most = max(most, len(engine.server().backends) + 1)
        return True

    count = 2 * round(ROUND_S / MOST_BETWEEN_S)
    visiting = engine.start(expiry_of(engine, many(count), has_room).visit())
    await asyncio.sleep(ROUND_S / 8)
    assert len(engine.server().keys.purges) == pytest.approx(count / 8, rel=0.01)
    assert most == 1
    assert len(engine.pools) <= 1
    assert engine.tenants.known == set(), "a visit leaves no trace of a tenant"
    await end(visiting)
    await rest(engine)


@pytest.mark.parametrize("fault", ["missing", "forbidden"])
@virtual
async def test_where_there_is_no_table_one_visit_is_enough(fault: str) -> None:
    engine = Engine()
    setattr(engine.server().keys, fault, True)
    visiting = engine.start(expiry_of(engine).visit())
    await asyncio.sleep(ROUND_S / 2)
    assert sum(b"idempotency" in text for text in engine.server().seen) == 1
    await asyncio.sleep(2 * ROUND_S)
    assert sum(b"idempotency" in text for text in engine.server().seen) == 1
    await end(visiting)
    await rest(engine)


@virtual
async def test_nobody_is_visited_where_there_is_no_room_no_primary_or_no_need() -> None:
    engine = Engine()
    configured, room = many(1), False
    visiting = engine.start(expiry_of(engine, configured, lambda _: room).visit())
    await asyncio.sleep(ROUND_S + MOST_BETWEEN_S)
    assert engine.server().seen == []
    room = True
    engine.supervisor.lose_primary()
    await asyncio.sleep(ROUND_S)
    assert engine.server().seen == []
    engine.supervisor.promote("a")
    configured.clear()
    configured[engine.tenant.name] = engine.tenant
    await engine.run(E, "insert a", key="k")  # from now on it is seen to every minute
    await asyncio.sleep(2 * ROUND_S)
    assert engine.server().keys.purges == []
    await end(visiting)
    await rest(engine)


@virtual
async def test_a_server_that_refuses_is_no_end_of_it() -> None:
    engine = Engine()
    engine.server().connect_error = "28P01"
    visiting = engine.start(expiry_of(engine).visit())
    await asyncio.sleep(ROUND_S)
    engine.server().connect_error = None
    await asyncio.sleep(ROUND_S)
    assert engine.server().keys.purges == [0]
    await end(visiting)
    await rest(engine)
