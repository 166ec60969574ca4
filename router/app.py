"""The composition root: builds every object, owns signals, the start order and the drain order. Imported by none.

Start: configuration, logs, supervisors, first look at every cluster, servers, health SERVING.
Drain, on SIGTERM or SIGINT: health NOT_SERVING, no new work, what runs ends within the grace, holds end, servers stop,
connections close.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path

from psycopg import pq

import router
from router.api.server import ApiParts, ApiServer
from router.config import loading
from router.config.addresses import parse_address
from router.config.differences import diff, needs_restart
from router.config.loading import LoadedConfig
from router.config.problems import ConfigProblems
from router.encoding import ENCODERS, Encoding
from router.engine.attempts import Attempts
from router.engine.calls import Register
from router.engine.clusters import ClusterRuntime, Clusters
from router.engine.directory import Directory
from router.engine.endpoints import Pools
from router.engine.executor import Executor
from router.engine.holding import HoldingRoom
from router.engine.operator import Operator
from router.engine.overview import Overview
from router.engine.placement import Placement
from router.engine.sessions import Sessions
from router.engine.supervisor import ClusterSupervisor, SnapshotNumbers
from router.engine.tenants import Tenants
from router.model.errors import RouterError
from router.model.events import ConfigChanged
from router.model.identity import ClusterName, TopologyNumber
from router.model.topology import Cluster
from router.model.views import ReloadResult, ServerView
from router.postgres.edges import PostgresEdges
from router.postgres.endpoint_pool import PsycopgPoolFactory
from router.sql.inspector import PostgastInspector
from router.system import SystemChance, SystemClock
from router.telemetry.event_sink import TelemetrySink
from router.telemetry.log_setup import process_log, set_up
from router.telemetry.metrics_server import AddressUnavailable, MetricsServer
from router.telemetry.state_collector import RouterView

FIRST_LOOK_S = 3.0
"""The start waits this long for every cluster's first primary; a router without one serves all the same."""


