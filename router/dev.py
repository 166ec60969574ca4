"""`pointsman dev`: a real PostgreSQL primary with two replicas, the router in promote mode, and two demo tenants.

A composition root like app.py, which it uses. Everything lives in one directory: data, logs, secrets, the router's
configuration (a sample to learn from) and dev.json. Servers never outlive this process, however it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from router import app
from router.config import loading, tenant_files
from router.config.problems import ConfigProblems
from router.devcluster import DevCluster, DevClusterError, DevTenant, find_binaries, write_dev_json
from router.devcluster.dev_json import FILE_NAME
from router.model.errors import RouterError
from router.telemetry.log_setup import set_up
from router.telemetry.metrics_server import AddressUnavailable

TENANTS = ("acme", "globex")
HEAL_S = 1.0
"""How often dead servers are looked for and brought back as standbys."""

_CONFIG = """\
# The running development router; made anew at each start of `pointsman dev`.
server:
  listen: 127.0.0.1:{port}
  admin_listen: 127.0.0.1:{admin_port}
  metrics_listen: 127.0.0.1:{metrics_port}
  grace_s: 3
admin:
  tokens: [file:secrets/admin.token]
log: {{level: warning}}
clusters:
  dev:
    mode: promote
    control: {{user: pointsman_control, password: file:secrets/control.password}}
    failover: {{min_gap_s: 5}}
    endpoints:
{endpoints}
tenants_dir: tenants            # a file each, which orders such as `pointsman tenant change` write; they are kept
"""
_ENDPOINT = "      {name}: {{host: {host}, port: {port}, tls: {{mode: disable}}}}"
_TENANT = """\
cluster: dev
database: {database}
login: {{user: {name}, password: file:secrets/{name}.password}}
tokens: [file:secrets/{name}.token]
"""


@dataclass(frozen=True)
class DevOptions:
    """What the command line says. data None: a temporary directory that goes with the process."""

    data: Path | None = None
    pg_bin: Path | None = None
    port: int = 7432
    replicas: int = 2


class PortTaken(Exception):
    """A port that the router needs is not free. str() says which, and the way out."""


class _Secrets:
    """Files under DIR/secrets, made once and kept with the data."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(mode=0o700, exist_ok=True)

    def get(self, name: str, value: str | None = None) -> str:
        path = self._directory / name
        if value is None and path.exists():
            return path.read_text().strip()
        chosen = value or secrets.token_urlsafe(18)
        path.touch(mode=0o600)
        path.write_text(chosen + "\n")
        return chosen


