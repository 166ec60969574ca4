"""Whether a new connection is where its tenant belongs: its roles, its database, and the tenant's marker there.

A configuration that points a tenant at another one's database or role is caught here, before any statement runs. The
marker is a row that only an administrator can write (tenant_database.sql).
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import psycopg

from router.model.topology import IsolationMode, Tenant
from router.postgres.answer_size import MOST_UNASKED, received_bytes
from router.postgres.liveness import shut_socket

_LOOK_S = 0.01
"""Between looks at how much has come: psycopg keeps all rows that a server sends, and tells nobody how many."""

# The tenant may have changed its own search_path: nothing here is looked up in it. The catalogue shows the marker also
# to those who may not read it.
_WHO = (
    "SELECT session_user::pg_catalog.text, current_user::pg_catalog.text, "
    "pg_catalog.current_database()::pg_catalog.text, "
    "EXISTS (SELECT FROM pg_catalog.pg_class c, pg_catalog.pg_namespace n"
    " WHERE n.oid OPERATOR(pg_catalog.=) c.relnamespace AND n.nspname OPERATOR(pg_catalog.=) 'pointsman'"
    " AND c.relname OPERATOR(pg_catalog.=) 'tenant_marker')"
)
_MARKERS = "SELECT tenant FROM pointsman.tenant_marker"
"""The table shows each login its own rows only."""


class Misplaced(psycopg.OperationalError):
    """The connection is not the tenant's; the text says what is wrong, for the operator."""


async def prove(connection: psycopg.AsyncConnection[Any], tenant: Tenant, timeout_s: float) -> None:
    """Ask a new connection who and where it is. Misplaced, or what psycopg raises; ends by timeout_s (seconds)."""
    # The socket is shut at the end of the time: psycopg's own ways to give up wait for a frozen server.
    alarm = asyncio.get_running_loop().call_later(timeout_s, shut_socket, connection.pgconn)
    watch = asyncio.create_task(_bound(connection.pgconn))
    try:
        cursor = await connection.execute(_WHO)
        who = await cursor.fetchone()
        assert who is not None
        session, current, database, marked = who
        problem = _misfit(tenant, connection, session, current, database)
        if problem is None and marked:
            problem = await _foreign(connection, tenant)
        elif problem is None and tenant.pool.require_marker:
            problem = f"database {database} has no tenant marker (require_marker): run `pointsman tenant init`"
    finally:
        alarm.cancel()
        watch.cancel()
    if problem is not None:
        raise Misplaced(problem)


async def _bound(pgconn: psycopg.pq.abc.PGconn) -> None:
    """Shut the socket of a server that says more than the questions here can have for answers."""
    with contextlib.suppress(psycopg.Error):  # it is closed: nothing more comes
        before = received_bytes(pgconn.socket)
        while before is not None:
            await asyncio.sleep(_LOOK_S)
            if (received_bytes(pgconn.socket) or 0) - before > MOST_UNASKED:
                shut_socket(pgconn)
                return


def _misfit(
    tenant: Tenant, connection: psycopg.AsyncConnection[Any], session: str, current: str, database: str
) -> str | None:
    login, role = tenant.login.user, tenant.role or tenant.login.user
    if session != login:
        return f"the server took the login {login} for {session}"
    if current != role:
        return f"the connection acts as {current}, not as {role}"
    if database != tenant.database:
        return f"the connection is to database {database}, not {tenant.database}"
    if connection.pgconn.parameter_status(b"is_superuser") == b"on":
        return f"{current} is a superuser: nothing could keep the tenant from its neighbours"
    return None


async def _foreign(connection: psycopg.AsyncConnection[Any], tenant: Tenant) -> str | None:
    """What is wrong with the marker."""
    try:
        cursor = await connection.execute(_MARKERS)
        found = {row[0] for row in await cursor.fetchall()}
    except psycopg.errors.InsufficientPrivilege:
        return f"database {tenant.database} is marked, and login {tenant.login.user} is none of its tenants'"
    shared = tenant.isolation is IsolationMode.REGISTERED
    if tenant.name in found if shared else found == {tenant.name}:
        return None
    owners = ", ".join(sorted(found)) or "others"
    return f"the marker of database {tenant.database} for login {tenant.login.user} names {owners}, not {tenant.name}"
