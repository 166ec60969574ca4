"""The composition root of a router in one process, and the command `serve` for any number of them. Imported by none
but the command line.

A router is a control plane (control_plane.py: supervisors, operators, live configuration) and a data plane
(data_plane.py: requests). Here both meet in one process; workers/ puts them in several.

Start: configuration, logs, supervisors, servers, first look at every cluster, health SERVING.
Drain, on SIGTERM or SIGINT: health NOT_SERVING, no new work, what runs ends within the grace, holds end, servers stop,
connections close, PostgreSQL lets go of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Protocol

import router
from router import early_signals, interpreter
from router.api.server import ApiServer
from router.config.addresses import parse_address
from router.config.loaded import LoadedConfig
from router.config.problems import ConfigProblems
from router.control_plane import ControlPlane
from router.data_plane import DataPlane
from router.model.errors import Code, RouterError
from router.model.reasons import RefuseReason
from router.model.views import ReloadResult, RestartProgress, WorkerState, WorkerView
from router.system import SystemChance, SystemClock
from router.telemetry.audit_log import AuditLog
from router.telemetry.event_sink import TelemetrySink
from router.telemetry.log_setup import process_log, set_up
from router.telemetry.metrics_server import AddressUnavailable, MetricsServer
from router.workers.control import ControlProcess


class Running(Protocol):
    """A router, in one process or in several."""

    @property
    def public_address(self) -> str:
        """Where callers connect, with the real port."""
        ...

    @property
    def admin_address(self) -> str:
        """Where operators connect."""
        ...

    @property
    def running(self) -> int:
        """Requests of callers under way, as far as is known."""
        ...

    async def start(self) -> None:
        """Serve. RouterError when a port cannot be had."""
        ...

    async def stop(self) -> None:
        """Drain, then close everything."""
        ...

    async def reload(self) -> ReloadResult:
        """Read the configuration again."""
        ...

    def restart_workers(self) -> AsyncIterator[RestartProgress]:
        """Replace the processes that serve callers, one by one."""
        ...


class RouterProcess:
    """A router in one process. To be made, started and stopped inside one event loop."""

    def __init__(self, config: LoadedConfig) -> None:
        self._clock = SystemClock()
        self._audit_log = AuditLog.of(config.server.audit)
        self._events = TelemetrySink(level=config.log.level.value, audit=self._audit_log)
        chance = SystemChance()
        self._data = DataPlane(config, self._clock, chance, self._events, audit_log=self._audit_log)
        control = (config, self._clock, chance, self._events, self._data, self._data.load.read)
        self._control = ControlPlane(*control, audit_log=self._audit_log)
        self._api = ApiServer(config.server, self._data.public_parts(), self._control.admin_parts(self))
        self._events.watch(self._control.gauges, router.__version__)
        self._serving = False
        self._metrics_server = MetricsServer(self._events.registry, lambda: self._serving)

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
        return self._data.executor.under_way

    # --- life --------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Serve. RouterError when a port cannot be had."""
        self._control.start()
        self._data.start()
        listen = self._control.config.server.metrics_listen
        if listen:
            await self._metrics_server.start(*parse_address(listen))
        await self._api.start()
        await self._data.first_look()
        self._serving = True
        await self._api.set_serving(serving=True)

    async def stop(self) -> None:
        """Drain, then close everything."""
        self._serving = False
        await self._api.drain()  # health first, so that balancers look away before anyone is refused
        self._data.drain()
        await self._api.stop()
        await self._control.stop()
        await self._data.close()
        if self._audit_log is not None:
            await asyncio.to_thread(self._audit_log.close)
        await self._metrics_server.close()
        await self._data.let_go()  # last: whoever is killed here has lost nothing

    async def reload(self) -> ReloadResult:
        """Read the file again; with any mistake in it nothing changes."""
        return await self._control.live.reload()

    # --- api/surface.Workers: this process is the only one ------------------------------------------------------

    def views(self) -> Sequence[WorkerView]:
        """This process, as worker 1."""
        view, load = self._control.server_view(), self._data.load.read()
        state = WorkerState.SERVING if self._serving else WorkerState.STARTING
        connections = sum(pool.size for pool in load.pools)
        return [
            WorkerView(1, os.getpid(), state, view.uptime_s, self.running, connections, version=router.__version__)
        ]

    async def refresh(self) -> None:
        """Nothing is elsewhere."""

    async def behind(self) -> Sequence[str]:
        """Nobody: orders act before they are answered."""
        return ()

    async def restart_workers(self) -> AsyncIterator[RestartProgress]:
        """RouterError: there are none."""
        raise RouterError(
            Code.FAILED_PRECONDITION,
            RefuseReason.CONFIG_INVALID,
            "this router is a single process: it has no workers to restart (see server.workers)",
        )
        yield RestartProgress(0, "")


