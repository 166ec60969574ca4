"""One Listen stream as the engine sees it: what it listens to, and what has come and was not yet read, bounded."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import replace

from router.model.errors import Code, Executed, RouterError
from router.model.identity import EndpointName, Generation, TopologyNumber
from router.model.listening import Draining, Gap, Heard, Heartbeat, Notification, Ready
from router.model.reasons import GapReason, RefuseReason

MAX_QUEUED = 1024
"""Notifications that wait for their reader; beyond it has a gap."""
MAX_QUEUED_BYTES = 1 << 20
MORE_BYTES = 64 << 10
"""Of notifications that go out as one message: a message costs far more than a notification."""
_FRAME_BYTES = 16
LINGER_S = 0.5
"""After a drain began, a stream goes on for so long, in which its caller can open another one."""

Home = tuple[EndpointName, Generation]
"""Where it listens. Another one is a failover, also if the server is the same."""


class Listener:
    """Read by next() until it raises, then close(). For one reader. Writers call from the event loop and never wait.

    Invariant: what is not in the queue is missing only where a gap stands in it, or is still to come (`_since`).
    """

    def __init__(self, channels: frozenset[str], heartbeat_s: float, left: Callable[[Listener], None]) -> None:
        """left: called once, at its close."""
        self.channels = channels
        self.listening = False
        """LISTEN is active for all its channels, and nothing is missing since."""
        self.was_ready = False
        self._heartbeat_s = heartbeat_s
        self._left = left
        self._loop = asyncio.get_running_loop()
        self._queue: deque[Heard] = deque()
        self._bytes = 0
        self._reader: asyncio.Future[None] | None = None
        self.error: RouterError | None = None
        """Why it ends, once it does."""
        self._home: Home | None = None
        self._since = 0.0
        """From when on notifications may be missing, while it is not listening any more."""
        self._closed = False
        self.patience: asyncio.TimerHandle | None = None
        """Ends it if it does not become ready in time."""

    # --- the reader ----------------------------------------------------------------------------------------------

    async def next(self) -> Heard:
        """What came next; a heartbeat when that takes long. RouterError: the end."""
        if not self._queue and self.error is None:
            self._reader = self._loop.create_future()
            timer = self._loop.call_later(self._heartbeat_s, self._wake)
            try:
                await self._reader
            finally:
                timer.cancel()
                self._reader = None
        if self._queue:
            item = self._queue.popleft()
            if isinstance(item, Notification):
                self._bytes -= _size(item)
            return item
        if self.error is not None:
            raise self.error
        return Heartbeat(self.listening)

    def more(self) -> list[Notification]:
        """Notifications that have come already, to go with the one from next(): MORE_BYTES of them, or few more."""
        found: list[Notification] = []
        left = MORE_BYTES
        while left > 0 and self._queue and isinstance(item := self._queue[0], Notification):
            self._queue.popleft()
            self._bytes -= _size(item)
            left -= _size(item) + _FRAME_BYTES
            found.append(item)
        return found

    def close(self) -> None:
        """The caller has gone. May be called again."""
        if not self._closed:
            self._closed = True
            if self.patience is not None:
                self.patience.cancel()
            self._left(self)

    def cancel(self) -> None:
        """Its caller asked for its end by its id."""
        error = RouterError(
            Code.CANCELLED, RefuseReason.CANCELLED, "the request was cancelled", executed=Executed.NO
        )
        self.end(error)

    # --- the writers ---------------------------------------------------------------------------------------------

    @property
    def queued(self) -> int:
        """Items that wait for the reader."""
        return len(self._queue)

    def notify(self, notification: Notification, now: float) -> bool:
        """Put it into the queue; False: there was no room, and a gap says so."""
        if len(self._queue) < MAX_QUEUED and self._bytes + _size(notification) <= MAX_QUEUED_BYTES:
            self._bytes += _size(notification)
            self._put(notification)
            return True
        last = self._queue[-1] if self._queue else None
        if isinstance(last, Gap) and last.missed:
            self._queue[-1] = replace(last, missed=last.missed + 1)
        else:
            self._put(Gap(GapReason.SLOW_CONSUMER, now, 1))
        return False

    def ready(self, home: Home, topology: TopologyNumber) -> Gap | None:
        """LISTEN is active for all its channels. The gap that this ends, if any."""
        gap = None
        if self._home is not None:
            reason = GapReason.RECONNECT if self._home == home else GapReason.BACKEND_FAILOVER
            gap = Gap(reason, self._since, 0)
            self._put(self._with_those_before(gap))
        self._home = home
        self.listening = self.was_ready = True
        self._put(Ready(home[0], topology))
        return gap

    def _with_those_before(self, gap: Gap) -> Gap:
        """A queue that is full does not grow by what stands at its end: one gap is enough there."""
        while len(self._queue) >= MAX_QUEUED and isinstance(last := self._queue[-1], Gap | Ready | Heartbeat):
            self._queue.pop()
            if isinstance(last, Gap):
                gap = replace(gap, since=min(gap.since, last.since), missed=gap.missed + last.missed)
        return gap

    def interrupted(self, since: float) -> None:
        """It hears nothing any more. since: until when it had heard everything."""
        if not self.listening:
            return
        self.listening = False
        self._since = since
        if len(self._queue) < MAX_QUEUED:
            self._put(Heartbeat(listening=False))

    def drain(self) -> None:
        """The router goes away: tell its caller, and end a moment later."""
        self._put(Draining())
        error = RouterError(
            Code.UNAVAILABLE,
            RefuseReason.DRAINING,
            "the router is shutting down: listen again on a new connection",
            retry_after_s=0.2,
        )
        self._loop.call_later(LINGER_S, self.end, error)

    def end(self, error: RouterError) -> None:
        """Nothing more comes but what is in the queue; then its reader gets the error."""
        if self.error is None:
            self.listening = False
            self.error = error
            self._wake()

    def _put(self, item: Heard) -> None:
        self._queue.append(item)
        self._wake()

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)


def _size(notification: Notification) -> int:
    return len(notification.payload) + len(notification.channel)
