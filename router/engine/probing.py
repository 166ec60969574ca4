"""Watching one endpoint: probe, report, pause; for ever, until the task is cancelled.

Period: policy.interval_s, less or more a tenth; while in doubt 50 ms, after two seconds of doubt 100 ms. Probes of one
endpoint never overlap. After refused logins a connection is tried ever more seldom (decisions/login_breaker); in
between the server is asked as often as before whether it is there, which needs no login. Cancelling the task ends the
loop; the prober is closed by whoever made it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import Enum, unique

from router.decisions.login_breaker import LoginBreaker, Try
from router.model.observation import Fault, FaultKind, ProbeOutcome, ProbeResult, Stage
from router.model.policy import ProbePolicy
from router.ports import Chance, Clock, Prober

DOUBT_INTERVAL_S = 0.05
DOUBT_SETTLES_S = 2.0
"""Doubt that lasts longer is probed at half the pace: twenty log lines a second help nobody."""
SHORTEST_PAUSE_S = 0.01
"""However often it is asked for, a probe starts at most this soon after the last one ended."""
LONGEST_LOGIN_PAUSE_S = 5.0
"""Between two tries of a login that is refused: so long a server whose side was mended may go unnoticed."""
_ANOTHER_BY_NOW = frozenset({ProbeOutcome.REFUSED, ProbeOutcome.STARTING})
"""A server that was away may think differently of the login."""


@unique
class Pace(Enum):
    """How urgently an endpoint is watched."""

    CALM = "calm"
    DOUBT = "doubt"


class ProbeLoop:
    """The loop of one endpoint."""

    def __init__(
        self,
        prober: Prober,
        policy: ProbePolicy,
        clock: Clock,
        chance: Chance,
        report: Callable[[ProbeResult], None],
        pace: Callable[[], Pace],
    ) -> None:
        self._prober = prober
        self._policy = policy
        self._clock = clock
        self._chance = chance
        self._report = report
        self._pace = pace
        self._wake = asyncio.Event()
        self._count = 0
        self._doubt_since: float | None = None
        self._fresh_wanted = False
        self._wanted_at = float("-inf")
        self._logins = LoginBreaker(LONGEST_LOGIN_PAUSE_S)

    def probe_now(self, *, fresh: bool = False) -> None:
        """Probe again at once, or right after the probe that is running. fresh: on a new connection, too, but however
        often that is asked for, not more often than in doubt."""
        self._fresh_wanted = self._fresh_wanted or fresh
        self._wake.set()

    async def run(self) -> None:
        """Probe until cancelled."""
        while True:
            if self._fresh_wanted:
                await self._clock.sleep(max(0.0, self._wanted_at + DOUBT_INTERVAL_S - self._clock.now()))
                self._wanted_at = self._clock.now()
            fresh = self._fresh_wanted or self._pace() is Pace.DOUBT or self._count % self._policy.fresh_every == 0
            self._count += 1
            self._fresh_wanted = False
            self._wake.clear()
            self._report(await self._probe(fresh=fresh))
            await self._clock.sleep(SHORTEST_PAUSE_S)
            await self._pause()

    async def _probe(self, *, fresh: bool) -> ProbeResult:
        what = self._logins.begin(self._clock.now())
        result = await self._prober.probe(fresh=fresh, log_in=what is not None)
        if result.outcome in _ANOTHER_BY_NOW or (result.outcome is ProbeOutcome.OK and result.fresh):
            self._logins.accepted()
        elif what is not None and result.outcome is ProbeOutcome.LOGIN_REFUSED:
            fault = Fault(FaultKind.CONNECT_FAILED, Stage.CONNECT, message=result.message)
            self._logins.refusal(what, fault, self._clock.now())
        elif what is Try.PROBE:
            self._logins.unknown(what)
        return result

    async def _pause(self) -> None:
        """Wait for the next turn; anew when the pace changes, at once when asked."""
        try:
            async with asyncio.timeout(self._pause_s()):
                await self._wake.wait()
        except TimeoutError:
            return

    def _pause_s(self) -> float:
        now = self._clock.now()
        if self._pace() is Pace.CALM:
            self._doubt_since = None
            return self._policy.interval_s * (0.9 + 0.2 * self._chance.draw())
        if self._doubt_since is None:
            self._doubt_since = now
        settled = now - self._doubt_since > DOUBT_SETTLES_S
        return min(self._policy.interval_s, 2 * DOUBT_INTERVAL_S if settled else DOUBT_INTERVAL_S)
