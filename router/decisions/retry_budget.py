"""How many retries a tenant may make: a share of its requests, plus a few a second.

When a server is in trouble everything fails, and repeating everything would double its load just then. A budget keeps
retries a small share of the traffic whatever happens (Google SRE book, "Handling Overload").
"""

from __future__ import annotations

from router.model.policy import RetryPolicy


class RetryBudget:
    """A token bucket; a retry costs one token.

    Invariant: retries <= budget_burst + budget_ratio * requests + budget_per_s * seconds. It starts full, so that the
    first fault after a start or a quiet night finds retries to spend.
    """

    __slots__ = ("_at", "_policy", "_tokens")

    def __init__(self, policy: RetryPolicy, now: float) -> None:
        self._policy = policy
        self._tokens = policy.budget_burst
        self._at = now

    @property
    def tokens(self) -> float:
        """Retries that could be made at once, as of the last call."""
        return self._tokens

    def earn(self, now: float) -> None:
        """A request arrived."""
        self._fill(now, self._policy.budget_ratio)

    def take(self, now: float) -> bool:
        """Whether a retry may be made; if so it is paid."""
        self._fill(now, 0.0)
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True

    def _fill(self, now: float, extra: float) -> None:
        policy = self._policy
        passed = now - self._at
        if passed > 0:
            extra += policy.budget_per_s * passed
            self._at = now
        tokens = self._tokens + extra
        self._tokens = tokens if tokens < policy.budget_burst else policy.budget_burst
