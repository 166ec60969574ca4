"""Why a server took no connection: asked at its door, with a start-up packet of our own.

libpq gives only localized text when connecting fails, neither errno nor SQLSTATE. The first bytes of the protocol
need no login and tell both (https://www.postgresql.org/docs/current/protocol-message-formats.html).
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections.abc import Mapping
from typing import Any

from router.model.observation import ProbeOutcome

PROTOCOL_3 = 196608
LONGEST_ERROR = 30_000


async def ask_at_the_door(parameters: Mapping[str, Any], deadline: float) -> ProbeOutcome:
    """REFUSED, TIMEOUT, UNRESOLVED, STARTING or FULL; LOGIN_REFUSED when the server is open but not to us."""
    try:
        async with asyncio.timeout_at(deadline):
            return await _greet(parameters)
    except TimeoutError:
        return ProbeOutcome.TIMEOUT
    except socket.gaierror:
        return ProbeOutcome.UNRESOLVED
    except OSError as error:
        return _judge(error)
    except (asyncio.IncompleteReadError, ValueError, struct.error):
        return ProbeOutcome.FAILED


async def _greet(parameters: Mapping[str, Any]) -> ProbeOutcome:
    host, port = str(parameters["host"]), int(parameters["port"])
    if host.startswith("/"):
        reader, writer = await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
    else:
        reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(_startup(str(parameters["user"]), str(parameters["dbname"])))
        kind = await reader.readexactly(1)
        if kind != b"E":
            return ProbeOutcome.LOGIN_REFUSED
        (length,) = struct.unpack("!i", await reader.readexactly(4))
        if not 4 <= length <= LONGEST_ERROR:
            return ProbeOutcome.FAILED
        sqlstate = _sqlstate(await reader.readexactly(length - 4))
    finally:
        writer.transport.abort()
    match sqlstate:
        case "57P03":  # cannot_connect_now: starting up, shutting down, recovering
            return ProbeOutcome.STARTING
        case "53300":  # too_many_connections
            return ProbeOutcome.FULL
        case _:
            return ProbeOutcome.LOGIN_REFUSED


def _startup(user: str, database: str) -> bytes:
    body = struct.pack("!i", PROTOCOL_3)
    for word in ("user", user, "database", database):
        body += word.encode() + b"\0"
    return struct.pack("!i", len(body) + 5) + body + b"\0"


def _sqlstate(fields: bytes) -> str:
    """The C field of an ErrorResponse."""
    for field in fields.split(b"\0"):
        if field[:1] == b"C":
            return field[1:].decode("ascii", "replace")
    return ""


def _judge(error: OSError) -> ProbeOutcome:
    """Several addresses that all refuse come as one OSError without errno, their texts joined."""
    refused = isinstance(error, ConnectionRefusedError) or (
        error.errno is None and f"[Errno {errno.ECONNREFUSED}]" in str(error)
    )
    if refused or isinstance(error, FileNotFoundError):
        return ProbeOutcome.REFUSED
    return ProbeOutcome.FAILED
