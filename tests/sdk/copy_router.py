"""The fake router with copies: gives scripted data out, takes everything in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from pointsman.v1 import errors_pb2
from pointsman.v1 import query_service_pb2 as pb
from pointsman.v1 import types_pb2 as types

from tests.sdk.fake_router import FakeRouter, abort_with

RECEIPT = types.Receipt(endpoint="one", role=types.ENDPOINT_ROLE_PRIMARY, attempts=1, token=b"t1")


class CopyRouter(FakeRouter):
    """A FakeRouter that copies."""

    def __init__(self) -> None:
        super().__init__()
        self.receipt = types.Receipt()
        self.receipt.CopyFrom(RECEIPT)
        self.out_requests: list[pb.CopyOutRequest] = []
        self.pieces: list[bytes] = [b"1\tone\n", b"2\ttwo\n"]
        self.then: errors_pb2.Status | asyncio.Event | None = None
        """After the pieces: a failure, or a wait, instead of the end."""
        self.starts: list[pb.CopyInStart] = []
        self.taken: list[bytes] = []
        self.ends: list[str] = []
        """How each CopyIn ended: "committed", "undone"; and "left" for a CopyOut."""
        self.refusals: list[errors_pb2.Status] = []
        """The next ones are refused with these before any data."""
        self.end_refusals: list[errors_pb2.Status] = []
        """The next ends are answered with these."""
        self.refuse_data: errors_pb2.Status | None = None
        """Data is refused with it."""

    async def CopyOut(self, request: pb.CopyOutRequest, context: Any) -> AsyncIterator[pb.CopyOutResponse]:
        self.out_requests.append(request)
        if self.refusals:
            await abort_with(context, self.refusals.pop(0))
        try:
            yield pb.CopyOutResponse(start=pb.CopyOutStart(format=request.encoding.format, columns=2))
            for piece in self.pieces:
                yield pb.CopyOutResponse(data=piece)
            if isinstance(self.then, asyncio.Event):
                await self.then.wait()
            elif self.then is not None:
                await abort_with(context, self.then)
            size = sum(map(len, self.pieces))
            yield pb.CopyOutResponse(
                end=pb.CopyOutEnd(rows=len(self.pieces), bytes=size, command_tag="COPY 2", receipt=self.receipt)
            )
        finally:
            self.ends.append("left")

    async def CopyIn(self, request_iterator: Any, context: Any) -> pb.CopyInResponse:
        first = await anext(aiter(request_iterator))
        self.starts.append(first.start)
        if self.refusals:
            await abort_with(context, self.refusals.pop(0))
        await context.send_initial_metadata((("pointsman-stream", "open"),))
        got = b""
        try:
            async for message in request_iterator:
                if message.WhichOneof("event") == "end":
                    assert message.end.bytes == len(got)
                    if self.end_refusals:
                        await abort_with(context, self.end_refusals.pop(0))
                    self.ends.append("committed")
                    rows = got.count(b"\n")
                    return pb.CopyInResponse(rows=rows, bytes=len(got), command_tag="COPY", receipt=self.receipt)
                if self.refuse_data is not None:
                    await abort_with(context, self.refuse_data)
                got += message.data
                self.taken.append(message.data)
            self.ends.append("undone")
            return pb.CopyInResponse()
        except BaseException:
            self.ends.append("undone")
            raise
