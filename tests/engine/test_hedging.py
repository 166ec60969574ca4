"""Hedged reads on virtual time: the first answer counts, the loser leaves nothing behind, the extra load is bounded."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest

from router.decisions.latencies import YOUNG
from router.model.errors import RouterError
from router.model.events import HedgeOutcome, ReadHedged
from router.model.policy import TenantPolicy
from router.model.reasons import RefuseReason
from router.model.request import Method, Options, ReadFrom
from tests.support.builders import Engine
from tests.support.fake_replies import Lost, Reply
from tests.support.talk import rest
from tests.support.virtual_time import virtual

HEDGED = Options(read=ReadFrom.REPLICA, hedge=True)
USUAL_S = 0.005


async def taught(*names: str, policy: TenantPolicy | None = None) -> Engine:
    """An engine that knows how long "select 1" takes: 5 ms."""
    engine = Engine(*(names or ("a", "b", "c")), policy=policy)
    script(engine, Reply(takes=USUAL_S, rows=((b"1",),)))
    for _ in range(YOUNG + 20):
        await engine.quick_read("select 1", options=HEDGED)
    return engine


def script(engine: Engine, reply: Reply) -> None:
    for server in engine.servers.values():
        server.script[b"select 1"] = reply


def outcomes(engine: Engine) -> Counter[HedgeOutcome]:
    return Counter(one.outcome for one in engine.events.of(ReadHedged) if isinstance(one, ReadHedged))


def stall_next(engine: Engine, reply: Reply) -> None:
    """Of the two replicas whichever is asked first meets this reply, the other one answers as usual."""
    met: list[bool] = []

    def once(_: object) -> Reply:
        met.append(True)
        return reply if len(met) == 1 else Reply(takes=USUAL_S, rows=((b"1",),))

    for server in engine.servers.values():
        server.script[b"select 1"] = once


@virtual
async def test_a_slow_read_is_answered_by_the_second_endpoint() -> None:
    engine = await taught()
    stall_next(engine, Reply(takes=3.0, rows=((b"2",),)))
    before = asyncio.get_running_loop().time()
    answer = await engine.quick_read("select 1", options=HEDGED)
    assert asyncio.get_running_loop().time() - before < 0.05
    assert (answer.receipt.hedged, answer.receipt.attempts) == (True, 2)
    assert answer.results[0].cells.get_value(0, 0) == b"1"
    assert answer.receipt.endpoint in ("b", "c")
    assert outcomes(engine)[HedgeOutcome.WON] >= 1
    await engine.quiet(5)
    assert [sql for one in engine.servers.values() for sql in one.cancelled] == [b"select 1"], "the loser was stopped"
    await rest(engine)


@virtual
async def test_the_first_may_still_win() -> None:
    engine = await taught()
    stall_next(engine, Reply(takes=USUAL_S * 1.6, rows=((b"2",),)))
    answer = await engine.quick_read("select 1", options=HEDGED)
    assert answer.receipt.hedged
    assert answer.results[0].cells.get_value(0, 0) == b"2"
    assert outcomes(engine)[HedgeOutcome.LOST] >= 1
    await rest(engine)


@virtual
async def test_what_is_lost_on_one_is_answered_by_the_other() -> None:
    engine = await taught()
    stall_next(engine, Reply(takes=0.008, lost=Lost.BEFORE))
    answer = await engine.quick_read("select 1", options=HEDGED)
    assert answer.results[0].cells.get_value(0, 0) == b"1"
    await rest(engine)


@virtual
async def test_an_error_of_the_statement_is_the_answer() -> None:
    engine = await taught()
    stall_next(engine, Reply(takes=0.008, error="22012", message="division by zero"))
    with pytest.raises(RouterError) as caught:
        await engine.quick_read("select 1", options=HEDGED)
    assert caught.value.reason is not RefuseReason.INTERNAL
    await rest(engine)


@pytest.mark.parametrize("why", ["not asked for", "turned off", "no second endpoint", "a write"])
@virtual
async def test_no_hedge(why: str) -> None:
    engine = await taught(
        *(("a", "b") if why == "no second endpoint" else ()),
        policy=TenantPolicy(hedge_ratio=0.0) if why == "turned off" else None,
    )
    for server in engine.servers.values():
        server.script[b"select 1"] = Reply(takes=0.2, rows=((b"1",),))
        server.script[b"insert"] = Reply(takes=0.2, tag="INSERT 0 1", affected=1, effect=True)
    hedges = len(engine.events.of(ReadHedged))
    options = Options(read=ReadFrom.REPLICA, fallback=HEDGED.fallback, hedge=why != "not asked for")
    if why == "a write":
        answer = await engine.run(Method.EXECUTE, "insert", options=options)
        assert sum(len(server.committed) for server in engine.servers.values()) == 1
    else:
        answer = await engine.quick_read("select 1", options=options)
    assert not answer.receipt.hedged
    assert len(engine.events.of(ReadHedged)) == hedges
    await rest(engine)


@virtual
async def test_a_tenant_may_hedge_all_its_reads() -> None:
    engine = await taught(policy=TenantPolicy(hedge_reads=True))
    stall_next(engine, Reply(takes=1.0))
    answer = await engine.quick_read("select 1", options=Options(read=ReadFrom.REPLICA))
    assert answer.receipt.hedged
    await engine.quiet(3)
    await rest(engine)


@virtual
async def test_when_everything_is_slow_the_extra_load_stays_bounded() -> None:
    engine = await taught()
    drawn = random.Random(5)
    for server in engine.servers.values():
        server.script[b"select 1"] = lambda _: Reply(takes=drawn.uniform(0.02, 0.4), rows=((b"1",),))
    began = len(engine.events.of(ReadHedged))
    reads = 600
    for _ in range(reads // 20):
        await asyncio.gather(*(engine.quick_read("select 1", options=HEDGED) for _ in range(20)))
    hedges = len(engine.events.of(ReadHedged)) - began
    assert 0 < hedges <= 0.05 * (reads + YOUNG + 20) + 5, hedges
    await engine.quiet(5)
    await rest(engine)


@virtual
async def test_a_caller_that_goes_away_leaves_neither_behind() -> None:
    engine = await taught()
    for server in engine.servers.values():
        server.script[b"select 1"] = Reply(takes=5.0)
    task = engine.start(engine.quick_read("select 1", options=HEDGED))
    await asyncio.sleep(0.1)
    assert sum(engine.runtime.in_flight.values()) == 2
    task.cancel()
    await asyncio.wait({task})
    await engine.quiet(8)
    await rest(engine)
