"""How long to pause before the next attempt. Pure; times are seconds."""

from __future__ import annotations

from router.model.policy import RetryPolicy


def delay(attempt: int, draw: float, policy: RetryPolicy) -> float:
    """Pause after the given attempt (from 1) failed, in seconds; draw is uniform in [0, 1).

    Full jitter: anything from nothing to the doubled bound, so that requests that failed together do not come back
    together (M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015).
    """
    doublings = min(max(attempt - 1, 0), 62)  # beyond that every bound is the largest anyway
    return draw * min(policy.backoff_max_s, policy.backoff_s * (1 << doublings))


FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0


class LongerPause:
    """After each failure in a row twice the pause before, from FIRST_PAUSE_S to the longest: for what goes on until
    somebody mends it, and is tried by one at a time, so that there is nobody to be kept apart from by chance."""

    __slots__ = ("_longest_s", "s")

    def __init__(self, longest_s: float = LONGEST_PAUSE_S) -> None:
        self._longest_s = longest_s
        self.s = FIRST_PAUSE_S
        """The next one."""

    def double(self) -> None:
        """It has been in vain once more."""
        self.s = min(2 * self.s, self._longest_s)

    def begin_anew(self) -> None:
        """It has succeeded, or something else is tried."""
        self.s = FIRST_PAUSE_S
