"""Taking a port: gRPC only says that it failed, so what stands in the way is found out before."""

from __future__ import annotations

import asyncio
import errno
import os
import socket

import grpc

from router.model.errors import Code, RouterError
from router.model.reasons import RefuseReason


async def bind(
    server: grpc.aio.Server,
    address: str,
    setting: str,
    *,
    shared: bool = False,
    credentials: grpc.ServerCredentials | None = None,
) -> str:
    """Listen on "host:port" (port 0: any free one) and return the address with the real port.

    setting: the name of the setting that the address comes from. shared: others of this router listen there, too, and
    whoever reserved the port has made sure that nobody else does. credentials: those of TLS.
    RouterError CONFIG_INVALID when it cannot be had.
    """
    host, separator, _ = address.rpartition(":")
    if not address.startswith("unix:"):
        if not separator:
            raise _refused(address, setting, "it has no port; write HOST:PORT")
        if not shared:
            await _check(address, setting)
    try:
        if credentials is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise _refused(address, setting, str(error)) from error
    return address if address.startswith("unix:") else f"{host}:{port}"


async def _check(address: str, setting: str) -> None:
    """Bind every address of the name for a moment."""
    host, _, port = address.rpartition(":")
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            host.strip("[]") or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        raise _refused(address, setting, f"the name cannot be resolved ({error.strerror})") from error
    for family, kind, protocol, _, target in found:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family is socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind(target)
                probe.listen(1)  # on Linux two sockets with SO_REUSEADDR collide only here
        except OSError as error:
            if error.errno == errno.EAFNOSUPPORT:
                continue
            raise _refused(address, setting, _cause(error)) from error


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


def _refused(address: str, setting: str, cause: str) -> RouterError:
    return RouterError(
        Code.FAILED_PRECONDITION, RefuseReason.CONFIG_INVALID, f"cannot listen on {address} ({setting}): {cause}"
    )
