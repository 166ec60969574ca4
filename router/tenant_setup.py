"""Wiring: a tenant of the configuration → its role, database or schema, grants and marker in PostgreSQL, and whether
they are there.

What is made is the SQL of tenant.sql and tenant_database.sql; what is checked is what they promise, and what only an
administrator can see to: closed neighbours, no extension that opens a way out, no right that reads everything.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psycopg

from router.devcluster.sql_script import GEXEC, fill, run_script, script, split, tenant_values, verifier
from router.model.topology import Cluster, IsolationMode, Secret, Tenant, Topology

_PASSWORD = frozenset({"password"})
_SPARE_CONNECTIONS = 2
_WAYS_OUT = ("dblink", "postgres_fdw", "file_fdw", "adminpack")
_READS_ALL = (
    "pg_read_all_data",
    "pg_write_all_data",
    "pg_read_all_settings",
    "pg_read_all_stats",
    "pg_monitor",
    "pg_signal_backend",
    "pg_read_server_files",
    "pg_write_server_files",
    "pg_execute_server_program",
    "pg_maintain",
    "pg_create_subscription",
)


_OWNED = """
SELECT r.rolsuper AND NOT EXISTS (
         SELECT FROM pg_class c JOIN pg_roles o ON o.oid = c.relowner WHERE c.relnamespace = n.oid AND NOT o.rolsuper)
  FROM pg_namespace n JOIN pg_roles r ON r.oid = n.nspowner WHERE n.nspname = 'pointsman'"""
"""Whether the schema and all tables and views in it are superusers'; no row without it."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. problem: what is wrong, and how to mend it; empty: nothing."""

    what: str
    problem: str = ""


def values_of(topology: Topology, tenant: Tenant) -> dict[str, str]:
    """The values of the scripts' variables. The login may open what all its pools may, and two more."""
    sharing = [
        one
        for one in topology.tenants.values()
        if one.cluster == tenant.cluster and one.login.user == tenant.login.user
    ]
    return tenant_values(
        tenant.name,
        tenant.login.password.value if isinstance(tenant.login.password, Secret) else "",
        login=tenant.login.user,
        database=tenant.database,
        role=tenant.role,
        isolation=tenant.isolation.value,
        connection_limit=sum(2 * one.pool.max_size for one in sharing) + _SPARE_CONNECTIONS,
    )


def script_of(topology: Topology, tenant: Tenant) -> str:
    """What init would run, as a script for psql that asks for the password as its variable."""
    values = values_of(topology, tenant)
    lines = [
        f"-- Tenant {tenant.name}, isolation: {tenant.isolation.value}. Run with psql as a superuser on the primary,",
        "-- with -v password=... (an empty one where the login proves itself by a certificate).",
        r"\set ON_ERROR_STOP on",
    ]
    for database, name in (("postgres", "tenant.sql"), (tenant.database, "tenant_database.sql")):
        lines += ["", "\\connect " + _quoted(database)]
        for statement in split(script(name)):
            ends = statement.endswith(GEXEC)
            text = fill(statement.removesuffix(GEXEC).rstrip(), values, keep=_PASSWORD)
            lines.append(f"{text} {GEXEC}" if ends else text)
    return "\n".join(lines) + "\n"


def init(dsn: str, topology: Topology, tenant: Tenant) -> None:
    """Make or renew everything, as a superuser on the primary. psycopg.Error; may be run again after any failure."""
    values = values_of(topology, tenant)
    for database, name in (("postgres", "tenant.sql"), (tenant.database, "tenant_database.sql")):
        with _connected(dsn, database, autocommit=True) as connection:
            secret = verifier(connection, tenant.login.user, values["password"])
            run_script(connection, script(name), {**values, "password": secret})


def check(dsn: str, topology: Topology, tenant: Tenant) -> list[Finding]:
    """Look at everything, and change nothing, as a superuser on any server. psycopg.Error."""
    cluster = topology.clusters[tenant.cluster]
    with _connected(dsn, "postgres") as connection:
        found = list(_check_server(connection, topology, tenant, cluster))
        exists = _one(connection, "SELECT FROM pg_database WHERE datname = %s", tenant.database) is not None
    if not exists:
        return [*found, Finding("database", f"{tenant.database} does not exist: run `pointsman tenant init`")]
    with _connected(dsn, tenant.database) as connection:
        return found + list(_check_database(connection, tenant))


@contextlib.contextmanager
def _connected(dsn: str, database: str, *, autocommit: bool = False) -> Iterator[psycopg.Connection[Any]]:
    """A superuser's connection to a database that may be a tenant's, where it makes functions and views of any name and
    may say in which schemas names are looked up: here they mean PostgreSQL's own. Without autocommit nothing is
    written."""
    with psycopg.connect(dsn, dbname=database, autocommit=autocommit) as connection:
        connection.read_only = not autocommit
        connection.execute("SET search_path = pg_catalog")
        yield connection


