"""How many requests a second a tenant may make: a token bucket (Turner, IEEE Communications, 1986).

Here: the count. Not here: who is told what (the engine).
"""

from __future__ import annotations


class RequestRate:
    """Fills by rate_per_s, holds burst at most; each request takes one."""

    __slots__ = ("_at", "_burst", "_left", "_rate_per_s")

    def __init__(self, rate_per_s: float, burst: float, now: float) -> None:
        """now: monotonic seconds, as everywhere here. The bucket begins full."""
        self._rate_per_s = rate_per_s
        self._burst = burst
        self._left = burst
        self._at = now

    def take(self, now: float) -> float:
        """0: one was taken; else nothing was, and the seconds until there is one."""
        left = min(self._burst, self._left + (now - self._at) * self._rate_per_s)
        self._at = now
        if left >= 1.0:
            self._left = left - 1.0
            return 0.0
        self._left = left
        return (1.0 - left) / self._rate_per_s
