"""What a Multiplex stream takes of the process while its caller does not read, by the process's own figures."""

from __future__ import annotations

import asyncio
import ctypes
import dataclasses
from pathlib import Path
from typing import Any, cast

import pytest
from pointsman.v1 import query_service_pb2 as pb

from router.api import outbox, room
from router.api.answering import Answering
from router.api.calls import Call
from router.api.drain import Drain
from router.api.multiplex import Multiplexing
from router.model.errors import Code
from router.model.policy import ServerPolicy
from router.model.request import Method, Request
from router.model.result import Answer
from router.model.topology import Tenant
from router.system import SystemChance, SystemClock
from tests.api.conftest import World, eventually
from tests.api.fake_engine import FakeEncoder, FakeExecutor, answer_of
from tests.api.measure_request_path import Proved
from tests.api.multiplex_caller import Stream, cancel, execute, query
from tests.support.builders import Recorder, tenant

MIB = 1 << 20
MOST_UNREAD = room.MOST_BYTES + 32 * MIB
"""Also what gRPC holds of a message on both ends, and what the allocator does not give back."""


@pytest.fixture
def policy(policy: ServerPolicy) -> ServerPolicy:
    return dataclasses.replace(policy, max_stream_calls=1024)


@pytest.fixture(params=["tasks", "callbacks"])
def stream(world: World, request: pytest.FixtureRequest) -> Stream:
    """Both ways in which reads run."""
    world.executor.starts_reads = request.param == "callbacks"
    return Stream(world)


class Large:
    """Answers of one size to statements that take their time; counts them by statement."""

    def __init__(self, size: int, seconds: float = 0.0) -> None:
        self.size = size
        self.seconds = seconds
        self.running = 0
        self._one = asyncio.Lock()

    async def __call__(self, tenant: Tenant, request: Request) -> Answer:
        sql = request.steps[0].statement.sql.decode()
        if "small" in sql:
            return answer_of(sql)
        self.running += 1
        await asyncio.sleep(self.seconds)
        self.running -= 1
        async with self._one:  # as from a connection: the next is there when this one was taken
            await asyncio.sleep(0)
            return answer_of("x" * self.size)


def resident() -> int:
    """Bytes, without what is free already."""
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


async def most_resident(seconds: float) -> int:
    """The most in this time."""
    most = 0
    for _ in range(round(seconds / 0.02)):
        most = max(most, resident())
        await asyncio.sleep(0.02)
    return most


async def test_many_large_answers_to_one_message_stay_within_the_bound(world: World, stream: Stream) -> None:
    world.executor.run_with = Large(MIB - 100)
    before = resident()
    await stream.send(*(query(number) for number in range(200)))
    assert await most_resident(1.0) - before < MOST_UNREAD
    await stream.read_until(*range(200))
    assert {reply.WhichOneof("reply") for reply in stream.replies.values()} == {"query"}
    await stream.end()


async def test_many_large_answers_to_messages_of_their_own_stay_within_the_bound(
    world: World, stream: Stream
) -> None:
    world.executor.run_with = Large(MIB - 100, seconds=0.1)
    before = resident()
    for number in range(200):
        await stream.send(query(number))
    assert await most_resident(1.3) - before < MOST_UNREAD
    await stream.read_until(*range(200))
    assert {reply.WhichOneof("reply") for reply in stream.replies.values()} == {"query"}
    await stream.end()


async def test_forty_large_answers_of_which_none_was_expected_are_all_delivered(world: World, stream: Stream) -> None:
    world.executor.run_with = Large(MIB - 100)
    await stream.send(*(query(number, f"q{number}") for number in range(40)))
    await asyncio.sleep(0.3)
    runs = len(world.executor.requests)
    assert runs <= 40
    await stream.read_until(*range(40))
    assert len(world.executor.requests) > 40  # a read that had no room was done again
    await stream.end()


async def test_a_large_statement_that_is_known_runs_a_few_at_a_time(
    world: World, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "ROOM_BYTES", 8 * MIB)
    world.executor.run_with = large = Large(MIB - 100, seconds=0.05)
    await stream.send(query(1))
    await stream.read_until(1)
    world.executor.requests.clear()
    await stream.send(*(query(number) for number in range(2, 32)), query(99, "small"))
    await stream.read_until(99)
    assert 1 < large.running <= 8
    await stream.read_until(*range(2, 32))
    assert len(world.executor.requests) == 31  # none was done twice
    await stream.end()


