"""Copies, cancelled at every turn of the loop: nothing is left behind, and a CopyIn is done whole or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import pytest

from router.model.errors import RouterError
from router.model.policy import ClusterPolicy, HoldPolicy, PoolPolicy, TenantPolicy
from router.model.request import CancelOutcome, Method
from tests.engine.test_cancellation import (
    OTHERS,
    Prepare,
    closed_room,
    fenced_midway,
    held,
    held_twice,
    lanes_taken,
    no_room,
    nothing,
    refuses_at_first,
    slow_connect,
)
from tests.support.builders import Engine, request
from tests.support.fake_replies import Lost, Reply
from tests.support.sweeping import Sweep, sweep
from tests.support.virtual_time import settle

OUT, IN = b"copy t to stdout", b"copy t from stdin"
PIECES = tuple((b"piece %d\n" % n,) for n in range(12))
Work = Callable[[Engine], Awaitable[Any]]


async def source() -> AsyncGenerator[bytes, None]:
    for n in range(3):
        await asyncio.sleep(0.001)
        yield b"line %d\n" % n


async def copy_out(engine: Engine) -> Any:
    return await engine.copy_out(OUT.decode())


async def copy_out_left_early(engine: Engine) -> Any:
    asked = request(Method.COPY_OUT, OUT.decode(), timeout=engine.timeout)
    async with aclosing(engine.copies.copy_out(engine.tenant, asked)) as items:
        async for item in items:
            if isinstance(item, bytes):
                await asyncio.sleep(0.001)
                break
    assert engine.runtime.in_flight.total() <= len(engine.register)


async def copy_in(engine: Engine) -> Any:
    async with aclosing(source()) as given:  # as the RPC does; it must not be in use any more then
        return await engine.copy_in(IN.decode(), given, request_id="copy")


def script(engine: Engine, **reply: Any) -> None:
    for text in (OUT, IN):
        rows = PIECES if text is OUT else ()
        engine.server().script[text] = Reply(rows=rows, **reply)


def slow(engine: Engine) -> None:
    script(engine, takes=0.3)
    engine.server().script[b"finish " + IN] = Reply(takes=0.3, effect=True)


def lost_once(engine: Engine) -> None:
    for text in (OUT, IN):
        engine.server().script[text] = [Reply(lost=Lost.BEFORE)]


def stalls(engine: Engine) -> None:
    engine.server().copy_stalls = True
    engine.timeout = 0.2


def hurried(engine: Engine) -> None:
    slow(engine)
    engine.timeout = 0.2


def ignores_cancel(engine: Engine) -> None:
    script(engine, takes=0.3, ignores_cancel=True)


def refused_in_the_end(engine: Engine) -> None:
    engine.server().script[b"finish " + IN] = Reply(error="23505")


PLACES: dict[str, Prepare] = {
    "plain": nothing,
    "slow connect": slow_connect,
    "refuses at first": refuses_at_first,
    "slow": slow,
    "lost once": lost_once,
    "stalls": stalls,
    "hurried": hurried,
    "ignores cancel": ignores_cancel,
    "refused in the end": refused_in_the_end,
    "held": held,
    "held twice": held_twice,
    "fenced midway": fenced_midway,
    "lanes taken": lanes_taken,
    "no room": no_room,
    "closed room": closed_room,
}
WORKS: dict[str, Work] = {"out": copy_out, "out left early": copy_out_left_early, "in": copy_in}


def make_engine() -> Engine:
    policy = TenantPolicy(max_in_flight=6, max_attempts=3)
    engine = Engine(pool=PoolPolicy(max_size=2), policy=policy, cluster=ClusterPolicy(hold=HoldPolicy(release_start=1)))
    for server in engine.servers.values():
        server.script[OUT] = Reply(rows=PIECES)
    return engine


async def check_nothing_left(engine: Engine) -> list[bytes]:
    """At rest, of use to the next one; what was committed."""
    await engine.quiet(3)
    engine.check_at_rest()
    engine.timeout = 5.0
    for server in engine.servers.values():
        server.script.clear()
        server.copy_stalls = False
    assert (await engine.run(Method.QUERY, "select 41")).results
    assert (await engine.run(Method.EXECUTE, "insert after")).results
    await engine.close()
    return [one for server in engine.servers.values() for one in server.committed if one != b"insert after"]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("work", WORKS)
def test_nothing_is_left_behind(work: str, place: str) -> None:
    async def story(one: Sweep) -> None:
        engine = make_engine()
        PLACES[place](engine)
        ended = await one.act(WORKS[work](engine))
        assert not isinstance(ended, AssertionError), ended
        if one.hit:
            assert not isinstance(ended, BaseException) or isinstance(ended, asyncio.CancelledError | RouterError)
        if isinstance(ended, asyncio.CancelledError):
            await settle(5)
            assert engine.room.held == 0
            assert len(engine.register) <= OTHERS.get(place, 0)
        committed = await check_nothing_left(engine)
        assert committed.count(IN) <= 1
        if not isinstance(ended, BaseException) and work == "in":
            assert committed.count(IN) == 1

    assert sweep(story) > 3


def slow_commit(engine: Engine) -> None:
    engine.server().script[b"COMMIT"] = [Reply(takes=0.3)]


def lost_commit(engine: Engine) -> None:
    engine.server().script[b"COMMIT"] = [Reply(takes=0.05, lost=Lost.AFTER)]


KEYED = {
    name: PLACES[name] for name in ("plain", "slow", "lost once", "hurried", "refused in the end", "lanes taken")
} | {"slow commit": slow_commit, "lost commit": lost_commit}


@pytest.mark.parametrize("place", KEYED)
def test_with_a_key_it_is_done_once_in_all(place: str) -> None:
    """Whatever became of it: the same with its key is answered."""

    async def story(one: Sweep) -> None:
        engine = make_engine()
        KEYED[place](engine)
        ended = await one.act(engine.copy_in(IN.decode(), source(), key="k"))
        await engine.quiet(3)
        engine.check_at_rest()
        for server in engine.servers.values():
            server.script.clear()
        engine.timeout = 5.0
        again = await engine.copy_in(IN.decode(), source(), key="k")
        assert isinstance(ended, BaseException) or again.receipt.replayed
        assert again.size_bytes == 21
        assert (await check_nothing_left(engine)).count(IN) == 1

    assert sweep(story) > 3


@pytest.mark.parametrize("place", ["plain", "slow", "held", "lanes taken"])
def test_cancelled_by_its_id_at_every_turn(place: str) -> None:
    """CANCELLING means that it is undone; NOT_CANCELLABLE that it went on."""

    async def story(one: Sweep) -> None:
        engine = make_engine()
        PLACES[place](engine)
        told: list[CancelOutcome] = []
        ended = await one.act(
            copy_in(engine), lambda: told.append(engine.executor.cancel(engine.tenant.name, "copy"))
        )
        committed = await check_nothing_left(engine)
        if told == [CancelOutcome.CANCELLING]:
            assert isinstance(ended, RouterError)
            assert IN not in committed
        else:
            assert not isinstance(ended, BaseException), ended
            assert committed.count(IN) == 1

    assert sweep(story) > 3