class RouterProcess:
    """One router. To be made, started and stopped inside one event loop."""

    def __init__(self, config: LoadedConfig) -> None:
        self._config = config
        self._problem = ""
        self._clock = SystemClock()
        self._chance = SystemChance()
        self._started = self._clock.now()
        self._numbers = SnapshotNumbers()
        self._events = TelemetrySink(level=config.log.level.value)
        self._know_clusters(config)
        self._background: set[asyncio.Task[None]] = set()
        self._build_engine()
        self._api = ApiServer(config.server, self._api_parts())
        self._events.watch(self._view, router.__version__)
        self._serving = False
        self._metrics_server = MetricsServer(self._events.registry, lambda: self._serving)

    def _build_engine(self) -> None:
        config, clock, chance, events = self._config, self._clock, self._chance, self._events
        self._edges = PostgresEdges()
        self._clusters = Clusters()
        self._pools = Pools(
            PsycopgPoolFactory(chance, events), clock, lambda name: self._clusters[name].supervisor.cluster
        )
        self._directory = Directory(config.topology)
        self._tenants = Tenants(config.retry, clock)
        self._register = Register(clock, events)
        placement = Placement(self._clusters, clock, chance)
        attempts = Attempts(self._clusters, config.retry, clock, chance, events)
        parts = (self._tenants, self._register, placement, self._pools, attempts, PostgastInspector(), clock)
        self._executor = Executor(*parts)
        self._sessions = Sessions(*parts)
        self._overview = Overview(
            self._directory, self._clusters, self._pools, self._tenants, self._register, clock
        )
        self._operator = Operator(self._clusters, self._pools, clock, self.reload)

    def _api_parts(self) -> ApiParts:
        return ApiParts(
            self._directory,
            self._executor,
            self._sessions,
            self._overview,
            self._operator,
            self._server_view,
            ENCODERS[Encoding.TYPED_COLUMNS](),
            self._clock,
            self._chance,
            self._events,
            self._config.admin_tokens,
        )

    # --- views -------------------------------------------------------------------------------------------------

    @property
    def public_address(self) -> str:
        """Where callers connect, with the real port."""
        return self._api.public_address

    @property
    def admin_address(self) -> str:
        """Where operators connect."""
        return self._api.admin_address

    @property
    def running(self) -> int:
        """Requests of callers under way."""
        return self._executor.under_way

    def _server_view(self) -> ServerView:
        return ServerView(
            router.__version__,
            self._clock.now() - self._started,
            max((one.supervisor.state.number for one in self._clusters), default=TopologyNumber(0)),
            pq.version(),
            str(self._config.source),
            self._problem,
        )

    def _view(self) -> RouterView:
        return RouterView(self._overview.clusters(), self._overview.tenants(), self._overview.pools(None))

    # --- life --------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Serve. RouterError when a port cannot be had."""
        for cluster in self._config.topology.clusters.values():
            self._add_cluster(cluster)
        self._spawn(self._pools.sweep())
        await self._start_metrics()
        await self._api.start()
        await self._first_look()
        self._serving = True
        await self._api.set_serving(serving=True)

    def _know_clusters(self, config: LoadedConfig) -> None:
        clusters = config.topology.clusters.values()
        self._events.know_clusters({one.name: [end.name for end in one.endpoints] for one in clusters})

    def _add_cluster(self, cluster: Cluster) -> None:
        supervisor = ClusterSupervisor(
            cluster, self._edges, self._clock, self._chance, self._events, self._numbers
        )
        room = HoldingRoom(
            supervisor.state, cluster.policy.hold, self._clock, self._events, supervisor.report_drained
        )
        self._clusters.add(cluster.name, ClusterRuntime(supervisor, room))
        # Pools first: what is fenced must be gone before the first held request is let go.
        supervisor.subscribe(self._pools.on_state)
        supervisor.subscribe(room.on_state)
        supervisor.subscribe(self._overview.on_state)
        self._spawn(supervisor.run())

    async def _start_metrics(self) -> None:
        listen = self._config.server.metrics_listen
        if listen:
            host, port = parse_address(listen)
            await self._metrics_server.start(host, port)

    async def _first_look(self) -> None:
        """Wait until every cluster has a primary, for a while: the first callers should not be held."""
        end = self._clock.now() + FIRST_LOOK_S
        while self._clock.now() < end:
            if all(one.supervisor.state.primary is not None for one in self._clusters):
                return
            await self._clock.sleep(0.02)

    async def stop(self) -> None:
        """Drain, then close everything."""
        self._serving = False
        await self._api.drain()  # health first, so that balancers look away before anyone is refused
        self._executor.drain()
        self._sessions.drain()
        for runtime in self._clusters:
            runtime.room.close()
        await self._api.stop()
        await asyncio.gather(*(one.supervisor.stop() for one in self._clusters))
        for task in list(self._background):
            task.cancel()
        if self._background:
            await asyncio.wait(set(self._background))
        await self._pools.close()
        await self._metrics_server.close()

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    # --- live configuration ------------------------------------------------------------------------------------

    async def reload(self) -> ReloadResult:
        """Read the file again; with any mistake in it nothing changes."""
        try:
            fresh = await asyncio.to_thread(loading.load, self._config.source)
        except ConfigProblems as problems:
            lines = tuple(problems.lines())
            self._problem = lines[0]
            self._events.emit(ConfigChanged(applied=False, changes=(), problems=lines))
            return ReloadResult(applied=False, problems=lines)
        changes = diff(self._config, fresh)
        later = needs_restart(self._config, fresh)
        self._problem = ""
        self._apply(fresh)
        self._know_clusters(fresh)
        self._events.emit(ConfigChanged(applied=True, changes=changes))
        return ReloadResult(applied=True, changes=(*changes, *(f"after a restart: {one}" for one in later)))

    def _apply(self, fresh: LoadedConfig) -> None:
        before, self._config = self._config, fresh
        old, new = before.topology, fresh.topology
        changed = {
            one.name
            for name in old.clusters.keys() & new.clusters.keys()
            for one in old.clusters[name].endpoints
            if one not in new.clusters[name].endpoints
        }
        for name, cluster in new.clusters.items():
            runtime = self._clusters.get(name)
            if runtime is None:
                self._add_cluster(cluster)
            elif cluster != old.clusters[name]:
                runtime.supervisor.apply(cluster)
                runtime.room.set_policy(cluster.policy.hold)
        self._directory.apply(new)
        gone = set(old.tenants) - set(new.tenants)
        self._pools.forget_tenants(gone)
        self._tenants.forget(gone)
        self._pools.forget_servers(changed)
        for name in set(old.clusters) - set(new.clusters):
            self._remove_cluster(name)

    def _remove_cluster(self, name: ClusterName) -> None:
        runtime = self._clusters.remove(name)
        runtime.room.close()
        self._spawn(runtime.supervisor.stop())


async def run(config: LoadedConfig, ready: Callable[[RouterProcess], None] = lambda _: None) -> None:
    """Run a router until SIGTERM or SIGINT; SIGHUP reloads. RouterError when it cannot start."""
    process = RouterProcess(config)
    log = process_log()
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    reloading: set[asyncio.Task[ReloadResult]] = set()

    def reload() -> None:
        task = loop.create_task(process.reload())
        reloading.add(task)
        task.add_done_callback(reloading.discard)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    loop.add_signal_handler(signal.SIGHUP, reload)
    try:
        await process.start()
        ready(process)
        await ended.wait()
    finally:
        log.info("router drains", running=process.running, grace_s=config.server.grace_s)
        await process.stop()
        log.info("router stopped")


def serve(path: Path) -> int:
    """`pointsman serve`: exit code 0 after an orderly end, 1 when the configuration or a port is at fault."""
    try:
        config = loading.load(path)
    except ConfigProblems as problems:
        for line in problems.lines():
            print(line, file=sys.stderr)
        return 1
    set_up(config.log.level.value, config.log.format.value)

    def ready(process: RouterProcess) -> None:
        where = f"{process.public_address}, operators on {process.admin_address}"
        process_log().info(f"pointsman {router.__version__} serves callers on {where}")

    with contextlib.suppress(KeyboardInterrupt):
        try:
            asyncio.run(run(config, ready))
        except (RouterError, AddressUnavailable) as error:
            print(f"pointsman: {error}", file=sys.stderr)
            return 1
    return 0
