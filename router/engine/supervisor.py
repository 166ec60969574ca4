"""One cluster's supervisor: the sole writer of its health and failover state.

Everybody else hands it facts: probe loops their results, the data path its faults, operators their orders. Facts are
taken one at a time, in order; each is judged by the pure machines of decisions/, the effects are carried out, and a
new frozen ClusterState is published, all before `report_*` returns, so that the next attempt already sees it.

Loops: one probe loop per endpoint (probing.py), and a tick of 50 ms while the cluster is not STEADY. All end with
stop().
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from typing import Any, TypeVar, assert_never

from router.decisions import failover
from router.decisions.health import SESSION_ENDED
from router.decisions.machine import (
    AWAITING,
    AllowWrites,
    Effect,
    Emit,
    Event,
    FactsSeen,
    HoldDrained,
    Operation,
    ProbeNow,
    RepointStandbys,
    RoleDoubted,
    StartPromotion,
    SwitchoverOrdered,
    Tick,
)
from router.decisions.promotion import PromotionPlan
from router.decisions.snapshot import NO_ORDERS, Orders, present
from router.engine.journaling import Journaling
from router.engine.moving import Mover
from router.engine.observing import Observations
from router.engine.probing import Pace
from router.engine.switchover import Switchover, refused
from router.engine.watching import Watching
from router.model.errors import Code, RouterError
from router.model.events import FailoverStep, Health, Phase
from router.model.identity import EndpointName, TopologyNumber
from router.model.journal import MoveNote
from router.model.observation import Fault, FaultKind, ProbeResult
from router.model.reasons import RefuseReason
from router.model.state import ClusterState
from router.model.topology import Cluster, Endpoint
from router.ports import Chance, Clock, EdgeFactory, EventSink, Journal

TICK_S = 0.05
STOP_GRACE_S = 3.0
"""A promotion or switchover under way gets this long to end when the router stops (seconds)."""
WORTH_A_PROBE = frozenset({FaultKind.SILENT, FaultKind.CONNECT_FAILED, FaultKind.PROTOCOL})
READ_ONLY_TRANSACTION = "25006"

Subscriber = Callable[[ClusterState], None]
_T = TypeVar("_T")


class SnapshotNumbers:
    """Numbers the published snapshots of a router, across all its clusters."""

    def __init__(self) -> None:
        self._last = 0

    def draw(self) -> TopologyNumber:
        """The next number; each is given once."""
        self._last += 1
        return TopologyNumber(self._last)


class ClusterSupervisor:
    """Watches one cluster and, in promote mode, moves its primary."""

    def __init__(
        self,
        cluster: Cluster,
        edges: EdgeFactory,
        clock: Clock,
        chance: Chance,
        events: EventSink,
        numbers: SnapshotNumbers,
        everywhere: Callable[[], Awaitable[None]] | None = None,
        journal: Journal | None = None,
    ) -> None:
        """everywhere: waits, for a bounded time, until readers in other processes have taken the newest snapshot.

        journal: JournalFailed when the cluster's page cannot be read; None: nothing outlives this supervisor.
        """
        self._cluster = cluster
        self._edges = edges
        self._clock = clock
        self._events = events
        self._numbers = numbers
        self._everywhere = everywhere
        self._journaling = Journaling(journal, cluster, clock, events, self._take, self._spawn)
        self._machine = self._journaling.machine()
        self._observed = Observations(cluster)
        self._orders: dict[EndpointName, Orders] = {}
        self._successor: EndpointName | None = None
        self._subscribers: list[Subscriber] = []
        self._facts: deque[ProbeResult | Fault | Event] = deque()
        self._taking = False
        self._unsteady = asyncio.Event()
        self._stopping = asyncio.Event()
        self._ended = asyncio.Event()
        self._ended.set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._surgeon = edges.surgeon(cluster)
        self._watching = Watching(edges, clock, chance, self._take, self._pace)
        self._state = self._present()

    def __repr__(self) -> str:
        machine = self._machine
        return f"<ClusterSupervisor {machine.name} {machine.phase.name} primary={machine.primary} term={machine.term}>"

    # --- reading ------------------------------------------------------------------------------------------------

    @property
    def cluster(self) -> Cluster:
        """The configuration in force."""
        return self._cluster

    @property
    def state(self) -> ClusterState:
        """The newest snapshot; all that the request path reads."""
        return self._state

    def subscribe(self, callback: Subscriber) -> Callable[[], None]:
        """Be called, synchronously, with each new snapshot. Returns what ends the subscription."""
        self._subscribers.append(callback)
        return lambda: self._subscribers.remove(callback)

    # --- facts --------------------------------------------------------------------------------------------------

    def report_fault(self, fault: Fault) -> None:
        """Tell what the data path saw. Cheap when it brings nothing new, so every failed attempt may report."""
        if fault.endpoint not in self._observed.seen:
            return
        if 0 < fault.generation < self._machine.generation and fault.endpoint == self._machine.primary:
            return  # of its life before it was primary; other servers' pools outlive a change of the primary
        if fault.sqlstate == SESSION_ENDED:
            self._watching.probe_now(fault.endpoint, fresh=True)
        elif fault.kind in WORTH_A_PROBE:
            self._watching.probe_now(fault.endpoint)
        elif fault.sqlstate == READ_ONLY_TRANSACTION:
            if fault.endpoint == self._machine.routed_primary:
                self._take(RoleDoubted())
        elif self._observed.is_news(fault):
            self._take(fault)

    def report_drained(self) -> None:
        """Tell that no request is held any more."""
        self._take(HoldDrained())

    # --- orders -------------------------------------------------------------------------------------------------

    def drain(self, endpoint: EndpointName) -> None:
        """Let nothing new go to an endpoint. RouterError UNKNOWN_NAME."""
        self._order(endpoint, replace(self._orders.get(endpoint, NO_ORDERS), draining=True))

    def resume(self, endpoint: EndpointName) -> None:
        """Undo drain. RouterError UNKNOWN_NAME."""
        self._order(endpoint, replace(self._orders.get(endpoint, NO_ORDERS), draining=False))

    def set_weight(self, endpoint: EndpointName, weight: int) -> None:
        """Change an endpoint's weight until the configuration changes it. RouterError UNKNOWN_NAME."""
        self._order(endpoint, replace(self._orders.get(endpoint, NO_ORDERS), weight=weight))

    async def switchover(
        self,
        to: EndpointName | None,
        timeout_s: float,
        on_step: Callable[[FailoverStep], None] | None = None,
    ) -> EndpointName:
        """Move the primary as planned, to the most advanced synchronous standby unless one is named.

        After timeout_s it is given up and, where that is still possible, undone; a caller that goes away does not stop
        it half-way. Returns the new primary. RouterError SWITCHOVER_REFUSED with the reason in words, UNKNOWN_NAME.
        """
        if to is not None:
            self._known(to)
        if self._successor is not None:
            raise refused(f"cluster {self._cluster.name} is about to move its primary to {self._successor} already")

        def tell(step: FailoverStep) -> None:
            self._events.emit(step)
            if on_step is not None:
                on_step(step)

        mover = self._mover(tell)
        move = Switchover(mover, self._surgeon, self._clock, self._take)
        began = self._clock.now()
        plan = move.plan(self._cluster, self._machine, self._observed.seen, to)
        try:
            self._expect(plan.to)  # in time for lanes to be there when it serves
            await move.prepare(plan, timeout_s)
            timeout_s -= self._clock.now() - began
            plan = move.plan(self._cluster, self._machine, self._observed.seen, plan.to)  # as things are by now
            self._take(SwitchoverOrdered(plan.to))
        finally:
            self._expect(None)
        return await asyncio.shield(self._spawn(self._when_fenced(move.run(plan, timeout_s))))

    def know_manager(self, who: str) -> None:
        """Who else moves the primary of this cluster, in words; empty: nobody. While somebody does, we do not."""
        self._machine = replace(self._machine, manager=who)

    def apply(self, cluster: Cluster) -> None:
        """Take a changed configuration of the same cluster: endpoints come, go or move, policies change."""
        before = {endpoint.name: endpoint.weight for endpoint in self._cluster.endpoints}
        for endpoint in cluster.endpoints:
            if before.get(endpoint.name) != endpoint.weight:
                self._orders.pop(endpoint.name, None)
        old, self._cluster = self._cluster, cluster
        self._observed.apply(cluster)
        self._machine = replace(self._machine, mode=cluster.mode)
        same_login = (old.control, old.control_database) == (cluster.control, cluster.control_database)
        if not same_login or old.endpoints != cluster.endpoints:
            former, self._surgeon = self._surgeon, self._edges.surgeon(cluster)
            self._spawn(former.close())
        self._watching.apply(cluster)
        self._take(FactsSeen(self._observed.judge(self._machine, self._clock.now())))

    # --- life ---------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Watch until stop() or cancellation."""
        self._ended.clear()
        self._watching.apply(self._cluster)
        ticking = asyncio.create_task(self._tick())
        try:
            await self._stopping.wait()
        finally:
            if self._tasks and self._machine.operation is not Operation.NONE:
                # Half a promotion is worse than a late end.
                await asyncio.wait(self._tasks, timeout=STOP_GRACE_S)
            tasks = [ticking, *self._tasks]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._watching.close()
            await self._surgeon.close()
            self._ended.set()

    async def stop(self) -> None:
        """End run() and wait until its connections are closed."""
        self._stopping.set()
        await self._ended.wait()

    async def _tick(self) -> None:
        while True:
            await self._unsteady.wait()
            await self._clock.sleep(TICK_S)
            self._take(Tick())

    # --- inside: one fact at a time -----------------------------------------------------------------------------

    def _take(self, fact: ProbeResult | Fault | Event) -> None:
        self._facts.append(fact)
        if self._taking:
            return  # told by a subscriber or an effect: its turn comes when the fact in hand is done
        self._taking = True
        try:
            while self._facts:
                self._digest(self._facts.popleft())
        finally:
            self._taking = False

    def _digest(self, fact: ProbeResult | Fault | Event) -> None:
        now = self._clock.now()
        match fact:
            case ProbeResult():
                if not self._observed.take_probe(fact, now):
                    return
                event: Event = FactsSeen(self._observed.judge(self._machine, now))
            case Fault():
                self._observed.take_fault(fact, now)
                self._watching.probe_now(fact.endpoint)
                event = FactsSeen(self._observed.judge(self._machine, now))
            case _:
                event = fact
        former = self._machine.generation
        self._machine, effects = failover.step(self._machine, event, now, self._cluster.policy)
        if self._machine.facts is None and self._machine.generation != former:
            # What is known was judged as facts about the primary before; look at it again for the new one.
            self._facts.appendleft(FactsSeen(self._observed.judge(self._machine, now)))
        for change in self._observed.changes():
            self._events.emit(change)
        self._journaling.follow(self._machine)
        self._publish()
        for effect in effects:
            self._perform(effect)

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Emit(event):
                self._events.emit(event)
            case ProbeNow(endpoints):
                for name in endpoints or tuple(self._observed.seen):
                    self._watching.probe_now(name)
            case StartPromotion():
                self._spawn(self._promote(effect.plan))
            case RepointStandbys(to, standbys, others_too):
                mover = self._mover(self._events.emit)
                for name in standbys:
                    self._spawn(mover.repoint(name, to, others_too=others_too))
            case AllowWrites(primary):
                self._spawn(self._mover(self._events.emit).allow_writes(primary))
            case _:
                assert_never(effect)

    async def _promote(self, plan: PromotionPlan) -> None:
        mover = self._mover(self._events.emit)
        self._take(await self._when_fenced(mover.promote(plan)))
        await mover.finish()

    async def _when_fenced(self, move: Coroutine[Any, Any, _T]) -> _T:
        """Move the primary once nobody sends to the old one any more; here that is so when _publish has returned."""
        try:
            if self._everywhere is not None:
                await self._everywhere()
        except BaseException:
            move.close()
            raise
        return await move

    # --- inside: small things -----------------------------------------------------------------------------------

    def _mover(self, on_step: Callable[[FailoverStep], None]) -> Mover:
        endpoints = {endpoint.name: endpoint for endpoint in self._cluster.endpoints}
        timeout_s = self._cluster.policy.failover.step_timeout_s
        name, surgeon, clock = self._cluster.name, self._surgeon, self._clock
        return Mover(name, endpoints, surgeon, clock, timeout_s, on_step, self._take, self._note)

    async def _note(self, note: MoveNote) -> None:
        await self._journaling.note(self._machine, note)

    def _pace(self, name: EndpointName) -> Pace:
        seen = self._observed.seen.get(name)
        doubted = seen is not None and (seen.health.misses > 0 or seen.health.state is Health.SUSPECT)
        down = seen is not None and seen.health.state is Health.DOWN
        return Pace.DOUBT if self._machine.phase in AWAITING or (doubted and not down) else Pace.CALM

    def _known(self, name: EndpointName) -> Endpoint:
        for endpoint in self._cluster.endpoints:
            if endpoint.name == name:
                return endpoint
        known = ", ".join(self._observed.seen)
        message = f"cluster {self._cluster.name} has no endpoint {name}; it has {known}"
        raise RouterError(Code.NOT_FOUND, RefuseReason.UNKNOWN_NAME, message)

    def _expect(self, successor: EndpointName | None) -> None:
        self._successor, self._journaling.ahead = successor, successor is not None
        self._journaling.follow(self._machine)
        self._publish()

    def _order(self, name: EndpointName, orders: Orders) -> None:
        self._known(name)
        self._orders[name] = orders
        self._publish()

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, RouterError):
            context = {"message": f"a task of cluster {self._cluster.name} failed", "exception": error, "task": task}
            task.get_loop().call_exception_handler(context)

    def _present(self) -> ClusterState:
        number = self._numbers.draw()
        endpoints, seen = self._cluster.endpoints, self._observed.seen
        return present(self._machine, endpoints, seen, self._orders, number, self._successor)

    def _publish(self) -> None:
        state = self._present()
        self._state = state
        if state.phase is Phase.STEADY:
            self._unsteady.clear()
        else:
            self._unsteady.set()
        for callback in tuple(self._subscribers):
            try:
                callback(state)
            except Exception as error:  # a reader's fault must not stop the only writer
                context = {"message": f"a subscriber of cluster {state.name} failed", "exception": error}
                asyncio.get_running_loop().call_exception_handler(context)
