"""The callers' port of several processes: reserved by the one, listened on by the others.

A bound socket that does not listen takes no connection, but keeps the port: with SO_REUSEPORT for sockets of the same
user, so a worker that comes and goes cannot lose the port to a stranger in between.
"""

from __future__ import annotations

import errno
import os
import socket

from router.config.addresses import parse_address
from router.model.errors import Code, RouterError
from router.model.reasons import RefuseReason


class ReservedPort:
    """The port, until close()."""

    def __init__(self, address: str, sockets: list[socket.socket]) -> None:
        self.address = address
        """With the real port."""
        self._sockets = sockets

    def close(self) -> None:
        """Let anybody have it."""
        for one in self._sockets:
            one.close()


def reserve(address: str) -> ReservedPort:
    """Reserve "host:port" (port 0: any free one) on every address of the name. RouterError CONFIG_INVALID."""
    if address.startswith("unix:"):
        raise _refused(address, "several workers cannot share a Unix socket; use a TCP port, or one worker")
    host, port = parse_address(address)
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise _refused(address, f"the name cannot be resolved ({error.strerror})") from error
    kept: list[socket.socket] = []
    try:
        for family, _, _, _, target in found:
            # The first one's port for all of them, also when the system chose it.
            kept += _kept(family, (target[0], port, *target[2:]))
            port = kept[0].getsockname()[1] if kept else port
    except OSError as error:
        for one in kept:
            one.close()
        raise _refused(address, _cause(error)) from error
    return ReservedPort(f"{address.rpartition(':')[0]}:{port}", kept)


def _kept(family: socket.AddressFamily, target: tuple[object, ...]) -> list[socket.socket]:
    """A bound socket, proved to be the only one; none where the machine has no such addresses."""
    try:
        probe = _bound(family, target, socket.SO_REUSEADDR)
    except OSError as error:
        if error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL) and family is socket.AF_INET6:
            return []
        raise
    with probe:
        # Anyone else who has the port fails this, also another router that shares it among its own workers.
        probe.listen(1)
        target = (target[0], probe.getsockname()[1], *target[2:])
    return [_bound(family, target, socket.SO_REUSEADDR, socket.SO_REUSEPORT)]


def _bound(family: socket.AddressFamily, target: tuple[object, ...], *options: int) -> socket.socket:
    one = socket.socket(family, socket.SOCK_STREAM)
    try:
        for option in options:
            one.setsockopt(socket.SOL_SOCKET, option, 1)
        if family is socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.bind(target)
    except BaseException:
        one.close()
        raise
    return one


def _cause(error: OSError) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return "the port is in use by another process; stop that one, or choose another port"
        case errno.EACCES:
            return "this user may not use the port; choose one above 1023"
        case errno.EADDRNOTAVAIL:
            return "the address does not belong to this machine"
        case number:
            return os.strerror(number) if number else str(error)


def _refused(address: str, cause: str) -> RouterError:
    return RouterError(
        Code.FAILED_PRECONDITION, RefuseReason.CONFIG_INVALID, f"cannot listen on {address} (server.listen): {cause}"
    )
