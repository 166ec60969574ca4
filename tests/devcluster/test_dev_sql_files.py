"""The SQL files: one source for `pointsman dev` and for administrators, and what the roles may do."""

import subprocess
from pathlib import Path

import psycopg
import pytest

from router.devcluster import CONTROL_ROLE, find_binaries
from router.devcluster.sql_script import run_script, script, split
from tests.support.dev_cluster import DEFAULT_MAJOR, TENANTS

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["roles.sql", "hardening.sql", "tenant.sql", "tenant_database.sql"])
def test_deploy_holds_the_packaged_file(name):
    assert (REPOSITORY / "deploy" / name).read_text(encoding="utf-8") == script(name)


def test_statements_are_split_at_line_ends_and_not_in_dollar_quotes():
    text = "-- comment; not this\n\\set x 1\nSELECT 1;\nDO $$\nBEGIN;\nEND $$;\nSELECT 'a;b',\n 2 \\gexec\n"
    assert list(split(text)) == ["SELECT 1;", "DO $$\nBEGIN;\nEND $$;", "SELECT 'a;b',\n 2 \\gexec"]


def test_an_unfinished_statement_is_an_error():
    with pytest.raises(ValueError, match="has no end: SELECT 1"):
        list(split("SELECT 1\n"))


@pytest.mark.pg
def test_an_administrator_runs_the_same_files_with_psql(pg_cluster):
    psql = find_binaries(major=DEFAULT_MAJOR).program("psql")
    if not psql.exists():
        pytest.skip("no psql beside the server")
    dsn = pg_cluster.primary().superuser_dsn
    runs = {
        "roles.sql": {"control_role": "watcher", "control_password": "it's secret"},
        "tenant.sql": {"tenant": "o'neil", "password": "a;b", "connection_limit": "7"},
    }
    for _ in range(2):
        for name, values in runs.items():
            variables = [part for key, value in values.items() for part in ("-v", f"{key}={value}")]
            argv = [psql, "-X", "-q", dsn, *variables, "-f", REPOSITORY / "deploy" / name]
            subprocess.run(argv, check=True, capture_output=True, timeout=20)
    with psycopg.connect(pg_cluster.primary().dsn("o'neil", "a;b", "o'neil")) as connection:
        limit = connection.execute("SELECT rolconnlimit FROM pg_roles WHERE rolname = current_user").fetchone()
        assert limit == (7,)
    psycopg.connect(pg_cluster.primary().dsn("watcher", "it's secret", "postgres")).close()


@pytest.mark.pg
def test_variables_are_quoted_and_casts_are_left_alone(pg_cluster):
    with pg_cluster.primary().connect() as connection:
        run_script(
            connection,
            'CREATE TEMPORARY TABLE :"table" (v text);\nINSERT INTO :"table" VALUES (:\'value\'::text);\n'
            "SELECT format('INSERT INTO %I VALUES (%L)', :'table', 'made') \\gexec\n",
            {"table": 'o"dd', "value": "it's; --"},
        )
        rows = connection.execute('SELECT v FROM "o""dd"').fetchall()
    assert rows == [("it's; --",), ("made",)]


@pytest.mark.pg
def test_a_missing_value_is_an_error(pg_cluster):
    with pg_cluster.primary().connect() as connection, pytest.raises(KeyError):
        run_script(connection, "SELECT :'nobody';\n")


@pytest.mark.pg
def test_roles_may_be_created_again(pg_cluster_each):
    with pg_cluster_each.primary().connect() as connection:
        values = {"control_role": CONTROL_ROLE, "control_password": pg_cluster_each.control_password}
        run_script(connection, script("roles.sql"), values)
    assert pg_cluster_each.create_tenant("acme", TENANTS["acme"]) == "acme"


@pytest.mark.pg
def test_the_control_role_watches_and_promotes_but_reads_no_data(pg_cluster_each):
    standby = pg_cluster_each.servers["n2"]
    dsn = standby.dsn(CONTROL_ROLE, pg_cluster_each.control_password, "postgres")
    with psycopg.connect(dsn, autocommit=True) as connection:
        assert "application_name=n2" in connection.execute("SHOW primary_conninfo").fetchone()[0]
        before = connection.execute("SHOW synchronous_standby_names").fetchone()[0]
        for parameter in ("primary_conninfo", "synchronous_standby_names", "default_transaction_read_only"):
            query = "SELECT has_parameter_privilege(%s, 'ALTER SYSTEM')"
            assert connection.execute(query, [parameter]).fetchone()[0]
        connection.execute("ALTER SYSTEM SET synchronous_standby_names = ''")
        connection.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{before}'")
        assert connection.execute("SELECT pg_reload_conf()").fetchone()[0]
        query = "SELECT has_function_privilege('pg_promote(boolean, integer)', 'EXECUTE')"
        assert connection.execute(query).fetchone()[0]
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("ALTER SYSTEM SET archive_command = 'true'")
    with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
        psycopg.connect(standby.dsn(CONTROL_ROLE, pg_cluster_each.control_password, "acme"))


