"""How a request ends before its answer: by its id, or by its deadline. What it is told is true."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from router.model.errors import Code, Executed
from router.model.events import Outcome
from router.model.identity import EndpointName, TenantName
from router.model.policy import PoolPolicy, RetryPolicy, TenantPolicy
from router.model.reasons import RefuseReason
from router.model.request import CancelOutcome, Guard, GuardNeed, Method
from router.model.result import Answer
from tests.support.builders import Engine, now, request
from tests.support.fake_replies import Lost, Reply
from tests.support.sweeping import Sweep, sweep
from tests.support.talk import refusal, rest
from tests.support.virtual_time import settle, virtual

# --- stopped by its id ---------------------------------------------------------------------------------------------


def cancel(engine: Engine, name: str = "r") -> CancelOutcome:
    return engine.executor.cancel(engine.tenant.name, name)


@pytest.mark.parametrize("method", [Method.QUERY, Method.EXECUTE, Method.EXECUTE_BATCH, Method.STREAM_QUERY])
@virtual
async def test_a_running_request_is_stopped_in_postgresql(method: Method) -> None:
    engine = Engine()
    sql = "select pg_sleep(60)"
    if method is Method.STREAM_QUERY:
        running: asyncio.Task[Any] = engine.start(engine.stream(sql, request_id="r", timeout=70))
    else:
        running = engine.start(engine.run(method, sql, request_id="r", timeout=70))
    await asyncio.sleep(0.1)
    assert cancel(engine) is CancelOutcome.CANCELLING
    assert cancel(engine) is CancelOutcome.CANCELLING
    before = now()
    error = await refusal(running)
    assert (error.code, error.reason) == (Code.CANCELLED, RefuseReason.CANCELLED)
    assert error.executed in (Executed.NO, Executed.ROLLED_BACK)
    assert now() - before < 0.1
    await asyncio.sleep(0.1)
    assert engine.server().running() == []
    assert cancel(engine) is CancelOutcome.NOT_FOUND
    assert engine.register.counts(engine.tenant.name)[Outcome.CANCELLED] == 1
    await rest(engine)


@pytest.mark.parametrize("stopped_by", ["cancel", "deadline"])
@virtual
async def test_what_may_have_committed_on_its_way_is_stopped_with_an_open_outcome(stopped_by: str) -> None:
    engine = Engine()
    engine.server().script[b"call p()"] = Reply(takes=60)
    running = engine.start(engine.run(Method.EXECUTE, "call p()", request_id="r", timeout=1))
    await asyncio.sleep(0.1)
    if stopped_by == "cancel":
        assert cancel(engine) is CancelOutcome.CANCELLING
    error = await refusal(running)
    reason = RefuseReason.CANCELLED if stopped_by == "cancel" else RefuseReason.DEADLINE
    assert (error.reason, error.executed) == (reason, Executed.MAYBE)
    await rest(engine)


@virtual
async def test_a_write_that_ignores_its_cancel_is_answered_with_an_open_outcome() -> None:
    engine = Engine()
    engine.server().script[b"insert a"] = Reply(takes=60, ignores_cancel=True, effect=True)
    running = engine.start(engine.run(Method.EXECUTE, "insert a", request_id="r", timeout=70))
    await asyncio.sleep(0.1)
    assert cancel(engine) is CancelOutcome.CANCELLING
    error = await refusal(running)
    assert (error.reason, error.executed) == (RefuseReason.OUTCOME_UNKNOWN, Executed.MAYBE)
    assert engine.supervisor.faults == [], "what we ended ourselves proves nothing about the server"
    await rest(engine)


@pytest.mark.parametrize("waits", ["admission", "hold", "connection", "pause"])
@virtual
async def test_a_waiting_request_is_stopped_without_a_trace(waits: str) -> None:
    engine = Engine(pool=PoolPolicy(max_size=1), policy=TenantPolicy(max_in_flight=1 if waits == "admission" else 9),
                    retry=RetryPolicy(backoff_s=1.0))
    other: asyncio.Task[Any] | None = None
    if waits in ("admission", "connection"):
        other = engine.start(engine.run(Method.EXECUTE, "select pg_sleep(1)"))
    elif waits == "hold":
        engine.supervisor.lose_primary()
    else:
        engine.server().script[b"insert a"] = [Reply(error="40001")]
    await asyncio.sleep(0.01)
    running = engine.start(engine.run(Method.EXECUTE, "insert a", request_id="r"))
    await asyncio.sleep(0.1)
    assert cancel(engine) is CancelOutcome.CANCELLING
    before = now()
    error = await refusal(running)
    assert (error.reason, error.executed, now() - before) == (RefuseReason.CANCELLED, Executed.NO, 0)
    if other is not None:
        await other
    assert engine.server().committed == []
    await rest(engine)


@virtual
async def test_each_of_several_with_one_id_can_be_stopped_alone() -> None:
    engine = Engine()
    requests = [request(Method.EXECUTE, f"select pg_sleep({n})", request_id="r", timeout=70) for n in (61, 62, 63)]
    running = [engine.start(engine.executor.run(engine.tenant, one)) for one in requests]
    await asyncio.sleep(0.1)
    for number in (1, 0, 2):
        assert engine.executor.stop(engine.tenant.name, requests[number]) is CancelOutcome.CANCELLING
        error = await refusal(running[number])
        assert (error.reason, error.executed) == (RefuseReason.CANCELLED, Executed.ROLLED_BACK)
        assert engine.executor.stop(engine.tenant.name, requests[number]) is CancelOutcome.NOT_FOUND
        assert [one.done() for one in running].count(True) == (1, 2, 3)[(1, 0, 2).index(number)]
    assert cancel(engine) is CancelOutcome.NOT_FOUND
    await rest(engine)


@virtual
async def test_an_id_of_several_stops_them_all() -> None:
    engine = Engine()
    running = [
        engine.start(engine.run(method, "select pg_sleep(60)", request_id="r", timeout=70))
        for method in (Method.EXECUTE, Method.QUERY, Method.EXECUTE)
    ]
    await asyncio.sleep(0.1)
    assert cancel(engine) is CancelOutcome.CANCELLING
    for one in running:
        assert (await refusal(one)).reason is RefuseReason.CANCELLED
    assert cancel(engine) is CancelOutcome.NOT_FOUND
    await rest(engine)


@virtual
async def test_a_commit_on_its_way_cannot_be_stopped() -> None:
    engine = Engine()
    engine.server().script[b"COMMIT"] = Reply(takes=1.0)
    running = engine.start(engine.run(Method.EXECUTE_BATCH, "insert a", request_id="r"))
    await asyncio.sleep(0.5)
    assert cancel(engine) is CancelOutcome.NOT_CANCELLABLE
    assert isinstance(await running, Answer)
    assert engine.server().committed == [b"insert a"]
    await rest(engine)


@virtual
async def test_nobody_stops_another_tenants_request() -> None:
    engine = Engine()
    running = engine.start(engine.run(Method.EXECUTE, "select pg_sleep(1)", request_id="r"))
    await settle()
    assert engine.executor.cancel(TenantName("globex"), "r") is CancelOutcome.NOT_FOUND
    assert isinstance(await running, Answer)
    await rest(engine)


@pytest.mark.parametrize(
    "trouble", [None, Reply(error="40001"), Reply(lost=Lost.BEFORE), Reply(takes=0.2, effect=True)]
)
@pytest.mark.parametrize("steps", [["insert a"], ["insert a", "insert b"]])
def test_stopped_in_any_turn_the_answer_is_true(steps: list[str], trouble: Reply | None) -> None:
    """Whatever the moment, "not executed" and "rolled back" mean that nothing is in the ledger."""

    async def story(one: Sweep) -> None:
        engine = Engine()
        if trouble is not None:
            engine.server().script[b"insert a"] = [trouble]
        outcomes: list[CancelOutcome] = []
        guards = {1: Guard(0, GuardNeed.ROWS_AT_LEAST, 1)} if len(steps) > 1 else None
        method = Method.EXECUTE_BATCH if len(steps) > 1 else Method.EXECUTE
        work = engine.run(method, *steps, request_id="r", guards=guards)
        ended = await one.act(work, lambda: outcomes.append(cancel(engine)))
        await engine.quiet(1)
        committed = engine.server().committed
        if isinstance(ended, Answer):
            assert committed == [step.encode() for step in steps]
            assert CancelOutcome.CANCELLING not in outcomes or method is Method.EXECUTE
        elif ended.executed is not Executed.MAYBE:
            assert committed == []
            assert ended.reason is RefuseReason.CANCELLED or trouble is not None
        await rest(engine)

    assert sweep(story) > 5


@virtual
async def test_a_caller_that_goes_away_wins_over_a_cancel_by_id() -> None:
    engine = Engine()
    engine.supervisor.lose_primary()
    running = engine.start(engine.run(Method.EXECUTE, "insert a", request_id="r"))
    await asyncio.sleep(0.1)
    assert cancel(engine) is CancelOutcome.CANCELLING
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await rest(engine)


# --- deadlines -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [Method.QUERY, Method.EXECUTE, Method.EXECUTE_BATCH, Method.STREAM_QUERY])
@pytest.mark.parametrize("trouble", ["slow", "silent", "frozen", "connect hangs", "held", "refused"])
@virtual
async def test_the_deadline_is_kept_whatever_happens(method: Method, trouble: str) -> None:
    engine = Engine()
    server = engine.server()
    match trouble:
        case "slow":
            server.script[b"select 1"] = Reply(takes=60)
        case "silent":
            server.script[b"select 1"] = Reply(silent=True, ignores_cancel=True)
        case "frozen":
            await engine.run(Method.QUERY, "select 1")
            server.freeze()
        case "connect hangs":
            server.connect_hangs = True
        case "held":
            engine.supervisor.lose_primary()
        case _:
            server.connect_error = "refused"
    before = now()
    if method is Method.STREAM_QUERY:
        error = await refusal(engine.stream("select 1", timeout=0.7))
    else:
        error = await refusal(engine.run(method, "select 1", timeout=0.7))
    assert 0.6 < now() - before <= 0.801
    if trouble in ("held", "refused", "connect hangs"):
        assert error.executed is Executed.NO
    if trouble == "slow":
        assert (error.code, error.executed) == (
            Code.DEADLINE_EXCEEDED, Executed.ROLLED_BACK) if method is not Method.STREAM_QUERY else True
    server.frozen = False
    server.thaw()
    await engine.quiet(6)
    await rest(engine)
    assert EndpointName("a") in {fault.endpoint for fault in engine.supervisor.faults} or trouble != "refused"
