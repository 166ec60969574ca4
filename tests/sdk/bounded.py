"""Blocking work in tests: what would wait for ever fails the test and holds up no other one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Started(Generic[T]):
    """Work under way in a daemon thread of its own."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._results: list[T] = []
        self._errors: list[BaseException] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._results.append(self._work())
        except BaseException as error:
            self._errors.append(error)

    def result(self, within_s: float = 5.0) -> T:
        """What it returns or raises; an AssertionError when it does not end in time."""
        self._thread.join(within_s)
        assert not self._thread.is_alive(), f"had not ended after {within_s:g} s"
        if self._errors:
            raise self._errors[0]
        return self._results[0]


def bounded(work: Callable[[], T]) -> T:
    """What the work returns or raises, within five seconds."""
    return Started(work).result()


def until(condition: Callable[[], Any]) -> None:
    """Waits for something that another thread brings about."""
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)
