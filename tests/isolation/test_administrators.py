"""What a tenant lays in its own database for whoever administers it: none of it ever runs with a superuser's rights.
And no log learns its password."""

from __future__ import annotations

import contextlib
import itertools
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from router import tenant_setup
from router.devcluster import DevCluster, find_binaries
from router.devcluster.server import Server
from router.devcluster.sql_script import run_script, script, tenant_values
from router.model.identity import ClusterName, EndpointName, TenantName
from router.model.topology import Cluster, Endpoint, Login, Secret, Tenant, Topology
from tests.support.dev_cluster import DEFAULT_MAJOR, MakeCluster, new_cluster

pytestmark = pytest.mark.pg

MAIN = ClusterName("main")
PASSWORD = "canary-of-a-login-5b1d"
SCRIPTS = Path(__file__).parents[2] / "deploy"
_NUMBERS = itertools.count()

_STRIKE = """
CREATE FUNCTION public.strike() RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
  IF (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname OPERATOR(pg_catalog.=) current_user) THEN
    EXECUTE 'ALTER ROLE {me} SUPERUSER';
  END IF;
  RETURN true;
END $$
"""
NAMES = (
    """CREATE FUNCTION public.format(text, text) RETURNS text LANGUAGE sql
       AS $$ SELECT CASE WHEN public.strike() THEN 'ALTER ROLE {me} SUPERUSER' END $$""",
    "CREATE FUNCTION public.format(text, text, text) RETURNS text LANGUAGE sql AS $$ SELECT public.format($1, $2) $$",
    *(
        f"CREATE VIEW public.{name} AS SELECT *, oid AS {key} FROM pg_catalog.{name} WHERE public.strike()"
        for name, key in {
            "pg_namespace": "n", "pg_class": "c", "pg_extension": "e", "pg_language": "l", "pg_database": "d",
            "pg_roles": "r",
        }.items()
    ),
    """CREATE FUNCTION public.yes(name, name) RETURNS boolean LANGUAGE sql
       AS $$ SELECT public.strike() AND $1 OPERATOR(pg_catalog.=) $2 $$""",
    "CREATE OPERATOR public.= (LEFTARG = name, RIGHTARG = name, FUNCTION = public.yes)",
    "CREATE FUNCTION public.pg_get_userbyid(oid) RETURNS name LANGUAGE sql"
    " AS $$ SELECT pg_catalog.pg_get_userbyid($1) WHERE public.strike() $$",
    "CREATE FUNCTION public.to_regclass(text) RETURNS regclass LANGUAGE sql"
    " AS $$ SELECT pg_catalog.to_regclass($1) WHERE public.strike() $$",
)  # fmt: skip
"""Which an administrator's statements use, in a schema of the tenant's."""
PATH = "ALTER DATABASE {me} SET search_path = public, pg_catalog"

SCHEMAS = {
    "a view": (
        "CREATE SCHEMA pointsman",
        "CREATE VIEW pointsman.tenant_marker AS SELECT current_user AS login, ''::text AS tenant WHERE public.strike()",
    ),
    "a trigger": (
        "CREATE SCHEMA pointsman",
        "CREATE TABLE pointsman.tenant_marker (login name, tenant text, PRIMARY KEY (login, tenant))",
        "CREATE FUNCTION public.pull() RETURNS trigger LANGUAGE plpgsql"
        " AS $$ BEGIN PERFORM public.strike(); RETURN NEW; END $$",
        "CREATE TRIGGER t BEFORE INSERT ON pointsman.tenant_marker FOR EACH ROW EXECUTE FUNCTION public.pull()",
    ),
}
"""Made by a tenant that had its database before it was ours."""


@pytest.fixture(scope="module")
def server() -> Iterator[DevCluster]:
    """A server of this file's own, for roles with rights."""
    cluster = new_cluster(replicas=0, tenants=False)
    yield cluster
    cluster.stop()


def tenant(name: str) -> Tenant:
    return Tenant(TenantName(name), MAIN, name, Login(name, Secret(PASSWORD)))


def topology_of(pg: DevCluster, one: Tenant) -> Topology:
    endpoints = tuple(Endpoint(EndpointName(s.name), MAIN, "127.0.0.1", s.port) for s in pg.servers.values())
    return Topology({MAIN: Cluster(MAIN, endpoints, Login("pointsman_control"))}, {one.name: one})


def lay(pg: DevCluster, name: str, *statements: str) -> None:
    """As the tenant, in its database."""
    with psycopg.connect(pg.primary().dsn(name, PASSWORD, name), autocommit=True) as connection:
        for statement in (_STRIKE, *statements):
            connection.execute(statement.replace("{me}", name).encode())


def is_superuser(pg: DevCluster, name: str) -> bool:
    with pg.primary().connect() as connection:
        row = connection.execute("SELECT rolsuper FROM pg_roles WHERE rolname = %s", [name]).fetchone()
        return row != (False,)


def psql(server: Server, database: str, script: str, **values: str) -> subprocess.CompletedProcess[bytes]:
    program = find_binaries(major=DEFAULT_MAJOR).program("psql")
    if not program.exists():
        pytest.skip("no psql beside the server")
    words = [part for key, value in values.items() for part in ("-v", f"{key}={value}")]
    where = server.superuser_dsn.removesuffix("postgres") + database
    argv = [program, "-X", "-q", where, *words, "-f", SCRIPTS / script]
    return subprocess.run(argv, capture_output=True, timeout=30, check=False)


