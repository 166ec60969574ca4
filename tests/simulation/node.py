"""One PostgreSQL server of the model: its log, its role, who must confirm its commits, and the ways it fails.

Modelled as measured: a commit is in the local log, and on its way to standbys, before it is acknowledged; a cancel
during the wait answers as if all were well, with a notice; a killed backend restarts the whole server; a promotion
waits out a start-up process that sleeps between two attempts to stream. tests/simulation/test_fidelity.py holds the
model to real servers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, unique
from typing import TYPE_CHECKING, Any

from tests.simulation.receiver import Receiver
from tests.simulation.wal import RECORD_BYTES, Record, common_length, quorum
from tests.support.fake_keys import Row

if TYPE_CHECKING:
    from tests.simulation.backend import ModelServer
    from tests.simulation.servers import Servers

RESTART_S = 0.28
"""A crash restart, from the crash to the first answer."""
PROMOTE_S = 0.03


@unique
class Process(Enum):
    RUNNING = "running"
    STARTING = "starting"
    DEAD = "dead"


@dataclass(eq=False, slots=True)
class Waiting:
    """A commit that waits for standbys. told(local): local when the wait was ended before they confirmed."""

    record: Record
    position: int
    told: Callable[[bool], None]


class Node:
    """One server."""

    server: ModelServer

    def __init__(self, servers: Servers, name: str) -> None:
        self.servers = servers
        self.name = name
        self.loop = asyncio.get_running_loop()
        self.process = Process.RUNNING
        self.frozen = False
        self.postmaster_frozen = False
        self.host_down = False
        """Power off: nobody is told, nothing answers."""
        self.in_recovery = True
        self.timeline = 1
        self.control_timeline = 1
        """Of the last checkpoint: it lags behind a promotion."""
        self.wal: list[Record] = []
        self.flushed = 0
        self.replayed = 0
        self.sync_names = ""
        self.upstream: str | None = None
        self.fence_mark = ""
        self.read_only = False
        self.held_at = 0
        """How long the log was when writes were held."""
        self.system_id = 77
        self.disk_s = 0.0003
        self.replay_lag_s = 0.0
        self.retry_s = 0.1
        self.acknowledged: dict[str, int] = {}
        """As primary: how far each streaming standby says it has flushed."""
        self.receivers: dict[str, Receiver] = {}
        """As upstream: who streams from here."""
        self.connections: dict[str, int] = {}
        """The same by the number of the receiver's connection."""
        self.receiver = Receiver(self)
        self.waiting: list[Waiting] = []
        self.epoch = 0
        self.trouble_at = -1e9
        """When it was last dead, frozen or starting."""
        self.lost_at = -1e9
        """The same without crashes of one backend, from which it restarts by itself."""
        self._by_itself = False
        """It is starting, or runs, after such a crash."""
        self._parked: list[tuple[Callable[..., None], tuple[Any, ...]]] = []

    def __repr__(self) -> str:
        role = "standby" if self.in_recovery else "primary"
        state = "frozen" if self.frozen else self.process.value
        return f"{self.name}({state} {role} tl={self.timeline} wal={len(self.wal)}/{self.flushed})"

    # --- time on this server -----------------------------------------------------------------------------------

    def later(self, seconds: float, act: Callable[..., None], *arguments: Any) -> None:
        """Do something in a while, unless the server has crashed until then; when frozen, after the thaw."""
        self.loop.call_later(seconds, self._run, self.epoch, act, arguments)

    def soon(self, act: Callable[..., None], *arguments: Any) -> None:
        """Something arrived for this server's processes: done now, after the thaw, or never."""
        self._run(self.epoch, act, arguments)

    def _run(self, epoch: int, act: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        if epoch != self.epoch or self.process is Process.DEAD:
            return
        if self.frozen:
            self._parked.append((act, arguments))
        else:
            act(*arguments)

    @property
    def answers(self) -> bool:
        return self.process is Process.RUNNING and not self.frozen and not self.host_down

    # --- commits -----------------------------------------------------------------------------------------------

    def has(self, record: Record, position: int) -> bool:
        """Whether this record is in the local log."""
        return len(self.wal) >= position and self.wal[position - 1] is record

    def commit(
        self, writes: tuple[bytes, ...], told: Callable[[bool], None], keys: tuple[tuple[bytes, Row], ...] = ()
    ) -> Waiting:
        """Insert a commit record; told once it is confirmed, or at once on disk where nobody must confirm."""
        record = self.servers.new_record(self, writes, keys)
        self.wal.append(record)
        wait = Waiting(record, len(self.wal), told)
        self.servers.judge.inserted(self, record, wait.position)
        self.waiting.append(wait)
        self.later(self.disk_s, self._flush, wait.position)
        return wait

    def _flush(self, position: int) -> None:
        self.flushed = self.replayed = max(self.flushed, min(position, len(self.wal)))
        for receiver in list(self.receivers.values()):
            receiver.pump()
        self.release()

    def release(self) -> None:
        """End the waits that are over."""
        k, names = quorum(self.sync_names)
        confirmed = self.flushed
        if k:
            positions = sorted((self.acknowledged.get(name, 0) for name in names), reverse=True)
            confirmed = min(confirmed, positions[k - 1] if len(positions) >= k else 0)
        done = [one for one in self.waiting if one.position <= confirmed]
        if done:
            self.waiting = [one for one in self.waiting if one.position > confirmed]
            for one in done:
                self.servers.judge.confirmed(self, one.record, one.position)
                one.told(False)

    def end_wait(self, wait: Waiting) -> bool:
        """A cancel request or the end of the session hits a commit that waits; the commit stands, locally."""
        if wait in self.waiting and wait.position <= self.flushed:
            self.waiting.remove(wait)
            return True
        return False

    def acknowledge(self, standby: str, position: int) -> None:
        """A standby says that it has flushed so far."""
        if position > self.acknowledged.get(standby, 0):
            self.acknowledged[standby] = position
            self.release()

    def standby_left(self, standby: str, connection: int) -> None:
        """A receiver has closed its connection."""
        if self.connections.get(standby) == connection:
            del self.connections[standby], self.receivers[standby]
            self.acknowledged.pop(standby, None)

    def visible(self) -> int:
        """Up to which record readers see everything (a commit that waits is seen only once its wait ends)."""
        if self.in_recovery:
            return self.replayed
        return min([self.flushed, *(one.position - 1 for one in self.waiting)])

    # --- standby -----------------------------------------------------------------------------------------------

    def receive(self, records: list[Record], timeline: int) -> None:
        """Records arrive from upstream."""
        self.wal.extend(records)
        self.timeline = timeline
        self.later(self.disk_s, self._received, len(self.wal))

    def _received(self, position: int) -> None:
        self.keep(position)
        self.receiver.confirm(self.flushed)

    def keep(self, position: int) -> None:
        """So much is on disk, and will be replayed."""
        self.flushed = max(self.flushed, min(position, len(self.wal)))
        if self.replay_lag_s:
            self.later(self.replay_lag_s, self._replay, self.flushed)
        else:
            self._replay(self.flushed)
        for receiver in list(self.receivers.values()):
            receiver.pump()

    def _replay(self, position: int) -> None:
        self.replayed = max(self.replayed, min(position, len(self.wal)))

    def promote(self, done: Callable[[], None]) -> None:
        """pg_promote: after what the start-up process still sleeps, it is a primary on the next timeline."""
        sleeps = self.retry_s > 1.0 and not self.receiver.alive and self.servers.chance.draw() < 1 / 3
        self.later(PROMOTE_S + (self.retry_s if sleeps else 0.0), self._promoted, done)

    def _promoted(self, done: Callable[[], None]) -> None:
        if self.in_recovery:
            self.receiver.end()
            self.flushed = self.replayed = len(self.wal)
            self.in_recovery = False
            self.timeline = self.servers.new_timeline(self.timeline, len(self.wal))
            self.wal.append(self.servers.new_record(self, ()))
            self.flushed = self.replayed = len(self.wal)
            self.upstream, self.fence_mark = None, ""
            self.acknowledged = {}
            self.later(5.0, self._checkpoint)
            self.servers.judge.promoted(self)
            for receiver in list(self.receivers.values()):
                receiver.pump()
        done()

    def _checkpoint(self) -> None:
        self.control_timeline = self.timeline

    def rewind(self, source: Node) -> None:
        """pg_rewind by an operator, and start as a standby of source."""
        self.stop()
        shared = common_length(self.wal, source.wal)
        self.wal[shared:] = source.wal[shared : source.flushed]
        self.flushed = self.replayed = len(self.wal)
        self.in_recovery, self.timeline, self.control_timeline = True, source.timeline, source.timeline
        self.upstream, self.fence_mark, self.read_only = source.name, "", False
        self.start()

    # --- trouble -----------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """kill -9 of everything: sockets close, what was not on disk is gone."""
        self.epoch += 1
        self.trouble_at = self.lost_at = self.loop.time()
        self.process = Process.DEAD
        self.frozen = self.postmaster_frozen = False
        self._parked.clear()
        self.waiting.clear()
        del self.wal[self.flushed :]
        self.acknowledged = {}
        self.receiver.stop()
        for receiver in list(self.receivers.values()):
            receiver.upstream_closed()
        self.receivers, self.connections = {}, {}
        self.server.kill_all()
        self.server.frozen = False

    def start(self) -> None:
        """Start what stands in the data directory."""
        if self.process is Process.DEAD:
            self.process = Process.STARTING
            self.host_down = self._by_itself = False
            self.trouble_at = self.lost_at = self.loop.time()
            self.epoch += 1
            self.loop.call_later(RESTART_S * (0.8 + 0.4 * self.servers.chance.draw()), self._started, self.epoch)

    def _started(self, epoch: int) -> None:
        if epoch == self.epoch and self.process is Process.STARTING:
            self.trouble_at = self.loop.time()
            if not self._by_itself:
                self.lost_at = self.trouble_at
            self.process = Process.RUNNING
            self.replayed = self.flushed
            self.control_timeline = self.timeline
            self.servers.judge.note(f"{self!r} has started")
            self.receiver.look()

    def crash_backend(self) -> None:
        """kill -9 of one backend: the postmaster restarts all of them, as soon as it runs itself."""
        if self.frozen:
            self.soon(self.crash_backend)
        elif self.process is Process.RUNNING:
            lost_at = self.lost_at
            self.stop()
            self.start()
            self.lost_at, self._by_itself = lost_at, True

    def freeze(self) -> None:
        """SIGSTOP of all processes."""
        if self.process is Process.RUNNING and not self.frozen:
            self.frozen = True
            self.server.frozen = True

    def thaw(self) -> None:
        """SIGCONT."""
        if not self.frozen:
            return
        self.trouble_at = self.lost_at = self.loop.time()
        self.frozen = False
        self.server.thaw()
        parked, self._parked = self._parked, []
        epoch = self.epoch
        for act, arguments in parked:
            self._run(epoch, act, arguments)

    @property
    def received_lsn(self) -> int:
        return self.flushed * RECORD_BYTES
