"""How many repetitions may be made: a share of the requests of the last ten seconds.

When a server is in trouble everything fails, and repeating everything would double its load just then. A budget keeps
repetitions a small share of the traffic whatever happens (Google SRE book, "Handling Overload"). Nothing is saved up
for longer than the window, so that the share holds over any ten seconds and not only in the long run.
"""

from __future__ import annotations

WINDOW_SLOTS = 10
"""Seconds looked back at."""


class RetryBudget:
    """Requests and repetitions of the last seconds, in slots of one second.

    Invariant: whenever a repetition is allowed, those of the last ten seconds are at most `least` or `ratio` times the
    requests of that time, whichever is more; and so for all together that share `above`.
    """

    __slots__ = ("_above", "_ends", "_fresh", "_least", "_ratio", "_repeats", "_requests")

    def __init__(self, ratio: float, least: float, now: float, above: RetryBudget | None = None) -> None:
        """ratio: repetitions per request. least: repetitions in the window that are allowed however few requests
        there were, so that the first fault after a quiet night is not everybody's. above: counts for several."""
        self._ratio = ratio
        self._least = least
        self._above = above
        self._fresh = 0
        """Requests of the newest slot."""
        self._ends = now + 1.0
        # The newest first. Repetitions are looked back at for longer than requests are: a window begins within a slot,
        # and in doubt fewer are made.
        self._requests = [0] * (WINDOW_SLOTS - 1)
        self._repeats = [0] * (WINDOW_SLOTS + 1)

    def earn(self, now: float) -> None:
        """A request arrived."""
        if now >= self._ends:
            self._turn(now)
        self._fresh += 1
        if self._above is not None:
            self._above.earn(now)

    def take(self, now: float) -> bool:
        """Whether a repetition may be made; if so it is counted."""
        if not self._may(now) or (self._above is not None and not self._above.take(now)):
            return False
        self._repeats[0] += 1
        return True

    def _may(self, now: float) -> bool:
        if now >= self._ends:
            self._turn(now)
        requests = self._fresh + sum(self._requests)
        return sum(self._repeats) + 1 <= max(self._least, self._ratio * requests)

    def _turn(self, now: float) -> None:
        """The newest slot is full: begin the one that now lies in."""
        passed = int(now - self._ends) + 1
        kept = min(passed, WINDOW_SLOTS + 1)
        self._requests = [*[0] * (kept - 1), self._fresh, *self._requests][: WINDOW_SLOTS - 1]
        self._repeats = [*[0] * kept, *self._repeats][: WINDOW_SLOTS + 1]
        self._fresh = 0
        self._ends += passed
