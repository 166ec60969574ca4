"""What must hold for callers that pass consistency tokens on: they see their own writes, and never less than before.

One exception is the router's own (see router/README.md): who comes from a replica to the primary may miss, for a
moment, what others wrote and the primary still waits to confirm. It is in the primary's log all the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from router.model.token import Token, decode
from tests.simulation.wal import Record, quorum

if TYPE_CHECKING:
    from tests.simulation.judge import Judge
    from tests.simulation.node import Node

Place = tuple[Record, int]
"""A record and its position in the log."""


@dataclass(slots=True)
class Session:
    """What one caller was told, and the token that it passes on."""

    name: str
    token: Token | None = None
    own: Place | None = None
    """Its newest write."""
    of_primary: Place | None = None
    """The newest record that it saw on a primary."""
    of_replica: Place | None = None


@dataclass(frozen=True, slots=True)
class _Look:
    """One execution of a session's read."""

    missing: str
    """What it should have seen and did not; empty: nothing."""
    saw: Place
    by_primary: bool


class SessionLedger:
    """The part of the judge that knows sessions."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._asked: list[tuple[Place | None, Place | None, Place | None]] = []
        self._looks: list[_Look] = []

    def asks(self, session: Session) -> int:
        """A session's read begins: its number, by which the server asks what must be seen."""
        self._asked.append((session.own, session.of_primary, session.of_replica))
        return len(self._asked) - 1

    def look(self, node: Node, asked: int) -> int:
        """A server executes the read; the number that the reader gets is that of what it saw."""
        own, of_primary, of_replica = self._asked[asked]
        visible, missing = node.visible(), ""
        for what, place in (("its own write", own), ("what it saw on a primary", of_primary)):
            if place is not None and not (place[1] <= visible and node.has(*place)):
                missing = what
        seen = visible if node.in_recovery else len(node.wal)
        if of_replica is not None and not (of_replica[1] <= seen and node.has(*of_replica)):
            missing = "what it saw on a replica"
        saw = self._confirmed(node, visible)
        self._looks.append(_Look(missing and f"{missing}, by {node!r}", saw, not node.in_recovery))
        return len(self._looks) - 1

    def _confirmed(self, node: Node, visible: int) -> Place:
        """The newest record of these that cannot be lost any more: others are visible after a crash, or when the wait
        for a standby was ended."""
        nodes = self._judge.servers.nodes.values()
        primary = self._judge.servers.newest_primary()
        enough = 1 + quorum(primary.sync_names if primary is not None else node.sync_names)[0]
        while visible > 1:
            record = node.wal[visible - 1]
            if sum(one.flushed >= visible and one.has(record, visible) for one in nodes) >= enough:
                break
            visible -= 1
        return node.wal[visible - 1], visible

    # --- what callers are told ----------------------------------------------------------------------------------

    def wrote(self, session: Session, place: Place, token: bytes) -> None:
        """A write of the session was answered with OK."""
        session.own = place
        self._pass_on(session, token)

    def read(self, session: Session, look: int, token: bytes) -> None:
        """A read of the session was answered."""
        found = self._looks[look]
        self._judge.counts["read with a token" if session.token is not None else "read without a token"] += 1
        if found.missing:
            self._judge.fail(f"a read of {session.name} with token {session.token} missed {found.missing}")
        if not token:
            self._judge.counts["read answered without a token"] += 1  # of a router that does not know the cluster yet
            return
        if found.by_primary:
            session.of_primary = _newer(session.of_primary, found.saw)
        else:
            session.of_replica = _newer(session.of_replica, found.saw)
        self._pass_on(session, token)

    def _pass_on(self, session: Session, token: bytes) -> None:
        if not token:
            self._judge.fail(f"an answer to {session.name} has no token")
            return
        new = decode(token)
        session.token = new if session.token is None else session.token.merge(new)


def _newer(before: Place | None, now: Place) -> Place:
    return now if before is None or now[1] > before[1] else before
