"""copy_in: data from anywhere into a table, as a whole or not at all; with a key again until it is done."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import grpc
from grpc import aio

from pointsman.connection import GRACE_S, Connections, Link, Pauses
from pointsman.copy_data import Source, pieces
from pointsman.copy_requests import (
    CopyResult,
    Progress,
    abandon,
    copy_result,
    late,
    total_timeout,
)
from pointsman.errors import Error, Executed
from pointsman.options import milliseconds
from pointsman.repeating import Repetition, keyed
from pointsman.status import drained, error_from_rpc, worth_another_try
from pointsman.tokens import TokenKeeper
from pointsman.v1 import query_service_pb2 as pb

METHOD = "/pointsman.v1.QueryService/CopyIn"
_ONCE = (
    "give the data as something that can be read again (the path of a file, bytes, a list), or an idempotency_key of "
    "your own, and call again with it and the same data"
)


async def fill(
    make: Callable[[Mapping[str, Any]], Filling],
    options: Mapping[str, Any],
    given: Any,
    source: Callable[[], Source],
    *,
    patience_s: float,
    in_thread: bool = False,
) -> CopyResult:
    """A whole copy_in; with a key and data that can be read again it is repeated until its deadline, or without one
    for patience_s after its first failure. given: what source() reads anew each time."""
    with_key = keyed(options)
    if with_key is None:
        return await make(options).run(source(), in_thread=in_thread)
    again = _can_be_read_again(given)
    if not again and not options.get("idempotency_key"):
        raise ValueError(f"idempotent=True cannot be kept, as the data can be read only once: {_ONCE}")
    total_s = total_timeout(options)
    attempts = None if total_s is None else Repetition(total_s)
    while True:
        if attempts is not None and total_s is not None:
            with_key["timeout"] = attempts.left_s()
        try:
            return await make(with_key).run(source(), in_thread=in_thread)
        except Error as error:
            if not again:
                error.add_note(f"not repeated, as the data can be read only once: {_ONCE}")
                raise
            attempts = attempts or Repetition(patience_s)
            await asyncio.sleep(attempts.failed(error))


def _can_be_read_again(given: Any) -> bool:
    """A file that is read from its start gives the same; a pipe would give only what is left."""
    if isinstance(given, (str, os.PathLike)):
        return os.path.isfile(given)
    return isinstance(given, (bytes, bytearray, memoryview, Sequence))


class Filling:
    """A copy_in under way: `run()` once. What ends it before its last data undoes all of it."""

    def __init__(
        self,
        connections: Connections,
        tokens: TokenKeeper,
        start: pb.CopyInStart,
        *,
        progress: Progress | None,
        total_s: float | None,
        connect_s: float,
    ) -> None:
        self._connections = connections
        self._tokens = tokens
        self._version = tokens.version
        self._start = pb.CopyInRequest(start=start)
        self._progress = progress
        self._total_s = total_s
        self._connect_s = connect_s
        self._bytes = 0
        self._ending = False
        """The end was said: what is lost from here on leaves the outcome open."""
        if total_s is not None:
            self._start.start.options.timeout_ms = milliseconds("timeout", total_s)

    async def run(self, source: Source, *, in_thread: bool = False) -> CopyResult:
        """Sends the data and commits. An exception of the source, or a cancel, rolls back."""
        self._version = self._tokens.version
        loop = asyncio.get_running_loop()
        deadline = None if self._total_s is None else loop.time() + self._total_s + GRACE_S
        try:
            async with asyncio.timeout_at(deadline):
                answer = await self._run(source, in_thread)
        except TimeoutError:
            if deadline is None or loop.time() < deadline:
                raise  # the source's own
            raise late(self._total_s or 0.0, Executed.MAYBE if self._ending else Executed.ROLLED_BACK) from None
        except (asyncio.CancelledError, Error) as error:
            kept = Executed.MAYBE if self._ending else Executed.ROLLED_BACK
            closed = self._connections.met_close(error, kept)
            if closed is not None:
                raise closed from None
            raise
        self._tokens.keep(answer.receipt.token, self._version)
        if self._progress is not None:
            self._progress(self._bytes, answer.rows)
        return copy_result(answer)

    async def _run(self, source: Source, in_thread: bool) -> pb.CopyInResponse:
        rpc, link = await self._open()
        try:
            async with contextlib.aclosing(pieces(source, in_thread=in_thread)) as data:
                pumping = asyncio.create_task(self._pump(rpc, data))
                # A refusal ends the wait for a source that gives nothing.
                rpc.add_done_callback(lambda _: pumping.cancel())
                try:
                    await asyncio.wait({pumping})
                finally:
                    if not pumping.done():
                        pumping.cancel()
                        await asyncio.wait({pumping})
            if not pumping.cancelled() and (problem := pumping.exception()) is not None:
                raise problem
            if pumping.cancelled() and not rpc.done():
                raise asyncio.CancelledError  # the source's own, or progress's: the router waits for its data
            return await self._answer(rpc)
        finally:
            abandon(rpc, link)

    async def _pump(self, rpc: Any, data: AsyncIterator[bytes]) -> None:
        try:
            async for piece in data:
                await rpc.write(pb.CopyInRequest(data=piece))
                self._bytes += len(piece)
                if self._progress is not None:
                    self._progress(self._bytes, None)
            end = pb.CopyInRequest(end=pb.CopyInEnd(bytes=self._bytes))
            self._ending = True
            await rpc.write(end)
            await rpc.done_writing()
        except (aio.AioRpcError, asyncio.InvalidStateError, aio.UsageError):
            if not rpc.done():
                raise  # else its status says why

    async def _answer(self, rpc: Any) -> pb.CopyInResponse:
        try:
            answer: pb.CopyInResponse = await rpc
        except aio.AioRpcError as failure:
            # Without the end message a router keeps nothing, whatever became of it.
            raise self._tokens.told(error_from_rpc(failure, writes=self._ending), self._version) from None
        return answer

    async def _open(self) -> tuple[Any, Link]:
        """A call whose data is waited for: nothing of the source is lost to a router that cannot take it."""
        loop = asyncio.get_running_loop()
        by = loop.time() + (self._connect_s if self._total_s is None else self._total_s)
        pauses = Pauses()
        while True:
            rpc, link = await self._connections.open_until(self._begin, by)
            try:
                await rpc.write(self._start)
                headers = await rpc.initial_metadata()
                if any(key == "pointsman-stream" for key, _ in headers or ()):
                    return rpc, link
                await self._answer(rpc)
                raise Error(
                    "the router answered a copy before its data",
                    code=grpc.StatusCode.INTERNAL,
                    reason="PROTOCOL",
                    executed=Executed.MAYBE,
                )
            except BaseException as error:
                problem = await self._problem(rpc, error)
                if isinstance(problem, Error) and drained(problem):
                    link.retire()
                abandon(rpc, link)
                pauses.failed()
                if not isinstance(problem, Error) or not worth_another_try(problem):
                    raise problem from None
                pause_s = pauses.next_s()
                if loop.time() + pause_s >= by:
                    raise problem from None
                await asyncio.sleep(pause_s)

    async def _problem(self, rpc: Any, error: BaseException) -> BaseException:
        """What really happened: a write that meets a refusal does not say why."""
        if isinstance(error, (aio.AioRpcError, asyncio.InvalidStateError, aio.UsageError)) and rpc.done():
            try:
                await self._answer(rpc)
            except Error as known:
                return known
        return error

    def _begin(self, channel: aio.Channel) -> Any:
        return channel.stream_unary(
            METHOD,
            request_serializer=pb.CopyInRequest.SerializeToString,
            response_deserializer=pb.CopyInResponse.FromString,
        )(metadata=self._connections.metadata())
