"""A development cluster whose servers Patroni manages: one agent a server, who agree by Patroni's own Raft.

Patroni is no dependency of the tests. WORDS in the environment says how to start a Python that has it.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from router.devcluster import DevCluster, DevClusterError, Server, find_binaries, replication
from router.devcluster.cluster_state import read_state
from router.devcluster.os_user import clean_environment
from router.devcluster.replication import Observation
from router.devcluster.server import HOST, SUPERUSER, free_port
from router.devcluster.settings import REPLICATION_ROLE
from tests.support.dev_cluster import DEFAULT_MAJOR, TENANTS, new_data_root

WORDS = "PATRONI_PYTHON"
NEEDS = (
    f"{WORDS} must be the words that start a Python with patroni[raft] and psycopg, which the account that the servers "
    "run as may execute (/opt/patroni/bin/python)"
)
SETTLED_S = 90.0
_AGENT = 'exec 3<&0; "$@" </dev/null & agent=$!; read -r _ <&3; kill $agent; wait $agent'
"""Ends the agent, who ends its server, when our end of its standard input is closed, also by our death."""
DYNAMIC = {
    "ttl": 20,  # Patroni's least
    "loop_wait": 1,
    "retry_timeout": 3,
    "primary_start_timeout": 0,  # a server that has died is replaced, not started again
    "synchronous_mode": True,
    "postgresql": {"use_pg_rewind": True, "use_slots": False, "parameters": {"wal_log_hints": "on"}},
}


class NoPatroni(Exception):
    """It cannot be used here; the words say why."""


@dataclass(frozen=True)
class Ports:
    """Of one agent."""

    rest: int
    raft: int


class PatroniCluster(DevCluster):
    """n1, n2 and n3. Move no role but by kill_primary() and order()."""

    def __init__(self) -> None:
        """NoPatroni. Servers run, managed, once settled() is so."""
        super().__init__(new_data_root(), 2, find_binaries(major=DEFAULT_MAJOR), fsync=False, temporary=True)
        self._words = shlex.split(os.environ.get(WORDS, ""))
        self._agents: dict[str, subprocess.Popen[bytes]] = {}
        self._require()
        self.create()
        for name, password in TENANTS.items():
            self.create_tenant(name, password)
        self._ports = {name: Ports(free_port(), free_port()) for name in self.servers}
        for server in reversed(self.servers.values()):
            server.stop()
        for server in self.servers.values():
            self._start_agent(server)

    def observe(self) -> dict[str, Observation]:
        """As of any cluster; the servers are not our children."""
        with ThreadPoolExecutor() as pool:
            answers = list(pool.map(replication.ask, self.servers.values()))
        return {answer.name: answer for answer in answers if answer is not None}

    def stop(self) -> None:
        """Ends the agents, and with them the servers."""
        for agent in self._agents.values():
            assert agent.stdin is not None
            agent.stdin.close()
        for agent in self._agents.values():
            with suppress(subprocess.TimeoutExpired):
                agent.wait(20)
        super().stop()

    def settled(self) -> str:
        """What is not well in Patroni's own view, or nothing."""
        members = self._members()
        states = sorted(str(one.get("state")) for one in members)
        if states != ["running", "streaming", "streaming"]:
            return f"the members are {', '.join(states) or 'unknown'}"
        roles = [str(one["role"]) for one in members]
        return "" if "leader" in roles and "sync_standby" in roles else f"the roles are {', '.join(roles)}"

    def synchronous(self) -> str:
        """The standby that Patroni would promote."""
        return next((str(one["name"]) for one in self._members() if one["role"] == "sync_standby"), "")

    def order(self, *words: str) -> None:
        """patronictl. DevClusterError when it refuses."""
        command = [*self._words, "-c", "from patroni.ctl import ctl; ctl()", "-c", str(self._file("n1")), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=self._environment())
        if done.returncode:
            raise DevClusterError(f"patronictl {words[0]}: {(done.stdout + done.stderr)[-600:]}")

    def kill_primary(self, server: Server) -> None:
        """kill -9 of the postmaster and its children; the agent lives."""
        pid = int((server.data_dir / "postmaster.pid").read_text().split("\n", 1)[0])
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for one in (pid, *map(int, children)):
            with suppress(ProcessLookupError):
                os.kill(one, signal.SIGKILL)

    @property
    def scope(self) -> str:
        """Patroni's name of the cluster."""
        return self.data_root.name

    # --- inside -------------------------------------------------------------------------------------------------

    def _require(self) -> None:
        if not self._words:
            raise NoPatroni(NEEDS)
        command = [*self._words, "-c", "import patroni.ctl, patroni.dcs.raft, psycopg"]
        try:
            subprocess.run(command, check=True, capture_output=True, cwd="/", **self._user.credentials())
        except (OSError, subprocess.CalledProcessError) as error:
            said = getattr(error, "stderr", b"") or str(error).encode()
            raise NoPatroni(f"{NEEDS}: {said.decode(errors='replace').strip().splitlines()[-1]}") from None

    def _environment(self) -> dict[str, str]:
        assert self._binaries is not None
        return clean_environment(self._binaries.bin_dir)

    def _file(self, name: str) -> Path:
        return self.data_root / f"patroni-{name}" / "patroni.yml"

    def _start_agent(self, server: Server) -> None:
        file = self._file(server.name)
        file.parent.mkdir(mode=0o700)
        file.write_text(yaml.safe_dump(self._configuration(server, file.parent)))
        self._user.own(file.parent, 0o700)
        self._user.own(file, 0o600)
        (server.data_dir / "postgresql.auto.conf").write_text("")  # it would overrule Patroni
        with (file.parent / "log").open("wb") as log:
            self._agents[server.name] = subprocess.Popen(
                ["/bin/sh", "-c", _AGENT, "agent", *self._words, "-m", "patroni", str(file)],
                stdin=subprocess.PIPE, stdout=log, stderr=log, cwd=self.data_root, env=self._environment(),
                process_group=0, **self._user.credentials(),
            )  # fmt: skip

    def _configuration(self, server: Server, directory: Path) -> dict[str, Any]:
        assert self._binaries is not None
        state = read_state(self.data_root)
        assert state is not None
        mine = self._ports[server.name]
        logins = {
            "superuser": {"username": SUPERUSER, "password": state.superuser_password},
            "replication": {"username": REPLICATION_ROLE, "password": state.replication_password},
        }
        return {
            "scope": self.scope,
            "name": server.name,
            "restapi": {"listen": f"{HOST}:{mine.rest}", "connect_address": f"{HOST}:{mine.rest}"},
            "raft": {
                "data_dir": str(directory / "raft"),
                "self_addr": f"{HOST}:{mine.raft}",
                "partner_addrs": [f"{HOST}:{one.raft}" for one in self._ports.values() if one is not mine],
            },
            "bootstrap": {"dcs": DYNAMIC},
            "postgresql": {
                "listen": f"{HOST}:{server.port}",
                "connect_address": f"{HOST}:{server.port}",
                "data_dir": str(server.data_dir),
                "bin_dir": str(self._binaries.bin_dir),
                "pgpass": str(directory / "pgpass"),
                "remove_data_directory_on_rewind_failure": True,
                "authentication": logins,
                "parameters": {"unix_socket_directories": ""},
            },
        }

    def _members(self) -> list[dict[str, Any]]:
        """As one agent that answers sees them."""
        for ports in self._ports.values():
            with suppress(OSError, ValueError, KeyError), urllib.request.urlopen(
                f"http://{HOST}:{ports.rest}/cluster", timeout=1
            ) as answer:
                found: list[dict[str, Any]] = json.load(answer)["members"]
                return found
        return []


def wait_settled(cluster: PatroniCluster, within_s: float = SETTLED_S) -> None:
    """DevClusterError when it does not come to rest. Blocks."""
    until = time.monotonic() + within_s
    while problem := cluster.settled():
        if time.monotonic() > until:
            raise DevClusterError(f"Patroni has not settled within {within_s:g} s: {problem}")
        time.sleep(0.2)
