"""How many rows libpq collects before it hands them out: many for a fast statement, one for a slow one.

libpq gives out full chunks only, and the size must be set before it has read the first byte of the result
(PQsetChunkedRowsMode). So a row of a statement that brings one row a second would wait in libpq for the rest of its
chunk; and one row at a time costs the router twice as much per row. PostgreSQL itself sends whenever its buffer of
8 KiB is full, and at the end: how much more than that has come a moment after the first byte tells the two apart.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import sys
import termios
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from psycopg.pq.abc import PGconn

SERVER_BUFFER_BYTES = 8 << 10
"""PostgreSQL's PQ_SEND_BUFFER_SIZE: what it has flushed before its end is at least this much."""
FAST_BYTES = 2 * SERVER_BUFFER_BYTES
"""That much at once comes only from a statement that is fast."""
_BEFORE_ROWS = (b"1", b"2", b"T", b"N", b"S", b"C", b"Z", b"3", b"A")
"""Messages that may come before a row: parsed, bound, its description, a notice, a setting; ends of what was before."""
LOOK_S = 0.001
MAX_LOOKS = 25
"""Pauses of LOOK_S at most for a server that has flushed once: on a busy machine it may have been interrupted there,
and a fast statement in the wrong mode costs more than a slow one's first rows lose."""


CHUNK_BYTES = 64 << 10
"""A chunk of long rows has fewer of them, so that it takes no more memory than this (or than its one row)."""
ENCRYPTED_CHUNK_ROWS = 16
"""Rows of a chunk where nobody can see how long they are before libpq has read them."""


class RowMode:
    """Decides for one connection, once for each streamed statement."""

    __slots__ = ("_looks", "_loop", "_most", "_pgconn", "_resume", "_timer", "open")

    def __init__(self, pgconn: PGconn, resume: Callable[[], None]) -> None:
        """resume: the reader of the connection's socket."""
        self._pgconn = pgconn
        self._resume = resume
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._most = 1
        self._looks = 0
        self.open = False
        """Nothing may be read before decide() has said True."""

    def begin(self, most_rows: int) -> None:
        """A statement was sent whose rows come in chunks; nothing else is on the wire."""
        self._most = most_rows
        self._looks = 0
        self.open = True

    def decide(self) -> bool:
        """Called when the socket is readable. False: not yet; the reader rests for a moment and is then called."""
        waiting = bytes_waiting(self._pgconn.socket)
        patience = MAX_LOOKS if waiting >= SERVER_BUFFER_BYTES else 1
        if waiting < FAST_BYTES and self._most > 1 and self._looks < patience:
            self._looks += 1
            self._loop.remove_reader(self._pgconn.socket)
            self._timer = self._loop.call_later(LOOK_S, self._look_again)
            return False
        self.open = False
        rows = min(self._most, self._rows_of_a_chunk()) if waiting >= FAST_BYTES else 1
        self._pgconn.set_chunked_rows_mode(rows)
        return True

    def _rows_of_a_chunk(self) -> int:
        if self._pgconn.ssl_in_use:
            return ENCRYPTED_CHUNK_ROWS
        size = first_row_bytes(peek(self._pgconn.socket, FAST_BYTES))
        return ENCRYPTED_CHUNK_ROWS if size is None else max(1, CHUNK_BYTES // max(1, size))

    def _look_again(self) -> None:
        self._timer = None
        self._loop.add_reader(self._pgconn.socket, self._resume)
        self._resume()

    def stop(self) -> None:
        """The connection's socket is about to be closed or given back."""
        self.open = False
        self._resume = _nobody  # whoever it belongs to holds this object: together they would wait for the collector
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _nobody() -> None:
    pass


def bytes_waiting(fd: int) -> int:
    """Bytes that have come to a socket and were not read; of a TLS connection, as they are on the wire."""
    return int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), sys.byteorder)


def peek(fd: int, size: int) -> bytes:
    """What waits in a socket, left there; nothing when it cannot be looked at, which libpq will tell."""
    try:
        with socket.socket(fileno=os.dup(fd)) as duplicate:
            return duplicate.recv(size, socket.MSG_PEEK)
    except OSError:
        return b""


def first_row_bytes(waiting: bytes) -> int | None:
    """Length of the first DataRow in the server's messages; None when there is none to be seen.

    A message is a letter and its length, which counts itself
    (https://www.postgresql.org/docs/current/protocol-message-formats.html).
    """
    at = 0
    while at + 5 <= len(waiting):
        length = int.from_bytes(waiting[at + 1 : at + 5], "big")
        if waiting[at : at + 1] == b"D":
            return length
        if waiting[at : at + 1] not in _BEFORE_ROWS or length < 4:
            return None
        at += 1 + length
    return None
