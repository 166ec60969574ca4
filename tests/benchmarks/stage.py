"""A case's stage: routers, poolers, proxies and callers, brought up for its contenders, warm through all rounds."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.benchmarks import processes
from tests.benchmarks.caller_process import CallerProcess, caller_process
from tests.benchmarks.callers.contract import Target
from tests.benchmarks.contenders import CONTENDERS, Contender, Via
from tests.benchmarks.database import (
    DATABASE,
    PASSWORD,
    POOLED_ROLE,
    STRAIGHT_ROLE,
    WORKERS_CONTROL_ROLE,
    WORKERS_ROLE,
    Database,
)
from tests.benchmarks.figures import Metric, Sample
from tests.benchmarks.grpc_floor import running_floor
from tests.benchmarks.network import calibrate, delay_proxy
from tests.benchmarks.pgbench import Pgbench
from tests.benchmarks.pgbouncer import running_pgbouncer
from tests.benchmarks.router_process import TENANT, TOKEN, Roles, Router, running_router
from tests.benchmarks.starting import BenchmarkFailed, PeerMissing

COUNT_AFTER = 0.6
"""At this part of a round the server connections are counted."""
WARM_UP_S = 0.3
ROLES = {Via.ROUTER: Roles(), Via.WORKERS: Roles(WORKERS_ROLE, WORKERS_CONTROL_ROLE)}


@dataclass(frozen=True)
class Setting:
    """How a case is set up."""

    callers: int
    connections: int = 20
    """Server connections that PgBouncer's pool, the router with its probes, and straight pools may take."""
    network_ms: float = 0.0
    """Added to each round trip between caller and pooler."""


@dataclass
class Performer:
    """A contender on the stage."""

    name: str
    contender: Contender
    worker: CallerProcess | Pgbench
    database: Database
    pooler_pids: Callable[[], list[int]]
    client_pid: int | None
    router: Router | None = None
    proxy_pid: int | None = None
    memory_before_mib: float | None = None
    """The router's, before its first round; noted by cases that watch it."""

    def perform(self, job: dict[str, Any], *, warm_up: bool = True) -> Sample:
        """One round. BenchmarkFailed when it failed."""
        seconds = float(job.get("seconds", 0.0))
        if warm_up and self.client_pid is not None and seconds:
            self._run({**job, "seconds": min(WARM_UP_S, seconds)})
        before = self._spent()
        answer, connections = self._run(job, count=True)
        spent = [after - start for start, after in zip(before, self._spent(), strict=True)]
        return self._sample(answer, connections, spent)

    def _run(self, job: dict[str, Any], *, count: bool = False) -> tuple[dict[str, Any], int]:
        seconds = float(job.get("seconds", 0.0))
        self.worker.begin(job)
        connections = 0
        if count:
            time.sleep(COUNT_AFTER * (seconds or 0.5))
            connections = self._connections()
        return self.worker.finish(seconds), connections

    def _connections(self) -> int:
        """Those of this contender: by role, and where roles are shared by application."""
        match self.contender.via:
            case Via.NOTHING:
                return self.database.connections().get((STRAIGHT_ROLE, self.name), 0)
            case Via.FLOOR:
                return 0
            case Via.PGBOUNCER:
                own = {POOLED_ROLE}
            case Via.ROUTER | Via.WORKERS:
                own = {ROLES[self.contender.via].tenant, ROLES[self.contender.via].control}
        return sum(count for (role, _), count in self.database.connections().items() if role in own)

    def _spent(self) -> list[float]:
        """Processor time so far of the caller, the pooler, PostgreSQL and the network's proxy."""
        client, proxy = ([] if pid is None else [pid] for pid in (self.client_pid, self.proxy_pid))
        return [processes.cpu_us(pids) for pids in (client, self.pooler_pids(), self.database.pids(), proxy)]

    def _sample(self, answer: dict[str, Any], connections: int, spent: Sequence[float]) -> Sample:
        operations = int(answer["operations"])
        values: dict[Metric, float] = {Metric.CONNECTIONS: connections}
        values[Metric.RATE] = operations / answer["elapsed_s"] if operations else 0.0
        for metric in (Metric.P50_MS, Metric.P99_MS):
            if metric.value in answer:
                values[metric] = answer[metric.value]
        client, pooler, server, proxy = spent
        if self.proxy_pid is not None:
            values[Metric.NETWORK_SHARE] = proxy / (answer["elapsed_s"] * 1e6)
        if operations:
            values[Metric.CLIENT_CPU_US] = answer.get("client_cpu_us", client) / operations
            values[Metric.POSTGRES_CPU_US] = server / operations
            if self.contender.via is not Via.NOTHING:
                values[Metric.POOLER_CPU_US] = pooler / operations
        return Sample(values, operations)