def _check_server(
    connection: psycopg.Connection[Any], topology: Topology, tenant: Tenant, cluster: Cluster
) -> Iterator[Finding]:
    login = tenant.login.user
    role = _one(
        connection,
        "SELECT rolsuper, rolcreatedb, rolcreaterole, rolreplication, rolbypassrls, rolcanlogin, rolconnlimit"
        " FROM pg_roles WHERE rolname = %s",
        login,
    )
    if role is None:
        yield Finding("login", f"{login} does not exist: run `pointsman tenant init`")
        return
    names = ("SUPERUSER", "CREATEDB", "CREATEROLE", "REPLICATION", "BYPASSRLS")
    rights = [name for name, given in zip(names, role, strict=False) if given]
    yield Finding("login's attributes", f"ALTER ROLE {_quoted(login)} NO{' NO'.join(rights)}" if rights else "")
    yield Finding("login may log in", "" if role[5] else f"ALTER ROLE {_quoted(login)} LOGIN")
    wanted = int(values_of(topology, tenant)["connection_limit"])
    narrow = 0 <= role[6] < wanted
    limit = f"is {role[6]}, the pools of one router need {wanted}" if narrow else ""
    yield Finding("login's connection limit", "is missing: one tenant could take all" if role[6] < 0 else limit)
    yield from _check_memberships(connection, tenant)
    yield from _check_neighbours(connection, topology, tenant, cluster)
    prepared = _setting(connection, "max_prepared_transactions")
    yield Finding(
        "max_prepared_transactions",
        "" if prepared == "0" else f"is {prepared}: a prepared transaction outlives its session; set it to 0",
    )
    yield from _check_passwords(connection, login)


def _check_memberships(connection: psycopg.Connection[Any], tenant: Tenant) -> Iterator[Finding]:
    login = tenant.login.user
    member = [
        name
        for (name,) in connection.execute(
            "SELECT r.rolname FROM pg_auth_members m JOIN pg_roles r ON r.oid = m.roleid"
            " JOIN pg_roles u ON u.oid = m.member WHERE u.rolname = ANY (%s) ORDER BY 1",
            ([login, tenant.role or login],),
        )
        if name != tenant.role
    ]
    # A login that several registered tenants share takes each one's role.
    shared = tenant.isolation is IsolationMode.REGISTERED
    bad = [name for name in member if name in _READS_ALL or not shared]
    yield Finding(
        "memberships", f"of {', '.join(bad)}: REVOKE {_quoted(bad[0])} FROM {_quoted(login)}" if bad else ""
    )


def _check_neighbours(
    connection: psycopg.Connection[Any], topology: Topology, tenant: Tenant, cluster: Cluster
) -> Iterator[Finding]:
    open_ones = [
        name
        for (name,) in connection.execute(
            "SELECT datname FROM pg_database WHERE datallowconn AND datname <> %s"
            " AND has_database_privilege(%s, datname, 'CONNECT') ORDER BY 1",
            (tenant.database, tenant.login.user),
        )
        if not _own(topology, tenant, name)
    ]
    defaults = {cluster.control_database, "postgres", "template1"}
    way = "run hardening.sql" if set(open_ones) <= defaults else "REVOKE CONNECT, TEMPORARY ON DATABASE ... FROM PUBLIC"
    yield Finding("other databases are closed", f"it may connect to {', '.join(open_ones)}: {way}" if open_ones else "")
    intruders = [
        name
        for (name,) in connection.execute(
            "SELECT rolname FROM pg_roles WHERE rolcanlogin AND NOT rolsuper AND rolname <> %s"
            " AND EXISTS (SELECT FROM pg_database WHERE datname = %s)"
            " AND has_database_privilege(rolname, %s, 'CONNECT') ORDER BY 1",
            (tenant.login.user, tenant.database, tenant.database),
        )
    ]
    if tenant.isolation is IsolationMode.DATABASE:
        yield Finding(
            "its database is closed",
            f"{', '.join(intruders[:5])} may connect: REVOKE CONNECT ON DATABASE {_quoted(tenant.database)} FROM PUBLIC"
            if intruders
            else "",
        )


def _own(topology: Topology, tenant: Tenant, database: str) -> bool:
    """Whether another tenant with this login, which therefore runs registered statements only, has the database."""
    return any(
        one.database == database and one.login.user == tenant.login.user and one.cluster == tenant.cluster
        for one in topology.tenants.values()
    )


