"""One Multiplex stream: its writer, its reader, and how it is opened.

The writer sends whatever was queued since its last write as one message. It starts through the event loop, so that
all callers who are ready in the same turn have queued before it looks.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Collection, Iterator
from time import monotonic
from typing import Any, Protocol

from grpc import aio

from pointsman.calls import Call, Refusal, overdue, refusal_of
from pointsman.connection import Connections, Link, connected
from pointsman.replies import Response, parse_response
from pointsman.status import drained, error_from_rpc
from pointsman.v1 import query_service_pb2 as pb
from pointsman.wire import call_frame

METHOD = "/pointsman.v1.QueryService/Multiplex"

FRAME_BYTES = 1024 * 1024
"""A message is closed when it has this much, so that one large write does not hold up everything."""

WINDOW = 768
"""Calls under way on one stream, below what a router accepts; the others wait here, where they can be moved."""

BLOCKED_S = 0.1
"""A write that takes longer than this is held up by the network or by the router; other calls should not be."""

OPEN_KEY = "pointsman-stream"
"""The header by which the router says that it has let a stream in."""

WORKERS_KEY = "pointsman-workers"
"""The header in which a router of several processes may say how many share its port."""

LET_IN_S = 0.25
"""How long a new stream waits for the router's headers. One too busy to send them gets the calls all the same."""

_CANCEL_BODY = pb.MultiplexCall(cancel=pb.MultiplexCancel()).SerializeToString()

Rpc = aio.StreamStreamCall[bytes, Response]


class Owner(Protocol):
    """Whom a stream reports to."""

    @property
    def renewable(self) -> bool: ...
    def answered(self) -> None: ...
    def crowded(self, stream: Stream) -> None: ...
    def draining(self, stream: Stream) -> None: ...
    def unproven(self) -> None: ...
    def submit_again(self, calls: list[Call]) -> None: ...
    def ended(self, stream: Stream, failure: aio.AioRpcError | None) -> None: ...
    def cut_off(self, stream: Stream) -> None: ...


