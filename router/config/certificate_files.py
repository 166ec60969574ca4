"""The files of a port's TLS: where they are, and whether they can serve, before anything depends on them."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from router.model.port_policies import ListenerTls, ssl_cause

_KINDS = ("cert", "key", "client_ca")


def resolved(tls: ListenerTls, base: Path) -> ListenerTls:
    """The same with absolute paths; relative ones start at base."""
    paths = {kind: str(base / Path(text).expanduser()) for kind in _KINDS if (text := getattr(tls, kind))}
    return replace(tls, **paths)


def mistakes(tls: ListenerTls) -> Iterator[tuple[str, str]]:
    """What is wrong with the files: which of them ("" for cert and key together), and words. Reads them."""
    readable = True
    for kind in _KINDS:
        path: str = getattr(tls, kind)
        if not path:
            continue
        try:
            with open(path, "rb") as file:
                file.read(1)
        except OSError as error:
            readable = False
            yield kind, f"file {path} cannot be read: {(error.strerror or 'unknown error').lower()}"
    if not readable or not tls.on:
        return
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # The password keeps OpenSSL from asking for one at the terminal.
        context.load_cert_chain(tls.cert, tls.key, password=lambda: "")
    except (ssl.SSLError, OSError, ValueError) as error:
        yield "", f"cert and key do not serve together: {ssl_cause(error)}"
    if tls.client_ca:
        try:
            context.load_verify_locations(tls.client_ca)
            whole = context.cert_store_stats()["x509"] and b"-----BEGIN CERTIFICATE-----" in _content(tls.client_ca)
        except (ssl.SSLError, OSError, ValueError) as error:
            yield "client_ca", f"file {tls.client_ca} holds no certificates, or not only whole ones: {ssl_cause(error)}"
        else:
            if not whole:  # but lists of revoked ones, or a kind that gRPC does not read
                yield "client_ca", f"file {tls.client_ca} holds no certificates"


def _content(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