async def run(
    config: LoadedConfig, ready: Callable[[Running], None] = lambda _: None, workers: int | None = None
) -> None:
    """Run a router until SIGTERM or SIGINT. SIGHUP reloads, SIGUSR1 replaces its workers one by one;
    one that came before the router served is obeyed then.

    workers: instead of the configuration's server.workers. RouterError when it cannot start.
    """
    early_signals.note()
    count = workers or config.server.workers
    _place(config.server.cpus, count)
    process: Running = RouterProcess(config) if count == 1 else ControlProcess(config, count)
    log = process_log()
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    working: set[asyncio.Task[object]] = set()

    def spawn(work: Callable[[], Coroutine[object, object, object]]) -> None:
        task = loop.create_task(work())
        working.add(task)
        task.add_done_callback(working.discard)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    try:
        await process.start()
        loop.add_signal_handler(signal.SIGHUP, spawn, process.reload)
        loop.add_signal_handler(signal.SIGUSR1, spawn, lambda: _restart_workers(process))
        if early_signals.came(signal.SIGHUP):  # after SIGUSR1 there is nothing to do: the workers are new
            spawn(process.reload)
        ready(process)
        interpreter.settled()
        await ended.wait()
    finally:
        log.info("router drains", running=process.running, grace_s=config.server.grace_s)
        await process.stop()
        log.info("router stopped")


def _place(cpus: Sequence[int], workers: int) -> None:
    """Onto its processor, where this process serves callers itself."""
    try:
        if workers == 1:
            interpreter.stay_on(cpus)
        else:
            interpreter.check_cpus(cpus)
    except ValueError as error:
        raise RouterError(Code.FAILED_PRECONDITION, RefuseReason.CONFIG_INVALID, str(error)) from error


async def _restart_workers(process: Running) -> None:
    log = process_log()
    try:
        async for step in process.restart_workers():
            log.info("workers restart", worker=step.worker, step=step.step, detail=step.detail)
    except RouterError as error:
        log.error("workers restart failed", message=str(error))


def serve(read: Callable[[], LoadedConfig], workers: int | None = None) -> int:
    """`pointsman serve`: exit code 0 after an orderly end, 1 when the configuration or a port is at fault.

    read: config.reading.begin's. workers: instead of the configuration's server.workers.
    """
    try:
        config = read()
    except ConfigProblems as problems:
        for line in problems.lines():
            print(line, file=sys.stderr)
        return 1
    set_up(config.log.level.value, config.log.format.value)

    def ready(process: Running) -> None:
        where = f"{process.public_address}, operators on {process.admin_address}"
        process_log().info(f"pointsman {router.__version__} serves callers on {where}")

    with contextlib.suppress(KeyboardInterrupt):
        try:
            asyncio.run(run(config, ready, workers))
        except (RouterError, AddressUnavailable) as error:
            print(f"pointsman: {error}", file=sys.stderr)
            return 1
    return 0
