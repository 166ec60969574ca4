"""Ending to listen without ending the server: gRPC has no call for it, so its listening sockets are taken from it.

In a listening socket's place, under the same descriptor, gRPC finds one that nobody can connect to, and waits on it
until the server ends. The socket itself is then shut down for reading, by which Linux stops to listen at once, whoever
else holds it. Shut down in gRPC's hands it would do the same, but gRPC would report an error, "Failed accept4: Invalid
argument", at every orderly end. Connections that exist are not touched.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

_DESCRIPTORS = Path("/proc/self/fd")


def stop_listening(address: str) -> int:
    """Stop this process from listening on a port of "host:port"; how many sockets did. None where /proc is missing.

    To be called while nobody else ends these sockets: before the server's own end.
    """
    port = int(address.rpartition(":")[2])
    stopped = 0
    for descriptor, one in _listening(port):
        with one:
            # Without a stand-in (no descriptor left, no such sockets here) the error is written, and that is all.
            with contextlib.suppress(OSError), _silent() as stand_in:
                os.dup2(stand_in.fileno(), descriptor, inheritable=False)
            one.shutdown(socket.SHUT_RD)
            stopped += 1
    return stopped


def _silent() -> socket.socket:
    """A socket that listens, so that accept() finds nothing rather than failing, under a name that the kernel makes."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        made.bind("")
        made.listen(1)
        made.setblocking(False)
    except OSError:
        made.close()
        raise
    return made


def _listening(port: int) -> Iterator[tuple[int, socket.socket]]:
    """This process' sockets that listen on the port: their descriptors, and duplicates."""
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
                yield descriptor, one
            else:
                one.close()
