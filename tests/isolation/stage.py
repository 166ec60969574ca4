"""A server, and a router with tenants of every isolation mode on it; each tenant has a secret."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pointsman

from router import tenant_setup
from router.config.loading import load
from router.devcluster import DevCluster
from tests.support.dev_cluster import new_cluster
from tests.support.running_router import RunningRouter, started_router

STATEMENTS = {
    "mine": "SELECT secret FROM vault",
    "who": "SELECT $1::text AS nonce, owner, current_user::text, current_database()::text FROM vault",
    "bump": "UPDATE vault SET n = n + 1"
    " RETURNING $1::text AS nonce, owner, current_user::text, current_database()::text",
    "slow": "SELECT $1::text AS nonce, owner, current_user::text, current_database()::text, pg_sleep($2) FROM vault",
}
"""Run by name by registered tenants, by text by the others."""

_TABLE = """
CREATE TABLE IF NOT EXISTS {table} (owner text NOT NULL, secret text NOT NULL, n int NOT NULL DEFAULT 0);
CREATE SEQUENCE IF NOT EXISTS {sequence};
"""


@dataclass(frozen=True)
class Place:
    """A tenant: where it lives, and what it should see there."""

    name: str
    isolation: str
    login: str
    database: str
    role: str = ""
    connections: int = 1
    """Of its pool; with one, whoever comes next gets the connection of who was before."""

    @property
    def user(self) -> str:
        """current_user of its connections."""
        return self.role or self.login

    @property
    def secret(self) -> str:
        """In its table; and its login's password."""
        return f"canary-of-{self.name}"

    @property
    def table(self) -> str:
        """Its table, for an administrator in its database."""
        return f'"{self.name}".vault' if self.isolation == "schema" else "public.vault"

    def section(self) -> dict[str, Any]:
        """Of the configuration."""
        section: dict[str, Any] = {
            "cluster": "main",
            "database": self.database,
            "isolation": self.isolation,
            "login": {"user": self.login, "password": f"file:{self.login}.secret"},
            "tokens": [f"file:{self.name}.secret-token"],
            "pool": {"max_size": self.connections, "require_marker": True},
        }
        if self.isolation == "registered":
            section["statements"] = STATEMENTS
        if self.role:
            section["role"] = self.role
        return section


def database(name: str) -> Place:
    """A tenant with a database of its own."""
    return Place(name, "database", f"{name}_app", f"{name}_db")


def schema(name: str) -> Place:
    """A tenant with a schema in a shared database."""
    return Place(name, "schema", f"{name}_app", "halves")


def rows(name: str) -> Place:
    """A registered tenant whose rows a policy tells apart by its name."""
    return Place(name, "registered", "rows_app", "rows")


def taken(name: str) -> Place:
    """A registered tenant whose rows a policy tells apart by its role."""
    return Place(name, "registered", "roles_app", "roles", f"{name}_rows")


@dataclass
class Stage:
    """What the tests play on."""

    cluster: DevCluster
    router: RunningRouter
    places: Mapping[str, Place]

    def connect(self, name: str, **options: Any) -> pointsman.Client:
        """A client of a tenant."""
        return pointsman.connect(self.router.address, tenant=name, token=f"token-of-{name}-in-tests", **options)

    def ask(self, name: str, statement: str) -> list[tuple[Any, ...]]:
        """Asked by an administrator in a tenant's database."""
        with self.cluster.primary().connect(self.places[name].database) as connection:
            return connection.execute(statement.encode()).fetchall()


@contextlib.contextmanager
def stage(*places: Place, **options: Any) -> Iterator[Stage]:
    """Everything, made by the same means as an operator's: `tenant init` of a configuration."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pointsman-isolation-")))
        cluster = new_cluster(replicas=0, tenants=False, settings={"max_connections": "150"})
        stack.callback(cluster.stop)

        def edit(config: dict[str, Any]) -> None:
            config["tenants"] = {place.name: _absolute(place.section(), folder) for place in places}
            for server in config["clusters"]["main"]["endpoints"].values():
                server["max_connections"] = 120

        for place in places:
            (folder / f"{place.login}.secret").write_text(f"canary-of-{place.login}")
            (folder / f"{place.name}.secret-token").write_text(f"token-of-{place.name}-in-tests")
        router = stack.enter_context(started_router(cluster, mode="follow", edit=edit, **options))
        _furnish(cluster, router.config, places)
        yield Stage(cluster, router, {place.name: place for place in places})


def _absolute(section: dict[str, Any], folder: Path) -> dict[str, Any]:
    section["login"]["password"] = section["login"]["password"].replace("file:", f"file:{folder}/")
    section["tokens"] = [token.replace("file:", f"file:{folder}/") for token in section["tokens"]]
    return section


def _furnish(cluster: DevCluster, path: Path, places: tuple[Place, ...]) -> None:
    topology = load(path).topology
    for tenant in topology.tenants.values():
        tenant_setup.init(cluster.primary().superuser_dsn, topology, tenant)
    for place in places:
        with cluster.primary().connect(place.database) as connection:
            owner = place.login if place.isolation != "registered" else "postgres"
            sequence = place.table.replace("vault", "own_seq")
            connection.execute(_TABLE.format(table=place.table, sequence=sequence).encode())
            if owner != "postgres":
                connection.execute(f'ALTER TABLE {place.table} OWNER TO "{owner}"'.encode())
                connection.execute(f'ALTER SEQUENCE {sequence} OWNER TO "{owner}"'.encode())
            connection.execute(f"INSERT INTO {place.table} VALUES (%s, %s)".encode(), (place.name, place.secret))
            if place.isolation == "registered":
                by_name, by_role = "owner = current_setting('pointsman.tenant')", "owner || '_rows' = current_user"
                mine = by_role if place.role else by_name
                connection.execute(f'GRANT SELECT, UPDATE ON {place.table} TO "{place.user}"'.encode())
                connection.execute(f"ALTER TABLE {place.table} ENABLE ROW LEVEL SECURITY".encode())
                connection.execute(f"DROP POLICY IF EXISTS mine ON {place.table}".encode())
                connection.execute(f"CREATE POLICY mine ON {place.table} USING ({mine})".encode())
