"""How long to pause before the next attempt."""

from __future__ import annotations

from router.model.policy import RetryPolicy


def delay(attempt: int, draw: float, policy: RetryPolicy) -> float:
    """Pause after the given attempt (from 1) failed, in seconds; draw is uniform in [0, 1).

    Full jitter: anything from nothing to the doubled bound, so that requests that failed together do not come back
    together (M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015).
    """
    doublings = min(max(attempt - 1, 0), 62)  # beyond that every bound is the largest anyway
    return draw * min(policy.backoff_max_s, policy.backoff_s * (1 << doublings))
