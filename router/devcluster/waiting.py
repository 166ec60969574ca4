"""Waiting by polling. The only place of this package that reads a clock or sleeps."""

import time
from collections.abc import Callable
from typing import TypeVar

from router.devcluster.errors import WaitTimeoutError

T = TypeVar("T")


def now_s() -> float:
    """Seconds on the monotonic clock."""
    return time.monotonic()


def pause(seconds: float) -> None:
    """Block this thread."""
    time.sleep(seconds)


def wait_until(check: Callable[[], T | None], *, what: str, timeout_s: float, interval_s: float = 0.03) -> T:
    """Call `check` until it returns something true, and return that.

    Raises WaitTimeoutError, naming `what`, after `timeout_s` seconds; `check` runs at least once.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        found = check()
        if found:
            return found
        if time.monotonic() >= deadline:
            raise WaitTimeoutError(f"gave up after {timeout_s:g} s waiting for {what}")
        time.sleep(interval_s)
