"""An issuer of signed tokens: keys of all kinds, good tokens, and any other."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

ISSUER = "https://login.example.net"
AUDIENCE = "pointsman"


@cache
def rsa_key(name: str = "", bits: int = 2048) -> rsa.RSAPrivateKey:
    """The same key for the same name."""
    return rsa.generate_private_key(65537, bits)


class Issuer:
    """Signs with RS256 (key "r"), ES256 ("e") and EdDSA ("d")."""

    def __init__(self) -> None:
        self.keys: dict[str, Any] = {
            "r": rsa_key(),
            "e": ec.generate_private_key(ec.SECP256R1()),
            "d": ed25519.Ed25519PrivateKey.generate(),
        }

    def set_of_keys(self, *names: str, **more: Mapping[str, Any]) -> bytes:
        """The JWKS of these keys (all when none is named), and of others."""
        entries = [_entry(self.keys[name]) | {"kid": name} for name in names or self.keys]
        return json.dumps({"keys": [*entries, *({"kid": name, **entry} for name, entry in more.items())]}).encode()

    def publish(self, path: Path, *names: str, **more: Mapping[str, Any]) -> None:
        """Write it to a file in one step."""
        fresh = path.with_name(f"{path.name}.new")
        fresh.write_bytes(self.set_of_keys(*names, **more))
        fresh.replace(path)

    def token(self, key: str = "e", *, header: Mapping[str, Any] | None = None, **claims: Any) -> str:
        """A good token, unless the claims say otherwise; a claim of None is left out."""
        algorithm = {"r": "RS256", "e": "ES256", "d": "EdDSA"}[key]
        headers = {name: value for name, value in {"kid": key, **(header or {})}.items() if value is not None}
        return jwt.encode(claims_with(claims), self.keys[key], algorithm=algorithm, headers=headers)

    def public_pem(self, key: str) -> bytes:
        """The public key as PEM, which anybody may know."""
        pem: bytes = self.keys[key].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        return pem


def claims_with(claims: Mapping[str, Any]) -> dict[str, Any]:
    """Good claims with others in their place."""
    good = {"iss": ISSUER, "aud": AUDIENCE, "sub": "acme-web", "exp": time.time() + 600}
    return {name: value for name, value in {**good, **claims}.items() if value is not None}


def by_hand(header: Mapping[str, Any], claims: Mapping[str, Any], secret: bytes | None) -> str:
    """A token that no library would make: HMAC-SHA256 with any secret, or without a signature."""
    signed = ".".join(_encoded(json.dumps(part).encode()) for part in (header, claims_with(claims)))
    signature = b"" if secret is None else hmac.new(secret, signed.encode(), hashlib.sha256).digest()
    return f"{signed}.{_encoded(signature)}"


def _encoded(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def entry_of_weak_key() -> dict[str, Any]:
    """An RSA key of 1024 bits, as in a JWKS."""
    return _entry(rsa_key("weak", 1024))


def _entry(key: Any) -> dict[str, Any]:
    public = key.public_key()
    if isinstance(key, rsa.RSAPrivateKey):
        return dict(RSAAlgorithm.to_jwk(public, as_dict=True))
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return dict(ECAlgorithm.to_jwk(public, as_dict=True))
    return dict(OKPAlgorithm.to_jwk(public, as_dict=True))
