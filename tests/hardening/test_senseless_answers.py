"""Answers that no sound server gives, one by one: they end a connection or count as nothing, and raise nothing."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from psycopg.pq import DiagnosticField

from router.model.observation import AttemptFailed, FaultKind
from router.postgres import faults
from router.postgres.command_tags import MOST_ROWS, read_tag
from router.postgres.control_connection import ControlConnection
from router.postgres.role_query import read_claim
from tests.hardening.lying_server import framed, notice


@pytest.mark.parametrize("place", ["²", "9" * 5000, "-1", "", "1.5"])
def test_a_place_that_is_no_number_is_none(place: str) -> None:
    fields = {DiagnosticField.STATEMENT_POSITION: place.encode()}
    result: Any = SimpleNamespace(error_field=fields.get)
    assert faults.pg_error(result).position == 0


def test_more_rows_than_a_message_can_tell() -> None:
    result: Any = SimpleNamespace(command_status=b"SELECT 99999999999999999999", command_tuples=99999999999999999999)
    assert read_tag(result) == ("SELECT 99999999999999999999", MOST_ROWS)


COPIES = [framed(kind, b"\0" + struct.pack("!hh", 1, 0)) for kind in (b"G", b"H", b"W")]


@pytest.mark.parametrize("answer", COPIES, ids=["in", "out", "both"])
async def test_a_copy_that_nobody_asked_for_ends_a_control_connection(answer: bytes) -> None:
    async with answering(answer, forever=False) as parameters:
        await refuses(parameters, "COPY in answer to a question")


async def test_an_answer_without_end_ends_a_control_connection() -> None:
    async with answering(notice(b"x" * 1000) * 64, forever=True) as parameters:
        await refuses(parameters, "an answer of more than 1 MiB to a question")


async def refuses(parameters: dict[str, Any], words: str) -> None:
    deadline = asyncio.get_running_loop().time() + 5
    connection = await ControlConnection.open(parameters, deadline)
    with pytest.raises(AttemptFailed, match=words) as caught:
        await connection.query("SELECT 1", deadline)
    assert caught.value.fault.kind is FaultKind.CONNECTION_LOST
    assert not connection.usable


@asynccontextmanager
async def answering(answer: bytes, *, forever: bool) -> AsyncIterator[dict[str, Any]]:
    """A server that takes every login and answers the first question so; yields how to connect to it."""

    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            length = int.from_bytes(await reader.readexactly(4), "big")
            await reader.readexactly(length - 4)
            writer.write(framed(b"R", struct.pack("!i", 0)) + framed(b"Z", b"I"))
            await reader.readexactly(1)
            writer.write(answer)
            while forever and not writer.is_closing():
                await writer.drain()
                writer.write(answer)
            await reader.read()
        writer.transport.abort()
        ended.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        yield {"host": "127.0.0.1", "port": port, "user": "u", "dbname": "d", "sslmode": "disable"}
        await ended.wait()


ROW = {"in_recovery": "f", "system_id": "7", "timeline": "3", "lsn": "0/10", "received": None, "lag": "0"}
ROW |= {"alive": "f", "silent": "-1", "sync_names": "", "standbys": None, "application_name": None}
ROW |= {"read_only": "f", "retry_ms": "100", "ping": "30", "fenced": "f"}


def test_a_sound_claim_is_read() -> None:
    claim = read_claim(tuple(ROW.values()), 180000)
    assert (claim.timeline, claim.lsn, claim.receiver_ping_s) == (3, 16, 30)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("timeline", "-3"),
        ("timeline", str(1 << 40)),
        ("lsn", "1FFFFFFFF/0"),
        ("lsn", "-1/0"),
        ("lsn", "16"),
        ("lsn", "0/1/2"),
        ("lag", "inf"),
        ("retry_ms", "inf"),
        ("ping", "nan"),
        ("standbys", "[7]"),
        ("standbys", "7"),
    ],
)
def test_a_claim_that_no_server_can_make_is_none(column: str, value: str) -> None:
    with pytest.raises(faults.SENSELESS):
        read_claim(tuple((ROW | {column: value}).values()), 180000)
