"""Blocking work in tests: what would wait for ever fails the test and holds up no other one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def bounded(work: Callable[[], T], *, within_s: float = 5.0) -> T:
    """What the work returns or raises, done in a thread of its own; an AssertionError when it does not end in time."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(within_s)
    assert not thread.is_alive(), f"had not ended after {within_s:g} s"
    if errors:
        raise errors[0]
    return results[0]
