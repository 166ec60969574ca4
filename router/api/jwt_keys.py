"""Signed tokens (JWT, RFC 7519) by an issuer's public keys (JWKS, RFC 7517), as RFC 8725 advises.

The algorithm is the key's, never the token's: RS256 for RSA of 2048 bits or more, ES256 for P-256, EdDSA for Ed25519.
Keys of any other kind in the set are passed over, symmetric ones above all. Keys are got beside the calls: a file is
looked at every second, an address asked now and then, and soon when a token names a key that is not there.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
import urllib.request
import warnings
from collections.abc import Callable, Mapping
from http.client import HTTPException
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from router.model.callers import CallerId
from router.model.errors import Code, RouterError
from router.model.events import JwtKeysChanged
from router.model.port_policies import JwtPolicy
from router.model.reasons import RefuseReason

FILE_EVERY_S = 1.0
WANTED_EVERY_S = 10.0
"""An address is asked for a key that is not there at most this often."""
FAILED_EVERY_S = 5.0
FETCH_S = 5.0
RETRY_S = 0.5
_MOST_BYTES = 1 << 20
_LEAST_RSA_BITS = 2048
_LONGEST_SUBJECT = 255

_ALGORITHMS = {("RSA", None): "RS256", ("EC", "P-256"): "ES256", ("OKP", "Ed25519"): "EdDSA"}
_WORDS: Mapping[type[Exception], str] = {
    jwt.ExpiredSignatureError: "it has expired",
    jwt.ImmatureSignatureError: "it is not valid yet",
    jwt.InvalidAudienceError: "it is for another audience",
    jwt.InvalidIssuerError: "it is of another issuer",
    jwt.InvalidAlgorithmError: "its algorithm is not the key's",
    jwt.InvalidSignatureError: "its signature is not the key's",
    jwt.MissingRequiredClaimError: "it must have exp, iss, aud and sub",
}

Keys = Mapping[str, jwt.PyJWK]


class _NoKeys(Exception):
    """The set cannot be had. str() has no secret."""


class JwtVerifier:
    """Verify tokens; run beside, for ever."""

    def __init__(self, policy: JwtPolicy, told: Callable[[JwtKeysChanged], None]) -> None:
        """RouterError CONFIG_INVALID when the keys are to come from a file, and do not."""
        self._policy = policy
        self._told = told
        self._keys: Keys = {}
        self._content: bytes | None = None
        self._problem = ""
        self._wanted = asyncio.Event()
        self._asked = -WANTED_EVERY_S
        self.number = 0
        """Raised whenever the keys change."""
        if not policy.by_address:
            try:
                self._take(_from_file(policy.keys))
            except _NoKeys as error:
                raise RouterError(
                    Code.FAILED_PRECONDITION, RefuseReason.CONFIG_INVALID, f"no keys for signed tokens: {error}"
                ) from None

    def verify(self, token: str) -> tuple[CallerId, float]:
        """Whom it names, and when it ends (unix seconds). RouterError UNAUTHENTICATED; UNAVAILABLE while keys come."""
        try:
            key = self._key(jwt.get_unverified_header(token))
            claims = jwt.decode(
                token,
                key,
                algorithms=[key.algorithm_name],
                audience=self._policy.audience,
                issuer=self._policy.issuer,
                leeway=self._policy.leeway_s,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
            subject, ends = claims["sub"], float(claims["exp"])
        except jwt.PyJWTError as error:
            raise _refused(_WORDS.get(type(error), "it is malformed")) from None
        except (TypeError, ValueError, OverflowError, RecursionError):
            raise _refused("it is malformed") from None
        if not isinstance(subject, str) or not subject.isprintable() or not 0 < len(subject) <= _LONGEST_SUBJECT:
            raise _refused("its subject is no name")
        return CallerId(f"jwt:{subject}"), ends + self._policy.leeway_s

    def _key(self, header: Mapping[str, Any]) -> jwt.PyJWK:
        if "crit" in header:
            raise _refused("it has critical extensions")
        name = header.get("kid")
        if name is None and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        key = self._keys.get(name) if isinstance(name, str) else None
        if key is None:
            raise self._no_key()
        return key

    def _no_key(self) -> RouterError:
        """An issuer may sign with a new key before we have heard of it: its caller comes back in a moment."""
        now = time.monotonic()
        if self._policy.by_address and now - self._asked >= WANTED_EVERY_S:
            self._asked = now
            self._wanted.set()
            return RouterError(
                Code.UNAVAILABLE,
                RefuseReason.UNAUTHENTICATED,
                "the key of the token is not known yet: the issuer is being asked",
                retry_after_s=RETRY_S,
            )
        return _refused("its key is not among the issuer's")

    # --- keys ---------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep the keys fresh until cancelled."""
        while True:
            pause_s = FILE_EVERY_S
            if self._policy.by_address:
                good = await self._refresh(_from_address)
                pause_s = self._policy.refresh_s if good else min(FAILED_EVERY_S, self._policy.refresh_s)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wanted.wait(), pause_s)
            self._wanted.clear()
            if not self._policy.by_address:
                await self._refresh(_from_file)

    async def _refresh(self, read: Callable[[str], bytes]) -> bool:
        try:
            self._take(await asyncio.to_thread(read, self._policy.keys))
        except _NoKeys as error:
            if str(error) != self._problem:
                self._problem = str(error)
                self._told(JwtKeysChanged(applied=False, keys=len(self._keys), problem=self._problem))
            return False
        self._problem = ""
        return True

    def _take(self, content: bytes) -> None:
        if content == self._content:
            return
        keys = keys_in(content)
        if not keys:
            raise _NoKeys("the set has no key for RS256, ES256 or EdDSA")
        first = self._content is None
        self._keys, self._content = keys, content
        self.number += 1
        if not first or self._policy.by_address:
            self._told(JwtKeysChanged(applied=True, keys=len(keys)))


