"""Ctrl-C while a write runs: it is cancelled, and what is known of its effects is told."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

import pointsman

from router.console.trouble import ExitCode, Trouble

T = TypeVar("T")
WAIT_S = 1.0
"""For what the router says of a cancelled write."""
_WORDS = {
    pointsman.Executed.NO: "interrupted: it was not executed (executed: no)",
    pointsman.Executed.ROLLED_BACK: "interrupted: it was rolled back (executed: rolled_back)",
    pointsman.Executed.MAYBE: "interrupted: whether it was done is not known (executed: maybe)",
    pointsman.Executed.YES: "interrupted too late: it was done (executed: yes)",
}


class Interrupted(Trouble):
    """Ends a command after Ctrl-C, with what is known of the effects."""

    def __init__(self, executed: pointsman.Executed, key: str = "") -> None:
        look = f"see: pointsman outcome {key}" if key else "look at the data before you repeat it"
        super().__init__(
            _WORDS[executed], look if executed is pointsman.Executed.MAYBE else "", ExitCode.INTERRUPTED
        )


def run(write: Callable[[], T], cancel: Callable[[float], object], key: str = "") -> T:
    """What the write gives. It runs in a thread of its own: the one that Ctrl-C interrupts asks for its end, by
    `cancel(seconds)`, and hears what becomes of it. Interrupted; whatever the write raises."""
    answer: Future[T] = Future()

    def work() -> None:
        try:
            answer.set_result(write())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=work, name="pointsman-write", daemon=True).start()
    try:
        return answer.result()
    except KeyboardInterrupt:
        raise Interrupted(_executed(answer, cancel), key) from None


def _executed(answer: Future[T], cancel: Callable[[float], object]) -> pointsman.Executed:
    until = time.monotonic() + WAIT_S
    with contextlib.suppress(pointsman.Error):  # the router does not answer; perhaps the write still does
        cancel(WAIT_S)
    try:
        answer.result(max(0.0, until - time.monotonic()))
    except pointsman.Error as error:
        return error.executed
    except TimeoutError:
        return pointsman.Executed.MAYBE
    return pointsman.Executed.YES