def _check_passwords(connection: psycopg.Connection[Any], login: str) -> Iterator[Finding]:
    stored = _one(connection, "SELECT rolpassword FROM pg_authid WHERE rolname = %s", login)
    weak = stored is not None and stored[0] is not None and not stored[0].startswith("SCRAM-SHA-256")
    way = "is not: run `pointsman tenant init`, which stores no other"
    yield Finding("password is kept as SCRAM-SHA-256", way if weak else "")
    trusting = connection.execute(
        "SELECT line_number FROM pg_hba_file_rules WHERE type LIKE 'host%' AND auth_method IN ('trust', 'password',"
        " 'md5') AND NOT 'replication' = ANY (database) ORDER BY 1"
    ).fetchall()
    lines = ", ".join(str(line) for (line,) in trusting)
    yield Finding(
        "pg_hba.conf proves who connects",
        f"line {lines} lets in by trust, password or md5: use scram-sha-256, or cert with hostssl" if lines else "",
    )


def _check_database(connection: psycopg.Connection[Any], tenant: Tenant) -> Iterator[Finding]:
    login = tenant.login.user
    again = "run `pointsman tenant init`"
    owned = _one(connection, _OWNED)
    safe = owned is not None and owned[0]
    yield Finding("schema pointsman", "" if safe else f"is missing, or not a superuser's with all it holds: {again}")
    # A table of the tenant's own making is not read: it may be a view, which acts with the rights of who reads it.
    marked = safe and _one(connection, "SELECT to_regclass('pointsman.tenant_marker') IS NOT NULL") == (True,)
    names: set[str] = set()
    if marked:
        rows = connection.execute("SELECT tenant FROM pointsman.tenant_marker WHERE login::text = %s", (login,))
        names = {name for (name,) in rows}
    yield Finding("tenant marker", "" if tenant.name in names else f"does not name {tenant.name}: {again}")
    forged = marked and _one(
        connection,
        "SELECT has_table_privilege(%s, 'pointsman.tenant_marker', 'INSERT, UPDATE, DELETE, TRUNCATE')"
        " OR has_schema_privilege(%s, 'pointsman', 'CREATE')",
        login,
        login,
    ) == (True,)
    yield Finding("marker cannot be forged", f"the login may write it: {again}" if forged else "")
    yield from _check_ways_out(connection, tenant)
    if tenant.isolation is not IsolationMode.DATABASE:
        yield from _check_shared(connection, tenant)


def _check_ways_out(connection: psycopg.Connection[Any], tenant: Tenant) -> Iterator[Finding]:
    extensions = connection.execute("SELECT extname FROM pg_extension WHERE extname = ANY (%s)", (list(_WAYS_OUT),))
    names = sorted(name for (name,) in extensions)
    yield Finding("no extension leads out", f"DROP EXTENSION {', '.join(names)}" if names else "")
    languages = connection.execute(
        "SELECT lanname FROM pg_language WHERE NOT lanpltrusted AND lanname NOT IN ('internal', 'c')"
    ).fetchall()
    untrusted = ", ".join(sorted(name for (name,) in languages))
    yield Finding("no untrusted language", f"DROP EXTENSION for {untrusted}" if untrusted else "")


def _check_shared(connection: psycopg.Connection[Any], tenant: Tenant) -> Iterator[Finding]:
    login = tenant.login.user
    row = _one(connection, "SELECT has_schema_privilege(%s, 'public', 'CREATE')", login)
    creates = "REVOKE CREATE ON SCHEMA public FROM PUBLIC" if row == (True,) else ""
    yield Finding("schema public is closed to new objects", creates)
    if tenant.isolation is IsolationMode.SCHEMA:
        strangers = connection.execute(
            "SELECT n.nspname FROM pg_namespace n JOIN pg_roles o ON o.oid = n.nspowner"
            " WHERE NOT o.rolsuper AND o.rolname NOT IN (%s, 'pg_database_owner')"
            " AND has_schema_privilege(%s, n.oid, 'USAGE') ORDER BY 1",
            (login, login),
        ).fetchall()
        names = ", ".join(name for (name,) in strangers)
        yield Finding("others' schemas are closed", f"it may use {names}: REVOKE USAGE" if names else "")
        return
    bare = connection.execute(
        "SELECT c.oid::regclass::text FROM pg_class c WHERE c.relkind IN ('r', 'p') AND c.relnamespace NOT IN"
        " ('pg_catalog'::regnamespace, 'information_schema'::regnamespace, 'pointsman'::regnamespace)"
        " AND has_table_privilege(%s, c.oid, 'SELECT') AND NOT (c.relrowsecurity"
        " AND (c.relowner <> %s::regrole OR c.relforcerowsecurity)) ORDER BY 1",
        (tenant.role or login, _quoted(tenant.role or login)),
    ).fetchall()
    if not tenant.role:
        names = ", ".join(name for (name,) in bare[:5])
        yield Finding(
            "row-level security on all it can read",
            f"{names} without it (FORCE it where the login owns the table)" if names else "",
        )


def _setting(connection: psycopg.Connection[Any], name: str) -> str:
    row = _one(connection, "SELECT current_setting(%s)", name)
    assert row is not None
    return str(row[0])


def _one(connection: psycopg.Connection[Any], statement: str, *values: object) -> tuple[Any, ...] | None:
    return connection.execute(statement.encode(), values).fetchone()


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
