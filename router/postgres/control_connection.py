"""A connection of the router's own role, on libpq's non-blocking calls: for probes and surgery, one caller at a time.

Written on psycopg.pq because every wait here must end by its deadline whatever the server does, and psycopg's own
timeouts take ten seconds longer on a frozen one. Giving up costs nothing: the socket is closed, nobody is asked.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import pq
from psycopg.conninfo import make_conninfo
from psycopg.pq import ConnStatus, ExecStatus, PollingStatus

from router.model.observation import AttemptFailed, Fault, FaultKind, Stage
from router.postgres import faults
from router.postgres.answer_size import MOST_UNASKED, received_bytes

if TYPE_CHECKING:
    from psycopg.pq.abc import PGconn, PGresult

Row = tuple[str | None, ...]


class ControlConnection:
    """One open connection. Any failure but an SQL error makes it unusable."""

    def __init__(self, pgconn: PGconn) -> None:
        self._pgconn = pgconn

    @classmethod
    async def open(cls, parameters: Mapping[str, Any], deadline: float) -> ControlConnection:
        """Connect and log in. AttemptFailed SILENT or CONNECT_FAILED: greeting.py can tell why."""
        try:
            async with asyncio.timeout_at(deadline):
                addresses = await _addresses(parameters)
        except OSError as error:
            kind = FaultKind.SILENT if isinstance(error, TimeoutError) else FaultKind.CONNECT_FAILED
            raise AttemptFailed(Fault(kind, Stage.CONNECT, message=f"{parameters['host']}: {error}")) from error
        text = make_conninfo(**{**parameters, **addresses})
        pgconn: PGconn = pq.PGconn.connect_start(text.encode())
        try:
            async with asyncio.timeout_at(deadline):
                await _connected(pgconn)
        except TimeoutError as error:
            pgconn.finish()
            raise AttemptFailed(Fault(FaultKind.SILENT, Stage.CONNECT, message="no answer while connecting")) from error
        except BaseException:
            pgconn.finish()
            raise
        pgconn.nonblocking = 1
        return cls(pgconn)

    @property
    def server_version(self) -> int:
        """PostgreSQL's server_version_num."""
        return self._pgconn.server_version

    @property
    def backend_pid(self) -> int:
        """The server's process behind it."""
        return self._pgconn.backend_pid

    @property
    def usable(self) -> bool:
        """Open, and nothing has failed on it."""
        return self._pgconn.status == ConnStatus.OK

    async def query(self, sql: str, deadline: float) -> list[Row]:
        """Run one statement in a transaction of its own. AttemptFailed: SERVER_ERROR, CONNECTION_LOST or SILENT."""
        return (await self.queries((sql,), deadline))[0]

    async def queries(self, statements: Sequence[str], deadline: float) -> list[list[Row]]:
        """The same for several, sent at once: all are run, also those behind one that failed; its error is raised."""
        try:
            async with asyncio.timeout_at(deadline):
                results = await self._run(statements)
                return [_rows(result) for result in results]
        except TimeoutError as error:
            self.close()
            raise AttemptFailed(Fault(FaultKind.SILENT, Stage.EXECUTE, message="no answer in time")) from error
        except asyncio.CancelledError:
            self.close()
            raise

    def close(self) -> None:
        """Close the socket now. Safe to call twice."""
        self._pgconn.finish()

    async def _run(self, statements: Sequence[str]) -> list[PGresult]:
        """The last result of each."""
        pgconn = self._pgconn
        several = len(statements) > 1
        try:
            if several:
                pgconn.enter_pipeline_mode()
            for sql in statements:
                pgconn.send_query_params(sql.encode(), None)
                if several:
                    pgconn.pipeline_sync()
            while pgconn.flush():
                await _ready(pgconn.socket, writing=True)
            before = received_bytes(pgconn.socket)
            results = []
            for _ in statements:
                results.append(await self._answer(before))
                if several:
                    await self._synced(before)
            if several:
                pgconn.exit_pipeline_mode()
        except (psycopg.Error, OSError) as error:
            self.close()
            raise AttemptFailed(
                Fault(FaultKind.CONNECTION_LOST, Stage.EXECUTE, message=faults.first_line(error))
            ) from error
        return results

    async def _answer(self, before: int | None) -> PGresult:
        last = None
        while (result := await self._next(before)) is not None:
            last = result
        if last is None:
            raise psycopg.OperationalError("no answer to a question")
        return last

    async def _synced(self, before: int | None) -> None:
        result = await self._next(before)
        if result is None or result.status != ExecStatus.PIPELINE_SYNC:
            raise psycopg.OperationalError("answers out of step")

    async def _next(self, before: int | None) -> PGresult | None:
        """The next result, None at the end of a statement's. before: received_bytes() when they were sent."""
        while self._pgconn.is_busy():
            await _ready(self._pgconn.socket, writing=False)
            self._pgconn.consume_input()
            _bound(self._pgconn.socket, before)
        result = self._pgconn.get_result()
        if result is not None and result.status in faults.COPYING:  # libpq would answer so for ever, without a wait
            raise psycopg.OperationalError("COPY in answer to a question")
        return result


def _bound(descriptor: int, before: int | None) -> None:
    """OperationalError when more has come than an answer to one of our own questions can be."""
    if before is not None and (received_bytes(descriptor) or 0) - before > MOST_UNASKED:
        raise psycopg.OperationalError(f"an answer of more than {MOST_UNASKED >> 20} MiB to a question")


def _rows(result: PGresult) -> list[Row]:
    if result.status not in (ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK):
        raise AttemptFailed(faults.from_result(result, Stage.EXECUTE, 0))
    return [tuple(_cell(result, row, column) for column in range(result.nfields)) for row in range(result.ntuples)]


def _cell(result: PGresult, row: int, column: int) -> str | None:
    value = result.get_value(row, column)
    return None if value is None else value.decode("utf-8", "replace")


async def _connected(pgconn: PGconn) -> None:
    """Drive libpq's connection machine to its end. AttemptFailed when it fails."""
    while True:
        match pgconn.connect_poll():
            case PollingStatus.OK:
                return
            case PollingStatus.READING:
                await _ready(pgconn.socket, writing=False)
            case PollingStatus.WRITING:
                await _ready(pgconn.socket, writing=True)
            case _:
                message = pgconn.get_error_message().strip().split("\n", 1)[0]
                raise AttemptFailed(Fault(FaultKind.CONNECT_FAILED, Stage.CONNECT, message=message))


async def _ready(descriptor: int, *, writing: bool) -> None:
    """Wait until a socket can be written to or read from. Cancelling is safe."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    add, remove = (loop.add_writer, loop.remove_writer) if writing else (loop.add_reader, loop.remove_reader)
    add(descriptor, wake)
    try:
        await ready
    finally:
        remove(descriptor)


async def _addresses(parameters: Mapping[str, Any]) -> dict[str, str]:
    """hostaddr for a host name, as libpq would block while it resolves one; nothing for socket directories."""
    host = str(parameters["host"])
    if host.startswith("/"):
        return {}
    found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return {"hostaddr": str(found[0][4][0])}