@pytest.mark.pg
@pytest.mark.parametrize(
    "statement",
    [
        "ALTER SYSTEM SET archive_command = 'true'",
        "ALTER SYSTEM SET primary_slot_name = 'n9'",
        "ALTER SYSTEM SET shared_preload_libraries = 'x'",
        "ALTER SYSTEM RESET ALL",
        "CREATE ROLE mallory",
        "ALTER ROLE acme PASSWORD 'x'",
        "ALTER ROLE CURRENT_USER SUPERUSER",
        "ALTER ROLE CURRENT_USER REPLICATION",
        "GRANT pg_write_all_data TO CURRENT_USER",
        "SET ROLE postgres",
        "SET SESSION AUTHORIZATION acme",
        "CREATE DATABASE loot",
        "CREATE SCHEMA loot",
        "CREATE TABLE public.loot (id int)",
        "CREATE EXTENSION dblink",
        "COPY (SELECT 1) TO PROGRAM 'cat'",
        "COPY (SELECT 1) TO '/tmp/loot'",
        "SELECT pg_read_file('postgresql.auto.conf')",
        "SELECT pg_ls_dir('.')",
        "SELECT lo_import('/etc/passwd')",
        "SELECT pg_create_physical_replication_slot('loot')",
        "SELECT pg_drop_replication_slot('n2')",
        "SELECT pg_wal_replay_pause()",
        "SELECT pg_switch_wal()",
        "SELECT pg_backup_start('x')",
        "SELECT pg_rotate_logfile()",
        "CHECKPOINT",
        "SELECT rolpassword FROM pg_authid",
        "SET log_statement = 'none'",
        "SET session_replication_role = replica",
    ],
)
def test_the_control_role_can_do_nothing_else(pg_cluster, statement):
    dsn = pg_cluster.primary().dsn(CONTROL_ROLE, pg_cluster.control_password, "postgres")
    with psycopg.connect(dsn, autocommit=True) as connection, pytest.raises(psycopg.Error) as refused:
        connection.execute(statement)
    assert refused.value.sqlstate == "42501", refused.value


@pytest.mark.pg
def test_the_control_role_ends_no_session_of_a_superuser(pg_cluster):
    dsn = pg_cluster.primary().dsn(CONTROL_ROLE, pg_cluster.control_password, "postgres")
    with pg_cluster.primary().connect() as master, psycopg.connect(dsn, autocommit=True) as connection:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("SELECT pg_terminate_backend(%s)", [master.info.backend_pid])
        attributes = connection.execute(
            "SELECT rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls FROM pg_roles"
            " WHERE rolname = current_user"
        ).fetchone()
        assert attributes == (False,) * 5
        granted = connection.execute(
            "SELECT array_agg(r.rolname::text ORDER BY r.rolname) FROM pg_auth_members AS m"
            " JOIN pg_roles AS r ON r.oid = m.roleid WHERE m.member = current_user::regrole"
        ).fetchone()
        assert granted == (["pg_monitor", "pg_signal_backend"],)


@pytest.mark.pg
def test_a_tenant_reaches_its_own_database_only(pg_cluster_each):
    primary = pg_cluster_each.primary()
    for database in ("globex", "postgres", "template1"):
        with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
            psycopg.connect(primary.dsn("acme", TENANTS["acme"], database))
    with psycopg.connect(primary.dsn("acme", TENANTS["acme"], "acme")) as connection:
        assert connection.execute("SELECT current_database(), current_user").fetchone() == ("acme", "acme")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("SELECT pg_promote()")


@pytest.mark.pg
def test_tenants_have_different_demo_data_of_many_types_on_every_server(pg_cluster_each):
    found = {}
    for tenant in TENANTS:
        pg_cluster_each.load_demo(tenant)
        for server in pg_cluster_each.servers.values():
            with psycopg.connect(pg_cluster_each.tenant_dsn(tenant, server)) as connection:
                counts = connection.execute(
                    "SELECT (SELECT count(*) FROM accounts), (SELECT count(*) FROM orders)"
                ).fetchone()
                assert counts == (100, 400)
                found[tenant] = connection.execute("SELECT name, balance FROM accounts ORDER BY id").fetchall()
                types = connection.execute(
                    "SELECT count(DISTINCT atttypid) FROM pg_attribute "
                    "WHERE attrelid IN ('accounts'::regclass, 'orders'::regclass) AND attnum > 0"
                ).fetchone()[0]
                assert types >= 14
    assert found["acme"] != found["globex"]
