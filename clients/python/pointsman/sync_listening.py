"""What pointsman.Listening is, for programs without asyncio."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType

from pointsman.listening import Gap, Listening, Notification
from pointsman.loop_thread import LoopThread


class SyncListening:
    """Notifications and gaps, for `for`; in `with` it listens once the block begins."""

    def __init__(self, inner: Listening, thread: LoopThread) -> None:
        self._inner = inner
        self._thread = thread

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
        """What comes next; None when nothing has come for `timeout` seconds, or it is closed."""
        return self._thread.run(self._inner.next(timeout))

    def close(self) -> None:
        """Ends it."""
        self._thread.end(self._inner.aclose())

    def __enter__(self) -> SyncListening:
        self._thread.run(self._inner.__aenter__())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
