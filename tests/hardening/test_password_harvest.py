"""A server that asks for the password itself, to keep it, is told nothing unless it has proved who it is."""

from __future__ import annotations

import asyncio
import struct
import time
from dataclasses import replace

import pytest

from router.model.identity import ClusterName, EndpointName
from router.model.observation import AttemptFailed
from router.model.topology import Cluster, Endpoint, Login, Secret, TlsSettings
from router.postgres.conninfo import for_control
from router.postgres.control_door import ControlDoor
from tests.hardening.lying_server import HOST, framed

PASSWORD = "canary-password-6d1e"
CLEARTEXT = 3


async def test_nobody_unproven_is_told_a_password_in_clear_text() -> None:
    heard = bytearray()
    over = asyncio.Event()

    async def harvest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.extend(await reader.read(4096))
        writer.write(framed(b"R", struct.pack("!i", CLEARTEXT)))
        heard.extend(await reader.read(4096))
        writer.transport.abort()
        over.set()

    server = await asyncio.start_server(harvest, HOST, 0)
    async with server:
        endpoint = Endpoint(EndpointName("n1"), ClusterName("main"), HOST, server.sockets[0].getsockname()[1])
        cluster = Cluster(endpoint.cluster, (endpoint,), Login("pointsman", Secret(PASSWORD)))
        with pytest.raises(AttemptFailed) as failed:
            await ControlDoor(cluster).open(_plain(endpoint), time.monotonic() + 3)
        await asyncio.wait_for(over.wait(), 5)
    assert b"pointsman" in heard, "it was not even asked"
    assert PASSWORD.encode() not in heard
    assert PASSWORD not in str(failed.value.fault)


def _plain(endpoint: Endpoint) -> Endpoint:
    return replace(endpoint, tls=TlsSettings("disable"))


@pytest.mark.parametrize(("mode", "asked"), [("prefer", True), ("require", True), ("verify-full", False)])
def test_a_proven_server_may_ask(mode: str, asked: bool) -> None:
    endpoint = Endpoint(EndpointName("n1"), ClusterName("main"), HOST, tls=TlsSettings(mode))
    cluster = Cluster(endpoint.cluster, (endpoint,), Login("pointsman", Secret(PASSWORD)))
    assert ("require_auth" in for_control(cluster, endpoint, cluster.control)) is asked
