"""A router as its own process in front of a development cluster, as an operator would run it."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pointsman
import yaml
from pointsman.v1 import admin_service_pb2 as admin_pb

from router.console.admin_client import AdminClient
from router.console.targets import Target
from router.devcluster import DevCluster
from router.devcluster.server import free_port
from tests.support.dev_cluster import TENANTS

START_S = 30.0
END_S = 30.0
ADMIN_TOKEN = "operator-token-of-the-tests"

_SERVE = """
import sys
from pathlib import Path
from router.app import serve
from router.config import reading
sys.exit(serve(reading.begin(Path(sys.argv[1]))))
"""
SERVE = ("-c", _SERVE)
"""Arguments of Python that run `serve` with the configuration's path as the next one."""

Config = dict[str, Any]
Edit = Callable[[Config], object]


@dataclass
class RunningRouter:
    """Addresses and process of a router under test."""

    address: str
    admin: str
    metrics: str
    process: subprocess.Popen[bytes]
    log: Path
    config: Path
    tokens: dict[str, str] = field(default_factory=dict)
    prefix: tuple[str, ...] = ()
    program: tuple[str, ...] = SERVE

    def connect(self, tenant: str = "acme", **kwargs: Any) -> pointsman.Client:
        """An SDK client of a tenant."""
        return pointsman.connect(self.address, **{"tenant": tenant, "token": self.tokens.get(tenant, ""), **kwargs})

    def edit_config(self, edit: Edit) -> None:
        """Change the configuration file; the router is not told."""
        values = yaml.safe_load(self.config.read_text())
        edit(values)
        self.config.write_text(yaml.safe_dump(values))

    def operator(self) -> AdminClient:
        """An operator's client; a context manager whose calls block."""
        return AdminClient(Target(self.admin, ADMIN_TOKEN))

    async def operate(self, method: str, request: Any = None) -> Any:
        """One unary call of AdminService by its name."""
        asked = request if request is not None else getattr(admin_pb, f"{method}Request")()

        def call() -> Any:
            with self.operator() as operator:
                return operator.call(method, asked)

        return await asyncio.to_thread(call)

    async def endpoint(self, name: str) -> Any:
        """What the router says about an endpoint."""
        listed = await self.operate("ListEndpoints")
        return next(one for one in listed.endpoints if one.name == name)

    def scrape(self) -> dict[str, float]:
        """Every sample of the metrics page by its name and labels as printed."""
        with urllib.request.urlopen(f"http://{self.metrics}/metrics", timeout=5) as page:
            lines = page.read().decode().splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}

    def memory_bytes(self) -> int:
        """Resident memory now."""
        return self._memory("VmRSS")

    def peak_memory_bytes(self) -> int:
        """Largest resident memory since reset_peak_memory."""
        return self._memory("VmHWM")

    def reset_peak_memory(self) -> None:
        """Let the peak start again from now (Linux: 5 in clear_refs)."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def _memory(self, name: str) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(rf"{name}:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) * 1024

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process."""
        self.process.send_signal(number)

    async def terminate(self) -> int:
        """SIGTERM, and wait for the end."""
        return await asyncio.to_thread(self.stop)

    def relaunch(self) -> None:
        """Start it again on the same configuration after its death; blocks until it serves. The old log is kept."""
        self.process.wait(END_S)
        self.log.rename(self.log.with_suffix(f".{self.process.pid}.log"))
        self.process = launch(self.config.parent, self.prefix, self.program)
        again = _ready(self.config.parent, self.process, self.tokens)
        self.address, self.admin = again.address, again.admin

    def logged(self) -> str:
        """Everything it has written, also before it was started again."""
        return "".join(one.read_text() for one in sorted(self.log.parent.glob("router*.log"), key=_age))

    def stop(self) -> int:
        """The same, blocking."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(END_S)


def write_config(
    directory: Path,
    cluster: DevCluster,
    *,
    mode: str = "promote",
    window_s: float = 10.0,
    grace_s: float = 2.0,
    ports: dict[str, int] | None = None,
    edit: Edit | None = None,
) -> dict[str, str]:
    """Write pointsman.yaml and its secrets for a cluster; returns the tenants' tokens.

    ports overrides endpoints' (for a proxy in between); edit changes whatever else before it is written.
    """
    tokens = {name: f"token-of-{name}-in-tests" for name in TENANTS}
    secrets = {"admin.token": ADMIN_TOKEN, "control.password": cluster.control_password}
    secrets |= {f"{name}.password": password for name, password in TENANTS.items()}
    secrets |= {f"{name}.token": token for name, token in tokens.items()}
    for name, secret in secrets.items():
        (directory / name).write_text(secret)
    endpoints = {one.name: endpoint((ports or {}).get(one.name, one.port)) for one in cluster.endpoints()}
    config: Config = {
        "server": {
            "listen": "127.0.0.1:0",
            "admin_listen": "127.0.0.1:0",
            "metrics_listen": f"127.0.0.1:{free_port()}",
            "grace_s": grace_s,
            "watch_s": 0,  # the tests say when; those of the watch turn it on
        },
        "admin": {"tokens": ["file:admin.token"]},
        "log": {"level": "info", "format": "json"},
        "clusters": {
            "main": {
                "mode": mode,
                "control": {"user": "pointsman_control", "password": "file:control.password"},
                "hold": {"window_s": window_s},
                "failover": {"min_gap_s": 1},
                "endpoints": endpoints,
            }
        },
        "tenants": {name: tenant(name) for name in TENANTS},
    }
    if edit is not None:
        edit(config)
    (directory / "pointsman.yaml").write_text(yaml.safe_dump(config))
    return tokens


def endpoint(port: int, host: str = "127.0.0.1", **more: Any) -> Config:
    """An endpoint's section."""
    return {"host": host, "port": port, "tls": {"mode": "disable"}, **more}


