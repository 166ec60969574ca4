"""ports.Surgeon: changes the roles of one cluster's servers by SQL, with the rights of deploy's roles.sql only.

Each act is idempotent and ends by its deadline. A connection is kept per server, as logging in takes longer than most
acts; acts on one server may overlap (a standby is fenced while it is being attached), and whoever finds the kept one in
use opens another. What need not wait for an answer is sent together: writes wait while a primary is moved. What ALTER
SYSTEM changes is on disk before the reload, so it survives a crash of the server or of ours.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from router.model.identity import EndpointName
from router.model.observation import AttemptFailed, Fault, FaultKind, ProbeOutcome, ProbeResult, Stage
from router.model.topology import Cluster, Endpoint
from router.postgres.control_connection import ControlConnection, Row
from router.postgres.control_door import ControlDoor
from router.postgres.examiner import PATRONI_QUERY
from router.postgres.role_query import FENCED_HOST, ROLE_QUERY, read_claim

STEP_S = 0.002
"""Between two looks at whether something has happened (seconds)."""
SETTLE_S = 0.03
"""A start-up process may be between two attempts to stream when we look; so long nothing may be seen (seconds)."""
AT_REST_S = 0.15
"""A start-up process gets this long to come to rest before it is told to promote (seconds)."""
WAKE_S = 0.02
"""A start-up process that sleeps so long after the request to promote has missed it, and is woken (seconds)."""
READ_ALL_S = 1.0
"""A standby that was just started gets this long to read the log that it has (seconds)."""
MOST_STEP_S = 0.05
"""The same where it may take long (seconds)."""
SURE_S = 1.0
"""So long commits must be confirmed by who follows already: by then the checkpointer has read the setting (seconds)."""
LAST_S = 0.25
"""No other write is tried so shortly before the deadline (seconds)."""
GRACE_S = 1.0
"""Write transactions that run when writes are to be held get this long to end (seconds)."""

_RELOAD = "SELECT pg_reload_conf()"
_ALLOW_WRITES = "ALTER SYSTEM RESET default_transaction_read_only"
_RECEIVER = "SELECT FROM pg_stat_wal_receiver"
_OLD_RECEIVER = """
SELECT FROM pg_stat_activity WHERE backend_type = 'walreceiver' AND backend_start < pg_conf_load_time()"""
"""From before the settings were read: it goes where they pointed then. One that still connects, as to a frozen primary,
is not in pg_stat_wal_receiver, and streams and confirms once it gets through."""
_STANDBY = f"SELECT pg_is_in_recovery(), current_setting('primary_conninfo'), EXISTS ({_RECEIVER})"
_READ_ALL = "pg_last_wal_receive_lsn() IS NOT NULL"
"""Since its start it has asked for a walreceiver: it does so once it has read all that is in its pg_wal. Until then it
knows only how much of that it has replayed, which may be less than it had confirmed."""
_AT_REST = """
SELECT FROM pg_stat_activity WHERE backend_type = 'startup' AND wait_event = 'RecoveryRetrieveRetryInterval'"""
"""It sleeps between two attempts to stream, and the request wakes it. One that comes while it tries to connect is not
noticed before it has slept through the next wal_retrieve_retry_interval: 5 s, unless set."""
_WAKE = f"SELECT pg_reload_conf() WHERE EXISTS ({_AT_REST})"
_WRITERS = """
  FROM pg_stat_activity AS a JOIN pg_roles AS r ON r.rolname = a.usename
 WHERE a.backend_type = 'client backend' AND a.pid <> pg_backend_pid() AND a.usename <> current_user
   AND NOT r.rolsuper AND a.xact_start IS NOT NULL"""
"""Sessions in a transaction; those of superusers we may not end."""
_LATE = " OR a.backend_xid IS NOT NULL OR a.state LIKE 'idle in transaction%'"
"""... that began once writes were held, and writes, or may: it said READ WRITE. A single read is never idle in one."""
_NEXT_XID = "SELECT pg_snapshot_xmax(pg_current_snapshot())"
"""After the newest transaction that wrote and has ended."""
_WAITING = "SELECT FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
_CONFIRMING = "SELECT FROM pg_stat_replication WHERE sync_state IN ('sync', 'quorum')"
_PROOF = (
    "BEGIN READ WRITE",
    "SET LOCAL synchronous_commit = on",
    "SELECT pg_current_xact_id(), pg_logical_emit_message(true, 'pointsman', 'verify')",
    "COMMIT",
)
"""A write that a standby must confirm, also while others' are held: a message in the log, which touches no table."""


