from __future__ import annotations

import socket

import pytest

from router.model.errors import RouterError
from router.workers.port import reserve


def _listener(port: int) -> socket.socket:
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    one.bind(("127.0.0.1", port))
    one.listen()
    return one


def _port(address: str) -> int:
    return int(address.rpartition(":")[2])


def test_port_0_becomes_a_real_one_that_several_of_us_can_listen_on() -> None:
    reserved = reserve("127.0.0.1:0")
    try:
        port = _port(reserved.address)
        assert port > 0
        with _listener(port), _listener(port):
            pass
    finally:
        reserved.close()


def test_a_reserved_port_takes_no_connection_by_itself() -> None:
    reserved = reserve("127.0.0.1:0")
    port = _port(reserved.address)
    try:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port)).close()
        with _listener(port) as listener:
            for _ in range(20):
                with socket.create_connection(("127.0.0.1", port)):
                    listener.accept()[0].close()
    finally:
        reserved.close()


@pytest.mark.parametrize("option", [None, socket.SO_REUSEADDR, socket.SO_REUSEPORT])
def test_a_port_that_somebody_listens_on_is_refused_whatever_his_options(option: int | None) -> None:
    with socket.socket() as other:
        if option is not None:
            other.setsockopt(socket.SOL_SOCKET, option, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(RouterError, match=r"\(server.listen\): the port is in use by another process"):
            reserve(f"127.0.0.1:{other.getsockname()[1]}")


def test_two_routers_cannot_reserve_one_port_while_one_has_workers() -> None:
    first = reserve("127.0.0.1:0")
    try:
        with _listener(_port(first.address)), pytest.raises(RouterError, match="in use"):
            reserve(first.address)
    finally:
        first.close()


def test_every_address_of_a_name_gets_the_same_port() -> None:
    reserved = reserve("localhost:0")
    try:
        with socket.create_server(("127.0.0.1", 0)) as other:
            assert _port(reserved.address) != other.getsockname()[1]
        assert reserved.address.startswith("localhost:")
    finally:
        reserved.close()


def test_a_unix_socket_cannot_be_shared() -> None:
    with pytest.raises(RouterError, match="one worker"):
        reserve("unix:/tmp/pointsman.sock")


def test_an_unknown_name_is_told() -> None:
    with pytest.raises(RouterError, match="cannot be resolved"):
        reserve("nowhere.invalid:7432")
