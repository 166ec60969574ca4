"""Streams: order, backpressure, and that a reader who stands still, leaves or is late keeps nothing."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from router.engine.streams import CHUNK_ROWS, LINGER_S, MAX_WAITING_BYTES, RUN_BYTES
from router.model.errors import Code, Executed, RouterError
from router.model.events import Outcome, RequestFinished
from router.model.policy import PoolPolicy
from router.model.reasons import CloseReason, RefuseReason
from router.model.request import CancelOutcome, Method, Options, ReadFrom
from router.model.result import Answer
from tests.support.builders import Engine, now, request
from tests.support.fake_lane import FakeCells
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


WIDE = Reply(rows=tuple((str(n).encode() + b"x" * 1000,) for n in range(5000)))


@virtual
async def test_a_slow_reader_holds_few_rows() -> None:
    engine = Engine()
    engine.server().script[b"select wide"] = WIDE
    read, lead = 0, 0
    async for item in engine.executor.stream(engine.tenant, request(Method.STREAM_QUERY, "select wide", timeout=60)):
        if isinstance(item, Answer):
            break
        read += item.ntuples
        await asyncio.sleep(0.05)
        (backend,) = engine.server().backends
        lead = max(lead, 5000 - sum(len(one) for one in backend._rows) - read)
    assert read == 5000
    assert lead * 1000 <= MAX_WAITING_BYTES + RUN_BYTES + 12 * CHUNK_ROWS * 1000  # and what is in the socket
    await rest(engine)


@virtual
async def test_rows_leave_in_runs_that_grow_and_stay_bounded() -> None:
    engine = Engine()
    engine.server().script[b"select wide"] = WIDE
    *runs, _ = await engine.stream("select wide")
    sizes = [run.ntuples for run in runs]
    assert sizes[0] == CHUNK_ROWS  # the first row waits for nobody
    assert all(RUN_BYTES <= size * 1020 <= RUN_BYTES + 33_000 for size in sizes[4:-1])
    await rest(engine)


@virtual
async def test_a_row_does_not_wait_long_for_company() -> None:
    engine = Engine()
    engine.server().script[b"select slowly"] = Reply(takes=60, rows=((b"x",),))
    items = engine.executor.stream(engine.tenant, request(Method.STREAM_QUERY, "select slowly", timeout=90))
    reading = asyncio.ensure_future(anext(items))
    await asyncio.sleep(1)
    (backend,) = engine.server().backends
    came = []
    for _ in range(4):
        sent = now()
        on_rows = backend._work[0].on_rows
        assert on_rows is not None
        assert on_rows(FakeCells(((b"early",),)))
        await reading
        came.append(now() - sent)
        reading = asyncio.ensure_future(anext(items))
        await asyncio.sleep(0.2)
    assert came == [pytest.approx(0, abs=1e-6)] + [pytest.approx(LINGER_S, abs=1e-6)] * 3
    reading.cancel()
    await asyncio.wait({reading})
    await rest(engine)


@virtual
@pytest.mark.parametrize("place", range(0, CHUNK_ROWS, 5))
async def test_rows_that_are_long_now_and_then_are_bounded_too(place: int) -> None:
    engine = Engine()
    rows = tuple((b"x" * 10_000 if n % CHUNK_ROWS == place else b"x",) for n in range(20_000))
    engine.server().script[b"select skewed"] = Reply(rows=rows)
    items = engine.executor.stream(engine.tenant, request(Method.STREAM_QUERY, "select skewed", timeout=60))
    await anext(items)
    await asyncio.sleep(5.0)
    (backend,) = engine.server().backends
    ahead = 20_000 - sum(len(one) for one in backend._rows)
    assert ahead / CHUNK_ROWS * 10_000 < 3 * MAX_WAITING_BYTES
    assert CHUNK_ROWS + sum([item.ntuples async for item in items if not isinstance(item, Answer)]) == 20_000
    await rest(engine)


@virtual
async def test_short_rows_are_bounded_by_their_number() -> None:
    engine = Engine()
    engine.server().script[b"select nulls"] = Reply(rows=((None,),) * 100_000)
    items = engine.executor.stream(engine.tenant, request(Method.STREAM_QUERY, "select nulls", timeout=60))
    first = await anext(items)
    await asyncio.sleep(5.0)
    (backend,) = engine.server().backends
    assert sum(len(one) for one in backend._rows) > 50_000
    rest_of = [item async for item in items]
    assert first.ntuples + sum(item.ntuples for item in rest_of[:-1]) == 100_000
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
