"""The COPY protocol on a lane's connection, at psycopg.pq level: bytes in or out, with back pressure both ways.

libpq forbids COPY in pipeline mode, so the lane lends its connection: it leaves pipeline mode here and enters it
again once libpq says that the connection is idle and in sync; else the lane ends it. Its unit is the lane's only one
meanwhile, and is stopped, cancelled and abandoned like any other
(https://www.postgresql.org/docs/current/libpq-copy.html).
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, unique
from typing import TYPE_CHECKING

import psycopg
from psycopg.pq import ExecStatus

from router.model.copying import CopyLayout
from router.model.observation import FaultKind
from router.model.result import StatementResult
from router.ports import Unit
from router.postgres import faults

if TYPE_CHECKING:
    from psycopg.pq.abc import PGconn, PGresult

CHUNK_BYTES = 96 << 10
"""Rows are collected up to this size before they leave as one piece: with rows of usual size 96 to 128 KiB."""
MAX_CHUNK_BYTES = 128 << 10
MAX_CHUNKS = 4
"""Pieces waiting for the caller before the connection is read no further; then PostgreSQL stands still as well."""
TURN_ROWS = 1024
"""Rows taken in one turn of the loop (about 0.2 ms): whoever else waits for the loop does not wait long."""
LINGER_S = 0.005
"""Less than a piece leaves after this time, when PostgreSQL has sent no more: the first rows come early."""


@unique
class _State(Enum):
    STARTING = "starting"
    OUT = "out"
    IN = "in"
    ENDING = "ending"
    """All data has passed: PostgreSQL's last word is due."""
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class CopyHost:
    """What the lane does for its COPY."""

    lose: Callable[[str, FaultKind], None]
    """End the connection."""
    refuse: Callable[[PGresult], None]
    """PostgreSQL answered with an error."""
    end: Callable[[], None]
    """The connection is idle: take it back, and finish the unit."""


