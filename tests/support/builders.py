"""Small things that tests of several floors build."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from dataclasses import replace
from typing import Any, TypeVar

from router.engine.directory import Directory
from router.engine.tenants import TenantRuntime
from router.model.events import Event
from router.model.identity import EndpointName, TenantName
from router.model.policy import ClusterPolicy, PoolPolicy, RetryPolicy, TenantPolicy
from router.model.reasons import RefuseReason
from router.model.request import (
    BatchStep,
    Escape,
    Guard,
    Method,
    Options,
    Request,
    Residue,
    Statement,
    StatementTraits,
    TransactionMode,
)
from router.model.topology import Login, Tenant, TenantChanges, Topology
from tests.support.fake_cluster import MAIN, FakeSupervisor, make_cluster
from tests.support.fake_endpoint_pool import FakeEndpointPool, FakePoolFactory
from tests.support.fake_listening import FakeListeningFactory
from tests.support.fake_server import FakeServer
from tests.support.request_path import RequestPath
from tests.support.virtual_time import FixedChance, VirtualClock

T = TypeVar("T")


class Recorder:
    """ports.EventSink that keeps what it was told."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def emit(self, event: Event) -> None:
        self.events.append(event)

    def of(self, kind: type) -> list[Event]:
        return [event for event in self.events if isinstance(event, kind)]


class FakeInspector:
    """ports.StatementInspector that knows a few first words."""

    def inspect(self, sql: bytes) -> StatementTraits:
        word = sql.lower().split()[0] if sql.strip() else b""
        if word in (b"begin", b"commit", b"rollback"):
            why = RefuseReason.TRANSACTION_CONTROL
            return StatementTraits("tcl", why, why, "use Transact")
        if word == b"set":
            return StatementTraits("set", RefuseReason.SESSION_STATE, None, "use Transact", residue=Residue.DISCARD)
        block = word in (b"call", b"do")
        escape = Escape.POSSIBLE if block else Escape.CERTAIN if word == b"unlock" else Escape.NONE
        return StatementTraits(word.decode(), commits_inside=block, escape=escape)

    def inspect_in_session(self, sql: bytes) -> StatementTraits:
        return self.inspect(sql)

    def inspect_nested(self, sql: bytes) -> StatementTraits:
        return self.inspect(sql)


def tenant(
    name: str = "acme", *, pool: PoolPolicy | None = None, policy: TenantPolicy | None = None, **fields: Any
) -> Tenant:
    """A tenant of the cluster "main"."""
    return Tenant(TenantName(name), MAIN, name, Login(name), pool=pool or PoolPolicy(),
                  policy=policy or TenantPolicy(), **fields)


def now() -> float:
    return asyncio.get_running_loop().time()


def request(
    method: Method,
    *sql: str,
    timeout: float = 5.0,
    request_id: str = "",
    options: Options | None = None,
    guards: dict[int, Guard] | None = None,
    mode: TransactionMode | None = None,
    size: int = 100,
    key: str = "",
) -> Request:
    """A request whose deadline is timeout seconds from now. guards: by step."""
    steps = tuple(BatchStep(Statement(one.encode()), (guards or {}).get(index)) for index, one in enumerate(sql))
    return Request(method, steps, now() + timeout, options or Options(), request_id, mode, key, size_bytes=size)


