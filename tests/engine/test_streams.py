"""Streams: order, backpressure, and that a reader who stands still, leaves or is late keeps nothing."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from router.engine.streams import CHUNK_ROWS, MAX_CHUNKS
from router.model.errors import Code, Executed, RouterError
from router.model.events import Outcome, RequestFinished
from router.model.policy import PoolPolicy
from router.model.reasons import CloseReason, RefuseReason
from router.model.request import CancelOutcome, Method, Options, ReadFrom
from router.model.result import Answer
from tests.support.builders import Engine, now, request
from tests.support.fake_replies import Lost, Reply
from tests.support.talk import refusal, rest
from tests.support.virtual_time import virtual

MANY = "select g from generate_series(1, 20000) g"


@virtual
async def test_rows_come_in_order_and_the_answer_last() -> None:
    engine = Engine()
    *chunks, answer = await engine.stream(MANY)
    rows = [chunk.get_value(row, 0) for chunk in chunks for row in range(chunk.ntuples)]
    assert rows == [str(n + 1).encode() for n in range(20000)]
    assert isinstance(answer, Answer)
    assert answer.results[0].command_tag == "SELECT 20000"
    (finished,) = engine.events.of(RequestFinished)
    assert (finished.rows, finished.outcome) == (20000, Outcome.SERVED)
    await rest(engine)


@virtual
async def test_an_empty_result_has_an_answer_with_its_columns() -> None:
    engine = Engine()
    engine.server().script[b"select none"] = Reply(rows=(), tag="SELECT 0")
    (answer,) = await engine.stream("select none")
    assert answer.results[0].cells is not None
    await rest(engine)


@virtual
async def test_a_slow_reader_holds_few_chunks() -> None:
    engine = Engine()
    read = 0
    async for item in engine.executor.stream(engine.tenant, request(Method.STREAM_QUERY, MANY, timeout=60)):
        if isinstance(item, Answer):
            break
        read += item.ntuples
        await asyncio.sleep(0.05)
        (backend,) = engine.server().backends
        produced = 20000 - sum(len(one) for one in backend._rows)
        assert produced - read <= (MAX_CHUNKS + 10) * CHUNK_ROWS
    assert read == 20000
    await rest(engine)


@virtual
async def test_a_reader_that_leaves_early_stops_postgresql_and_keeps_the_connection() -> None:
    engine = Engine()
    async with aclosing(engine.executor.stream(engine.tenant, request(Method.STREAM_QUERY, MANY))) as items:
        async for _ in items:
            await asyncio.sleep(0.1)
            break
    await engine.quiet(0.1)
    assert engine.server().running() == []
    (inner,) = engine.inner_pools()
    assert inner.destroyed.total() == 0
    assert engine.register.counts(engine.tenant.name) == {Outcome.CANCELLED: 1}
    await rest(engine)


@virtual
async def test_a_reader_that_stands_still_keeps_the_lane_no_longer_than_its_deadline() -> None:
    engine = Engine("a", pool=PoolPolicy(max_size=1))
    items = engine.executor.stream(engine.tenant, request(Method.STREAM_QUERY, MANY, timeout=1.0))
    await anext(items)
    await asyncio.sleep(1.2)
    await engine.stream("select 1")
    with pytest.raises(RouterError) as failed:
        async for _ in items:
            pass
    assert failed.value.code is Code.DEADLINE_EXCEEDED
    await rest(engine)


@virtual
async def test_a_reader_that_has_its_answer_was_served_also_when_it_leaves_then() -> None:
    engine = Engine()
    items = engine.executor.stream(engine.tenant, request(Method.STREAM_QUERY, "select 1"))
    async for item in items:
        if isinstance(item, Answer):
            break
    await items.aclose()
    assert engine.register.counts(engine.tenant.name) == {Outcome.SERVED: 1}
    await rest(engine)


@virtual
async def test_a_stream_lost_before_its_first_row_is_answered_by_another_server() -> None:
    engine = Engine()
    losses = [Reply(lost=Lost.BEFORE)]
    for server in engine.servers.values():
        server.script[MANY.encode()] = losses
    *_, answer = await engine.stream(MANY, options=Options(read=ReadFrom.ANY))
    assert answer.receipt.attempts == 2
    await rest(engine)


@virtual
async def test_a_stream_lost_after_its_first_row_is_not_repeated() -> None:
    engine = Engine()
    items = engine.executor.stream(engine.tenant, request(Method.STREAM_QUERY, MANY))
    await anext(items)
    engine.server().kill_all()
    with pytest.raises(RouterError) as failed:
        async for _ in items:
            pass
    assert (failed.value.code, failed.value.reason) == (Code.ABORTED, RefuseReason.BACKEND_LOST)
    assert engine.server().seen.count(MANY.encode()) == 1
    assert len(engine.supervisor.faults) == 1
    await rest(engine)


@virtual
async def test_a_paused_stream_can_be_stopped_by_its_id() -> None:
    engine = Engine()
    items = engine.executor.stream(engine.tenant, request(Method.STREAM_QUERY, MANY, request_id="r"))
    await anext(items)
    await asyncio.sleep(0.5)
    assert engine.executor.cancel(engine.tenant.name, "r") is CancelOutcome.CANCELLING
    await asyncio.sleep(0.2)
    assert engine.server().running() == []
    with pytest.raises(RouterError) as failed:
        async for _ in items:
            pass
    assert (failed.value.code, failed.value.executed) == (Code.CANCELLED, Executed.ROLLED_BACK)
    (inner,) = engine.inner_pools()
    assert inner.destroyed[CloseReason.ABANDONED] == 0
    await rest(engine)


@virtual
async def test_an_error_before_the_first_row_is_the_callers() -> None:
    engine = Engine()
    assert (await refusal(engine.stream("select 1/0"))).reason is RefuseReason.BAD_DATA
    before = now()
    assert (await refusal(engine.stream("select pg_sleep(60)", timeout=0.5))).code is Code.DEADLINE_EXCEEDED
    assert now() - before == pytest.approx(0.5)
    await rest(engine)
