"""`pointsman tenant init` and `check`: what is made holds, may be made again, and what is missing is told."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from router import tenant_setup
from router.devcluster import DevCluster, find_binaries
from router.model.identity import ClusterName, EndpointName, TenantName
from router.model.topology import Cluster, Endpoint, IsolationMode, Login, Secret, Tenant, Topology
from tests.support.dev_cluster import DEFAULT_MAJOR, MakeCluster, on_every_major

pytestmark = pytest.mark.pg

MAIN = ClusterName("main")
STATEMENTS = {"mine": "select * from notes"}


def tenant(name: str, login: str, database: str, isolation: IsolationMode, role: str = "") -> Tenant:
    statements = STATEMENTS if isolation is IsolationMode.REGISTERED else {}
    return Tenant(
        TenantName(name), MAIN, database, Login(login, Secret("pass'word")),
        isolation=isolation, role=role, statements=statements,
    )  # fmt: skip


OWN = tenant("o'wn", "own_app", "own", IsolationMode.DATABASE)
LEFT = tenant("left", "left_app", "halves", IsolationMode.SCHEMA)
RIGHT = tenant("right", "right_app", "halves", IsolationMode.SCHEMA)
ROLE_A = tenant("role-a", "roles_app", "rows", IsolationMode.REGISTERED, "rows_a")
ROLE_B = tenant("role-b", "roles_app", "rows", IsolationMode.REGISTERED, "rows_b")
ROW_A = tenant("row-a", "rows_app", "rows", IsolationMode.REGISTERED)
EVERYONE = (OWN, LEFT, RIGHT, ROLE_A, ROLE_B, ROW_A)


def topology_of(pg: DevCluster) -> Topology:
    server = pg.primary()
    endpoint = Endpoint(EndpointName(server.name), MAIN, "127.0.0.1", server.port)
    cluster = Cluster(MAIN, (endpoint,), Login("pointsman_control", Secret(pg.control_password)))
    return Topology({MAIN: cluster}, {one.name: one for one in EVERYONE})


def problems(pg: DevCluster, one: Tenant) -> dict[str, str]:
    found = tenant_setup.check(pg.primary().superuser_dsn, topology_of(pg), one)
    assert len(found) >= 10
    return {finding.what: finding.problem for finding in found if finding.problem}


@on_every_major
def test_every_mode_is_made_twice_and_found_whole_on_every_version(make_cluster: MakeCluster, pg_major: int):
    pg = make_cluster(replicas=0, major=pg_major, tenants=False)
    topology = topology_of(pg)
    dsn = pg.primary().superuser_dsn
    assert set(problems_before(pg)) == {"login"}
    for _ in range(2):
        for one in EVERYONE:
            tenant_setup.init(dsn, topology, one)
    assert {one.name: problems(pg, one) for one in EVERYONE} == {one.name: {} for one in EVERYONE}
    _the_tenants_can_work(pg)
    if pg_major == DEFAULT_MAJOR:
        _each_missing_piece_is_told_and_mended(pg)
        _the_dry_run_is_the_same(pg)


def problems_before(pg: DevCluster) -> list[str]:
    found = tenant_setup.check(pg.primary().superuser_dsn, topology_of(pg), OWN)
    return [finding.what for finding in found if finding.problem and finding.what != "database"]


def connect(pg: DevCluster, one: Tenant, database: str = "") -> psycopg.Connection[tuple[object, ...]]:
    dsn = pg.primary().dsn(one.login.user, "pass'word", database or one.database)
    return psycopg.connect(dsn, autocommit=True, options=f"-c role={one.role}" if one.role else "")


def _the_tenants_can_work(pg: DevCluster) -> None:
    for one in (OWN, LEFT, RIGHT):
        with connect(pg, one) as connection:
            connection.execute("CREATE TABLE notes (owner text)")
            connection.execute("INSERT INTO notes VALUES (%s)", (one.name,))
            assert connection.execute("SELECT owner FROM notes").fetchall() == [(one.name,)]
            assert connection.execute("SELECT tenant FROM pointsman.tenant_marker").fetchall() == [(one.name,)]
    with connect(pg, LEFT) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute("SELECT * FROM \"right\".notes")
    with connect(pg, LEFT) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute("CREATE TABLE public.trap ()")
    with pytest.raises(psycopg.OperationalError, match="permission denied"):
        connect(pg, LEFT, "own")
    with connect(pg, ROLE_A) as connection:
        who = connection.execute("SELECT session_user::text, current_user::text").fetchone()
        assert who == ("roles_app", "rows_a")
        names = {name for (name,) in connection.execute("SELECT tenant FROM pointsman.tenant_marker").fetchall()}
        assert names == {"role-a", "role-b"}
    for one in EVERYONE:
        with connect(pg, one) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("INSERT INTO pointsman.tenant_marker VALUES (session_user, 'other')")


BREAKS = {
    "login's attributes": (OWN, "ALTER ROLE own_app CREATEROLE", "ALTER ROLE own_app NOCREATEROLE"),
    "login may log in": (OWN, "ALTER ROLE own_app NOLOGIN", "ALTER ROLE own_app LOGIN"),
    "login's connection limit": (OWN, "ALTER ROLE own_app CONNECTION LIMIT -1", None),
    "memberships": (OWN, "GRANT pg_read_all_data TO own_app", "REVOKE pg_read_all_data FROM own_app"),
    "other databases are closed": (
        OWN, "GRANT CONNECT ON DATABASE halves TO own_app", "REVOKE CONNECT ON DATABASE halves FROM own_app"),
    "its database is closed": (OWN, "GRANT CONNECT ON DATABASE own TO PUBLIC", None),
    "no extension leads out": (OWN, "CREATE EXTENSION dblink", "DROP EXTENSION dblink"),
    "tenant marker": (OWN, "DELETE FROM pointsman.tenant_marker", None),
    "marker cannot be forged": (OWN, "GRANT INSERT ON pointsman.tenant_marker TO own_app", None),
    "schema public is closed to new objects": (LEFT, "GRANT CREATE ON SCHEMA public TO PUBLIC", None),
    "others' schemas are closed": (
        LEFT, 'GRANT USAGE ON SCHEMA "right" TO PUBLIC', 'REVOKE USAGE ON SCHEMA "right" FROM PUBLIC'),
    "row-level security on all it can read": (
        ROW_A, "CREATE TABLE bare (); GRANT SELECT ON bare TO rows_app", "DROP TABLE bare"),
}  # fmt: skip
"""What is broken by whom, and how it is mended where init does not do it."""


def _each_missing_piece_is_told_and_mended(pg: DevCluster) -> None:
    dsn, topology = pg.primary().superuser_dsn, topology_of(pg)
    for what, (one, broken, mended) in BREAKS.items():
        with pg.primary().connect(one.database) as connection:
            connection.execute(broken.encode())
            told = problems(pg, one)
            if mended is not None:
                connection.execute(mended.encode())
            tenant_setup.init(dsn, topology, one)
        assert what in told, (what, told)
        assert problems(pg, one) == {}, what


def _the_dry_run_is_the_same(pg: DevCluster) -> None:
    psql = find_binaries(major=DEFAULT_MAJOR).program("psql")
    text = tenant_setup.script_of(topology_of(pg), OWN)
    assert "pass'word" not in text
    assert "pass''word" not in text
    if not psql.exists():
        return
    with pg.primary().connect() as connection:
        connection.execute("DROP DATABASE own")
        connection.execute("DROP ROLE own_app")
    argv = [psql, "-X", "-q", pg.primary().superuser_dsn, "-v", "password=pass'word"]
    subprocess.run(argv, input=text.encode(), check=True, capture_output=True, timeout=30)
    assert problems(pg, OWN) == {}
    connect(pg, OWN).close()


def test_the_commands(pg_cluster: DevCluster, tmp_path: Path):
    server, standby = pg_cluster.primary(), pg_cluster.servers["n2"]
    config = tmp_path / "pointsman.yaml"
    config.write_text(
        f"""
