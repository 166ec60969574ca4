"""One PostgreSQL server process: start, stop, kill, freeze, and connecting to it as its superuser."""

import os
import secrets
import signal
import socket
import subprocess
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg

from router.devcluster import processes
from router.devcluster.binaries import Binaries
from router.devcluster.errors import ServerStartError, ToolFailedError, WaitTimeoutError
from router.devcluster.os_user import OsUser, clean_environment, run_tool
from router.devcluster.waiting import pause, wait_until

HOST = "127.0.0.1"
SUPERUSER = "postgres"
PORTS = range(20_000, 32_000)
READY_INTERVAL_S = 0.03
CONNECT_TIMEOUT_S = 2
"""libpq's shortest; a frozen server accepts the TCP connection and then says nothing."""


class StopMode(Enum):
    """PostgreSQL's three ways to shut down, by the signal that asks for each."""

    SMART = signal.SIGTERM
    FAST = signal.SIGINT
    IMMEDIATE = signal.SIGQUIT


@dataclass(frozen=True)
class Launch:
    """What every server of one cluster shares."""

    binaries: Binaries
    user: OsUser
    data_root: Path
    tag: str
    superuser_password: str


class Server:
    """One server, started and owned by this process. Methods block; one thread at a time."""

    def __init__(self, name: str, port: int, launch: Launch) -> None:
        self.name = name
        self.port = port
        self.data_dir = launch.data_root / name
        self.log_path = launch.data_root / "log" / f"{name}.log"
        self.marker = f"{name}.{launch.tag}"
        self._launch = launch
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    def __repr__(self) -> str:
        state = f"pid={self.pid}" if self.is_running else "not running"
        return f"<Server {self.name} {HOST}:{self.port} {state}>"

    @property
    def pid(self) -> int | None:
        """Process id of the postmaster, None when it was never started here."""
        return self._process.pid if self._process else None

    @property
    def is_running(self) -> bool:
        """Whether the postmaster exists; a frozen one does."""
        return self._process is not None and self._process.poll() is None

    @property
    def is_frozen(self) -> bool:
        """Whether the postmaster is suspended."""
        return self.is_running and processes.is_stopped(self._alive_pid())

    @property
    def superuser_dsn(self) -> str:
        """Connection URI of the superuser, database `postgres`."""
        return self.dsn(SUPERUSER, self._launch.superuser_password, "postgres")

    def dsn(self, user: str, password: str, database: str) -> str:
        """Connection URI for any login."""
        return f"postgresql://{quote(user, '')}:{quote(password, '')}@{HOST}:{self.port}/{quote(database, '')}"

    def connect(self, database: str = "postgres") -> psycopg.Connection[Any]:
        """A new autocommit connection as superuser; psycopg.OperationalError within a few seconds when impossible."""
        dsn = self.dsn(SUPERUSER, self._launch.superuser_password, database)
        return psycopg.connect(dsn, autocommit=True, connect_timeout=CONNECT_TIMEOUT_S, gssencmode="disable")

    def start(self, timeout_s: float = 30.0) -> None:
        """Start the server and wait until it answers; ServerStartError with the end of its log otherwise."""
        self.launch()
        self.wait_ready(timeout_s)

    def launch(self) -> None:
        """Start the process without waiting. Left-over processes of an earlier run in this directory are ended."""
        if self.is_running:
            return
        processes.signal_each(processes.all_processes(self.marker), signal.SIGKILL)
        self.log_path.parent.mkdir(mode=0o700, exist_ok=True)
        with self.log_path.open("ab") as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                [
                    str(self._launch.binaries.program("postgres")),
                    *("-D", str(self.data_dir)),
                    *("-p", str(self.port)),
                    *("-c", f"cluster_name={self.marker}"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._launch.data_root,
                env=clean_environment(self._launch.binaries.bin_dir),
                # Its own group: Ctrl-C at the terminal reaches us, and we decide the order of the shutdown.
                process_group=0,
                **self._launch.user.credentials(),
            )

    def wait_ready(self, timeout_s: float = 30.0) -> None:
        """Wait until a real connection succeeds."""

        def answers() -> bool:
            if not self.is_running:
                raise ServerStartError(f"server {self.name} ended while starting; its log ends:\n{self.log_tail()}")
            try:
                self.connect().close()
            except psycopg.OperationalError:
                return False
            return True

        try:
            wait_until(answers, what="a connection", timeout_s=timeout_s, interval_s=READY_INTERVAL_S)
        except WaitTimeoutError as error:
            message = f"server {self.name} took no connection in {timeout_s:g} s; its log ends:\n{self.log_tail()}"
            raise ServerStartError(message) from error

    def log_tail(self, lines: int = 15) -> str:
        """The last lines written since the last start."""
        with self.log_path.open("rb") as log:
            log.seek(self._log_start)
            return "\n".join(log.read().decode(errors="replace").splitlines()[-lines:])

    def request_stop(self, mode: StopMode = StopMode.FAST) -> None:
        """Ask for a shutdown and return at once; a frozen server is woken up for it."""
        if self._process is not None:
            self._process.send_signal(mode.value)
            self.thaw()

    def stop(self, mode: StopMode = StopMode.FAST, timeout_s: float = 10.0) -> None:
        """Shut down and wait for the end; killed when it takes longer than `timeout_s`. Nothing if not running."""
        self.request_stop(mode)
        if self._process is None:
            return
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """`kill -9` of the postmaster and every child at once; returns when all are gone."""
        if self._process is None:
            return
        # Suspended first, so that it forks no child between our listing and our killing.
        self._process.send_signal(signal.SIGSTOP)
        victims = processes.all_processes(self.marker)
        processes.signal_each(victims, signal.SIGKILL)
        self._process.wait()
        wait_until(
            lambda: not processes.all_processes(self.marker), what="the children's end", timeout_s=5, interval_s=0.002
        )
        self._remove_shared_memory()

    def freeze(self) -> None:
        """Suspend the postmaster and every child: connections stay open, and nothing answers."""
        # The postmaster first, so that it forks nobody who would be missed.
        self.freeze_postmaster()
        self._suspend(processes.all_processes(self.marker))

    def freeze_postmaster(self) -> None:
        """Suspend the postmaster only: existing connections work on, new ones hang."""
        self._suspend([self._alive_pid()])

    def _suspend(self, pids: list[int]) -> None:
        """SIGSTOP, and wait until it has taken effect; a process that ends meanwhile counts."""
        processes.signal_each(pids, signal.SIGSTOP)

        def all_stopped() -> bool:
            running = [pid for pid in processes.all_processes(self.marker) if not processes.is_stopped(pid)]
            return not set(pids) & set(running)

        wait_until(all_stopped, what=f"the suspension of {self.name}", timeout_s=5, interval_s=0.001)

    def thaw(self) -> None:
        """Let every suspended process run on."""
        processes.signal_each(processes.all_processes(self.marker), signal.SIGCONT)

    def crash_one_backend(self) -> int:
        """`kill -9` one client backend, which makes the server restart itself; returns the id of the killed process."""
        with self.connect() as connection:
            pid = connection.info.backend_pid
            os.kill(pid, signal.SIGKILL)
            # Wait until the connection is seen dead: from here on the crash is under way.
            try:
                while True:
                    connection.execute("SELECT 1")
                    pause(0.001)
            except psycopg.OperationalError:
                return pid

    def _remove_shared_memory(self) -> None:
        """Free the System V segment a killed server leaves; the system has 4096, and then no server starts any more.

        Its id stands in line 7 of postmaster.pid. The next start would free it, but after a kill there may be none.
        """
        lock_file = self.data_dir / "postmaster.pid"
        try:
            segment = lock_file.read_text().splitlines()[6].split()[1]
            run_tool([Path("/usr/bin/ipcrm"), "-m", segment], user=self._launch.user, cwd=self._launch.data_root)
        except (OSError, IndexError, ToolFailedError):
            # Nothing was left, or the system has no ipcrm: a few bytes stay until the machine restarts.
            return

    def _alive_pid(self) -> int:
        if self._process is None or self._process.poll() is not None:
            raise ServerStartError(f"server {self.name} is not running")
        return self._process.pid


def free_port(wanted: int | None = None) -> int:
    """`wanted` when it can be bound, otherwise one that can. Another process may still take it first.

    Chosen below the system's range for outgoing connections: there, a client that keeps trying a dead server's
    port is sooner or later given that very port as its own and connects to itself.
    """
    drawn = [PORTS.start + secrets.randbelow(len(PORTS)) for _ in range(50)]
    for port in ([wanted] if wanted else []) + [*drawn, 0]:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise ServerStartError(f"no free port on {HOST}")
