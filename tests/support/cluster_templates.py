"""New clusters as copies of a stopped one: half a second each, where making one anew takes more than a second.

The first cluster of a kind is made as an operator's would be; whoever asks a second time pays for a template, which all
later ones are copied from, under new names of processes and new ports. Passwords and system identifiers are the same.
"""

from __future__ import annotations

import atexit
import secrets
import shutil
import subprocess
import tempfile
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from router.devcluster import DevCluster, find_binaries
from router.devcluster.cluster_state import read_state, write_state
from router.devcluster.data_root import DataRoot
from router.devcluster.os_user import server_user
from router.devcluster.server import free_port

TENANTS = {"acme": "acme-secret", "globex": "globex-secret"}
"""Password by name of the tenants that every cluster made here has, with the demo schema and data in each."""

MEMORY = Path("/dev/shm")
MEMORY_NEEDED_BYTES = 2 << 30
"""A cluster takes about 180 MB, and a few may run at once."""


@dataclass(frozen=True)
class Kind:
    """What clusters of one template share."""

    major: int
    replicas: int
    tenants: bool


def new_data_root() -> Path:
    """An empty directory that the servers' user can reach (pytest's tmp_path is closed to it).

    In memory where there is plenty: a cluster is then made in half the time.
    """
    in_memory = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free >= MEMORY_NEEDED_BYTES
    directory = Path(tempfile.mkdtemp(prefix="pointsman-test-", dir=MEMORY if in_memory else None))
    directory.chmod(0o755)
    return directory


class Templates:
    """The stopped clusters of this process, in a directory that goes with it, however it ends."""

    def __init__(self) -> None:
        self._asked: Counter[Kind] = Counter()
        self._made: dict[Kind, Path] = {}
        self._root: DataRoot | None = None
        self._lock = threading.Lock()

    def start(self, kind: Kind, settings: Mapping[str, str] | None) -> DevCluster:
        """A running cluster without fsync in a directory of its own, which goes when it stops."""
        self._asked[kind] += 1
        data = new_data_root()
        made = self._asked[kind] == 1
        if not made:
            self._copy(kind, data)
        cluster = DevCluster(data, kind.replicas, _binaries(kind.major), False, settings=settings, temporary=True)
        if made:
            _make(cluster, kind)
        else:
            cluster.start()
        return cluster

    def _copy(self, kind: Kind, data: Path) -> None:
        subprocess.run(["cp", "-a", f"{self._template(kind)}/.", str(data)], check=True)
        shutil.rmtree(data / "log")
        state = read_state(data)
        assert state is not None
        state.tag = secrets.token_hex(4)
        for node in state.nodes:
            node.port = free_port()
        write_state(data, state)

    def _template(self, kind: Kind) -> Path:
        with self._lock:
            if kind not in self._made:
                path = self._folder() / f"{kind.major}-{kind.replicas}-{kind.tenants}"
                cluster = DevCluster(path, kind.replicas, _binaries(kind.major), False)
                _make(cluster, kind)
                cluster.stop()
                self._made[kind] = path
            return self._made[kind]

    def _folder(self) -> Path:
        if self._root is None:
            self._root = DataRoot(new_data_root(), temporary=True)
            self._root.open(server_user())
            self._root.post_warden(secrets.token_hex(4))
            atexit.register(self._root.close)
        return self._root.path


def _make(cluster: DevCluster, kind: Kind) -> None:
    cluster.create()
    try:
        for name, password in TENANTS.items() if kind.tenants else ():
            cluster.create_tenant(name, password)
            cluster.load_demo(name)
    except BaseException:
        cluster.stop()
        raise


_binaries = cache(lambda major: find_binaries(major=major))
