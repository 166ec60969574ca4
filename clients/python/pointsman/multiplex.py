"""Many calls over one bidi stream: whatever was queued since the last write goes out as one message.

A call belongs to the client until it is written, then to the stream that carries it. When a stream breaks, the
rules of `after_break` say what becomes of its calls; those that go on wait for the next stream.
"""

from __future__ import annotations

import asyncio
import copy
from collections import deque

import grpc
from grpc import aio

from pointsman.connection import GRACE_S, MAX_REQUEST_BYTES, Connections, Pauses
from pointsman.errors import ClientClosed, DeadlineExceeded, Error, Executed, InternalError, InvalidRequest
from pointsman.mux_stream import Call, Stream, after_break, open_stream, stream_error
from pointsman.v1 import query_service_pb2 as pb


class Multiplexer:
    """The calls of one client. Not thread-safe: everything runs on the client's event loop."""

    def __init__(self, connections: Connections, loop: asyncio.AbstractEventLoop) -> None:
        self._connections = connections
        self._loop = loop
        self._next_id = 0
        self._waiting: deque[Call] = deque()
        self._current: Stream | None = None
        self._streams: set[Stream] = set()
        self._connecting: asyncio.Task[None] | None = None
        self._pauses = Pauses()
        self._last_refusal = ""
        self._closed = False

    async def roundtrip(self, body: bytes, timeout_s: float, *, writes: bool, replayable: bool) -> pb.MultiplexReply:
        """Sends one call (a serialised MultiplexCall without id and timeout) and returns its reply.

        Raises Error; never waits longer than the timeout and a small grace, whatever the router does.
        """
        if len(body) > MAX_REQUEST_BYTES:
            raise too_large(len(body))
        self._next_id += 1
        call = Call(self._next_id, body, self._loop.create_future(), writes, replayable, timeout_s)
        call.deadline = self._loop.time() + timeout_s
        timer = self._loop.call_at(call.deadline + GRACE_S, self._expire, call)
        self._submit(call)
        try:
            return await call.future
        except asyncio.CancelledError:
            self._abandon(call)
            raise
        finally:
            timer.cancel()

    def _submit(self, call: Call) -> None:
        if self._closed:
            call.fail(closed_error(call.written and call.writes))
        elif self._current is not None:
            self._current.add(call)
        else:
            self._waiting.append(call)
            if self._connecting is None:
                self._connecting = self._loop.create_task(self._connect())

    def _abandon(self, call: Call) -> None:
        """The caller no longer waits: the router is told, and the call's memory is given back."""
        call.body = b""
        if call.stream is not None:
            call.stream.cancel(call)

    def _expire(self, call: Call) -> None:
        if call.future.done():
            return
        call.fail(self._overdue(call))
        self._abandon(call)

    def _overdue(self, call: Call) -> Error:
        if not call.written and self._current is None:
            return self._connections.unavailable(call.timeout_s, self._last_refusal)
        unsure = call.written and call.writes
        return DeadlineExceeded(
            f"no answer within {call.timeout_s:g} s"
            + ("; the write may have been done" if unsure else "" if call.written else "; it was never sent"),
            code=grpc.StatusCode.DEADLINE_EXCEEDED,
            reason="DEADLINE",
            executed=Executed.MAYBE if unsure else Executed.NO,
        )

    async def _connect(self) -> None:
        """Opens a stream for those who wait; ends when it is there or nobody waits any more."""
        try:
            while self._waiting:
                await asyncio.sleep(self._pauses.next_s())
                self._waiting = deque(call for call in self._waiting if not call.future.done())
                if self._waiting and await self._try_connect():
                    break
        except Exception as error:
            self._fail_waiting(_unexpected(error))
        finally:
            self._connecting = None

    async def _try_connect(self) -> bool:
        try:
            stream = await open_stream(self._connections, self)
        except aio.AioRpcError as failure:
            self._pauses.failed()
            self._last_refusal = failure.details() or failure.code().name
            error = stream_error(failure, writes=False)
            if failure.code() is not grpc.StatusCode.UNAVAILABLE:
                error.executed = Executed.NO  # the headers were not even sent
                self._fail_waiting(error)
            return False
        self._streams.add(stream)
        self._current = stream
        waiting, self._waiting = self._waiting, deque()
        for call in waiting:
            stream.add(call)
        return True

    def _fail_waiting(self, error: Error) -> None:
        waiting, self._waiting = self._waiting, deque()
        for call in waiting:
            call.fail(copy.copy(error))  # one exception each: a traceback belongs to one raise

    # What streams report.

    def answered(self) -> None:
        """A stream delivered a reply: the router works."""
        self._pauses.succeeded()

    def draining(self, stream: Stream) -> None:
        """The stream takes nothing new; what it has not sent goes elsewhere, what it has sent may finish."""
        if self._current is stream:
            self._current = None
        self._pauses.failed()  # so that a router that only drains is not asked in a tight circle
        stream.link.retire()
        self.submit_again(stream.unsent())

    def submit_again(self, calls: list[Call]) -> None:
        """Calls that no router will work on."""
        for call in calls:
            if not call.future.done():
                call.stream, call.written = None, False
                self._submit(call)

    def ended(self, stream: Stream, failure: aio.AioRpcError | None) -> None:
        """The stream is gone; each of its calls is sent again, or fails."""
        self._streams.discard(stream)
        if self._current is stream:
            self._current = None
        if failure is not None or not stream.answered:
            self._pauses.failed()
        if failure is not None:
            self._last_refusal = failure.details() or failure.code().name
        again: list[Call] = []
        for call in stream.sent():
            error = after_break(call, failure, answered=stream.answered)
            if error is None:
                again.append(call)
            else:
                call.fail(error)
        self.submit_again([*again, *stream.unsent()])

    async def close(self) -> None:
        """Fails what runs and ends all streams."""
        self._closed = True
        if self._connecting is not None:
            self._connecting.cancel()
        self._fail_waiting(closed_error(False))
        streams, self._streams, self._current = self._streams, set(), None
        for stream in streams:
            for call in [*stream.sent(), *stream.unsent()]:
                call.fail(closed_error(call.written and call.writes))
            await stream.close()


def too_large(size: int) -> InvalidRequest:
    """The error for a request that no router would accept."""
    return InvalidRequest(
        f"the request has {size} bytes, the limit is {MAX_REQUEST_BYTES}: send its parameters in several calls",
        code=grpc.StatusCode.INVALID_ARGUMENT,
        reason="MESSAGE_TOO_LARGE",
        executed=Executed.NO,
    )


def closed_error(unsure: bool) -> ClientClosed:
    """The error of a call that meets a closed client, or is met by its close."""
    return ClientClosed(
        "the client was closed" + (" while the write was under way" if unsure else ""),
        code=grpc.StatusCode.CANCELLED,
        reason="CLIENT_CLOSED",
        executed=Executed.MAYBE if unsure else Executed.NO,
    )


def _unexpected(error: Exception) -> Error:
    return InternalError(
        f"connecting failed: {type(error).__name__}: {error}",
        code=grpc.StatusCode.INTERNAL,
        reason="INTERNAL",
        executed=Executed.NO,
    )
