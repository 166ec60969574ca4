"""What carries requests, composed: tenants, pools, waiting rooms, executor, sessions. Every process that serves callers
has one. Where the clusters' state comes from (supervisors beside it, or mirrors of them) is not its business.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from router.api.auditing import Audit
from router.api.query_service import CancelElsewhere
from router.api.server import PublicParts
from router.config.loaded import LoadedConfig
from router.config.secret_commands import CommandRunner
from router.decisions.letting_go import GONE_S
from router.encoding import ENCODERS, Encoding
from router.engine.attempts import Attempts
from router.engine.calls import Register
from router.engine.clusters import ClusterRuntime, Clusters, ClusterSource
from router.engine.connection_budget import Budgets
from router.engine.copies import Copies
from router.engine.directory import Directory
from router.engine.endpoints import Pools
from router.engine.executor import Executor
from router.engine.holding import HoldingRoom
from router.engine.key_expiry import KeyExpiry
from router.engine.listeners import Listeners
from router.engine.load import LoadMeter
from router.engine.outcomes import Outcomes
from router.engine.passwords import Passwords
from router.engine.placement import Placement
from router.engine.positions import Positions
from router.engine.running import Runs
from router.engine.sessions import Sessions
from router.engine.tenants import Tenants
from router.model.identity import ClusterName
from router.model.policy import HoldPolicy
from router.model.state import ClusterState
from router.model.topology import Tenant, TenantChanges
from router.ports import Chance, Clock
from router.postgres.endpoint_pool import PsycopgPoolFactory
from router.postgres.listening import PsycopgListeningFactory
from router.postgres.row_loader import PsycopgRowLoader
from router.sql.inspector import PostgastInspector
from router.telemetry.audit_log import AuditLog
from router.telemetry.event_sink import TelemetrySink

FIRST_LOOK_S = 3.0
"""The start waits this long for every cluster's first primary; a router without one serves all the same."""
_LOOK_S = 0.01