def keys_in(content: bytes) -> Keys:
    """The usable keys of a JWKS by their ids; those without one have numbers of their own."""
    try:
        entries = json.loads(content)["keys"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise _NoKeys("it is no JWKS") from None
    found: dict[str, jwt.PyJWK] = {}
    for number, entry in enumerate(entries if isinstance(entries, list) else ()):
        key = _usable(entry) if isinstance(entry, dict) else None
        if key is not None:
            found[str(entry.get("kid", f" {number}"))] = key
    return found


def _usable(entry: dict[str, Any]) -> jwt.PyJWK | None:
    kind = entry.get("kty")
    algorithm = _ALGORITHMS.get((str(kind), None if kind == "RSA" else entry.get("crv")))
    if algorithm is None or entry.get("alg", algorithm) != algorithm or entry.get("use", "sig") != "sig":
        return None
    public = {name: value for name, value in entry.items() if name in ("kty", "crv", "x", "y", "n", "e", "kid")}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            key = jwt.PyJWK(public, algorithm)
    except jwt.PyJWTError:
        return None
    if isinstance(key.key, RSAPublicKey) and key.key.key_size < _LEAST_RSA_BITS:
        return None
    return key


def _from_file(path: str) -> bytes:
    try:
        if os.path.getsize(path) > _MOST_BYTES:
            raise _NoKeys("it is larger than 1 MiB")
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise _NoKeys(f"file {path} cannot be read: {(error.strerror or 'unknown error').lower()}") from None


class _Straight(urllib.request.HTTPRedirectHandler):
    """Redirects could lead anywhere."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _from_address(address: str) -> bytes:
    try:
        with urllib.request.build_opener(_Straight).open(address, timeout=FETCH_S) as answer:
            content: bytes = answer.read(_MOST_BYTES + 1)
    except (OSError, HTTPException, ValueError) as error:
        raise _NoKeys(f"the address cannot be asked: {type(error).__name__}") from None
    if len(content) > _MOST_BYTES:
        raise _NoKeys("it is larger than 1 MiB")
    return content


def _refused(why: str) -> RouterError:
    return RouterError(Code.UNAUTHENTICATED, RefuseReason.UNAUTHENTICATED, f"the signed token is not taken: {why}")
