"""What a command says where no router answers as it should: the kind of port, TLS, the certificate, the name."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest
import trustme
from grpc_health.v1 import health, health_pb2_grpc

from router.console.reaching import unreachable
from tests.cli.conftest import TOKEN, Command, FakeAdmin


class Certificates:
    """An authority, a router's certificate of it for 127.0.0.1, and a stranger authority, as files."""

    def __init__(self, folder: Path) -> None:
        ours, other = trustme.CA(), trustme.CA()
        self.own = ours.issue_cert("127.0.0.1")
        self.ca, self.other_ca, self.cert, self.key = (folder / name for name in ("ca", "other", "cert", "key"))
        ours.cert_pem.write_to_path(self.ca)
        other.cert_pem.write_to_path(self.other_ca)
        client = ours.issue_cert("client")
        client.cert_chain_pems[0].write_to_path(self.cert)
        client.private_key_pem.write_to_path(self.key)

    def of_server(self, *, asks: bool) -> grpc.ServerCredentials:
        pair = (self.own.private_key_pem.bytes(), self.own.cert_chain_pems[0].bytes())
        return grpc.ssl_server_credentials([pair], self.ca.read_bytes(), require_client_auth=asks)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(params=[False, True], ids=["believes tokens", "asks for certificates"])
def asks(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def port(certificates: Certificates, asks: bool) -> Iterator[int]:
    """A port that speaks TLS."""
    with futures.ThreadPoolExecutor(1) as threads:
        server = grpc.server(threads)
        health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)
        number = server.add_secure_port("0.0.0.0:0", certificates.of_server(asks=asks))
        server.start()
        yield number
        server.stop(None).wait()


def test_a_port_with_tls(command: Command, certificates: Certificates, port: int, asks: bool):
    ours, address = certificates, f"127.0.0.1:{port}"
    proved = ("--cert", str(ours.cert), "--key", str(ours.key)) if asks else ()

    def ask(*before: str, address: str = address) -> tuple[int, str]:
        ended = command(*before, "health", "--address", address)
        assert ended.err.count("\n") <= 2, "gRPC's own lines tell nobody anything"
        return ended.code, ended.err or ended.out

    assert ask("--ca", str(ours.ca), *proved) == (0, "serving\n")
    code, told = ask()
    assert (code, f"{address} hangs up\ndoes it speak TLS" in told) == (3, True)
    code, told = ask("--ca", str(ours.other_ca), *proved)
    assert (code, "a certificate that is not believed" in told, "--ca FILE" in told) == (3, True, True)
    code, told = ask("--ca", str(ours.ca), *proved, address=f"127.0.0.2:{port}")
    assert (code, "a certificate of another name" in told) == (3, True)
    code, told = ask("--ca", __file__)
    assert (code, f"file {__file__} holds no certificate in PEM form" in told) == (2, True)
    if asks:
        code, told = ask("--ca", str(ours.ca))
        assert (code, "hangs up\ndoes it speak TLS, or ask for a certificate (--tls, --ca, --cert" in told) == (3, True)


def test_a_port_without_tls(command: Command, admin: FakeAdmin, certificates: Certificates):
    ended = command("--ca", str(certificates.ca), "status", "--address", admin.address, "--token", TOKEN)
    assert (ended.code, ended.err.splitlines()[0]) == (3, f"pointsman: {admin.address} does not speak TLS")
    assert "leave out --tls" in ended.err


def test_a_port_that_speaks_http(command: Command):
    with socket.create_server(("127.0.0.1", 0)) as listening, futures.ThreadPoolExecutor(1) as threads:

        def refuse() -> None:
            accepted, _ = listening.accept()
            with accepted:
                accepted.recv(100)
                accepted.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
                accepted.recv(100)

        served = threads.submit(refuse)
        ended = command("health", "--address", f"127.0.0.1:{listening.getsockname()[1]}")
        served.result()
    assert (ended.code, "speaks plain HTTP" in ended.err, "metrics port" in ended.err) == (3, True, True)


def test_a_name_that_nobody_knows():
    words = "errors resolving nohost.invalid:1: [field:hostname lookup error:... Domain name not found]"
    assert unreachable("nohost.invalid:1", words).message == "the host of nohost.invalid:1 is not known"


@pytest.mark.parametrize("address", ["https://router.example.net:7432", "postgres://h:1", "host:0", "host:65536"])
def test_what_is_no_address_is_told_at_once(command: Command, address: str):
    ended = command("health", "--address", address)
    assert (ended.code, "is no address\nwrite host:port, such as 127.0.0.1:7432" in ended.err) == (2, True)


def test_grpcs_own_names_are_addresses(command: Command, admin: FakeAdmin):
    assert command("drain", "pg1", "--address", f"dns:///{admin.address}", "--token", TOKEN).code == 0


@pytest.mark.parametrize("option", ["--tls", "--ca", "--cert"])
def test_an_option_behind_the_command_is_told_its_place(command: Command, option: str):
    ended = command("status", option)
    assert ended.code == 2
    assert f"{option} stands before the command: pointsman {option} ... status ..." in " ".join(ended.err.split())
