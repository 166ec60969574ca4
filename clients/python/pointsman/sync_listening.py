"""What pointsman.Listening is, for programs without asyncio."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from types import TracebackType

from pointsman.listening import Gap, Listening, Notification
from pointsman.loop_thread import LoopThread


class SyncListening:
    """Notifications and gaps, for `for`; in `with` it listens once the block begins. One thread takes what comes; any
    may close it."""

    def __init__(self, inner: Listening, thread: LoopThread) -> None:
        self._inner = inner
        self._thread = thread
        self._come: deque[Notification | Gap] = deque()
        """Taken, and not yet given out: the thread that waited for it was interrupted."""
        self._taking: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def channels(self) -> tuple[str, ...]:
        """What it listens to."""
        return self._inner.channels

    @property
    def endpoint(self) -> str:
        """Where it listens; empty while it does not."""
        return self._inner.endpoint

    def __iter__(self) -> Iterator[Notification | Gap]:
        return self

    def __next__(self) -> Notification | Gap:
        item = self.next()
        if item is None:
            raise StopIteration
        return item

    def next(self, timeout: float | None = None) -> Notification | Gap | None:
        """What comes next; None when nothing has come for `timeout` seconds, or it is closed. An error ends it, and is
        raised again until it is closed."""
        if not self._come:
            self._thread.run(self._take(timeout))
        return self._come.popleft() if self._come else None

    async def _take(self, timeout: float | None) -> None:
        if self._come:
            return  # meant for the call before, which was interrupted in the meantime
        self._taking = asyncio.current_task()
        try:
            item = await self._inner.next(timeout)
        except asyncio.CancelledError:
            if not self._closed:
                raise
        else:
            if item is not None:
                self._come.append(item)
        finally:
            self._taking = None

    def close(self) -> None:
        """Ends it, and the waiting of another thread."""
        self._thread.end(self._close())

    async def _close(self) -> None:
        self._closed = True
        self._come.clear()
        if self._taking is not None:
            self._taking.cancel()
        await self._inner.aclose()

    def __enter__(self) -> SyncListening:
        self._thread.run(self._inner.__aenter__())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
