"""Sync without a send of its own: PQsendPipelineSync, which psycopg's pq does not offer.

PQpipelineSync sends at once, one system call a unit; PQsendPipelineSync (libpq 17) leaves the message in the output
buffer, where one PQflush sends all units of a loop turn together. It is looked up in the very libpq that psycopg's
module is linked to, already loaded in this process. Where there is none (older libpq, psycopg's pure Python variant,
another platform), pgconn.pipeline_sync() does the same work with more system calls.
https://www.postgresql.org/docs/current/libpq-pipeline-mode.html#LIBPQ-PQSENDPIPELINESYNC
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import pq

if TYPE_CHECKING:
    from psycopg.pq.abc import PGconn

_QUEUED = 1


def queue_sync_on(pgconn: PGconn) -> Callable[[], None]:
    """What ends a unit on this connection; its bytes leave with the next flush at the latest."""
    library = _linked_libpq()
    if library is None or not _owns(library, pgconn):
        return pgconn.pipeline_sync
    send = library.PQsendPipelineSync
    connection: Any = pgconn  # psycopg's Protocol leaves pgconn_ptr out, which is documented all the same

    def queue_sync() -> None:
        # Asked for each time: a finished connection has None here, which libpq refuses.
        if send(connection.pgconn_ptr) != _QUEUED:
            raise psycopg.OperationalError(pgconn.get_error_message())

    return queue_sync


@functools.cache
def _linked_libpq() -> ctypes.PyDLL | None:
    """The libpq of psycopg's module, if it knows PQsendPipelineSync. Looked up once; nothing is loaded for it."""
    path = getattr(sys.modules.get(pq.PGconn.__module__), "__file__", None)
    if path is None or not hasattr(os, "RTLD_NOLOAD"):
        return None
    try:
        # By the module's own handle a name is searched in what the module is linked to, never in another libpq. PyDLL:
        # it keeps the interpreter's lock, as nothing waits here (the connection is non-blocking).
        library = ctypes.PyDLL(path, mode=os.RTLD_NOLOAD | os.RTLD_NOW)
        library.PQsendPipelineSync.argtypes = [ctypes.c_void_p]
        library.PQsendPipelineSync.restype = ctypes.c_int
        for name in ("PQsocket", "PQbackendPID"):
            getattr(library, name).argtypes = [ctypes.c_void_p]
        same = library.PQlibVersion() == pq.version()
    except (OSError, AttributeError):
        return None
    return library if same else None


def _owns(library: ctypes.PyDLL, pgconn: PGconn) -> bool:
    """Whether the library reads this connection as psycopg does: it is the one that made it."""
    pointer = getattr(pgconn, "pgconn_ptr", None)
    if not pointer:
        return False
    return bool(
        library.PQsocket(pointer) == pgconn.socket and library.PQbackendPID(pointer) == pgconn.backend_pid
    )
