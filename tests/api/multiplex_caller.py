"""A caller of Multiplex, and the calls it sends."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc.aio
from google.rpc import status_pb2
from pointsman.v1 import query_service_pb2 as pb
from pointsman.v1 import types_pb2

from tests.api.conftest import AUTH, World
from tests.api.reading import info_of


def query(call_id: int, sql: str = "q", **fields: Any) -> pb.MultiplexCall:
    return pb.MultiplexCall(id=call_id, query=pb.QueryRequest(statement=types_pb2.Statement(sql=sql)), **fields)


def execute(call_id: int, sql: str = "e") -> pb.MultiplexCall:
    return pb.MultiplexCall(id=call_id, execute=pb.ExecuteRequest(statement=types_pb2.Statement(sql=sql)))


def cancel(call_id: int) -> pb.MultiplexCall:
    return pb.MultiplexCall(id=call_id, cancel=pb.MultiplexCancel())


class Stream:
    """The caller's side: sends calls, collects replies by id."""

    def __init__(self, world: World) -> None:
        self.call: Any = world.query.Multiplex(metadata=AUTH)
        self.replies: dict[int, pb.MultiplexReply] = {}
        self.messages: list[pb.MultiplexResponse] = []

    async def send(self, *calls: pb.MultiplexCall) -> None:
        await self.call.write(pb.MultiplexRequest(calls=calls))

    async def read_one(self) -> pb.MultiplexResponse:
        async with asyncio.timeout(3):
            message = await self.call.read()
        assert isinstance(message, pb.MultiplexResponse), "the stream has ended"
        self.messages.append(message)
        self.replies.update({reply.id: reply for reply in message.replies})
        return message

    async def read_until(self, *ids: int) -> None:
        while not set(ids) <= set(self.replies):
            await self.read_one()

    def text(self, call_id: int) -> str:
        reply = self.replies[call_id]
        answer = getattr(reply, reply.WhichOneof("reply"))
        return str(answer.result.batch.columns[0].texts[0])

    def failure(self, call_id: int) -> tuple[int, str, str]:
        failure = self.replies[call_id].failure
        info = info_of(status_pb2.Status.FromString(failure.SerializeToString()))
        return failure.code, info.reason, info.metadata["executed"]

    async def end(self) -> None:
        """Half-close, and read to the end."""
        await self.call.done_writing()
        async with asyncio.timeout(3):
            while (message := await self.call.read()) is not grpc.aio.EOF:
                self.messages.append(message)
                self.replies.update({reply.id: reply for reply in message.replies})
