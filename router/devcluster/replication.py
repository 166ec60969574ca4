"""The replication steps between servers: copy, rewind, attach, observe. Each does one thing; cluster.py orders them."""

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import sql

from router.devcluster.errors import DevClusterError
from router.devcluster.os_user import run_tool
from router.devcluster.server import HOST, SUPERUSER, Launch, Server
from router.devcluster.settings import REPLICATION_ROLE
from router.devcluster.waiting import wait_until

STANDBY_SIGNAL = "standby.signal"

# The timeline must not be read from pg_control: after a promotion that shows the old one until a checkpoint.
_OBSERVE = """
SELECT pg_is_in_recovery(),
       CASE WHEN NOT pg_is_in_recovery()
            THEN ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::integer END,
       CASE WHEN pg_is_in_recovery()
            THEN coalesce(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())
            ELSE pg_current_wal_insert_lsn() END - '0/0'::pg_lsn,
       (SELECT sender_port FROM pg_stat_wal_receiver WHERE status = 'streaming')
"""


@dataclass(frozen=True)
class Observation:
    """What one server says about itself."""

    name: str
    in_recovery: bool
    timeline: int | None
    """Of its own log when it is not in recovery; None on a standby."""
    lsn: int
    """Bytes of log written, or on a standby received."""
    streams_from_port: int | None


def observe(server: Server) -> Observation | None:
    """Ask a server for its state; None when it is dead, frozen or not answering."""
    if not server.is_running or server.is_frozen:
        return None
    return ask(server)


def ask(server: Server) -> Observation | None:
    """The same of a server that somebody else may have started."""
    try:
        with server.connect() as connection:
            row = connection.execute(_OBSERVE).fetchone()
    except psycopg.Error:
        return None
    assert row is not None
    return Observation(server.name, row[0], row[1], int(row[2]), row[3])


def initialise(server: Server, launch: Launch) -> None:
    """initdb: scram passwords, checksums, 4 MB log segments (three servers then need about 100 MB on disk)."""
    _make_empty(server.data_dir, launch)
    password_file = launch.data_root / f".{server.name}-password"
    password_file.touch(mode=0o600)
    try:
        password_file.write_text(launch.superuser_password)
        launch.user.own(password_file, 0o600)
        argv: list[str | Path] = [
            *(launch.binaries.program("initdb"), "-D", server.data_dir, "-U", SUPERUSER),
            *("-A", "scram-sha-256", f"--pwfile={password_file}", "-E", "UTF8", "--locale=C"),
            *("--data-checksums", "--no-sync", "--wal-segsize=4"),
        ]
        run_tool(argv, user=launch.user, cwd=launch.data_root)
    finally:
        password_file.unlink(missing_ok=True)


def copy_from(source: Server, target: Server, launch: Launch, replication_password: str) -> None:
    """pg_basebackup of a running `source` into the emptied directory of `target`."""
    _make_empty(target.data_dir, launch)
    argv: list[str | Path] = [
        *(launch.binaries.program("pg_basebackup"), "-D", target.data_dir),
        *("-X", "stream", "-c", "fast", "--no-sync", "-w"),
        *("-d", f"host={HOST} port={source.port} user={REPLICATION_ROLE} sslmode=disable gssencmode=disable"),
    ]
    run_tool(argv, user=launch.user, cwd=launch.data_root, extra_environment={"PGPASSWORD": replication_password})


def rewind(source: Server, target: Server, launch: Launch) -> None:
    """pg_rewind the stopped `target` to where it can follow `source`; ToolFailedError when it cannot be done."""
    if launch.binaries.major <= 15:
        # Until its first checkpoint a promoted server's pg_control shows the old timeline; pg_rewind up to 15
        # believes it, says "no rewind required", and the old primary comes back diverged.
        with source.connect() as connection:
            connection.execute("CHECKPOINT")
    argv: list[str | Path] = [
        *(launch.binaries.program("pg_rewind"), "-D", target.data_dir, "--no-sync"),
        *("--source-server", f"host={HOST} port={source.port} user={SUPERUSER} dbname=postgres sslmode=disable"),
    ]
    run_tool(argv, user=launch.user, cwd=launch.data_root, extra_environment={"PGPASSWORD": launch.superuser_password})


