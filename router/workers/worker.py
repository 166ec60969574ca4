"""A worker: the data plane of a router and its callers' port, following the control process over one channel.

It never runs without the control process: when the channel ends, whatever the reason, it drains and ends. Start: hello,
configuration and states, servers, first look, health SERVING, "serving". Drain: health NOT_SERVING, no new work, GOAWAY
so that callers go to the port's other processes, what runs ends within the grace, connections close, servers let go of
them, a last look.
"""

from __future__ import annotations

import asyncio
import signal
import socket
from dataclasses import replace
from typing import Any

import router
from router import interpreter
from router.api.drain import Drain as Draining
from router.api.server import PublicServer
from router.data_plane import DataPlane
from router.engine.connection_budget import Budgets
from router.engine.mirrored_cluster import MirroredCluster
from router.model.errors import RouterError
from router.model.identity import ClusterName, TenantName
from router.model.request import CancelOutcome, WriteOutcome
from router.model.state import ClusterState
from router.model.topology import Cluster, TenantChanges
from router.system import SystemChance, SystemClock
from router.telemetry.audit_log import AuditLog
from router.telemetry.event_sink import TelemetrySink
from router.telemetry.log_setup import process_log, set_up
from router.workers.channel import Channel, ChannelClosed
from router.workers.messages import (
    Applied,
    Begin,
    CancelAsked,
    CannotServe,
    Configuration,
    Demands,
    Drain,
    FaultSeen,
    Grants,
    Hello,
    Leaving,
    Look,
    LookAsked,
    Published,
    RoomEmpty,
    Sent,
    Serving,
    TenantsChanged,
    WriteAsked,
    shape,
)

REPORT_S = 0.005
"""Demands that change together make one message."""
REPORT_EVERY_S = 0.5
OTHERS_S = 1.0
"""How long a caller waits to hear whether another worker runs what it wants cancelled, or asks the outcome of."""


class WorkerProcess:
    """One worker. To be used inside one event loop."""

    def __init__(self, begin: Begin, channel: Channel) -> None:
        config = begin.configuration.config
        self._config = config
        self._channel = channel
        self._clock = SystemClock()
        chance = SystemChance()
        self._audit_log = AuditLog.of(config.server.audit)
        self._events = TelemetrySink(level=config.log.level.value, audit=self._audit_log)
        self._reporting: asyncio.TimerHandle | None = None
        self._due = False
        self._budgets = Budgets(divided=True, changed=self._report_soon)
        self._data = DataPlane(config, self._clock, chance, self._events, self._budgets, self._audit_log)
        self._mirrors: dict[ClusterName, MirroredCluster] = {}
        self._take_configuration(begin.configuration)
        self._data.outcomes.ask_elsewhere(self._write_elsewhere)
        parts = self._data.public_parts(self._cancel_elsewhere)
        policy = replace(config.server, listen=begin.address)
        self._server = PublicServer(
            policy, parts, Draining(self._clock), processes=begin.workers, certificates=begin.certificates
        )

    # --- life --------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Serve. RouterError when the port cannot be had."""
        self._data.start()
        self._report_soon()
        await self._server.start()
        await self._data.first_look()
        await self._server.set_serving(serving=True)
        self._channel.tell(Serving(self._server.address))

    async def stop(self, grace_s: float | None) -> None:
        """Drain, then close everything."""
        await self._server.drain(grace_s)
        self._data.drain()
        await self._server.stop()
        await self._data.close()
        await self._data.let_go()  # with the end of this process others are given its places under the caps
        if self._audit_log is not None:
            await asyncio.to_thread(self._audit_log.close)
        if self._reporting is not None:
            self._reporting.cancel()
        self._channel.tell(await self.look(samples=True))

    def _report_soon(self) -> None:
        if not self._due:
            self._due = True
            if self._reporting is not None:
                self._reporting.cancel()
            self._reporting = asyncio.get_running_loop().call_later(REPORT_S, self._report)

    def _report(self) -> None:
        """What is had and wanted of the endpoints' connections: soon after a change, and now and then."""
        self._due = False
        self._reporting = asyncio.get_running_loop().call_later(REPORT_EVERY_S, self._report)
        self._channel.tell(Demands(tuple(self._budgets.report())))

    # --- what the control process says -------------------------------------------------------------------------

    def take(self, message: object) -> None:
        """Anything but the first message and the last one."""
        match message:
            case Published(state):
                mirror = self._mirrors.get(state.name)
                if mirror is not None:
                    mirror.publish(state)
            case Configuration():
                self._take_configuration(message)
            case TenantsChanged(changes):
                self._change_tenants(changes)
            case Grants(grants):
                for grant in grants:
                    self._budgets.on_grant(grant)
            case Sent(number):
                self._channel.tell(Applied(number))
            case _:
                raise TypeError(f"no worker takes {type(message).__name__}")

    def _take_configuration(self, message: Configuration) -> None:
        config = message.config
        for state in message.states:
            cluster = config.topology.clusters[state.name]
            mirror = self._mirrors.get(state.name)
            if mirror is None:
                self._add_cluster(cluster, state)
            else:
                mirror.apply(cluster)
                mirror.publish(state)
        self._events.know_clusters(
            {one.name: [end.name for end in one.endpoints] for one in config.topology.clusters.values()}
        )
        if config is not self._config:
            tenants = message.changes.of(self._config.topology.tenants)
            self._config = replace(config, topology=replace(config.topology, tenants=tenants))
            self._data.apply(self._config, message.changes)
        for name in set(self._mirrors) - set(config.topology.clusters):
            del self._mirrors[name]
            self._data.remove_cluster(name)

    def _change_tenants(self, changes: TenantChanges) -> None:
        topology = self._config.topology
        topology = replace(topology, tenants=changes.of(topology.tenants))
        self._config = replace(self._config, topology=topology)
        self._data.change_tenants(self._config, changes)

    def _add_cluster(self, cluster: Cluster, state: ClusterState) -> None:
        name = cluster.name
        mirror = self._mirrors[name] = MirroredCluster(
            cluster,
            state,
            self._clock,
            lambda fault: self._channel.tell(FaultSeen(name, fault)),
            lambda: self._channel.tell(RoomEmpty(name, mirror.state.number)),
        )
        self._data.add_cluster(mirror)

    async def answer(self, question: object) -> object:
        """What the control process asks."""
        match question:
            case LookAsked(samples):
                return await self.look(samples=samples)
            case CancelAsked(tenant, request_id):
                return self._data.executor.cancel(tenant, request_id)
            case WriteAsked(tenant, key, request_id):
                return self._data.outcomes.here(tenant, key, request_id)
            case _:
                raise TypeError(f"no worker answers {type(question).__name__}")

    async def look(self, *, samples: bool) -> Look:
        """How it stands."""
        families = tuple(self._events.registry.collect()) if samples else ()
        return Look(self._data.load.read(), self._data.executor.under_way, families)

    async def _cancel_elsewhere(self, tenant: TenantName, request_id: str) -> CancelOutcome:
        try:
            answer = await self._channel.ask(CancelAsked(tenant, request_id), OTHERS_S)
        except (ChannelClosed, TimeoutError):
            return CancelOutcome.NOT_FOUND
        return answer if isinstance(answer, CancelOutcome) else CancelOutcome.NOT_FOUND

    async def _write_elsewhere(self, tenant: TenantName, key: str, request_id: str) -> WriteOutcome:
        try:
            answer = await self._channel.ask(WriteAsked(tenant, key, request_id), OTHERS_S)
        except (ChannelClosed, TimeoutError):
            return WriteOutcome.UNKNOWN
        return answer if isinstance(answer, WriteOutcome) else WriteOutcome.UNKNOWN


