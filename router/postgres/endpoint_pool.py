"""Connections of one tenant to one endpoint for one access, over psycopg_pool; lends them out as lanes.

psycopg_pool owns the life of connections. Two of its habits are designed around: it retries a failed connect alone
with growing pauses (so it is given no time for that, and who still waits asks again), and it hides the cause behind a
time-out (so a failed connect is told to whoever waits, at once).

Every connection has a permit of its endpoint's budget from before it is opened (opening.py) until the server has let
go of it (permits.py).
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Iterable
from typing import Any, Final

import psycopg
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout, TooManyRequests
from psycopg_pool.pool_async import MaintenanceTask, ReturnConnection

from router.model.events import ConnectionClosed
from router.model.identity import EndpointName, Generation
from router.model.observation import AttemptFailed, Fault, FaultKind, Stage
from router.model.reasons import CloseReason
from router.model.request import Access
from router.model.topology import Cluster, Endpoint, Tenant
from router.ports import Chance, EventSink, PoolStatistics
from router.ports.budgets import ConnectionBudget
from router.postgres.connect_gate import ConnectGate
from router.postgres.handshakes import Handshakes
from router.postgres.lane import PipelineLane
from router.postgres.liveness import hang_up, has_ended
from router.postgres.opening import Born, Opener
from router.postgres.passwords import KnownPasswords, Passwords
from router.postgres.permits import PoolPermits

_RECONNECT_S = 0.0
"""psycopg_pool tries a failed connect again once, at once."""
_FETCH_S = 0.01
"""An idle connection that cannot be had at once to be closed is in use again."""


class _InnerPool(AsyncConnectionPool[psycopg.AsyncConnection[Any]]):
    """Takes back at once what a getconn was given in the moment in which it was cancelled.

    psycopg_pool 3.3 leaves that to its workers, who may be busy connecting; and once the pool is closed there are none,
    so that the connection stays open for as long as the process lives.
    """

    def __init__(self, opener: Opener, spawn: Callable[[Any], object], **settings: Any) -> None:
        super().__init__(**settings)
        self._opener = opener
        self._spawn = spawn

    def run_task(self, task: MaintenanceTask) -> None:
        if isinstance(task, ReturnConnection):
            self._spawn(self._take_back(task))
        else:
            super().run_task(task)

    async def _take_back(self, task: ReturnConnection) -> None:
        await task._run(self)  # run() does nothing once the pool is closed
        if task.conn.closed:
            self._opener.forget(task.conn)


class PsycopgEndpointPool:
    """ports.EndpointPool."""

    def __init__(
        self,
        tenant: Tenant,
        cluster: Cluster,
        endpoint: Endpoint,
        access: Access,
        generation: Generation,
        gate: ConnectGate,
        budget: ConnectionBudget,
        passwords: Passwords,
        handshakes: Handshakes,
        chance: Chance,
        events: EventSink,
    ) -> None:
        self._tenant = tenant
        self._endpoint = endpoint
        self._access = access
        self._events = events
        self._policy = tenant.pool
        self._inner: AsyncConnectionPool[psycopg.AsyncConnection[Any]] | None = None
        self._opening_inner: asyncio.Lock = asyncio.Lock()
        self._waiters: dict[asyncio.Future[Fault | None], None] = {}
        self._permits: Final = PoolPermits[PipelineLane](
            budget, tenant.name, tenant.pool, self._waiters, self._close_idle
        )
        self._lent = self._permits.lanes
        self._opener = Opener(
            tenant, cluster, endpoint, access, generation, gate, self._permits, self._waiters, passwords, handshakes,
            chance, events,
        )  # fmt: skip
        self._background: set[asyncio.Task[Any]] = set()
        self._closed = False

    def __repr__(self) -> str:
        return (
            f"<PsycopgEndpointPool {self._tenant.name}@{self._endpoint.name} {self._access.value} "
            f"generation={self.generation} {self.statistics()}>"
        )

    @property
    def generation(self) -> Generation:
        return self._opener.generation

    # --- lending -----------------------------------------------------------------------------------------------

    async def open_lane(self, deadline: float) -> PipelineLane:
        """ports.EndpointPool.open_lane."""
        loop = asyncio.get_running_loop()
        while True:
            connection, inner = await self._borrow(deadline)
            born = self._opener.born(connection)
            unfit = _why_unfit(connection, born, self.generation, loop.time())
            lane = self._lane(connection, born, inner) if unfit is None and born is not None else None
            if lane is None:
                # Shielded: a place in the inner pool that is not given back would be missing for ever.
                reason = unfit or CloseReason.NOT_IDLE
                await asyncio.shield(self._spawn(self._discard(connection, inner, reason)))
                continue
            self._permits.now_used(connection)
            self._lent[lane] = 0.0
            return lane

    def _lane(
        self, connection: psycopg.AsyncConnection[Any], born: Born, inner: AsyncConnectionPool[Any]
    ) -> PipelineLane | None:
        """None: libpq holds that the server owes it something yet, which no sound one does."""
        taken = functools.partial(self._take_back, inner)
        try:
            return PipelineLane(
                connection, self._endpoint.name, born.generation, born.expires_at, born.prepared, born.guard, taken
            )
        except psycopg.Error:
            return None

    async def _borrow(self, deadline: float) -> tuple[psycopg.AsyncConnection[Any], AsyncConnectionPool[Any]]:
        """A connection from the inner pool by the deadline, or the reason why there is none."""
        while True:
            inner = await self._ready_inner()
            connection = await self._get(inner, deadline)
            if connection is not None:
                return connection, inner

    async def _get(self, inner: AsyncConnectionPool[Any], deadline: float) -> psycopg.AsyncConnection[Any] | None:
        """A connection of this inner pool; None: ask again."""
        loop = asyncio.get_running_loop()
        told: asyncio.Future[Fault | None] = loop.create_future()
        self._waiters[told] = None
        remaining = max(0.001, deadline - loop.time())
        getting: asyncio.Task[Any] = asyncio.create_task(inner.getconn(timeout=remaining))
        taken = False
        try:
            await asyncio.wait({getting, told}, timeout=remaining, return_when=asyncio.FIRST_COMPLETED)
            if getting.done():
                taken = True
                connection: psycopg.AsyncConnection[Any] = getting.result()
                return connection
            if not told.done():
                raise AttemptFailed(self._no_connection("no connection in time"))
            fault = told.result()
            if fault is not None:
                raise AttemptFailed(fault)
            return None
        except (PoolTimeout, TooManyRequests) as error:
            raise AttemptFailed(self._no_connection(str(error))) from error
        except PoolClosed as error:
            raise AttemptFailed(Fault(FaultKind.CLOSED, Stage.ACQUIRE, message=str(error))) from error
        finally:
            self._waiters.pop(told)
            told.cancel()
            # Taken back also when this very await is cancelled after getconn had succeeded.
            if not taken:
                getting.cancel()
                getting.add_done_callback(lambda task: self._return_late(task, inner))
            if not self._waiters:
                loop.call_soon(self._look_who_waits)

    def _look_who_waits(self) -> None:
        """A turn later: whoever asks again at once has the place in the budget's line still."""
        if not self._waiters:
            self._permits.budget.withdraw(self._permits)

    def _no_connection(self, message: str) -> Fault:
        budget = self._permits.budget
        if self._permits.in_line:
            message += f": the endpoint's cap is used up, {budget.in_use} of {budget.granted} connections are open"
        return Fault(FaultKind.POOL_TIMEOUT, Stage.ACQUIRE, message=message, endpoint=self._endpoint.name)

    def _return_late(self, task: asyncio.Task[Any], inner: AsyncConnectionPool[Any]) -> None:
        if not task.cancelled() and task.exception() is None:
            self._spawn(self._put(inner, task.result()))

    async def _put(self, inner: AsyncConnectionPool[Any], connection: Any) -> None:
        """Give a sound connection back to its inner pool: to who waits there, or to whoever needs its permit."""
        self._permits.now_idle(connection)
        await inner.putconn(connection)
        self._permits.budget.look_again()

    async def _ready_inner(self) -> AsyncConnectionPool[Any]:
        if self._closed:
            raise AttemptFailed(Fault(FaultKind.CLOSED, Stage.ACQUIRE, message="pool is closed"))
        async with self._opening_inner:
            opener = self._opener
            if self._inner is not None and opener.failing and not self._lent and not opener.connecting:
                self._retire_inner()
            if self._inner is None:
                opener.failing = False
                self._inner = self._make_inner()
                await self._inner.open(wait=False)
            return self._inner

    def _make_inner(self) -> AsyncConnectionPool[Any]:
        return _InnerPool(
            self._opener,
            self._spawn,
            kwargs=self._opener.parameters,
            connection_class=self._opener.connection_class(),
            min_size=self._policy.min_size,
            max_size=self._policy.max_size,
            max_idle=self._policy.idle_s,
            max_lifetime=self._policy.lifetime_s,
            timeout=self._policy.acquire_timeout_s,
            reconnect_timeout=_RECONNECT_S,
            reconnect_failed=lambda _: self._opener.wake(),
            num_workers=2,
            open=False,
            name=f"{self._tenant.name}@{self._endpoint.name}/{self._access.value}",
        )

    # --- taking back -------------------------------------------------------------------------------------------

    def _take_back(self, inner: AsyncConnectionPool[Any], lane: PipelineLane, reason: CloseReason | None) -> Any:
        """A lane ended. reason None: its connection is proven idle and in sync."""
        retired = self._lent.pop(lane, 0.0)
        born = self._opener.born(lane.connection)
        if reason is None and (born is None or born.generation != self.generation):
            reason = CloseReason.GENERATION
        if reason is None:
            return self._spawn(self._put(inner, lane.connection))
        if retired and reason is CloseReason.LIFETIME:
            reason = CloseReason.RECLAIMED
        return self._spawn(self._discard(lane.connection, inner, reason))

    async def _discard(self, connection: Any, inner: AsyncConnectionPool[Any], reason: CloseReason) -> None:
        self._events.emit(ConnectionClosed(self._tenant.name, self._endpoint.name, self._access, reason))
        if reason is not CloseReason.RECLAIMED:
            hang_up(connection.pgconn)
        connection.pgconn.finish()
        self._opener.forget(connection)
        if reason is CloseReason.CONNECTION_LOST:
            self._opener.failing = True  # until a connect succeeds: the server may be gone
        elif reason is not CloseReason.RECLAIMED:
            self._opener.replacing += 1
        if self._opener.failing and inner is self._inner and not self._lent:
            # A fresh inner pool is sure to try again; this one may be full of connections that are dead.
            self._retire_inner()
        await inner.putconn(connection)

    def _close_idle(self) -> None:
        self._spawn(self._close_one_idle(self._inner))

    async def _close_one_idle(self, inner: AsyncConnectionPool[Any] | None) -> None:
        """psycopg_pool lends what has been idle longest first; to be closed it is borrowed."""
        try:
            if inner is None:
                return
            connection = await inner.getconn(timeout=_FETCH_S)
            if self._waiters or self._opener.born(connection) is None:
                await self._put(inner, connection)
                return
            await self._discard(connection, inner, CloseReason.RECLAIMED)
        except (PoolTimeout, PoolClosed, TooManyRequests):
            return  # in use again
        finally:
            self._permits.closing -= 1

    def _retire_inner(self) -> None:
        self._opener.renew()
        inner, self._inner = self._inner, None
        if inner is not None:
            self._spawn(inner.close(timeout=0))

    def fence(self, generation: Generation) -> None:
        """ports.EndpointPool.fence."""
        if generation == self.generation:
            return
        self._opener.generation = generation
        for lane in list(self._lent):
            lane.abandon(CloseReason.GENERATION)
        self._retire_inner()

    async def close(self, reason: CloseReason) -> None:
        """ports.EndpointPool.close."""
        self._closed = True
        for lane in list(self._lent):
            lane.abandon(reason)
        self._retire_inner()
        while self._background:
            await asyncio.wait(set(self._background))
        self._permits.budget.leave(self._permits)

    def statistics(self) -> PoolStatistics:
        """ports.EndpointPool.statistics."""
        stats = self._inner.get_stats() if self._inner is not None else {}
        idle = stats.get("pool_available", 0)
        return PoolStatistics(
            size=idle + len(self._lent),
            idle=idle,
            leased=len(self._lent),
            opening=self._opener.connecting,
            waiting=len(self._waiters),
            max_size=self._policy.max_size,
            in_line=self._permits.in_line,
        )

    def _spawn(self, work: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task


def _why_unfit(connection: Any, born: Born | None, generation: Generation, now: float) -> CloseReason | None:
    if born is None or born.generation != generation:
        return CloseReason.GENERATION
    if now >= born.expires_at:
        return CloseReason.LIFETIME
    return CloseReason.CONNECTION_LOST if has_ended(connection.pgconn) else None


class PsycopgPoolFactory:
    """ports.PoolFactory: pools that share one connect gate and one budget per endpoint."""

    def __init__(
        self,
        chance: Chance,
        events: EventSink,
        budget_of: Callable[[Endpoint], ConnectionBudget],
        passwords: Passwords | None = None,
    ) -> None:
        """passwords: None: no login has a command."""
        self.budget_of = budget_of
        self.passwords = passwords or KnownPasswords()
        self.handshakes = Handshakes()
        self._chance = chance
        self._events = events
        self._gates: dict[EndpointName, ConnectGate] = {}

    def make(
        self, tenant: Tenant, cluster: Cluster, endpoint: Endpoint, access: Access, generation: Generation
    ) -> PsycopgEndpointPool:
        """ports.PoolFactory.make."""
        gate, budget = self.gate_of(cluster, endpoint), self.budget_of(endpoint)
        return PsycopgEndpointPool(
            tenant, cluster, endpoint, access, generation, gate, budget, self.passwords, self.handshakes, self._chance,
            self._events,
        )  # fmt: skip

    def gate_of(self, cluster: Cluster, endpoint: Endpoint) -> ConnectGate:
        """What bounds the connects to an endpoint."""
        gate = self._gates.get(endpoint.name)
        if gate is None:
            gate = self._gates[endpoint.name] = ConnectGate(cluster.policy)
        return gate

    def apply(self, clusters: Iterable[Cluster]) -> None:
        """Another configuration: what bounds connects is in force at once, in pools that exist as well."""
        policies = {endpoint.name: cluster.policy for cluster in clusters for endpoint in cluster.endpoints}
        self._gates = {name: gate for name, gate in self._gates.items() if name in policies}
        for name, gate in self._gates.items():
            gate.follow(policies[name])
