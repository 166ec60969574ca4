"""Many calls over few bidi streams: whatever was queued on one since its last write goes out as one message.

One stream is enough for most programs. Others are opened, each on a connection of its own, when those there are have
no room or are held up, or when the router says that it has several processes and there is work for more than one.
When a stream breaks, the rules of `after_break` say what becomes of its calls; those that go on go to other streams,
or wait for the next one.
"""

from __future__ import annotations

import asyncio
import copy
import math
from collections import deque
from collections.abc import Iterator
from itertools import chain
from time import monotonic

import grpc
from grpc import aio

from pointsman.calls import Call, after_break, closed, cut_off, other_loop, overdue, stream_error, too_large, unexpected
from pointsman.connection import GRACE_S, MAX_REQUEST_BYTES, Connections, Pauses
from pointsman.errors import Error, Executed
from pointsman.mux_stream import WINDOW, Stream, open_stream
from pointsman.replies import Reply

TICK_S = 0.01
"""Deadlines closer together than this are kept together, by an alarm at the last moment for the first of them."""

FILL = 16
"""Calls on the first stream before another open one is used: messages with many calls are cheaper for each."""

SPREAD = 64
"""Calls on each stream before another one is opened to reach another process of the router."""

GROW_AGAIN_S = 5.0
"""After an attempt to open a further stream that failed."""

IDLE_S = 30.0
"""A further stream that carried nothing for at least so long is ended."""


