"""One Multiplex stream: its frames, its writer, its reader, and the fate of its calls when it breaks."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Protocol

import grpc
from grpc import aio

from pointsman.connection import Connections, Link, connected
from pointsman.errors import Error, Executed, OutcomeUnknown
from pointsman.status import drained, error_from_rpc, error_from_status
from pointsman.v1 import query_service_pb2 as pb

METHOD = "/pointsman.v1.QueryService/Multiplex"

FRAME_BYTES = 1024 * 1024
"""A message is closed when it has this much, so that one large write does not hold up everything."""

WINDOW = 768
"""Calls under way on one stream, below what a router accepts; the others wait here, where they can be moved."""

MAX_CRASHES = 2
"""How often a call is sent again after a stream that ended by a mistake (UNKNOWN, INTERNAL): it may be the cause."""

OPEN_KEY = "pointsman-stream"
"""The header by which the router says that it has let a stream in."""

LET_IN_S = 0.25
"""How long a new stream waits for the router's headers. One too busy to send them gets the calls all the same."""

_CANCEL_BODY = pb.MultiplexCall(cancel=pb.MultiplexCancel()).SerializeToString()

_LOST = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
    }
)
"""Codes of a stream that broke, as opposed to one that the router refuses for good."""


class Call:
    """One call and who waits for it."""

    __slots__ = (
        "body",
        "crashes",
        "deadline",
        "future",
        "id",
        "replayable",
        "stream",
        "timeout_s",
        "writes",
        "written",
    )

    def __init__(
        self,
        call_id: int,
        body: bytes,
        future: asyncio.Future[pb.MultiplexReply],
        writes: bool,
        replayable: bool,
        timeout_s: float,
    ) -> None:
        self.id = call_id
        self.body = body
        self.future = future
        self.writes = writes
        self.replayable = replayable
        self.timeout_s = timeout_s
        self.deadline = 0.0
        self.written = False
        self.crashes = 0
        self.stream: Stream | None = None

    def fail(self, error: Error) -> None:
        """Ends the call, unless it has ended."""
        if not self.future.done():
            self.future.set_exception(error)


class Owner(Protocol):
    """Whom a stream reports to."""

    def answered(self) -> None: ...
    def draining(self, stream: Stream) -> None: ...
    def submit_again(self, calls: list[Call]) -> None: ...
    def ended(self, stream: Stream, failure: aio.AioRpcError | None) -> None: ...


class Stream:
    """A stream that is connected. `close` it, or let it end by itself."""

    def __init__(self, rpc: aio.StreamStreamCall[bytes, pb.MultiplexResponse], link: Link, owner: Owner) -> None:
        self.link = link
        self.answered = False
        self._rpc = rpc
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._outbox: deque[Call] = deque()
        self._cancels: deque[int] = deque()
        self._in_flight: dict[int, Call] = {}
        self._idle: asyncio.Future[None] | None = None
        self._draining = False
        self._finished = False
        self._closing = False
        self._writer = self._loop.create_task(self._write())
        self._reader = self._loop.create_task(self._read())

    def add(self, call: Call) -> None:
        """Queues a call; it goes out with everything else that is queued when the writer is free."""
        call.stream = self
        self._outbox.append(call)
        self._wake()

    def cancel(self, call: Call) -> None:
        """Tells the router that nobody waits for the call any more."""
        if self._in_flight.pop(call.id, None) is not None:
            self._cancels.append(call.id)
            self._wake()
            self._end_if_drained()

    def sent(self) -> list[Call]:
        """Takes out the calls that were written."""
        calls = list(self._in_flight.values())
        self._in_flight.clear()
        return calls

    def unsent(self) -> list[Call]:
        """Takes out the calls that were not."""
        calls = list(self._outbox)
        self._outbox.clear()
        return calls

    async def close(self) -> None:
        """Ends the stream without a word to its owner."""
        self._closing = True
        self._rpc.cancel()
        self._writer.cancel()
        self._reader.cancel()
        await asyncio.gather(self._writer, self._reader, return_exceptions=True)

    def _wake(self) -> None:
        if self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    async def _write(self) -> None:
        try:
            while not self._finished:
                frame = self._take()
                if frame:
                    await self._rpc.write(frame)
                else:
                    self._idle = self._loop.create_future()
                    await self._idle
            await self._rpc.done_writing()
        except (aio.AioRpcError, asyncio.InvalidStateError):
            pass  # the reader sees the same end, and knows what to do
        except Exception:
            self._rpc.cancel()
            raise

    def _take(self) -> bytes:
        """The next message; its calls count as written from here on, whatever becomes of the write."""
        parts: list[bytes] = []
        size = 0
        now = self._loop.time()
        while self._cancels:
            parts.append(call_frame(self._cancels.popleft(), 0, _CANCEL_BODY))
        while self._outbox and size < FRAME_BYTES and len(self._in_flight) < WINDOW:
            call = self._outbox.popleft()
            remaining_ms = int((call.deadline - now) * 1000)
            if call.future.done() or remaining_ms <= 0:
                continue  # the caller is told by its timer
            if parts and size + len(call.body) > FRAME_BYTES:
                self._outbox.appendleft(call)
                break
            call.written = True
            self._in_flight[call.id] = call
            part = call_frame(call.id, remaining_ms, call.body)
            size += len(part)
            parts.append(part)
        return b"".join(parts)

    async def _read(self) -> None:
        failure: aio.AioRpcError | None = None
        try:
            while True:
                response: Any = await self._rpc.read()
                if response is aio.EOF:
                    break
                if response is None:  # bytes that are no MultiplexResponse
                    self._rpc.cancel()
                    break
                self._deliver(response)
        except aio.AioRpcError as error:
            failure = error
        except asyncio.CancelledError:
            # grpc.aio also says so when the RPC was cancelled locally, which is an end like another. Who cancels the
            # task itself (close, or a loop that shuts down) wants no reconnecting.
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                self._closing = True
                raise
        finally:
            self._writer.cancel()
            self.link.release()
            if not self._closing:
                self._owner.ended(self, failure)

    def _deliver(self, response: pb.MultiplexResponse) -> None:
        refused: list[Call] = []
        for reply in response.replies:
            call = self._in_flight.pop(reply.id, None)
            if call is None or call.future.done():
                continue
            if reply.WhichOneof("reply") == "failure" and refused_by_drain(reply.failure):
                refused.append(call)
                continue
            self.answered = True
            call.future.set_result(reply)
        if self.answered:
            self._owner.answered()
        if (response.draining or refused) and not self._draining:
            self._draining = True
            self._owner.draining(self)
        self._owner.submit_again(refused)
        if self._outbox:
            self._wake()  # there is room in the window again
        self._end_if_drained()

    def _end_if_drained(self) -> None:
        if self._draining and not self._in_flight:
            self._finished = True
            self._wake()