class PostgresSurgeon:
    """Operates on the servers of one cluster."""

    def __init__(self, cluster: Cluster, owner: str, door: ControlDoor | None = None) -> None:
        """owner: this process's mark on its fences, of letters and digits: its router's, which outlives it, and after
        a slash its own. No other process may have the same, no other router the first part."""
        self._door = door or ControlDoor(cluster)
        self._fence = f"{FENCED_HOST}/{owner}"
        self._routers = f"{FENCED_HOST}/{owner.partition('/')[0]}"
        self._stands = f"pg_is_in_recovery() AND position('{self._fence}' in current_setting('primary_conninfo')) > 0"
        self._kept: dict[EndpointName, ControlConnection] = {}
        """Open, and used by nobody just now."""
        self._held: dict[EndpointName, int] = {}
        """The last transaction that wrote on those whose writes are held: one of ours."""
        self._versions: dict[EndpointName, int] = {}
        """server_version_num of those that have been asked."""
        self._closed = False

    async def look(self, server: Endpoint, deadline: float) -> ProbeResult:
        """See ports.Surgeon."""
        return await self._ask(server, deadline)

    async def fence(self, standby: Endpoint, deadline: float) -> ProbeResult:
        """Point the standby's walreceiver at nowhere and wait until it is gone. See ports.Surgeon.

        primary_conninfo keeps its login, so that repoint() finds it, also after a restart of the router. A hold on
        writes left from an earlier switchover is taken back: the next primary is one of the fenced. A standby that was
        started a moment ago is not fenced before it can say how much it has.
        """
        managed, standing = await self._queries(standby, (PATRONI_QUERY, _STANDBY), deadline)
        _refuse_managed(standby, managed)
        settings, streamed = _replication(standby, standing)
        gone = f"NOT EXISTS ({_RECEIVER}) AND NOT EXISTS ({_OLD_RECEIVER})"
        nowhere = _with(settings, host=self._fence)
        (knows,) = await self._alter(
            standby, "primary_conninfo", nowhere, deadline, gone, look=_READ_ALL, beside=(_ALLOW_WRITES,)
        )
        if knows != "t":
            await self._read_all(standby, deadline)
        now = asyncio.get_running_loop().time
        quiet_since = now()
        # One that streamed and is gone has ended because of us, and the next goes nowhere.
        while not streamed and now() - quiet_since < SETTLE_S:
            await asyncio.sleep(STEP_S)
            if not await self._holds(standby, gone, deadline):
                await self._until(standby, gone, deadline)
                streamed = True
        return await self._ask(standby, deadline)

    async def _read_all(self, standby: Endpoint, deadline: float) -> None:
        now = asyncio.get_running_loop().time
        ends = min(now() + READ_ALL_S, deadline)
        while not await self._holds(standby, _READ_ALL, deadline):
            if now() >= ends:
                raise _impossible(standby, "it was started lately, and has not replayed yet all that it had confirmed")
            await asyncio.sleep(STEP_S)

    async def still_fenced(self, standby: Endpoint, deadline: float) -> bool:
        """See ports.Surgeon."""
        return await self._holds(
            standby, f"{self._stands} AND NOT EXISTS ({_RECEIVER} WHERE status = 'streaming')", deadline
        )

    async def set_synchronous(self, server: Endpoint, names: str, deadline: float) -> None:
        """See ports.Surgeon."""
        await self._alter(server, "synchronous_standby_names", names, deadline)

    async def promote(self, standby: Endpoint, deadline: float) -> ProbeResult:
        """See ports.Surgeon."""
        await self._ask_to_promote(standby, deadline)
        now = asyncio.get_running_loop().time
        wake_at = now() + WAKE_S
        while True:
            wake = (_WAKE,) if now() >= wake_at else ()
            wake_at = now() + WAKE_S if wake else wake_at
            result = await self._ask(standby, deadline, *wake)
            if result.claim is not None and not result.claim.in_recovery:
                return result
            await asyncio.sleep(STEP_S)

    async def _ask_to_promote(self, standby: Endpoint, deadline: float) -> None:
        """While the start-up process is at rest, or after AT_REST_S at the latest."""
        now = asyncio.get_running_loop().time
        hurry_at = min(now() + AT_REST_S, deadline)
        while True:
            ready = "true" if now() >= hurry_at else f"EXISTS ({_AT_REST})"
            asked = f"SELECT {self._stands}, CASE WHEN {self._stands} AND {ready} THEN pg_promote(false) END"
            [(stands, done)] = await self._query(standby, asked, deadline)
            if stands != "t":
                raise _impossible(standby, "it is no standby with our fence on it: somebody else has moved it")
            if done is not None:
                return
            await asyncio.sleep(STEP_S)

    async def repoint(
        self, standby: Endpoint, upstream: Endpoint, deadline: float, *, others_too: bool = True
    ) -> None:
        """See ports.Surgeon. The replication login is the one that the standby has used so far."""
        settings, _ = _replication(standby, await self._query(standby, _STANDBY, deadline))
        host = str(settings.get("host") or "")
        if not others_too and host.startswith(FENCED_HOST) and not host.startswith(self._routers):
            raise _impossible(standby, "another router's fence stands on it, which may be about to promote")
        settings.setdefault("application_name", standby.name)
        target = _with(settings, host=upstream.host, port=str(upstream.port))
        streams = f"EXISTS ({_RECEIVER} WHERE status = 'streaming' AND sender_port = {upstream.port})"
        await self._alter(standby, "primary_conninfo", target, deadline, streams)

    async def commits_wait(self, primary: Endpoint, deadline: float) -> bool:
        """See ports.Surgeon. Sessions see synchronous_standby_names change before it is in force: commits begin to wait
        once the checkpointer has read it, which in the middle of a checkpoint takes its time (PostgreSQL's syncrep.c,
        SyncRepUpdateSyncStandbysDefined). Where standbys of this one follow already, and confirm, a commit comes
        through either way: then it must do so for SURE_S."""
        now = asyncio.get_running_loop().time
        sure_at, pause_s = deadline, STEP_S
        connection = await self._opened(primary, deadline)
        try:
            while now() < deadline - LAST_S:
                if await self._is_waiting(connection, primary, deadline):
                    return True
                confirmed = await self._holds(primary, f"EXISTS ({_CONFIRMING})", deadline)
                sure_at = min(sure_at, now() + SURE_S) if confirmed else deadline
                if now() >= sure_at:
                    return True
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, MOST_STEP_S)
            return False
        finally:
            connection.close()

    async def _opened(self, server: Endpoint, deadline: float) -> ControlConnection:
        """A connection more; a server that is full for the moment is asked again."""
        while True:
            try:
                return await self._door.open(server, deadline)
            except AttemptFailed as failure:
                if failure.fault.sqlstate != "53300":
                    raise
            await asyncio.sleep(MOST_STEP_S)

    async def _is_waiting(self, connection: ControlConnection, primary: Endpoint, deadline: float) -> bool:
        """Whether a write on this connection is seen to wait for a standby before it is answered. Who asks then closes
        the connection: the write stands."""
        proof = asyncio.create_task(connection.queries(_PROOF, deadline))
        try:
            while not proof.done():
                if await self._holds(primary, f"EXISTS ({_WAITING} AND pid = {connection.backend_pid})", deadline):
                    return True
                await asyncio.sleep(STEP_S)
            await proof
            return False
        finally:
            proof.cancel()
            await asyncio.gather(proof, return_exceptions=True)

    async def verify_write(self, primary: Endpoint, deadline: float) -> None:
        """See ports.Surgeon."""
        await self._queries(primary, _PROOF, deadline)

    async def hold_writes(self, primary: Endpoint, deadline: float) -> ProbeResult:
        """See ports.Surgeon. Ends with a write of its own that is confirmed, so that the position said is on disk."""
        _refuse_managed(primary, await self._query(primary, PATRONI_QUERY, deadline))
        look = f"clock_timestamp(), EXISTS (SELECT{_WRITERS})"
        held_at, writing = await self._alter(primary, "default_transaction_read_only", "on", deadline, look=look)
        now = asyncio.get_running_loop().time
        writers = f"{_WRITERS} AND (a.xact_start < '{held_at}'::timestamptz{_LATE})"
        grace_ends = min(now() + GRACE_S, deadline)
        while True:
            while writing == "t":
                if now() >= grace_ends:
                    await self._query(primary, f"SELECT pg_terminate_backend(a.pid){writers}", deadline)
                await asyncio.sleep(STEP_S)
                [(writing,)] = await self._query(primary, f"SELECT EXISTS (SELECT{writers})", deadline)
            result, writing = await self._last_position(primary, f"EXISTS (SELECT{writers})", deadline)
            if result is not None:
                return result

    async def _last_position(self, primary: Endpoint, writing: str, deadline: float) -> tuple[ProbeResult | None, str]:
        """Where it is after a write of our own; None when somebody else was writing then, or has written since."""
        began = asyncio.get_running_loop().time()
        asked = (*_PROOF, f"SELECT {writing}", ROLE_QUERY, _NEXT_XID)
        answers = await self._queries(primary, asked, deadline)
        (ours,), ((writes,),), (role,), ((after,),) = answers[2], *answers[-3:]
        if writes == "t" or int(after or 0) != int(ours[0] or 0) + 1:
            return None, "t"
        self._held[primary.name] = int(ours[0] or 0)
        return self._told(primary, role, began), "f"

    async def still_held(self, primary: Endpoint, deadline: float) -> bool:
        """See ports.Surgeon."""
        writing = f"SELECT EXISTS (SELECT{_WRITERS} AND a.backend_xid IS NOT NULL)"
        [(writes,)], [(after,)] = await self._queries(primary, (writing, _NEXT_XID), deadline)
        return writes == "f" and int(after or 0) - 1 == self._held.get(primary.name)

    async def allow_writes(self, primary: Endpoint, deadline: float) -> None:
        """See ports.Surgeon."""
        await self._queries(primary, (_ALLOW_WRITES, _RELOAD), deadline)

    async def close(self) -> None:
        """Close all connections; one in use closes when its act has been answered."""
        self._closed = True
        for connection in self._kept.values():
            connection.close()
        self._kept.clear()

    async def _alter(
        self,
        server: Endpoint,
        setting: str,
        value: str,
        deadline: float,
        until: str = "true",
        *,
        look: str = "true",
        beside: tuple[str, ...] = (),
    ) -> Row:
        """ALTER SYSTEM, reload, and wait until a session of the server has read it and a condition holds there; what
        look was in that moment. beside: what else is to be in force then."""
        wanted = _literal(value)
        seen = f"SELECT current_setting('{setting}') = {wanted} AND {until}, {look}"
        change = (f"ALTER SYSTEM SET {setting} = {wanted}", *beside, _RELOAD, seen)
        row = (await self._queries(server, change, deadline))[-1][0]
        while row[0] != "t":
            await asyncio.sleep(STEP_S)
            row = (await self._query(server, seen, deadline))[0]
        return row[1:]

    async def _until(self, server: Endpoint, condition: str, deadline: float) -> None:
        """Look until it holds; ended by the deadline of the queries."""
        while not await self._holds(server, condition, deadline):  # noqa: ASYNC110 - it happens in another process
            await asyncio.sleep(STEP_S)

    async def _holds(self, server: Endpoint, condition: str, deadline: float) -> bool:
        return await self._query(server, f"SELECT {condition}", deadline) == [("t",)]

    async def _ask(self, server: Endpoint, deadline: float, *before: str) -> ProbeResult:
        """What it says of itself, once it has done what is to be done before."""
        began = asyncio.get_running_loop().time()
        rows = (await self._queries(server, (*before, ROLE_QUERY), deadline))[-1]
        return self._told(server, rows[0], began)

    def _told(self, server: Endpoint, role: Row, began: float) -> ProbeResult:
        """What ROLE_QUERY's row says; asked then."""
        ended = asyncio.get_running_loop().time()
        claim = read_claim(role, self._versions[server.name])
        return ProbeResult(server.name, ProbeOutcome.OK, ended, ended - began, claim)

    async def _query(self, server: Endpoint, sql: str, deadline: float) -> list[Row]:
        return (await self._queries(server, (sql,), deadline))[0]

    async def _queries(self, server: Endpoint, statements: Sequence[str], deadline: float) -> list[list[Row]]:
        """Ask on the kept connection if nobody else does; a kept one that turns out to be dead is opened anew, once."""
        kept = self._kept.pop(server.name, None)
        if kept is not None and kept.usable:
            try:
                return await self._ask_on(kept, server, statements, deadline)
            except AttemptFailed as error:
                if error.fault.kind is not FaultKind.CONNECTION_LOST:
                    raise
        return await self._ask_on(await self._door.open(server, deadline), server, statements, deadline)

    async def _ask_on(
        self, connection: ControlConnection, server: Endpoint, statements: Sequence[str], deadline: float
    ) -> list[list[Row]]:
        """On a connection that is ours alone until it is answered."""
        self._versions[server.name] = connection.server_version
        try:
            return await connection.queries(statements, deadline)
        finally:
            if connection.usable and not self._closed and server.name not in self._kept:
                self._kept[server.name] = connection
            else:
                connection.close()


def _refuse_managed(server: Endpoint, answer: list[Row]) -> None:
    """The last look before the first act: two that move one primary would undo each other's work."""
    manager = answer[0][0]
    if manager:
        raise _impossible(server, manager)


def _replication(standby: Endpoint, answer: list[Row]) -> tuple[dict[str, str | int | None], bool]:
    """What a standby's primary_conninfo says, without an address, and whether it has a walreceiver; from _STANDBY."""
    in_recovery, text, streams = answer[0]
    if in_recovery != "t":
        raise _impossible(standby, "it is not a standby")
    if not text:
        raise _impossible(standby, "its primary_conninfo is empty: there is no replication login to keep")
    settings = conninfo_to_dict(text)
    settings.pop("hostaddr", None)
    return settings, streams == "t"


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
