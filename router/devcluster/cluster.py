"""A PostgreSQL primary and its streaming standbys on this machine, for `pointsman dev` and for tests.

Everything blocks; callers on an event loop use asyncio.to_thread. One lock makes the public methods safe to call
from several threads. Servers never outlive the process that started them, however that process ends (processes.py).
"""

import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from router.devcluster import processes, replication, sql_script
from router.devcluster.binaries import Binaries, find_binaries
from router.devcluster.cluster_state import ClusterState, TenantState, read_state, write_state
from router.devcluster.data_root import DataRoot
from router.devcluster.dev_json import DevEndpoint
from router.devcluster.errors import DataRootError, DevClusterError, NoPrimaryError
from router.devcluster.healing import Healed, Healer
from router.devcluster.lifecycle import found, start_all, stop_all
from router.devcluster.nodes import STREAMING_TIMEOUT_S, Nodes, new_state
from router.devcluster.os_user import server_user
from router.devcluster.rejoining import Rejoined, rejoin
from router.devcluster.replication import Observation
from router.devcluster.server import HOST, Launch, Server, free_port


class DevCluster:
    """One primary and `replicas` standbys, named n1, n2, ... in `data_root`.

    `replicas` counts for a new cluster only; an existing one keeps its size. For tests: `fsync=False`, `settings`
    (added to postgresql.conf), and `temporary`, which removes the directory when the cluster stops.
    """

    def __init__(
        self,
        data_root: Path,
        replicas: int = 2,
        binaries: Binaries | None = None,
        fsync: bool = True,
        *,
        settings: Mapping[str, str] | None = None,
        temporary: bool = False,
    ) -> None:
        self.data_root = data_root.resolve()
        self._replicas = replicas
        self._binaries = binaries
        self._fsync = fsync
        self._settings = dict(settings or {})
        self._user = server_user()
        self._root = DataRoot(self.data_root, temporary=temporary)
        self._nodes: Nodes | None = None
        self._healer = Healer()
        self._lock = threading.RLock()

    def __enter__(self) -> Self:
        self.create_or_start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # --- life ---------------------------------------------------------------------------------------------------

    def create_or_start(self) -> None:
        """Start the cluster found in the data directory, or make one there."""
        state = read_state(self.data_root)
        if state is not None and state.complete:
            self.start()
        else:
            self.create()

    def create(self) -> None:
        """Make a new cluster and leave it running, synchronous. DataRootError when the directory cannot be used."""
        with self._lock, self._opened():
            names = [f"n{number + 1}" for number in range(1 + self._replicas)]
            self._clear_half_made(read_state(self.data_root), names)
            binaries = self._binaries or find_binaries(user=self._user)
            state = new_state(binaries.major, names)
            # Written first: only directories that stand in this file are ever removed.
            write_state(self.data_root, state)
            found(self._assemble(binaries, state))
            state.complete = True
            write_state(self.data_root, state)

    def start(self) -> None:
        """Start an existing cluster with the server that was primary last; the others follow it or are rejoined."""
        with self._lock, self._opened():
            state = read_state(self.data_root)
            if state is None or not state.complete:
                raise DataRootError(f"there is no cluster in {self.data_root}")
            binaries = self._matching_binaries(state.major)
            for node in state.nodes:
                node.port = free_port(node.port)
            start_all(self._assemble(binaries, state))
            write_state(self.data_root, state)

    def stop(self) -> None:
        """Shut all servers down, standbys first, and let go of the data directory. Safe to call twice."""
        with self._lock:
            if self._nodes is not None:
                stop_all(self._nodes)
            self._root.close()

    # --- who is who ---------------------------------------------------------------------------------------------

    @property
    def servers(self) -> dict[str, Server]:
        """All servers by name, dead ones too."""
        return self._started.servers

    def observe(self) -> dict[str, Observation]:
        """What each answering server says about itself; dead and frozen ones are missing."""
        return self._started.observe()

    def primary(self) -> Server:
        """The server that is not in recovery and has the highest timeline, as observed now.

        Raises NoPrimaryError when no answering server accepts writes.
        """
        return self._started.primary_among(self.observe())

    def standbys(self) -> list[Server]:
        """The answering servers in recovery, as observed now."""
        return [self.servers[name] for name, seen in self.observe().items() if seen.in_recovery]

    def endpoints(self) -> list[DevEndpoint]:
        """The servers as dev.json lists them; ids change when a server is started again."""
        return [
            DevEndpoint(s.name, HOST, s.port, s.pid or 0, str(s.data_dir), s.superuser_dsn)
            for s in self.servers.values()
        ]

    # --- moving roles -------------------------------------------------------------------------------------------

    def promote(self, name: str) -> None:
        """Promote one standby and nothing else: its writes wait until another server is repointed to it."""
        with self._lock, self.servers[name].connect() as connection:
            row = connection.execute("SELECT pg_promote(true, 30)").fetchone()
            if row != (True,):
                raise DevClusterError(f"server {name} was not promoted within 30 s")
            self._started.remember_primary(name)

    def repoint(self, name: str, to: str) -> None:
        """Make the running standby `name` follow `to`, without restart, and wait until it streams."""
        with self._lock:
            standby, primary = self.servers[name], self.servers[to]
            source = self._started.conninfo(standby, primary)
            replication.set_parameters(standby, primary_conninfo=source, primary_slot_name=name)
            replication.wait_streaming(standby, primary, STREAMING_TIMEOUT_S)

    def fail_over(self, to: str | None = None) -> Server:
        """Promote `to`, or else the most advanced standby, and repoint the other running standbys to it.

        When no other standby runs, writes are acknowledged without a second copy until one rejoins.
        """
        with self._lock:
            standbys = [seen for seen in self.observe().values() if seen.in_recovery]
            if not standbys:
                raise NoPrimaryError("no standby answers, so none can be promoted")
            chosen = to or max(standbys, key=lambda seen: seen.lsn).name
            others = [seen.name for seen in standbys if seen.name != chosen]
            if not others:
                replication.set_parameters(self.servers[chosen], synchronous_standby_names="")
            self.promote(chosen)
            for other in others:
                self.repoint(other, chosen)
            return self.servers[chosen]

    def rejoin(self, name: str) -> Rejoined:
        """Bring a server back as a standby of the present primary, by pg_rewind or else by a fresh copy."""
        with self._lock:
            primary = self.primary()
            if primary.name == name:
                raise DevClusterError(f"server {name} is the primary; promote another one first")
            back = rejoin(self._started, self.servers[name], primary)
            self._started.expect_quorum(primary)
            return back

    def heal(self) -> list[Healed]:
        """Repair what a failover left behind, see healing.py; to be called once a second, usually does nothing."""
        with self._lock:
            return self._healer.heal(self._started)

    # --- logins -------------------------------------------------------------------------------------------------

    def create_tenant(self, name: str, password: str, connection_limit: int = 50) -> str:
        """Make (or renew) the tenant's login role and its own database; returns the database's name."""
        primary = self.primary()
        with primary.connect() as connection:
            secret = sql_script.verifier(connection, name, password)
            values = sql_script.tenant_values(name, secret, connection_limit=connection_limit)
            sql_script.run_script(connection, sql_script.script("tenant.sql"), values)
        with primary.connect(name) as connection:
            sql_script.run_script(connection, sql_script.script("tenant_database.sql"), values)
        with self._lock:
            state = self._started.state
            state.tenants = [tenant for tenant in state.tenants if tenant.name != name]
            state.tenants.append(TenantState(name, password, name))
            write_state(self.data_root, state)
            return name

    def load_demo(self, tenant: str) -> None:
        """Load the sample schema and data into a tenant's database, as that tenant; safe to repeat."""
        sql_script.run_script_at(self.tenant_dsn(tenant), sql_script.script("demo.sql"))

    def tenant_dsn(self, name: str, server: Server | None = None) -> str:
        """Connection URI of a tenant made by create_tenant, on `server` or else on the primary."""
        tenant = next(tenant for tenant in self.tenants if tenant.name == name)
        return (server or self.primary()).dsn(tenant.name, tenant.password, tenant.database)

    @property
    def tenants(self) -> list[TenantState]:
        """The tenants made so far, in this run or an earlier one."""
        return list(self._started.state.tenants)

    @property
    def control_password(self) -> str:
        """Password of CONTROL_ROLE, with which the router watches and promotes."""
        return self._started.state.control_password

    # --- inside -------------------------------------------------------------------------------------------------

    @property
    def _started(self) -> Nodes:
        if self._nodes is None:
            raise DevClusterError("the cluster was neither created nor started")
        return self._nodes

    @contextmanager
    def _opened(self) -> Iterator[None]:
        """Hold the data directory; undo everything when what follows fails."""
        if self._root.is_open:
            raise DevClusterError("the cluster runs already")
        self._root.open(self._user)
        try:
            yield
        except BaseException:
            self.stop()
            raise

    def _clear_half_made(self, state: ClusterState | None, names: list[str]) -> None:
        """Remove what a creation that was cut off left behind; DataRootError for anything else in the way."""
        if state is not None and state.complete:
            raise DataRootError(f"{self.data_root} holds a cluster already; start it, or choose another directory")
        if state is not None:
            processes.end_all(f".{state.tag}")
            for node in state.nodes:
                shutil.rmtree(self.data_root / node.name, ignore_errors=True)
        for name in names:
            if (self.data_root / name).exists():
                raise DataRootError(f"{self.data_root / name} exists and is none of ours; choose another directory")

    def _assemble(self, binaries: Binaries, state: ClusterState) -> Nodes:
        launch = Launch(binaries, self._user, self.data_root, state.tag, state.superuser_password)
        self._nodes = Nodes(launch, state, fsync=self._fsync, settings=self._settings)
        self._root.post_warden(state.tag)
        return self._nodes

    def _matching_binaries(self, major: int) -> Binaries:
        if self._binaries is None:
            return find_binaries(major=major, user=self._user)
        if self._binaries.major != major:
            raise DataRootError(
                f"{self.data_root} was made by PostgreSQL {major}, and {self._binaries.bin_dir} is "
                f"{self._binaries.major}; name a PostgreSQL {major}, or choose another directory"
            )
        return self._binaries
