"""The live lane pools: made on first use, fenced when the primary moves, cut when a server is gone, closed when unused.

Period of the sweep: one second; it ends with close().
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from heapq import nlargest
from typing import NamedTuple

from router.engine.credentials import Credentials, Place
from router.engine.directory import Directory
from router.engine.guarded_pool import MOVED, GuardedPool, LoginBreakers
from router.engine.lane_pool import LanePool
from router.engine.making_room import SPARE_S
from router.engine.running import PoolRuns, Runs
from router.model.errors import Code, RouterError
from router.model.events import Health, Phase
from router.model.identity import ClusterName, EndpointName, Generation, TenantName
from router.model.observation import AttemptFailed, Fault, FaultKind, Stage
from router.model.reasons import CloseReason, RefuseReason
from router.model.request import Access
from router.model.state import ClusterState
from router.model.topology import Cluster, Endpoint, Login, Role, Tenant, TenantChanges
from router.ports import Clock, EventSink, PoolFactory

_SWEEP_S = 1.0
_QUIET_S = 0.1
_ASK_AGAIN_S = 0.05
_NOBODY_IS_SPARED: Mapping[TenantName, float] = {}
_GONE = (Health.DOWN, Health.QUARANTINED)
HELD = "writes are held"


class PoolKey(NamedTuple):
    """What a pool's connections may be used for; nothing else ever is."""

    tenant: TenantName
    endpoint: EndpointName
    access: Access


@dataclass(slots=True)
class _Retired:
    """What a pool out of use was for, while something still runs on it: its cluster's changes are told to it, too."""

    key: PoolKey
    cluster: ClusterName
    server: EndpointName | None
    """Whose state is that of its server; None: the endpoint has left the configuration, or is another server by now."""


