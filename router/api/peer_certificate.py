"""The names in a caller's certificate, which gRPC has verified: its chain, its times, and that the caller has the key.

Only subject alternative names count, never the common name. A certificate with a URI is one of SPIFFE: it must have
exactly one URI, and that is its name (https://github.com/spiffe/spiffe/blob/main/standards/X509-SVID.md). Any other
has its DNS names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from cryptography import x509
from cryptography.x509.oid import ExtensionOID

from router.model.callers import CallerId
from router.model.errors import Code, RouterError
from router.model.reasons import RefuseReason

Names = tuple[CallerId, ...]

_KEPT = 1024
_MOST_NAMES = 32


class PeerCertificates:
    """Reads certificates; the last ones are remembered, as callers come back."""

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[Names, float]] = {}

    def of(self, auth_context: object) -> tuple[Names, float]:
        """Its names, maybe none, and when it ends (unix seconds). RouterError UNAUTHENTICATED: not to be used."""
        pem = _pem(auth_context)
        if pem is None:
            return (), math.inf
        found = self._known.get(pem)
        if found is None:
            found = _read(pem)
            if len(self._known) >= _KEPT:
                self._known.clear()
            self._known[pem] = found
        return found


def _pem(auth_context: object) -> bytes | None:
    if not isinstance(auth_context, Mapping):
        return None
    values = auth_context.get("x509_pem_cert") or ()
    return bytes(values[0]) if values else None


def _read(pem: bytes) -> tuple[Names, float]:
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        ends = certificate.not_valid_after_utc.timestamp()
        return names_of(certificate), ends
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        raise _unusable("it cannot be read") from None


def names_of(certificate: x509.Certificate) -> Names:
    """The SPIFFE id, or the DNS names. RouterError for one that is no identity at all."""
    try:
        extension = certificate.extensions.get_extension_for_oid(ExtensionOID.SUBJECT_ALTERNATIVE_NAME)
    except x509.ExtensionNotFound:
        return ()
    names = extension.value
    if not isinstance(names, x509.SubjectAlternativeName):
        return ()
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) > 1:
        raise _unusable(f"it has {len(uris)} URIs, one is needed")
    if uris:
        if not uris[0].startswith("spiffe://"):
            raise _unusable("its URI is no SPIFFE id")
        return (CallerId(uris[0]),)
    dns = names.get_values_for_type(x509.DNSName)
    if len(dns) > _MOST_NAMES:
        raise _unusable(f"it has {len(dns)} names, at most {_MOST_NAMES} are looked at")
    return tuple(CallerId(f"dns:{name.lower()}") for name in dns)


def _unusable(why: str) -> RouterError:
    return RouterError(
        Code.UNAUTHENTICATED, RefuseReason.UNAUTHENTICATED, f"the certificate proves nobody: {why}"
    )
