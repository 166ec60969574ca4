"""What must hold of writes with an idempotency key: done once or not at all, however often they are sent.

A history has a key at most once, together with what it was for. An answer is that of the run that the history has, also
when it comes from the key's row; it is never lost, and each answer to the same key is the same. Where every request of
a key was answered with "not executed" or "rolled back", no log has it, ever.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from router.model.errors import Executed, RouterError
from router.model.reasons import RefuseReason
from router.model.request import WriteOutcome
from tests.simulation.wal import Record

if TYPE_CHECKING:
    from tests.simulation.judge import Judge
    from tests.simulation.node import Node

_IMPOSSIBLE = (RefuseReason.KEY_REUSED, RefuseReason.IDEMPOTENCY_NOT_CONFIGURED)
SAFE = 2
"""Servers that have it on disk: the primary, and one of those that must confirm."""


class KeyLedger:
    """The part of the judge that knows keys."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._runs: dict[bytes, list[tuple[Record, int]]] = {}
        self._open: Counter[bytes] = Counter()
        self._doubt: set[bytes] = set()
        """Some request of theirs ended without a word about it."""
        self._denied: set[bytes] = set()
        self._answers: dict[bytes, bytes] = {}

    def runs(self, key: bytes) -> list[tuple[Record, int]]:
        """Where it was ever executed."""
        return self._runs.get(key, [])

    def inserted(self, node: Node, record: Record, position: int) -> None:
        if not record.keys and any(b" + 1 " in write for write in record.writes):
            self._judge.fail(f"{node.name} has an increment without its key")
        for key, _ in record.keys:
            for former, place in self.runs(key):
                if node.has(former, place):
                    self._judge.fail(f"{key.decode()} is executed a second time, by {node.name}")
            if key in self._denied:
                self._judge.fail(f"{key.decode()} is executed by {node.name} after its callers were told otherwise")
            self._runs.setdefault(key, []).append((record, position))

    # --- what callers are told ----------------------------------------------------------------------------------

    def begins(self, key: bytes) -> None:
        """A request with this key is sent."""
        self._open[key] += 1
        self._denied.discard(key)

    def vanished(self, key: bytes) -> None:
        """It has no end: its caller went away, or the router died."""
        self._open[key] -= 1
        self._doubt.add(key)

    def answered(self, key: bytes, stamp: bytes, host: str, *, replayed: bool) -> None:
        self._open[key] -= 1
        self._judge.counts["keyed replayed" if replayed else "keyed"] += 1
        if self._answers.setdefault(key, stamp) != stamp:
            self._judge.fail(f"{key.decode()} was answered with {stamp!r}, and with {self._answers[key]!r} before")
        ending = b"('#%s')" % stamp
        for record, position in self.runs(key):
            if any(write.endswith(ending) for write in record.writes):
                self._safe(key, record, position, host)
                return
        self._judge.fail(f"{key.decode()} was answered with {stamp!r}, which is in no log")

    def _safe(self, key: bytes, record: Record, position: int, host: str) -> None:
        nodes = self._judge.servers.nodes.values()
        holders = [node.name for node in nodes if node.flushed >= position and node.has(record, position)]
        if len(holders) < SAFE:
            self._judge.fail(f"{key.decode()} was answered with OK, and is on the disks of {holders} only")
        self._judge.promise(record, position, host)

    def refused(self, key: bytes, error: RouterError) -> None:
        self._open[key] -= 1
        self._judge.counts[f"keyed {error.executed.value} {error.reason.value}"] += 1
        if error.reason in _IMPOSSIBLE:
            self._judge.fail(f"{key.decode()}: {error.message}")
        if error.executed not in (Executed.NO, Executed.ROLLED_BACK):
            self._doubt.add(key)
        if self._open[key] or key in self._doubt or key in self._answers:
            return
        self._denied.add(key)
        for record, _ in self.runs(key):
            self._judge.fail(f"{key.decode()} was answered with executed={error.executed.value}, and is in the log of "
                             f"{record.node}")

    def looked_up(self, key: bytes, outcome: WriteOutcome, host: str) -> None:
        """GetOutcome has answered."""
        self._judge.counts[f"outcome {outcome.value}"] += 1
        if outcome is WriteOutcome.NOT_FOUND and key in self._answers:
            self._judge.fail(f"{key.decode()} was answered with OK, and later said not to be there")
        if outcome is WriteOutcome.COMMITTED:
            primary = self._judge.servers.newest_primary()
            found = [run for run in self.runs(key) if primary is None or primary.has(*run)]
            if not found:
                self._judge.fail(f"{key.decode()} is said to be committed, and {primary!r} does not have it")
                return
            self._safe(key, *found[0], host)

    def final(self, primary: Node) -> None:
        """All is healed."""
        counts = Counter(key for record in primary.wal for key, _ in record.keys)
        twice = [key for key, count in counts.items() if count > 1]
        if twice:
            self._judge.fail(f"{twice[0].decode()} was executed more than once")
