"""A changed login of a tenant: proven by a real login before its pools move; until then the former one goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from router.decisions.backoff import LONGEST_PAUSE_S
from router.decisions.login_breaker import OPENS_AFTER
from router.engine.control_logins import ControlLogins
from router.engine.lane_opening import LONGEST_REST_S
from router.model.errors import RouterError
from router.model.events import LoginChanged
from router.model.identity import EndpointName, Generation
from router.model.policy import PoolPolicy
from router.model.request import Access, Method, Options, ReadFrom
from router.model.topology import Login, Secret
from tests.support.builders import Engine, Recorder, make_cluster, now
from tests.support.talk import rest
from tests.support.virtual_time import VirtualClock, virtual

OLD, NEW, NEWER = (Login("acme", Secret(word)) for word in ("old", "new", "newer"))
A, B = EndpointName("a"), EndpointName("b")
WRITE, SLOW = "insert a", "select pg_sleep(3)"


@asynccontextmanager
async def engine_of(login: Login = OLD) -> AsyncIterator[Engine]:
    engine = Engine(pool=PoolPolicy(lane_idle_s=0.5, idle_s=1.0))
    engine.tenant = replace(engine.tenant, login=login)
    yield engine
    await rest(engine)


def change(engine: Engine, login: Login) -> None:
    """As a data plane does."""
    engine.change(login=login)


def used(engine: Engine) -> list[Login]:
    """Logins of the pools that requests get now, the primary's first."""
    return [engine.pools.credentials.login_of(engine.tenant, key.endpoint) for key, _ in engine.pools]


def told(engine: Engine) -> list[str]:
    return [one.problem for one in engine.events.of(LoginChanged)]


@virtual
async def test_the_pool_moves_over_once_the_new_login_is_accepted_and_what_runs_goes_on() -> None:
    async with engine_of() as engine:
        await engine.run(Method.EXECUTE, WRITE)
        slow = engine.start(engine.run(Method.EXECUTE, SLOW))
        await asyncio.sleep(0.1)
        change(engine, NEW)
        await asyncio.sleep(0.1)
        assert engine.server().logins[NEW] == 1, "the proof"
        await engine.run(Method.EXECUTE, WRITE)
        assert engine.server().logins[NEW] == 2
        assert (await slow).results
        assert used(engine) == [NEW]
        assert told(engine) == [""]
        logins = engine.server().logins.copy()
        await engine.run(Method.EXECUTE, WRITE)
        assert engine.server().logins == logins


@virtual
async def test_a_wrong_new_login_keeps_the_old_one_and_alarms() -> None:
    async with engine_of() as engine:
        await engine.run(Method.EXECUTE, WRITE)
        engine.server().refused_logins.add(NEW)
        change(engine, NEW)
        for _ in range(120):
            await engine.run(Method.EXECUTE, WRITE)
            await asyncio.sleep(1)
        assert used(engine) == [OLD]
        assert engine.server().logins[OLD] >= 1
        assert 6 <= engine.server().logins[NEW] <= 12, "tried again with growing pauses"
        (trouble,) = engine.pools.credentials.troubles()
        assert (trouble.tenant, trouble.endpoint) == ("acme", "a")
        assert trouble.problem == "the new one is refused, the former one goes on: no such password"
        assert trouble.for_s > 100
        assert set(told(engine)) == {"no such password"}
        engine.server().refused_logins.clear()
        for _ in range(2 * round(LONGEST_PAUSE_S)):
            await engine.run(Method.EXECUTE, WRITE)
            await asyncio.sleep(1)
        assert used(engine) == [NEW]
        assert told(engine)[-1] == ""
        assert not list(engine.pools.credentials.troubles())


@virtual
async def test_new_connections_are_opened_with_the_old_one_meanwhile() -> None:
    async with engine_of() as engine:
        await engine.run(Method.EXECUTE, WRITE)
        engine.server().refused_logins.add(NEW)
        change(engine, NEW)
        await asyncio.sleep(0.1)
        before = engine.server().logins[OLD]
        await asyncio.gather(*(engine.run(Method.EXECUTE, SLOW) for _ in range(3)))
        assert engine.server().logins[OLD] > before