async def open_stream(connections: Connections, owner: Owner) -> Stream:
    """A stream that the router has let in. AioRpcError when it cannot be reached or refuses."""
    link = connections.acquire()
    try:
        start: aio.StreamStreamMultiCallable[bytes, pb.MultiplexResponse] = link.channel.stream_stream(
            METHOD, request_serializer=None, response_deserializer=pb.MultiplexResponse.FromString
        )
        rpc = await connected(start(metadata=connections.metadata()))
        await _let_in(rpc)
    except BaseException as error:
        if isinstance(error, aio.AioRpcError) and drained(error_from_rpc(error, writes=False)):
            link.retire()  # the next attempt shall not meet the same router, if there is another one
        link.release()
        raise
    return Stream(rpc, link, owner)


async def _let_in(rpc: aio.StreamStreamCall[bytes, pb.MultiplexResponse]) -> None:
    """Waits until the router's headers say that the stream is open; AioRpcError when it ends the stream instead.

    Without this, a write could cross the refusal, and grpc.aio then forgets the refusal's status (it says INTERNAL):
    a write that no router has touched would have to be answered with "outcome unknown".
    """
    opened = asyncio.ensure_future(_opened(rpc))
    try:
        await asyncio.wait({opened}, timeout=LET_IN_S)
    except BaseException:
        rpc.cancel()
        raise
    if opened.done():
        opened.result()


async def _opened(rpc: aio.StreamStreamCall[bytes, pb.MultiplexResponse]) -> None:
    if (await rpc.initial_metadata()).get(OPEN_KEY) is None:
        await rpc.code()  # a refusal, whose empty headers may come a moment before its status
        await rpc.read()


def after_break(call: Call, failure: aio.AioRpcError | None, *, answered: bool) -> Error | None:
    """What becomes of a written call whose stream has ended: None to send it again, or its error.

    A router that refuses the whole stream before its first answer has done nothing of what was sent; one that ends it
    because it drains has done nothing of what it has not answered.
    """
    error = stream_error(failure, writes=call.writes)
    if drained(error):
        return None
    if error.code not in _LOST:
        if answered and call.writes:
            error.executed = Executed.MAYBE  # the router speaks of the stream, not of this call
        return error
    if call.writes and not call.replayable and (answered or not error.safe_to_repeat):
        return OutcomeUnknown(
            f"the connection to the router was lost while the write was under way ({error.message})",
            code=error.code,
            reason="OUTCOME_UNKNOWN",
            executed=Executed.MAYBE,
        )
    if error.code in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL):
        call.crashes += 1
        if call.crashes > MAX_CRASHES:
            return error
    return None


def stream_error(failure: aio.AioRpcError | None, *, writes: bool) -> Error:
    """The end of a stream as an exception; None is an end without an error."""
    if failure is not None:
        return error_from_rpc(failure, writes=writes)
    return Error(
        "the router closed the stream",
        code=grpc.StatusCode.UNAVAILABLE,
        executed=Executed.MAYBE if writes else Executed.NO,
    )


def refused_by_drain(failure: Any) -> bool:
    """True for a call that a draining router did not take: it belongs on another stream."""
    if failure.code != grpc.StatusCode.UNAVAILABLE.value[0]:
        return False
    return drained(error_from_status(failure, writes=True))


def call_frame(call_id: int, timeout_ms: int, body: bytes) -> bytes:
    """One entry of MultiplexRequest.calls: id and timeout in front of an already serialised MultiplexCall.

    Written by hand so that a call is serialised once, when it is made, and can be sent again as it is.
    """
    entry = b"\x08" + _varint(call_id) + b"\x10" + _varint(timeout_ms) + body
    return b"\x0a" + _varint(len(entry)) + entry


def _varint(number: int) -> bytes:
    if number < 0x80:
        return bytes((number,))
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