class _Life:
    """From the first message to the last."""

    def __init__(self) -> None:
        self._begun: asyncio.Future[WorkerProcess] = asyncio.get_running_loop().create_future()
        self._ending: asyncio.Future[float | None] = asyncio.get_running_loop().create_future()
        self._worker: WorkerProcess | None = None
        self._channel: Channel | None = None

    async def run(self, end: socket.socket) -> int:
        """Exit code 0 after an orderly end."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
            # Meant for the control process, whoever sent them: what follows from them is its word.
            signal.signal(number, signal.SIG_IGN)
        loop.add_signal_handler(signal.SIGTERM, self._leave)
        channel = self._channel = await Channel.over(end, self._take, self._answer)
        talking = asyncio.create_task(channel.run())
        talking.add_done_callback(self._talked)
        channel.tell(Hello(shape(), router.__version__))
        try:
            return await self._serve(channel)
        finally:
            await channel.flush()
            channel.close()
            await asyncio.wait({talking})

    async def _serve(self, channel: Channel) -> int:
        both: set[asyncio.Future[Any]] = {self._begun, self._ending}
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not self._begun.done():
            return 0
        worker = self._begun.result()
        try:
            await worker.start()
        except RouterError as error:
            channel.tell(CannotServe(str(error)))
            return 1
        interpreter.settled()
        await worker.stop(await self._ending)
        return 0

    def _take(self, message: object) -> None:
        match message:
            case Begin() if self._channel is not None:
                # At once: what is published from now on is taken by it.
                log = message.configuration.config.log
                set_up(log.level.value, log.format.value, worker=message.place)
                _stay_on(message)
                self._worker = WorkerProcess(message, self._channel)
                self._begun.set_result(self._worker)
            case Drain(grace_s):
                self._end(grace_s)
            case _ if self._worker is not None:
                self._worker.take(message)

    async def _answer(self, question: object) -> object:
        if self._worker is None:
            raise ChannelClosed("it has not begun")
        return await self._worker.answer(question)

    def _talked(self, talking: asyncio.Task[None]) -> None:
        """Never without the control process: this ends with the channel."""
        error = None if talking.cancelled() else talking.exception()
        if error is not None:
            process_log().error("worker lost its channel", exc_info=error)
        self._end(None)

    def _leave(self) -> None:
        if self._channel is not None:
            self._channel.tell(Leaving())
        self._end(None)

    def _end(self, grace_s: float | None) -> None:
        """None: the configuration's grace."""
        if not self._ending.done():
            self._ending.set_result(grace_s)


def _stay_on(begin: Begin) -> None:
    """On its place's processor; on any, where that was taken away meanwhile: a slower worker is better than none."""
    try:
        interpreter.stay_on(begin.configuration.config.server.cpus, begin.place)
    except ValueError as error:
        process_log().warning("worker runs on any processor", message=str(error))


def run_worker(descriptor: int) -> int:
    """Serve over the control channel that this process has inherited; the exit code."""

    async def main() -> int:
        return await _Life().run(socket.socket(fileno=descriptor))

    return asyncio.run(main())
