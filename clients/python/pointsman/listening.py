"""listen: notifications, over as many connections, routers and failovers as it takes; what may be missing is told."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum, unique
from typing import Any

import grpc
from grpc import aio

from pointsman.connection import Connections, Link, Pauses, ended_error
from pointsman.copy_requests import abandon
from pointsman.errors import Error, Executed
from pointsman.status import drained, error_from_rpc
from pointsman.v1 import query_service_pb2 as pb

METHOD = "/pointsman.v1.QueryService/Listen"
SILENCES = 3
"""Heartbeats that may fail to come before the connection counts as dead."""
QUIET_S = 0.01
"""A message that has not come so long after it was asked for had not come before."""
QUIET_TURNS = 4
"""Of the event loop: what has come is seen within so many, also when the loop was held up."""


@dataclass(frozen=True, slots=True)
class Notification:
    """What somebody sent by NOTIFY or pg_notify()."""

    channel: str
    payload: str
    process_id: int
    """Of the backend that sent it."""


@unique
class GapReason(Enum):
    """Why notifications may be missing."""

    BACKEND_FAILOVER = "backend_failover"
    """There is another primary."""
    RECONNECT = "reconnect"
    """A connection was lost, of the router to PostgreSQL or of this client to the router, and is there again."""
    SLOW_CONSUMER = "slow_consumer"
    """This program did not read fast enough."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Notifications may be missing between `since` and this; from here on none is: read anew what they are about.

    Nothing is missing before `since`. It is earlier than the break by the time between two messages of the router, its
    heartbeats among them, and by more where this program did not wait for them.
    """

    reason: GapReason
    since: datetime
    missed: int = 0
    """How many are missing for certain; 0 where nobody can know."""


_REASONS = {
    pb.GAP_REASON_BACKEND_FAILOVER: GapReason.BACKEND_FAILOVER,
    pb.GAP_REASON_SLOW_CONSUMER: GapReason.SLOW_CONSUMER,
}
_BROKEN = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.INTERNAL,
                     grpc.StatusCode.UNKNOWN, grpc.StatusCode.DEADLINE_EXCEEDED})  # fmt: skip
"""Without a reason of the router's: the connection broke, and another one may hold."""


