"""The request path over any cluster source and any pools, wired as router/data_plane.py wires it."""

from __future__ import annotations

from router.engine.attempts import Attempts
from router.engine.calls import Register
from router.engine.clusters import ClusterRuntime, Clusters, ClusterSource
from router.engine.copies import Copies
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
from router.model.policy import RetryPolicy
from router.ports import Chance, Clock, EventSink, PoolFactory, StatementInspector
from router.ports.listening import ListeningFactory
from tests.support.fake_listening import FakeListeningFactory


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
        self.pools = Pools(factory, clock, lambda one: self.clusters[one].supervisor.cluster, events, self.runs)
        source.subscribe(self.pools.on_state)
        source.subscribe(self.room.on_state)
        self.register = Register(clock, events)
        self.tenants = Tenants(retry, clock)
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
