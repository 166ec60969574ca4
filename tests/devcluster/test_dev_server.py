"""One server under violence: kill, freeze, crash; and no server outlives its supervisor."""

import gc
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from router.devcluster import ServerStartError, StopMode
from router.devcluster.processes import all_processes, is_stopped, postmasters
from router.devcluster.server import Server
from router.devcluster.waiting import now_s, wait_until
from tests.support.dev_cluster import new_cluster, new_data_root

pytestmark = pytest.mark.pg


@pytest.fixture(scope="module")
def lone_server() -> Iterator[Server]:
    cluster = new_cluster(replicas=0, tenants=False)
    yield cluster.primary()
    cluster.stop()


@pytest.fixture
def server(lone_server: Server) -> Server:
    """A running server, whatever the test before did to it."""
    # A connection attempt that failed is kept by its exception, and the server waits for its end.
    gc.collect()
    lone_server.thaw()
    lone_server.start()
    return lone_server


def shared_memory_segments() -> list[str]:
    return [line.split()[1] for line in Path("/proc/sysvipc/shm").read_text().splitlines()]


def test_kill_ends_every_process_at_once_and_the_data_survives(server):
    with server.connect() as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS kept AS SELECT 1 AS one")
        processes = all_processes(server.marker)
        assert len(processes) > 4
        assert server.pid in processes
        segment = (server.data_dir / "postmaster.pid").read_text().splitlines()[6].split()[1]
        assert segment in shared_memory_segments()
        began = now_s()
        server.kill()
        assert now_s() - began < 1
        assert segment not in shared_memory_segments()
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    assert not server.is_running
    assert all_processes(server.marker) == []
    server.kill()
    server.start()
    with server.connect() as connection:
        assert connection.execute("SELECT one FROM kept").fetchone() == (1,)


def test_a_postmaster_killed_by_someone_else_is_seen_and_started_again(server):
    with server.connect():
        os.kill(server.pid, signal.SIGKILL)
        wait_until(lambda: not server.is_running, what="its end", timeout_s=20)
        server.start()
    assert postmasters(server.marker) == [server.pid]


def test_a_frozen_server_accepts_nothing_and_thaws_unharmed(server):
    with server.connect() as connection:
        server.freeze()
        assert server.is_running
        assert server.is_frozen
        assert all(is_stopped(pid) for pid in all_processes(server.marker))
        answered = threading.Event()
        asking = threading.Thread(target=lambda: (connection.execute("SELECT 1"), answered.set()))
        asking.start()
        assert not answered.wait(0.2)
        server.thaw()
        asking.join(5)
        assert answered.is_set()
    assert not server.is_frozen


def test_a_frozen_postmaster_lets_old_connections_work_and_new_ones_hang(server):
    with server.connect() as connection:
        server.freeze_postmaster()
        assert connection.execute("SELECT 1").fetchone() == (1,)
        with pytest.raises(psycopg.OperationalError):
            server.connect()
        server.thaw()
        server.connect().close()


@pytest.mark.parametrize("mode", StopMode)
def test_a_stop_ends_a_frozen_server_too(server, mode):
    server.freeze()
    server.stop(mode)
    assert not server.is_running
    assert "database system is shut down" in server.log_tail()
    assert all_processes(server.marker) == []
    server.stop(mode)


def fails(connection) -> bool:
    try:
        connection.execute("SELECT 1")
    except psycopg.OperationalError:
        return True
    return False


def test_one_crashed_backend_restarts_the_server_under_the_same_postmaster(server):
    postmaster = server.pid
    with server.connect() as bystander:
        server.crash_one_backend()
        # The postmaster needs an instant to see the crash and to tell the others.
        wait_until(lambda: fails(bystander), what="the end of the other connection", timeout_s=20)
    server.wait_ready(5)
    assert server.pid == postmaster
    assert "terminated by signal 9" in server.log_tail(40)


def test_operations_on_a_dead_server_say_so(server):
    server.kill()
    assert "not running" in repr(server)
    for operation in (server.freeze, server.freeze_postmaster):
        with pytest.raises(ServerStartError, match="n1 is not running"):
            operation()
    server.thaw()
    with pytest.raises(psycopg.OperationalError):
        server.crash_one_backend()


SUPERVISOR = """
import sys
from pathlib import Path
from router.devcluster import DevCluster
cluster = DevCluster(Path(sys.argv[1]), 1, fsync=False, temporary=sys.argv[2] == "temporary")
cluster.create()
print(cluster.servers["n1"].marker.removeprefix("n1"), flush=True)
if sys.argv[3] == "freeze":
    cluster.servers["n2"].freeze()
    print("frozen", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("state", ["freeze", "run"])
def test_no_server_and_no_directory_outlive_a_killed_supervisor(state):
    root = new_data_root()
    supervisor = subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, str(root), "temporary", state],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with supervisor:
        try:
            tag = supervisor.stdout.readline().strip()
            assert tag
            if state == "freeze":
                assert supervisor.stdout.readline().strip() == "frozen"
            assert len(postmasters(tag)) == 2
        finally:
            supervisor.kill()
    wait_until(lambda: not all_processes(tag), what="the servers' end", timeout_s=8)
    wait_until(lambda: not root.exists(), what="the removal of the directory", timeout_s=20)
