"""What this process has to do now, as values: the part of an operator's view that requests, not supervisors, make."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from router.engine.calls import Register
from router.engine.clusters import Clusters
from router.engine.connection_budget import Budgets
from router.engine.endpoints import PoolKey, Pools
from router.engine.lane_pool import LanePool
from router.engine.listeners import Listeners
from router.engine.passwords import Passwords
from router.engine.running import Runs
from router.engine.tenants import Tenants
from router.model.events import Outcome
from router.model.identity import EndpointName, TenantName
from router.model.views import NO_ENDPOINT_LOAD, CredentialTrouble, EndpointLoad, Load, PoolView, TenantLoad


class LoadMeter:
    """Reads the load of one process. Called from the event loop only."""

    def __init__(
        self,
        clusters: Clusters,
        pools: Pools,
        tenants: Tenants,
        register: Register,
        budgets: Budgets,
        listeners: Listeners,
        passwords: Passwords,
        runs: Runs,
    ) -> None:
        self._listeners = listeners
        self._passwords = passwords
        self._budgets = budgets
        self._runs = runs
        self._clusters = clusters
        self._pools = pools
        self._tenants = tenants
        self._register = register

    def read(self) -> Load:
        """Everything; tenants that have never done anything are left out."""
        pools = tuple(self._pool_views())
        return Load(
            tenants=dict(self._tenant_loads()),
            endpoints=self._endpoint_loads(pools),
            pools=pools,
            waiters=tuple(self._register.waiters(None)),
            held={one.supervisor.cluster.name: one.room.held for one in self._clusters},
            credentials=tuple(self._credential_troubles()),
        )

    def _tenant_loads(self) -> Iterator[tuple[TenantName, TenantLoad]]:
        for name in self._register.known | self._tenants.known:
            runtime = self._tenants.find(name)
            counts = self._register.counts(name)
            cluster = self._clusters.get(runtime.tenant.cluster) if runtime else None
            yield (
                name,
                TenantLoad(
                    in_flight=runtime.under_way if runtime else 0,
                    held=cluster.room.held_of(name) if cluster else 0,
                    queued=runtime.admission.queued + runtime.pause.waiting if runtime else 0,
                    served=counts[Outcome.SERVED],
                    failed=counts[Outcome.FAILED],
                    refused=counts[Outcome.REFUSED],
                    cancelled=counts[Outcome.CANCELLED],
                    listeners=runtime.admission.listeners if runtime else 0,
                    channels=len(self._listeners.channels_of(name)),
                ),
            )

    def _pool_views(self) -> Iterator[PoolView]:
        due = {budget.endpoint: budget.shares() for budget in self._budgets}
        views: dict[PoolKey, PoolView] = {}
        for key, pool in self._pools.all_at_work:
            view = _view(key, pool, due.get(key.endpoint, {}).get(key.tenant, 0))
            views[key] = _together(views[key], view) if key in views else view
        yield from views.values()

    def _credential_troubles(self) -> Iterator[CredentialTrouble]:
        yield from self._pools.credentials.troubles()
        for tenant, endpoint in self._pools.served():
            failing = self._passwords.trouble(tenant.login)
            if failing is not None:
                yield CredentialTrouble(tenant.cluster, endpoint, tenant.name, *failing)

    def _endpoint_loads(self, pools: tuple[PoolView, ...]) -> dict[EndpointName, EndpointLoad]:
        in_flight: Counter[EndpointName] = Counter()
        connections: Counter[EndpointName] = Counter()
        for pool in pools:
            in_flight[pool.endpoint] += pool.in_flight
            connections[pool.endpoint] += pool.size
        connections.update(self._listeners.endpoints())
        loads = {name: EndpointLoad(in_flight[name], connections[name]) for name in connections}
        for one in self._budgets:
            load = loads.get(one.endpoint, NO_ENDPOINT_LOAD)
            loads[one.endpoint] = replace(load, granted=one.granted, permits=one.in_use, wanted=one.waiting)
        for runs in self._runs:
            load = loads.get(runs.endpoint, NO_ENDPOINT_LOAD)
            loads[runs.endpoint] = replace(load, running=runs.running, concurrency=runs.allowance)
        return loads


def _view(key: PoolKey, pool: LanePool, due: int) -> PoolView:
    stats = pool.statistics()
    return PoolView(
        key.tenant,
        key.endpoint,
        key.access,
        pool.generation,
        stats.size,
        stats.idle,
        stats.leased,
        stats.opening,
        pool.waiting,
        stats.max_size,
        pool.lanes,
        pool.in_flight,
        due,
        pool.database_s,
    )


def _together(now: PoolView, former: PoolView) -> PoolView:
    """A pool with what still runs on one that it has replaced."""
    return replace(
        now,
        size=now.size + former.size,
        idle=now.idle + former.idle,
        leased=now.leased + former.leased,
        opening=now.opening + former.opening,
        waiting=now.waiting + former.waiting,
        lanes=now.lanes + former.lanes,
        in_flight=now.in_flight + former.in_flight,
        database_s=now.database_s + former.database_s,
    )
