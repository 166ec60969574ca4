"""What one tenant listens to in this process: one connection to the primary for all its Listen streams.

The task lives while there is a stream: it connects to the primary of the cluster's published state, listens to the
channels that somebody wants, and begins anew when the connection is lost or the primary is another one. A primary that
drains keeps the connection that it has (also for new streams, which cost it none), and gets no new one. Invariant: a
stream is `listening` only while LISTEN is active for all its channels on a connection of the state's generation; what
it may have missed otherwise is told by a gap, in front of the next ready.
"""

from __future__ import annotations

import asyncio

from router.decisions import retry
from router.decisions.login_breaker import refuses_login
from router.decisions.retry import Replayability
from router.engine.clusters import Clusters, ClusterSource
from router.engine.listener import Home, Listener
from router.model.errors import Code, RouterError
from router.model.events import Health, ListenGapped, NotificationsHeard
from router.model.identity import EndpointName
from router.model.listening import Notification
from router.model.observation import AttemptFailed, Fault, FaultKind, Stage
from router.model.reasons import CloseReason, GapReason, RefuseReason
from router.model.request import Access
from router.model.state import ClusterState
from router.model.topology import Tenant
from router.ports import Chance, Clock, EventSink
from router.ports.listening import ListeningConnection, ListeningFactory

CHECK_S = 2.0
"""The connection is asked for a sign of life this often: notifications since the last one may be missing when it is
lost."""
ANSWER_S = 3.0
"""For each question on it."""
LINGER_S = 2.0
"""After the last stream has gone, for one that comes back."""
FIRST_PAUSE_S = 0.05
"""After a connect that failed, or a connection that did not last; doubled each time. Another primary ends it."""
LONGEST_PAUSE_S = 5.0
_GONE = (Health.DOWN, Health.QUARANTINED)


