"""Calls to AdminService from the command line, with errors that end a command."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pointsman.options import TLS
from pointsman.v1 import admin_service_pb2 as pb
from pointsman.v1 import admin_service_pb2_grpc

from router.console.reaching import unreachable
from router.console.targets import Target
from router.console.trouble import ExitCode, Trouble

TIMEOUT_S = 5.0
READING_S = 60.0
"""For what reads configurations: ten thousand tenants take seconds."""
_PAGE = 500
_STATUS_DETAILS = "grpc-status-details-bin"


class AdminClient:
    """One operator's connection; use it as a context manager. Every method raises Trouble."""

    def __init__(self, target: Target) -> None:
        self._address = target.address
        self._metadata = (("authorization", f"Bearer {target.token}"),) if target.token else ()
        self._channel = channel_to(target.address, target.tls)
        self._stub: Any = admin_service_pb2_grpc.AdminServiceStub(self._channel)

    def __enter__(self) -> AdminClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def call(self, method: str, request: Any, timeout_s: float = TIMEOUT_S) -> Any:
        """A unary call by its name in the proto."""
        with translated(self._address):
            return getattr(self._stub, method)(request, metadata=self._metadata, timeout=timeout_s)

    def stream(self, method: str, request: Any, timeout_s: float) -> Iterator[Any]:
        """A streaming call; leaving the loop ends it."""
        with translated(self._address):
            answers = getattr(self._stub, method)(request, metadata=self._metadata, timeout=timeout_s)
            try:
                yield from answers
            finally:
                answers.cancel()

    def clusters(self) -> list[Any]:
        """Every cluster with its endpoints, as it is now."""
        answers = self.stream("WatchTopology", pb.WatchTopologyRequest(), TIMEOUT_S)
        first = next(answers, None)
        answers.close()  # type: ignore[attr-defined]
        return list(first.clusters) if first is not None else []

    def tenants(self) -> list[Any]:
        """All tenants, over all pages."""
        found: list[Any] = []
        token = ""
        while True:
            page = self.call("ListTenants", pb.ListTenantsRequest(page_size=_PAGE, page_token=token))
            found += page.tenants
            token = page.next_page_token
            if not token:
                return found


def channel_to(address: str, tls: TLS | None) -> grpc.Channel:
    """A channel, with TLS or in plain text. Trouble when a file of it cannot be read."""
    if tls is None:
        return grpc.insecure_channel(address)
    try:
        credentials = tls.credentials()
    except OSError as error:
        why = (error.strerror or "unknown error").lower()
        raise Trouble(f"file {error.filename} cannot be read: {why}", "check --ca, --cert and --key") from None
    _check_pem(tls)
    options = [("grpc.ssl_target_name_override", tls.server_name)] if tls.server_name else None
    return grpc.secure_channel(address, credentials, options=options)


def _check_pem(tls: TLS) -> None:
    """Trouble for a file without a certificate, or key, in it; gRPC would only say that nobody answers."""
    for option, file, mark in (
        ("--ca", tls.ca_file, b"-----BEGIN CERTIFICATE-----"),
        ("--cert", tls.cert_file, b"-----BEGIN CERTIFICATE-----"),
        ("--key", tls.key_file, b"PRIVATE KEY-----"),
    ):
        if file is not None and mark not in Path(file).read_bytes():
            what = "certificate" if option != "--key" else "private key"
            raise Trouble(f"file {file} holds no {what} in PEM form", f"check {option}", ExitCode.USAGE)


def health(address: str, timeout_s: float = TIMEOUT_S, tls: TLS | None = None) -> bool:
    """Whether the router at an address takes work, by the standard health service. Trouble when none answers."""
    with translated(address), channel_to(address, tls) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=timeout_s)
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def reach(target: Target) -> None:
    """Trouble at once when no router answers; the SDK would go on trying until its timeout."""
    try:
        health(target.address, tls=target.tls)
    except Trouble as trouble:
        if trouble.code is ExitCode.UNREACHABLE:
            raise


@contextmanager
def translated(address: str) -> Iterator[None]:
    """gRPC's errors inside become Trouble."""
    try:
        yield
    except grpc.RpcError as error:
        raise _trouble(error, address) from None


def _trouble(error: Any, address: str) -> Trouble:
    code, details = error.code(), error.details() or ""
    from_router = any(key == _STATUS_DETAILS for key, _ in error.trailing_metadata() or ())
    match code:
        case grpc.StatusCode.UNAVAILABLE if not from_router:
            return unreachable(address, details)
        case grpc.StatusCode.DEADLINE_EXCEEDED if not from_router:
            return Trouble(f"the router at {address} did not answer in time", "is it overloaded?", ExitCode.UNREACHABLE)
        case grpc.StatusCode.UNAUTHENTICATED:
            return Trouble(details, "check --token (POINTSMAN_ADMIN_TOKEN): it must be one of admin.tokens")
        case grpc.StatusCode.UNIMPLEMENTED:
            return Trouble(
                f"{address} does not serve AdminService",
                "is this the callers' port? Operators use server.admin_listen (7433 by default)",
            )
        case _:
            return Trouble(details or code.name.lower())