admin: {{tokens: [env:TOKEN]}}
clusters:
  main:
    control: {{user: pointsman_control}}
    endpoints:
      n2: {{host: 127.0.0.1, port: {standby.port}}}
      n1: {{host: 127.0.0.1, port: {server.port}}}
tenants:
  vandelay: {{cluster: main, database: vandelay, login: {{user: vandelay, password: env:PASSWORD}}, tokens: [env:MINE]}}
"""
    )
    environ = {"TOKEN": "operator-token", "PASSWORD": "secret-of-vandelay", "MINE": "token-of-vandelay"}

    def pointsman(*words: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-c", "from router.cli import main; main()", "tenant", *words, "-c", str(config)]
        superuser = conninfo_to_dict(server.superuser_dsn)
        environment = {**environ, "PGUSER": str(superuser["user"]), "PGPASSWORD": str(superuser["password"])}
        return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False, env=environment)

    dry = pointsman("init", "vandelay", "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert '\\connect "vandelay"' in dry.stdout
    assert "secret-of-vandelay" not in dry.stdout
    before = pointsman("check", "vandelay")
    assert before.returncode == 1
    assert "missing  login: vandelay does not exist" in before.stdout
    assert pointsman("init", "nobody").stderr.startswith(f"pointsman: {config} has no tenant nobody")
    made = pointsman("init", "vandelay")
    assert (made.returncode, made.stdout) == (0, "tenant vandelay is ready: isolation database, database vandelay\n")
    after = pointsman("check", "vandelay", "--dsn", server.superuser_dsn)
    assert (after.returncode, after.stderr) == (0, ""), after.stdout