@dataclass
class Stage:
    """Who came, who did not and why, and what else is to be said."""

    performers: dict[str, Performer] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass
class _Reached:
    """Something that callers connect to."""

    port: int
    pids: Callable[[], list[int]] = list
    """Of the pooler; none without one."""
    router: Router | None = None
    proxy_pid: int | None = None


class _Builder:
    """Brings up what contenders need; each pooler and each proxy once."""

    def __init__(self, stack: ExitStack, database: Database, setting: Setting) -> None:
        self._stack = stack
        self._database = database
        self._setting = setting
        self._logs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pointsman-bench-logs-")))
        self._reached: dict[Via, _Reached] = {}
        self._delay_us: float | None = None
        self.notes: list[str] = []

    def performer(self, name: str) -> Performer:
        """PeerMissing when a program is not here."""
        contender = CONTENDERS[name]
        reached = self._reach(contender.via)
        worker: CallerProcess | Pgbench
        if contender.kind == "pgbench":
            worker = self._pgbench(name, contender, reached.port)
        else:
            target = self._target(name, contender, reached.port)
            worker = self._stack.enter_context(caller_process(target, self._logs / f"{name}.log"))
        return Performer(
            name, contender, worker, self._database, reached.pids, worker.pid, reached.router, reached.proxy_pid
        )

    def _pgbench(self, name: str, contender: Contender, port: int) -> Pgbench:
        if self._database.pgbench is None:
            raise PeerMissing("pgbench is not installed (apt-get install postgresql-contrib)")
        user = POOLED_ROLE if contender.via is Via.PGBOUNCER else STRAIGHT_ROLE
        clients = min(self._setting.callers, self._setting.connections)
        return Pgbench(self._database.pgbench, port, user, clients, contender.protocol, name)

    def _target(self, name: str, contender: Contender, port: int) -> Target:
        setting, pooled = self._setting, contender.via is Via.PGBOUNCER
        return Target(
            kind=contender.kind, port=port, callers=setting.callers, application=name,
            user=POOLED_ROLE if pooled else STRAIGHT_ROLE, password=PASSWORD, database=DATABASE,
            tenant=TENANT, token=TOKEN,
            # Through PgBouncer each caller has a connection: it costs no server connection, and is quicker here.
            connections=setting.callers if pooled else setting.connections,
            prepares=not pooled, pipelined=contender.pipelined,
        )

    def _reach(self, via: Via) -> _Reached:
        if via not in self._reached:
            reached = self._start(via)
            self._delay(reached, via)
            self._reached[via] = reached
        return self._reached[via]

    def _start(self, via: Via) -> _Reached:
        connections = self._setting.connections
        match via:
            case Via.NOTHING:
                return _Reached(self._database.port)
            case Via.FLOOR:
                floor = self._stack.enter_context(running_floor(self._logs / "grpc_floor_server.log"))
                return _Reached(floor.port, lambda: [floor.process.pid])
            case Via.PGBOUNCER:
                pooler = self._stack.enter_context(running_pgbouncer(self._database, connections))
                return _Reached(pooler.port, lambda: [pooler.process.pid])
            case Via.ROUTER | Via.WORKERS:
                workers = 2 if via is Via.WORKERS else 1
                router = self._stack.enter_context(
                    running_router(self._database, connections=connections, workers=workers, roles=ROLES[via])
                )
                return _Reached(router.port, router.pids, router)

    def _delay(self, reached: _Reached, via: Via) -> None:
        """Put the network in front of it, if there is to be one."""
        wanted = self._setting.network_ms
        if not wanted:
            return
        if self._delay_us is None:
            self._delay_us, added = calibrate(wanted, self._logs / "calibration.log")
            self.notes.append(f"the network's proxy adds {added:.2f} ms to a round trip, measured")
        log = self._logs / f"proxy-{via.name}.log"
        reached.port, process = self._stack.enter_context(delay_proxy(reached.port, self._delay_us, log))
        reached.proxy_pid = process.pid


@contextmanager
def stage_for(names: Sequence[str], database: Database, setting: Setting) -> Iterator[Stage]:
    """Everything up; afterwards everything down."""
    with ExitStack() as stack:
        builder, stage = _Builder(stack, database, setting), Stage()
        for name in names:
            try:
                stage.performers[name] = builder.performer(name)
            except PeerMissing as missing:
                stage.skipped[name] = str(missing)
            except BenchmarkFailed as failure:
                stage.failed[name] = str(failure)
        stage.notes = builder.notes
        yield stage
