"""One cluster's page of the journal: written before what it says is done, read when the router starts.

The supervisor shows its machine after each step (follow); whatever the page lacks is written beside, one write at a
time, and told as Recorded. While a primary is moved, the mover writes its stages itself and waits for each (note); of a
switchover, the first one before it begins (ahead), as writes wait from then on.

A disk that fails or hangs must not take the database with it: what others have done is accepted all the same, after
WRITE_S, and the failure is told. Nothing of our own is done unless its stage is on disk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from router.decisions.machine import ClusterMachine, Operation, Recorded
from router.decisions.resuming import may_note, page, page_of_move, restore
from router.model.events import JournalWriteFailed
from router.model.journal import ClusterRecord, JournalFailed, MoveNote
from router.model.topology import Cluster
from router.ports import Clock, EventSink, Journal

WRITE_S = 1.0
"""Longest wait for the disk (seconds)."""
RETRY_S = 1.0


class Journaling:
    """What a supervisor has written down."""

    def __init__(
        self,
        journal: Journal | None,
        cluster: Cluster,
        clock: Clock,
        events: EventSink,
        take: Callable[[Recorded], None],
        spawn: Callable[[Coroutine[Any, Any, None]], object],
    ) -> None:
        """journal None: nothing is kept, and nothing waits for it."""
        self._journal = journal
        self._cluster = cluster
        self._clock = clock
        self._events = events
        self._take = take
        self._spawn = spawn
        self._page = journal.read(cluster.name) if journal is not None else None
        self._writing = False
        self._retry_at = float("-inf")
        self._puts = 0
        self.ahead = False
        """A stage is on disk, or on its way there, of a move that has not begun: follow() leaves the page alone, unless
        there is another primary, which ends that."""

    def machine(self) -> ClusterMachine:
        """The machine to start with: as the last router left it."""
        name, mode, now = self._cluster.name, self._cluster.mode, self._clock.now()
        if self._journal is None:
            return ClusterMachine(name, mode, since=now)
        return restore(self._page, name, mode, now)

    def follow(self, machine: ClusterMachine) -> None:
        """Write what the page lacks. Cheap when it lacks nothing."""
        if self._journal is None or self._writing or machine.operation is not Operation.NONE:
            return
        if self.ahead and machine.wanted is None:
            return
        wanted = page(machine)
        if wanted is None or wanted == self._page or self._clock.now() < self._retry_at:
            return
        self._writing = True
        self._spawn(self._write(wanted))

    async def note(self, machine: ClusterMachine, note: MoveNote) -> None:
        """Write a stage of a move. JournalFailed, also when another move has begun, or found its end, meanwhile."""
        if self._journal is not None:
            if not may_note(machine, note):
                raise JournalFailed(f"cluster {machine.name} is {machine.phase.value}: {machine.detail}")
            await self._put(self._journal, page_of_move(machine, note))

    async def _write(self, wanted: ClusterRecord) -> None:
        assert self._journal is not None
        try:
            await self._put(self._journal, wanted)
        except JournalFailed as error:
            self._retry_at = self._clock.now() + RETRY_S
            self._events.emit(JournalWriteFailed(self._cluster.name, str(error)))
        finally:
            self._writing = False
        self._take(Recorded(wanted.term))

    async def _put(self, journal: Journal, wanted: ClusterRecord) -> None:
        self._page = None  # not known, should this be given up half-way
        self._puts = mine = self._puts + 1
        try:
            async with asyncio.timeout(WRITE_S):
                await journal.write(wanted)
        except TimeoutError:
            raise JournalFailed(f"{journal!r}: the disk has not taken a page within {WRITE_S:g} s") from None
        if mine == self._puts:
            self._page = wanted
