"""The engine's state for operators: read only, computed when asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from router.engine.calls import Register
from router.engine.clusters import ClusterRuntime, Clusters
from router.engine.directory import Directory
from router.engine.endpoints import Pools
from router.engine.tenants import Tenants
from router.model.events import Outcome
from router.model.identity import ClusterName, TenantName
from router.model.state import ClusterState, EndpointState
from router.model.topology import Endpoint
from router.model.views import ClusterView, EndpointView, PoolView, TenantView, WaiterView
from router.ports import Clock


class Overview:
    """Views of tenants, endpoints, pools, waiters and clusters."""

    def __init__(
        self,
        directory: Directory,
        clusters: Clusters,
        pools: Pools,
        tenants: Tenants,
        register: Register,
        clock: Clock,
    ) -> None:
        self._directory = directory
        self._clusters = clusters
        self._pools = pools
        self._tenants = tenants
        self._register = register
        self._clock = clock
        self._watchers: set[asyncio.Event] = set()

    def tenants(self) -> list[TenantView]:
        """Every configured tenant, by name."""
        views = []
        for tenant in sorted(self._directory, key=lambda one: one.name):
            runtime = self._tenants.find(tenant.name)
            cluster = self._clusters.get(tenant.cluster)
            counts = self._register.counts(tenant.name)
            views.append(
                TenantView(
                    tenant.name,
                    tenant.cluster,
                    tenant.database,
                    in_flight=runtime.admission.in_flight + runtime.transactions if runtime else 0,
                    held=cluster.room.held_of(tenant.name) if cluster else 0,
                    queued=runtime.admission.queued if runtime else 0,
                    served=counts[Outcome.SERVED],
                    failed=counts[Outcome.FAILED],
                    refused=counts[Outcome.REFUSED],
                    cancelled=counts[Outcome.CANCELLED],
                )
            )
        return views

    def endpoints(self, cluster: ClusterName | None) -> list[EndpointView]:
        """Endpoints of one cluster or of all."""
        chosen = [self._clusters[cluster]] if cluster else list(self._clusters)
        return [view for runtime in chosen for view in self._endpoints(runtime)]

    def _endpoints(self, runtime: ClusterRuntime) -> list[EndpointView]:
        state = runtime.supervisor.state
        return [self._endpoint(state, one) for one in runtime.supervisor.cluster.endpoints]

    def _endpoint(self, state: ClusterState, one: Endpoint) -> EndpointView:
        observed = state.endpoints.get(one.name) or EndpointState(one.name, weight=one.weight)
        return EndpointView(
            state.name,
            one.host,
            one.port,
            one.zone,
            observed,
            in_flight=self._pools.in_flight(one.name),
            connections=self._pools.connections(one.name),
        )

    def pools(self, tenant: TenantName | None) -> list[PoolView]:
        """Pools that exist now."""
        views = []
        for key, pool in self._pools:
            if tenant is not None and key.tenant != tenant:
                continue
            stats = pool.statistics()
            views.append(
                PoolView(
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
                )
            )
        return views

    def waiters(self, tenant: TenantName | None) -> list[WaiterView]:
        """Requests under way, oldest first."""
        return self._register.waiters(tenant)

    def clusters(self) -> list[ClusterView]:
        """Every cluster with its endpoints."""
        now = self._clock.now()
        views = []
        for runtime in self._clusters:
            state = runtime.supervisor.state
            views.append(
                ClusterView(
                    state.name,
                    state.phase,
                    runtime.supervisor.cluster.mode,
                    state.primary,
                    state.term,
                    state.generation,
                    held=runtime.room.held,
                    phase_age_s=max(0.0, now - state.since),
                    detail=state.detail,
                    endpoints=tuple(self._endpoints(runtime)),
                )
            )
        return views

    def on_state(self, _: ClusterState) -> None:
        """Called after each publication of a cluster's state, synchronously."""
        for event in self._watchers:
            event.set()

    async def subscribe(self) -> AsyncIterator[None]:
        """One item for each change since the call; changes in between may share an item."""
        changed = asyncio.Event()
        self._watchers.add(changed)
        try:
            while True:
                await changed.wait()
                changed.clear()
                yield None
        finally:
            self._watchers.discard(changed)
