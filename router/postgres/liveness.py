"""Whether a connection is still alive, and ending one at once. Nothing here waits."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import psycopg

if TYPE_CHECKING:
    from psycopg.pq.abc import PGconn


def has_ended(pgconn: PGconn) -> bool:
    """Whether the server has closed an idle connection, as far as this machine knows by now.

    Asked before a connection is lent: what is sent on a dead one would count as sent, and a write's outcome as open.
    """
    try:
        pgconn.consume_input()  # takes the server's last words, if there are any
        pgconn.consume_input()  # and then meets the end
    except psycopg.Error:
        return True
    return False


def shut_socket(pgconn: PGconn) -> None:
    """End every wait on a connection at once, also on a frozen server: psycopg's own time-outs take 10 s there."""
    _shut(pgconn, socket.SHUT_RDWR)


def hang_up(pgconn: PGconn) -> None:
    """Tell the server that this is the end, of a connection on which nobody waits; libpq can send nothing more, so that
    closing it never waits. What the server still sends is for the permit to take (permits.py): this machine would else
    answer it with a reset, which looks like the server's own end."""
    _shut(pgconn, socket.SHUT_WR)


def _shut(pgconn: PGconn, how: int) -> None:
    try:
        duplicate = socket.socket(fileno=os.dup(pgconn.socket))
    except (OSError, psycopg.Error):
        return  # already closed
    try:
        duplicate.shutdown(how)
    except OSError:
        return  # the peer was faster
    finally:
        duplicate.close()
