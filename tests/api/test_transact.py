"""Transact over a real server and scripted sessions: order, in-band failures, ends, drain, and callers that vanish."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import status_pb2
from pointsman.v1 import query_service_pb2 as query_pb
from pointsman.v1 import transaction_service_pb2 as pb
from pointsman.v1 import types_pb2

from router.model.errors import Code, Executed, RouterError
from router.model.reasons import RefuseReason
from router.model.request import Isolation, Method, ReadFrom, TransactionMode
from tests.api.conftest import AUTH, World, eventually
from tests.api.reading import info_of, reason_of

COMMIT = pb.TRANSACT_END_COMMIT
ROLLBACK = pb.TRANSACT_END_ROLLBACK


def run(sql: str, tag: int = 1, *, begin: bool = False, **fields: Any) -> pb.TransactRequest:
    request = pb.TransactRequest(tag=tag, run=types_pb2.Statement(sql=sql), **fields)
    if begin:
        request.begin.SetInParent()
    return request


class Stream:
    """The caller's side, one message at a time."""

    def __init__(self, world: World) -> None:
        self.call: Any = world.transact.Transact(metadata=AUTH)

    async def ask(self, request: pb.TransactRequest) -> pb.TransactResponse:
        await self.call.write(request)
        return await self.read()

    async def read(self) -> pb.TransactResponse:
        async with asyncio.timeout(3):
            response = await self.call.read()
        assert isinstance(response, pb.TransactResponse), "the stream has ended"
        return response

    async def finish(self) -> grpc.StatusCode:
        async with asyncio.timeout(3):
            assert await self.call.read() is grpc.aio.EOF
            code: grpc.StatusCode = await self.call.code()
        return code


@pytest.fixture
def stream(world: World) -> Stream:
    return Stream(world)


def failure(response: pb.TransactResponse) -> tuple[str, str]:
    assert response.WhichOneof("event") == "failed"
    info = info_of(status_pb2.Status.FromString(response.failed.SerializeToString()))
    return info.reason, info.metadata["executed"]


async def test_a_whole_transaction_in_one_message(world: World, stream: Stream) -> None:
    response = await stream.ask(run("insert", tag=9, begin=True, end=COMMIT))
    assert response.tag == 9
    assert list(response.done.batch.columns[0].texts) == ["insert"]
    assert response.outcome == pb.TRANSACT_OUTCOME_COMMITTED
    assert response.status == pb.TRANSACTION_STATUS_IDLE
    assert response.receipt.endpoint == "pg1"
    assert await stream.finish() is grpc.StatusCode.OK
    assert world.sessions.log == ["insert", "commit", "close"]


async def test_step_by_step_with_savepoints(world: World, stream: Stream) -> None:
    begin = pb.TransactBegin(
        transaction=query_pb.TransactionOptions(isolation=query_pb.ISOLATION_LEVEL_REPEATABLE_READ, read_only=True),
        options=types_pb2.QueryOptions(read=types_pb2.READ_PREFERENCE_ANY),
    )
    begun = await stream.ask(pb.TransactRequest(tag=1, begin=begin))
    assert begun.WhichOneof("event") == "done"
    assert begun.status == pb.TRANSACTION_STATUS_IDLE
    assert (await stream.ask(run("a", tag=2))).status == pb.TRANSACTION_STATUS_IN_TRANSACTION
    await stream.ask(pb.TransactRequest(tag=3, savepoint="s"))
    failed = await stream.ask(run("fail", tag=4))
    assert failure(failed) == ("BAD_SQL", "rolled_back")
    assert failed.status == pb.TRANSACTION_STATUS_IN_ERROR
    assert failed.outcome == pb.TRANSACT_OUTCOME_UNSPECIFIED
    back = await stream.ask(pb.TransactRequest(tag=5, rollback_to="s"))
    assert back.status == pb.TRANSACTION_STATUS_IN_TRANSACTION
    await stream.ask(pb.TransactRequest(tag=6, release="s"))
    ended = await stream.ask(pb.TransactRequest(tag=7, end=ROLLBACK))
    assert ended.outcome == pb.TRANSACT_OUTCOME_ROLLED_BACK
    assert await stream.finish() is grpc.StatusCode.OK
    expected = ["a", "savepoint s", "fail", "rollback_to s", "release s", "rollback", "close"]
    assert world.sessions.log == expected
    ((mode, options),) = world.sessions.opened
    assert mode == TransactionMode(Isolation.REPEATABLE_READ, read_only=True)
    assert options.read is ReadFrom.ANY


