"""The control process of a router with workers: composes the control plane, the operators' port, the metrics page and
the roster of workers. It serves no caller.

Exactly one process watches a cluster and moves its primary; workers mirror what it publishes. Publishing is telling
every worker over its channel, in order; before a primary is moved, the supervisor waits until they have confirmed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from dataclasses import replace

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric as Family
from prometheus_client.registry import Collector

import router
from router.api.drain import Drain
from router.api.server import AdminServer
from router.config.addresses import parse_address
from router.config.loaded import LoadedConfig
from router.control_plane import ControlPlane
from router.decisions.connection_ledger import WorkerId
from router.engine.clusters import ClusterSource
from router.model.identity import ClusterName
from router.model.ledger import Grant
from router.model.request import CancelOutcome, WriteOutcome
from router.model.state import ClusterState
from router.model.topology import TenantChanges
from router.model.views import Load, ReloadResult, RestartProgress, WorkerView
from router.system import SystemChance, SystemClock
from router.telemetry.audit_log import AuditLog
from router.telemetry.event_sink import TelemetrySink
from router.telemetry.log_setup import process_log
from router.telemetry.metrics_server import MetricsServer
from router.telemetry.recorder import NOBODY
from router.workers.channel import ChannelClosed
from router.workers.emptying import Emptying
from router.workers.member import Member
from router.workers.merging import PARENT, merge_families, merge_loads
from router.workers.messages import (
    Begin,
    CancelAsked,
    Configuration,
    Demands,
    FaultSeen,
    Grants,
    Published,
    RoomEmpty,
    TenantsChanged,
    WriteAsked,
)
from router.workers.port import ReservedPort, reserve
from router.workers.retired import Retired
from router.workers.roster import Roster
from router.workers.sharing import Sharing

FENCED_S = 0.1
"""How long a promotion waits for workers to confirm that they send nothing to the old primary any more."""
LOOK_EVERY_S = 2.0
"""Counts of a worker that is killed are lost for at most this long."""
OTHERS_S = 0.5
LET_GO_S = 3.0
"""The connections of a worker that was killed count against the caps for so long; an idle backend ends at once, one
that runs a statement with the statement."""


class ControlProcess:
    """A router whose callers are served by workers. To be made, started and stopped inside one event loop."""

    def __init__(self, config: LoadedConfig, workers: int) -> None:
        self._clock = SystemClock()
        self._audit_log = AuditLog.of(config.server.audit)
        self._events = TelemetrySink(level=config.log.level.value, audit=self._audit_log)
        self._server = config.server
        self._begun_with = config
        self._count = workers
        self._roster = Roster(
            workers,
            self._clock,
            self._first_words,
            self._take,
            self._answer,
            lambda member: self._sharing.join(member.identity),
            self._gone,
        )
        self._sharing = Sharing(self._grant, self._clock)
        self._sharing.apply(config.topology)
        self._emptying = Emptying()
        self._retired = Retired()
        self._control = ControlPlane(
            config, self._clock, SystemChance(), self._events, self, self._load, self._everywhere, self._audit_log
        )
        self._drain = Drain(self._clock)
        self._admin = AdminServer(config.server, self._control.admin_parts(self), self._drain)
        self._events.watch(self._control.gauges, router.__version__)
        registry = CollectorRegistry()
        registry.register(_AllProcesses(self._families))
        self._metrics_server = MetricsServer(registry, self._healthy, self._refresh_samples)
        self._port: ReservedPort | None = None
        self._background: set[asyncio.Task[None]] = set()

    @property
    def public_address(self) -> str:
        """Where callers connect, with the real port."""
        return self._port.address if self._port is not None else self._server.listen

    @property
    def admin_address(self) -> str:
        """Where operators connect."""
        return self._admin.address

    @property
    def running(self) -> int:
        """Requests of callers under way when the workers were last looked at."""
        return sum(one.look.running for one in self._roster.members)

    # --- life --------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Serve. RouterError when a port cannot be had or a worker does not start."""
        self._port = reserve(self._server.listen)
        self._control.start()
        if self._server.metrics_listen:
            await self._metrics_server.start(*parse_address(self._server.metrics_listen))
        await self._admin.start()
        await self._control.certificates.keep("callers")
        await self._roster.start()
        await self._admin.set_serving(serving=True)
        self._spawn(self._look_now_and_then())

    async def stop(self) -> None:
        """Drain all workers, within the grace, then end what watches."""
        self._drain.begin(self._server.grace_s)
        await self._admin.set_serving(serving=False)
        await self._roster.stop(self._server.grace_s)
        await self._admin.stop()
        await self._control.stop()
        if self._audit_log is not None:
            await asyncio.to_thread(self._audit_log.close)
        for task in list(self._background):
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self._metrics_server.close()
        if self._port is not None:
            self._port.close()

    async def reload(self) -> ReloadResult:
        """Read the file again; with any mistake in it nothing changes, here or in a worker."""
        return await self._control.live.reload()

    def _healthy(self) -> bool:
        return self._roster.serving and not self._drain.begun

    # --- control_plane.Follower: what workers carry requests by --------------------------------------------------

    def add_cluster(self, source: ClusterSource, *readers: Callable[[ClusterState], None]) -> None:
        """A cluster begins: its states go to the workers first."""

        def publish(state: ClusterState) -> None:
            told = self._roster.told
            for member in told:
                member.tell(Published(state))
            if self._emptying.on_state(state, [one.identity for one in told]):
                source.report_drained()

        for reader in (publish, *readers):
            source.subscribe(reader)

    def remove_cluster(self, name: ClusterName) -> None:
        """The workers have been told with the configuration."""

    def apply(self, fresh: LoadedConfig, changes: TenantChanges) -> None:
        """A new configuration is in force: one that was judged here, so that no worker can think otherwise."""
        without = replace(fresh, topology=replace(fresh.topology, tenants={}))
        self._roster.tell(self._configuration(without, changes))
        self._retired.forget(changes.removed)
        self._sharing.apply(fresh.topology)

    def change_tenants(self, fresh: LoadedConfig, changes: TenantChanges) -> None:
        """Only what has changed travels."""
        self._roster.tell(TenantsChanged(changes))
        self._retired.forget(changes.removed)

    def _configuration(self, config: LoadedConfig, changes: TenantChanges) -> Configuration:
        clusters = config.topology.clusters
        begun = self._begun_with
        # What waits for a restart waits for the whole router's: workers that differed would share one port. What is
        # watched is watched here alone.
        config = replace(config, server=begun.server, log=begun.log, retry=begun.retry, files={}, book=None)
        return Configuration(config, tuple(self._control.supervisors[name].state for name in clusters), changes)

    def _grant(self, worker: WorkerId, grants: Sequence[Grant]) -> None:
        for member in self._roster.told:
            if member.identity == worker:
                member.tell(Grants(tuple(grants)))

    def _first_words(self, member: Member) -> Begin:
        configuration = self._configuration(self._control.config, TenantChanges())
        certificates = self._control.certificates.kept("callers")
        return Begin(member.place, self._count, self.public_address, configuration, certificates)

    # --- what workers say ---------------------------------------------------------------------------------------

    def _take(self, member: Member, message: object) -> None:
        match message:
            case FaultSeen(cluster, fault):
                supervisor = self._control.supervisors.get(cluster)
                if supervisor is not None:
                    supervisor.report_fault(fault)
            case Demands(demands):
                self._sharing.hear(member.identity, demands)
            case RoomEmpty(cluster, number):
                if self._emptying.emptied(cluster, member.identity, number):
                    self._drained(cluster)
            case _:
                raise TypeError(f"no control process takes {type(message).__name__}")

    def _drained(self, cluster: ClusterName) -> None:
        supervisor = self._control.supervisors.get(cluster)
        if supervisor is not None:
            supervisor.report_drained()

    async def _answer(self, member: Member, question: object) -> object:
        others = [one for one in self._roster.told if one is not member]
        match question:
            case CancelAsked():
                for asking in asyncio.as_completed([_cancel(one, question) for one in others]):
                    outcome = await asking
                    if outcome is not CancelOutcome.NOT_FOUND:
                        return outcome
                return CancelOutcome.NOT_FOUND
            case WriteAsked():
                found = await asyncio.gather(*(_at_work(one, question) for one in others))
                for answer in (WriteOutcome.RUNNING, WriteOutcome.UNKNOWN):
                    if answer in found:
                        return answer
                return WriteOutcome.NOT_FOUND
        raise TypeError(f"no control process answers {type(question).__name__}")

    def _gone(self, member: Member) -> None:
        """Its process was reaped: what it counted stays."""
        self._retired.add(member.look.load, member.look.samples, self._is_removed)
        if member.gone.result() == 0:  # it has waited for the servers itself
            self._sharing.gone(member.identity)
        else:
            # It closed nothing itself: PostgreSQL has yet to see that the other end of its connections is gone.
            asyncio.get_running_loop().call_later(LET_GO_S, self._sharing.gone, member.identity)
        for cluster in list(self._emptying.left(member.identity)):
            self._drained(cluster)

    def _is_removed(self, tenant: str) -> bool:
        return tenant not in NOBODY and tenant not in self._control.config.topology.tenants

    # --- api/surface.Workers --------------------------------------------------------------------------------------

    def views(self) -> Sequence[WorkerView]:
        """All workers, by place."""
        return self._roster.views()

    async def refresh(self) -> None:
        """Look at all workers, for half a second at most."""
        await self._look(samples=False)

    async def behind(self) -> Sequence[str]:
        """Who has not confirmed what was ordered, in words."""
        return await self._roster.behind()

    def restart_workers(self) -> AsyncIterator[RestartProgress]:
        """Replace the workers one by one."""
        return self._roster.replace_all(self._server.grace_s)

    async def _everywhere(self) -> None:
        for words in await self._roster.behind(FENCED_S):
            process_log().warning("worker not known to be fenced", message=words)

    # --- one view -------------------------------------------------------------------------------------------------

    def _load(self) -> Load:
        return merge_loads([self._retired.load, *(one.look.load for one in self._roster.members)])

    async def _look(self, *, samples: bool) -> None:
        await asyncio.gather(*(one.refresh(samples=samples) for one in self._roster.told))

    async def _refresh_samples(self) -> None:
        await self._look(samples=True)

    async def _look_now_and_then(self) -> None:
        while True:
            await self._clock.sleep(LOOK_EVERY_S)
            await self._look(samples=True)

    def _families(self) -> Iterator[Family]:
        parts: dict[str, Sequence[Family]] = {PARENT: list(self._events.registry.collect())}
        parts["ended"] = self._retired.families
        for one in self._roster.members:
            # While one is replaced there are two of a place; the pid keeps their gauges apart.
            name = f"worker-{one.place}"
            parts[name if name not in parts else f"{name}-{one.pid}"] = one.look.samples
        yield from merge_families(parts)

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


async def _cancel(member: Member, question: CancelAsked) -> CancelOutcome:
    try:
        answer = await member.ask(question, OTHERS_S)
    except (ChannelClosed, TimeoutError):
        return CancelOutcome.NOT_FOUND
    return answer if isinstance(answer, CancelOutcome) else CancelOutcome.NOT_FOUND


async def _at_work(member: Member, question: WriteAsked) -> WriteOutcome:
    try:
        answer = await member.ask(question, OTHERS_S)
    except ChannelClosed:
        # What a process was at work on ended with it, or is PostgreSQL's: the look for its key's row comes after.
        return WriteOutcome.NOT_FOUND if member.gone.done() else WriteOutcome.UNKNOWN
    except TimeoutError:
        return WriteOutcome.UNKNOWN
    return answer if isinstance(answer, WriteOutcome) else WriteOutcome.UNKNOWN


class _AllProcesses(Collector):
    """The metrics page's only collector."""

    def __init__(self, read: Callable[[], Iterator[Family]]) -> None:
        self._read = read

    def describe(self) -> Iterator[Family]:
        """Nothing to check at registration."""
        return iter(())

    def collect(self) -> Iterator[Family]:
        """For the registry."""
        return self._read()
