"""Frames written by hand are what protobuf would have written, and messages keep their bounds."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st
from pointsman.v1 import errors_pb2
from pointsman.v1 import query_service_pb2 as pb

from router.api.outbox import BACKLOG_BYTES, MESSAGE_BYTES, Outbox, reply_frame


@given(st.lists(st.tuples(st.integers(0, 2**64 - 1), st.text(max_size=300)), max_size=20))
def test_frames_are_protobuf(replies: list[tuple[int, str]]) -> None:
    outbox = Outbox()
    expected = pb.MultiplexResponse()
    for call_id, text in replies:
        failure = errors_pb2.Status(code=3, message=text)
        outbox.add(reply_frame(call_id, "failure", failure.SerializeToString()))
        reply = expected.replies.add(id=call_id)
        reply.failure.CopyFrom(failure)
    assert pb.MultiplexResponse.FromString(outbox.take()) == expected


def test_each_kind_has_its_field() -> None:
    answers = {"query": pb.QueryResponse(), "execute": pb.ExecuteResponse(), "batch": pb.ExecuteBatchResponse()}
    for kind, answer in answers.items():
        answer.receipt.endpoint = "pg1"
        (reply,) = pb.MultiplexResponse.FromString(reply_frame(1, kind, answer.SerializeToString())).replies
        assert reply.WhichOneof("reply") == kind
        assert getattr(reply, kind) == answer


@given(st.lists(st.integers(1, MESSAGE_BYTES * 2), max_size=12))
def test_messages_keep_their_bound_and_lose_nothing(sizes: list[int]) -> None:
    outbox = Outbox()
    for size in sizes:
        outbox.add(bytes(size))
    taken: list[int] = []
    while message := outbox.take():
        taken.append(len(message))
        assert len(message) <= MESSAGE_BYTES or len(message) in sizes
    assert sum(taken) == sum(sizes)


async def test_a_backlog_makes_the_reader_wait() -> None:
    outbox = Outbox()
    for _ in range(BACKLOG_BYTES // MESSAGE_BYTES + 1):
        outbox.add(bytes(MESSAGE_BYTES))
    waiting = asyncio.create_task(outbox.wait_below())
    await asyncio.sleep(0)
    assert not waiting.done()
    outbox.take()
    await waiting


def test_a_drain_is_announced_once() -> None:
    outbox = Outbox()
    outbox.announce_drain()
    assert pb.MultiplexResponse.FromString(outbox.take()).draining
    assert outbox.take() == b""