class Pools:
    """All lane pools of this process. Called from the event loop only."""

    def __init__(
        self,
        factory: PoolFactory,
        clock: Clock,
        cluster_of: Callable[[ClusterName], Cluster],
        events: EventSink,
        runs: Runs,
        directory: Directory,
    ) -> None:
        self._factory = factory
        self._directory = directory
        self._runs = runs
        self._clock = clock
        self._cluster_of = cluster_of
        self._pools: dict[PoolKey, LanePool] = {}
        self._owners: dict[PoolKey, Tenant] = {}
        """As configured; the login that a pool has is the one that self.credentials names."""
        self._states: dict[ClusterName, ClusterState] = {}
        self._retired: dict[LanePool, _Retired] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._breakers = LoginBreakers()
        self.credentials = Credentials(self._log_in, self._serves, self._retire_place, clock, events)

    def __len__(self) -> int:
        return len(self._pools)

    def get(self, tenant: Tenant, endpoint: EndpointName, access: Access, generation: Generation) -> LanePool:
        """The pool for a route, made when there is none. AttemptFailed when its endpoint is no longer configured;
        RouterError when the tenant has been removed, or what was judged for it may not run as the one it is by now."""
        key = PoolKey(tenant.name, endpoint, access)
        pool = self._pools.get(key)
        owner = self._owners.get(key)
        if pool is not None and owner is tenant:
            return pool
        tenant = self._as_of_now(tenant)
        if pool is not None and owner is not None:
            if owner.same_connections(tenant):  # what else has changed needs no new ones
                self._owners[key] = tenant
                return pool
            self._retire(key)
        return self._made(key, tenant, generation)

    def _as_of_now(self, tenant: Tenant) -> Tenant:
        newest = self._directory.in_force(tenant)
        if newest is not tenant and not newest.same_home(tenant):
            raise RouterError(
                Code.UNAVAILABLE,
                RefuseReason.TENANT_CHANGED,
                f"tenant {tenant.name} has another cluster, database, isolation or role since this came: send it again",
                retry_after_s=_ASK_AGAIN_S,
            )
        return newest

    def _made(self, key: PoolKey, tenant: Tenant, generation: Generation) -> LanePool:
        cluster, server = self._server(tenant, key.endpoint)
        login = self.credentials.login_of(tenant, key.endpoint)
        opening = replace(tenant, login=login)
        guarded = GuardedPool(
            self._factory.make(opening, cluster, server, key.access, generation),
            self._breakers.of(opening, key.endpoint),
            self._clock,
            partial(self.credentials.accepted, Place(tenant.name, key.endpoint), login),
            partial(self.credentials.rescued, Place(tenant.name, key.endpoint), login),
        )
        runs = PoolRuns(self._runs.of(key.endpoint), tenant.name, tenant.pool)
        pool = self._pools[key] = LanePool(guarded, tenant.pool, self._clock, runs)
        self._owners[key] = tenant
        return pool

    def _server(self, tenant: Tenant, endpoint: EndpointName) -> tuple[Cluster, Endpoint]:
        cluster = self._cluster_of(tenant.cluster)
        server = next((one for one in cluster.endpoints if one.name == endpoint), None)
        if server is None:
            words = f"{endpoint} has left the configuration of {cluster.name}"
            raise AttemptFailed(Fault(FaultKind.STALE, Stage.ACQUIRE, message=words))
        return cluster, server

    def find(self, tenant: TenantName, endpoint: EndpointName, access: Access) -> LanePool | None:
        """The pool that there is."""
        return self._pools.get(PoolKey(tenant, endpoint, access))

    def close_unused(self, tenant: TenantName, endpoint: EndpointName, access: Access) -> None:
        """Close a pool that was made for one use, with its connections, unless somebody uses it by now."""
        key = PoolKey(tenant, endpoint, access)
        pool = self._pools.get(key)
        if pool is not None and not pool.busy:
            self._retire(key)

    def on_state(self, state: ClusterState) -> None:
        """Called after each publication of a cluster's state, synchronously."""
        before = self._states.get(state.name)
        self._states[state.name] = state
        for key, _ in self._of_cluster(state.name):
            if key.endpoint not in state.endpoints:
                self._retire(key)
        for key, pool in self._of_cluster(state.name):
            _tell(pool, key.access, key.endpoint, before, state)
        for pool, out in list(self._retired.items()):
            if out.cluster == state.name:
                out.server = out.server if out.server in state.endpoints else None
                _tell(pool, out.key.access, out.server, before, state)
        if state.successor is not None and (before is None or before.successor != state.successor):
            self._prepare(state, state.successor)

    def _prepare(self, state: ClusterState, successor: EndpointName) -> None:
        """A switchover begins: have lanes for writes at the next primary, as many as at this one, for each tenant.

        They are of the generation that begins with it. Should it fail, nobody is routed there, and they end unused.
        """
        coming = Generation(state.generation + 1)
        for key, pool in self._of_cluster(state.name):
            if key.access is Access.READ_WRITE and key.endpoint == state.primary and pool.lanes:
                self.get(self._owners[key], successor, Access.READ_WRITE, coming).prepare(coming, pool.lanes)

    def _of_cluster(self, name: ClusterName) -> list[tuple[PoolKey, LanePool]]:
        return [(key, pool) for key, pool in self._pools.items() if self._owners[key].cluster == name]

    def __iter__(self) -> Iterator[tuple[PoolKey, LanePool]]:
        return iter(list(self._pools.items()))

    @property
    def all_at_work(self) -> list[tuple[PoolKey, LanePool]]:
        """With those that are out of use, of which something still runs: of one key there may be several."""
        return [*self._pools.items(), *((out.key, pool) for pool, out in self._retired.items())]

    def served(self) -> list[tuple[Tenant, EndpointName]]:
        """Tenants as configured, where they have pools."""
        found = {Place(key.tenant, key.endpoint): (self._owners[key], key.endpoint) for key in self._pools}
        return list(found.values())

    def in_flight(self, endpoint: EndpointName) -> int:
        """Units running on an endpoint, of all tenants."""
        return sum(pool.in_flight for key, pool in self.all_at_work if key.endpoint == endpoint)

    def connections(self, endpoint: EndpointName) -> int:
        """Connections to an endpoint, of all tenants."""
        return sum(pool.statistics().size for key, pool in self.all_at_work if key.endpoint == endpoint)

    def database_times(self, endpoint: EndpointName) -> dict[TenantName, float]:
        """Connection seconds that each tenant's work has taken at an endpoint so far, in the pools that exist now."""
        times: dict[TenantName, float] = {}
        for key, pool in self.all_at_work:
            if key.endpoint == endpoint:
                times[key.tenant] = times.get(key.tenant, 0.0) + pool.database_s
        return times

    def end_retired(self, endpoint: EndpointName) -> None:
        """End the lanes to an endpoint that were asked to run dry and have nothing to do."""
        for key, pool in self.all_at_work:
            if key.endpoint == endpoint:
                pool.end_retired()

    def free_lanes(
        self, endpoint: EndpointName, patience: Mapping[TenantName, float] = _NOBODY_IS_SPARED, most: int = 1
    ) -> None:
        """Of the lanes to an endpoint that nobody has used for a moment, give back those unused longest, of so many
        pools; of pools that are about to close, all. patience: of tenants whose lanes may be unused for longer
        (seconds)."""
        for pool, out in self._retired.items():
            if out.key.endpoint == endpoint:
                pool.give_back_idle(0.0)
        now = self._clock.now()
        idle = [
            (now - since, pool)
            for key, pool in self._pools.items()
            if key.endpoint == endpoint
            and (since := pool.idle_since) is not None
            and now - since >= patience.get(key.tenant, SPARE_S)
            and pool.statistics().size > self._owners[key].pool.min_size
        ]
        for unused_s, pool in nlargest(most, idle, key=lambda one: one[0]):
            pool.give_back_idle(unused_s)

    def take(self, changes: TenantChanges, before: Mapping[TenantName, Tenant]) -> None:
        """Close the pools of tenants that are gone, or whose connections are not as good as new ones; a changed login
        is proven first. The directory knows them already. before: the tenants as they were configured."""
        newest = {tenant.name: tenant for tenant in changes.changed}
        serving: dict[TenantName, set[EndpointName]] = {}
        for key in self._pools:
            serving.setdefault(key.tenant, set()).add(key.endpoint)
        for tenant in changes.changed:
            there = serving.get(tenant.name, set())
            refused = {endpoint for endpoint in there if self._breakers.refuses(tenant.name, endpoint)}
            self.credentials.changed(before.get(tenant.name), tenant, there, refused)
            for endpoint in refused:
                self._retire_place(Place(tenant.name, endpoint))
        for key, owner in list(self._owners.items()):
            fresh = newest.get(key.tenant, owner)
            if owner.same_connections(fresh):
                self._owners[key] = fresh
            else:
                self._retire(key)
        self.forget_tenants(set(changes.removed))

    def forget_tenants(self, gone: set[TenantName]) -> None:
        """Close the pools of tenants that were removed from the configuration."""
        for key in [key for key in self._pools if key.tenant in gone]:
            self._retire(key)
        self._breakers.forget(gone)
        self.credentials.forget(gone)

    def forget_servers(self, changed: set[EndpointName]) -> None:
        """Close the pools of endpoints that are gone, or whose address or protection changed."""
        for key in [key for key in self._pools if key.endpoint in changed]:
            self._retire(key)
        for out in self._retired.values():
            if out.key.endpoint in changed:
                out.server = None
        self.credentials.forget_servers(changed)

    # --- logins --------------------------------------------------------------------------------------------------

    def _of_place(self, place: Place) -> list[PoolKey]:
        return [key for key in self._pools if (key.tenant, key.endpoint) == place]

    def _serves(self, place: Place) -> bool:
        return bool(self._of_place(place))

    def _retire_place(self, place: Place) -> None:
        for key in self._of_place(place):
            pool = self._pools[key]
            self._retire(key)
            pool.send_on(MOVED)

    async def _log_in(self, place: Place, login: Login) -> None:
        """Open one connection with a login, as its pools would, within the cap, and close it. AttemptFailed."""
        key = next(iter(self._of_place(place)), None)
        if key is None:
            raise AttemptFailed(Fault(FaultKind.CLOSED, Stage.ACQUIRE, message="nobody uses it any more"))
        tenant, generation = replace(self._owners[key], login=login), self._pools[key].generation
        inner = self._factory.make(tenant, *self._server(tenant, key.endpoint), key.access, generation)
        try:
            lane = await inner.open_lane(self._clock.now() + tenant.pool.acquire_timeout_s)
            await lane.give_back()
        finally:
            await inner.close(CloseReason.DRAIN)

    # --- ending --------------------------------------------------------------------------------------------------

    def _retire(self, key: PoolKey) -> None:
        pool = self._pools.pop(key)
        self._retired[pool] = _Retired(key, self._owners.pop(key).cluster, key.endpoint)
        task = asyncio.get_running_loop().create_task(self._close_when_quiet(pool))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def sweep(self) -> None:
        """Give idle lanes back and close unused pools, for ever."""
        while True:
            await self._clock.sleep(_SWEEP_S)
            now = self._clock.now()
            for key, pool in list(self._pools.items()):
                pool.give_back_idle()
                if not pool.busy and now - pool.used_at >= self._owners[key].pool.close_after_s:
                    self._retire(key)

    async def close(self) -> None:
        """Close all pools; what still runs on them ends with CONNECTION_LOST."""
        await self.credentials.close()
        for task in list(self._closing):
            task.cancel()
        pools, self._pools = self._pools, {}
        for pool in pools.values():
            await pool.close(CloseReason.SHUTDOWN)
        if self._closing:
            await asyncio.wait(set(self._closing))

    async def _close_when_quiet(self, pool: LanePool) -> None:
        try:
            while pool.busy:
                pool.give_back_idle(0.0)  # its successor may be in need of the connections
                await self._clock.sleep(_QUIET_S)
        finally:
            del self._retired[pool]
            await pool.close(CloseReason.DRAIN)