class Stream:
    """A stream that is connected. `close` it, `finish` it, or let it end by itself."""

    def __init__(self, rpc: Rpc, link: Link, owner: Owner, workers: int = 1) -> None:
        self.link = link
        self.workers = workers
        self.answered = False
        self.finishing = False
        self._rpc = rpc
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._outbox: deque[Call] = deque()
        self._cancels: deque[int] = deque()
        self._in_flight: dict[int, Call] = {}
        self._idle: asyncio.Future[None] | None = None
        self._write_began = math.inf
        self._used = True
        self._draining = False
        self._unproven = False
        self._was_proven = False
        """Answered something else before."""
        self._finished = False
        self._closing = False
        self._writer = self._loop.create_task(self._write())
        self._reader = self._loop.create_task(self._read())

    def __len__(self) -> int:
        return len(self._outbox) + len(self._in_flight)

    def __iter__(self) -> Iterator[Call]:
        yield from self._outbox
        yield from self._in_flight.values()

    def add(self, call: Call, now: float) -> None:
        """Queues a call; it goes out with everything else that is queued when the writer is free."""
        call.stream = self
        self._outbox.append(call)
        if self._idle is not None:
            self._wake()
        elif now - self._write_began > BLOCKED_S:
            self._owner.crowded(self)

    def blocked(self, now: float) -> bool:
        """True while a write does not come to its end."""
        return now - self._write_began > BLOCKED_S

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

    def unused(self) -> bool:
        """True when it carries nothing and has carried nothing since this was asked last."""
        used, self._used = self._used, False
        return not used and not len(self)

    def finish(self) -> None:
        """Ends the stream when its last call has ended; it must get no new ones."""
        self.finishing = self._draining = True
        self.link.retire()
        self._end_if_drained()

    async def close(self) -> None:
        """Ends the stream without a word to its owner."""
        self._closing = True
        self._rpc.cancel()
        self._writer.cancel()
        self._reader.cancel()
        await asyncio.gather(self._writer, self._reader, return_exceptions=True)

    def _wake(self) -> None:
        if self._idle is not None:
            if not self._idle.done():
                self._idle.set_result(None)
            self._idle = None

    async def _write(self) -> None:
        try:
            while not self._finished:
                frame = self._take()
                if frame:
                    await self._rpc.write(frame)
                else:
                    self._write_began = math.inf
                    self._idle = idle = self._loop.create_future()
                    await idle
            await self._rpc.done_writing()
        except (aio.AioRpcError, asyncio.InvalidStateError):
            pass  # the reader sees the same end, and knows what to do
        except BaseException:  # a cancel, too: nobody would write any more
            self._rpc.cancel()
            raise
        finally:
            self._write_began = math.inf

    def _take(self) -> bytes:
        """The next message; its calls count as written from here on, whatever becomes of the write."""
        parts: list[bytes] = []
        size = 0
        outbox, in_flight = self._outbox, self._in_flight
        self._write_began = now = monotonic()
        while self._cancels:
            parts.append(call_frame(self._cancels.popleft(), 0, _CANCEL_BODY))
        while outbox and size < FRAME_BYTES and len(in_flight) < WINDOW:
            call = outbox.popleft()
            remaining_ms = int((call.deadline - now) * 1000)
            if call.waiter.done():
                continue
            if remaining_ms <= 0:
                call.fail(overdue(call))
                continue
            if parts and size + len(call.body) > FRAME_BYTES:
                outbox.appendleft(call)
                break
            call.written = True
            in_flight[call.id] = call
            part = call_frame(call.id, remaining_ms, call.body)
            size += len(part)
            parts.append(part)
        if outbox and len(in_flight) >= WINDOW:
            self._owner.crowded(self)
        return b"".join(parts)

    async def _read(self) -> None:
        failure: aio.AioRpcError | None = None
        cut_off = False
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
            # task itself (close, or a program that ends all tasks) wants no reconnecting.
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                cut_off = True
                raise
        finally:
            self._writer.cancel()
            self.link.release()
            if not self._closing:
                if cut_off:
                    self._owner.cut_off(self)
                else:
                    self._owner.ended(self, failure)

    def _deliver(self, response: Response) -> None:
        refused: list[Call] = []
        in_flight = self._in_flight
        self._used = True
        for reply in response.replies:
            call = in_flight.pop(reply.id, None)
            if call is None or call.waiter.done():
                continue
            failure = reply.failure
            if failure and self._turned_away(call, failure):
                refused.append(call)
                continue
            self.answered = True
            call.waiter.set_result(reply)
        if self.answered:
            self._owner.answered()
        if (response.draining or refused or self._unproven) and not self._draining:
            self._draining = True
            if self._unproven:
                self._owner.unproven()
            else:
                self._owner.draining(self)
        if refused:
            self._owner.submit_again(refused)
        if self._outbox:
            self._wake()  # there is room in the window again
        if self._draining:
            self._end_if_drained()

    def _turned_away(self, call: Call, failure: bytes) -> bool:
        """True for a call that the router did not take, to be sent on another stream."""
        refusal = refusal_of(failure)
        if refusal is not Refusal.UNPROVEN:
            return refusal is Refusal.DRAINING
        if not self._unproven:
            self._unproven, self._was_proven = True, self.answered
        again = self._was_proven and self._owner.renewable and not call.renewed
        call.renewed = True
        return again

    def _end_if_drained(self) -> None:
        if self._draining and not self._in_flight:
            self._finished = True
            self._wake()


async def open_stream(connections: Connections, owner: Owner, *, apart: Collection[Link] = ()) -> Stream:
    """A stream that the router has let in, on none of the channels `apart`.

    AioRpcError when it cannot be reached or refuses.
    """
    link = connections.acquire(apart=apart)
    try:
        start: aio.StreamStreamMultiCallable[bytes, Response] = link.channel.stream_stream(
            METHOD, request_serializer=None, response_deserializer=parse_response
        )
        rpc = await connected(start(metadata=connections.metadata()))
        workers = await _let_in(rpc)
    except BaseException as error:
        if isinstance(error, aio.AioRpcError) and drained(error_from_rpc(error, writes=False)):
            link.retire()  # the next attempt shall not meet the same router, if there is another one
        link.release()
        raise
    return Stream(rpc, link, owner, workers)


async def _let_in(rpc: Rpc) -> int:
    """Waits until the router's headers say that the stream is open; AioRpcError when it ends the stream instead.

    Without this, a write could cross the refusal, and grpc.aio then forgets the refusal's status (it says INTERNAL):
    a write that no router has touched would have to be answered with "outcome unknown". Gives the router's processes.
    """
    opened = asyncio.ensure_future(_opened(rpc))
    try:
        await asyncio.wait({opened}, timeout=LET_IN_S)
    except BaseException:
        rpc.cancel()
        raise
    return opened.result() if opened.done() else 1


async def _opened(rpc: Rpc) -> int:
    headers = await rpc.initial_metadata()
    if headers.get(OPEN_KEY) is None:
        await rpc.code()  # a refusal, whose empty headers may come a moment before its status
        await rpc.read()
    workers = str(headers.get(WORKERS_KEY, "1"))
    return int(workers) if workers.isdecimal() else 1
