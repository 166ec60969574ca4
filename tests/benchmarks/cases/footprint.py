"""Many tenants and many idle callers: what the router's memory is, and how long it takes to start."""

from __future__ import annotations

import json
import resource
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from router.devcluster.server import free_port
from tests.benchmarks.database import DATABASE, TENANT_ROLES, Database
from tests.benchmarks.figures import CaseResult, Measured, Metric, Sample
from tests.benchmarks.judging import below, stated
from tests.benchmarks.rounds import Bench
from tests.benchmarks.router_process import Roles, Router, configuration, running_router
from tests.benchmarks.starting import BenchmarkFailed, own_environment, python_module, read_line, started

TENANTS, STREAMS, CLIENT_PROCESSES = 10_000, 5_000, 5
QUICK_TENANTS, QUICK_STREAMS = 2_000, 250
CONNECTIONS = 150
"""Every active tenant has its own."""
UP_S = 120.0
FILES_NEEDED = STREAMS + 500

Pairs = list[list[str]]
"""(tenant, token)."""


class Footprint:
    """One router, everything configured, everybody connected; once, since nothing here varies with the load."""

    name = "footprint"
    title = f"{TENANTS:,} tenants of which {len(TENANT_ROLES)} active, {STREAMS:,} idle clients"
    judges = (
        below(250, Metric.MEMORY_MIB, "resident memory"),
        below(3, Metric.START_S, "start"),
        stated(Metric.MEMORY_GROWTH_MIB, "of which for the idle streams"),
    )

    def run(self, bench: Bench) -> CaseResult:
        """BenchmarkFailed when the streams cannot be opened."""
        quick = bench.options.quick
        tenants, streams = (QUICK_TENANTS, QUICK_STREAMS) if quick else (TENANTS, STREAMS)
        _allow_files(FILES_NEEDED)
        pairs = [[f"t{number:05}", f"token-of-tenant-{number:05}"] for number in range(tenants)]
        bench.tell("starting the router", 0.1)
        secrets = {f"{tenant}.token": token for tenant, token in pairs}
        config = _configuration(bench.database, pairs)
        with running_router(bench.database, config=config, more_secrets=secrets) as router:
            sample = _measure(bench, router, pairs, streams)
        measured = Measured("router", "Pointsman", (sample,))
        figures = {"router": measured}
        notes = (f"{tenants:,} tenants, {streams:,} streams (--quick)",) if quick else ()
        return CaseResult(
            self.name, self.title, "", (measured,), tuple(judge(figures) for judge in self.judges), {}, notes,
            when=time.strftime("%Y-%m-%d"), rounds=1,
        )


CASE = Footprint()


def _measure(bench: Bench, router: Router, pairs: Pairs, streams: int) -> Sample:
    active = pairs[: len(TENANT_ROLES)]
    idle = pairs[len(TENANT_ROLES):] + active
    address = f"127.0.0.1:{router.port}"
    with tempfile.TemporaryDirectory(prefix="pointsman-bench-logs-") as name, ExitStack() as stack:
        log = Path(name) / "holding.log"
        started_mib = router.memory_mib()
        bench.tell("active tenants", 0.3)
        stack.enter_context(_holding(log, {"work": "active", "address": address, "tenants": active}))
        active_mib = router.memory_mib()
        for number in range(CLIENT_PROCESSES):
            bench.tell(f"idle streams, {number * streams // CLIENT_PROCESSES} open", 0.4 + 0.1 * number)
            part = idle[number : streams : CLIENT_PROCESSES]
            stack.enter_context(_holding(log, {"work": "idle", "address": address, "tenants": part}))
        time.sleep(2.0)  # the active ones go on reading
        everything_mib = router.memory_mib()
        connections = sum(bench.database.connections().values())
    return Sample({
        Metric.START_S: router.start_s,
        Metric.MEMORY_MIB: max(started_mib, everything_mib),
        Metric.MEMORY_GROWTH_MIB: everything_mib - active_mib,
        Metric.CONNECTIONS: connections,
    })


@contextmanager
def _holding(log: Path, order: dict[str, Any]) -> Iterator[None]:
    """A process of callers, up; BenchmarkFailed when one of them fails, also later."""
    command = python_module("tests.benchmarks.callers.holding")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with started(command, log, env=own_environment(), **pipes) as process:
        assert process.stdin is not None
        process.stdin.write(json.dumps(order).encode() + b"\n")
        process.stdin.flush()
        _checked(json.loads(read_line(process, UP_S, log)))
        yield
        process.stdin.close()
        _checked(json.loads(read_line(process, 10.0, log)))


def _checked(answer: dict[str, Any]) -> None:
    if "error" in answer:
        raise BenchmarkFailed(answer["error"])


def _configuration(database: Database, pairs: Pairs) -> dict[str, Any]:
    """All tenants share one database, each with a login of its own; only the active ones' logins exist."""
    config = configuration(database, CONNECTIONS, free_port(), Roles())
    logins = list(TENANT_ROLES) + [f"bench_absent_{number}" for number in range(len(pairs) - len(TENANT_ROLES))]
    config["tenants"] = {
        tenant: {
            "cluster": "main",
            "database": DATABASE,
            "isolation": "schema",
            "login": {"user": login, "password": "file:tenant.password"},
            "tokens": [f"file:{tenant}.token"],
            "pool": {"max_size": 4},
        }
        for (tenant, _), login in zip(pairs, logins, strict=True)
    }
    return config


def _allow_files(needed: int) -> None:
    """Sockets are files; the router inherits our limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < needed:
        if hard < needed:
            raise BenchmarkFailed(f"needs {needed} open files, the limit is {hard} (ulimit -n)")
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
