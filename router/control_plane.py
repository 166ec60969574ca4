"""What watches clusters and takes operators' orders, composed: supervisors, overview, operator, live configuration.

A router has exactly one, in however many processes it serves callers: two supervisors of one cluster would race to
promote. Whoever carries requests follows it through Follower.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from typing import Protocol

from psycopg import pq

import router
from router.api.admin_identity import AdminIdentity
from router.api.auditing import Audit
from router.api.certificate_watch import CertificateWatch
from router.api.server import AdminParts
from router.api.surface import Workers
from router.config.loaded import LoadedConfig
from router.config.secret_commands import CommandRunner
from router.engine.clusters import ClusterSource
from router.engine.control_logins import ControlLogins
from router.engine.doctor import Doctors
from router.engine.operator import Operator
from router.engine.overview import Overview
from router.engine.passwords import Passwords
from router.engine.supervisor import ClusterSupervisor, SnapshotNumbers
from router.engine.supervisors import Supervisors
from router.journal.state_directory import StateDirectory, open_state_directory
from router.live_configuration import LiveConfiguration
from router.model.errors import Code, RouterError
from router.model.identity import ClusterName, TopologyNumber
from router.model.journal import JournalFailed
from router.model.reasons import RefuseReason
from router.model.state import ClusterState
from router.model.topology import Cluster, FailoverMode, Tenant, TenantChanges, Topology
from router.model.views import CredentialTrouble, Load, ServerView
from router.ports import Chance, Clock
from router.postgres.edges import PostgresEdges
from router.telemetry.audit_log import AuditLog
from router.telemetry.event_sink import TelemetrySink
from router.telemetry.state_collector import RouterView
from router.tenant_store import TenantStore


class Follower(Protocol):
    """Who carries requests on the clusters that are watched here."""

    def add_cluster(self, source: ClusterSource, *readers: Callable[[ClusterState], None]) -> None:
        """A cluster begins; readers hear of its states after the follower itself."""
        ...

    def remove_cluster(self, name: ClusterName) -> None:
        """A cluster ends."""
        ...

    def apply(self, fresh: LoadedConfig, changes: TenantChanges) -> None:
        """A new configuration is in force, and these of its tenants; its clusters have been added, those that are gone
        not yet removed."""
        ...

    def change_tenants(self, fresh: LoadedConfig, changes: TenantChanges) -> None:
        """A configuration is in force that differs in these tenants only."""
        ...


class ControlPlane:
    """Start, reload, stop. To be used inside one event loop."""

    def __init__(
        self,
        config: LoadedConfig,
        clock: Clock,
        chance: Chance,
        events: TelemetrySink,
        follower: Follower,
        load: Callable[[], Load],
        everywhere: Callable[[], Awaitable[None]] | None = None,
        audit_log: AuditLog | None = None,
    ) -> None:
        """load and everywhere: see Overview and ClusterSupervisor. audit_log: None: it is off. RouterError when what
        must not be forgotten cannot be kept."""
        self._config = config
        self.live = LiveConfiguration(config, clock, events, self._apply, self._change, self._objection)
        self.tenants = TenantStore(self.live)
        self._clock, self._chance, self._events = clock, chance, events
        self._follower = follower
        self._everywhere = everywhere
        self._started = clock.now()
        self._passwords = Passwords(CommandRunner(), clock, events)
        self._logins = ControlLogins(clock, events)
        self._journal = _open_journal(config, chance.identifier())
        mark = chance.identifier()
        router = self._journal.owner if self._journal is not None else mark
        self._edges = PostgresEdges(f"{router}/{mark}", self._passwords, self._logins)
        self._numbers = SnapshotNumbers()
        self._tasks: set[asyncio.Task[None]] = set()
        self._watching: asyncio.Task[None] | None = None
        self._doctors = Doctors(self._edges.examiner, clock, events)
        self.supervisors = Supervisors()
        self._audit_log = audit_log
        server = config.server
        self.certificates = CertificateWatch({"callers": server.tls, "operators": server.admin_tls}, clock, events)
        self._operators = AdminIdentity(config.admin_tokens, config.admin_callers)
        self.overview = Overview(
            self._tenants, self.supervisors, load, clock, self._doctors.findings, self._credential_troubles
        )
        self.operator = Operator(self.supervisors, load, clock)
        self._know_clusters(config)

    @property
    def config(self) -> LoadedConfig:
        """The configuration in force."""
        return self._config

    def server_view(self) -> ServerView:
        """The router as operators see it."""
        return ServerView(
            router.__version__,
            self._clock.now() - self._started,
            max((one.state.number for one in self.supervisors), default=TopologyNumber(0)),
            pq.version(),
            self.live.view(),
            self.certificates.troubles(),
        )

    def gauges(self) -> RouterView:
        """What the metrics page shows of this moment."""
        return RouterView(
            self.overview.clusters(),
            self.overview.tenants(),
            self.overview.pools(None),
            self.live.view(),
            self.certificates.troubles(),
        )

    def admin_parts(self, workers: Workers) -> AdminParts:
        """What stands behind the operators' port."""
        return AdminParts(
            self.overview, self.operator, self.live, self.tenants, workers, self.server_view, self._clock, self._events,
            self._operators,
            None if self._audit_log is None else Audit(self._audit_log, self._config.server.audit.scope),
        )

    def start(self) -> None:
        """Begin to watch. RouterError when a page of the journal cannot be read."""
        try:
            begun = [self._supervised(cluster) for cluster in self._config.topology.clusters.values()]
        except JournalFailed as error:
            raise _unkept(error) from error
        for supervisor in begun:
            self._begin(supervisor)
        self.live.start()
        self._watching = asyncio.get_running_loop().create_task(self.certificates.run())

    async def stop(self) -> None:
        """End all supervisors; a promotion under way gets a few seconds to finish."""
        await self.live.stop()
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait({self._watching})
        self._doctors.stop()
        await asyncio.gather(*(one.stop() for one in self.supervisors))
        if self._tasks:
            await asyncio.wait(set(self._tasks))
        if self._journal is not None:
            self._journal.close()

    def _apply(self, fresh: LoadedConfig, changes: TenantChanges) -> None:
        clusters = fresh.topology.clusters
        # First what can fail, before anything has changed. What follows is found by what is there, not by the former
        # configuration: should it fail all the same, the next one makes it whole.
        begun = [self._supervised(one) for name, one in clusters.items() if self.supervisors.get(name) is None]
        self._config = fresh
        self._know_clusters(fresh)
        for supervisor in begun:
            self._begin(supervisor)
        for cluster in clusters.values():
            supervisor = self.supervisors[cluster.name]
            if supervisor.cluster != cluster:
                self._logins.apply(cluster)
                supervisor.apply(cluster)
        self._passwords.configured(one.control for one in clusters.values())
        self._operators.apply(fresh.admin_tokens, fresh.admin_callers)
        self._follower.apply(fresh, changes)
        for name in {one.cluster.name for one in self.supervisors} - set(clusters):
            self._follower.remove_cluster(name)
            self._doctors.forget(name)
            self._logins.forget(name)
            self._spawn(self.supervisors.remove(name).stop())

    def _change(self, fresh: LoadedConfig, changes: TenantChanges) -> None:
        self._config = fresh
        self._follower.change_tenants(fresh, changes)

    def _tenants(self) -> Iterable[Tenant]:
        return self._config.topology.tenants.values()

    def _objection(self, fresh: LoadedConfig) -> str:
        if self._journal is None:
            if _promotes(fresh.topology):
                return "promote mode needs a writable server.state_dir; it is opened when the router starts"
            return ""
        try:
            for name in fresh.topology.clusters:
                if self.supervisors.get(name) is None:
                    self._journal.read(name)
        except JournalFailed as error:
            return str(_unkept(error))
        return ""

    def _supervised(self, cluster: Cluster) -> ClusterSupervisor:
        """A supervisor that has not begun. JournalFailed."""
        numbers, everywhere, journal = self._numbers, self._everywhere, self._journal
        return ClusterSupervisor(
            cluster, self._edges, self._clock, self._chance, self._events, numbers, everywhere, journal
        )

    def _begin(self, supervisor: ClusterSupervisor) -> None:
        self._logins.apply(supervisor.cluster)
        self.supervisors.add(supervisor)
        self._follower.add_cluster(supervisor, self.overview.on_state)
        self._spawn(supervisor.run())
        self._doctors.see(supervisor)

    def _credential_troubles(self) -> Iterator[CredentialTrouble]:
        yield from self._logins.troubles()
        for cluster in self._config.topology.clusters.values():
            failing = self._passwords.trouble(cluster.control)
            if failing is not None:
                yield CredentialTrouble(cluster.name, cluster.endpoints[0].name, None, *failing)

    def _know_clusters(self, config: LoadedConfig) -> None:
        clusters = config.topology.clusters.values()
        self._events.know_clusters({one.name: [end.name for end in one.endpoints] for one in clusters})

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _promotes(topology: Topology) -> bool:
    return any(cluster.mode is FailoverMode.PROMOTE for cluster in topology.clusters.values())


def _open_journal(config: LoadedConfig, fresh_owner: str) -> StateDirectory | None:
    required = _promotes(config.topology)
    try:
        return open_state_directory(config.server.state_dir, config.source, os.environ, fresh_owner, required=required)
    except JournalFailed as error:
        raise _unkept(error) from error


def _unkept(error: JournalFailed) -> RouterError:
    return RouterError(Code.FAILED_PRECONDITION, RefuseReason.CONFIG_INVALID, f"the journal: {error}")
