"""TLS on both ports: who is let in, and certificates that change while callers come and go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pointsman
import pytest
from pointsman.v1 import query_service_pb2 as pb
from pointsman.v1 import query_service_pb2_grpc, types_pb2

from router.model.errors import RouterError
from router.model.events import CertificatesChanged
from router.model.policy import ServerPolicy
from router.model.port_policies import ListenerTls, TransportPolicy
from tests.api.conftest import AUTH, TOKEN, World, eventually
from tests.support.certificates import Authority, Issued

QUERY = pb.QueryRequest(statement=types_pb2.Statement(sql="s"))


class Port:
    """The files of a port, and callers of it."""

    def __init__(self, directory: Path, *, mutual: bool = False) -> None:
        self.directory = directory
        self.authority = Authority()
        self.cert, self.key = directory / "cert.pem", directory / "key.pem"
        self.authority.issue(dns=["localhost"]).write(self.cert, self.key)
        self.ca = directory / "ca.pem"
        self.ca.write_bytes(self.authority.pem)
        self.tls = ListenerTls(str(self.cert), str(self.key), str(self.ca) if mutual else "")

    async def query(
        self, world: World, roots: bytes | None = None, own: Issued | None = None, timeout: float = 5.0
    ) -> Any:
        """One query over a connection of its own."""
        credentials = grpc.ssl_channel_credentials(
            roots or self.authority.pem, own.key if own else None, own.cert if own else None
        )
        address = world.server.public_address.replace("127.0.0.1", "localhost")
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.secure_channel(address, credentials, options=options) as channel:
            stub: Any = query_service_pb2_grpc.QueryServiceStub(channel)
            return await stub.Query(QUERY, metadata=AUTH, timeout=timeout)


@asynccontextmanager
async def serving(policy: ServerPolicy) -> AsyncIterator[World]:
    world = World(policy)
    await world.start()
    try:
        yield world
    finally:
        await world.stop()


async def refused(port: Port, world: World, **how: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await port.query(world, timeout=2.0, **how)
    assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    assert not world.executor.requests


async def test_callers_speak_tls_and_nothing_else(policy: ServerPolicy, tmp_path: Path) -> None:
    port = Port(tmp_path)
    async with serving(replace(policy, tls=port.tls)) as world:
        with pytest.raises(grpc.aio.AioRpcError):
            await world.query.Query(QUERY, metadata=AUTH, timeout=0.5)  # in plain text
        await refused(port, world, roots=Authority().pem)
        await port.query(world)


async def test_with_an_authority_of_callers_nobody_gets_in_without_a_certificate(
    policy: ServerPolicy, tmp_path: Path
) -> None:
    port = Port(tmp_path, mutual=True)
    async with serving(replace(policy, tls=port.tls)) as world:
        await refused(port, world)
        await refused(port, world, own=Authority("tests").issue(dns=["acme"]))
        await port.query(world, own=port.authority.issue(dns=["acme"]))


@pytest.mark.parametrize("sync", [False, True])
async def test_the_sdk_takes_files(policy: ServerPolicy, tmp_path: Path, sync: bool) -> None:
    port = Port(tmp_path, mutual=True)
    cert, key = tmp_path / "own.pem", tmp_path / "own.key"
    port.authority.issue(dns=["acme"]).write(cert, key)
    async with serving(replace(policy, tls=port.tls)) as world:
        address = world.server.public_address.replace("127.0.0.1", "localhost")
        how = {"token": TOKEN, "ca": str(port.ca), "cert": str(cert), "key": str(key)}
        if sync:

            def ask() -> None:
                with pointsman.sync.connect(address, **how) as db:
                    db.execute("s", timeout=5)

            await asyncio.to_thread(ask)
        else:
            async with pointsman.connect(address, **how) as db:
                await db.execute("s", timeout=5)
        assert len(world.executor.requests) == 1


async def test_a_client_follows_its_own_certificate(policy: ServerPolicy, tmp_path: Path) -> None:
    """Its authority is replaced while it is connected; it goes on, and connects anew by the new one."""
    port = Port(tmp_path, mutual=True)
    cert, key = tmp_path / "own.pem", tmp_path / "own.key"
    port.authority.issue(dns=["acme"]).write(cert, key)
    world = World(replace(policy, tls=port.tls))
    await world.start()
    address = world.server.public_address
    how = {"token": TOKEN, "ca": str(port.ca), "cert": str(cert), "key": str(key)}
    async with pointsman.connect(address.replace("127.0.0.1", "localhost"), **how) as db:
        await db.execute("s", timeout=5)
        fresh = Authority("fresh")
        fresh.issue(dns=["localhost"]).write(port.cert, port.key)
        fresh.issue(dns=["acme"]).write(cert, key)
        port.ca.write_bytes(fresh.pem)
        await db.execute("s", timeout=5)
        await world.stop()
        again = World(replace(policy, tls=port.tls, listen=address))
        await again.start()
        try:
            await asyncio.sleep(1.0)  # how often the client looks at its files at most
            await db.execute("s", timeout=15)
        finally:
            await again.stop()


async def test_certificates_and_authorities_change_under_load(policy: ServerPolicy, tmp_path: Path) -> None:
    """Six rotations, each with a new authority and an overlap, while connections come and go and one stays."""
    port = Port(tmp_path, mutual=True)
    trusted, own = port.authority.pem, port.authority.issue(dns=["acme"])
    first = own
    done = 0
    stop = asyncio.Event()
    async with serving(replace(policy, tls=port.tls)) as world:

        async def come_and_go() -> None:
            nonlocal done
            while not stop.is_set():
                await port.query(world, roots=trusted, own=own, timeout=20)
                done += 1

        async def stay() -> None:
            nonlocal done
            credentials = grpc.ssl_channel_credentials(trusted, own.key, own.cert)
            address = world.server.public_address.replace("127.0.0.1", "localhost")
            async with grpc.aio.secure_channel(address, credentials) as channel:
                stub: Any = query_service_pb2_grpc.QueryServiceStub(channel)
                while not stop.is_set():
                    await stub.Query(QUERY, metadata=AUTH, timeout=20)
                    done += 1
                    await asyncio.sleep(0.01)

        async def more() -> None:
            target = done + 12
            await eventually(lambda: done >= target or any(task.done() for task in load), 30)

        load = [asyncio.create_task(work()) for work in (come_and_go, come_and_go, stay)]
        old = port.authority
        for number in range(6):
            await more()
            new = Authority(f"authority {number}")
            trusted = old.pem + new.pem
            _replace(port.ca, trusted)
            await more()
            new.issue(dns=["localhost"]).write(port.cert, port.key)
            own = new.issue(dns=["acme"])
            await more()
            trusted = new.pem
            _replace(port.ca, trusted)
            old = new
        await more()
        stop.set()
        await asyncio.gather(*load)  # not one call has failed
        assert len([one for one in world.events.of(CertificatesChanged) if one.applied]) >= 12
        world.executor.requests.clear()
        await refused(port, world, roots=trusted, own=first)


async def test_new_certificates_that_are_no_good_leave_the_old_ones(policy: ServerPolicy, tmp_path: Path) -> None:
    port = Port(tmp_path)
    good_cert, good_key = port.cert.read_bytes(), port.key.read_bytes()
    other = port.authority.issue(dns=["localhost"])
    async with serving(replace(policy, tls=port.tls)) as world:
        breaking = (
            lambda: port.key.write_bytes(other.key),
            lambda: port.cert.write_text("no certificate"),
            port.cert.unlink,
        )
        for told, break_it in enumerate(breaking, 1):
            break_it()
            await port.query(world)
            await port.query(world)
            await eventually(lambda: len(world.events.of(CertificatesChanged)) == told)  # noqa: B023
            assert not any(one.applied for one in world.events.of(CertificatesChanged))
        assert all("PRIVATE" not in str(one) for one in world.events.events)
        Issued(good_cert, good_key).write(port.cert, port.key)
        await port.query(world)
        await eventually(lambda: world.events.of(CertificatesChanged)[-1].applied)


async def test_files_that_cannot_serve_keep_the_router_from_starting(policy: ServerPolicy, tmp_path: Path) -> None:
    port = Port(tmp_path)
    port.key.write_bytes(port.authority.issue().key)
    world = World(replace(policy, tls=port.tls))
    with pytest.raises(RouterError, match="no TLS for callers"):
        await world.server.start()
    await world.server.stop()


async def test_connections_have_an_upper_bound(policy: ServerPolicy) -> None:
    async with serving(replace(policy, transport=TransportPolicy(max_connections=3))) as world:
        opened = [await asyncio.open_connection(*world.server.public_address.split(":")) for _ in range(3)]
        for reader, _ in opened:
            assert await asyncio.wait_for(reader.read(9), 5)  # its settings: it was let in
        reader, writer = await asyncio.open_connection(*world.server.public_address.split(":"))
        assert await asyncio.wait_for(reader.read(9), 5) == b""
        for one in (writer, *(writer for _, writer in opened)):
            one.close()


async def test_a_handshake_that_takes_too_long_is_ended(policy: ServerPolicy, tmp_path: Path) -> None:
    port = Port(tmp_path)
    transport = TransportPolicy(handshake_timeout_s=0.2)
    async with serving(replace(policy, tls=port.tls, transport=transport)) as world:
        reader, writer = await asyncio.open_connection(*world.server.public_address.split(":"))
        assert await asyncio.wait_for(reader.read(1), 10) == b""
        writer.close()


async def test_an_old_connection_makes_place_for_a_new_one(policy: ServerPolicy, tmp_path: Path) -> None:
    """The next call on the same channel comes over a new connection, which has proved itself anew."""
    transport = TransportPolicy(max_age_s=0.2, age_grace_s=0.2)
    async with serving(replace(policy, transport=transport)) as world:
        for _ in range(3):
            await world.query.Query(QUERY, metadata=AUTH, timeout=5, wait_for_ready=True)
            await asyncio.sleep(0.3)
    assert len(world.executor.requests) == 3


def _replace(path: Path, content: bytes) -> None:
    fresh = path.with_name(f"{path.name}.new")
    fresh.write_bytes(content)
    fresh.replace(path)
