"""Every kind of request, cancelled at every turn of the loop: afterwards nothing is left, lent twice or harmed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any

import pytest

from router.model.errors import RouterError
from router.model.policy import ClusterPolicy, HoldPolicy, PoolPolicy, TenantPolicy
from router.model.reasons import HoldEndReason
from router.model.request import Guard, GuardNeed, Method, Options, Statement, TransactionMode
from router.model.result import Answer
from tests.support.builders import Engine, now, request
from tests.support.fake_replies import Lost, Reply
from tests.support.sweeping import Sweep, sweep
from tests.support.virtual_time import settle

Prepare = Callable[[Engine], None]
Work = Callable[[Engine], Awaitable[Any]]


async def query(engine: Engine) -> Any:
    return await engine.run(Method.QUERY, "select 1")


async def read_without_task(engine: Engine) -> Any:
    return await engine.quick_read("select 1")


async def execute(engine: Engine) -> Any:
    return await engine.run(Method.EXECUTE, "insert a")


async def batch(engine: Engine) -> Any:
    guard = Guard(0, GuardNeed.ROWS_AT_LEAST, 1)
    return await engine.run(Method.EXECUTE_BATCH, "insert a", "insert b", "insert c", guards={2: guard})


async def keyed(engine: Engine) -> Any:
    return await engine.run(Method.EXECUTE, "insert a", key="k")


async def stream(engine: Engine) -> Any:
    return await engine.stream("select g from generate_series(1, 6000) g")


async def stream_left_early(engine: Engine) -> Any:
    wanted = request(Method.STREAM_QUERY, "select g from generate_series(1, 6000) g", timeout=engine.timeout)
    async with aclosing(engine.executor.stream(engine.tenant, wanted)) as items:
        async for _ in items:
            await asyncio.sleep(0.001)
            break
    # At once, not when the garbage is collected.
    assert engine.runtime.in_flight.total() <= len(engine.register)


async def session(engine: Engine) -> Any:
    opened = await engine.sessions.open(engine.tenant, TransactionMode(), Options(), now() + engine.timeout, "s")
    try:
        await opened.run(Statement(b"insert a"), now() + engine.timeout)
        await opened.savepoint("p", now() + engine.timeout)
        with pytest.raises(RouterError):
            await opened.run(Statement(b"select 1/0"), now() + engine.timeout)
        await opened.rollback_to("p", now() + engine.timeout)
        await opened.run(Statement(b"insert b"), now() + engine.timeout)
        await opened.commit(now() + engine.timeout)
    finally:
        await opened.close()


async def session_rolled_back(engine: Engine) -> Any:
    opened = await engine.sessions.open(engine.tenant, TransactionMode(), Options(), now() + engine.timeout, "s")
    try:
        await opened.run(Statement(b"set x = 1"), now() + engine.timeout)
        await opened.rollback()
    finally:
        await opened.close()


def nothing(_: Engine) -> None: ...


def warm(engine: Engine) -> None:
    engine.server().connect_takes = 0.0


def slow_connect(engine: Engine) -> None:
    engine.server().connect_takes = 0.5


def refuses_at_first(engine: Engine) -> None:
    engine.server().connect_error = "refused"
    asyncio.get_running_loop().call_later(0.12, setattr, engine.server(), "connect_error", None)


def slow(engine: Engine) -> None:
    for sql in (b"select 1", b"insert a", b"select g from generate_series(1, 6000) g", b"COMMIT"):
        rows = tuple((b"1",) for _ in range(6000 if b"generate" in sql else 1))
        effect = sql.startswith(b"insert")
        engine.server().script[sql] = Reply(takes=0.3, rows=rows if sql.startswith(b"select") else (), effect=effect)


def ignores_cancel(engine: Engine) -> None:
    slow(engine)
    for reply in engine.server().script.values():
        assert isinstance(reply, Reply)
        reply.ignores_cancel = True


def lost_once(engine: Engine) -> None:
    for sql in (b"select 1", b"insert a", b"select g from generate_series(1, 6000) g"):
        engine.server().script[sql] = [Reply(lost=Lost.BEFORE)]


def serialization_once(engine: Engine) -> None:
    for sql in (b"select 1", b"insert a", b"select g from generate_series(1, 6000) g"):
        engine.server().script[sql] = [Reply(error="40001")]


def held(engine: Engine) -> None:
    engine.supervisor.lose_primary()
    asyncio.get_running_loop().call_later(0.2, engine.supervisor.promote, "b")


def held_twice(engine: Engine) -> None:
    held(engine)
    asyncio.get_running_loop().call_later(0.201, engine.supervisor.lose_primary)
    asyncio.get_running_loop().call_later(0.4, engine.supervisor.promote, "a")


def never_answers(engine: Engine) -> None:
    for sql in (b"select 1", b"insert a", b"select g from generate_series(1, 6000) g", b"set x = 1"):
        engine.server().script[sql] = [Reply(silent=True)]


def hurried(engine: Engine) -> None:
    """The deadline passes while the work runs, or waits."""
    slow(engine)
    engine.timeout = 0.2


def hurried_in_line(engine: Engine) -> None:
    lanes_taken(engine)
    engine.timeout = 0.2


def fenced_midway(engine: Engine) -> None:
    slow(engine)
    asyncio.get_running_loop().call_later(0.15, engine.supervisor.promote, "b")


def lanes_taken(engine: Engine) -> None:
    """Others hold all lanes of the pool for a while."""
    for _ in range(2):
        engine.start(engine.run(Method.EXECUTE, "select pg_sleep(0.3)", timeout=5.0))
        engine.start(engine.stream("select pg_sleep(0.3)", timeout=5.0))


def no_room(engine: Engine) -> None:
    """Others hold all places of the tenant for a while."""
    for _ in range(6):
        engine.start(engine.run(Method.EXECUTE, "select pg_sleep(0.3)", timeout=5.0))


def closed_room(engine: Engine) -> None:
    engine.supervisor.lose_primary()
    asyncio.get_running_loop().call_later(0.2, engine.room.close)
    asyncio.get_running_loop().call_later(0.3, engine.supervisor.promote, "b")


OTHERS = {"lanes taken": 4, "hurried in line": 4, "no room": 6}
"""Requests beside the one that is cancelled."""
WORKS: dict[str, Work] = {
    "query": query,
    "read without task": read_without_task,
    "execute": execute,
    "batch": batch,
    "keyed": keyed,
    "stream": stream,
    "stream left early": stream_left_early,
    "session": session,
    "session rolled back": session_rolled_back,
}
PLACES: dict[str, Prepare] = {
    "plain": nothing,
    "warm": warm,
    "slow connect": slow_connect,
    "refuses at first": refuses_at_first,
    "slow": slow,
    "ignores cancel": ignores_cancel,
    "lost once": lost_once,
    "serialization once": serialization_once,
    "never answers": never_answers,
    "hurried": hurried,
    "hurried in line": hurried_in_line,
    "held": held,
    "held twice": held_twice,
    "fenced midway": fenced_midway,
    "lanes taken": lanes_taken,
    "no room": no_room,
    "closed room": closed_room,
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("work", WORKS)
def test_nothing_is_left_behind(work: str, place: str) -> None:
    async def story(one: Sweep) -> None:
        policy = TenantPolicy(max_in_flight=6, max_attempts=3)
        cluster = ClusterPolicy(hold=HoldPolicy(release_start=1))
        engine = Engine(pool=PoolPolicy(max_size=2), policy=policy, cluster=cluster)
        engine.server("b").keys = engine.server().keys  # as if replicated synchronously
        PLACES[place](engine)
        ended = await one.act(WORKS[work](engine))
        assert not isinstance(ended, AssertionError), ended
        if one.hit:
            # Cancelled, unless it had ended in that very turn; then with its result or its error.
            assert not isinstance(ended, BaseException) or isinstance(ended, asyncio.CancelledError | RouterError)
        if isinstance(ended, asyncio.CancelledError):
            await settle(5)
            assert engine.room.held == 0
            assert len(engine.register) <= OTHERS.get(place, 0)
        await engine.quiet(3)
        engine.check_at_rest()
        assert engine.room.entered == sum(engine.room.ended.values())
        assert engine.room.ended[HoldEndReason.WINDOW] == 0
        engine.timeout = 5.0
        for server in engine.servers.values():
            server.script.clear()
        assert (await engine.run(Method.QUERY, "select 41")).results
        assert (await engine.run(Method.EXECUTE, "insert after")).results
        items = await engine.stream("select g from generate_series(1, 600) g")
        assert sum(one.ntuples for one in items if not isinstance(one, Answer)) == 600
        if work == "keyed":
            # Whatever became of it, the same request with its key is answered, and done once in all.
            assert (await engine.run(Method.EXECUTE, "insert a", key="k")).results
            assert [one for server in engine.servers.values() for one in server.committed].count(b"insert a") == 1
        await engine.close()
        committed = [one for server in engine.servers.values() for one in server.committed]
        assert committed.count(b"insert a") <= 1
        if work == "batch":
            whole = [text for text in committed if text != b"insert after"]
            assert whole in ([], [b"insert a", b"insert b", b"insert c"])

    assert sweep(story) > 3
