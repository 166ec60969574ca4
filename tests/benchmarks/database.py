"""The one PostgreSQL server of a run: a primary without standbys, fsync on, pgbench's tables and a large one."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from router.devcluster import CONTROL_ROLE, DevCluster, Server, find_binaries
from router.devcluster import processes as server_processes
from tests.benchmarks.callers.contract import ROWS_TABLE, SCALE
from tests.benchmarks.starting import BenchmarkFailed

DATABASE = "bench"
PASSWORD = "only-for-this-run"
ROUTER_ROLE = "bench_router"
WORKERS_ROLE = "bench_workers"
WORKERS_CONTROL_ROLE = "bench_workers_control"
"""A second router's own, beside CONTROL_ROLE."""
POOLED_ROLE = "bench_pooled"
STRAIGHT_ROLE = "bench_straight"
ROLES = (ROUTER_ROLE, WORKERS_ROLE, POOLED_ROLE, STRAIGHT_ROLE)
"""Who connects, so that pg_stat_activity tells contenders apart."""
TENANT_ROLES = tuple(f"bench_tenant_{number}" for number in range(50))
"""Logins of the active tenants in the case of many tenants."""

SETTINGS = {
    "max_connections": "400",
    "shared_buffers": "512MB",
    "max_wal_size": "4GB",
    # A checkpoint in one contender's round would be its bad luck.
    "checkpoint_timeout": "1h",
}

_ROWS = """
create unlogged table {table} (
  id bigint not null, n integer not null, label text not null, score double precision not null, at timestamptz
);
insert into {table}
  select i, i % 1000, 'label number ' || i, i * 0.37,
         case when i % 10 > 0 then timestamptz '2026-01-01 00:00:00Z' + i * interval '1.5 seconds' end
    from generate_series(1, {rows}) i;
create index on {table} (id);
"""


@dataclass(frozen=True)
class Database:
    """The running server."""

    server: Server
    version: str
    control_password: str
    pgbench: Path | None
    rows: int
    """Rows of the large table."""
    observer: psycopg.Connection[Any]
    """Kept open: a login in the middle of a round would count as PostgreSQL's work."""

    @property
    def port(self) -> int:
        return self.server.port

    def pids(self) -> list[int]:
        """The postmaster and all its children."""
        return server_processes.all_processes(self.server.marker)

    def connections(self) -> dict[tuple[str, str], int]:
        """Client connections now, by role and application name."""
        asked = (
            "select usename, application_name, count(*) from pg_stat_activity "
            "where backend_type = 'client backend' group by 1, 2"
        )
        return {(user, application): count for user, application, count in self.observer.execute(asked)}


@contextmanager
def running_database(rows: int) -> Iterator[Database]:
    """Make it, and remove it afterwards. Its data lie on a disk, since commits are to cost what they cost."""
    root = Path(tempfile.mkdtemp(prefix="pointsman-bench-"))
    root.chmod(0o755)  # as root, the server runs as another user
    binaries = find_binaries()
    cluster = DevCluster(root, replicas=0, binaries=binaries, settings=SETTINGS, temporary=True)
    with cluster:
        cluster.create_tenant(DATABASE, PASSWORD, connection_limit=300)
        server = cluster.primary()
        with server.connect() as observer:
            database = Database(
                server, binaries.version, cluster.control_password, _pgbench(binaries.bin_dir), rows, observer
            )
            _fill(database)
            yield database


def _pgbench(bin_dir: Path) -> Path | None:
    if (bin_dir / "pgbench").is_file():
        return bin_dir / "pgbench"
    found = shutil.which("pgbench")
    return Path(found) if found else None


def _fill(database: Database) -> None:
    if database.pgbench is None:
        _fill_by_sql(database)
    else:
        owner = database.server.dsn(DATABASE, PASSWORD, DATABASE)
        command = [str(database.pgbench), "-i", "-q", "-s", str(SCALE), owner]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=pg_environment())
        if done.returncode:
            raise BenchmarkFailed(f"pgbench -i ended with status {done.returncode}: {done.stderr.strip()[-500:]}")
    with database.server.connect(DATABASE) as connection:
        for role in (*ROLES, *TENANT_ROLES):
            connection.execute(f"create role {role} login password '{PASSWORD}'")
            connection.execute(f"grant connect, temporary on database {DATABASE} to {role}")
            connection.execute(f"grant usage on schema public to {role}")
        connection.execute(f"create role {WORKERS_CONTROL_ROLE} login password '{database.control_password}'")
        connection.execute(f"grant {CONTROL_ROLE} to {WORKERS_CONTROL_ROLE}")
        # The marker names one tenant with one login; here each contender has a login of its own to the same tables.
        connection.execute("drop table pointsman.tenant_marker")
        connection.execute(_ROWS.format(table=ROWS_TABLE, rows=database.rows))
        everybody = ", ".join((*ROLES, *TENANT_ROLES))
        connection.execute(f"grant select, insert, update, delete on all tables in schema public to {everybody}")
        connection.execute("vacuum analyze")
        connection.execute("checkpoint")


def _fill_by_sql(database: Database) -> None:
    """What `pgbench -i` makes, for a PostgreSQL without pgbench."""
    statements = f"""
        create table pgbench_accounts (aid int primary key, bid int, abalance int, filler char(84));
        create table pgbench_branches (bid int primary key, bbalance int, filler char(88));
        create table pgbench_tellers (tid int primary key, bid int, tbalance int, filler char(84));
        create table pgbench_history (tid int, bid int, aid int, delta int, mtime timestamp, filler char(22));
        insert into pgbench_branches (bid, bbalance) select i, 0 from generate_series(1, {SCALE}) i;
        insert into pgbench_tellers (tid, bid, tbalance)
          select i, (i - 1) / 10 + 1, 0 from generate_series(1, {SCALE * 10}) i;
        insert into pgbench_accounts
          select i, (i - 1) / 100000 + 1, 0, '' from generate_series(1, {SCALE * 100_000}) i;
    """
    with database.server.connect(DATABASE) as connection:
        connection.execute(statements)


def pg_environment() -> dict[str, str]:
    """For PostgreSQL's own programs: nothing of the caller's PG* variables."""
    return {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C", "PGSSLMODE": "disable", "PGGSSENCMODE": "disable"}