@virtual
async def test_when_the_old_one_is_refused_and_the_new_one_works_requests_move_without_failing() -> None:
    """The configuration first, then ALTER ROLE: between the two the new one is wrong, after it the old one."""
    async with engine_of() as engine:
        await engine.run(Method.EXECUTE, WRITE)
        server = engine.server()
        server.refused_logins.add(NEW)
        change(engine, NEW)
        await engine.quiet(20)
        assert used(engine) == [OLD]
        await engine.run(Method.EXECUTE, WRITE)
        server.refused_logins = {OLD}
        began = engine.clock.now()
        slow = [engine.start(engine.run(Method.EXECUTE, SLOW)) for _ in range(3)]
        for one in slow:
            assert (await one).results
        assert engine.clock.now() - began < 4
        assert used(engine) == [NEW]


@virtual
async def test_one_that_was_wrong_is_repaired_with_the_next_request() -> None:
    """Whatever the breaker and the pool would wait for before they try again what is no longer configured."""
    async with engine_of() as engine:
        server = engine.server()
        server.refused_logins = {OLD, NEWER}
        for wrong in (OLD, NEWER):
            change(engine, wrong)
            for _ in range(OPENS_AFTER + 2):
                with pytest.raises(RouterError):
                    await engine.run(Method.EXECUTE, WRITE)
                await asyncio.sleep(LONGEST_REST_S)
        change(engine, NEW)
        began = engine.clock.now()
        await engine.run(Method.EXECUTE, WRITE)
        assert engine.clock.now() - began < 0.1
        assert used(engine) == [NEW]


@pytest.mark.parametrize("serving", [True, False])
@virtual
async def test_both_refused_is_the_login_breakers_matter(serving: bool) -> None:
    async with engine_of() as engine:
        if serving:
            pool = engine.pools.get(engine.tenant, A, Access.READ_WRITE, Generation(1))
            lane = await pool.pin(now() + 5)
        server = engine.server()
        server.refused_logins = {OLD, NEW}
        change(engine, NEW)
        await asyncio.sleep(60)
        server.logins.clear()
        for _ in range(500):
            with pytest.raises(RouterError):
                await engine.run(Method.EXECUTE, WRITE, timeout=0.02)
            await asyncio.sleep(0.001)
        # Ten seconds: the breaker's tries of the one in use, each of which may try the other; and its own pauses.
        assert server.logins.total() <= 2 * (OPENS_AFTER + 4) + 4
        server.refused_logins.clear()
        await asyncio.sleep(40)
        await engine.run(Method.EXECUTE, WRITE)
        assert used(engine) == [NEW]
        if serving:
            assert lane.lane.usable, "what was open goes on"
            pool.release(lane)


@virtual
async def test_a_tenant_without_pools_falls_back_on_its_former_login() -> None:
    async with engine_of() as engine:
        change(engine, NEW)
        engine.server().refused_logins.add(NEW)
        await engine.run(Method.EXECUTE, WRITE)
        assert used(engine) == [OLD]
        assert set(told(engine)) == {"no such password"}
        engine.server().refused_logins.clear()
        await asyncio.sleep(LONGEST_PAUSE_S)
        await engine.run(Method.EXECUTE, WRITE)
        assert used(engine) == [NEW]


@virtual
async def test_a_tenant_without_pools_begins_with_its_new_login() -> None:
    async with engine_of() as engine:
        change(engine, NEW)
        await engine.run(Method.EXECUTE, WRITE)
        assert engine.server().logins == {NEW: 1}
        assert told(engine) == []
        engine.server().refused_logins = {OLD, NEW}
        slow = (engine.run(Method.EXECUTE, SLOW) for _ in range(3))
        await asyncio.gather(*slow, return_exceptions=True)
        assert engine.server().logins[NEW] > 1
        assert engine.server().logins[OLD] == 0, "it was accepted: the former one is forgotten"


