"""A port's certificates: taken from their files, and again whenever these change, at the next handshake.

Nobody is told of a change: each new connection looks whether the files are the same, which costs three stats. What is
no good (half-written files, a key of another certificate) is told once, and the old certificates go on; the files are
looked at again with each connection until they are good. Connections that are open keep what they have proved.
"""

from __future__ import annotations

import hashlib
import os
import ssl
from collections.abc import Callable
from typing import Any, Literal

import grpc

from router.model.errors import Code, RouterError
from router.model.events import CertificatesChanged
from router.model.port_policies import ListenerTls
from router.model.reasons import RefuseReason

Port = Literal["callers", "operators"]
Signature = tuple[tuple[int, int, int, int], ...]


class _NotUsable(Exception):
    """The files cannot serve. str() has no secret."""


class Certificates:
    """The certificates of one port. Made where its server is made; the look at the files happens on gRPC's threads."""

    def __init__(self, tls: ListenerTls, port: Port, told: Callable[[CertificatesChanged], None]) -> None:
        """told: hears of changes, from any thread. RouterError CONFIG_INVALID when the files cannot serve."""
        self._tls = tls
        self._port: Port = port
        self._told = told
        self._refused: Signature | None = None
        try:
            self._signature = self._look()
            self._now, self.fingerprint = self._read()
        except _NotUsable as error:
            raise RouterError(
                Code.FAILED_PRECONDITION, RefuseReason.CONFIG_INVALID, f"no TLS for {port}: {error}"
            ) from None

    def credentials(self) -> grpc.ServerCredentials:
        """For add_secure_port; they follow the files."""
        renewed: Callable[..., Any] = self.renewed  # the stub does not know that None means: the same
        return grpc.dynamic_ssl_server_credentials(self._now, renewed, bool(self._tls.client_ca))

    def renewed(self) -> grpc.ServerCertificateConfiguration | None:
        """New ones when the files have changed and are good; None: go on with those in use. Never raises."""
        seen: Signature = ()
        try:
            seen = self._look()
            if seen == self._signature:
                self._refused = None
                return None
            fresh, fingerprint = self._read()
            if self._look() != seen:
                return None  # they change right now: the next connection sees the end of it
        except _NotUsable as error:
            if seen != self._refused:
                self._refused = seen
                self._told(CertificatesChanged(self._port, applied=False, problem=str(error)))
            return None
        self._signature, self._refused = seen, None
        self._now, self.fingerprint = fresh, fingerprint
        self._told(CertificatesChanged(self._port, applied=True, fingerprint=fingerprint))
        return fresh

    def _files(self) -> tuple[str, ...]:
        return tuple(path for path in (self._tls.cert, self._tls.key, self._tls.client_ca) if path)

    def _look(self) -> Signature:
        try:
            seen = [os.stat(path) for path in self._files()]
        except OSError as error:
            raise _unreadable(error) from None
        return tuple((one.st_dev, one.st_ino, one.st_mtime_ns, one.st_size) for one in seen)

    def _read(self) -> tuple[grpc.ServerCertificateConfiguration, str]:
        contents = [_content(path) for path in self._files()]
        cert, key = contents[0], contents[1]
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self._tls.cert, self._tls.key, password=lambda: "")
            if self._tls.client_ca:
                context.load_verify_locations(self._tls.client_ca)
            leaf = ssl.PEM_cert_to_DER_cert(_first(cert.decode("ascii", "replace")))
        except (ssl.SSLError, OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or "they are no PEM files, or the key is encrypted"
            raise _NotUsable(f"cert, key and client_ca do not serve: {reason}".lower()) from None
        roots = contents[2] if self._tls.client_ca else None
        fingerprint = hashlib.sha256(leaf).hexdigest()[:16]
        return grpc.ssl_server_certificate_configuration([(key, cert)], roots), fingerprint


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


def _unreadable(error: OSError) -> _NotUsable:
    return _NotUsable(f"file {error.filename} cannot be read: {(error.strerror or 'unknown error').lower()}")