def ensure_slots(primary: Server, others: Iterable[str]) -> None:
    """Create the replication slots that are missing on a primary; those that exist hold log for their owners."""
    with primary.connect() as connection:
        existing = {row[0] for row in connection.execute("SELECT slot_name FROM pg_replication_slots")}
        for name in sorted(set(others) - existing):
            connection.execute("SELECT pg_create_physical_replication_slot(%s, false)", [name])


def reset_slots(standby: Server, others: Iterable[str]) -> None:
    """Have one empty replication slot for each other server on a standby too.

    So whoever becomes primary has the slots already, and a router that repoints needs no right to create any.
    What a server holds from a time when it was primary itself is dropped: it would keep log for nobody.
    """
    with standby.connect() as connection:
        connection.execute("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE NOT active")
    ensure_slots(standby, others)


def set_parameters(server: Server, **values: str) -> None:
    """ALTER SYSTEM and reload."""
    with server.connect() as connection:
        for name, value in values.items():
            statement = sql.SQL("ALTER SYSTEM SET {} = {}").format(sql.Identifier(name), sql.Literal(value))
            connection.execute(statement)
        connection.execute("SELECT pg_reload_conf()")


def wait_streaming(standby: Server, primary: Server, timeout_s: float) -> None:
    """Wait until `standby` receives the log from `primary`; WaitTimeoutError, or DevClusterError when it ended."""

    def streams() -> bool:
        if not standby.is_running:
            raise DevClusterError(f"server {standby.name} ended; its log ends:\n{standby.log_tail()}")
        with primary.connect() as connection:
            query = "SELECT 1 FROM pg_stat_replication WHERE application_name = %s AND state = 'streaming'"
            return connection.execute(query, [standby.name]).fetchone() is not None

    wait_until(streams, what=f"{standby.name} to stream from {primary.name}", timeout_s=timeout_s, interval_s=0.02)


def wait_quorum(primary: Server, names: Iterable[str], timeout_s: float) -> None:
    """Wait until each of `names` counts as a synchronous standby of `primary`."""
    wanted = set(names)

    def all_count() -> bool:
        with primary.connect() as connection:
            query = "SELECT application_name FROM pg_stat_replication WHERE sync_state = 'quorum'"
            return wanted <= {row[0] for row in connection.execute(query)}

    wait_until(all_count, what=f"the quorum of {primary.name}", timeout_s=timeout_s, interval_s=0.02)


def is_standby_on_disk(server: Server) -> bool:
    """Whether a stopped server will start as a standby; promotion removes the mark."""
    return (server.data_dir / STANDBY_SIGNAL).exists()


def was_primary_on_disk(server: Server) -> bool:
    """Whether a stopped server holds the whole data of a primary: it is neither a standby nor a half-made copy."""
    directory = server.data_dir
    marks = (STANDBY_SIGNAL, "backup_label")
    return (directory / "PG_VERSION").exists() and not any((directory / mark).exists() for mark in marks)


def timeline_on_disk(server: Server) -> int:
    """The highest timeline in the names of a stopped server's log files (pg_control may still show the old one)."""
    wal = server.data_dir / "pg_wal"
    timelines = [int(name[:8], 16) for name in os.listdir(wal) if len(name) == 24 or name.endswith(".history")]
    return max(timelines, default=0)


def _make_empty(directory: Path, launch: Launch) -> None:
    if directory.exists():
        shutil.rmtree(directory)
    directory.mkdir(mode=0o700)
    launch.user.own(directory, 0o700)
