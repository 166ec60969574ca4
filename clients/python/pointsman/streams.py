"""Results of any size: rows in chunks, with one chunk in memory at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from types import TracebackType
from typing import Any, Generic, TypeVar

import grpc
from grpc import aio

from pointsman.connection import GRACE_S, Connections, Link, Pauses, ended_error
from pointsman.errors import DeadlineExceeded, Error, Executed
from pointsman.options import milliseconds
from pointsman.placeholders import hinted
from pointsman.results import Receipt
from pointsman.rows import Column, ColumnBatch, Plan, Record, plan_of
from pointsman.status import drained, error_from_rpc, worth_another_try
from pointsman.tokens import TokenKeeper
from pointsman.v1 import query_service_pb2 as pb
from pointsman.v1 import types_pb2

T = TypeVar("T")

METHOD = "/pointsman.v1.QueryService/StreamQuery"


class RowStream:
    """The rows of a stream, for `async for`. Leaving early ends the statement on the server; so does an error or a
    cancel, and whoever asks again then is told so, until `aclose()`.

    Use `async with db.stream(…) as rows` where it must end at a known place; otherwise it ends when it is dropped.
    """

    def __init__(
        self,
        connections: Connections,
        tokens: TokenKeeper,
        request: pb.StreamQueryRequest,
        *,
        total_s: float | None,
        chunk_s: float,
    ) -> None:
        self._rpc: aio.UnaryStreamCall[pb.StreamQueryRequest, pb.StreamQueryResponse] | None = None
        self._connections = connections
        self._tokens = tokens
        self._version = tokens.version
        self._request = request
        self._chunk_s = chunk_s
        self._total_s = total_s
        self._loop = asyncio.get_running_loop()
        self._deadline = None if total_s is None else self._loop.time() + total_s + GRACE_S
        if total_s is not None:
            request.options.timeout_ms = milliseconds("timeout", total_s)
        self._link: Link | None = None
        self._plan: Plan | None = None
        self._end: pb.StreamEnd | None = None
        self._rows: Iterator[Record] = iter(())
        self._done = False
        self._ended_by: Error | None = None

    @property
    def columns(self) -> tuple[Column, ...]:
        """The columns; empty before the first chunk has come."""
        return () if self._plan is None else self._plan.columns

    @property
    def receipt(self) -> Receipt | None:
        """How the request went; None before its end."""
        return None if self._end is None else Receipt.from_bytes(self._end.receipt.SerializeToString())

    @property
    def rowcount(self) -> int | None:
        """How many rows there were; None before the end."""
        return None if self._end is None else self._end.rows

    def __aiter__(self) -> AsyncIterator[Record]:
        return self

    async def __anext__(self) -> Record:
        for row in self._rows:
            return row
        records = await self.next_chunk()
        if records is None:
            raise StopAsyncIteration
        self._rows = iter(records)
        return next(self._rows)

    def chunks(self) -> AsyncIterator[list[Record]]:
        """The same rows, a list a chunk: quicker for many rows."""
        return _Pieces(self, list, self.next_chunk)

    def batches(self) -> AsyncIterator[ColumnBatch]:
        """The same rows, column by column: quickest, and what numpy and the like take."""
        return _Pieces(self, ColumnBatch.of, self.next_columns)

    async def next_columns(self) -> ColumnBatch | None:
        """The next chunk column by column, None after the last."""
        batch = await self._next_batch()
        return None if batch is None else self._decoded(Plan.column_batch, batch)

    async def aclose(self) -> None:
        """Ends the statement on the server, if it still runs. Closing again does nothing."""
        self._ended_by = None
        self._finish()

    async def __aenter__(self) -> RowStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        # A plain `break` out of `async for` does not close the iterator.
        if self._rpc is not None and not self._done and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(_abandon, self._rpc, self._link)

    def _finish(self) -> None:
        self._done = True
        self._rows = iter(())
        rpc, self._rpc = self._rpc, None
        link, self._link = self._link, None
        _abandon(rpc, link)

    async def next_chunk(self) -> list[Record] | None:
        """The rows of the next chunk that has any; None at the end."""
        batch = await self._next_batch()
        return None if batch is None else self._decoded(Plan.records, batch)

    async def _next_batch(self) -> types_pb2.RowBatch | None:
        """The next batch that has rows; None at the end."""
        if self._ended_by is not None:
            raise self._ended_by
        try:
            while not self._done:
                message = await self._next_message()
                if message.HasField("schema"):
                    self._plan = plan_of(message.schema)
                if message.HasField("end"):
                    self._end = message.end
                    self._tokens.keep(message.end.receipt.token, self._version)
                    self._finish()
                if self._plan is not None and message.batch.row_count:
                    return message.batch
        except BaseException as error:
            self._finish()
            closed = self._connections.met_close(error, Executed.NO)
            self._ended_by = closed or ended_error(error)
            if closed is not None:
                raise closed from None
            raise
        return None

    def _decoded(self, decode: Callable[[Plan, types_pb2.RowBatch], T], batch: types_pb2.RowBatch) -> T:
        assert self._plan is not None, "a batch is given out only when its plan is known"
        try:
            return decode(self._plan, batch)
        except BaseException as error:
            self._finish()
            self._ended_by = ended_error(error)
            raise

    async def _next_message(self) -> pb.StreamQueryResponse:
        by = self._loop.time() + self._chunk_s + GRACE_S if self._deadline is None else self._deadline
        try:
            async with asyncio.timeout_at(by):
                return await (self._first(by) if self._rpc is None else self._read(self._rpc))
        except TimeoutError:
            raise DeadlineExceeded(
                f"no further rows within {self._chunk_s if self._total_s is None else self._total_s:g} s",
                code=grpc.StatusCode.DEADLINE_EXCEEDED,
                reason="DEADLINE",
                executed=Executed.NO,
            ) from None

    async def _first(self, by: float) -> pb.StreamQueryResponse:
        """Opens the stream; until something came, a lost connection is only a reason to connect again."""
        pauses = Pauses()
        while True:
            self._rpc, self._link = await self._open()
            try:
                return await self._read(self._rpc)
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

    async def _open(self) -> tuple[aio.UnaryStreamCall[pb.StreamQueryRequest, pb.StreamQueryResponse], Link]:
        metadata = self._connections.metadata()  # which is the caller's own function, and may raise
        link = self._connections.acquire()
        start: aio.UnaryStreamMultiCallable[pb.StreamQueryRequest, pb.StreamQueryResponse] = link.channel.unary_stream(
            METHOD,
            request_serializer=pb.StreamQueryRequest.SerializeToString,
            response_deserializer=pb.StreamQueryResponse.FromString,
        )
        return start(self._request, metadata=metadata), link

    async def _read(self, rpc: Any) -> pb.StreamQueryResponse:
        try:
            message = await rpc.read()
        except aio.AioRpcError as failure:
            error = self._tokens.told(error_from_rpc(failure, writes=False), self._version)
            raise hinted(error, [self._request.statement]) from None
        if not isinstance(message, pb.StreamQueryResponse):
            raise Error(
                "the router ended the stream before its last rows",
                code=grpc.StatusCode.UNAVAILABLE,
                reason="PROTOCOL",
                executed=Executed.NO,
            )
        return message


class _Pieces(Generic[T]):
    """What a stream gives, many rows at once. A generator would end with the first error: asked again, it would pass a
    part for the whole."""

    def __init__(
        self, stream: RowStream, made_of: Callable[[list[Record]], T], following: Callable[[], Awaitable[T | None]]
    ) -> None:
        self._stream = stream
        self._made_of = made_of
        self._following = following

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    async def __anext__(self) -> T:
        left = list(self._stream._rows)
        piece = self._made_of(left) if left else await self._following()
        if piece is None:
            raise StopAsyncIteration
        return piece

    async def aclose(self) -> None:
        """Ends the stream."""
        await self._stream.aclose()


def _abandon(rpc: Any, link: Link | None) -> None:
    if rpc is not None:
        rpc.cancel()
    if link is not None:
        link.release()