def tenant(name: str, **more: Any) -> Config:
    """A tenant's section."""
    login = {"user": name, "password": f"file:{name}.password"}
    return {"cluster": "main", "database": name, "login": login, "tokens": [f"file:{name}.token"], **more}


@contextmanager
def started_router(
    cluster: DevCluster, *, prefix: tuple[str, ...] = (), program: tuple[str, ...] = SERVE, **options: Any
) -> Iterator[RunningRouter]:
    """Start `serve` for a cluster and stop it afterwards, whatever happens. Blocks; for fixtures of a session.

    prefix: words before the command, such as `ip netns exec NAME`. program: what Python runs instead of SERVE.
    """
    with tempfile.TemporaryDirectory(prefix="pointsman-router-") as name:
        directory = Path(name)
        tokens = write_config(directory, cluster, **options)
        process = launch(directory, prefix, program)
        router: RunningRouter | None = None
        try:
            router = _ready(directory, process, tokens)
            router.prefix, router.program = prefix, program
            yield router
        finally:
            _end(router.process if router is not None else process)


@asynccontextmanager
async def running_router(cluster: DevCluster, **options: Any) -> AsyncIterator[RunningRouter]:
    """The same for one test, beside its event loop."""
    stack = contextlib.ExitStack()
    try:
        yield await asyncio.to_thread(stack.enter_context, started_router(cluster, **options))
    finally:
        await asyncio.to_thread(stack.close)


def launch(
    directory: Path, prefix: tuple[str, ...] = (), program: tuple[str, ...] = SERVE
) -> subprocess.Popen[bytes]:
    """Start `serve` with directory/pointsman.yaml; it writes to router.log beside it."""
    with (directory / "router.log").open("wb") as sink:
        command = [*prefix, sys.executable, *program, str(directory / "pointsman.yaml")]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink)


def _age(path: Path) -> float:
    return path.stat().st_mtime


def _ready(directory: Path, process: subprocess.Popen[bytes], tokens: dict[str, str]) -> RunningRouter:
    log, config = directory / "router.log", directory / "pointsman.yaml"
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        found = re.search(r"serves callers on ([\w.:]+), operators on ([\w.:]+)", log.read_text())
        if found:
            metrics = yaml.safe_load(config.read_text())["server"]["metrics_listen"]
            return RunningRouter(found[1], found[2], metrics, process, log, config, tokens)
        time.sleep(0.02)
    raise AssertionError(f"the router did not start:\n{log.read_text()}")


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()


async def health_of(address: str) -> int:
    """The status that the standard health service tells."""
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    async with grpc.aio.insecure_channel(address) as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=2)
        return int(answer.status)
