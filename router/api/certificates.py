"""A port's certificates: taken from their files, and again whenever these change, at the next handshake.

Nobody is told of a change: each new connection looks whether the files are the same, which costs three stats. What is
no good (half-written files, a key of another certificate) is told once, and the old certificates go on; the files are
looked at again with each connection until they are good. Connections that are open keep what they have proved. Who
starts while they are no good may begin with what served last, if somebody knows it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import ssl
from collections.abc import Callable
from typing import Any, Literal

import grpc

from router.model.certificates import PortCertificates
from router.model.errors import Code, RouterError
from router.model.events import CertificatesChanged
from router.model.port_policies import ListenerTls, ssl_cause
from router.model.reasons import RefuseReason
from router.ports import EventSink

Port = Literal["callers", "operators"]
Signature = tuple[tuple[int, int, int, int], ...]


class NotUsable(Exception):
    """The files cannot serve. str() has no secret."""


class PortFiles:
    """The files of one port."""

    def __init__(self, tls: ListenerTls) -> None:
        self._tls = tls

    def look(self) -> Signature:
        """What they look like now. NotUsable. Blocking."""
        paths = (self._tls.cert, self._tls.key, self._tls.client_ca)
        try:
            seen = [os.stat(path) for path in paths if path]
        except OSError as error:
            raise _unreadable(error) from None
        return tuple((one.st_dev, one.st_ino, one.st_mtime_ns, one.st_size) for one in seen)

    def read(self) -> PortCertificates:
        """What is in them. NotUsable, which names the file and says why. Blocking."""
        tls = self._tls
        cert, key = _content(tls.cert), _content(tls.key)
        roots = _content(tls.client_ca) if tls.client_ca else None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(tls.cert, tls.key, password=lambda: "")
            leaf = ssl.PEM_cert_to_DER_cert(_first(cert.decode("ascii", "replace")))
        except (ssl.SSLError, OSError, ValueError) as error:
            raise NotUsable(f"files {tls.cert} and {tls.key} do not serve together: {ssl_cause(error)}") from None
        if roots is not None:
            _check_authorities(tls.client_ca, roots)
        return PortCertificates(cert, key, roots, hashlib.sha256(leaf).hexdigest()[:16])


class Certificates:
    """The certificates of one port. Made where its server is made; the look at the files happens on gRPC's threads."""

    def __init__(
        self,
        tls: ListenerTls,
        port: Port,
        told: Callable[[CertificatesChanged], None],
        known: PortCertificates | None = None,
    ) -> None:
        """told: hears of changes, from any thread. known: what to begin with while the files cannot serve; without it
        that is a RouterError CONFIG_INVALID."""
        self._files = PortFiles(tls)
        self._asks = bool(tls.client_ca)
        self._port: Port = port
        self._told = told
        self._refused = ""
        """Why the files cannot serve, as far as was told."""
        try:
            self._signature = self._files.look()
            self._now = _configuration(self._files.read())
        except NotUsable as error:
            if known is None:
                raise RouterError(
                    Code.FAILED_PRECONDITION, RefuseReason.CONFIG_INVALID, f"no TLS for {port}: {error}"
                ) from None
            self._signature, self._now = (), _configuration(known)
            self._refuse(error)

    def credentials(self) -> grpc.ServerCredentials:
        """For add_secure_port; they follow the files."""
        renewed: Callable[..., Any] = self.renewed  # the stub does not know that None means: the same
        return grpc.dynamic_ssl_server_credentials(self._now, renewed, self._asks)

    def renewed(self) -> grpc.ServerCertificateConfiguration | None:
        """New ones when the files have changed and are good; None: go on with those in use. Never raises."""
        try:
            seen = self._files.look()
            if seen == self._signature:
                self._refused = ""
                return None
            fresh = self._files.read()
            if self._files.look() != seen:
                return None  # they change right now: the next connection sees the end of it
        except NotUsable as error:
            self._refuse(error)
            return None
        self._signature, self._refused = seen, ""
        self._told(CertificatesChanged(self._port, applied=True, fingerprint=fresh.fingerprint))
        return _configuration(fresh)

    def _refuse(self, error: NotUsable) -> None:
        if str(error) != self._refused:
            self._refused = str(error)
            self._told(CertificatesChanged(self._port, applied=False, problem=str(error)))


def credentials(
    tls: ListenerTls, port: Port, events: EventSink, known: PortCertificates | None = None
) -> grpc.ServerCredentials | None:
    """Those of a port that speaks TLS; known: see Certificates. RouterError when it cannot. To be called in the event
    loop."""
    if not tls.on:
        return None
    loop = asyncio.get_running_loop()

    def told(change: CertificatesChanged) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended: so has the router
            loop.call_soon_threadsafe(events.emit, change)

    return Certificates(tls, port, told, known).credentials()


def _configuration(contents: PortCertificates) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(contents.key, contents.cert)], contents.client_ca)


def _check_authorities(path: str, content: bytes) -> None:
    """gRPC takes what it can read of a file and leaves out the rest, and wants certificates by their usual name."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_verify_locations(path)
    except (ssl.SSLError, OSError, ValueError) as error:
        raise NotUsable(f"file {path} holds no certificates, or not only whole ones: {ssl_cause(error)}") from None
    if not context.cert_store_stats()["x509"] or b"-----BEGIN CERTIFICATE-----" not in content:
        raise NotUsable(f"file {path} holds no certificates")


def _first(text: str) -> str:
    """The first certificate of a chain."""
    end = "-----END CERTIFICATE-----"
    before, found, _ = text.partition(end)
    return before[before.find("-----BEGIN CERTIFICATE-----") :] + found


def _content(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise _unreadable(error) from None


def _unreadable(error: OSError) -> NotUsable:
    return NotUsable(f"file {error.filename} cannot be read: {(error.strerror or 'unknown error').lower()}")
