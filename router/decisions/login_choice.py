"""Which login new connections to an endpoint are opened with, after the configuration has changed it: the new one
once a server has accepted it, the former one until then. Pure: `now` comes in; times are monotonic seconds.

States: settled (in use is what is configured), pending (it is not: the configured one is tried now and then), untried
(in use is what is configured, nobody has logged in with it yet, and the former one is there to fall back on).

Invariants: a login that a server has accepted is given up for another one only after that one was accepted. What is
configured is tried as long as it is not in use.
"""

from __future__ import annotations

from router.decisions.backoff import FIRST_PAUSE_S, LongerPause
from router.model.topology import Login

REFUSED = "the new one is refused, the former one goes on"


class LoginChoice:
    """Of one user of an endpoint: a tenant, or the router itself."""

    __slots__ = ("_fallback", "_pause", "again_at", "configured", "in_use", "problem", "refused_at")

    def __init__(self, configured: Login, former: Login | None = None, *, former_in_use: bool = False) -> None:
        """former: what was configured before. former_in_use: connections with it are open."""
        self.configured = configured
        self.in_use = former if former is not None and former_in_use else configured
        self._fallback = former if self.in_use == configured and former != configured else None
        self._pause = LongerPause()
        """Between two tries of one that was refused."""
        self.again_at = 0.0
        """While pending: the configured one is not tried before."""
        self.problem = ""
        """Why the configured one is not in use; empty: it is, or was not tried yet."""
        self.refused_at: float | None = None
        """When it was refused for the first time."""

    @property
    def pending(self) -> bool:
        """The configured one is not in use."""
        return self.in_use != self.configured

    @property
    def other(self) -> Login | None:
        """What is worth a try when the one in use is refused."""
        return self.configured if self.pending else self._fallback

    def trouble(self, now: float) -> tuple[str, float] | None:
        """What operators are told of a configured one that is refused, and for how long (seconds); None: all is well,
        as far as known."""
        if not self.pending or self.refused_at is None:
            return None
        return f"{REFUSED}: {self.problem}", now - self.refused_at

    def change(self, configured: Login) -> None:
        """The configuration has changed again."""
        if configured == self.configured:
            return
        if not self.pending and self._fallback is not None:
            self.in_use, self._fallback = self._fallback, None  # the one between was never accepted
        self.configured = configured
        self.problem, self.refused_at = "", None
        self._pause.begin_anew()
        self.again_at = 0.0

    def accepted(self, login: Login) -> bool:
        """A server has accepted a login. True: another one is in use from now on."""
        moved = False
        if login == self.configured:
            moved = self.pending
            self.in_use = login
            self.problem, self.refused_at = "", None
            self._fallback = None
        elif login == self._fallback:
            self.in_use, self._fallback = login, None
            moved = True
        return moved

    def refused(self, login: Login, problem: str, now: float) -> None:
        """A server has refused a login."""
        if login == self._fallback:
            self._fallback = None
        elif login == self.configured:
            self.problem = problem
            self.refused_at = now if self.refused_at is None else self.refused_at
            self.again_at = now + self._pause.s
            self._pause.double()

    def unknown(self, now: float) -> None:
        """The configured one was tried, and the server said nothing about it."""
        self.again_at = now + FIRST_PAUSE_S
