"""Whether this router is going away, and who wants to hear of it."""

from __future__ import annotations

from collections.abc import Callable

from router.ports import Clock


class Drain:
    """Begins once, never ends. Streams subscribe to tell their callers; everything else asks."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._ends_at: float | None = None
        self._served: frozenset[str] = frozenset()
        self._listeners: dict[object, Callable[[], None]] = {}

    @property
    def begun(self) -> bool:
        """Whether new work is refused."""
        return self._ends_at is not None

    @property
    def remaining_s(self) -> float:
        """Seconds left for what runs; 0 when the drain has not begun."""
        return 0.0 if self._ends_at is None else max(0.0, self._ends_at - self._clock.now())

    def refuses(self, method: str) -> bool:
        """Whether new calls of a method (by its full name) are refused."""
        return self._ends_at is not None and method not in self._served

    def begin(self, grace_s: float, served: frozenset[str] = frozenset()) -> None:
        """Refuse new work from now on, and tell the streams; a second call changes nothing.

        served: methods whose calls are taken all the same, until the server itself stops.
        """
        if self._ends_at is not None:
            return
        self._served = served
        self._ends_at = self._clock.now() + grace_s
        for listener in list(self._listeners.values()):
            listener()

    def subscribe(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call the listener when the drain begins (it must not raise); the answer ends the subscription."""
        key = object()
        self._listeners[key] = listener
        return lambda: self._listeners.pop(key, None) and None
