"""ports.Surgeon: changes the roles of one cluster's servers by SQL, with the rights of deploy's roles.sql only.

Each act is idempotent and ends by its deadline. Connections are kept per server, as logging in takes longer than
most acts. What ALTER SYSTEM changes is on disk before the reload, so it survives a crash of the server or of ours.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from router.model.identity import EndpointName
from router.model.observation import AttemptFailed, Fault, FaultKind, ProbeOutcome, ProbeResult, RoleClaim, Stage
from router.model.topology import Cluster, Endpoint
from router.postgres import conninfo
from router.postgres.control_connection import ControlConnection
from router.postgres.examiner import PATRONI_QUERY
from router.postgres.role_query import FENCED_HOST, ROLE_QUERY, read_claim

STEP_S = 0.002
"""Between two looks at whether something has happened (seconds)."""
SETTLE_S = 0.03
"""A start-up process may be between two attempts to stream when we look; so long nothing may be seen (seconds)."""
AT_REST_S = 0.15
"""A start-up process gets this long to come to rest before it is told to promote (seconds)."""
GRACE_S = 1.0
"""Write transactions that run when writes are to be held get this long to end (seconds)."""

_RECEIVER = "SELECT status, sender_host, sender_port FROM pg_stat_wal_receiver"
_AT_REST = """
SELECT 1 FROM pg_stat_activity WHERE backend_type = 'startup' AND wait_event = 'RecoveryRetrieveRetryInterval'"""
"""It sleeps between two attempts to stream, and the request wakes it. One that comes while it tries to connect is not
noticed before it has slept through the next wal_retrieve_retry_interval: 5 s, unless set."""
_WRITERS = """
  FROM pg_stat_activity AS a JOIN pg_roles AS r ON r.rolname = a.usename
 WHERE a.backend_type = 'client backend' AND a.pid <> pg_backend_pid() AND a.usename <> current_user
   AND NOT r.rolsuper AND a.xact_start IS NOT NULL"""
"""Sessions in a transaction that began before writes were held; those of superusers we may not end."""


class PostgresSurgeon:
    """Operates on the servers of one cluster."""

    def __init__(self, cluster: Cluster, owner: str) -> None:
        """owner: this router's mark on its fences, of letters and digits; no other router may have the same."""
        self._cluster = cluster
        self._fence = f"{FENCED_HOST}/{owner}"
        self._stands = f"pg_is_in_recovery() AND position('{self._fence}' in current_setting('primary_conninfo')) > 0"
        self._connections: dict[EndpointName, ControlConnection] = {}

    async def look(self, server: Endpoint, deadline: float) -> ProbeResult:
        """See ports.Surgeon."""
        return await self._ask(server, deadline)

    async def fence(self, standby: Endpoint, deadline: float) -> ProbeResult:
        """Point the standby's walreceiver at nowhere and wait until it is gone. See ports.Surgeon.

        primary_conninfo keeps its login, so that repoint() finds it, also after a restart of the router.
        """
        await self._refuse_managed(standby, deadline)
        settings = conninfo_to_dict(await self._primary_conninfo(standby, deadline))
        settings.pop("hostaddr", None)
        streamed = bool(await self._query(standby, _RECEIVER, deadline))
        await self._alter(standby, "primary_conninfo", _with(settings, host=self._fence), deadline)
        quiet_since: float | None = None
        now = asyncio.get_running_loop().time
        # One that streamed and is gone has ended because of us, and the next goes nowhere.
        while quiet_since is None or now() - quiet_since < (0 if streamed else SETTLE_S):
            if await self._query(standby, _RECEIVER, deadline):
                quiet_since, streamed = None, True
            elif quiet_since is None:
                quiet_since = now()
                continue
            await asyncio.sleep(STEP_S)
        return await self._ask(standby, deadline)

    async def still_fenced(self, standby: Endpoint, deadline: float) -> bool:
        """See ports.Surgeon."""
        query = f"SELECT {self._stands} AND NOT EXISTS ({_RECEIVER} WHERE status = 'streaming')"
        return await self._query(standby, query, deadline) == [("t",)]

    async def set_synchronous(self, server: Endpoint, names: str, deadline: float) -> None:
        """See ports.Surgeon."""
        await self._alter(server, "synchronous_standby_names", names, deadline)

    async def promote(self, standby: Endpoint, deadline: float) -> ProbeResult:
        """See ports.Surgeon. A default_transaction_read_only left from an earlier switchover is taken back."""
        await self.allow_writes(standby, deadline)
        now = asyncio.get_running_loop().time
        hurry_at = min(now() + AT_REST_S, deadline)

        async def at_rest() -> bool:
            return now() >= hurry_at or bool(await self._query(standby, _AT_REST, deadline))

        await _until(at_rest)
        if not await self._query(standby, f"SELECT pg_promote(false) WHERE {self._stands}", deadline):
            raise _impossible(standby, "it is no standby with our fence on it: somebody else has moved it")

        async def is_primary() -> bool:
            return await self._query(standby, "SELECT pg_is_in_recovery()", deadline) == [("f",)]

        await _until(is_primary)
        return await self._ask(standby, deadline)

    async def repoint(self, standby: Endpoint, upstream: Endpoint, deadline: float) -> None:
        """See ports.Surgeon. The replication login is the one that the standby has used so far."""
        settings = conninfo_to_dict(await self._primary_conninfo(standby, deadline))
        settings.pop("hostaddr", None)
        settings.setdefault("application_name", standby.name)
        target = _with(settings, host=upstream.host, port=str(upstream.port))
        await self._alter(standby, "primary_conninfo", target, deadline)

        async def streams() -> bool:
            rows = await self._query(standby, _RECEIVER, deadline)
            return any(status == "streaming" and port == str(upstream.port) for status, _, port in rows)

        await _until(streams)

    async def verify_write(self, primary: Endpoint, deadline: float) -> None:
        """See ports.Surgeon. The write is a message in the log: no table is touched."""
        await self._query(primary, "SELECT set_config('synchronous_commit', 'on', false)", deadline)
        await self._query(primary, "SELECT set_config('default_transaction_read_only', 'off', false)", deadline)
        await self._query(primary, "SELECT pg_logical_emit_message(true, 'pointsman', 'verify')", deadline)

    async def hold_writes(self, primary: Endpoint, deadline: float) -> ProbeResult:
        """See ports.Surgeon. Ends with a write of its own that is confirmed, so that the position said is on disk."""
        await self._refuse_managed(primary, deadline)
        await self._alter(primary, "default_transaction_read_only", "on", deadline)
        now = asyncio.get_running_loop().time
        held_at = await self._query(primary, "SELECT clock_timestamp()", deadline)
        before = f" AND a.xact_start < '{held_at[0][0]}'::timestamptz"
        grace_ends = min(now() + GRACE_S, deadline)
        while await self._query(primary, "SELECT 1" + _WRITERS + before + " LIMIT 1", deadline):
            if now() >= grace_ends:
                await self._query(primary, "SELECT pg_terminate_backend(a.pid)" + _WRITERS + before, deadline)
            await asyncio.sleep(STEP_S)
        await self.verify_write(primary, deadline)
        return await self._ask(primary, deadline)

    async def allow_writes(self, primary: Endpoint, deadline: float) -> None:
        """See ports.Surgeon."""
        await self._query(primary, "ALTER SYSTEM RESET default_transaction_read_only", deadline)
        await self._query(primary, "SELECT pg_reload_conf()", deadline)

    async def close(self) -> None:
        """Close all connections."""
        for connection in self._connections.values():
            connection.close()
        self._connections.clear()

    async def _refuse_managed(self, server: Endpoint, deadline: float) -> None:
        """The last look before the first act: two that move one primary would undo each other's work."""
        manager = (await self._query(server, PATRONI_QUERY, deadline))[0][0]
        if manager:
            raise _impossible(server, manager)

    async def _primary_conninfo(self, standby: Endpoint, deadline: float) -> str:
        rows = await self._query(standby, "SELECT pg_is_in_recovery(), current_setting('primary_conninfo')", deadline)
        in_recovery, text = rows[0]
        if in_recovery != "t":
            raise _impossible(standby, "it is not a standby")
        if not text:
            raise _impossible(standby, "its primary_conninfo is empty: there is no replication login to keep")
        return text

    async def _alter(self, server: Endpoint, setting: str, value: str, deadline: float) -> None:
        """ALTER SYSTEM, reload, and wait until a session of the server has read it."""
        await self._query(server, f"ALTER SYSTEM SET {setting} = {_literal(value)}", deadline)
        await self._query(server, "SELECT pg_reload_conf()", deadline)

        async def is_read() -> bool:
            query = f"SELECT reset_val FROM pg_settings WHERE name = '{setting}'"
            return await self._query(server, query, deadline) == [(value,)]

        await _until(is_read)

    async def _ask(self, server: Endpoint, deadline: float) -> ProbeResult:
        began = asyncio.get_running_loop().time()
        claim = await self._claim(server, deadline)
        ended = asyncio.get_running_loop().time()
        return ProbeResult(server.name, ProbeOutcome.OK, ended, ended - began, claim)

    async def _claim(self, server: Endpoint, deadline: float) -> RoleClaim:
        rows = await self._query(server, ROLE_QUERY, deadline)
        return read_claim(rows[0], self._connections[server.name].server_version)

    async def _query(self, server: Endpoint, sql: str, deadline: float) -> list[tuple[str | None, ...]]:
        """One query on the kept connection; a kept one that turns out to be dead is opened anew, once."""
        kept = self._connections.get(server.name)
        if kept is not None and kept.usable:
            try:
                return await kept.query(sql, deadline)
            except AttemptFailed as error:
                if error.fault.kind is not FaultKind.CONNECTION_LOST:
                    raise
        parameters: Mapping[str, Any] = conninfo.for_control(self._cluster, server)
        connection = await ControlConnection.open(parameters, deadline)
        self._connections[server.name] = connection
        return await connection.query(sql, deadline)


async def _until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Look until it is so; ended by the deadline of the queries it makes."""
    while not await condition():  # noqa: ASYNC110 - what is waited for happens in another process
        await asyncio.sleep(STEP_S)


def _with(settings: Mapping[str, str | int | None], **changed: str) -> str:
    """A connection string of these settings with some changed."""
    return make_conninfo("", **{**settings, **changed})


def _literal(value: str) -> str:
    """A string constant for ALTER SYSTEM, which takes no parameters."""
    escaped = value.replace("'", "''")
    if "\\" in escaped:
        return "E'" + escaped.replace("\\", "\\\\") + "'"
    return f"'{escaped}'"


def _impossible(server: Endpoint, why: str) -> AttemptFailed:
    return AttemptFailed(Fault(FaultKind.CLOSED, Stage.EXECUTE, message=f"{server.name}: {why}", endpoint=server.name))
