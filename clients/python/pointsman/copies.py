"""copy_out: raw data of any size, as it comes, to a caller or into a file."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Generator
from typing import Any

import grpc
from grpc import aio

from pointsman.connection import GRACE_S, Connections, Link, Pauses, ended_error
from pointsman.copy_data import Sink, Target
from pointsman.copy_requests import CopyResult, Progress, abandon, copy_result, late
from pointsman.errors import Error, Executed
from pointsman.options import milliseconds
from pointsman.status import drained, error_from_rpc, worth_another_try
from pointsman.tokens import TokenKeeper
from pointsman.v1 import query_service_pb2 as pb

METHOD = "/pointsman.v1.QueryService/CopyOut"


class CopyStream:
    """A copy_out under way: `async for data in db.copy_out(…)`, or `await db.copy_out(…, to=…)` for a CopyResult.

    Leaving early ends it on the server; `async with` does so at a known place. An error or a cancel ends it, too, and
    whoever asks again then is told so, until `aclose()`.
    """

    def __init__(
        self,
        connections: Connections,
        tokens: TokenKeeper,
        request: pb.CopyOutRequest,
        *,
        to: Target | None,
        progress: Progress | None,
        total_s: float | None,
        chunk_s: float,
    ) -> None:
        self._connections = connections
        self._tokens = tokens
        self._version = tokens.version
        self._request = request
        self._to = to
        self._progress = progress
        self._total_s = total_s
        self._chunk_s = chunk_s
        self._loop = asyncio.get_running_loop()
        self._deadline = None if total_s is None else self._loop.time() + total_s + GRACE_S
        if total_s is not None:
            request.options.timeout_ms = milliseconds("timeout", total_s)
        self._rpc: Any = None
        self._link: Link | None = None
        self._done = False
        self._ended_by: Error | None = None
        self._bytes = 0
        self.result: CopyResult | None = None
        """Set once all has come."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        data = await self.next_piece()
        if data is None:
            raise StopAsyncIteration
        return data

    def __await__(self) -> Generator[Any, None, Any]:
        return self._run().__await__()

    async def _run(self) -> Any:
        if self._to is None:
            return self
        try:
            # Around the target, too: a pipe that nobody reads would keep its caller beyond any deadline.
            async with asyncio.timeout_at(self._deadline) as limit, self, Sink(self._to) as sink:
                while (data := await self.next_piece()) is not None:
                    await sink.write(data)
        except TimeoutError:
            if limit.expired() and self._total_s is not None:
                raise late(self._total_s, Executed.NO) from None
            raise
        return self.result

    async def next_piece(self) -> bytes | None:
        """The next data, at most 128 KiB; None at the end."""
        if self._ended_by is not None:
            raise self._ended_by
        try:
            while not self._done:
                message = await self._next_message()
                match message.WhichOneof("event"):
                    case "data":
                        data = message.data
                        self._bytes += len(data)
                        self._tell(None)
                        return data
                    case "end":
                        self._finish(message.end)
        except BaseException as error:
            self._leave()
            closed = self._connections.met_close(error, Executed.NO)
            self._ended_by = closed or ended_error(error)
            if closed is not None:
                raise closed from None
            raise
        return None

    def _finish(self, end: pb.CopyOutEnd) -> None:
        self.result = copy_result(end)
        self._tokens.keep(end.receipt.token, self._version)
        self._leave()
        self._tell(end.rows)

    def _tell(self, rows: int | None) -> None:
        if self._progress is not None:
            self._progress(self._bytes, rows)

    async def _next_message(self) -> pb.CopyOutResponse:
        by = self._loop.time() + self._chunk_s + GRACE_S if self._deadline is None else self._deadline
        try:
            async with asyncio.timeout_at(by):
                return await (self._first(by) if self._rpc is None else self._read())
        except TimeoutError:
            raise late(self._chunk_s if self._total_s is None else self._total_s, Executed.NO) from None

    async def _first(self, by: float) -> pb.CopyOutResponse:
        """Opens the stream; until something came, a lost connection is only a reason to connect again."""
        pauses = Pauses()
        while True:
            self._link = self._connections.acquire()
            self._rpc = self._link.channel.unary_stream(
                METHOD,
                request_serializer=pb.CopyOutRequest.SerializeToString,
                response_deserializer=pb.CopyOutResponse.FromString,
            )(self._request, metadata=self._connections.metadata())
            try:
                return await self._read()
            except Error as error:
                if not worth_another_try(error):
                    raise
                if drained(error):
                    self._link.retire()
                pauses.failed()
                pause_s = pauses.next_s()
                if self._loop.time() + pause_s >= by - GRACE_S:
                    raise self._connections.unavailable(self._total_s or self._chunk_s, error.message) from None
                self._link.release()
                self._rpc = self._link = None
                await asyncio.sleep(pause_s)

    async def _read(self) -> pb.CopyOutResponse:
        try:
            message = await self._rpc.read()
        except aio.AioRpcError as failure:
            raise self._tokens.told(error_from_rpc(failure, writes=False), self._version) from None
        if not isinstance(message, pb.CopyOutResponse):
            raise Error(
                "the router ended the copy before its last data",
                code=grpc.StatusCode.UNAVAILABLE,
                reason="PROTOCOL",
                executed=Executed.NO,
            )
        return message

    async def aclose(self) -> None:
        """Ends it on the server, if it still runs. Closing again does nothing."""
        self._ended_by = None
        self._leave()

    async def __aenter__(self) -> CopyStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        # A plain `break` out of `async for` does not close the iterator.
        if self._rpc is not None and not self._done and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(abandon, self._rpc, self._link)

    def _leave(self) -> None:
        self._done = True
        rpc, self._rpc = self._rpc, None
        link, self._link = self._link, None
        abandon(rpc, link)