class Multiplexer:
    """The calls of one client. Not thread-safe: everything runs on the client's event loop."""

    def __init__(self, connections: Connections, loop: asyncio.AbstractEventLoop, *, channels: int) -> None:
        self._connections = connections
        self._loop = loop
        self._channels = channels
        self._next_id = 0
        self._waiting: deque[Call] = deque()
        self._open: list[Stream] = []
        """Those that take new calls."""
        self._streams: set[Stream] = set()
        """All, also those that only finish."""
        self._connecting: asyncio.Task[None] | None = None
        self._growing: asyncio.Task[None] | None = None
        self._grow_from = 0.0
        self._trimming: asyncio.TimerHandle | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_for = math.inf
        """No call's deadline is before this."""
        self._pauses = Pauses()
        self._last_refusal = ""
        self._closed = False

    async def roundtrip(self, call: Call) -> Reply:
        """Sends a call and returns its reply.

        Raises Error; never waits longer than the call's timeout and a small grace, whatever the router does.
        """
        future: asyncio.Future[Reply] = self._loop.create_future()
        call.waiter = future
        try:
            self.submit(call)
            return await future
        except asyncio.CancelledError:
            self.abandon(call)
            raise
        except RuntimeError:  # asyncio's own, none of the router's
            self.abandon(call)
            raise other_loop() from None

    def submit(self, call: Call) -> None:
        """Sends a call; its waiter gets the reply. InvalidRequest when it is too large."""
        if len(call.body) > MAX_REQUEST_BYTES:
            raise too_large(len(call.body))
        self._next_id += 1
        call.id = self._next_id
        now = monotonic()
        call.deadline = deadline = now + call.timeout_s
        if deadline < self._alarm_for:
            self._set_alarm(deadline)
        self._route(call, now)

    def abandon(self, call: Call) -> None:
        """The caller no longer waits: the router is told, and the call's memory is given back."""
        call.waiter.cancel()
        call.body = b""
        if call.stream is not None:
            call.stream.cancel(call)

    def _route(self, call: Call, now: float) -> None:
        streams = self._open
        if len(streams) == 1:
            stream = streams[0]
            stream.add(call, now)
            if stream.workers > 1 and len(stream) > SPREAD:
                self.crowded(stream)
        elif streams:
            self._route_among(streams, call, now)
        elif self._closed:
            call.fail(closed(call))
        elif self._loop.is_closed():
            raise other_loop()
        else:
            self._waiting.append(call)
            if self._connecting is None:
                self._connecting = self._loop.create_task(self._connect())

    def _route_among(self, streams: list[Stream], call: Call, now: float) -> None:
        stream = streams[0]
        if len(stream) >= FILL or stream.blocked(now):
            stream = min(streams, key=lambda each: (each.blocked(now), len(each)))
        stream.add(call, now)
        if len(streams) < stream.workers and len(stream) > SPREAD:
            self.crowded(stream)

    # Deadlines. One alarm for all calls: a timer each would cost more than all else that is done here for a call.

    def _set_alarm(self, deadline: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_for = deadline
        self._alarm = self._loop.call_later(deadline + GRACE_S - monotonic(), self._look_at_deadlines)

    def _look_at_deadlines(self) -> None:
        self._alarm, self._alarm_for = None, math.inf
        by = monotonic() - GRACE_S + TICK_S
        late, earliest = [], math.inf
        for call in self._all_calls():
            if call.waiter.done():
                continue
            if call.deadline <= by:
                late.append(call)
            elif call.deadline < earliest:
                earliest = call.deadline
        for call in late:
            call.fail(self._overdue(call))
            self.abandon(call)
        if earliest < self._alarm_for:
            self._set_alarm(earliest)

    def _all_calls(self) -> Iterator[Call]:
        return chain(self._waiting, chain.from_iterable(self._streams))

    def _overdue(self, call: Call) -> Error:
        if not call.written and not self._open:
            return self._connections.unavailable(call.timeout_s, self._last_refusal)
        return overdue(call)

    # Streams.

    async def _connect(self) -> None:
        """Opens a stream for those who wait; ends when it is there or nobody waits any more."""
        try:
            while self._waiting:
                await asyncio.sleep(self._pauses.next_s())
                self._waiting = deque(call for call in self._waiting if not call.waiter.done())
                if self._waiting and await self._try_connect():
                    break
        except asyncio.CancelledError:
            for call in self._waiting:
                call.fail(cut_off(call))
            self._waiting.clear()
            raise
        except Exception as error:
            self._fail_waiting(unexpected(error))
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
        self._opened(stream, [])
        return True

    def _opened(self, stream: Stream, queued: list[Call]) -> None:
        self._streams.add(stream)
        self._open.append(stream)
        waiting, self._waiting = self._waiting, deque()
        self.submit_again([*waiting, *queued])

    def _fail_waiting(self, error: Error) -> None:
        waiting, self._waiting = self._waiting, deque()
        for call in waiting:
            call.fail(copy.copy(error))  # one exception each: a traceback belongs to one raise

    async def _grow(self) -> None:
        """Opens one stream more and gives it its share of what is queued. Nothing is lost when that fails."""
        try:
            stream = await open_stream(self._connections, self, apart=[stream.link for stream in self._streams])
        except aio.AioRpcError:
            self._grow_from = monotonic() + GROW_AGAIN_S
            return
        finally:
            self._growing = None
        self._opened(stream, [call for other in self._open for call in other.unsent()])
        if self._trimming is None:
            self._trimming = self._loop.call_later(IDLE_S, self._trim)

    def _trim(self) -> None:
        """Ends further streams that nobody needs any more."""
        self._trimming = None
        for stream in self._open[1:]:
            if stream.unused():
                self._open.remove(stream)
                stream.finish()
        if len(self._open) > 1:
            self._trimming = self._loop.call_later(IDLE_S, self._trim)

    # What streams report.

    @property
    def renewable(self) -> bool:
        """A new stream may prove what an old one does no longer."""
        return self._connections.renewable

    def answered(self) -> None:
        """A stream delivered a reply: the router works."""
        self._pauses.succeeded()

    def crowded(self, stream: Stream) -> None:
        """The stream has no room, is held up, or has enough to do: opens another one when all are like that."""
        if self._growing is not None or not 0 < len(self._open) < self._channels:
            return
        now = monotonic()
        enough = SPREAD if len(self._open) < stream.workers else WINDOW
        if now >= self._grow_from and all(len(each) >= enough or each.blocked(now) for each in self._open):
            self._growing = self._loop.create_task(self._grow())

    def draining(self, stream: Stream) -> None:
        """The stream takes nothing new; what it has not sent goes elsewhere, what it has sent may finish."""
        if stream in self._open:
            self._open.remove(stream)
        self._pauses.failed()  # so that a router that only drains is not asked in a tight circle
        stream.link.retire()
        self.submit_again(stream.unsent())

    def unproven(self) -> None:
        """The router takes a stream's proof no longer, and those beside it have no newer one: the next stream has."""
        self._pauses.failed()
        streams, self._open = self._open, []
        queued = [call for stream in streams for call in stream.unsent()]
        for stream in streams:
            stream.finish()
        self.submit_again(queued)

    def submit_again(self, calls: list[Call]) -> None:
        """Calls that no router will work on."""
        now = monotonic()
        for call in calls:
            if not call.waiter.done():
                call.stream, call.written = None, False
                self._route(call, now)

    def ended(self, stream: Stream, failure: aio.AioRpcError | None) -> None:
        """The stream is gone; each of its calls is sent again, or fails."""
        self._streams.discard(stream)
        if stream in self._open:
            self._open.remove(stream)
        if failure is not None or not (stream.answered or stream.finishing):
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

    def cut_off(self, stream: Stream) -> None:
        """Somebody has cancelled the stream's task, such as a program that ends all of its own: its calls fail, and the
        next one opens another stream."""
        self._streams.discard(stream)
        if stream in self._open:
            self._open.remove(stream)
        for call in [*stream.sent(), *stream.unsent()]:
            call.fail(cut_off(call))

    async def close(self) -> None:
        """Fails what runs and ends all streams."""
        self._closed = True
        for task in (self._connecting, self._growing):
            if task is not None:
                task.cancel()
        for timer in (self._alarm, self._trimming):
            if timer is not None:
                timer.cancel()
        streams, self._streams = self._streams, set()
        self._open.clear()
        waiting, self._waiting = self._waiting, deque()
        for call in waiting:
            call.fail(closed(call))
        for stream in streams:
            for call in [*stream.sent(), *stream.unsent()]:
                call.fail(closed(call))
            await stream.close()
