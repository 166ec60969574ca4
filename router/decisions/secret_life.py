"""How long a secret that a command printed is used, and when the command is run again. Pure: `now` comes in; times are
monotonic seconds.

Invariant: a secret that there is stays in use until there is a newer one, however often the command fails.
"""

from __future__ import annotations

from enum import Enum, unique

from router.decisions.backoff import FIRST_PAUSE_S, LongerPause

REFRESH_SHARE = 0.75
"""Of its life: from then on it is asked for anew beside its use."""


@unique
class Next(Enum):
    """What who wants the secret does."""

    USE = "use"
    USE_AND_RUN = "use_and_run"
    """It is good yet; a newer one is asked for beside."""
    RUN = "run"
    """Wait for the command; if it fails, use what there is."""
    DO_WITHOUT = "do_without"
    """There is none, and it is too early to run the command again."""


class SecretLife:
    """Of one command's secret."""

    __slots__ = ("_pause", "_stale", "_ttl_s", "again_at", "failing_since", "printed_at")

    def __init__(self, ttl_s: float) -> None:
        self._ttl_s = ttl_s
        self.again_at = 0.0
        """The command is not run before."""
        self._pause = LongerPause()
        self._stale = False
        self.printed_at: float | None = None
        """When the secret in use was printed; None: there is none."""
        self.failing_since: float | None = None

    def next(self, now: float) -> Next:
        """What to do about it now."""
        early = now < self.again_at
        if self.printed_at is None:
            return Next.DO_WITHOUT if early else Next.RUN
        age_s = now - self.printed_at
        if early or (age_s < REFRESH_SHARE * self._ttl_s and not self._stale):
            return Next.USE
        return Next.RUN if self._stale or age_s >= self._ttl_s else Next.USE_AND_RUN

    def printed(self, now: float) -> None:
        """The command was run, and brought one."""
        self.printed_at = now
        self.failing_since = None
        self._stale = False
        self._pause.begin_anew()
        self.again_at = now + FIRST_PAUSE_S

    def failed(self, now: float) -> None:
        """The command brought none."""
        if self.failing_since is None:
            self.failing_since = now
        self.again_at = now + self._pause.s
        self._pause.double()

    def refused(self) -> None:
        """A server did not believe it: it has been changed, or has ended early."""
        self._stale = True