class ChannelHub:
    """ports.listening.Hearer. add() streams; run() is the task."""

    def __init__(
        self,
        tenant: Tenant,
        clusters: Clusters,
        factory: ListeningFactory,
        clock: Clock,
        chance: Chance,
        events: EventSink,
    ) -> None:
        self.tenant = tenant
        self._clusters = clusters
        self._factory = factory
        self._clock = clock
        self._chance = chance
        self._events = events
        self._listeners: dict[Listener, None] = {}
        self._wanted: dict[str, dict[Listener, None]] = {}
        """Streams by channel."""
        self._active: set[str] = set()
        self._connection: ListeningConnection | None = None
        self._home: Home | None = None
        """Of the connection, or of the one that was tried last."""
        self._good = 0.0
        """Until when everything was heard."""
        self._fault: Fault | None = None
        """Why there is no connection, as far as is known."""
        self._draining = False
        """The primary is to get nothing new."""
        self._wake = asyncio.Event()
        self._moved = asyncio.Event()
        self._delivered = self._missed = 0
        self.over = False
        """The task has ended: streams go to a new one."""

    # --- who listens ---------------------------------------------------------------------------------------------

    @property
    def listeners(self) -> list[Listener]:
        """The streams, oldest first."""
        return list(self._listeners)

    @property
    def channels(self) -> set[str]:
        """What they listen to, together."""
        return set(self._wanted)

    @property
    def endpoint(self) -> EndpointName | None:
        """Where its connection is; None when it has none."""
        return self._home[0] if self._connection is not None and self._home is not None else None

    def add(self, listener: Listener) -> None:
        """One more stream; it hears of its ready."""
        self._listeners[listener] = None
        for channel in listener.channels:
            self._wanted.setdefault(channel, {})[listener] = None
        self._wake.set()

    def leave(self, listener: Listener) -> None:
        """It wants nothing any more. May be called again."""
        if listener not in self._listeners:
            return
        del self._listeners[listener]
        for channel in listener.channels:
            self._wanted[channel].pop(listener)
            if not self._wanted[channel]:
                del self._wanted[channel]
        self._wake.set()

    def end(self, listener: Listener, error: RouterError) -> None:
        """A stream that may not go on."""
        self.leave(listener)
        listener.end(error)

    def late(self, listener: Listener) -> None:
        """It has not become ready in the tenant's time for a request."""
        if listener in self._listeners and not listener.was_ready:
            self.end(listener, self._no_ready())

    def _no_ready(self) -> RouterError:
        if self._fault is not None:
            return _error(self._fault)
        why = "the primary is draining" if self._draining else "it has no primary"
        return RouterError(
            Code.UNAVAILABLE,
            RefuseReason.NO_BACKEND,
            f"cluster {self.tenant.cluster} has nothing to listen on: {why}",
            retry_after_s=1.0,
        )

    # --- what happens --------------------------------------------------------------------------------------------

    def notified(self, channel: str, payload: str, process_id: int) -> None:
        """ports.listening.Hearer.notified."""
        notification = Notification(channel, payload, process_id)
        now = self._clock.now()
        for listener in self._wanted.get(channel, ()):
            if not listener.listening:
                continue
            queued = listener.queued
            if listener.notify(notification, now):
                self._delivered += 1
                continue
            self._missed += 1
            if listener.queued > queued:
                self._events.emit(ListenGapped(self.tenant.name, GapReason.SLOW_CONSUMER, 0.0))

    def lost(self, fault: Fault) -> None:
        """ports.listening.Hearer.lost."""
        self._fault = fault
        self.cut(CloseReason.CONNECTION_LOST)

    def cut(self, reason: CloseReason) -> None:
        """Nothing more from this connection, from now on."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        self._active.clear()
        for listener in self._listeners:
            listener.interrupted(self._good)
        connection.close(reason)
        self._wake.set()

    def on_state(self, state: ClusterState) -> None:
        """The cluster's state has changed: what a former primary still says is not heard any more."""
        home = self._home
        if self._connection is not None and home is not None:
            endpoint = state.endpoints.get(home[0])
            if state.generation != home[1] or state.primary not in (None, home[0]) or endpoint is None:
                self.cut(CloseReason.GENERATION)
            elif endpoint.health in _GONE:
                self.cut(CloseReason.CONNECTION_LOST)
        elif state.primary is not None and (state.primary, state.generation) != home:
            self._moved.set()

    def take(self, tenant: Tenant) -> None:
        """The tenant has changed."""
        before, self.tenant = self.tenant, tenant
        if not _same_connections(before, tenant):
            self.renew()

    def renew(self) -> None:
        """Another connection is wanted than the one that there is."""
        self.cut(CloseReason.DRAIN)
        self._moved.set()

    # --- the task ------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until nobody has listened for a while; then nothing is left of it."""
        failures = 0
        try:
            while await self._is_needed():
                began = self._clock.now()
                try:
                    await self._connect()
                    await self._serve()
                    return
                except AttemptFailed as failure:
                    self._failed(failure.fault)
                    lasted = self._clock.now() - began > LONGEST_PAUSE_S
                    failures = 1 if lasted else failures + 1
                    await self._pause(failures)
        finally:
            self.over = True
            self.cut(CloseReason.IDLE)
            self._count()

    async def _is_needed(self) -> bool:
        """Whether somebody listens, or comes within a moment."""
        end = self._clock.now() + LINGER_S
        while not self._listeners:
            self._wake.clear()
            try:
                async with asyncio.timeout_at(end):
                    await self._wake.wait()
            except TimeoutError:
                return bool(self._listeners)
        return True

    async def _pause(self, failures: int) -> None:
        """Some time, or until there is another primary."""
        longest = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(failures - 1, 16))
        try:
            async with asyncio.timeout(longest * (0.5 + self._chance.draw() / 2)):
                await self._moved.wait()
        except TimeoutError:
            return

    def _source(self) -> ClusterSource:
        cluster = self._clusters.get(self.tenant.cluster)
        if cluster is None:
            raise AttemptFailed(Fault(FaultKind.STALE, Stage.ACQUIRE, message="the cluster is not configured any more"))
        return cluster.supervisor

    async def _connect(self) -> None:
        """AttemptFailed without a primary, or a connection to it."""
        self._moved.clear()
        source, tenant = self._source(), self.tenant
        state, cluster = source.state, source.cluster
        endpoint = next((one for one in cluster.endpoints if one.name == state.primary), None)
        self._draining = endpoint is not None and state.endpoints[endpoint.name].draining
        if endpoint is None or self._draining:
            self._home = None
            raise AttemptFailed(Fault(FaultKind.STALE, Stage.ACQUIRE, message="there is no primary"))
        self._home = home = (endpoint.name, state.generation)
        patience_s = tenant.pool.acquire_timeout_s + cluster.policy.connect_timeout_s
        connection = await self._factory.open(
            tenant, cluster, endpoint, state.generation, self, self._clock.now() + patience_s
        )
        now = source.state
        if (now.primary, now.generation) != home or not _same_connections(self.tenant, tenant):
            connection.close(CloseReason.GENERATION)
            raise AttemptFailed(Fault(FaultKind.STALE, Stage.CONNECT, message="the primary moved meanwhile"))
        self._connection, self._good = connection, self._clock.now()

    async def _serve(self) -> None:
        """AttemptFailed when the connection has ended; returns when nobody needs it."""
        connection = self._connection
        while connection is not None and await self._is_needed():
            self._wake.clear()
            await self._follow(connection)
            self._count()
            try:
                async with asyncio.timeout(CHECK_S):
                    await self._wake.wait()
            except TimeoutError:
                asked = self._clock.now()
                await connection.check(asked + ANSWER_S)
                self._good = asked
            self._still(connection)

    def _still(self, connection: ListeningConnection) -> None:
        """AttemptFailed when it is not the connection any more."""
        if self._connection is not connection:
            raise AttemptFailed(self._fault or Fault(FaultKind.STALE, Stage.EXECUTE, message="the primary has moved"))

    async def _follow(self, connection: ListeningConnection) -> None:
        """Listen to what is wanted, and to nothing else; who has all of its channels then is ready."""
        while missing := next((one for one in self._wanted if one not in self._active), None):
            try:
                await connection.listen((missing,), self._clock.now() + ANSWER_S)
            except AttemptFailed as failure:
                if failure.fault.kind is not FaultKind.SERVER_ERROR:
                    raise
                for listener in list(self._wanted.get(missing, ())):
                    self.end(listener, _error(failure.fault))
                continue
            self._still(connection)
            self._active.add(missing)
        self._tell_ready()
        if extra := self._active - self._wanted.keys():
            self._active -= extra
            await connection.unlisten(sorted(extra), self._clock.now() + ANSWER_S)
        self._still(connection)

    def _tell_ready(self) -> None:
        """All channels that are wanted are active, in this very turn."""
        state, now = self._source().state, self._clock.now()
        self._fault = None
        for listener in self._listeners:
            if listener.listening or self._home is None:
                continue
            gap = listener.ready(self._home, state.number)
            if gap is not None:
                self._events.emit(ListenGapped(self.tenant.name, gap.reason, now - gap.since))

    def _failed(self, fault: Fault) -> None:
        self.cut(CloseReason.CONNECTION_LOST)
        if fault.kind is not FaultKind.STALE:
            self._fault = fault
        if refuses_login(fault):  # waiting mends nothing: those that have nothing to lose are told
            for listener in self.listeners:
                if not listener.was_ready:
                    self.end(listener, _error(fault))

    def _count(self) -> None:
        if self._delivered or self._missed:
            self._events.emit(NotificationsHeard(self.tenant.name, self._delivered, self._missed))
            self._delivered = self._missed = 0


def _error(fault: Fault) -> RouterError:
    facts = Replayability(Access.READ_ONLY)
    return retry.error(retry.classify(fault, facts), fault)


def _same_connections(one: Tenant, other: Tenant) -> bool:
    return one.same_connections(other) and one.login == other.login
