"""What must hold in every run, checked at each event that could break it. It sees the truth that no client sees.

Durability: what a caller was told to be committed is in the log of every server that becomes primary. One writer: a
timeline has one primary, also where two routers promote, and none of an older timeline confirms a commit once a newer
one has. Honesty: what was answered with "not executed" or "rolled back" is in no log, ever, and nothing un-keyed is
there twice. Routing: no write goes to a server of an older timeline than the router has published. Promotions only
where the primary was in trouble.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

from router.model.errors import Executed, RouterError
from router.model.events import Phase
from router.model.request import Access
from router.model.state import ClusterState
from router.ports import Unit
from tests.simulation.key_ledger import KeyLedger
from tests.simulation.session_ledger import Place, SessionLedger
from tests.simulation.trace import Trace
from tests.simulation.wal import Record, quorum

if TYPE_CHECKING:
    from tests.simulation.node import Node
    from tests.simulation.pools import ModelLane, ModelPool
    from tests.simulation.router_life import RouterLife
    from tests.simulation.servers import Servers

SLACK_S = 0.1
"""A request may end so long after its deadline (seconds)."""
RECENT_S = 2.5
"""Trouble that ended so long ago may still be what a promotion answers to (seconds)."""


class BrokenInvariant(AssertionError):
    """What must hold does not."""


class Judge:
    """Watches one run."""

    servers: Servers

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._loop = asyncio.get_running_loop()
        self.note = trace.note
        self.broken: str | None = None
        self.failed: asyncio.Future[None] = self._loop.create_future()
        self.counts: Counter[str] = Counter()
        self._where: dict[bytes, tuple[Record, int]] = {}
        """Every write that ever was in a log."""
        self._denied: set[bytes] = set()
        """Writes that a caller was told not to have been executed."""
        self._told: list[tuple[Record, int]] = []
        """Records that a caller was told to be committed, in that order."""
        self._told_by: Counter[str] = Counter()
        self._writers: dict[int, str] = {}
        """Who has confirmed commits of a timeline."""
        self._promotes: dict[str, tuple[str, float]] = {}
        """Which router last told a server to promote, and when."""
        self._primaries: dict[int, str] = {}
        """Who was promoted to a timeline."""
        self._confirmed: set[int] = set()
        self.promotions = 0
        self.keys = KeyLedger(self)
        self.sessions = SessionLedger(self)

    def fail(self, words: str) -> None:
        """An invariant is broken: remembered, and the run ends."""
        if self.broken is None:
            self.broken = words
            self._trace.note(f"BROKEN: {words}")
            self.failed.set_result(None)

    # --- what servers do ----------------------------------------------------------------------------------------

    def inserted(self, node: Node, record: Record, position: int) -> None:
        self.keys.inserted(node, record, position)
        for write in record.writes:
            if write in self._where:
                self.fail(f"{_name(write)} was executed twice: by {self._where[write][0].node} and by {node.name}")
            self._where[write] = (record, position)
            if write in self._denied:
                self.fail(f"{_name(write)} is executed by {node.name} after its caller was told that it was not")

    def confirmed(self, node: Node, record: Record, position: int) -> None:
        """A server confirms a commit to its client."""
        if not record.writes:
            return
        self._confirmed.add(record.serial)
        writer = self._writers.setdefault(record.timeline, node.name)
        newest = max(self._writers)
        if writer != node.name:
            self.fail(f"{writer} and {node.name} both confirm commits of timeline {record.timeline}")
        elif record.timeline < newest and not self._kept(record, position):
            # (What a standby had before it was fenced may be confirmed late: it lives on.)
            self.fail(f"{node.name} confirms a commit of timeline {record.timeline} while {newest} is written")

    def _kept(self, record: Record, position: int) -> bool:
        """Whether the newest primary has it."""
        primary = self.servers.newest_primary()
        return primary is not None and primary.has(record, position)

    def promoted(self, node: Node) -> None:
        """A standby has become primary."""
        self.note(f"{node!r} is primary of timeline {node.timeline}")
        first = self._primaries.setdefault(node.timeline, node.name)
        if first != node.name:
            self.fail(f"{first} and {node.name} both became primary of timeline {node.timeline}")
        for record, position in self._told:
            if not node.has(record, position):
                self.fail(f"{_name(record.writes[0])}, which its caller was told to be committed, is not on {node!r}")
                return

    def newest_in(self, node: Node) -> int:
        """How many of the commits that callers know of a reader of this server sees, by the newest one."""
        visible = node.visible()
        for index in range(len(self._told) - 1, -1, -1):
            record, position = self._told[index]
            if position <= visible and node.has(record, position):
                return index + 1
        return 0

    def told_by(self, host: str) -> int:
        """How many of them there were when this router last told of one: its own strong reads must show that. (One that
        has not seen yet what another router did may read from the primary before, where no token forbids it.)"""
        return self._told_by[host]

    # --- what the router does -----------------------------------------------------------------------------------

    def submitted(self, pool: ModelPool, lane: ModelLane, unit: Unit) -> None:
        """The router sends something."""
        life = pool.life
        if pool.access is Access.READ_WRITE and pool.node.timeline < life.term:
            self.fail(f"the router sends a write to {pool.node!r} though it has published timeline {life.term}")
        if lane.generation != pool.generation:
            self.fail(f"a connection of generation {lane.generation} is used in a pool of {pool.generation}")

    def published(self, life: RouterLife, state: ClusterState) -> None:
        """The router says who the primary is."""
        if state.term < life.term:
            self.fail(f"timeline {state.term} is published after {life.term}")
        if state.generation < life.generation:
            self.fail("the generation falls")
        if state.phase in (Phase.HOLDING, Phase.PROMOTING, Phase.STUCK, Phase.STARTING) and state.primary is not None:
            self.fail(f"a primary is published in phase {state.phase.name}")
        life.term, life.generation = state.term, state.generation

    def operated(self, life: RouterLife, step: str, node: Node) -> None:
        """The router changes a server; a fence is the first change of every promotion."""
        self.note(f"surgeon: {step} on {node!r}")
        if step == "look":
            return
        if step == "promote":
            self._promotes[node.name] = life.host, self._loop.time()
            self.counts[f"promotions by {life.host}"] += 1
        if step == "fence" and not life.switching and not life.fencing:
            life.fencing = True
            self.promotions += 1
            self._needed(life, node)
        elif step != "fence":
            life.fencing = step == "still_fenced" and life.fencing

    def _needed(self, life: RouterLife, fenced: Node) -> None:
        """A promotion begins: was the primary in trouble, and not only out of the router's sight?"""
        primary = self.servers.newest_primary()
        if primary is None or primary.name == fenced.name or not life.term:
            return
        if primary.read_only or life.finishes_a_move:
            return  # it was begun for a reason, and must come to its end
        since = self._loop.time() - RECENT_S
        host, at = self._promotes.get(primary.name, (life.host, 0.0))
        if host != life.host and at >= since:
            return  # another router was a moment faster, for the same reason
        if primary.frozen or primary.process is primary.process.DEAD or primary.host_down:
            return
        if primary.lost_at >= since:
            return
        network, (k, names) = self.servers.network, quorum(primary.sync_names)
        deaf = [
            name for name in names
            if network.disturbed_since((primary.name, name), since - 2) or self.servers.nodes[name].trouble_at > since
            or network.disturbed_since((name, primary.name), since - 2) or self.servers.nodes[name].frozen
            or self.servers.nodes[name].receiver.silent_s > 1 or not self.servers.nodes[name].receiver.alive
        ]
        ways = (life.host, primary.name), (primary.name, life.host)
        if len(deaf) < len(names) - k + 1 or not any(network.disturbed_since(way, since) for way in ways):
            self.fail(f"a needless promotion: {primary!r} serves, and only {deaf} may not hear it")

    # --- what callers are told ----------------------------------------------------------------------------------

    def answered_write(self, writes: tuple[bytes, ...], host: str) -> Place | None:
        """A caller was told by a router that its writes are committed: where they are."""
        self.counts["committed"] += 1
        found = {self._where.get(write) for write in writes}
        if None in found or len(found) != 1:
            self.fail(f"{_name(writes[0])} was answered with OK, and is in no log as a whole")
            return None
        entry = found.pop()
        assert entry is not None
        record, _ = entry
        if record.serial not in self._confirmed:
            self.fail(f"{_name(writes[0])} was answered with OK, and {record.node} did not confirm it")
        self.promise(*entry, host)
        return entry

    def promise(self, record: Record, position: int, host: str) -> None:
        """Callers know from a router that it is committed: from now on it must not be lost."""
        self._told.append((record, position))
        self._told_by[host] = len(self._told)

    def refused_write(self, writes: tuple[bytes, ...], error: RouterError) -> None:
        """A caller got an error."""
        self.counts[f"write {error.executed.value} {error.reason.value}"] += 1
        if error.executed in (Executed.NO, Executed.ROLLED_BACK):
            for write in writes:
                if write in self._where:
                    self.fail(f"{_name(write)} was answered with executed={error.executed.value}, "
                              f"and is in the log of {self._where[write][0].node}")
                self._denied.add(write)

    def read_answered(self, seen: int, known: int, *, strong: bool) -> None:
        """A read came back that was begun when callers of its router knew of `known` commits."""
        self.counts["strong read" if strong else "replica read"] += 1
        if strong and seen < known:
            self.fail(f"a read of the primary saw {seen} of the {known} commits that callers knew of when it began")

    def ended(self, what: str, deadline: float) -> None:
        """A request has ended, somehow."""
        late = self._loop.time() - deadline
        if late > SLACK_S:
            self.fail(f"{what} ended {late:.3f} s after its deadline")

    # --- the end ------------------------------------------------------------------------------------------------

    def final(self, primary: Node | None) -> None:
        """All is healed: everything that callers were told to be committed is there, once, for good."""
        if primary is None:
            self.fail("there is no primary in the end")
            return
        for record, position in self._told:
            if not primary.has(record, position):
                self.fail(f"{_name(record.writes[0])}, which its caller was told to be committed, is lost")
                return
        writes = Counter(write for record in primary.wal for write in record.writes)
        twice = [write for write, count in writes.items() if count > 1]
        if twice:
            self.fail(f"{_name(twice[0])} is there {writes[twice[0]]} times")
        self.keys.final(primary)


def _name(write: bytes) -> str:
    """The identifier in a write's text."""
    return write.decode().partition("'")[2].rstrip("')") or write.decode()