async def test_a_write_whose_answer_has_no_room_is_said_to_be_done(
    world: World, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "MOST_BYTES", MIB)
    world.executor.run_with = Large(900 << 10, seconds=0.1)
    await stream.send(*(execute(number) for number in range(40)))
    await asyncio.sleep(0.5)
    await stream.read_until(*range(40))
    assert len(world.executor.requests) == 40
    lost = [number for number, reply in stream.replies.items() if reply.WhichOneof("reply") == "failure"]
    assert 0 < len(lost) < 40
    assert {stream.failure(number) for number in lost} == {
        (Code.RESOURCE_EXHAUSTED.value, "RESULT_TOO_LARGE", "yes")
    }
    await stream.end()


async def test_a_call_that_waits_for_room_keeps_its_deadline(
    world: World, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "BACKLOG_BYTES", MIB)
    world.executor.run_with = Large(900 << 10)
    await stream.send(*(query(number) for number in range(20)))
    await asyncio.sleep(0.2)
    begun = len(world.executor.requests)
    await stream.send(query(50, "small"), execute(51, "small"))  # not read before there is room
    await asyncio.sleep(0.1)
    assert len(world.executor.requests) == begun
    await stream.read_until(*range(20), 50, 51)
    calls = [query(number, timeout_ms=100) for number in range(100, 160)]
    await stream.send(*calls)
    await asyncio.sleep(0.5)
    await stream.read_until(*range(100, 160))
    late = [n for n in range(100, 160) if stream.replies[n].WhichOneof("reply") == "failure"]
    assert late == list(range(late[0], 160))  # first come, first served
    assert {stream.failure(number) for number in late} == {(Code.RESOURCE_EXHAUSTED.value, "QUEUE_FULL", "no")}
    assert [(method, error.reason.name) for _, method, error in world.executor.refusals] == [
        (Method.QUERY, "QUEUE_FULL")
    ] * len(late)
    await stream.end()


async def test_a_cancel_reaches_a_call_that_waits_for_room(
    world: World, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "ROOM_BYTES", 3 * MIB // 2)
    world.executor.run_with = Large(MIB - 100)
    for call in (query(1), execute(2)):
        await stream.send(call)
        await stream.read_until(call.id)
    world.executor.run_with = large = Large(MIB - 100, seconds=0.5)
    await stream.send(execute(3), query(4), execute(5))
    await eventually(lambda: large.running == 1)
    await stream.send(cancel(4), cancel(5))
    await stream.read_until(4, 5)
    assert {stream.failure(number) for number in (4, 5)} == {(Code.CANCELLED.value, "CANCELLED", "no")}
    assert 3 not in stream.replies
    await stream.read_until(3)
    await stream.end()


async def test_a_caller_that_goes_away_leaves_nobody_waiting(world: World, stream: Stream) -> None:
    tasks = len(asyncio.all_tasks())
    world.executor.run_with = Large(MIB - 100)
    await stream.send(*(query(number) for number in range(60)))
    await asyncio.sleep(0.3)
    stream.call.cancel()
    await eventually(lambda: world.server.running == 0)
    await eventually(lambda: len(asyncio.all_tasks()) <= tasks)
    assert not world.events.events


class Unread:
    """api.message_stream.MessageStream whose other end sends one message, and reads when it is told to."""

    max_bytes = last_bytes = MIB

    def __init__(self, *calls: pb.MultiplexCall) -> None:
        self._messages = [pb.MultiplexRequest(calls=calls)]
        self.reads = asyncio.Event()
        self.replies = 0

    def time_remaining(self) -> float | None:
        return None

    async def let_in(self, processes: int) -> None: ...

    async def read(self) -> pb.MultiplexRequest | None:
        return self._messages.pop() if self._messages else None

    async def write(self, raw: bytes) -> None:
        await self.reads.wait()
        self.replies += len(pb.MultiplexResponse.FromString(raw).replies)


async def test_refusals_nobody_reads_are_bounded_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "BACKLOG_BYTES", 64 << 10)
    executor, clock, events = FakeExecutor(), SystemClock(), Recorder()
    answering = Answering(executor, FakeEncoder(), SystemChance())
    shared = Multiplexing(answering, Drain(clock), clock, events, 64)
    unread = Unread(*(pb.MultiplexCall(id=number, query=pb.QueryRequest()) for number in range(5000)))
    call = Call(Proved(tenant()), "Multiplex", clock.now(), None)
    serving = asyncio.create_task(shared.serve(call, cast("Any", unread)))
    await asyncio.sleep(0.5)
    assert 0 < len(executor.refusals) < 2000
    unread.reads.set()
    await serving
    assert unread.replies == len(executor.refusals) == 5000
