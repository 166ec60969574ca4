"""Connections of one tenant to one endpoint for one access, over psycopg_pool; lends them out as lanes.

psycopg_pool owns the life of connections. Two of its habits are designed around: it retries a failed connect alone
with growing pauses (so an inner pool without a living connection is replaced by a fresh one), and it hides the cause
behind a time-out (so a failed connect is told to whoever waits, at once).
"""

from __future__ import annotations

import asyncio
import functools
import weakref
from collections.abc import Callable
from typing import Any

import psycopg
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout, TooManyRequests

from router.model.events import ConnectFailed, ConnectionClosed
from router.model.identity import Generation
from router.model.observation import AttemptFailed, Fault, FaultKind, Stage
from router.model.reasons import CloseReason
from router.model.request import Access
from router.model.topology import Cluster, Endpoint, Tenant
from router.ports import Chance, EventSink, PoolStatistics
from router.postgres import conninfo, faults
from router.postgres.greeting import ask_at_the_door
from router.postgres.lane import PipelineLane
from router.postgres.liveness import has_ended, shut_socket
from router.postgres.prepared import PreparedStatements

_RECONNECT_S = 5.0
_LIFETIME_JITTER = 0.1
_DOOR_S = 0.2


class _Born:
    """What the router remembers of a connection from its birth on."""

    __slots__ = ("expires_at", "generation", "prepared")

    def __init__(self, generation: Generation, expires_at: float, prepared: PreparedStatements) -> None:
        self.generation = generation
        self.expires_at = expires_at
        self.prepared = prepared