class DataPlane:
    """Add the clusters, start, serve requests by executor and sessions, then drain and close."""

    def __init__(
        self,
        config: LoadedConfig,
        clock: Clock,
        chance: Chance,
        events: TelemetrySink,
        budgets: Budgets | None = None,
        audit_log: AuditLog | None = None,
    ) -> None:
        """budgets: those of a process that shares the endpoints' caps with others; None: they are all its own.
        audit_log: None: it is off."""
        self.budgets = budgets or Budgets()
        self.budgets.apply(one for cluster in config.topology.clusters.values() for one in cluster.endpoints)
        self._config = config
        self._clock, self._chance, self._events, self._audit_log = clock, chance, events, audit_log
        self.clusters = Clusters()
        self._runs = Runs(clock, chance)
        self._runs.apply(config.topology.clusters.values())
        self._passwords = Passwords(CommandRunner(), clock, events)
        factory = self._factory = PsycopgPoolFactory(chance, events, self.budgets.of, self._passwords)
        self.directory = Directory(config.topology)
        events.know_tenants(self.directory.has)
        ways = (events, self._runs, self.directory)
        self.pools = Pools(factory, clock, lambda name: self.clusters[name].supervisor.cluster, *ways)
        self.budgets.serve_lanes(self.pools)
        self._tenants = Tenants(config.retry, clock, self.directory, self._pause_s)
        register = self._register = Register(clock, events, self.directory)
        placement = Placement(self.clusters, clock, chance, Positions(self.pools, clock))
        attempts = Attempts(self.clusters, config.retry, clock, chance, events)
        parts = (self._tenants, register, placement, self.pools, attempts, PostgastInspector(), clock)
        self.executor = Executor(*parts)
        self.sessions = Sessions(*parts)
        self.copies = Copies(*parts)
        self.outcomes = Outcomes(*parts)
        listening = PsycopgListeningFactory(factory, chance, events, self.pools.credentials.login_of)
        self.listeners = Listeners(self._tenants, register, self.clusters, listening, clock, chance)
        self.pools.credentials.moved = self.listeners.renew
        metered = (self.clusters, self.pools, self._tenants, register, self.budgets, self.listeners)
        self.load = LoadMeter(*metered, self._passwords, self._runs)
        expiring = (self.clusters, self.pools, self.budgets.has_room, clock, chance)
        self._expiry = KeyExpiry(self._tenants, lambda: self._config.topology.tenants, *expiring)
        self._beside: list[asyncio.Task[None]] = []

    def public_parts(self, cancel_elsewhere: CancelElsewhere | None = None) -> PublicParts:
        """What stands behind the callers' port."""
        return PublicParts(
            self.directory,
            self.executor,
            self.sessions,
            self.copies,
            self.listeners,
            self.outcomes,
            ENCODERS[Encoding.TYPED_COLUMNS](PsycopgRowLoader()),
            self._clock,
            self._chance,
            self._events,
            cancel_elsewhere,
            None if self._audit_log is None else Audit(self._audit_log, self._config.server.audit.scope),
        )

    def start(self) -> None:
        """Begin what runs beside the requests."""
        loop = asyncio.get_running_loop()
        works = (self.pools.sweep(), self._expiry.run(), self._expiry.visit())
        self._beside = [loop.create_task(work) for work in works]

    def add_cluster(self, source: ClusterSource, *readers: Callable[[ClusterState], None]) -> None:
        """A cluster begins. readers: told of its states after the data plane itself."""
        policy = source.cluster.policy.hold
        room = HoldingRoom(source.state, policy, self._clock, self._events, source.report_drained)
        self.clusters.add(source.cluster.name, ClusterRuntime(source, room))
        # Pools first: what is fenced must be gone before the first held request is let go.
        for reader in (self.pools.on_state, self.listeners.on_state, self.budgets.on_state, room.on_state, *readers):
            source.subscribe(reader)

    def remove_cluster(self, name: ClusterName) -> None:
        """A cluster ends."""
        self.clusters.remove(name).room.close()

    def apply(self, fresh: LoadedConfig, changes: TenantChanges) -> None:
        """Take a new configuration, and these of its tenants; its clusters have been added, those that are gone are
        still here."""
        before, self._config = self._config, fresh
        old, new = before.topology, fresh.topology
        changed = {
            one.name
            for name in old.clusters.keys() & new.clusters.keys()
            for one in old.clusters[name].endpoints
            if not any(one.name == other.name and one.same_server(other) for other in new.clusters[name].endpoints)
        }
        self.budgets.apply(one for cluster in new.clusters.values() for one in cluster.endpoints)
        self._runs.apply(new.clusters.values())
        self._factory.apply(new.clusters.values())
        for name, cluster in new.clusters.items():
            self.clusters[name].room.set_policy(cluster.policy.hold)
        self.change_tenants(fresh, changes)
        self.pools.forget_servers(changed)
        self.listeners.forget_servers(changed)

    def change_tenants(self, fresh: LoadedConfig, changes: TenantChanges) -> None:
        """Take a configuration that differs in these tenants only; nothing of the others is touched."""
        self._config = fresh
        known = (self.directory.get(one.name) for one in changes.changed)
        before = {one.name: one for one in known if one is not None}  # of this step, not of the whole configuration
        self.directory.change(changes)
        self.pools.take(changes, before)
        self._tenants.take(changes)
        self.listeners.take(changes)
        self._register.forget(changes.removed)
        self._events.forget_tenants(changes.removed)
        self._passwords.configured(one.login for one in fresh.topology.tenants.values())

    def _pause_s(self, tenant: Tenant) -> float:
        """A request waits for the end of a pause as long as for that of a failover."""
        cluster = self._config.topology.clusters.get(tenant.cluster)
        return (cluster.policy.hold if cluster is not None else HoldPolicy()).window_s

    async def first_look(self) -> None:
        """Wait until every cluster has a primary, for a while: the first callers should not be held."""
        end = self._clock.now() + FIRST_LOOK_S
        while self._clock.now() < end:
            if all(one.supervisor.state.primary is not None for one in self.clusters):
                return
            await self._clock.sleep(0.02)

    def drain(self) -> None:
        """Refuse new work, and end the holds."""
        self.executor.drain()
        self.sessions.drain()
        self.copies.drain()
        self.listeners.drain()
        for runtime in self.clusters:
            runtime.room.close()

    async def close(self) -> None:
        """Close all connections; what still runs on them ends with CONNECTION_LOST."""
        for task in self._beside:
            task.cancel()
        if self._beside:
            await asyncio.wait(self._beside)
        await self.listeners.close()
        await self.pools.close()
        self._runs.close()
        self.budgets.close()

    async def let_go(self) -> None:
        """Wait until the servers have let go of the connections that were closed: what runs a statement outlives its
        client by up to a second. Whoever comes next, another worker or another router, opens as many at once."""
        end = self._clock.now() + GONE_S
        while any(one.in_use for one in self.budgets) and self._clock.now() < end:
            await self._clock.sleep(_LOOK_S)