async def test_a_message_whose_action_failed_is_not_committed(world: World, stream: Stream) -> None:
    response = await stream.ask(run("fail", begin=True, end=COMMIT))
    assert failure(response) == ("BAD_SQL", "rolled_back")
    assert response.outcome == pb.TRANSACT_OUTCOME_ROLLED_BACK
    assert await stream.finish() is grpc.StatusCode.OK
    assert world.sessions.log == ["fail", "rollback", "close"]


@pytest.mark.parametrize(
    ("executed", "outcome"),
    [
        (Executed.ROLLED_BACK, pb.TRANSACT_OUTCOME_ROLLED_BACK),
        (Executed.MAYBE, pb.TRANSACT_OUTCOME_UNSPECIFIED),
    ],
)
async def test_a_failed_commit_never_says_committed(
    world: World, stream: Stream, executed: Executed, outcome: pb.TransactOutcome
) -> None:
    world.sessions.commit_error = RouterError(
        Code.UNKNOWN, RefuseReason.OUTCOME_UNKNOWN, "lost", executed=executed
    )
    await stream.ask(run("a", begin=True))
    response = await stream.ask(pb.TransactRequest(tag=2, end=COMMIT))
    assert failure(response) == ("OUTCOME_UNKNOWN", executed.value)
    assert response.outcome == outcome
    assert await stream.finish() is grpc.StatusCode.OK
    assert world.sessions.log == ["a", "commit", "close"]


async def test_pipelined_messages_after_a_refused_one_are_not_done(world: World, stream: Stream) -> None:
    """PostgreSQL has not seen the refused statement, so nobody else would stop what was sent behind it."""
    await stream.call.write(run("a", tag=1, begin=True))
    await stream.call.write(run("refuse", tag=2))
    await stream.call.write(run("b", tag=3))
    await stream.call.write(pb.TransactRequest(tag=4, end=COMMIT))
    answers = [await stream.read() for _ in range(4)]
    assert answers[0].WhichOneof("event") == "done"
    assert failure(answers[1]) == ("TRANSACTION_CONTROL", "no")
    assert answers[1].status == pb.TRANSACTION_STATUS_IN_ERROR
    assert failure(answers[2]) == ("TRANSACTION_MISUSE", "no")
    assert failure(answers[3]) == ("TRANSACTION_LOST", "rolled_back")
    assert answers[3].outcome == pb.TRANSACT_OUTCOME_ROLLED_BACK
    assert await stream.finish() is grpc.StatusCode.OK
    assert world.sessions.log == ["a", "refuse", "rollback", "close"]


async def test_the_same_after_a_message_that_makes_no_sense(world: World, stream: Stream) -> None:
    await stream.ask(run("a", begin=True))
    assert failure(await stream.ask(run("", tag=2))) == ("STATEMENT_MISSING", "no")
    assert failure(await stream.ask(run("b", tag=3)))[0] == "TRANSACTION_MISUSE"
    assert (await stream.ask(pb.TransactRequest(tag=4, rollback_to="s"))).WhichOneof("event") == "done"
    assert (await stream.ask(run("c", tag=5, end=COMMIT))).outcome == pb.TRANSACT_OUTCOME_COMMITTED
    assert world.sessions.log[:4] == ["a", "rollback_to s", "c", "commit"]
    assert [method for _, method, _ in world.executor.refusals] == [Method.TRANSACT] * 2


async def test_a_lost_transaction_ends_the_stream_with_its_error(world: World, stream: Stream) -> None:
    await stream.ask(run("a", begin=True))
    response = await stream.ask(run("lose", tag=2))
    assert failure(response) == ("TRANSACTION_LOST", "rolled_back")
    assert response.outcome == pb.TRANSACT_OUTCOME_ROLLED_BACK
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stream.call.read()
    assert caught.value.code() is grpc.StatusCode.ABORTED
    assert reason_of(caught.value) == ("TRANSACTION_LOST", "rolled_back")
    assert world.sessions.log == ["a", "lose", "close"]


