"""How fast a queue empties, and so how long whoever joins it will wait: measured, not guessed.

Departures are counted over windows while somebody waits; an average of the windows' intervals, the latest counting
most, is the pace (the server is the bottleneck then, so this is its service rate: no model of it is needed).
"""

from __future__ import annotations

WINDOW_S = 0.1
"""Departures are counted over at least this long (seconds)."""
FEW = 8
"""A window with fewer departures lasts longer, up to a second: those who began together leave together."""
STOPPED = 4.0
"""After a pause of so many intervals the queue stands still."""
LATEST = 0.3
"""Share of the latest window in the average."""
FORGET_S = 10.0
"""What was measured before a pause of this length says nothing any more (seconds)."""


class Pace:
    """Of one queue. All times are monotonic seconds."""

    __slots__ = ("_count", "_interval_s", "_last", "_learned", "_since")

    def __init__(self) -> None:
        self._interval_s = 0.0
        """Between departures; 0: not known yet."""
        self._since = self._last = self._learned = 0.0
        self._count = 0

    def begin(self, now: float) -> None:
        """Somebody is about to wait, or to be refused, as the first: until now the queue was empty, and stood still for
        nobody."""
        if now - self._learned > FORGET_S:
            self._interval_s = 0.0
        self._since = self._last = now
        self._count = 0

    def left(self, now: float) -> None:
        """One has got what it waited for, while it or others waited."""
        self._count += 1
        self._last = now
        took_s = now - self._since
        if took_s >= WINDOW_S and (self._count >= FEW or took_s >= FEW * WINDOW_S):
            interval_s = took_s / self._count
            known = self._interval_s
            self._interval_s = known + LATEST * (interval_s - known) if known else interval_s
            self._since = self._learned = now
            self._count = 0

    def wait_s(self, ahead: int, now: float) -> float:
        """How long it takes until so many have left (seconds); 0 when the pace is not known."""
        if not self._interval_s:
            return 0.0
        pause_s = now - self._last
        # A server that has come to a stop: the pause so far is the best guess of each one that is still to come.
        return ahead * (pause_s if pause_s > STOPPED * self._interval_s else self._interval_s)
