"""Repairing what a failover left behind, so that "kill the primary and watch" ends where it began.

One look a second, from `pointsman dev`. Healing never promotes: that is the router's work, or the operator's. It
also leaves the router time to repoint standbys itself, and does it only when they stay behind.
"""

from collections import Counter
from dataclasses import dataclass
from enum import Enum

import psycopg

from router.devcluster import replication
from router.devcluster.errors import DevClusterError, NoPrimaryError
from router.devcluster.lifecycle import start_all
from router.devcluster.nodes import Nodes
from router.devcluster.rejoining import attach, rejoin
from router.devcluster.replication import Observation
from router.devcluster.server import Server

LOOKS_BEFORE_REPOINT = 3
LOOKS_BEFORE_REJOIN = 8
_FAILURES = (DevClusterError, psycopg.Error)
"""Of a repair: a second server may be killed while the first is brought back, also one that is being asked."""


class HealReason(Enum):
    """What was wrong with a server."""

    SERVER_DIED = "its process had ended"
    STALE_PRIMARY = "it was still a primary, on an older timeline"
    NOT_STREAMING = "it did not follow the primary"
    ALONE = "its process had ended, and no other server runs"
    NO_QUORUM = "it did not count all the others as standbys"


@dataclass(frozen=True)
class Healed:
    """One repair, done or tried."""

    name: str
    reason: HealReason
    done: str
    """What was done, or why it failed, in words for a log line."""
    succeeded: bool


class Healer:
    """Remembers between two looks how long a standby has not followed anyone."""

    def __init__(self) -> None:
        self._looks_without_stream: Counter[str] = Counter()
        self._quorum_due = False

    def heal(self, nodes: Nodes) -> list[Healed]:
        """Look once and repair; returns what was done, usually nothing."""
        observed = nodes.observe()
        try:
            primary = nodes.primary_among(observed)
        except NoPrimaryError:
            return self._heal_without_primary(nodes)
        healed = []
        for server in nodes.servers.values():
            if server is primary or server.is_frozen:
                continue
            reason = self._what_is_wrong(server, observed.get(server.name), primary)
            if reason is not None:
                healed.append(self._repair(nodes, server, primary, reason))
        self._quorum_due = self._quorum_due or any(repair.succeeded for repair in healed)
        if self._quorum_due:
            healed += self._expect_quorum(nodes, primary)
        return healed

    def _expect_quorum(self, nodes: Nodes, primary: Server) -> list[Healed]:
        try:
            nodes.expect_quorum(primary)
        except _FAILURES as error:
            return [Healed(primary.name, HealReason.NO_QUORUM, f"failed: {error}", succeeded=False)]
        self._quorum_due = False
        return []

    def _what_is_wrong(self, server: Server, seen: Observation | None, primary: Server) -> HealReason | None:
        if not server.is_running:
            return HealReason.SERVER_DIED
        if seen is None:
            return None
        if not seen.in_recovery:
            return HealReason.STALE_PRIMARY
        if seen.streams_from_port == primary.port:
            del self._looks_without_stream[server.name]
            return None
        self._looks_without_stream[server.name] += 1
        looks = self._looks_without_stream[server.name]
        return HealReason.NOT_STREAMING if looks in {LOOKS_BEFORE_REPOINT, LOOKS_BEFORE_REJOIN} else None

    def _repair(self, nodes: Nodes, server: Server, primary: Server, reason: HealReason) -> Healed:
        try:
            if reason is HealReason.NOT_STREAMING and self._looks_without_stream[server.name] < LOOKS_BEFORE_REJOIN:
                replication.set_parameters(
                    server, primary_conninfo=nodes.conninfo(server, primary), primary_slot_name=server.name
                )
                return Healed(server.name, reason, f"pointed at {primary.name}", succeeded=True)
            replication.ensure_slots(primary, nodes.others(primary))
            back = (attach if reason is HealReason.SERVER_DIED else rejoin)(nodes, server, primary)
        except _FAILURES as error:
            return Healed(server.name, reason, f"failed: {error}", succeeded=False)
        del self._looks_without_stream[server.name]
        return Healed(server.name, reason, f"{back.method.value} in {back.took_s:.1f} s", succeeded=True)

    def _heal_without_primary(self, nodes: Nodes) -> list[Healed]:
        """A dead primary with living standbys waits for a promotion; only when nobody is left, all start again."""
        if any(server.is_running for server in nodes.servers.values()):
            return []
        try:
            primary = start_all(nodes)
        except _FAILURES as error:
            last = nodes.state.last_primary
            return [Healed(last, HealReason.ALONE, f"failed: {error}", succeeded=False)]
        return [Healed(primary.name, HealReason.ALONE, "all servers started again", succeeded=True)]