class PqCopyChannel:
    """ports.CopyChannel. Invariant: in each state but ENDED the socket is watched, unless the caller is slow."""

    def __init__(self, pgconn: PGconn, unit: Unit, host: CopyHost) -> None:
        self._pgconn = pgconn
        self._unit = unit
        self._host = host
        self._loop = asyncio.get_running_loop()
        self._state = _State.STARTING
        self._fd = -1
        self._layout: CopyLayout | None = None
        self._rows: list[memoryview] = []
        self._size = 0
        """Of what is in rows (bytes)."""
        self._chunks: deque[bytes] = deque()
        self._paused = False
        self._going_on = False
        """libpq has more, to be taken in the next turn of the loop."""
        self._dropping = False
        self._unwanted: bytes | None = None
        """Why it is to end as soon as it has begun."""
        self._writing = False
        """Bytes for PostgreSQL are left in libpq's buffer."""
        self._lingering: asyncio.TimerHandle | None = None
        self._wake: asyncio.Future[None] | None = None
        self._done = unit.done
        unit.done = self._on_done

    def __repr__(self) -> str:
        return f"<PqCopyChannel {self._state.value} chunks={len(self._chunks)} writing={self._writing}>"

    @property
    def layout(self) -> CopyLayout | None:
        return self._layout

    def begin(self) -> None:
        """Send the statement. To be called once, on an idle connection, with the unit in the lane's queue."""
        self._unit.sent = True
        self._unit.sent_at = self._loop.time()
        self._fd = self._pgconn.socket
        self._loop.add_reader(self._fd, self._on_readable)
        try:
            self._pgconn.exit_pipeline_mode()
            # Extended protocol: PostgreSQL itself refuses a second statement in the text.
            self._pgconn.send_query_params(self._unit.statements[0].sql, None)
            self._flush()
        except psycopg.Error as error:
            self._lose(error)

    # --- the caller's side -------------------------------------------------------------------------------------

    async def started(self) -> None:
        """ports.CopyChannel.started."""
        while self._state is _State.STARTING:
            await self._event()

    async def read(self) -> bytes:
        """ports.CopyChannel.read."""
        while not self._chunks and self._state is not _State.ENDED:
            await self._event()
        if not self._chunks:
            return b""
        chunk = self._chunks.popleft()
        if self._paused and len(self._chunks) < MAX_CHUNKS // 2:
            self._resume()
        return chunk

    def drop(self) -> None:
        """ports.CopyChannel.drop."""
        self._dropping = True
        self._chunks.clear()
        self._rows.clear()
        self._size = 0
        if self._paused:
            self._resume()

    async def write(self, data: bytes) -> bool:
        """ports.CopyChannel.write."""
        while self._writing and self._state is _State.IN:
            await self._event()
        if self._state is not _State.IN:
            return False
        try:
            self._pgconn.put_copy_data(data)
            self._flush()
        except psycopg.Error as error:
            self._lose(error)
        return self._state is _State.IN and not self._unit.done_at

    def finish(self, *, commits: bool) -> None:
        """ports.CopyChannel.finish."""
        if self._state is _State.IN:
            self._unit.commits = commits  # before the first byte: whatever fails from here on leaves the outcome open
            self._end_data(None)

    def fail(self, why: str) -> None:
        """ports.CopyChannel.fail."""
        if self._state is _State.IN:
            self._end_data(why.encode())
        else:
            self._unwanted = why.encode()

    async def _event(self) -> None:
        self._wake = self._loop.create_future()
        try:
            await self._wake
        finally:
            self._wake = None

    def _notify(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    # --- to PostgreSQL -----------------------------------------------------------------------------------------

    def _end_data(self, error: bytes | None) -> None:
        self._state = _State.ENDING
        try:
            self._pgconn.put_copy_end(error)
            self._flush()
        except psycopg.Error as failure:
            self._lose(failure)
        self._notify()

    def _flush(self) -> None:
        left = self._pgconn.flush() != 0
        if left and not self._writing:
            self._loop.add_writer(self._fd, self._on_writable)
        elif self._writing and not left:
            self._loop.remove_writer(self._fd)
            self._notify()
        self._writing = left

    def _on_writable(self) -> None:
        try:
            self._flush()
        except psycopg.Error as error:
            self._lose(error)

    def _error_waits(self) -> bool:
        """Whether PostgreSQL has sent an error, which libpq does not look at before the end of the data.

        Then the rest of the data is in vain. Over TLS nobody can look: the error is met at the end.
        """
        if self._pgconn.ssl_in_use:
            return False
        with socket.socket(fileno=os.dup(self._fd)) as duplicate:
            try:
                seen = duplicate.recv(6, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            except OSError:
                return False
        # ErrorResponse: "E", four bytes of length, then its first field, which is the severity.
        return seen[:1] == b"E" and seen[5:6] == b"S"

    # --- from PostgreSQL ---------------------------------------------------------------------------------------

    def _on_readable(self) -> None:
        if self._going_on:
            return
        try:
            if self._state is _State.IN and self._error_waits():
                self._end_data(b"stopped by an error")
            self._pgconn.consume_input()
            self._go_on()
            if self._writing:
                self._flush()
        except psycopg.Error as error:
            self._lose(error)

    def _on_buffered(self) -> None:
        """What libpq has already taken from the socket raises no event."""
        self._going_on = False
        if self._paused or self._state is _State.ENDED or self._unit.done_at:
            return
        try:
            self._go_on()
        except psycopg.Error as error:
            self._lose(error)

    def _go_on(self) -> None:
        if self._state is _State.OUT:
            self._take_data()
        if self._state in (_State.STARTING, _State.ENDING):
            self._take_results()

    def _take_data(self) -> None:
        """Rows until there is a piece of them, or no more for now. The hot loop: libpq gives one row a call."""
        pgconn, rows, size = self._pgconn, self._rows, self._size
        get, add = pgconn.get_copy_data, rows.append
        left, dry = TURN_ROWS, False
        while left and size < CHUNK_BYTES:
            length, row = get(1)
            if length > 0:
                add(row)
                size += length
                left -= 1
                dry = False
            elif length == 0:
                if dry:
                    break
                dry = True
                pgconn.consume_input()
            else:
                self._state = _State.ENDING
                break
        self._size = size
        if size >= CHUNK_BYTES or self._state is _State.ENDING:
            self._cut()
        elif size and dry and self._lingering is None:
            self._lingering = self._loop.call_later(LINGER_S, self._on_lingered)
        if self._state is _State.OUT and not dry and not self._paused:
            self._come_back()

    def _come_back(self) -> None:
        """What is left is libpq's, and the socket may stay silent: look again without an event."""
        if not self._going_on:
            self._going_on = True
            self._loop.call_soon(self._on_buffered)

    def _cut(self) -> None:
        """Make a piece of the rows."""
        if not self._rows:
            return
        piece = b"".join(self._rows)
        self._rows.clear()
        self._size = 0
        if self._dropping:
            return
        if len(piece) <= MAX_CHUNK_BYTES:
            self._chunks.append(piece)
        else:
            self._chunks.extend(piece[at : at + MAX_CHUNK_BYTES] for at in range(0, len(piece), MAX_CHUNK_BYTES))
        if len(self._chunks) >= MAX_CHUNKS and self._state is _State.OUT:
            self._paused = True
            self._loop.remove_reader(self._fd)
        self._notify()

    def _on_lingered(self) -> None:
        self._lingering = None
        if self._state is _State.OUT:
            self._cut()

    def _resume(self) -> None:
        self._paused = False
        if self._state is not _State.ENDED and not self._unit.done_at:
            self._loop.add_reader(self._fd, self._on_readable)
            self._come_back()

    def _take_results(self) -> None:
        pgconn = self._pgconn
        while self._state in (_State.STARTING, _State.ENDING) and not pgconn.is_busy():
            result = pgconn.get_result()
            if result is None:
                self._host.end()
                return
            self._take_result(result)

    def _take_result(self, result: PGresult) -> None:
        match result.status:
            case ExecStatus.COPY_OUT | ExecStatus.COPY_IN as status:
                self._layout = CopyLayout(result.nfields, bool(result.binary_tuples))
                self._state = _State.OUT if status == ExecStatus.COPY_OUT else _State.IN
                self._notify()
                if self._state is _State.OUT:
                    self._take_data()
                elif self._unwanted is not None:
                    self._end_data(self._unwanted)
            case ExecStatus.COMMAND_OK:
                tag = result.command_status or b""
                self._unit.results.append(StatementResult(None, tag.decode(), result.command_tuples or 0))
            case ExecStatus.FATAL_ERROR:
                self._host.refuse(result)
            case _:
                self._host.lose("the statement is no COPY of data", FaultKind.PROTOCOL)

    # --- ending ------------------------------------------------------------------------------------------------

    def _lose(self, error: psycopg.Error) -> None:
        self._host.lose(faults.first_line(error), FaultKind.CONNECTION_LOST)

    def _on_done(self, unit: Unit) -> None:
        """The unit is final: the connection is the lane's again, or gone."""
        self._state = _State.ENDED
        self._writing = False
        if self._lingering is not None:
            self._lingering.cancel()
        self._notify()
        self._done(unit)