def _is_withdrawn(server: EndpointName | None, before: ClusterState, state: ClusterState) -> bool:
    """Whether writes that have not begun yet may go to a server no longer, in the generation that there is: in a
    switchover it would commit them behind the position that its successor waits for. A doubt ends soon, often well."""
    held = before.primary is not None and state.primary is None and state.phase is not Phase.SUSPECT
    return held and server in (None, before.primary)


def _tell(
    pool: LanePool, access: Access, server: EndpointName | None, before: ClusterState | None, state: ClusterState
) -> None:
    """Have a pool follow its cluster's new state. server: None: nothing is known of it any more."""
    moved = before is None or before.generation != state.generation
    endpoint = state.endpoints[server] if server is not None else None
    was = before.endpoints.get(server) if before is not None and server is not None else None
    if moved and (access is Access.READ_WRITE or endpoint is None or endpoint.role is not Role.REPLICA):
        pool.fence(state.generation)
        return
    if access is Access.READ_WRITE and before is not None and _is_withdrawn(server, before, state):
        pool.send_on(HELD)
    if endpoint is None:
        return
    if endpoint.health in _GONE and (was is None or was.health not in _GONE):
        pool.cut(CloseReason.CONNECTION_LOST)
    elif endpoint.health is Health.UP and was is not None and was.health is not Health.UP:
        pool.go_on()