class Engine:
    """The request path over scripted servers, wired as app.py wires it; a is the primary, the rest replicas."""

    def __init__(
        self,
        *names: str,
        pool: PoolPolicy | None = None,
        policy: TenantPolicy | None = None,
        cluster: ClusterPolicy | None = None,
        retry: RetryPolicy | None = None,
        primary: str | None = "a",
    ) -> None:
        names = names or ("a", "b")
        self.timeout = 5.0
        """Of the requests that run() and stream() make (seconds)."""
        self.servers = {EndpointName(name): FakeServer() for name in names}
        self.factory = FakePoolFactory(self.servers)
        self.clock = VirtualClock()
        self.events = Recorder()
        self.chance = FixedChance()
        self.supervisor = FakeSupervisor(make_cluster(*names, policy=cluster), primary)
        self.listening = FakeListeningFactory()
        ways = (self.clock, self.chance, self.events, FakeInspector(), self.listening)
        path = RequestPath(self.supervisor, self.factory, retry or RetryPolicy(), *ways)
        self.take, self.directory = path.take, path.directory
        self.tenant = tenant(pool=pool, policy=policy)
        self.room, self.clusters, self.pools, self.runs = path.room, path.clusters, path.pools, path.runs
        self.register, self.tenants = path.register, path.tenants
        self.executor, self.copies, self.sessions = path.executor, path.copies, path.sessions
        self.outcomes, self.listeners = path.outcomes, path.listeners

    @property
    def tenant(self) -> Tenant:
        """As whom requests come."""
        return self._tenant

    @tenant.setter
    def tenant(self, fresh: Tenant) -> None:
        """From now on; it is configured, too, though the pools and runtimes that there are have not been told."""
        self._tenant = fresh
        self.directory.change(TenantChanges((fresh,)))

    def change(self, **fields: Any) -> None:
        """The tenant as it is configured from now on, as a data plane takes it."""
        self._tenant = replace(self._tenant, **fields)
        self.take(TenantChanges((self._tenant,)))

    def server(self, name: str = "a") -> FakeServer:
        return self.servers[EndpointName(name)]

    @property
    def runtime(self) -> Any:
        return self.tenants.of(self.tenant)

    def inner_pools(self) -> list[FakeEndpointPool]:
        return self.factory.pools

    async def run(self, method: Method, *sql: str, **kwargs: Any) -> Any:
        kwargs.setdefault("timeout", self.timeout)
        return await self.executor.run(self.tenant, request(method, *sql, **kwargs))

    async def quick_read(self, *sql: str, **kwargs: Any) -> Any:
        """As run() of a Query, but without a task where the engine can."""
        kwargs.setdefault("timeout", self.timeout)
        wanted = request(Method.QUERY, *sql, **kwargs)
        ended: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        read = self.executor.start(self.tenant, wanted, 1, lambda one: ended.done() or ended.set_result(one))
        if read is None:
            return await self.executor.run(self.tenant, wanted)
        try:
            await ended
        except asyncio.CancelledError:
            if not ended.done() or ended.cancelled():
                read.abandon()
            raise
        if read.error is not None:
            raise read.error
        return read.answer

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        return asyncio.get_running_loop().create_task(work)

    async def stream(self, sql: str, **kwargs: Any) -> list[Any]:
        """All items of a stream."""
        kwargs.setdefault("timeout", self.timeout)
        return [one async for one in self.executor.stream(self.tenant, request(Method.STREAM_QUERY, sql, **kwargs))]

    async def copy_out(self, sql: str, **kwargs: Any) -> list[Any]:
        """All items of a CopyOut."""
        kwargs.setdefault("timeout", self.timeout)
        return [one async for one in self.copies.copy_out(self.tenant, request(Method.COPY_OUT, sql, **kwargs))]

    async def copy_in(self, sql: str, source: AsyncIterator[bytes], **kwargs: Any) -> Any:
        kwargs.setdefault("timeout", self.timeout)
        return await self.copies.copy_in(self.tenant, request(Method.COPY_IN, sql, **kwargs), source)

    async def quiet(self, seconds: float = 2.0) -> None:
        """Let what goes on in the background end."""
        await asyncio.sleep(seconds)

    def check_at_rest(self) -> None:
        """Nothing is under way, nothing leaked, nothing was harmed."""
        assert len(self.register) == 0
        assert self.room.held == 0
        runtime = self.tenants.find(self.tenant.name)
        if runtime is not None:
            self._check_runtime(runtime)
        for key, pool in self.pools:
            assert not pool.busy, f"{key}: {pool!r}"
            assert (pool.in_flight, pool.waiting) == (0, 0)
        assert [runs.running for runs in self.runs if runs.running] == []
        for inner in self.inner_pools():
            inner.check_conserved()

    @staticmethod
    def _check_runtime(runtime: TenantRuntime) -> None:
        assert (runtime.under_way, runtime.admission.queued) == (0, 0)
        assert not +runtime.in_flight
        assert not -runtime.in_flight

    async def close(self) -> None:
        self.room.close()
        await self.listeners.close()
        await self.pools.close()
        for inner in self.inner_pools():
            inner.check_conserved(leased=0)


def replace_tenants(directory: Directory, topology: Topology) -> None:
    """What a whole new configuration does to a directory."""
    directory.change(TenantChanges.between({one.name: one for one in directory}, topology.tenants))