async def test_a_transaction_that_cannot_begin_ends_the_stream(world: World, stream: Stream) -> None:
    world.sessions.open_error = RouterError(
        Code.RESOURCE_EXHAUSTED, RefuseReason.QUOTA, "too many", retry_after_s=1.0
    )
    assert failure(await stream.ask(run("a", begin=True))) == ("QUOTA", "no")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stream.call.read()
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (run("a"), "TRANSACTION_MISUSE"),
        (pb.TransactRequest(tag=1), "TRANSACTION_MISUSE"),
        (pb.TransactRequest(tag=1, savepoint="s"), "TRANSACTION_MISUSE"),
        (run("a", begin=True, end=77), "BAD_REQUEST"),
        (pb.TransactRequest(tag=1, begin=pb.TransactBegin(), savepoint=""), "BAD_REQUEST"),
        (run("x" * (1 << 20), begin=True), "MESSAGE_TOO_LARGE"),
    ],
)
async def test_a_first_message_that_does_not_fit(
    world: World, stream: Stream, request_: pb.TransactRequest, reason: str
) -> None:
    response = await stream.ask(request_)
    assert failure(response) == (reason, "no")
    assert not world.sessions.opened
    assert [(method, error.reason.name) for _, method, error in world.executor.refusals] == [
        (Method.TRANSACT, reason)
    ]


@pytest.mark.parametrize("request_", [run("b", tag=2, begin=True), pb.TransactRequest(tag=2)])
async def test_a_later_message_that_does_not_fit(world: World, stream: Stream, request_: pb.TransactRequest) -> None:
    await stream.ask(run("a", begin=True))
    assert failure(await stream.ask(request_))[0] in ("TRANSACTION_MISUSE", "BAD_REQUEST")
    assert world.sessions.log == ["a"]


async def test_a_read_too_large_leaves_the_transaction_alive(world: World, stream: Stream) -> None:
    response = await stream.ask(run("large", begin=True))
    assert failure(response) == ("RESULT_TOO_LARGE", "yes")
    assert response.status == pb.TRANSACTION_STATUS_IN_TRANSACTION
    assert (await stream.ask(run("a", tag=2, end=COMMIT))).outcome == pb.TRANSACT_OUTCOME_COMMITTED


async def test_half_close_without_an_end_rolls_back(world: World, stream: Stream) -> None:
    await stream.ask(run("a", begin=True))
    await stream.call.done_writing()
    assert await stream.finish() is grpc.StatusCode.OK
    assert world.sessions.log == ["a", "close"]


async def test_a_caller_that_vanishes_in_mid_statement_is_rolled_back_at_once(world: World, stream: Stream) -> None:
    tasks = len(asyncio.all_tasks())
    await stream.ask(run("a", begin=True))
    await stream.call.write(run("hang", tag=2))
    await eventually(lambda: "hang" in world.sessions.log)
    stream.call.cancel()
    assert world.sessions.session is not None
    await asyncio.wait_for(world.sessions.session.closed.wait(), 2)
    await eventually(lambda: world.server.running == 0)
    await eventually(lambda: len(asyncio.all_tasks()) <= tasks)
    assert not world.events.events


async def test_deadlines_come_from_the_message_and_from_begin(world: World, stream: Stream) -> None:
    now = asyncio.get_running_loop().time()
    begin = pb.TransactBegin(options=types_pb2.QueryOptions(timeout_ms=3000))
    await stream.ask(pb.TransactRequest(tag=1, begin=begin, run=types_pb2.Statement(sql="a")))
    await stream.ask(run("b", tag=2, timeout_ms=1000))
    assert world.sessions.session is not None
    assert [round(deadline - now, 1) for deadline in world.sessions.session.deadlines] == [3.0, 1.0]


async def test_a_drain_is_announced_and_the_transaction_may_finish(world: World, stream: Stream) -> None:
    await stream.ask(run("a", begin=True))
    draining = asyncio.create_task(world.server.drain(2.0))
    notice = await stream.read()
    assert (notice.tag, notice.WhichOneof("event")) == (0, "draining_ms")
    assert 1000 < notice.draining_ms <= 2000
    assert (await stream.ask(run("b", tag=2, end=COMMIT))).outcome == pb.TRANSACT_OUTCOME_COMMITTED
    assert await draining


async def test_a_stream_opened_before_a_drain_begins_nothing_after_it(world: World, stream: Stream) -> None:
    assert failure(await stream.ask(run("a")))[0] == "TRANSACTION_MISUSE"
    draining = asyncio.create_task(world.server.drain(1.0))
    assert (await stream.read()).WhichOneof("event") == "draining_ms"
    assert failure(await stream.ask(run("a", begin=True))) == ("DRAINING", "no")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stream.call.read()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert await draining


async def test_the_end_of_a_grace_rolls_back_what_is_left(world: World, stream: Stream) -> None:
    await stream.ask(run("a", begin=True))
    assert not await world.server.drain(0.05)
    await world.server.stop()
    assert world.sessions.log == ["a", "close"]
