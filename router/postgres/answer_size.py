"""How much of one answer has come. libpq keeps all rows of a statement until its end, and tells nobody how many.

An answer that is no stream must fit into one message (3 MiB). What goes far beyond is not waited for: it would take the
memory of everybody. Looked at only when several reads from the socket have ended no answer, so that usual ones pay a
comparison for each read.
"""

from __future__ import annotations

import socket
import struct

from router.ports import Unit
from router.postgres.row_mode import bytes_waiting

MOST_BYTES = 16 << 20
"""Of an answer, as it comes over the wire."""
MOST_UNASKED = 1 << 20
"""Of what comes while nothing is asked: libpq leaves it unread in its buffer until somebody asks."""
_PATIENCE = 8
"""Reads that end no answer before anything is measured."""
_EVERY = 4
_READ_BYTES = 16 << 10
"""libpq reads at least this much at once where more is waiting."""
_RECEIVED = struct.Struct("=Q")
_RECEIVED_AT = 128
"""tcpi_bytes_received in Linux's tcp_info (linux/tcp.h)."""


class AnswerSize:
    """Watches the answers of one connection."""

    __slots__ = ("_before", "_fd", "_key", "_reads", "_since", "idle_from")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._key = (0, 0.0)
        """Of the unit whose answer is coming; not the unit itself, which would live on here."""
        self._reads = 0
        self._before: int | None = None
        self._since = 0
        self.idle_from: int | None = None
        """What had come by the first read since nothing is asked; whoever asks again sets it to None."""

    def unasked(self) -> bool:
        """Called after each read while nothing was asked: whether more has come than a server has to say by itself."""
        received = received_bytes(self._fd)
        if self.idle_from is None:
            self.idle_from = received or 0
            return False
        if received is None:
            self.idle_from += _READ_BYTES
            return self.idle_from > MOST_UNASKED
        return received - self.idle_from > MOST_UNASKED

    def too_large(self, head: Unit) -> bool:
        """Called after each read that left a unit's answer incomplete: whether more of it has come than may."""
        key = (id(head), head.sent_at)
        if key != self._key:
            self._key, self._reads, self._since = key, 0, 0
            return False
        self._reads += 1
        if self._reads < _PATIENCE or self._reads % _EVERY or head.on_rows is not None:
            return False
        received = received_bytes(self._fd)
        if received is None:
            self._since += _EVERY * _READ_BYTES if bytes_waiting(self._fd) else 0
        elif self._reads == _PATIENCE:
            self._before = received
        elif self._before is not None:
            self._since = received - self._before
        return self._since > MOST_BYTES


def received_bytes(fd: int) -> int | None:
    """Bytes that have ever come to a TCP socket; None where nobody counts them."""
    option = getattr(socket, "TCP_INFO", None)
    if option is None:
        return None
    end = socket.socket(fileno=fd)
    try:
        info = end.getsockopt(socket.IPPROTO_TCP, option, _RECEIVED_AT + _RECEIVED.size)
    except OSError:
        return None  # a Unix socket
    finally:
        end.detach()
    return int(_RECEIVED.unpack_from(info, _RECEIVED_AT)[0]) if len(info) >= _RECEIVED_AT + _RECEIVED.size else None
