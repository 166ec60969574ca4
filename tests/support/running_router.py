"""A router as its own process in front of a development cluster, as an operator would run it."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pointsman

from router.devcluster import DevCluster
from tests.support.dev_cluster import TENANTS

START_S = 15.0
ADMIN_TOKEN = "operator-token-of-the-tests"

_CONFIG = """\
server: {{listen: "127.0.0.1:0", admin_listen: "127.0.0.1:0", metrics_listen: "", grace_s: {grace_s}}}
admin: {{tokens: ["file:admin.token"]}}
log: {{level: info, format: json}}
clusters:
  main:
    mode: {mode}
    control: {{user: pointsman_control, password: "file:control.password"}}
    hold: {{window_s: {window_s}}}
    failover: {{min_gap_s: 1}}
    endpoints:
{endpoints}
tenants:
{tenants}
"""


@dataclass
class RunningRouter:
    """Addresses and process of a router under test."""

    address: str
    admin: str
    process: asyncio.subprocess.Process
    log: Path
    config: Path
    tokens: dict[str, str] = field(default_factory=dict)

    def connect(self, tenant: str = "acme", **kwargs: object) -> pointsman.Client:
        """An SDK client of a tenant."""
        return pointsman.connect(self.address, tenant=tenant, token=self.tokens[tenant], **kwargs)  # type: ignore[arg-type]

    async def terminate(self) -> int:
        """SIGTERM, and wait for the end."""
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
        return await asyncio.wait_for(self.process.wait(), 30)


def write_config(
    directory: Path,
    cluster: DevCluster,
    *,
    mode: str = "promote",
    window_s: float = 10.0,
    grace_s: float = 2.0,
    tenant_extra: str = "",
    ports: dict[str, int] | None = None,
) -> dict[str, str]:
    """Write pointsman.yaml and its secrets for a cluster; returns the tenants' tokens. ports overrides endpoints'."""
    tokens = {name: f"token-of-{name}-in-tests" for name in TENANTS}
    (directory / "admin.token").write_text(ADMIN_TOKEN)
    (directory / "control.password").write_text(cluster.control_password)
    for name, password in TENANTS.items():
        (directory / f"{name}.password").write_text(password)
        (directory / f"{name}.token").write_text(tokens[name])
    endpoints = "\n".join(
        f"      {one.name}: {{host: 127.0.0.1, port: {(ports or {}).get(one.name, one.port)}, tls: {{mode: disable}}}}"
        for one in cluster.endpoints()
    )
    tenants = "\n".join(
        f"  {name}: {{cluster: main, database: {name}, login: {{user: {name}, password: 'file:{name}.password'}}, "
        f"tokens: ['file:{name}.token']{tenant_extra}}}"
        for name in TENANTS
    )
    text = _CONFIG.format(mode=mode, window_s=window_s, grace_s=grace_s, endpoints=endpoints, tenants=tenants)
    (directory / "pointsman.yaml").write_text(text)
    return tokens


@asynccontextmanager
async def running_router(cluster: DevCluster, **options: object) -> AsyncIterator[RunningRouter]:
    """Start `serve` for a cluster and stop it afterwards, whatever happens."""
    with tempfile.TemporaryDirectory(prefix="pointsman-router-") as name:
        directory = Path(name)
        tokens = write_config(directory, cluster, **options)  # type: ignore[arg-type]
        router = await _start(directory, tokens)
        try:
            yield router
        finally:
            if router.process.returncode is None:
                try:
                    await router.terminate()
                except TimeoutError:
                    router.process.kill()
                    await router.process.wait()


async def _start(directory: Path, tokens: dict[str, str]) -> RunningRouter:
    config = directory / "pointsman.yaml"
    log = directory / "router.log"
    with log.open("wb") as sink:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            "import sys; from pathlib import Path; from router.app import serve; sys.exit(serve(Path(sys.argv[1])))",
            str(config),
            stdout=sink,
            stderr=sink,
        )
    deadline = asyncio.get_running_loop().time() + START_S
    while asyncio.get_running_loop().time() < deadline and process.returncode is None:
        found = re.search(r"serves callers on (\S+), operators on (\S+)", log.read_text())
        if found:
            return RunningRouter(found[1], found[2], process, log, config, tokens)
        await asyncio.sleep(0.05)
    if process.returncode is None:
        process.kill()
    raise AssertionError(f"the router did not start:\n{log.read_text()}")
