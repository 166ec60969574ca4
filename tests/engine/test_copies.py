"""Copies: what may be repeated, what is undone for certain, what stays open, and that nobody keeps a lane."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

import pytest

from router.engine.copy_filling import LEAVING_S
from router.model.copying import CopyAnswer, CopyLayout
from router.model.errors import Code, Executed, RouterError, bad_request
from router.model.events import Outcome, RequestFinished
from router.model.policy import ClusterPolicy, HoldPolicy, PoolPolicy
from router.model.reasons import RefuseReason
from router.model.request import CancelOutcome, Method, Options, ReadFrom
from tests.support.builders import Engine, now, request
from tests.support.fake_replies import Lost, Reply
from tests.support.talk import refusal, rest
from tests.support.virtual_time import virtual

OUT = "copy t to stdout"
IN = "copy t from stdin"
PIECES = tuple((b"piece %d\n" % n,) for n in range(40))


async def data(*pieces: bytes, every: float = 0.001, then: BaseException | None = None) -> AsyncIterator[bytes]:
    for piece in pieces:
        await asyncio.sleep(every)
        yield piece
    if then is not None:
        raise then


async def endless(every: float = 0.01) -> AsyncGenerator[bytes, None]:
    while True:
        await asyncio.sleep(every)
        yield b"more\n"


def engine_with_pieces(*names: str, **kwargs: object) -> Engine:
    engine = Engine(*names, **kwargs)  # type: ignore[arg-type]
    for server in engine.servers.values():
        server.script[OUT.encode()] = Reply(rows=PIECES, tag="COPY 40", affected=40)
    return engine


# --- out -------------------------------------------------------------------------------------------------------------


@virtual
async def test_out_gives_layout_data_and_answer() -> None:
    engine = engine_with_pieces()
    layout, *pieces, answer = await engine.copy_out(OUT)
    assert layout == CopyLayout(1, binary=False)
    assert pieces == [one for (one,) in PIECES]
    assert isinstance(answer, CopyAnswer)
    assert (answer.rows, answer.size_bytes, answer.command_tag) == (40, sum(len(one) for one in pieces), "COPY 40")
    assert answer.receipt.endpoint == "a"
    (finished,) = engine.events.of(RequestFinished)
    assert (finished.method, finished.rows, finished.copied_bytes) == (Method.COPY_OUT, 40, answer.size_bytes)
    assert finished.outcome is Outcome.SERVED
    await rest(engine)


@virtual
async def test_out_may_go_to_a_replica_on_a_read_only_connection() -> None:
    engine = engine_with_pieces()
    *_, answer = await engine.copy_out(OUT, options=Options(read=ReadFrom.REPLICA))
    assert answer.receipt.endpoint == "b"
    assert [pool.access.value for pool in engine.inner_pools()] == ["read_only"]
    await rest(engine)


@virtual
async def test_out_lost_before_its_first_byte_is_answered_by_another_server() -> None:
    engine = engine_with_pieces()
    whole = Reply(rows=PIECES, tag="COPY 40")
    script = [Reply(lost=Lost.BEFORE), whole]
    for server in engine.servers.values():
        server.script[OUT.encode()] = script
    *_, answer = await engine.copy_out(OUT, options=Options(read=ReadFrom.ANY))
    assert answer.receipt.attempts == 2
    await rest(engine)


@virtual
async def test_out_lost_after_its_first_byte_is_not_repeated() -> None:
    engine = engine_with_pieces()
    items = engine.copies.copy_out(engine.tenant, request(Method.COPY_OUT, OUT))
    await anext(items)
    await anext(items)
    engine.server().kill_all()

    async def read_on() -> None:
        async for _ in items:
            pass

    error = await refusal(read_on())
    assert (error.code, error.reason) == (Code.ABORTED, RefuseReason.BACKEND_LOST)
    assert error.executed is Executed.ROLLED_BACK
    assert engine.server().seen == [OUT.encode()]
    await rest(engine)


@virtual
async def test_out_a_reader_that_leaves_early_keeps_nothing() -> None:
    engine = engine_with_pieces()
    async with aclosing(engine.copies.copy_out(engine.tenant, request(Method.COPY_OUT, OUT))) as items:
        async for item in items:
            if isinstance(item, bytes):
                break
    await engine.quiet(0.1)
    assert engine.server().running() == []
    assert engine.register.counts(engine.tenant.name) == {Outcome.CANCELLED: 1}
    await rest(engine)


@virtual
async def test_out_a_reader_that_stands_still_keeps_the_lane_no_longer_than_its_deadline() -> None:
    engine = engine_with_pieces("a", pool=PoolPolicy(max_size=1))
    items = engine.copies.copy_out(engine.tenant, request(Method.COPY_OUT, OUT, timeout=1.0))
    await anext(items)
    await asyncio.sleep(1.2)
    assert engine.server().running() == []
    with pytest.raises(RouterError) as failed:
        async for _ in items:
            pass
    assert (failed.value.code, failed.value.executed) == (Code.DEADLINE_EXCEEDED, Executed.ROLLED_BACK)
    assert (await engine.copy_out(OUT))[-1].rows == 40
    await rest(engine)


@virtual
async def test_out_of_a_query_is_inspected_and_its_errors_are_where_the_caller_sees_them() -> None:
    engine = Engine()
    asked = request(Method.COPY_OUT, "copy (set x = 1\n) to stdout")
    asked.nested_query = b"set x = 1"
    error = await refusal(anext(engine.copies.copy_out(engine.tenant, asked)))
    assert (error.reason, engine.server().seen) == (RefuseReason.SESSION_STATE, [])
    await rest(engine)


# --- in --------------------------------------------------------------------------------------------------------------


@virtual
async def test_in_is_committed_once_the_source_ends() -> None:
    engine = Engine()
    answer = await engine.copy_in(IN, data(b"a\n", b"bc\n"))
    assert (answer.rows, answer.size_bytes) == (5, 5)
    assert engine.server().committed == [IN.encode()]
    (finished,) = engine.events.of(RequestFinished)
    assert (finished.method, finished.rows, finished.copied_bytes) == (Method.COPY_IN, 5, 5)
    await rest(engine)


@virtual
async def test_in_waits_for_a_primary_before_it_asks_for_data() -> None:
    engine = Engine(cluster=ClusterPolicy(hold=HoldPolicy(release_start=1)))
    engine.supervisor.lose_primary()
    asyncio.get_running_loop().call_later(0.2, engine.supervisor.promote, "b")
    asked_at = []

    async def source() -> AsyncIterator[bytes]:
        asked_at.append(now())
        yield b"x"

    began = now()
    answer = await engine.copy_in(IN, source())
    assert asked_at[0] - began >= 0.2
    assert (answer.receipt.endpoint, answer.receipt.held_s >= 0.2) == ("b", True)
    assert engine.server("b").committed == [IN.encode()]
    await rest(engine)


@virtual
async def test_in_lost_before_any_data_is_opened_again() -> None:
    engine = Engine()
    engine.server().script[IN.encode()] = [Reply(lost=Lost.BEFORE)]
    answer = await engine.copy_in(IN, data(b"x"))
    assert (answer.receipt.attempts, engine.server().committed) == (2, [IN.encode()])
    await rest(engine)


@virtual
async def test_in_lost_among_its_data_is_undone_and_not_repeated() -> None:
    engine = Engine()
    asyncio.get_running_loop().call_later(0.1, engine.server().kill_all)
    error = await refusal(engine.copy_in(IN, endless()))
    assert (error.code, error.reason) == (Code.UNAVAILABLE, RefuseReason.BACKEND_LOST)
    assert error.executed is Executed.ROLLED_BACK
    assert (engine.server().seen, engine.server().committed) == ([IN.encode()], [])
    await rest(engine)


@virtual
@pytest.mark.parametrize("lost", Lost)
async def test_in_lost_after_its_end_has_an_open_outcome(lost: Lost) -> None:
    engine = Engine()
    engine.server().script[b"finish " + IN.encode()] = Reply(lost=lost, effect=True)
    error = await refusal(engine.copy_in(IN, data(b"x")))
    assert (error.code, error.reason) == (Code.UNKNOWN, RefuseReason.OUTCOME_UNKNOWN)
    assert error.executed is Executed.MAYBE
    await rest(engine)


@virtual
async def test_in_committed_here_only_has_an_open_outcome() -> None:
    engine = Engine()
    engine.server().script[b"finish " + IN.encode()] = Reply(effect=True, local_commit=True)
    error = await refusal(engine.copy_in(IN, data(b"x")))
    assert (error.reason, error.executed) == (RefuseReason.OUTCOME_UNKNOWN, Executed.MAYBE)
    await rest(engine)


@virtual
@pytest.mark.parametrize("sqlstate", ["22P02", "23505"])
async def test_in_refused_by_postgresql_is_undone(sqlstate: str) -> None:
    engine = Engine()
    engine.server().script[b"finish " + IN.encode()] = Reply(error=sqlstate)
    error = await refusal(engine.copy_in(IN, data(b"x")))
    assert (error.executed, error.numbers["sqlstate"]) == (Executed.ROLLED_BACK, sqlstate)
    await engine.quiet(0.5)
    (inner,) = engine.inner_pools()
    assert inner.destroyed.total() == 0
    await rest(engine)


@virtual
async def test_in_a_source_that_fails_is_undone_before_anyone_is_told() -> None:
    engine = Engine()
    wrong = bad_request(RefuseReason.BAD_REQUEST, "two starts")
    error = await refusal(engine.copy_in(IN, data(b"x", then=wrong)))
    assert (error.reason, error.executed) == (RefuseReason.BAD_REQUEST, Executed.ROLLED_BACK)
    assert (engine.server().running(), engine.server().committed) == ([], [])
    await rest(engine)


@virtual
async def test_in_a_source_that_says_it_was_cancelled_is_undone_and_has_its_own_word() -> None:
    engine, gone = Engine(), asyncio.CancelledError("the caller has gone")
    with pytest.raises(asyncio.CancelledError) as raised:
        await engine.copy_in(IN, data(b"a", b"b", then=gone))
    assert raised.value is gone
    assert engine.server().committed == []
    (finished,) = engine.events.of(RequestFinished)
    assert isinstance(finished, RequestFinished)
    assert finished.outcome is Outcome.CANCELLED
    await rest(engine)


@virtual
@pytest.mark.parametrize("silent", [False, True])
async def test_in_past_its_deadline_is_undone(silent: bool) -> None:
    engine = Engine()
    engine.server().copy_stalls = silent

    async def source() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.sleep(3600)

    began = now()
    error = await refusal(engine.copy_in(IN, source(), timeout=0.5))
    assert now() - began < 0.7
    assert (error.code, error.executed) == (Code.DEADLINE_EXCEEDED, Executed.ROLLED_BACK)
    assert engine.server().committed == []
    await rest(engine)


@virtual
async def test_in_past_its_deadline_on_a_frozen_server_is_undone_as_its_end_was_not_sent() -> None:
    engine = Engine()
    asyncio.get_running_loop().call_later(0.1, engine.server().freeze)
    error = await refusal(engine.copy_in(IN, endless(), timeout=0.5))
    assert (error.code, error.executed) == (Code.DEADLINE_EXCEEDED, Executed.ROLLED_BACK)
    engine.server().thaw()
    await engine.quiet()
    assert engine.server().committed == []
    await rest(engine)


@virtual
async def test_in_whose_caller_has_only_so_long_ends_with_that() -> None:
    # As the RPC does it for a token that expires: the source is closed before the time-out looks at what ended it.
    engine = Engine()
    began = now()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2), aclosing(endless()) as source:
            await engine.copy_in(IN, source)
    assert now() - began == pytest.approx(0.2)
    await engine.quiet()
    assert engine.server().committed == []
    await rest(engine)


@virtual
@pytest.mark.parametrize(("lingers_s", "takes_s"), [(0.3, 0.3), (3600.0, LEAVING_S)])
async def test_in_cancelled_again_while_its_source_lingers(lingers_s: float, takes_s: float) -> None:
    engine = Engine()

    async def source() -> AsyncIterator[bytes]:
        yield b"x"
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(lingers_s)

    running = engine.start(engine.copy_in(IN, source()))
    await asyncio.sleep(0.1)
    began = now()
    running.cancel()
    await asyncio.sleep(0.1)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert now() - began == pytest.approx(takes_s)
    assert engine.server().committed == []
    await rest(engine)


@virtual
async def test_in_that_is_committing_is_never_stopped() -> None:
    engine = Engine()
    engine.server().script[b"finish " + IN.encode()] = Reply(takes=1.0, effect=True)
    running = engine.start(engine.copy_in(IN, data(b"x"), timeout=0.5, request_id="copy"))
    await asyncio.sleep(0.2)
    assert engine.executor.cancel(engine.tenant.name, "copy") is CancelOutcome.NOT_CANCELLABLE
    error = await refusal(running)
    assert (error.code, error.executed) == (Code.DEADLINE_EXCEEDED, Executed.MAYBE)
    await engine.quiet()
    assert (engine.server().committed, engine.server().cancelled) == ([IN.encode()], [])
    await rest(engine)


@virtual
@pytest.mark.parametrize("direction", ["in", "out"])
async def test_cancelled_by_its_id(direction: str) -> None:
    engine = engine_with_pieces()
    engine.server().script[OUT.encode()] = Reply(takes=1.0)
    fill, read = engine.copy_in, engine.copy_out
    running: asyncio.Task[object] = engine.start(
        fill(IN, endless(), request_id="copy") if direction == "in" else read(OUT, request_id="copy")
    )
    await asyncio.sleep(0.2)
    assert engine.executor.cancel(engine.tenant.name, "copy") is CancelOutcome.CANCELLING
    error = await refusal(running)
    assert (error.code, error.executed) == (Code.CANCELLED, Executed.ROLLED_BACK)
    assert engine.server().committed == []
    await rest(engine)


@virtual
async def test_in_a_slow_postgresql_stops_the_source() -> None:
    engine = Engine()
    engine.server().copy_stalls = True
    given = 0

    async def source() -> AsyncIterator[bytes]:
        nonlocal given
        for _ in range(100):
            given += 1
            yield b"x"

    running = engine.start(engine.copy_in(IN, source()))
    await asyncio.sleep(0.5)
    assert given <= 2
    engine.server().copy_stalls = False
    assert (await running).rows == 100
    await rest(engine)


@virtual
async def test_what_is_refused_before_it_begins() -> None:
    engine = Engine()
    engine.copies.drain()
    error = await refusal(engine.copy_in(IN, data(b"x")))
    assert error.reason is RefuseReason.DRAINING
    assert engine.register.counts(engine.tenant.name) == {Outcome.REFUSED: 1}
    await rest(engine)
