"""What operators see: the engine's state as views, read when asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable

from router.decisions import checkup
from router.engine.supervisor import ClusterSupervisor
from router.engine.supervisors import Supervisors
from router.model.checkup import Finding
from router.model.identity import ClusterName, TenantName
from router.model.state import ClusterState, EndpointState
from router.model.topology import Endpoint, Tenant
from router.model.views import (
    NO_ENDPOINT_LOAD,
    NO_TENANT_LOAD,
    ClusterView,
    CredentialTrouble,
    EndpointView,
    Load,
    PoolView,
    TenantView,
    WaiterView,
)
from router.ports import Clock


class Overview:
    """Views of tenants, endpoints, pools, waiters and clusters."""

    def __init__(
        self, tenants: Callable[[], Iterable[Tenant]], supervisors: Supervisors, load: Callable[[], Load], clock: Clock,
        findings: Callable[[ClusterName], tuple[Finding, ...]] = lambda _: (),
        credentials: Callable[[], Iterable[CredentialTrouble]] = tuple,
    ) -> None:
        """tenants: those configured now. load: what the requests of this router make at this moment, those of all its
        processes.

        findings: what is wrong with the settings of a cluster's servers. credentials: with the router's own logins.
        """
        self._credentials = credentials
        self._findings = findings
        self._tenants = tenants
        self._supervisors = supervisors
        self._load = load
        self._clock = clock
        self._watchers: set[asyncio.Event] = set()

    def tenants(self) -> list[TenantView]:
        """Every configured tenant, by name."""
        loads = self._load().tenants
        return [
            TenantView(
                tenant.name,
                tenant.cluster,
                tenant.database,
                paused=tenant.paused,
                **loads.get(tenant.name, NO_TENANT_LOAD).counts(),
            )
            for tenant in sorted(self._tenants(), key=lambda one: one.name)
        ]

    def endpoints(self, cluster: ClusterName | None) -> list[EndpointView]:
        """Endpoints of one cluster or of all."""
        load = self._load()
        chosen = [self._supervisors[cluster]] if cluster else list(self._supervisors)
        return [view for supervisor in chosen for view in self._endpoints(supervisor, load)]

    def _endpoints(self, supervisor: ClusterSupervisor, load: Load) -> list[EndpointView]:
        state = supervisor.state
        return [_endpoint(state, one, load) for one in supervisor.cluster.endpoints]

    def pools(self, tenant: TenantName | None) -> list[PoolView]:
        """Pools that exist now."""
        return [view for view in self._load().pools if tenant is None or view.tenant == tenant]

    def waiters(self, tenant: TenantName | None) -> list[WaiterView]:
        """Requests under way, oldest first."""
        return [view for view in self._load().waiters if tenant is None or view.tenant == tenant]

    def clusters(self) -> list[ClusterView]:
        """Every cluster with its endpoints."""
        now, load = self._clock.now(), self._load()
        troubles = (*self._credentials(), *load.credentials)
        views = []
        for supervisor in self._supervisors:
            state = supervisor.state
            credentials = tuple(one for one in troubles if one.cluster == state.name)
            views.append(
                ClusterView(
                    state.name,
                    state.phase,
                    supervisor.cluster.mode,
                    state.primary,
                    state.term,
                    state.generation,
                    held=load.held.get(state.name, 0),
                    phase_age_s=max(0.0, now - state.since),
                    detail=state.detail,
                    endpoints=tuple(self._endpoints(supervisor, load)),
                    findings=(*map(checkup.of_credential, credentials), *self._findings(state.name)),
                    credentials=credentials,
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


def _endpoint(state: ClusterState, one: Endpoint, load: Load) -> EndpointView:
    busy = load.endpoints.get(one.name, NO_ENDPOINT_LOAD)
    return EndpointView(
        state.name,
        one.host,
        one.port,
        one.zone,
        state.endpoints.get(one.name) or EndpointState(one.name, weight=one.weight),
        in_flight=busy.in_flight,
        connections=busy.connections,
        cap=one.max_connections,
        granted=busy.granted,
        permits=busy.permits,
        wanted=busy.wanted,
        running=busy.running,
        concurrency=busy.concurrency,
    )
