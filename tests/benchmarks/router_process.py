"""The router as an operator runs it: `pointsman serve` with a configuration file."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from router.devcluster import CONTROL_ROLE
from router.devcluster.server import free_port
from tests.benchmarks import processes
from tests.benchmarks.database import DATABASE, PASSWORD, ROUTER_ROLE, Database
from tests.benchmarks.starting import BenchmarkFailed, PeerMissing, Process, own_environment, started, tail

TENANT = "bench"
TOKEN = "token-of-the-benchmark"
ADMIN_TOKEN = "operator-of-the-benchmark"
START_S = 60.0
PROBES = 2
"""Connections that the router's own probes hold or open at times; they count, so its pool is that much smaller."""

_SERVE = "import sys; from router.cli import main; sys.argv[0] = 'pointsman'; main()"

Config = dict[str, Any]


@dataclass(frozen=True)
class Router:
    """A running router."""

    port: int
    process: Process
    start_s: float
    """From the start of its process until it said that it serves."""

    def pids(self) -> list[int]:
        """The process and its workers."""
        return processes.with_children(self.process.pid)

    def memory_mib(self) -> float:
        return processes.memory_mib(self.pids())


@functools.cache
def knows_workers() -> bool:
    """Whether `pointsman serve` has --workers."""
    command = [sys.executable, "-c", _SERVE, "serve", "--help"]
    printed = subprocess.run(command, capture_output=True, text=True, check=False, env=own_environment()).stdout
    return "--workers" in printed


@dataclass(frozen=True)
class Roles:
    """Whom a router connects as; each router its own, so that its connections can be counted."""

    tenant: str = ROUTER_ROLE
    control: str = CONTROL_ROLE


def configuration(database: Database, connections: int, port: int, roles: Roles) -> Config:
    """One cluster of one endpoint, one tenant that may hold `connections` less what probes take."""
    most = connections - PROBES
    endpoint = {"host": "127.0.0.1", "port": database.port, "tls": {"mode": "disable"}, "max_connections": most}
    return {
        "server": {
            "listen": f"127.0.0.1:{port}",
            "admin_listen": f"127.0.0.1:{free_port()}",
            "metrics_listen": f"127.0.0.1:{free_port()}",
            "grace_s": 2,
            "cpus": sorted(os.sched_getaffinity(0)),
        },
        "admin": {"tokens": ["file:admin.token"]},
        "log": {"level": "info", "format": "json"},
        "clusters": {
            "main": {
                "mode": "follow",
                "control": {"user": roles.control, "password": "file:control.password"},
                "endpoints": {"pg": endpoint},
            }
        },
        "tenants": {
            TENANT: {
                "cluster": "main",
                "database": DATABASE,
                "login": {"user": roles.tenant, "password": "file:tenant.password"},
                "tokens": ["file:tenant.token"],
                "pool": {"max_size": most},
                "limits": {"max_in_flight": 1024},
            }
        },
    }


def secrets(database: Database) -> dict[str, str]:
    """The files that the configuration refers to."""
    return {
        "admin.token": ADMIN_TOKEN,
        "control.password": database.control_password,
        "tenant.password": PASSWORD,
        "tenant.token": TOKEN,
    }


@contextmanager
def running_router(
    database: Database, *, connections: int = 20, workers: int = 1, config: Config | None = None,
    more_secrets: Mapping[str, str] | None = None, roles: Roles = Roles(),
) -> Iterator[Router]:
    """Start it and wait until it serves. PeerMissing when it cannot have several workers yet."""
    if workers > 1 and not knows_workers():
        raise PeerMissing("pointsman serve has no --workers yet")
    port = free_port()
    values = config or configuration(database, connections, port, roles)
    port = int(values["server"]["listen"].rpartition(":")[2])
    with tempfile.TemporaryDirectory(prefix="pointsman-bench-router-") as name:
        directory = Path(name)
        for file, secret in {**secrets(database), **(more_secrets or {})}.items():
            (directory / file).write_text(secret)
        (directory / "pointsman.yaml").write_text(yaml.dump(values, Dumper=yaml.CSafeDumper))
        command = [sys.executable, "-c", _SERVE, "serve", "--config", str(directory / "pointsman.yaml")]
        command += ["--workers", str(workers)] if workers > 1 else []
        log, begun = directory / "router.log", time.monotonic()
        with log.open("wb") as sink, started(command, log, stdout=sink, env=own_environment()) as process:
            _wait(process, log)
            yield Router(port, process, time.monotonic() - begun)


def _wait(process: Process, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        if re.search(r"serves callers on", log.read_text(errors="replace")):
            return
        time.sleep(0.01)
    raise BenchmarkFailed(f"the router did not start{tail(log)}")