class ConnectGate:
    """At most so many connections being opened to one endpoint at once, over all tenants."""

    def __init__(self, limit: int) -> None:
        self._semaphore = asyncio.Semaphore(limit)
        self.opening = 0

    async def __aenter__(self) -> None:
        await self._semaphore.acquire()
        self.opening += 1

    async def __aexit__(self, *_: object) -> None:
        self.opening -= 1
        self._semaphore.release()


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
        chance: Chance,
        events: EventSink,
    ) -> None:
        self._tenant = tenant
        self._endpoint = endpoint
        self._access = access
        self._generation = generation
        self._gate = gate
        self._chance = chance
        self._events = events
        self._policy = tenant.pool
        self._kwargs = conninfo.for_tenant(tenant, cluster, endpoint, access)
        self._inner: AsyncConnectionPool[psycopg.AsyncConnection[Any]] | None = None
        self._opening_inner: asyncio.Lock = asyncio.Lock()
        self._born: weakref.WeakKeyDictionary[psycopg.AsyncConnection[Any], _Born] = weakref.WeakKeyDictionary()
        self._lent: set[PipelineLane] = set()
        self._waiters: set[asyncio.Future[Fault]] = set()
        self._background: set[asyncio.Task[Any]] = set()
        self._connecting = 0
        self._failing = False
        self._closed = False

    def __repr__(self) -> str:
        return (
            f"<PsycopgEndpointPool {self._tenant.name}@{self._endpoint.name} {self._access.value} "
            f"generation={self._generation} {self.statistics()}>"
        )

    @property
    def generation(self) -> Generation:
        return self._generation

    # --- lending -----------------------------------------------------------------------------------------------

    async def open_lane(self, deadline: float) -> PipelineLane:
        """ports.EndpointPool.open_lane."""
        loop = asyncio.get_running_loop()
        while True:
            connection, inner = await self._borrow(deadline)
            born = self._born.get(connection)
            unfit = _why_unfit(connection, born, self._generation, loop.time())
            if unfit is not None or born is None:
                # Shielded: a place in the inner pool that is not given back would be missing for ever.
                await asyncio.shield(self._spawn(self._discard(connection, inner, unfit or CloseReason.GENERATION)))
                continue
            lane = PipelineLane(
                connection,
                self._endpoint.name,
                born.generation,
                born.expires_at,
                born.prepared,
                functools.partial(self._take_back, inner),
            )
            self._lent.add(lane)
            return lane

    async def _borrow(self, deadline: float) -> tuple[psycopg.AsyncConnection[Any], AsyncConnectionPool[Any]]:
        """A connection from the inner pool by the deadline, or the reason why there is none."""
        loop = asyncio.get_running_loop()
        inner = await self._ready_inner()
        failed: asyncio.Future[Fault] = loop.create_future()
        self._waiters.add(failed)
        remaining = max(0.001, deadline - loop.time())
        getting = asyncio.create_task(inner.getconn(timeout=remaining))
        taken = False
        try:
            await asyncio.wait({getting, failed}, timeout=remaining, return_when=asyncio.FIRST_COMPLETED)
            if getting.done():
                taken = True
                return getting.result(), inner
            if failed.done():
                raise AttemptFailed(failed.result())
            raise AttemptFailed(self._no_connection("no connection in time"))
        except (PoolTimeout, TooManyRequests) as error:
            raise AttemptFailed(self._no_connection(str(error))) from error
        except PoolClosed as error:
            raise AttemptFailed(Fault(FaultKind.CLOSED, Stage.ACQUIRE, message=str(error))) from error
        finally:
            self._waiters.discard(failed)
            failed.cancel()
            # Taken back also when this very await is cancelled after getconn had succeeded.
            if not taken:
                getting.cancel()
                getting.add_done_callback(lambda task: self._return_late(task, inner))

    def _no_connection(self, message: str) -> Fault:
        return Fault(FaultKind.POOL_TIMEOUT, Stage.ACQUIRE, message=message, endpoint=self._endpoint.name)

    def _return_late(self, task: asyncio.Task[Any], inner: AsyncConnectionPool[Any]) -> None:
        if not task.cancelled() and task.exception() is None:
            self._spawn(inner.putconn(task.result()))

    async def _ready_inner(self) -> AsyncConnectionPool[Any]:
        if self._closed:
            raise AttemptFailed(Fault(FaultKind.CLOSED, Stage.ACQUIRE, message="pool is closed"))
        async with self._opening_inner:
            if self._inner is not None and self._failing and not self._lent and not self._connecting:
                self._retire_inner()
            if self._inner is None:
                self._failing = False
                self._inner = self._make_inner()
                await self._inner.open(wait=False)
            return self._inner

    def _make_inner(self) -> AsyncConnectionPool[Any]:
        owner = self

        class Connection(psycopg.AsyncConnection[Any]):
            """Counts against the endpoint's gate, and is remembered with its generation."""

            @classmethod
            async def connect(cls, *args: Any, **kwargs: Any) -> Any:
                return await owner._connect(super().connect, *args, **kwargs)

        return AsyncConnectionPool(
            kwargs=self._kwargs,
            connection_class=Connection,
            min_size=self._policy.min_size,
            max_size=self._policy.max_size,
            max_idle=self._policy.idle_s,
            max_lifetime=self._policy.lifetime_s,
            timeout=self._policy.acquire_timeout_s,
            reconnect_timeout=_RECONNECT_S,
            num_workers=2,
            open=False,
            name=f"{self._tenant.name}@{self._endpoint.name}/{self._access.value}",
        )

    async def _connect(self, connect: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        generation = self._generation
        self._connecting += 1
        try:
            async with self._gate:
                connection = await connect(*args, autocommit=True, **kwargs)
        except faults.CLIENT_ERRORS as error:
            await self._tell_failure(error)
            raise
        finally:
            self._connecting -= 1
        age = self._policy.lifetime_s * (1 - _LIFETIME_JITTER * self._chance.draw())
        self._failing = False
        self._born[connection] = _Born(
            generation,
            asyncio.get_running_loop().time() + age,
            PreparedStatements(self._policy.prepared_statements),
        )
        return connection

    async def _tell_failure(self, error: BaseException) -> None:
        door = await ask_at_the_door(self._kwargs, asyncio.get_running_loop().time() + _DOOR_S)
        fault = faults.from_connect(error, door, proven=self.statistics().size > 0)
        self._failing = True
        self._events.emit(ConnectFailed(self._tenant.name, self._endpoint.name, fault.message))
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(fault)

    # --- taking back -------------------------------------------------------------------------------------------

    def _take_back(self, inner: AsyncConnectionPool[Any], lane: PipelineLane, reason: CloseReason | None) -> Any:
        """A lane ended. reason None: its connection is proven idle and in sync."""
        self._lent.discard(lane)
        born = self._born.get(lane.connection)
        if reason is None and (born is None or born.generation != self._generation):
            reason = CloseReason.GENERATION
        if reason is None:
            return self._spawn(inner.putconn(lane.connection))
        return self._spawn(self._discard(lane.connection, inner, reason))

    async def _discard(self, connection: Any, inner: AsyncConnectionPool[Any], reason: CloseReason) -> None:
        self._born.pop(connection, None)
        self._events.emit(ConnectionClosed(self._tenant.name, self._endpoint.name, self._access, reason))
        shut_socket(connection.pgconn)
        connection.pgconn.finish()
        if reason is CloseReason.CONNECTION_LOST:
            self._failing = True  # until a connect succeeds: the server may be gone
        if self._failing and inner is self._inner and not self._lent:
            # Returning it would make psycopg_pool reconnect at once and then with growing pauses.
            self._retire_inner()
        await inner.putconn(connection)

    def _retire_inner(self) -> None:
        inner, self._inner = self._inner, None
        if inner is not None:
            self._spawn(inner.close(timeout=0))

    def fence(self, generation: Generation) -> None:
        """ports.EndpointPool.fence."""
        if generation == self._generation:
            return
        self._generation = generation
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
        self._born.clear()

    def statistics(self) -> PoolStatistics:
        """ports.EndpointPool.statistics."""
        stats = self._inner.get_stats() if self._inner is not None else {}
        idle = stats.get("pool_available", 0)
        return PoolStatistics(
            size=idle + len(self._lent),
            idle=idle,
            leased=len(self._lent),
            opening=self._connecting,
            waiting=len(self._waiters),
            max_size=self._policy.max_size,
        )

    def _spawn(self, work: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task


def _why_unfit(connection: Any, born: _Born | None, generation: Generation, now: float) -> CloseReason | None:
    if born is None or born.generation != generation:
        return CloseReason.GENERATION
    if now >= born.expires_at:
        return CloseReason.LIFETIME
    return CloseReason.CONNECTION_LOST if has_ended(connection.pgconn) else None


class PsycopgPoolFactory:
    """ports.PoolFactory: pools that share one connect gate per endpoint."""

    def __init__(self, chance: Chance, events: EventSink) -> None:
        self._chance = chance
        self._events = events
        self._gates: dict[str, ConnectGate] = {}

    def make(
        self, tenant: Tenant, cluster: Cluster, endpoint: Endpoint, access: Access, generation: Generation
    ) -> PsycopgEndpointPool:
        """ports.PoolFactory.make."""
        gate = self._gates.get(endpoint.name)
        if gate is None:
            gate = self._gates[endpoint.name] = ConnectGate(cluster.policy.connects_in_flight)
        return PsycopgEndpointPool(tenant, cluster, endpoint, access, generation, gate, self._chance, self._events)
