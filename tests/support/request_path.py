"""The request path over any cluster source and any pools, wired as router/data_plane.py wires it."""

from __future__ import annotations

from router.engine.attempts import Attempts
from router.engine.calls import Register
from router.engine.clusters import ClusterRuntime, Clusters, ClusterSource
from router.engine.copies import Copies
from router.engine.directory import Directory
from router.engine.endpoints import Pools
from router.engine.executor import Executor
from router.engine.holding import HoldingRoom
from router.engine.listeners import Listeners
from router.engine.outcomes import Outcomes
from router.engine.placement import Placement
from router.engine.positions import Positions
from router.engine.running import Runs
from router.engine.sessions import Sessions
from router.engine.tenants import Tenants
from router.model.identity import TenantName
from router.model.policy import RetryPolicy
from router.model.topology import Tenant, TenantChanges, Topology
from router.ports import Chance, Clock, EventSink, PoolFactory, StatementInspector
from router.ports.listening import ListeningFactory
from tests.support.fake_listening import FakeListeningFactory


class OpenDirectory(Directory):
    """Whoever calls for the first time is configured by that: tests need not say so. Who was removed stays so."""

    def __init__(self) -> None:
        self._known: set[TenantName] = set()
        super().__init__(Topology({}, {}))

    def change(self, changes: TenantChanges) -> None:
        self._known.update(one.name for one in changes.changed)
        super().change(changes)

    def in_force(self, tenant: Tenant) -> Tenant:
        if tenant.name not in self._known:
            self.change(TenantChanges((tenant,)))
        newest = super().in_force(tenant)
        return tenant if tenant == newest else newest  # callers of the simulation have tenants of their own, all equal


class RequestPath:
    """Executor, sessions, copies and outcomes of one cluster, and what stands behind them."""

    def __init__(
        self,
        source: ClusterSource,
        factory: PoolFactory,
        retry: RetryPolicy,
        clock: Clock,
        chance: Chance,
        events: EventSink,
        inspector: StatementInspector,
        listening: ListeningFactory | None = None,
    ) -> None:
        name = source.cluster.name
        self.room = HoldingRoom(source.state, source.cluster.policy.hold, clock, events, source.report_drained)
        self.clusters = Clusters()
        self.clusters.add(name, ClusterRuntime(source, self.room))
        self.runs = Runs(clock, chance)
        self.runs.apply([source.cluster])
        self.directory = OpenDirectory()
        ways = (events, self.runs, self.directory)
        self.pools = Pools(factory, clock, lambda one: self.clusters[one].supervisor.cluster, *ways)
        source.subscribe(self.pools.on_state)
        source.subscribe(self.room.on_state)
        self.register = Register(clock, events, self.directory)
        self.tenants = Tenants(retry, clock, self.directory)
        parts = (
            self.tenants,
            self.register,
            Placement(self.clusters, clock, chance, Positions(self.pools, clock)),
            self.pools,
            Attempts(self.clusters, retry, clock, chance, events),
            inspector,
            clock,
        )
        self.executor = Executor(*parts)
        self.copies = Copies(*parts)
        self.sessions = Sessions(*parts)
        self.outcomes = Outcomes(*parts)
        hearing = listening or FakeListeningFactory()
        self.listeners = Listeners(self.tenants, self.register, self.clusters, hearing, clock, chance)
        source.subscribe(self.listeners.on_state)

    def take(self, changes: TenantChanges) -> None:
        """As a data plane takes changed tenants."""
        before: dict[TenantName, Tenant] = {one.name: one for one in self.directory}
        self.directory.change(changes)
        self.pools.take(changes, before)
        self.tenants.take(changes)
        self.listeners.take(changes)
        self.register.forget(changes.removed)
