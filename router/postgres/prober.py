"""ports.Prober over PostgreSQL: one kept-open connection, and on request a fresh one beside it.

A server whose postmaster is stuck still answers on the first and hangs on the second; a dead one may still have an
open socket. So both are asked, at once, within one deadline.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from router.model.observation import AttemptFailed, FaultKind, ProbeOutcome, ProbeResult, RoleClaim
from router.model.topology import Cluster, Endpoint
from router.postgres.control_connection import ControlConnection
from router.postgres.control_door import ControlDoor
from router.postgres.faults import SENSELESS
from router.postgres.role_query import ROLE_QUERY, read_claim
from router.postgres.timeline_history import TimelineHistory

DEADLINE_SHARE = 0.98
"""Of the time-out: the rest is for saying so in time."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """What one of the two ways to ask brought."""

    outcome: ProbeOutcome
    claim: RoleClaim | None = None
    connection: ControlConnection | None = None
    message: str = ""


STILL_SERVES = {
    ProbeOutcome.TIMEOUT: ProbeOutcome.FRESH_HANGS,
    ProbeOutcome.FULL: ProbeOutcome.FULL,
    ProbeOutcome.STARTING: ProbeOutcome.STARTING,
    ProbeOutcome.REFUSED: ProbeOutcome.REFUSED,
}
"""Outcome of a probe whose existing connection answers, by that of the fresh one; everything else is OK: a server that
serves its sessions is up, and why it takes no new ones stands in the message."""


class PostgresProber:
    """Watches one endpoint with the control login. One probe at a time."""

    def __init__(self, cluster: Cluster, endpoint: Endpoint, door: ControlDoor | None = None) -> None:
        self._endpoint = endpoint
        self._door = door or ControlDoor(cluster)
        self._timeout_s = cluster.policy.probe.timeout_s
        self._connection: ControlConnection | None = None
        self._history = TimelineHistory()
        self._refusal: str | None = None
        """What the server said when it refused the login, as it did the last time."""

    async def probe(self, *, fresh: bool, log_in: bool = True) -> ProbeResult:
        """See ports.Prober."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        deadline = began + self._timeout_s * DEADLINE_SHARE
        kept, self._connection = self._connection, None
        try:
            answer = await (self._ask(kept, fresh, deadline) if log_in else self._ask_outside(kept, deadline))
        except BaseException:
            _close(kept)
            raise
        self._connection = answer.connection
        ended = loop.time()
        return ProbeResult(
            self._endpoint.name,
            answer.outcome,
            ended,
            ended - began,
            answer.claim,
            answer.message,
            log_in and (fresh or kept is None),
        )

    async def close(self) -> None:
        """Close the kept connection."""
        _close(self._connection)
        self._connection = None

    async def _ask_outside(self, kept: ControlConnection | None, deadline: float) -> _Answer:
        """Without opening a connection."""
        if kept is not None:
            answer = await self._ask_on(kept, deadline)
            if answer.outcome is not ProbeOutcome.LOST:
                return answer
        outcome = await self._door.ask(self._endpoint, deadline)
        return _Answer(outcome, message=(self._refusal or "") if outcome is ProbeOutcome.LOGIN_REFUSED else "")

    async def _ask(self, kept: ControlConnection | None, fresh: bool, deadline: float) -> _Answer:
        if kept is None:
            return await self._ask_anew(deadline)
        if not fresh:
            answer = await self._ask_on(kept, deadline)
            if answer.outcome is ProbeOutcome.LOST:
                return await self._ask_anew(deadline)
            return answer
        on_kept, anew = await asyncio.gather(self._ask_on(kept, deadline), self._ask_anew(deadline))
        if anew.outcome is ProbeOutcome.OK or on_kept.outcome is not ProbeOutcome.OK:
            _close(on_kept.connection)
            return anew
        outcome = STILL_SERVES.get(anew.outcome, ProbeOutcome.OK)
        return _Answer(outcome, on_kept.claim, on_kept.connection, anew.message)

    async def _ask_anew(self, deadline: float) -> _Answer:
        before, self._refusal = self._refusal, None
        answer = await self._try_anew(deadline)
        if answer.outcome is ProbeOutcome.LOGIN_REFUSED and before is None:
            # A server that has just finished starting refuses the login and is open when asked why.
            answer = await self._try_anew(deadline)
        if answer.outcome is ProbeOutcome.LOGIN_REFUSED:
            self._refusal = answer.message
        return answer

    async def _try_anew(self, deadline: float) -> _Answer:
        try:
            connection = await self._door.open(self._endpoint, deadline)
        except AttemptFailed as error:
            if error.fault.kind is FaultKind.SILENT:
                return _Answer(ProbeOutcome.TIMEOUT, message=error.fault.message)
            outcome = await self._door.ask(self._endpoint, deadline)
            return _Answer(outcome, message=error.fault.message)
        return await self._ask_on(connection, deadline)

    async def _ask_on(self, connection: ControlConnection, deadline: float) -> _Answer:
        """Ask on an open connection; it comes back in the answer only if it can be kept."""
        try:
            rows = await connection.query(ROLE_QUERY, deadline)
            claim = read_claim(rows[0], connection.server_version)
            claim = await self._history.complete(claim, connection, deadline)
        except AttemptFailed as error:
            connection.close()
            return _Answer(_outcome(error), message=error.fault.message)
        except SENSELESS as error:
            connection.close()
            return _Answer(ProbeOutcome.FAILED, message=f"an answer that makes no sense: {type(error).__name__}")
        except BaseException:
            connection.close()
            raise
        return _Answer(ProbeOutcome.OK, claim, connection)


def _outcome(error: AttemptFailed) -> ProbeOutcome:
    match error.fault.kind:
        case FaultKind.SILENT:
            return ProbeOutcome.TIMEOUT
        case FaultKind.CONNECTION_LOST:
            return ProbeOutcome.LOST
        case _:
            # It answered, only not to this role: an SQL error here means that the role lacks a right.
            return ProbeOutcome.LOGIN_REFUSED


def _close(connection: ControlConnection | None) -> None:
    if connection is not None:
        connection.close()
