"""The servers of one cluster together: configuring them, observing them, knowing the primary."""

import secrets
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from router.devcluster import replication
from router.devcluster.cluster_state import ClusterState, NodeState, write_state
from router.devcluster.errors import NoPrimaryError
from router.devcluster.replication import Observation
from router.devcluster.server import Launch, Server, free_port
from router.devcluster.settings import automatic_configuration, conninfo, server_configuration, synchronous_names

STREAMING_TIMEOUT_S = 15.0


class Nodes:
    """The servers by name, with what their configuration is made of."""

    def __init__(self, launch: Launch, state: ClusterState, *, fsync: bool, settings: Mapping[str, str]) -> None:
        self.launch = launch
        self.state = state
        self.servers = {node.name: Server(node.name, node.port, launch) for node in state.nodes}
        self._configuration = server_configuration(launch.binaries.major, fsync=fsync, extra=settings)

    def others(self, server: Server) -> list[str]:
        """Names of all servers but one."""
        return [name for name in self.servers if name != server.name]

    # --- configuring --------------------------------------------------------------------------------------------

    def configure_founder(self, server: Server) -> None:
        """Configure a new cluster's first server: no quorum yet, there is nobody to wait for."""
        self._write_configuration(server, {})
        (server.data_dir / replication.STANDBY_SIGNAL).unlink(missing_ok=True)

    def configure_primary(self, server: Server) -> None:
        """Configure a stopped server to start as the primary."""
        self._write_configuration(server, {"synchronous_standby_names": synchronous_names(self.others(server))})
        (server.data_dir / replication.STANDBY_SIGNAL).unlink(missing_ok=True)

    def configure_standby(self, server: Server, primary: Server) -> None:
        """Configure a stopped server to start as a standby of `primary`.

        The quorum stands in it already: once promoted, by whomever, it acknowledges nothing until another server
        has it too.
        """
        values = {
            "synchronous_standby_names": synchronous_names(self.others(server)),
            "primary_conninfo": self.conninfo(server, primary),
            "primary_slot_name": server.name,
        }
        self._write_configuration(server, values)
        standby_signal = server.data_dir / replication.STANDBY_SIGNAL
        standby_signal.touch()
        self.launch.user.own(standby_signal, 0o600)

    def conninfo(self, standby: Server, primary: Server) -> str:
        """Value of primary_conninfo with which `standby` follows `primary`."""
        return conninfo(name=standby.name, port=primary.port, password=self.state.replication_password)

    def expect_quorum(self, primary: Server) -> None:
        """Have the running primary wait for any one of all the others."""
        names = synchronous_names(self.others(primary))
        with primary.connect() as connection:
            if connection.execute("SHOW synchronous_standby_names").fetchone() == (names,):
                return
        replication.set_parameters(primary, synchronous_standby_names=names)

    def wait_quorum(self, primary: Server) -> None:
        """Wait until every other server counts for the quorum of `primary`."""
        replication.wait_quorum(primary, self.others(primary), STREAMING_TIMEOUT_S)

    def _write_configuration(self, server: Server, own_values: Mapping[str, str]) -> None:
        texts = {
            "postgresql.conf": self._configuration,
            "postgresql.auto.conf": automatic_configuration(own_values),
        }
        for name, text in texts.items():
            path = server.data_dir / name
            path.write_text(text, encoding="utf-8")
            self.launch.user.own(path, 0o600)

    # --- observing ----------------------------------------------------------------------------------------------

    def observe(self) -> dict[str, Observation]:
        """What each answering server says about itself; dead and frozen ones are missing."""
        with ThreadPoolExecutor() as pool:
            answers = list(pool.map(replication.observe, self.servers.values()))
        return {answer.name: answer for answer in answers if answer is not None}

    def primary_among(self, observed: Mapping[str, Observation]) -> Server:
        """The primary according to `observed`: not in recovery, on the highest timeline. NoPrimaryError if none."""
        claims = [(seen.timeline or 0, name) for name, seen in observed.items() if not seen.in_recovery]
        if not claims:
            raise NoPrimaryError("no server accepts writes: " + ", ".join(map(repr, self.servers.values())))
        _, name = max(claims)
        self.remember_primary(name)
        return self.servers[name]

    def remember_primary(self, name: str) -> None:
        """Note who was primary last, for the order of the next start."""
        if self.state.last_primary != name:
            self.state.last_primary = name
            write_state(self.launch.data_root, self.state)


def new_state(major: int, names: list[str]) -> ClusterState:
    """The state of a cluster about to be made: fresh passwords and ports."""
    return ClusterState(
        tag=secrets.token_hex(4),
        major=major,
        superuser_password=secrets.token_urlsafe(24),
        replication_password=secrets.token_urlsafe(24),
        control_password=secrets.token_urlsafe(24),
        nodes=[NodeState(name, free_port()) for name in names],
        last_primary=names[0],
    )
