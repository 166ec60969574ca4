"""Whether a login is worth another try: after a few refusals in a row, one connect at a time finds out.

A wrong password is wrong for every request of its tenant and every probe, and each try costs PostgreSQL a process and
a hash. States, as in Nygard's circuit breaker (Release It!, 2007): closed (connect at will), open (nobody until
`again_at`), probing (one connect is under way, everybody else is refused). Pure: `now` comes in; times are monotonic
seconds.

Invariant: while it is not closed, at most one connect is under way that began after it opened.
"""

from __future__ import annotations

from enum import Enum, unique

from router.decisions.backoff import LONGEST_PAUSE_S, LongerPause
from router.model.observation import Fault, FaultKind

OPENS_AFTER = 3
"""Refused logins in a row."""


@unique
class Try(Enum):
    """What a connect that may begin is to the breaker; it is told with how it ended."""

    AT_WILL = "at_will"
    PROBE = "probe"
    """The only one that may: what becomes of it says when the next one may."""


class LoginBreaker:
    """Of one tenant at one endpoint, or of the router itself."""

    __slots__ = ("_pause", "_probing", "again_at", "fault", "refused")

    def __init__(self, longest_s: float = LONGEST_PAUSE_S) -> None:
        """longest_s: longest pause (seconds)."""
        self.refused = 0
        """Logins refused in a row."""
        self.again_at = 0.0
        """No connect before this."""
        self.fault: Fault | None = None
        """What the server said last; None: it is closed."""
        self._pause = LongerPause(longest_s)
        """Until the next probe."""
        self._probing = False

    def begin(self, now: float) -> Try | None:
        """What a connect that begins now is; it must be told how it ended. None: it may not, `fault` says why."""
        if self.fault is None:
            return Try.AT_WILL
        if self._probing or now < self.again_at:
            return None
        self._probing = True
        return Try.PROBE

    def accepted(self) -> None:
        """A login succeeded, whenever it began."""
        self.refused = 0
        self.fault = None
        self._pause.begin_anew()
        self._probing = False

    def unknown(self, what: Try) -> None:
        """A connect ended without a word on the login (cancelled, the server did not answer, somebody else's failure,
        a connection that was open already): after a probe, the next one may be one."""
        if what is Try.PROBE:
            self._probing = False

    def refusal(self, what: Try, fault: Fault, now: float) -> None:
        """The server refused the login."""
        if what is Try.PROBE:
            self._probing = False
            self._pause.double()
        elif self.fault is not None:
            return  # it had begun before the breaker opened
        self.refused += 1
        if self.refused >= OPENS_AFTER:
            self.fault = fault
            self.again_at = now + self._pause.s


def refuses_login(fault: Fault) -> bool:
    """Whether a failed connect says that the tenant's login, database or grant is wrong."""
    return fault.kind is FaultKind.CONNECT_FAILED and fault.sqlstate[:2] in ("28", "3D")
