"""Multiplex over a real server: batching, independence of calls, bounds, cancel, drain, and what the end leaves."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import grpc.aio
import pytest
from pointsman.v1 import query_service_pb2 as pb
from pointsman.v1 import types_pb2

from router.api import outbox
from router.model.errors import Code, Executed, RouterError
from router.model.events import HandlerFailed
from router.model.reasons import RefuseReason
from router.model.request import CancelOutcome, Method, Request
from router.model.result import Answer
from router.model.topology import Tenant
from tests.api.conftest import AUTH, World, eventually
from tests.api.fake_engine import answer_of
from tests.api.multiplex_caller import Stream, cancel, execute, query
from tests.api.reading import reason_of


@pytest.fixture(params=["tasks", "callbacks"])
def stream(world: World, request: pytest.FixtureRequest) -> Stream:
    """Both ways in which reads run."""
    world.executor.starts_reads = request.param == "callbacks"
    return Stream(world)


async def test_each_kind_of_call_is_answered_in_kind(world: World, stream: Stream) -> None:
    batch = pb.ExecuteBatchRequest(steps=[pb.BatchStep(statement=types_pb2.Statement(sql="b"), want_rows=True)])
    await stream.send(query(1), execute(2), pb.MultiplexCall(id=2**63, batch=batch))
    await stream.read_until(1, 2, 2**63)
    kinds = {call_id: reply.WhichOneof("reply") for call_id, reply in stream.replies.items()}
    assert kinds == {1: "query", 2: "execute", 2**63: "batch"}
    assert stream.replies[1].query.receipt.endpoint == "pg1"
    methods = [request.method for request in world.executor.requests]
    assert methods == [Method.QUERY, Method.EXECUTE, Method.EXECUTE_BATCH]
    await stream.end()


async def test_what_is_ready_together_leaves_as_one_message(stream: Stream) -> None:
    await stream.send(*(query(number) for number in range(20)))
    await stream.read_until(*range(20))
    assert len(stream.messages) == 1
    await stream.end()


async def test_replies_come_in_the_order_in_which_they_are_ready(world: World, stream: Stream) -> None:
    world.executor.run_with = world.executor.wait_for_gate
    await stream.send(query(1, "slow"), query(2, "fast"))
    await stream.read_until(2)
    assert set(stream.replies) == {2}
    world.executor.gate.set()
    await stream.read_until(1)
    assert stream.text(1) == "slow"
    await stream.end()


async def test_bad_calls_are_answered_and_disturb_no_other(world: World, stream: Stream) -> None:
    async def run(tenant: Tenant, request: Request) -> Answer:
        match request.steps[0].statement.sql:
            case b"refused":
                raise RouterError(Code.UNAVAILABLE, RefuseReason.NO_BACKEND, "m", retry_after_s=1)
            case b"broken":
                raise KeyError("secret")
            case sql:
                return answer_of(sql.decode())

    world.executor.run_with = run
    await stream.send(
        query(1, "refused"),
        query(2, "broken"),
        query(3, ""),
        pb.MultiplexCall(id=4),
        query(5, "good"),
        pb.MultiplexCall(id=6, query=pb.QueryRequest()),
    )
    await stream.read_until(1, 2, 3, 4, 5, 6)
    assert stream.text(5) == "good"
    assert stream.failure(1) == (Code.UNAVAILABLE.value, "NO_BACKEND", "no")
    assert stream.failure(2) == (Code.INTERNAL.value, "INTERNAL", "maybe")
    assert stream.failure(3) == (Code.INVALID_ARGUMENT.value, "STATEMENT_MISSING", "no")
    assert stream.failure(4) == (Code.INVALID_ARGUMENT.value, "BAD_REQUEST", "no")
    assert stream.failure(6) == (Code.INVALID_ARGUMENT.value, "STATEMENT_MISSING", "no")
    assert [(method, error.reason.name) for _, method, error in world.executor.refusals] == [
        (Method.QUERY, "STATEMENT_MISSING"),
        (Method.QUERY, "STATEMENT_MISSING"),
    ]
    assert len(world.events.of(HandlerFailed)) == 1
    await stream.end()


async def test_an_id_in_flight_cannot_be_used_again(world: World, stream: Stream) -> None:
    world.executor.run_with = world.executor.wait_for_gate
    await stream.send(query(1, "slow"), query(1, "fast"))
    await stream.read_until(1)
    assert stream.failure(1) == (Code.INVALID_ARGUMENT.value, "BAD_REQUEST", "no")
    world.executor.gate.set()
    stream.replies.clear()
    await stream.read_until(1)
    assert stream.text(1) == "slow"
    await stream.end()


async def test_calls_beyond_the_bound_are_refused_and_come_again(world: World, stream: Stream) -> None:
    world.executor.run_with = world.executor.wait_for_gate
    await stream.send(*(query(number, "slow") for number in range(70)))
    await stream.read_until(*range(64, 70))
    assert {stream.failure(number) for number in range(64, 70)} == {
        (Code.RESOURCE_EXHAUSTED.value, "QUEUE_FULL", "no")
    }
    assert world.executor.most_running == 64
    assert len(world.executor.refusals) == 6
    world.executor.gate.set()
    await stream.read_until(*range(64))
    await stream.send(query(100))
    await stream.read_until(100)
    assert stream.text(100) == "q"
    await stream.end()


async def test_each_call_has_a_deadline_of_its_own(world: World, stream: Stream) -> None:
    now = asyncio.get_running_loop().time()
    with_option = query(3)
    with_option.query.options.timeout_ms = 1500
    await stream.send(query(1), query(2, timeout_ms=500), with_option, query(4, timeout_ms=90_000))
    await stream.read_until(1, 2, 3, 4)
    assert [round(request.deadline - now, 1) for request in world.executor.requests] == [7.0, 0.5, 1.5, 20.0]
    await stream.end()


async def test_cancel_asks_the_engine_and_the_call_answers_by_itself(world: World, stream: Stream) -> None:
    world.executor.run_with = world.executor.wait_for_gate
    world.executor.cancel_outcome = CancelOutcome.CANCELLING
    await stream.send(execute(1, "slow"))
    await eventually(lambda: world.executor.running == 1)
    await stream.send(cancel(1), cancel(99))
    await eventually(lambda: world.executor.stopped)
    assert world.executor.stopped == world.executor.requests
    world.executor.gate.set()  # it was faster than the cancel
    await stream.read_until(1)
    assert stream.text(1) == "slow"
    await stream.end()


async def test_cancel_stops_its_own_call_among_those_of_one_request_id(world: World, stream: Stream) -> None:
    world.executor.run_with = world.executor.wait_for_gate
    world.executor.cancel_outcome = CancelOutcome.CANCELLING
    calls = execute(1, "slow a"), execute(2, "slow b")
    for call in calls:
        call.execute.request_id = "one-trace-of-many-calls"
    await stream.send(*calls)
    await eventually(lambda: world.executor.running == 2)
    await stream.send(cancel(1))
    await eventually(lambda: world.executor.stopped)
    assert [one.steps[0].statement.sql for one in world.executor.stopped] == [b"slow a"]
    assert not world.executor.cancels, "by its id the other one would be stopped, too"
    world.executor.gate.set()
    await stream.read_until(1, 2)
    await stream.end()


@pytest.mark.parametrize(("call", "executed"), [(query(1, "slow"), "no"), (execute(1, "slow"), "maybe")])
async def test_cancel_of_what_the_engine_does_not_know_stops_it_here(
    world: World, stream: Stream, call: pb.MultiplexCall, executed: str
) -> None:
    world.executor.run_with = world.executor.wait_for_gate
    await stream.send(call)
    await eventually(lambda: world.executor.running == 1)
    await stream.send(cancel(1))
    await stream.read_until(1)
    assert stream.failure(1) == (Code.CANCELLED.value, "CANCELLED", executed)
    await eventually(lambda: world.executor.running == 0)
    await stream.end()


async def test_cancel_in_the_same_message_keeps_the_call_from_starting(world: World, stream: Stream) -> None:
    await stream.send(execute(1, "never"), cancel(1), query(2))
    await stream.read_until(1, 2)
    assert stream.failure(1) == (Code.CANCELLED.value, "CANCELLED", "no")
    assert [request.method for request in world.executor.requests] == [Method.QUERY]
    await stream.end()


async def test_a_caller_that_ends_its_side_still_gets_its_answers(world: World, stream: Stream) -> None:
    world.executor.run_with = world.executor.wait_for_gate
    await stream.send(query(1, "slow"))
    await eventually(lambda: world.executor.running == 1)
    asyncio.get_running_loop().call_later(0.05, world.executor.gate.set)
    await stream.end()
    assert stream.text(1) == "slow"
    assert await stream.call.code() is grpc.StatusCode.OK


async def test_a_caller_that_goes_away_has_everything_cancelled(world: World, stream: Stream) -> None:
    tasks = len(asyncio.all_tasks())
    world.executor.run_with = world.executor.wait_for_gate
    await stream.send(*(query(number, "slow") for number in range(30)))
    await eventually(lambda: world.executor.running == 30)
    stream.call.cancel()
    await eventually(lambda: world.executor.running == 0)
    await eventually(lambda: world.server.running == 0)
    await eventually(lambda: len(asyncio.all_tasks()) <= tasks)
    assert not world.events.events


async def test_large_replies_travel_in_messages_that_every_client_takes(world: World, stream: Stream) -> None:
    async def run(tenant: Tenant, request: Request) -> Answer:
        return answer_of("x" * (900 << 10))

    world.executor.run_with = run
    await stream.send(*(query(number) for number in range(10)))
    await stream.read_until(*range(10))
    assert max(message.ByteSize() for message in stream.messages) < 2 << 20
    await stream.end()


async def test_the_loop_is_given_up_while_a_large_message_is_started(world: World, stream: Stream) -> None:
    await stream.send(*(query(number) for number in range(60)))
    await stream.read_until(*range(60))
    assert len(stream.messages) > 1  # the first were answered while others were still to be started
    await stream.end()


async def test_a_message_too_large_is_refused_call_by_call(world: World, stream: Stream) -> None:
    await stream.send(query(1), query(2, "x" * (1 << 20)))
    await stream.read_until(1, 2)
    for number in (1, 2):
        assert stream.failure(number) == (Code.INVALID_ARGUMENT.value, "MESSAGE_TOO_LARGE", "no")
    await stream.send(query(3))
    await stream.read_until(3)
    assert stream.text(3) == "ok"
    await stream.end()


async def test_a_reply_beyond_any_message_is_an_error_that_does_not_deny_the_write(
    world: World, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.api.multiplex.MAX_REPLY_BYTES", 10)
    monkeypatch.setattr("router.api.multiplex.LARGE_BYTES", 10)
    await stream.send(execute(1))
    await stream.read_until(1)
    assert stream.failure(1) == (Code.FAILED_PRECONDITION.value, "RESULT_TOO_LARGE", "yes")
    await stream.end()


async def test_bytes_that_are_no_message_end_the_stream(world: World) -> None:
    start: Any = world.channel.stream_stream("/pointsman.v1.QueryService/Multiplex")
    call = start(metadata=AUTH)
    await call.write(b"\xff\xff\xff")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert reason_of(caught.value) == ("BAD_REQUEST", "no")
    assert not world.events.events


async def test_a_drain_is_told_once_and_what_was_accepted_is_finished(world: World, stream: Stream) -> None:
    world.executor.run_with = world.executor.wait_for_gate
    await stream.send(execute(1, "slow"))
    await eventually(lambda: world.executor.running == 1)
    draining = asyncio.create_task(world.server.drain(2.0))
    assert (await stream.read_one()).draining
    await stream.send(query(2))
    await stream.read_until(2)
    assert stream.failure(2) == (Code.UNAVAILABLE.value, "DRAINING", "no")
    world.executor.gate.set()
    await stream.end()
    assert stream.text(1) == "slow"
    assert [message.draining for message in stream.messages].count(True) == 1
    assert await draining


async def test_after_a_drain_an_idle_stream_is_ended(world: World, stream: Stream) -> None:
    await stream.send(query(1))
    await stream.read_until(1)
    began = asyncio.get_running_loop().time()
    assert await world.server.drain(5.0)
    assert asyncio.get_running_loop().time() - began < 2.0
    assert (await stream.read_one()).draining
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stream.call.read()
    assert reason_of(caught.value) == ("DRAINING", "no")


async def test_a_caller_that_does_not_read_is_not_read_either(
    world: World, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "BACKLOG_BYTES", 1 << 20)

    async def run(tenant: Tenant, request: Request) -> Answer:
        return answer_of("x" * (900 << 10))

    world.executor.run_with = run
    for number in range(40):
        await stream.send(query(number))
    await asyncio.sleep(0.2)
    assert len(world.executor.requests) < 40
    await stream.read_until(*range(40))
    assert len(world.executor.requests) == 40
    await stream.end()


async def test_a_failed_call_says_whether_it_may_be_repeated(world: World, stream: Stream) -> None:
    async def run(tenant: Tenant, request: Request) -> Answer:
        raise RouterError(
            Code.UNKNOWN, RefuseReason.OUTCOME_UNKNOWN, "m", executed=Executed.MAYBE, retry_after_s=1.0
        )

    world.executor.run_with = run
    await stream.send(execute(1))
    await stream.read_until(1)
    assert stream.failure(1) == (Code.UNKNOWN.value, "OUTCOME_UNKNOWN", "maybe")
    assert len(stream.replies[1].failure.details) == 1
    await stream.end()
