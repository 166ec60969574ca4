"""Reads without a task: answered, counted, repeated, stopped and left behind exactly as with one."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from router.engine.calls import Call
from router.engine.quick_reads import QuickRead
from router.model.errors import Code, Executed, RouterError
from router.model.events import Outcome, RequestAdmitted, RequestFinished
from router.model.policy import PoolPolicy, TenantPolicy
from router.model.reasons import RefuseReason
from router.model.request import CancelOutcome, Method, Options, ReadFrom
from tests.support.builders import Engine, request
from tests.support.fake_replies import Lost, Reply
from tests.support.sweeping import Sweep, sweep
from tests.support.talk import refusal, rest
from tests.support.virtual_time import settle, virtual

ANY = Options(read=ReadFrom.ANY)


class Told:
    """Keeps what it was told."""

    def __init__(self) -> None:
        self.reads: list[QuickRead] = []

    def __call__(self, read: Any) -> None:
        self.reads.append(read)


def start(engine: Engine, told: Told, sql: str = "select 1", tag: int = 7, **kwargs: Any) -> QuickRead | None:
    kwargs.setdefault("timeout", engine.timeout)
    return engine.executor.start(engine.tenant, request(Method.QUERY, sql, **kwargs), tag, told)


def counts(engine: Engine) -> dict[Outcome, int]:
    return dict(engine.register.counts(engine.tenant.name))


@virtual
async def test_it_is_answered_and_counted_as_any_other() -> None:
    engine, told = Engine(), Told()
    engine.server().script[b"select 1"] = Reply(takes=0.25)
    read = start(engine, told)
    assert read is not None
    assert (len(engine.register), engine.runtime.admission.in_flight) == (1, 1)
    assert told.reads == [], "never from within start"
    await engine.quiet(1)
    assert told.reads == [read]
    assert (read.tag, read.error) == (7, None)
    assert read.answer is not None
    receipt = read.answer.receipt
    assert (receipt.endpoint, receipt.attempts) == ("a", 1)
    assert 0.2 < receipt.executed_s < 0.3
    (finished,) = engine.events.of(RequestFinished)
    by_task = Engine()
    by_task.server().script[b"select 1"] = Reply(takes=0.25)
    await by_task.run(Method.QUERY, "select 1")
    (other,) = by_task.events.of(RequestFinished)
    assert [(one.outcome, one.rows, one.attempts, one.role) for one in (finished, other)] == [  # type: ignore[union-attr]
        (finished.outcome, finished.rows, finished.attempts, finished.role)  # type: ignore[union-attr]
    ] * 2
    assert len(engine.events.of(RequestAdmitted)) == 1
    assert counts(engine) == {Outcome.SERVED: 1}
    await rest(engine)
    await rest(by_task)


@pytest.mark.parametrize("why", ["held", "refused text", "no room", "draining"])
@virtual
async def test_what_cannot_begin_at_once_is_left_to_a_task(why: str) -> None:
    engine, told = Engine(policy=TenantPolicy(max_in_flight=1)), Told()
    other: asyncio.Task[Any] | None = None
    if why == "held":
        engine.supervisor.lose_primary()
    elif why == "no room":
        other = engine.start(engine.run(Method.QUERY, "select pg_sleep(1)"))
        await settle()
    elif why == "draining":
        engine.executor.drain()
    before = len(engine.register)
    assert start(engine, told, "commit" if why == "refused text" else "select 1") is None
    assert len(engine.register) == before
    if why == "held":
        engine.supervisor.promote("b")
    if other is not None:
        await other
    await rest(engine)
    assert told.reads == []


@virtual
async def test_who_waits_in_a_hold_is_not_overtaken() -> None:
    engine = Engine()
    engine.supervisor.lose_primary()
    order: list[str] = []

    async def read(name: str) -> None:
        await engine.quick_read("select 1")
        order.append(name)

    held = [engine.start(read(f"held {number}")) for number in range(6)]
    await asyncio.sleep(0.5)
    engine.supervisor.promote("b")
    newcomer = engine.start(read("newcomer"))
    await asyncio.gather(*held, newcomer)
    assert order[-1] == "newcomer"
    await rest(engine)


@virtual
async def test_a_lost_one_is_repeated_elsewhere_and_told_once() -> None:
    engine = Engine("a", "b", "c")
    losses = [Reply(lost=Lost.BEFORE), Reply(lost=Lost.BEFORE)]
    for server in engine.servers.values():
        server.script[b"select 1"] = losses
    answer = await engine.quick_read("select 1", options=ANY)
    assert answer.receipt.attempts == 3
    told = [fault.endpoint for fault in engine.supervisor.faults]
    assert sorted([*told, answer.receipt.endpoint]) == ["a", "b", "c"], "each is asked once, each loss is told once"
    assert counts(engine) == {Outcome.SERVED: 1}
    await rest(engine)


@virtual
async def test_an_error_of_the_statement_is_the_callers() -> None:
    engine = Engine()
    engine.server().script[b"select 1"] = Reply(error="42P01")
    error = await refusal(engine.quick_read("select 1"))
    assert error.numbers["sqlstate"] == "42P01"
    assert counts(engine) == {Outcome.FAILED: 1}
    await rest(engine)


@pytest.mark.parametrize("trouble", [Reply(takes=3.0), Reply(silent=True)])
@virtual
async def test_the_deadline_holds(trouble: Reply) -> None:
    engine, told = Engine(), Told()
    engine.server().script[b"select 1"] = trouble
    loop = asyncio.get_running_loop()
    before = loop.time()
    ended = asyncio.Event()
    read = start(engine, told, timeout=0.4)
    assert read is not None
    read.told = lambda _: ended.set()
    await ended.wait()
    assert 0.399 < loop.time() - before < 0.45
    assert isinstance(read.error, RouterError)
    assert read.error.code is Code.DEADLINE_EXCEEDED
    assert read.error.executed is not Executed.MAYBE
    await rest(engine)


@pytest.mark.parametrize("by", ["handle", "request id"])
@pytest.mark.parametrize("trouble", [Reply(takes=1.0), Reply(silent=True), Reply(error="40001", takes=0.1)])
@virtual
async def test_a_cancelled_one_says_so_at_once_and_leaves_nothing(by: str, trouble: Reply) -> None:
    engine, told = Engine(pool=PoolPolicy(max_size=1)), Told()
    engine.server().script[b"select 1"] = trouble
    read = start(engine, told, request_id="r")
    assert read is not None
    await asyncio.sleep(0.05)
    if by == "handle":
        read.cancel()
    else:
        assert engine.executor.cancel(engine.tenant.name, "r") is CancelOutcome.CANCELLING
    assert told.reads == [read]
    assert isinstance(read.error, RouterError)
    assert (read.error.reason, read.error.executed) == (RefuseReason.CANCELLED, Executed.NO)
    assert counts(engine) == {Outcome.CANCELLED: 1}
    read.cancel()  # too late, harmless
    await rest(engine)
    assert told.reads == [read]


def test_cancelled_in_any_turn_it_is_told_once() -> None:
    """Also in the turn between a failed first attempt and its repeat's first step."""

    async def story(one: Sweep) -> None:
        engine, told = Engine(), Told()
        engine.server().script[b"select 1"] = [Reply(lost=Lost.BEFORE)]
        engine.server("b").script[b"select 1"] = [Reply(error="40001")]

        async def work() -> None:
            read = start(engine, told, options=ANY)
            assert read is not None
            ended = asyncio.Event()
            tell = read.told

            def tell_both(read: QuickRead) -> None:
                tell(read)
                ended.set()

            read.told = tell_both
            await ended.wait()

        def stop() -> None:
            for call in list(engine.register.under_way()):
                if call.read is not None:
                    call.read.cancel()
                elif call.task is not None:
                    call.task.cancel()

        await one.act(work(), stop)
        await engine.quiet(1)
        assert len(told.reads) == 1
        assert sum(counts(engine).values()) == 1
        await rest(engine)

    assert sweep(story) > 5


@virtual
async def test_one_that_is_abandoned_is_counted_and_nobody_is_told() -> None:
    engine, told = Engine(), Told()
    engine.server().script[b"select 1"] = Reply(takes=1.0)
    read = start(engine, told)
    assert read is not None
    await asyncio.sleep(0.1)
    read.abandon()
    assert (len(engine.register), counts(engine)) == (0, {Outcome.CANCELLED: 1})
    await rest(engine)
    assert told.reads == []


@virtual
async def test_an_answered_one_leaves_nothing_to_the_garbage_collector() -> None:
    """A cycle per read would grow the process by megabytes a second between two collections."""
    engine, told = Engine(), Told()
    gc.collect()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        for _ in range(20):
            assert start(engine, told) is not None
            await asyncio.sleep(0.1)
        assert len(told.reads) == 20
        told.reads.clear()
        gc.collect()
        left = [one for one in gc.garbage if isinstance(one, QuickRead | Call)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
    assert left == []
    await rest(engine)
