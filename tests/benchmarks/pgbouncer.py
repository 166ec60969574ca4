"""PgBouncer in transaction mode, as Debian packages it."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from router.devcluster.os_user import server_user
from router.devcluster.server import free_port
from tests.benchmarks.database import DATABASE, PASSWORD, POOLED_ROLE, Database
from tests.benchmarks.starting import BenchmarkFailed, PeerMissing, Process, started, tail
from tests.benchmarks.waiting import wait_for_port

_CONFIG = """\
[databases]
{database} = host=127.0.0.1 port={server_port} dbname={database}

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = trust
auth_file = {directory}/users.txt
pool_mode = transaction
default_pool_size = {pool_size}
max_client_conn = 2000
ignore_startup_parameters = extra_float_digits
server_tls_sslmode = disable
log_connections = 0
log_disconnections = 0
log_stats = 0
"""


@dataclass(frozen=True)
class PgBouncer:
    """A running one."""

    port: int
    process: Process


def find_pgbouncer() -> Path:
    """The program. PeerMissing with the way to get it."""
    found = shutil.which("pgbouncer", path="/usr/sbin:/usr/bin:/usr/local/bin:/opt/homebrew/bin")
    if found is None:
        raise PeerMissing("pgbouncer is not installed (apt-get install pgbouncer, dnf install pgbouncer)")
    return Path(found)


def version() -> str:
    """Its version; empty when there is none."""
    try:
        printed = subprocess.run([find_pgbouncer(), "--version"], capture_output=True, text=True, check=False).stdout
    except PeerMissing:
        return ""
    found = re.search(r"PgBouncer ([\d.]+)", printed)
    return found[1] if found else ""


@contextmanager
def running_pgbouncer(database: Database, pool_size: int) -> Iterator[PgBouncer]:
    """Started in front of the server. It refuses to be root, as PostgreSQL does, and so runs as the same user."""
    program, user, port = find_pgbouncer(), server_user(), free_port()
    with tempfile.TemporaryDirectory(prefix="pointsman-pgbouncer-") as name:
        directory = Path(name)
        config = directory / "pgbouncer.ini"
        config.write_text(_CONFIG.format(
            database=DATABASE, server_port=database.port, port=port, directory=directory, pool_size=pool_size
        ))
        (directory / "users.txt").write_text(f'"{POOLED_ROLE}" "{PASSWORD}"\n')
        for path in (directory, config, directory / "users.txt"):
            user.own(path, 0o700)
        log = directory / "pgbouncer.log"
        with started([program, config], log, cwd="/", **user.credentials()) as process:
            if not wait_for_port(port, process):
                raise BenchmarkFailed(f"pgbouncer did not start{tail(log)}")
            yield PgBouncer(port, process)
