"""SIGHUP and SIGUSR1 between the beginning of a process and the moment at which the router can take them.

Until then they would end it. They are noted, not ignored: processes that are started meanwhile would inherit that.
"""

from __future__ import annotations

import signal
from types import FrameType

_noted: set[int] = set()


def note() -> None:
    """Call first; until somebody else takes these signals."""
    for number in (signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, _note)


def _note(number: int, _frame: FrameType | None) -> None:
    _noted.add(number)


def came(number: signal.Signals) -> bool:
    """Whether it came since note()."""
    return number in _noted
