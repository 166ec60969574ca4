"""Ending to listen without ending the server: gRPC has no call for it, so the listening socket itself is shut down.

On Linux a listening socket that is shut down for reading stops to listen at once, and gRPC gives it up when it next
wants to accept from it. Connections that exist are not touched.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

_DESCRIPTORS = Path("/proc/self/fd")


def stop_listening(address: str) -> int:
    """Stop this process from listening on a port of "host:port"; how many sockets did. None where /proc is missing."""
    port = int(address.rpartition(":")[2])
    stopped = 0
    for one in _listening(port):
        with one:
            one.shutdown(socket.SHUT_RD)
            stopped += 1
    return stopped


def _listening(port: int) -> Iterator[socket.socket]:
    """Duplicates of this process' sockets that listen on the port."""
    names = [int(entry.name) for entry in _DESCRIPTORS.iterdir()] if _DESCRIPTORS.is_dir() else []
    for descriptor in names:
        with contextlib.suppress(OSError):
            duplicate = os.dup(descriptor)
            try:
                one = socket.socket(fileno=duplicate)
            except OSError:  # not a socket
                os.close(duplicate)
                continue
            internet = one.family in (socket.AF_INET, socket.AF_INET6)
            if internet and one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) and one.getsockname()[1] == port:
                yield one
            else:
                one.close()