def run(options: DevOptions) -> int:
    """Run until Ctrl-C. Exit code 0 after an orderly end, 1 when something could not be started."""
    started = time.monotonic()
    set_up("warning", "auto")
    temporary = options.data is None
    try:
        _tell("looking for PostgreSQL")
        _check_ports(options.port)
        binaries = find_binaries(options.pg_bin)
        _tell(f"PostgreSQL {binaries.version} ({binaries.source.value}: {binaries.bin_dir})")
        directory = options.data or Path(tempfile.mkdtemp(prefix="pointsman-dev-"))  # the cluster takes it away again
        if temporary:
            directory.chmod(0o755)  # as root the servers run as another user, who must reach it
        cluster = DevCluster(directory, options.replicas, binaries, temporary=temporary)
        with cluster:
            return _serve(cluster, directory, options, started)
    except (DevClusterError, RouterError, AddressUnavailable, ConfigProblems, PortTaken) as error:
        print(f"pointsman dev: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0


def _check_ports(first: int) -> None:
    """PortTaken at once, rather than after the servers have been made; another process may still be quicker."""
    for port, what in zip(range(first, first + 3), ("callers", "operators", "metrics"), strict=True) if first else ():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                why = (error.strerror or str(error)).lower()
                raise PortTaken(
                    f"port {port} (for {what}) cannot be used: {why}\n"
                    f'take any free ports with --port 0 (make run ARGS="--port 0"), or three others with --port N'
                ) from None


def _serve(cluster: DevCluster, directory: Path, options: DevOptions, started: float) -> int:
    names = ", ".join(server.name for server in cluster.servers.values())
    _tell(f"servers {names} run, replication is synchronous (any one of {options.replicas} standbys)")
    kept = _Secrets(directory / "secrets")
    _make_tenants(cluster, kept)
    config = _write_config(cluster, kept, directory, options)
    loaded = loading.load_leniently(config)  # a tenant's file with mistakes is told by `pointsman status`

    async def main() -> None:
        addresses: list[str] = []

        def rewrite() -> None:
            if addresses:  # else the router is not ready, and writes it when it is
                _write_dev_json(cluster, kept, directory, addresses)

        def ready(process: app.Running) -> None:
            addresses[:] = [process.public_address, process.admin_address]
            path = _write_dev_json(cluster, kept, directory, addresses)
            _welcome(cluster, kept, directory, path, addresses, time.monotonic() - started)

        healing = asyncio.create_task(_heal(cluster, rewrite))
        try:
            await app.run(loaded, ready)
        finally:
            try:
                healing.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await healing
            finally:
                # It names processes that are about to end.
                (directory / FILE_NAME).unlink(missing_ok=True)
            _tell("stopping")

    asyncio.run(main())
    return 0


def _make_tenants(cluster: DevCluster, kept: _Secrets) -> None:
    known = {tenant.name for tenant in cluster.tenants}
    for name in TENANTS:
        cluster.create_tenant(name, kept.get(f"{name}.password"))  # also renews what is older than this program
        if name not in known:
            cluster.load_demo(name)


def _write_config(cluster: DevCluster, kept: _Secrets, directory: Path, options: DevOptions) -> Path:
    kept.get("control.password", cluster.control_password)
    kept.get("admin.token")
    for name in TENANTS:
        kept.get(f"{name}.token")
    endpoints = [_ENDPOINT.format(name=one.name, host=one.host, port=one.port) for one in cluster.endpoints()]
    _write_tenants(cluster, directory / "tenants")
    port = options.port
    ports = (port, port + 1, port + 2) if port else (0, 0, 0)
    path = directory / "pointsman.yaml"
    path.write_text(
        _CONFIG.format(
            port=ports[0],
            admin_port=ports[1],
            metrics_port=ports[2],
            endpoints="\n".join(endpoints),
        )
    )
    return path


def _write_tenants(cluster: DevCluster, folder: Path) -> None:
    """A file for each demo tenant that has none: what orders have made of them in earlier runs stays."""
    folder.mkdir(exist_ok=True)
    for one in cluster.tenants:
        path = tenant_files.path_of(folder, one.name)
        if one.name in TENANTS and not path.exists():
            tenant_files.write(folder, one.name, _TENANT.format(name=one.name, database=one.database).encode())


def _write_dev_json(cluster: DevCluster, kept: _Secrets, directory: Path, addresses: list[str]) -> Path:
    tenants = [DevTenant(name, kept.get(f"{name}.token")) for name in TENANTS]
    return write_dev_json(
        directory, router=addresses[0], admin=addresses[1], tenants=tenants, endpoints=cluster.endpoints()
    )


async def _heal(cluster: DevCluster, rewrite: Callable[[], None]) -> None:
    """Bring dead servers back as standbys, for ever; dev.json follows, as their process ids change.

    Survives whatever goes wrong in one look: a server may be killed in the middle of it, and the next look mends that.
    """
    trouble = ""
    while True:
        await asyncio.sleep(HEAL_S)
        try:
            healed = await asyncio.to_thread(cluster.heal)
            for one in healed:
                outcome = one.done if one.succeeded else f"not yet: {one.done}"
                _tell(f"{one.name}: {one.reason.value}; {outcome}")
            if healed:
                rewrite()
            trouble = ""
        except Exception as error:
            if str(error) != trouble:
                trouble = str(error)
                _tell(f"servers were not looked after, the next look is in {HEAL_S:g} s: {trouble or error!r}")



def _welcome(
    cluster: DevCluster, kept: _Secrets, directory: Path, path: Path, addresses: list[str], took: float
) -> None:
    router_address, admin_address = addresses
    primary = cluster.primary()
    command = Path(sys.argv[0])
    pointsman = "pointsman" if command.parent.as_posix() in _path_folders() else str(command)
    print(
        f"""
Pointsman is ready ({took:.1f} s).

  router   {router_address}
  admin    {admin_address}   token {kept.get("admin.token")}
  config   {directory / "pointsman.yaml"}
  details  {path}
"""
        + "".join(f"  tenant   {name:8} token {kept.get(f'{name}.token')}\n" for name in TENANTS)
        + "".join(
            f"  server   {one.name:8} {one.host}:{one.port}  pid {one.pid}"
            f"{'  primary' if one.name == primary.name else ''}\n"
            for one in cluster.endpoints()
        )
        + f"""
Try next, in another terminal:
  {pointsman} sql --dev {directory} "select id, name, balance from accounts limit 3"
  {pointsman} status --dev {directory} --watch
  kill -9 {primary.pid}      # the primary {primary.name}: reads and keyed writes wait for a second, none fails

Ctrl-C stops everything.
""",
        flush=True,
    )


def _path_folders() -> list[str]:
    return os.environ.get("PATH", "").split(os.pathsep)


def _tell(text: str) -> None:
    print(f"pointsman dev: {text}", flush=True)
