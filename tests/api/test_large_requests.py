"""What a Multiplex stream's requests take of the process before they are answered, and who goes on meanwhile."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from typing import Any

import grpc.aio
import pytest
from pointsman.v1 import query_service_pb2 as pb
from pointsman.v1 import transaction_service_pb2 as tx_pb
from pointsman.v1 import types_pb2

from router.api import intake
from router.api.intake import Intake, is_large, weight_of_batch
from router.api.translate import batch_request
from router.model.errors import Code
from router.model.policy import ServerPolicy
from router.model.request import BatchStep, Method, Request, Statement
from tests.api.conftest import AUTH, World, eventually
from tests.api.multiplex_caller import Stream, cancel, execute, query
from tests.api.test_unread_streams import Large, most_resident, resident

MIB = 1 << 20
SIZE = MIB - 1000
Make = Callable[..., pb.MultiplexCall]


@pytest.fixture
def policy(policy: ServerPolicy) -> ServerPolicy:
    return dataclasses.replace(policy, max_stream_calls=1024)


def large_query(call_id: int, size: int = SIZE, **fields: Any) -> pb.MultiplexCall:
    return with_blob(query(call_id, "slow", **fields), "query", size)


def large_execute(call_id: int, size: int = SIZE) -> pb.MultiplexCall:
    return with_blob(execute(call_id, "slow"), "execute", size)


def with_blob(call: pb.MultiplexCall, kind: str, size: int) -> pb.MultiplexCall:
    getattr(call, kind).statement.params.append(types_pb2.Param(blob=bytes(size)))
    return call


@pytest.fixture(params=["tasks", "callbacks", "writes"])
def make(world: World, request: pytest.FixtureRequest) -> Make:
    """All ways in which calls run: what makes a large one."""
    world.executor.starts_reads = request.param == "callbacks"
    world.executor.run_with = world.executor.wait_for_gate
    return large_execute if request.param == "writes" else large_query


class Flood:
    """A caller that sends large calls as fast as it may, and reads no answer before all are sent."""

    def __init__(self, world: World, calls: int, make: Make = large_execute) -> None:
        self.stream = Stream(world)
        self.sent = 0
        self._make = make
        self._calls = calls
        self.sending = asyncio.create_task(self._send())

    async def _send(self) -> None:
        for number in range(self._calls):
            await self.stream.send(self._make(number))
            self.sent += 1

    async def answered(self) -> set[str | None]:
        """Reads until all is; which kinds the answers were of."""
        await asyncio.gather(self.sending, self.stream.read_until(*range(self._calls)))
        await self.stream.end()
        return {reply.WhichOneof("reply") for reply in self.stream.replies.values()}


async def at_rest(world: World) -> int:
    """Requests that the engine has when no more come."""
    seen = -1
    while seen != len(world.executor.requests):
        seen = len(world.executor.requests)
        await asyncio.sleep(0.1)
    return seen


async def test_large_requests_that_nobody_answers_stay_within_the_bound(world: World, make: Make) -> None:
    before = resident()
    flood = Flood(world, 200, make)
    assert await most_resident(1.0) - before < intake.MOST_BYTES + 40 * MIB
    assert await at_rest(world) == 33
    assert flood.sent < 60  # the rest is its caller's own, with what gRPC holds
    other = Stream(world)
    for call in (query(1), execute(2), make(3)):
        await other.send(call)
    await other.read_until(1, 2)
    assert 3 not in other.replies
    world.executor.gate.set()
    assert len(await flood.answered()) == 1
    assert len(world.executor.requests) == 203
    await other.end()


async def test_what_is_answered_makes_room(world: World, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "MOST_BYTES", 3 * MIB)
    waiting: list[asyncio.Event] = []

    async def one_by_one(tenant: Any, request: Request) -> Any:
        waiting.append(asyncio.Event())
        await waiting[-1].wait()
        return await world.executor.wait_for_gate(tenant, request)

    world.executor.gate.set()
    world.executor.run_with = one_by_one
    flood = Flood(world, 12, make)
    for _ in range(12):
        await at_rest(world)
        running = [one for one in waiting if not one.is_set()]
        assert len(running) == min(4, 12 - (len(waiting) - len(running)))
        running[-1].set()
    assert len(await flood.answered()) == 1


async def test_cancels_and_small_calls_pass_a_full_budget(
    world: World, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "MOST_BYTES", 100_000)
    stream = Stream(world)
    await stream.send(make(1, 90_000))
    await stream.send(make(2, 90_000))
    await eventually(lambda: world.executor.running == 2)
    small = [query(number, "quick") for number in range(10, 210)]
    await stream.send(*small)
    await stream.read_until(*range(10, 210))
    await stream.send(cancel(2), make(3, 90_000), cancel(1))
    await stream.read_until(2)
    assert stream.failure(2)[:2] == (Code.CANCELLED.value, "CANCELLED")
    await stream.read_until(1)  # there was room for 3 then, and so for what is behind it
    await eventually(lambda: len(world.executor.requests) == 203)
    assert 3 not in stream.replies
    world.executor.gate.set()
    await stream.read_until(3)
    await stream.end()


async def test_many_large_calls_of_one_message_begin_as_there_is_room(
    world: World, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "MOST_BYTES", 100_000)
    stream = Stream(world)
    await stream.send(*(make(number, 60_000) for number in range(10)))
    assert await at_rest(world) == 2
    await stream.send(cancel(9))  # behind what waits: it finds its call
    world.executor.gate.set()
    await stream.read_until(*range(10))
    assert len(world.executor.requests) == 10
    await stream.end()


async def test_the_same_id_twice_is_counted_once(world: World, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "MOST_BYTES", 100_000)
    stream = Stream(world)
    await stream.send(make(1, 60_000), make(1, 60_000), make(1, 60_000), make(2, 30_000))
    await stream.read_until(1)
    assert stream.failure(1)[1] == "BAD_REQUEST"
    await eventually(lambda: len(world.executor.requests) == 2)
    world.executor.gate.set()
    await stream.read_until(2)
    await stream.end()


async def test_a_read_that_is_done_again_keeps_its_bytes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "MOST_BYTES", 100_000)
    monkeypatch.setattr("router.api.room.ROOM_BYTES", MIB)
    world.executor.starts_reads = True
    world.executor.run_with = Large(MIB - 1000, seconds=0.05)
    stream = Stream(world)
    await stream.send(*(large_query(number, 60_000) for number in range(8)))
    most = 0
    while world.executor.running or not stream.replies:
        most = max(most, world.executor.running)
        await asyncio.sleep(0.005)
        if len(stream.replies) < 8:
            await stream.read_one()
    await stream.read_until(*range(8))
    assert most <= 2
    await stream.end()


async def test_a_caller_that_goes_away_while_its_requests_wait(
    world: World, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "MOST_BYTES", 100_000)
    tasks = len(asyncio.all_tasks())
    stream = Stream(world)
    await stream.send(*(make(number, 60_000) for number in range(10)))
    assert await at_rest(world) == 2
    stream.call.cancel()
    await eventually(lambda: world.server.running == 0 and world.executor.running == 0)
    await eventually(lambda: len(asyncio.all_tasks()) <= tasks)
    assert not world.events.events


async def test_a_drain_refuses_what_waits_and_serves_what_runs(
    world: World, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "MOST_BYTES", 100_000)
    stream = Stream(world)
    await stream.send(*(make(number, 60_000) for number in range(4)))
    assert await at_rest(world) == 2
    draining = asyncio.create_task(world.server.drain(2.0))
    await asyncio.sleep(0.1)
    world.executor.gate.set()
    await stream.read_until(*range(4))
    assert [stream.failure(number)[1:] for number in (2, 3)] == [("DRAINING", "no")] * 2
    await stream.call.done_writing()
    assert await draining
    assert await stream.call.read() is grpc.aio.EOF or stream.messages


@pytest.mark.parametrize("kind", ["many calls", "transactions"])
async def test_an_open_stream_keeps_nothing_of_what_was_answered(world: World, kind: str) -> None:
    statement = types_pb2.Statement(sql="s", params=[types_pb2.Param(blob=bytes(SIZE))])
    message: Any = pb.MultiplexRequest(calls=[large_execute(1)])
    rpc = world.query.Multiplex
    if kind == "transactions":
        message, rpc = tx_pb.TransactRequest(tag=1, begin=tx_pb.TransactBegin(), run=statement), world.transact.Transact

    async def idle() -> Any:
        stream = rpc(metadata=AUTH)
        await stream.write(message)
        await stream.read()
        return stream

    streams = [await idle() for _ in range(8)]
    world.executor.requests.clear()
    before = resident()
    for _ in range(48):
        streams.append(await idle())
        world.executor.requests.clear()
    assert resident() - before < 16 * MIB
    for stream in streams:
        stream.cancel()


def test_what_a_request_weighs_is_about_what_it_takes() -> None:
    steps = [pb.BatchStep(statement=types_pb2.Statement(sql="s", params=[types_pb2.Param(null=True)] * 100))] * 1000
    message = pb.ExecuteBatchRequest(steps=steps)
    weight = weight_of_batch(batch_request(message, 1.0, "id"))
    assert 10 * message.ByteSize() < weight < 30 * message.ByteSize()
    one = Intake()
    one.take(1, Request(Method.QUERY, (BatchStep(Statement(b"s", (bytes(MIB),))),), 1.0, size_bytes=MIB + 1))
    one.take(2, Request(Method.QUERY, (BatchStep(Statement(b"s", (None,) * 1000)),), 1.0, size_bytes=1))
    assert MIB < one.weights[1] < MIB + 100
    assert 16_000 < one.weights[2] < 70_000


def test_messages_of_many_usual_calls_are_not_looked_at() -> None:
    assert is_large(4097, 16) is True
    assert is_large(4096, 16) is False
    assert is_large(16_384, 64) is False
    assert is_large(16_385, 1000) is True


async def test_bytes_are_those_of_the_calls_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "MOST_BYTES", 20_000)
    one = Intake()
    request = Request(Method.QUERY, (), 1.0, size_bytes=9000)
    one.take(1, Request(Method.QUERY, (), 1.0, size_bytes=100))
    assert not one.weights
    for call_id in (1, 2, 2, 3):
        one.take(call_id, request)
    assert one.full
    waiting = asyncio.create_task(one.wait_below())
    await asyncio.sleep(0)
    one.leave(7)
    assert not waiting.done()
    one.leave(2)
    await waiting
    assert (one.full, sum(one.weights.values())) == (False, 18_000)
    for call_id in (1, 3):
        one.leave(call_id)
    assert (one.full, one.weights, one._bytes) == (False, {}, 0)