class Listening:
    """Notifications and gaps, for `async for`; in `async with` it listens once the block begins. For one task.

    It connects again by itself, for as long as it takes or `timeout` says, and then gives a Gap.
    """

    def __init__(
        self, connections: Connections, channels: tuple[str, ...], *, first_s: float, again_s: float | None
    ) -> None:
        self.channels = channels
        self.endpoint = ""
        """Where it listens; empty while it does not."""
        self._connections = connections
        self._first_s = first_s
        self._again_s = again_s
        self._loop = asyncio.get_running_loop()
        self._pauses = Pauses()
        self._rpc: Any = None
        self._link: Link | None = None
        self._reading: asyncio.Task[Any] | None = None
        self._silence_s = first_s
        self._last = self._begun = self._loop.time()
        """Of the newest message; and when it began to wait for a ready."""
        self._heard: datetime | None = None
        """When the router last said that it listens, or before; None before the first ready."""
        self._quiet = datetime.now(UTC)
        """What is taken next had not come by then. When it came, nobody knows: this program may have had other things
        to do than to take it."""
        self._looking: asyncio.TimerHandle | None = None
        self._proven = False
        """This stream has been ready, so its token was good then."""
        self._gap: Gap | None = None
        self._come: deque[Notification | Gap] = deque()
        """Come, and not yet given out."""
        self._done = False
        self._ended_by: Error | None = None

    def __aiter__(self) -> AsyncIterator[Notification | Gap]:
        return self

    async def __anext__(self) -> Notification | Gap:
        item = await self.next()
        if item is None:
            raise StopAsyncIteration
        return item

    async def next(self, timeout: float | None = None) -> Notification | Gap | None:
        """What comes next; None when nothing has come for `timeout` seconds, or it is closed. An error ends it, and is
        raised again until it is closed."""
        if self._ended_by is not None:
            raise self._ended_by
        by = None if timeout is None else self._loop.time() + timeout
        try:
            while not self._done:
                if self._come:
                    return self._come.popleft()
                if self._gap is not None and self.endpoint:
                    gap, self._gap = self._gap, None
                    return gap
                message = await self._message(by)
                if message is None:
                    return None
                self._take(message)
        except BaseException as error:
            self._broken_by(error)
            raise
        return None

    def _broken_by(self, error: BaseException) -> None:
        """Raises ClientClosed where that is what it was. A cancelled caller may come back: nothing is lost by it."""
        closed = self._connections.met_close(error, Executed.NO)
        if closed is not None or not isinstance(error, asyncio.CancelledError):
            self._leave()
            self._ended_by = closed or ended_error(error)
        if closed is not None:
            raise closed from None

    async def ready(self) -> Listening:
        """Waits until it listens: what is sent from then on comes."""
        while not self._done and not self.endpoint:
            message = await self._message(None)
            if message is not None:
                self._take(message)
        return self

    def _take(self, message: pb.ListenResponse) -> None:
        match message.WhichOneof("event"):
            case "notifications":
                sent = message.notifications.notifications
                self._heard = self._quiet
                self._come.extend(Notification(one.channel, one.payload, one.process_id) for one in sent)
            case "ready":
                self.endpoint = message.ready.endpoint
                self._silence_s = SILENCES * max(1, message.ready.heartbeat_ms) / 1000
                self._heard, self._proven = self._quiet, True
            case "gap":
                since = self._quiet - timedelta(milliseconds=message.gap.since_ms)
                gap = Gap(_REASONS.get(message.gap.reason, GapReason.RECONNECT), since, message.gap.missed)
                if gap.reason is GapReason.SLOW_CONSUMER:
                    self._come.append(gap)
                else:
                    self._gap = gap  # given out once the ready behind it is here
            case "heartbeat":
                if message.heartbeat.listening:
                    self._heard = self._quiet
                else:
                    self._interrupted()
            case "draining" if self._link is not None:
                self._link.retire()

    def _interrupted(self) -> None:
        if self.endpoint:
            self.endpoint = ""
            self._begun = self._loop.time()

    # --- the stream ------------------------------------------------------------------------------------------------

    async def _message(self, by: float | None) -> pb.ListenResponse | None:
        """The next message, of this stream or of the one after it; None at the time `by`."""
        while not self._done:
            if self._reading is None:
                self._open()
            assert self._reading is not None
            silent = self._last + self._silence_s
            until = silent if by is None else min(silent, by)
            # The reading goes on when its caller is cancelled: gRPC would end the whole stream with it.
            await asyncio.wait({self._reading}, timeout=max(0.0, until - self._loop.time()))
            if not self._reading.done():
                if by is not None and self._loop.time() >= by:
                    return None
                await self._lost(_silent(self._silence_s))
                continue
            reading, self._reading = self._reading, None
            message = _outcome(reading)
            if isinstance(message, Error):
                await self._lost(message)
                continue
            self._pauses.succeeded()
            self._last = self._loop.time()
            self._read()
            return message
        return None

    def _read(self) -> None:
        self._reading = reading = self._loop.create_task(self._rpc.read())
        self._loop.call_soon(self._asked, reading)  # behind the task's first step, which may be held up for long

    def _asked(self, reading: asyncio.Task[Any]) -> None:
        if reading is self._reading:
            self._looking = self._loop.call_later(QUIET_S, self._look, reading, datetime.now(UTC), QUIET_TURNS)

    def _look(self, reading: asyncio.Task[Any], asked: datetime, turns: int) -> None:
        """Whether the message had to be waited for, so that it came after it was asked for."""
        self._looking = None
        if reading is not self._reading or reading.done():
            return
        if turns:
            self._loop.call_soon(self._look, reading, asked, turns - 1)
        else:
            self._quiet = asked

    def _open(self) -> None:
        self._link = self._connections.acquire()
        start = self._link.channel.unary_stream(
            METHOD,
            request_serializer=pb.ListenRequest.SerializeToString,
            response_deserializer=pb.ListenResponse.FromString,
        )
        self._proven, self._last, self._quiet = False, self._loop.time(), datetime.now(UTC)
        self._rpc = start(pb.ListenRequest(channels=self.channels), metadata=self._connections.metadata())
        self._read()

    async def _lost(self, error: Error) -> None:
        """The stream has ended: raises what another one would not mend, else waits a little."""
        proven = self._proven
        if self._link is not None and drained(error):
            self._link.retire()
        self._interrupted()
        self._drop()
        # A token that was good may have ended: the next stream asks for a new one.
        if not (_is_worth_another(error) or (proven and error.code is grpc.StatusCode.UNAUTHENTICATED)):
            raise error
        if self._heard is not None:
            self._gap = self._gap or Gap(GapReason.RECONNECT, self._heard)
        self._pauses.failed()
        pause_s = self._pauses.next_s()
        patience_s = self._first_s if self._heard is None else self._again_s
        if patience_s is not None and self._loop.time() + pause_s - self._begun >= patience_s:
            raise self._connections.unavailable(patience_s, error.message)
        await asyncio.sleep(pause_s)

    async def aclose(self) -> None:
        """Ends it. Closing again does nothing."""
        self._ended_by = None
        self._leave()

    async def __aenter__(self) -> Listening:
        try:
            return await self.ready()
        except BaseException as error:
            self._broken_by(error)
            self._leave()
            raise

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        # A plain `break` out of `async for` does not close the iterator.
        if self._rpc is not None and not self._done and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(_end, self._rpc, self._link, self._reading)

    def _leave(self) -> None:
        self._done = True
        self.endpoint = ""
        self._drop()

    def _drop(self) -> None:
        rpc, self._rpc = self._rpc, None
        link, self._link = self._link, None
        reading, self._reading = self._reading, None
        looking, self._looking = self._looking, None
        if looking is not None:
            looking.cancel()
        _end(rpc, link, reading)


def _end(rpc: Any, link: Link | None, reading: asyncio.Task[Any] | None) -> None:
    if reading is not None:
        reading.add_done_callback(_forget)
        reading.cancel()
    abandon(rpc, link)


def _forget(reading: asyncio.Task[Any]) -> None:
    if not reading.cancelled():
        reading.exception()


def _outcome(reading: asyncio.Task[Any]) -> pb.ListenResponse | Error:
    """What a reading came to."""
    try:
        message = reading.result()
    except aio.AioRpcError as failure:
        return error_from_rpc(failure, writes=False)
    except asyncio.CancelledError:
        return _ended("the stream was cancelled")
    return message if isinstance(message, pb.ListenResponse) else _ended("the router ended the stream")


def _ended(words: str) -> Error:
    return Error(words, code=grpc.StatusCode.UNAVAILABLE, reason="", executed=Executed.NO)


def _silent(seconds: float) -> Error:
    return _ended(f"the router has said nothing for {seconds:g} s")


def _is_worth_another(error: Error) -> bool:
    """Another stream may fare better."""
    return error.code is grpc.StatusCode.UNAVAILABLE or (not error.reason and error.code in _BROKEN)
