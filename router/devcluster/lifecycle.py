"""Founding a new cluster, starting an existing one, stopping it: the order of the steps over all servers."""

from concurrent.futures import ThreadPoolExecutor

import psycopg
from psycopg import sql

from router.devcluster import replication, sql_script
from router.devcluster.errors import DataRootError
from router.devcluster.nodes import Nodes
from router.devcluster.rejoining import attach, copy
from router.devcluster.server import Server
from router.devcluster.settings import HBA, REPLICATION_ROLE

CONTROL_ROLE = "pointsman_control"


def found(nodes: Nodes) -> None:
    """Make the first server, its roles, and copies of it as standbys; ends with the quorum complete."""
    primary, *standbys = nodes.servers.values()
    replication.initialise(primary, nodes.launch)
    (primary.data_dir / "pg_hba.conf").write_text(HBA, encoding="utf-8")
    nodes.configure_founder(primary)
    primary.start()
    _create_roles(nodes, primary)
    replication.ensure_slots(primary, nodes.others(primary))
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda standby: copy(nodes, standby, primary), standbys))
    nodes.expect_quorum(primary)
    nodes.wait_quorum(primary)


def start_all(nodes: Nodes) -> Server:
    """Start all servers, none of which runs, around the one whose log is on the highest timeline; returns that."""
    candidates = [server for server in nodes.servers.values() if replication.was_primary_on_disk(server)]
    if not candidates:
        raise DataRootError(
            f"none of the servers in {nodes.launch.data_root} was a primary when it stopped; remove the file "
            "standby.signal from the one to begin with, or remove the whole directory to begin anew"
        )
    last = nodes.state.last_primary
    primary = max(candidates, key=lambda s: (replication.timeline_on_disk(s), s.name == last))
    nodes.configure_primary(primary)
    primary.start()
    nodes.remember_primary(primary.name)
    replication.ensure_slots(primary, nodes.others(primary))
    standbys = [server for server in nodes.servers.values() if server is not primary]
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda standby: attach(nodes, standby, primary), standbys))
    nodes.wait_quorum(primary)
    return primary


def stop_all(nodes: Nodes) -> None:
    """Ask all to shut down, the primary last, and wait for their end."""
    for server in sorted(nodes.servers.values(), key=lambda s: s.name == nodes.state.last_primary):
        server.request_stop()
    for server in nodes.servers.values():
        server.stop()


def _create_roles(nodes: Nodes, primary: Server) -> None:
    """The replication role, and from the packaged SQL the router's control role."""
    with primary.connect() as connection:
        secret = sql_script.verifier(connection, CONTROL_ROLE, nodes.state.control_password)
        values = {"control_role": CONTROL_ROLE, "control_password": secret}
        _create_replication_role(connection, nodes.state.replication_password)
        sql_script.run_script(connection, sql_script.script("roles.sql"), values)
        sql_script.run_script(connection, sql_script.script("hardening.sql"))


def _create_replication_role(connection: "psycopg.Connection[tuple[object, ...]]", password: str) -> None:
    statement = sql.SQL("CREATE ROLE {} LOGIN REPLICATION PASSWORD {}")
    secret = sql_script.verifier(connection, REPLICATION_ROLE, password)
    connection.execute(statement.format(sql.Identifier(REPLICATION_ROLE), sql.Literal(secret)))
