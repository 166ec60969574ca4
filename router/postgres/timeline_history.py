"""Where the timelines before a primary's own were left: read once per timeline, from its history file.

The file is open to superusers only; deploy/roles.sql makes a function that reads this one file and nothing else.
Without the function the history is empty: known to be unknown.
"""

from __future__ import annotations

from dataclasses import replace

from router.model.identity import Lsn, Term, lsn_from_text
from router.model.observation import AttemptFailed, FaultKind, RoleClaim
from router.postgres.control_connection import ControlConnection

History = tuple[tuple[Term, Lsn], ...]
_QUERY = "SELECT pointsman.timeline_history({})"


class TimelineHistory:
    """The history behind one server's claims."""

    def __init__(self) -> None:
        self._timeline = 0
        self._history: History = ()

    async def complete(self, claim: RoleClaim, connection: ControlConnection, deadline: float) -> RoleClaim:
        """The claim with its history. AttemptFailed when the connection is of no use any more."""
        if claim.in_recovery:
            return claim
        if claim.timeline != self._timeline:
            self._history = await _read(claim.timeline, connection, deadline)
            self._timeline = claim.timeline
        return replace(claim, history=self._history)


async def _read(timeline: Term, connection: ControlConnection, deadline: float) -> History:
    if timeline <= 1:
        return ()
    try:
        rows = await connection.query(_QUERY.format(int(timeline)), deadline)
    except AttemptFailed as error:
        if error.fault.kind is not FaultKind.SERVER_ERROR:
            raise
        return ()  # no such function, or no right to it
    return parse(rows[0][0] or "")


def parse(text: str) -> History:
    """A history file: each ancestor and the position at which it was left; empty when it makes no sense.

    https://www.postgresql.org/docs/current/continuous-archiving.html#BACKUP-TIMELINES
    """
    try:
        lines = [line.split(None, 2) for line in text.splitlines() if line.strip() and not line.startswith("#")]
        return tuple((Term(int(line[0])), lsn_from_text(line[1])) for line in lines)
    except (ValueError, IndexError):
        return ()
