"""A server that listens no more and still serves those who are connected."""

from __future__ import annotations

import asyncio
import errno
import socket

import grpc
import grpc.aio
import pytest

from router.api import listening
from router.api.listening import stop_listening


async def _hello(request: bytes, context: object) -> bytes:
    return b"hello " + request


async def test_who_is_connected_is_served_and_nobody_else_connects(capfd: pytest.CaptureFixture[str]) -> None:
    server = grpc.aio.server(options=(("grpc.so_reuseport", 1),))
    handler = grpc.unary_unary_rpc_method_handler(_hello)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t", {"Hello": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    address = f"127.0.0.1:{port}"
    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.unary_unary("/t/Hello")
        assert await call(b"one") == b"hello one"
        assert stop_listening(address) >= 1
        await asyncio.sleep(0.05)
        assert await call(b"two") == b"hello two"
        with socket.socket() as stranger, pytest.raises(ConnectionRefusedError):
            stranger.connect(("127.0.0.1", port))
        assert stop_listening(address) == 0, "once is enough"
        # The port's other processes go on: another one may listen there at once.
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            other.bind(("127.0.0.1", port))
            other.listen()
        assert await call(b"three") == b"hello three"
    await server.stop(0)
    assert "accept4" not in capfd.readouterr().err, "gRPC takes an orderly end for a fault"


def test_other_ports_are_not_touched() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_server(("127.0.0.1", 0)) as other:
        stop_listening(f"127.0.0.1:{other.getsockname()[1]}")
        with socket.create_connection(listener.getsockname()):
            pass


def test_it_ends_to_listen_also_where_no_further_socket_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left() -> socket.socket:
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(listening, "_silent", none_left)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        assert stop_listening(f"127.0.0.1:{address[1]}") == 1
        with socket.socket() as stranger, pytest.raises(ConnectionRefusedError):
            stranger.connect(address)
