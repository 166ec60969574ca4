"""A cluster leaves the configuration while its writes run: they are answered for what PostgreSQL said, nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from router.model.errors import Code
from router.model.events import Outcome
from router.model.policy import CommitWait, TenantPolicy
from router.model.request import Method, WriteOutcome
from router.model.result import Durability
from tests.support.builders import Engine, now
from tests.support.fake_cluster import MAIN
from tests.support.fake_replies import Reply
from tests.support.talk import Talk, refusal, rest
from tests.support.virtual_time import virtual

IN = "copy t from stdin"


async def piece(takes: float = 1.0) -> AsyncIterator[bytes]:
    await asyncio.sleep(takes)
    yield b"1\n"


async def in_session(engine: Engine) -> Any:
    talk = await Talk.begin(engine)
    await talk.run("insert a")
    await talk.commit()
    return talk.session


WRITES: dict[str, Callable[[Engine], Awaitable[Any]]] = {
    "execute": lambda engine: engine.run(Method.EXECUTE, "insert a"),
    "batch": lambda engine: engine.run(Method.EXECUTE_BATCH, "insert a"),
    "with a key": lambda engine: engine.run(Method.EXECUTE, "insert a", key="k"),
    "session": in_session,
    "copy": lambda engine: engine.copy_in(IN, piece()),
    "copy with a key": lambda engine: engine.copy_in(IN, piece(), key="k"),
}


@pytest.mark.parametrize("kind", WRITES)
@virtual
async def test_a_write_that_was_done_is_answered_so_though_its_cluster_has_gone(kind: str) -> None:
    engine = Engine(policy=TenantPolicy(commit_wait=CommitWait.FLUSHED))
    engine.server().script[b"insert a"] = Reply(takes=1.0, tag="INSERT 0 1", affected=1, effect=True)
    writing = engine.start(WRITES[kind](engine))
    await asyncio.sleep(0.5)
    engine.clusters.remove(MAIN)
    answer = await writing
    receipt = answer.receipt() if kind == "session" else answer.receipt
    assert receipt.endpoint == "a"
    assert receipt.durability is Durability.UNKNOWN, "nobody knows of its standbys any more"
    assert kind.startswith("copy") or engine.server().committed == [b"insert a"]
    assert engine.register.counts(engine.tenant.name) == {Outcome.SERVED: 1}
    await rest(engine)


@virtual
async def test_a_write_that_was_found_is_told_though_its_cluster_has_gone() -> None:
    engine = Engine()
    await engine.run(Method.EXECUTE, "insert a", key="k")
    looking = engine.start(engine.outcomes.of_key(engine.tenant, "k", now() + 5, ""))
    await asyncio.sleep(0)
    assert not looking.done()
    engine.clusters.remove(MAIN)
    found = await looking
    assert (found.outcome, found.receipt.durability) == (WriteOutcome.COMMITTED, Durability.UNKNOWN)
    await rest(engine)


@virtual
async def test_a_write_that_was_routed_is_done_though_its_cluster_has_gone() -> None:
    engine = Engine()
    engine.server().connect_takes = 1.0
    writing = engine.start(engine.run(Method.EXECUTE, "insert a"))
    await asyncio.sleep(0.5)
    engine.clusters.remove(MAIN)
    assert (await writing).receipt.durability is Durability.UNKNOWN
    assert engine.server().committed == [b"insert a"]
    await rest(engine)


@virtual
async def test_who_comes_after_its_cluster_has_gone_is_refused_without_the_names_of_others() -> None:
    engine = Engine()
    runtime = engine.clusters.remove(MAIN)
    engine.clusters.add("of-somebody-else", runtime)  # type: ignore[arg-type]
    error = await refusal(engine.run(Method.EXECUTE, "insert a"))
    assert error.code is Code.NOT_FOUND
    assert "of-somebody-else" not in error.message
    await rest(engine)
