"""A caller that sends many large reads and does not read costs the router little, and misses nothing when it does."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc.aio
import pytest
from pointsman.v1 import query_service_pb2 as pb
from pointsman.v1 import query_service_pb2_grpc, types_pb2

from tests.support.running_router import RunningRouter

pytestmark = pytest.mark.pg

CALLS = 200
SIZE = 1_000_000


def _calls() -> list[pb.MultiplexCall]:
    statement = types_pb2.Statement(sql="select repeat('x', $1::int4)")
    statement.params.add(integer=SIZE)
    return [
        pb.MultiplexCall(id=number, query=pb.QueryRequest(statement=statement), timeout_ms=60_000)
        for number in range(CALLS)
    ]


@pytest.mark.parametrize("together", [True, False], ids=["one message", "messages of their own"])
async def test_large_answers_that_nobody_reads_are_not_kept(router: RunningRouter, together: bool) -> None:
    async with grpc.aio.insecure_channel(router.address) as channel:
        stub: Any = query_service_pb2_grpc.QueryServiceStub(channel)
        stream = stub.Multiplex(metadata=(("authorization", f"Bearer {router.tokens['acme']}"),))
        router.reset_peak_memory()
        before = router.memory_bytes()
        calls = _calls()
        for message in [calls] if together else [[call] for call in calls]:
            await stream.write(pb.MultiplexRequest(calls=message))
        await asyncio.sleep(3.0)
        assert router.peak_memory_bytes() - before < 100 << 20
        replies: dict[int, str] = {}
        while len(replies) < CALLS:
            async with asyncio.timeout(20):
                response = await stream.read()
            replies.update({reply.id: reply.WhichOneof("reply") for reply in response.replies})
        assert set(replies.values()) == {"query"}
        await stream.done_writing()
