"""One life of the router's process: supervisor and request path on model edges, from start to shutdown or kill -9."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from router.engine.supervisor import ClusterSupervisor, SnapshotNumbers
from router.model.events import (
    Event,
    FailoverEnded,
    FailoverStep,
    HealthChanged,
    HoldEnded,
    Outcome,
    PhaseChanged,
    RequestFinished,
)
from router.model.identity import Generation, Term
from router.model.journal import MoveStage
from router.model.policy import RetryPolicy
from router.model.topology import Cluster
from tests.simulation.edges import ModelEdges
from tests.simulation.pools import ModelPoolFactory
from tests.support.builders import FakeInspector
from tests.support.fake_journal import FakeJournal
from tests.support.request_path import RequestPath
from tests.support.virtual_time import SeededChance, VirtualClock

if TYPE_CHECKING:
    from tests.simulation.judge import Judge
    from tests.simulation.servers import Servers

HOLD_SLACK_S = 0.001
_LIFE: contextvars.ContextVar[RouterLife | None] = contextvars.ContextVar("life", default=None)


class RouterLife:
    """A process of the router."""

    def __init__(self, number: int, servers: Servers, cluster: Cluster, judge: Judge, seed: int,
                 journal: FakeJournal, host: str) -> None:
        self.number = number
        self.host = host
        """Where it is in the network."""
        self.servers = servers
        self.cluster = cluster
        self.judge = judge
        self.mark = f"{host}/{number}"
        self.dead = False
        self.open_edges = self.probes = 0
        self.term, self.generation = Term(0), Generation(0)
        """Of the newest state published."""
        self.switching = self.fencing = False
        self.died: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.arrived = 0
        self.ends: dict[Outcome, int] = dict.fromkeys(Outcome, 0)
        self._journal = journal
        self._tasks: dict[asyncio.Task[Any], None] = {}
        self._context = contextvars.copy_context()
        self._context.run(_LIFE.set, self)
        self._context.run(self._build, seed)

    def _build(self, seed: int) -> None:
        clock, chance = VirtualClock(), SeededChance(seed * 1000 + self.number)
        self.supervisor = ClusterSupervisor(
            self.cluster, ModelEdges(self), clock, chance, self, SnapshotNumbers(), journal=self._journal
        )
        self.factory = ModelPoolFactory(self)
        self.path = RequestPath(self.supervisor, self.factory, RetryPolicy(), clock, chance, self, FakeInspector())
        self.supervisor.subscribe(lambda state: None if self.dead else self.judge.published(self, state))
        self._sweeping = self.spawn(self.path.pools.sweep())
        self._running = self.spawn(self.supervisor.run())

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run something inside this process; it ends with it."""
        return asyncio.get_running_loop().create_task(work, context=self._context.copy())

    def born(self, task: asyncio.Task[Any]) -> None:
        """A task of this process exists."""
        self._tasks[task] = None
        task.add_done_callback(lambda one: self._tasks.pop(one, None))

    # --- ports.EventSink ----------------------------------------------------------------------------------------

    def emit(self, event: Event) -> None:
        if self.dead:
            return
        match event:
            case RequestFinished():
                self.ends[event.outcome] += 1
            case HoldEnded():
                if event.waited_s > self.path.room.window_s + HOLD_SLACK_S:
                    self.judge.fail(f"a request was held for {event.waited_s:.3f} s")
            case PhaseChanged():
                self.judge.note(f"phase {event.before.name} -> {event.after.name} ({event.reason.value}) "
                                f"primary={event.primary} term={event.term} {event.detail}")
            case HealthChanged():
                self.judge.note(f"{event.endpoint} {event.before.name} -> {event.after.name} ({event.reason.value})")
            case FailoverStep():
                self.judge.note(f"{event.step} {event.endpoint} {'ok' if event.ok else 'FAILED'} {event.detail}")
            case FailoverEnded():
                self.judge.counts["failover"] += 1
                self.judge.note(f"failover to {event.primary} took {event.took_s:.3f} s")
            case _:
                pass

    @property
    def finishes_a_move(self) -> bool:
        """Whether a standby may have been promoted before: then that move is brought to its end, needed or not."""
        moves = [page.move for page in self._journal.pages[-3:]]
        return any(move is not None and move.stage is MoveStage.PROMOTE for move in moves)

    # --- the end ------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """What holds in every moment."""
        for pool in self.factory.pools:
            try:
                pool.check_conserved()
            except AssertionError as error:
                self.judge.fail(f"connections to {pool.endpoint}: {error}")
            if pool.statistics().size > pool.max_size:
                self.judge.fail(f"{pool.statistics().size} connections to {pool.endpoint}, at most {pool.max_size}")

    def check_at_rest(self) -> None:
        """When no caller waits: nothing is under way, nothing leaked."""
        path = self.path
        if len(path.register) or path.room.held:
            self.judge.fail(f"{len(path.register)} requests are under way and {path.room.held} held, without callers")
        if self.arrived != sum(self.ends.values()):
            self.judge.fail(f"{self.arrived} requests arrived, and ended as {self.ends}")
        room = path.room
        if room.entered != sum(room.ended.values()):
            self.judge.fail(f"{room.entered} requests were held, {sum(room.ended.values())} have left")

    async def shut_down(self) -> None:
        """As SIGTERM does."""
        self.path.room.close()
        await self.supervisor.stop()
        self._sweeping.cancel()
        await self.path.pools.close()
        self.dead = True
        if self.open_edges:
            self.judge.fail(f"{self.open_edges} edges were left open")

    def kill(self) -> None:
        """kill -9: nothing is cleaned up, the kernel closes the sockets."""
        self.dead = True
        for pool in self.factory.pools:
            pool.killed()
        for task in list(self._tasks):
            task.cancel()
        if not self.died.done():
            self.died.set_result(None)


def note_births(loop: asyncio.AbstractEventLoop) -> None:
    """From now on every task that a life of the router makes is known to it."""

    def make(loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(work, loop=loop, **options)
        context = options.get("context")
        life = context.get(_LIFE) if context is not None else _LIFE.get()
        if life is not None:
            life.born(task)
        return task

    loop.set_task_factory(make)