@pytest.mark.parametrize("way", ["init", "check", "dev", "psql", "an option of the DSN"])
def test_no_name_of_a_tenants_own_is_an_administrators(server: DevCluster, way: str):
    name = f"names_{next(_NUMBERS)}"
    one = tenant(name)
    topology, dsn = topology_of(server, one), server.primary().superuser_dsn
    tenant_setup.init(dsn, topology, one)
    lay(server, name, *NAMES, PATH)
    match way:
        case "init":
            tenant_setup.init(dsn, topology, one)
        case "check":
            found = {finding.what: finding.problem for finding in tenant_setup.check(dsn, topology, one)}
            assert not found["schema pointsman"]
            assert not found["tenant marker"]
        case "dev":
            server.create_tenant(name, PASSWORD)
        case "psql":
            assert psql(server.primary(), name, "tenant_database.sql", tenant=name).returncode == 0
        case _:
            tenant_setup.init(f"{dsn}?options=-c%20search_path%3Dpublic%2Cpg_catalog", topology, one)
    assert not is_superuser(server, name)


@pytest.mark.parametrize("what", SCHEMAS)
def test_a_schema_of_our_name_that_the_tenant_has_made_is_not_used(server: DevCluster, what: str):
    name = f"schema_{next(_NUMBERS)}"
    one = tenant(name)
    topology, dsn = topology_of(server, one), server.primary().superuser_dsn
    tenant_setup.init(dsn, topology, one)
    with server.primary().connect(name) as connection:
        connection.execute("DROP SCHEMA pointsman CASCADE")
    lay(server, name, *SCHEMAS[what])
    found = {finding.what: finding.problem for finding in tenant_setup.check(dsn, topology, one)}
    assert "not a superuser's" in found["schema pointsman"]
    assert found["tenant marker"]
    with pytest.raises(psycopg.errors.RaiseException, match="schema pointsman, or a table in it, is not a superuser's"):
        tenant_setup.init(dsn, topology, one)
    assert not is_superuser(server, name)
    with server.primary().connect(name) as connection:
        connection.execute("DROP SCHEMA pointsman CASCADE")
    tenant_setup.init(dsn, topology, one)
    assert not tenant_setup.check(dsn, topology, one)[-3].problem


def test_who_is_no_superuser_makes_and_renews_its_own_schema(server: DevCluster):
    """As where a database is rented."""
    name = f"rented_{next(_NUMBERS)}"
    with server.primary().connect() as connection:
        connection.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{PASSWORD}'".encode())
        connection.execute(f"CREATE ROLE {name}_host LOGIN PASSWORD '{PASSWORD}'".encode())
        connection.execute(f"CREATE DATABASE {name} OWNER {name}_host".encode())
    with psycopg.connect(server.primary().dsn(f"{name}_host", PASSWORD, name), autocommit=True) as connection:
        for _ in range(2):
            run_script(connection, script("tenant_database.sql"), tenant_values(name, ""))
        assert connection.execute("SELECT tenant FROM pointsman.tenant_marker").fetchall() == [(name,)]


def test_no_log_learns_a_password(make_cluster: MakeCluster):
    pg = make_cluster(
        replicas=1, tenants=False, settings={"log_statement": "all", "log_min_duration_statement": "0"}
    )
    one, primary = tenant("quiet"), pg.primary()
    topology = topology_of(pg, one)
    standby = next(server for server in pg.servers.values() if server is not primary)
    tenant_setup.init(primary.superuser_dsn, topology, one)
    with primary.connect() as connection:
        (stored,) = connection.execute("SELECT rolpassword FROM pg_authid WHERE rolname = 'quiet'").fetchone() or ("",)
        assert stored.startswith("SCRAM-SHA-256$")
        position = connection.execute("SELECT pg_current_wal_lsn()::text").fetchone()
    psycopg.connect(primary.dsn("quiet", PASSWORD, "quiet")).close()
    with standby.connect() as connection, contextlib.suppress(psycopg.errors.QueryCanceled):
        connection.execute("SET statement_timeout = '10s'")
        while connection.execute("SELECT pg_last_wal_replay_lsn() < %s::pg_lsn", position).fetchone() == (True,):
            pass
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        tenant_setup.init(standby.superuser_dsn, topology, one)
    for server in (primary, standby):
        text = server.log_path.read_text(errors="replace")
        assert "ALTER ROLE quiet CONNECTION LIMIT" in text or server is standby
        assert PASSWORD not in text
        assert "ALTER ROLE quiet LOGIN" not in text  # with the verifier
    psql(primary, "postgres", "tenant.sql", tenant="quiet", password=PASSWORD)
    psql(standby, "postgres", "tenant.sql", tenant="quiet", password=PASSWORD)
    psql(primary, "postgres", "roles.sql", control_role="watcher", control_password=PASSWORD)
    for server in (primary, standby):
        assert PASSWORD not in server.log_path.read_text(errors="replace")


def test_a_password_that_is_hashed_already_is_stored_as_it_is(server: DevCluster):
    one = tenant("hashed")
    topology, dsn = topology_of(server, one), server.primary().superuser_dsn
    tenant_setup.init(dsn, topology, one)
    question = "SELECT rolpassword FROM pg_authid WHERE rolname = 'hashed'"
    with server.primary().connect() as connection:
        (stored,) = connection.execute(question).fetchone() or ("",)
        given = Tenant(one.name, MAIN, one.database, Login("hashed", Secret(stored)))
        tenant_setup.init(dsn, topology_of(server, given), given)
        assert connection.execute(question).fetchone() == (stored,)
        bare = Tenant(one.name, MAIN, one.database, Login("hashed"))
        tenant_setup.init(dsn, topology_of(server, bare), bare)
        assert connection.execute(question).fetchone() == (None,)
