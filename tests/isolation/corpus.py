"""Ways in which a tenant may try to leave its place: SQL, the RPC it goes by, and what must become of it.

`{v}` is the victim's login, `{db}` its database, `{table}` its table of secrets as the attacker would have to write it,
`{me}` the attacker's login. expect: what the first failing statement answers, as SQLSTATE or (refused by the router)
reason; several are separated by `|`, "ok" allows that all of them run. Whatever the answer, no secret may be in it,
and the victim must be as it was.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Vector:
    """One attempt. rpc: query, execute, stream, batch, transact, copy_out or copy_in."""

    name: str
    rpc: str
    expect: str
    sql: tuple[str, ...]


def _vector(name: str, rpc: str, expect: str, *sql: str) -> Vector:
    return Vector(name, rpc, expect, sql)


DENIED = "42501"
ELSEWHERE = "42501|0A000|42P01|3F000"
"""Another database's table, or another schema's."""
TCL, SESSION, SEVERAL = "TRANSACTION_CONTROL", "SESSION_STATE", "SEVERAL_STATEMENTS"

ROLES = (
    _vector("reset role", "transact", ELSEWHERE, "RESET ROLE", "SELECT * FROM {table}"),
    _vector("set role", "transact", DENIED, 'SET ROLE "{v}"', "SELECT * FROM {table}"),
    _vector("set local role", "transact", DENIED, 'SET LOCAL ROLE "{v}"', "SELECT * FROM {table}"),
    _vector("set role none", "transact", ELSEWHERE, "SET ROLE NONE", "SELECT * FROM {table}"),
    _vector("set role outside", "execute", SESSION, 'SET ROLE "{v}"'),
    _vector("session authorization", "transact", DENIED, 'SET SESSION AUTHORIZATION "{v}"', "SELECT * FROM {table}"),
    _vector("superuser's authorization", "transact", DENIED, "SET SESSION AUTHORIZATION postgres"),
    _vector("set_config role", "transact", DENIED, "SELECT set_config('role', '{v}', false)"),
    _vector("set_config role outside", "query", SESSION, "SELECT set_config('role', '{v}', false)"),
    _vector("set_config spelled in escapes", "query", SESSION, "SELECT U&\"set\\005fconfig\"('role', '{v}', false)"),
    _vector(
        "set_config local in a query", "query", DENIED,
        "WITH x AS MATERIALIZED (SELECT set_config('role', '{v}', true)) SELECT * FROM x"),
    _vector("set_config in DO", "execute", SESSION, "DO $$ BEGIN PERFORM set_config('role', '{v}', false); END $$"),
    _vector(
        "set_config hidden in DO", "execute", DENIED,
        "DO $$ BEGIN EXECUTE 'SELECT set_co' || 'nfig(''role'', ''{v}'', false)'; END $$"),
    _vector(
        "a function's SET clause", "transact", DENIED,
        "CREATE FUNCTION pg_temp.f() RETURNS text LANGUAGE sql SET role = '{v}' AS 'SELECT current_user::text'",
        "SELECT pg_temp.f()"),
    _vector(
        "a default", "transact", DENIED,
        "CREATE TEMP TABLE d (a text DEFAULT set_config('role', '{v}', false))", "INSERT INTO d DEFAULT VALUES"),
    _vector(
        "a trigger", "transact", DENIED, "CREATE TEMP TABLE t (a int)",
        "CREATE FUNCTION pg_temp.g() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN PERFORM set_config('role', '{v}', false); RETURN NEW; END $$",
        "CREATE TRIGGER g BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION pg_temp.g()", "INSERT INTO t VALUES (1)"),
    _vector(
        "an index expression", "transact", f"{DENIED}|42P17", "CREATE TEMP TABLE i (a text)",
        "CREATE FUNCTION pg_temp.h(text) RETURNS text IMMUTABLE LANGUAGE plpgsql AS "
        "$$ BEGIN PERFORM set_config('role', '{v}', false); RETURN $1; END $$",
        "CREATE INDEX ON i (pg_temp.h(a))", "INSERT INTO i VALUES ('x')"),
    _vector(
        "a definer's function for another", "transact", DENIED,
        "CREATE FUNCTION pg_temp.o() RETURNS text SECURITY DEFINER LANGUAGE sql AS 'SELECT current_user::text'",
        'ALTER FUNCTION pg_temp.o() OWNER TO "{v}"'),
    _vector("another's password", "execute", DENIED, "ALTER ROLE \"{v}\" PASSWORD 'mine'"),
    _vector("another's settings", "execute", DENIED, "ALTER ROLE \"{v}\" SET search_path = 'x'"),
    _vector("membership", "execute", DENIED, 'GRANT "{v}" TO "{me}"'),
    _vector("membership in pg_read_all_data", "execute", DENIED, 'GRANT pg_read_all_data TO "{me}"'),
    _vector("a new role", "execute", DENIED, "CREATE ROLE mallory SUPERUSER"),
    _vector("superuser", "execute", DENIED, 'ALTER ROLE "{me}" SUPERUSER'),
    _vector("bypassrls", "execute", DENIED, 'ALTER ROLE "{me}" BYPASSRLS'),
    _vector("reassign", "execute", DENIED, 'REASSIGN OWNED BY "{v}" TO "{me}"'),
    _vector("drop owned", "execute", DENIED, 'DROP OWNED BY "{v}"'),
)  # fmt: skip

TRANSACTIONS = (
    _vector("commit", "transact", TCL, "COMMIT", "SELECT 1"),
    _vector("commit behind a comment", "transact", TCL, "/* x */ -- y\n COMMIT"),
    _vector("rollback", "transact", TCL, "ROLLBACK"),
    _vector("abort", "transact", TCL, "ABORT"),
    _vector("end", "transact", TCL, "END"),
    _vector("commit and chain", "transact", TCL, "COMMIT AND CHAIN"),
    _vector("prepare transaction", "transact", TCL, "PREPARE TRANSACTION 'x'"),
    _vector("commit prepared", "execute", TCL, "COMMIT PREPARED 'x'"),
    _vector("savepoint", "transact", TCL, "SAVEPOINT s"),
    _vector("begin", "execute", TCL, "BEGIN"),
    _vector(
        "a procedure that commits", "transact", "2D000",
        "CREATE PROCEDURE pg_temp.p() LANGUAGE plpgsql AS $$ BEGIN COMMIT; END $$", "CALL pg_temp.p()"),
    _vector("a block that commits in a transaction", "transact", "2D000", "DO $$ BEGIN COMMIT; END $$"),
    _vector("a block that commits alone", "execute", "ok", "DO $$ BEGIN COMMIT; END $$"),
    _vector("a block that commits in a batch", "batch", "2D000", "SELECT 1", "DO $$ BEGIN COMMIT; END $$"),
    _vector("stacked", "execute", SEVERAL, "SELECT 1; SELECT * FROM {table}"),
    _vector("stacked behind a comment", "query", SEVERAL, "SELECT 1 /* ; */; /* ; */ RESET ROLE"),
    _vector("stacked behind dollar quotes", "execute", SEVERAL, "SELECT $a$;$a$; RESET ALL"),
    _vector("stacked in a newer grammar", "execute", "42601", "FROBNICATE x; RESET ALL"),
    _vector("stacked past the parser", "execute", "42601", "SELECT 1 " + "-" * 2 + "x" * 9000 + "\n; RESET ALL"),
    _vector("discard", "transact", "25001", "DISCARD ALL"),
    _vector("discard outside", "execute", SESSION, "DISCARD ALL"),
    _vector("replication", "execute", "42601", "START_REPLICATION SLOT x LOGICAL 0/0"),
)  # fmt: skip

FILES = (
    _vector("a program's output", "execute", DENIED, "COPY (SELECT 1) TO PROGRAM 'id'"),
    _vector("a program's input", "execute", f"{DENIED}|42P01", "COPY pg_temp.x FROM PROGRAM 'id'"),
    _vector("a file", "execute", DENIED, "COPY (SELECT 1) TO '/tmp/x'"),
    _vector("a server's file", "execute", DENIED, "SELECT pg_read_file('/etc/passwd')"),
    _vector("a server's bytes", "query", DENIED, "SELECT pg_read_binary_file('postgresql.conf')"),
    _vector("a server's folder", "query", DENIED, "SELECT * FROM pg_ls_dir('.')"),
    _vector("a server's log", "query", DENIED, "SELECT * FROM pg_ls_logdir()"),
    _vector("a file's age", "query", DENIED, "SELECT * FROM pg_stat_file('postgresql.conf')"),
    _vector("import of a large object", "execute", DENIED, "SELECT lo_import('/etc/passwd')"),
    _vector("export of a large object", "execute", DENIED, "SELECT lo_export(1, '/tmp/x')"),
    _vector("another's large object", "transact", "42704|42501", "SELECT lo_get(42424242)"),
    _vector("large objects' pages", "query", DENIED, "SELECT data FROM pg_largeobject"),
    _vector("pg_hba.conf", "query", DENIED, "SELECT * FROM pg_hba_file_rules"),
    _vector("postgresql.conf", "query", DENIED, "SELECT * FROM pg_file_settings"),
    _vector("a tablespace", "execute", DENIED, "CREATE TABLESPACE x LOCATION '/tmp'"),
)  # fmt: skip

WAYS_OUT = (
    _vector("dblink", "execute", "42501|0A000|58P01", "CREATE EXTENSION dblink"),
    _vector("postgres_fdw", "execute", "42501|0A000|58P01", "CREATE EXTENSION postgres_fdw"),
    _vector("file_fdw", "execute", "42501|0A000|58P01", "CREATE EXTENSION file_fdw"),
    _vector("a call of dblink", "execute", SESSION, "SELECT dblink_connect('host=localhost dbname={db}')"),
    _vector("a foreign server", "execute", "42704", "CREATE SERVER s FOREIGN DATA WRAPPER postgres_fdw"),
    _vector("a foreign data wrapper", "execute", DENIED, "CREATE FOREIGN DATA WRAPPER w"),
    _vector("a language", "execute", "42501|0A000|58P01|42704", "CREATE EXTENSION plpython3u"),
    _vector(
        "C", "transact", DENIED, "CREATE FUNCTION pg_temp.c(cstring) RETURNS int LANGUAGE c AS 'libc.so.6', 'system'"),
    _vector("internals", "transact", DENIED, "CREATE FUNCTION pg_temp.i() RETURNS int LANGUAGE internal AS 'x'"),
    _vector("a library", "transact", "42501|58P01", "LOAD '/lib/x86_64-linux-gnu/libc.so.6'"),
    _vector("a publication of everything", "execute", DENIED, "CREATE PUBLICATION p FOR ALL TABLES"),
    _vector("a subscription", "execute", DENIED, "CREATE SUBSCRIPTION s CONNECTION 'dbname={db}' PUBLICATION p"),
    _vector("a physical slot", "execute", DENIED, "SELECT pg_create_physical_replication_slot('x')"),
    _vector("a logical slot", "execute", DENIED, "SELECT pg_create_logical_replication_slot('x', 'test_decoding')"),
    _vector("an event trigger", "execute", DENIED,
            "CREATE EVENT TRIGGER e ON ddl_command_end EXECUTE FUNCTION pg_catalog.now()"),
    _vector("a cast", "execute", "42501|42P17", "CREATE CAST (text AS int) WITH INOUT AS IMPLICIT"),
)  # fmt: skip

NEIGHBOURS = (
    _vector("another's table", "query", ELSEWHERE, "SELECT secret FROM {table}"),
    _vector("another's table by stream", "stream", ELSEWHERE, "SELECT secret FROM {table}"),
    _vector("another's table by COPY", "copy_out", ELSEWHERE, "TABLE {table}"),
    _vector("out of the parentheses of COPY", "copy_out", "BAD_REQUEST|SEVERAL_STATEMENTS",
            "SELECT 1) TO PROGRAM 'id' --"),
    # COPY names no database: there it fills the attacker's own.
    _vector("into another's table by COPY", "copy_in", f"{ELSEWHERE}|ok", "{table}"),
    _vector("a write there", "execute", ELSEWHERE, "UPDATE {table} SET secret = 'gone'"),
    _vector("a deletion there", "batch", ELSEWHERE, "SELECT 1", "DELETE FROM {table}"),
    _vector("a lock there", "transact", ELSEWHERE, "LOCK TABLE {table}"),
    _vector("truncation", "execute", ELSEWHERE, "TRUNCATE {table}"),
    _vector("a drop", "execute", ELSEWHERE, "DROP TABLE {table}"),
    _vector("a trigger there", "execute", ELSEWHERE,
            "CREATE TRIGGER x BEFORE INSERT ON {table} FOR EACH ROW "
            "EXECUTE FUNCTION suppress_redundant_updates_trigger()"),
    _vector("a policy there", "execute", ELSEWHERE, "CREATE POLICY x ON {table}"),
    _vector("a key to it", "transact", ELSEWHERE, "CREATE TEMP TABLE k (a text REFERENCES {table})"),
    _vector("a child of it", "transact", ELSEWHERE, "CREATE TEMP TABLE c () INHERITS ({table})"),
    _vector("a view of it", "transact", ELSEWHERE, "CREATE TEMP VIEW w AS SELECT * FROM {table}"),
    _vector("another's sequence", "query", "SESSION_STATE", "SELECT lastval()"),
    _vector("its database's owner", "execute", DENIED, 'ALTER DATABASE "{db}" OWNER TO "{me}"'),
    _vector("its database's settings", "execute", DENIED, 'ALTER DATABASE "{db}" SET search_path = x'),
    _vector("its database", "execute", DENIED, 'DROP DATABASE "{db}"'),
    _vector("a copy of its database", "execute", DENIED, 'CREATE DATABASE mine TEMPLATE "{db}"'),
    _vector("a right of all", "execute", "42501|ok", 'GRANT ALL ON DATABASE "{db}" TO "{me}"', "SELECT 1"),
    _vector("passwords", "query", DENIED, "SELECT rolpassword FROM pg_authid"),
    _vector("passwords by the view", "query", DENIED, "SELECT passwd FROM pg_shadow"),
    _vector("others' statements", "query", "ok", "SELECT usename, query FROM pg_stat_activity"),
    _vector("others' statistics", "query", "ok", "SELECT most_common_vals::text, histogram_bounds::text FROM pg_stats"),
    _vector("statistics themselves", "query", DENIED, "SELECT * FROM pg_statistic"),
    _vector("others' locks", "query", "ok", "SELECT * FROM pg_locks"),
    _vector("others' names", "query", "ok", "SELECT datname FROM pg_database"),
    _vector("others' mappings", "query", DENIED, "SELECT umoptions FROM pg_user_mapping"),
    _vector("others' subscriptions", "query", DENIED, "SELECT subconninfo FROM pg_subscription"),
    _vector("others' sessions", "execute", "42501|ok",
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{v}'"),
    _vector("the router's sessions", "execute", "42501",
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'pointsman_control'"),
    _vector("others' statements' end", "execute", "42501|ok",
            "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE usename = '{v}'"),
)  # fmt: skip

TROJANS = (
    _vector("a function in pg_catalog", "execute", DENIED,
            "CREATE FUNCTION pg_catalog.now2() RETURNS int LANGUAGE sql AS 'SELECT 1'"),
    _vector("an operator in pg_catalog", "execute", DENIED,
            "CREATE OPERATOR pg_catalog.=== (LEFTARG = int, RIGHTARG = int, FUNCTION = int4eq)"),
    _vector("a function in our schema", "execute", DENIED,
            "CREATE FUNCTION pointsman.f() RETURNS int LANGUAGE sql AS 'SELECT 1'"),
    _vector("another marker", "execute", DENIED, "INSERT INTO pointsman.tenant_marker VALUES ('{me}', 'x')"),
    _vector("a changed marker", "execute", DENIED, "UPDATE pointsman.tenant_marker SET tenant = 'x'"),
    _vector("no marker", "execute", DENIED, "DELETE FROM pointsman.tenant_marker"),
    _vector("a marker for all to see", "execute", DENIED,
            "ALTER TABLE pointsman.tenant_marker DISABLE ROW LEVEL SECURITY"),
    _vector("others' markers", "query", "ok|42501", "SELECT * FROM pointsman.tenant_marker"),
    _vector("our schema's end", "execute", DENIED, "DROP SCHEMA pointsman CASCADE"),
    _vector("our schema's owner", "execute", DENIED, 'ALTER SCHEMA pointsman OWNER TO "{me}"'),
    _vector("a shadow of the catalogue", "transact", "ok",
            "SET search_path = pg_temp, pg_catalog",
            "CREATE FUNCTION pg_temp.current_database() RETURNS text LANGUAGE sql AS $$ SELECT 'mine' $$"),
    _vector("a name of the router's", "transact", "ok", "PREPARE pointsman_1_ AS SELECT 'trojan'"),
    _vector("the next of its names", "transact", "ok", *(f"PREPARE pointsman_{n}_ AS SELECT 1" for n in range(2, 9))),
)  # fmt: skip

SETTINGS = (
    _vector("a superuser's setting", "transact", DENIED, "SET session_replication_role = replica"),
    _vector("the log", "transact", DENIED, "SET log_statement = 'none'"),
    _vector("a preloaded library", "transact", DENIED, "SET session_preload_libraries = 'x'"),
    _vector("the server's settings", "execute", DENIED, "ALTER SYSTEM SET work_mem = '1GB'"),
    _vector("a reload", "execute", DENIED, "SELECT pg_reload_conf()"),
    _vector("promotion", "execute", DENIED, "SELECT pg_promote()"),
    _vector("row security off", "transact", ELSEWHERE, "SET row_security = off", "SELECT * FROM {table}"),
    _vector("its own time-out", "transact", "ok", "SET statement_timeout = 0", "SELECT 1"),
    _vector("temp_file_limit", "transact", DENIED, "SET temp_file_limit = -1"),
    _vector("memory", "transact", "ok", "SET work_mem = '10GB'", "SELECT 1"),
    _vector("an encoding", "transact", "NOT_SUPPORTED", "SET client_encoding = 'LATIN1'", "SELECT chr(228)"),
    _vector("writes on a read", "query", "25006", "CREATE TABLE x ()"),
    _vector("writes on a read after all", "query", "25001",
            "WITH x AS MATERIALIZED (SELECT set_config('transaction_read_only', 'off', true)) "
            "SELECT nextval('own_seq') FROM x"),
    _vector("a lock for ever", "execute", SESSION, "SELECT pg_advisory_lock(1)"),
    _vector("a channel for ever", "execute", SESSION, "LISTEN x"),
    _vector("a cursor for ever", "execute", SESSION, "DECLARE c CURSOR WITH HOLD FOR SELECT 1"),
)  # fmt: skip

BOMBS = (
    _vector("parentheses", "execute", "ok|54001", "SELECT " + "(" * 4000 + "1" + ")" * 4000),
    _vector("sums", "execute", "54001|ok", "SELECT 1" + "+1" * 15000),
    _vector("a NUL byte", "execute", "BAD_REQUEST", "SELECT 1\0; RESET ROLE"),
    _vector("nested arrays", "execute", "54000|54001|ok", "SELECT " + "ARRAY[" * 2000 + "1" + "]" * 2000),
    _vector("a value without end", "execute", "54000|22003|42883", "SELECT repeat('xx', 2147483647)"),
    _vector("recursion without end", "execute", "54001",
            "DO $$ BEGIN CREATE FUNCTION pg_temp.r(n int) RETURNS int LANGUAGE plpgsql AS "
            "'BEGIN RETURN pg_temp.r(n + 1); END'; PERFORM pg_temp.r(1); END $$"),
    _vector("an error with a secret's name", "query", ELSEWHERE, "SELECT 1 / (SELECT length(secret) - 1 FROM {table})"),
)  # fmt: skip

CORPUS = (*ROLES, *TRANSACTIONS, *FILES, *WAYS_OUT, *NEIGHBOURS, *TROJANS, *SETTINGS, *BOMBS)
