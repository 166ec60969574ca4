"""What a port of the router shows and believes, as taken from its files."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class PortCertificates:
    """Of files that can serve. In memory only: what holds a key is never written down or shown."""

    cert: bytes
    """The port's certificate and those between it and its authority (PEM)."""
    key: bytes = field(repr=False)
    """Its private key (PEM)."""
    client_ca: bytes | None
    """The authorities of callers' certificates (PEM); None: none are asked for."""
    fingerprint: str
    """Of the port's certificate: SHA-256, shortened."""
