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
    try:
        duplicate = socket.socket(fileno=os.dup(pgconn.socket))
    except (OSError, psycopg.Error):
        return  # already closed
    try:
        duplicate.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # the peer was faster
    finally:
        duplicate.close()