@virtual
async def test_each_endpoint_proves_it_for_itself() -> None:
    """A standby that has not replayed ALTER ROLE yet refuses what the primary accepts."""
    async with engine_of() as engine:
        read = Options(read=ReadFrom.REPLICA)
        await engine.run(Method.EXECUTE, WRITE)
        await engine.run(Method.QUERY, "select 1", options=read)
        engine.server("b").refused_logins.add(NEW)
        change(engine, NEW)
        await asyncio.sleep(0.1)
        of = engine.pools.credentials.login_of
        assert (of(engine.tenant, A), of(engine.tenant, B)) == (NEW, OLD)
        await engine.run(Method.QUERY, "select 1", options=read)
        engine.server("b").refused_logins.clear()
        await asyncio.sleep(2)
        assert of(engine.tenant, B) == NEW


@virtual
@pytest.mark.parametrize("back", [True, False])
async def test_a_further_change_takes_the_place_of_one_that_is_pending(back: bool) -> None:
    async with engine_of() as engine:
        await engine.run(Method.EXECUTE, WRITE)
        engine.server().refused_logins.add(NEW)
        change(engine, NEW)
        await asyncio.sleep(5)
        change(engine, OLD if back else NEWER)
        tries = engine.server().logins[NEW]
        await asyncio.sleep(40)
        await engine.run(Method.EXECUTE, WRITE)
        assert used(engine) == [OLD if back else NEWER]
        assert engine.server().logins[NEW] == tries
        assert not list(engine.pools.credentials.troubles())


@virtual
async def test_a_server_that_is_away_says_nothing_about_a_login() -> None:
    async with engine_of() as engine:
        await engine.run(Method.EXECUTE, WRITE)
        engine.server().connect_error = "refused"
        change(engine, NEW)
        await asyncio.sleep(5)
        assert not list(engine.pools.credentials.troubles())
        assert told(engine) == []
        engine.server().connect_error = None
        await asyncio.sleep(2)
        assert told(engine) == [""]


@virtual
@pytest.mark.parametrize("what", ["database", "role"])
async def test_another_database_or_role_is_another_user(what: str) -> None:
    async with engine_of() as engine:
        await engine.run(Method.EXECUTE, WRITE)
        engine.change(login=NEW, **{what: "other"})
        await engine.run(Method.EXECUTE, WRITE)
        assert used(engine) == [NEW]
        assert engine.server().logins[NEW] == 1


def test_the_routers_own_login_is_tried_first_when_it_is_due_and_the_former_one_otherwise() -> None:
    clock, events = VirtualClock(), Recorder()
    moment = [100.0]
    clock.now = lambda: moment[0]  # type: ignore[method-assign]
    logins, cluster = ControlLogins(clock, events), replace(make_cluster("a", "b"), control=OLD)
    assert logins.order(cluster, A) == (OLD,)
    logins.apply(cluster)
    changed = replace(cluster, control=NEW)
    logins.apply(changed)
    assert logins.order(changed, A) == (NEW, OLD)
    logins.was_refused(changed, A, NEW, "no such password")
    logins.accepted(changed, A, OLD)
    assert logins.order(cluster, A) == (OLD, NEW), "whoever still holds the former cluster, too"
    assert [(one.endpoint, one.tenant) for one in logins.troubles()] == [(A, None)]
    moment[0] += 1.0
    assert logins.order(changed, A) == (NEW, OLD)
    logins.accepted(changed, A, NEW)
    assert logins.order(changed, A) == (NEW,)
    assert logins.order(changed, B) == (NEW, OLD), "each endpoint for itself"
    assert [one.problem for one in events.of(LoginChanged)] == ["no such password", ""]
    assert not list(logins.troubles())
    logins.forget(cluster.name)
    assert logins.order(changed, B) == (NEW,)
