"""Runs the SQL files beside this package, which are written for psql, without psql.

The same files serve a database administrator and `pointsman dev`: one source. Of psql's language only what those
files need is understood: comments, meta-command lines (skipped; values come from the caller), :'literal',
:"identifier", dollar quotes closed on a later line, and a statement ended by `;` or by `\\gexec` at a line's end.
"""

import re
from collections.abc import Iterator, Mapping
from importlib import resources
from typing import Any

import psycopg
from psycopg import sql

_VARIABLE = re.compile(r"""(?<!:):(?:'(\w+)'|"(\w+)")""")
_HASHED = re.compile(r"SCRAM-SHA-256\$\d+:[A-Za-z0-9+/=]+\$[A-Za-z0-9+/=]+:[A-Za-z0-9+/=]+|md5[0-9a-f]{32}")
GEXEC = r"\gexec"


def script(name: str) -> str:
    """Text of one of the packaged files, such as "roles.sql"."""
    return (resources.files("router.devcluster") / "sql" / name).read_text(encoding="utf-8")


def run_script(connection: psycopg.Connection[Any], text: str, values: Mapping[str, str] | None = None) -> None:
    """Run every statement of `text` on an autocommit connection; KeyError when a variable has no value."""
    for statement in split(text):
        filled = fill(statement.removesuffix(GEXEC), values or {}, connection)
        cursor = connection.execute(filled)
        if statement.endswith(GEXEC):
            for row in cursor.fetchall():
                for cell in row:
                    connection.execute(cell)


def run_script_at(dsn: str, text: str, values: Mapping[str, str] | None = None) -> None:
    """run_script on a connection of its own."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        run_script(connection, text, values)


def verifier(connection: psycopg.Connection[Any], user: str, password: str) -> str:
    """What a server is told in a password's place, whose logs may hold what it is told. What PostgreSQL would not hash
    either stays as it is: an empty one (no password), and one that is hashed already."""
    if not password or _HASHED.fullmatch(password):
        return password
    return connection.pgconn.encrypt_password(password.encode(), user.encode(), b"scram-sha-256").decode()


def split(text: str) -> Iterator[str]:
    """The statements of a file, one by one, without comments and meta-commands; `\\gexec` is kept at the end."""
    lines: list[str] = []
    inside_dollars = False
    for line in text.splitlines():
        stripped = line.strip()
        if not stripped or stripped.startswith("--") or (stripped.startswith("\\") and stripped != GEXEC):
            continue
        lines.append(line.rstrip())
        inside_dollars ^= line.count("$$") % 2 == 1
        if not inside_dollars and stripped.endswith((";", GEXEC)):
            yield "\n".join(lines)
            lines = []
    if lines:
        raise ValueError(f"the last statement has no end: {lines[0].strip()}")


def tenant_values(
    tenant: str,
    password: str,
    *,
    login: str = "",
    database: str = "",
    role: str = "",
    isolation: str = "database",
    connection_limit: int = 50,
) -> dict[str, str]:
    """Values of the variables of tenant.sql and tenant_database.sql; what is empty is as those files have it."""
    login = login or tenant
    return {
        "tenant": tenant,
        "password": password,
        "login": login,
        "database": database or tenant,
        "role": role or login,
        "isolation": isolation,
        "connection_limit": str(connection_limit),
    }


def fill(
    statement: str,
    values: Mapping[str, str],
    connection: psycopg.Connection[Any] | None = None,
    keep: frozenset[str] = frozenset(),
) -> str:
    """The statement with its variables' values, quoted; those in keep stay as they are."""

    def quoted(found: re.Match[str]) -> str:
        literal, identifier = found.groups()
        if (literal or identifier) in keep:
            return found[0]
        part = sql.Literal(values[literal]) if literal else sql.Identifier(values[identifier])
        return part.as_string(connection)

    return _VARIABLE.sub(quoted, statement)
