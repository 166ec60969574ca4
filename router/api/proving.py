"""From a call's metadata and certificate to who calls; and the same question again while a stream lives.

What can be proved once (the hash of a token, a signature, the names in a certificate) is proved when the RPC begins.
What may change meanwhile (who may do what, the end of a token or certificate, withdrawn keys) is asked with each
message.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from router.engine.directory import token_id
from router.model.callers import Admission, CallerId, Evidence
from router.model.errors import Code, RouterError
from router.model.reasons import RefuseReason

if TYPE_CHECKING:
    from router.api.jwt_keys import JwtVerifier
    from router.api.peer_certificate import PeerCertificates

_LONGEST_CLAIM = 128

Caller = TypeVar("Caller")
Known = TypeVar("Known", covariant=True)
Wall = Callable[[], float]


class Registry(Protocol[Known]):
    """Who may do what, by the configuration in force. RouterError when somebody may not."""

    def knows(self, who: CallerId) -> bool: ...

    def admit(self, evidence: Evidence, claimed: str | None) -> Admission[Known]: ...


class Peer(Protocol):
    """What is looked at of an RPC."""

    def invocation_metadata(self) -> Sequence[tuple[str, str | bytes]] | None: ...

    def auth_context(self) -> object: ...


class Proof(Generic[Caller]):
    """What one call has proved. Calling it tells as whom it may go on now; RouterError: it may not."""

    __slots__ = ("_claimed", "_evidence", "_keys", "_proving", "_signed", "expires")

    def __init__(
        self, proving: Proving[Caller], evidence: Evidence, claimed: str | None, signed: str | None, expires: float
    ) -> None:
        """signed: the token, where the proof is its signature. expires: unix seconds."""
        self._proving = proving
        self._evidence = evidence
        self._claimed = claimed
        self._signed = signed
        self._keys = proving.keys_number
        self.expires = expires

    def __call__(self) -> Admission[Caller]:
        if self.expires != math.inf and self.remaining_s() <= 0:
            raise expired_error()
        if self._signed is not None and self._keys != self._proving.keys_number:
            self._keys = self._proving.keys_number
            self._proving.verify(self._signed)
        return self._proving.registry.admit(self._evidence, self._claimed)

    def remaining_s(self) -> float:
        """Seconds until the token or the certificate ends; infinite for what does not end."""
        return self.expires - self._proving.wall()


class Proving(Generic[Caller]):
    """One for each port."""

    def __init__(
        self,
        registry: Registry[Caller],
        *,
        jwt: JwtVerifier | None = None,
        certificates: PeerCertificates | None = None,
        wall: Wall = time.time,
    ) -> None:
        """jwt: None where no signed tokens are taken. certificates: None where the port asks for none."""
        self.registry = registry
        self.wall = wall
        self._jwt = jwt
        self._certificates = certificates

    @property
    def keys_number(self) -> int:
        """Changes with the keys of signed tokens."""
        return self._jwt.number if self._jwt is not None else 0

    def begin(self, peer: Peer) -> Proof[Caller]:
        """The proof of a new call, which is yet to be asked. RouterError UNAUTHENTICATED when it is none."""
        token, claimed = credentials_in(peer.invocation_metadata() or ())
        names: tuple[CallerId, ...] = ()
        expires, who, signed = math.inf, None, None
        if self._certificates is not None:
            names, expires = self._certificates.of(peer.auth_context())
        if token is not None:
            who = token_id(token)
            if self._jwt is not None and not self.registry.knows(who) and token.count(".") == 2:
                signed = token
                who, ends = self.verify(token)
                expires = min(expires, ends)
        return Proof(self, Evidence(who, names), claimed, signed, expires)

    def verify(self, token: str) -> tuple[CallerId, float]:
        """Who a signed token names, and until when."""
        if self._jwt is None:
            raise unauthenticated("this router takes no signed tokens")
        return self._jwt.verify(token)


def credentials_in(metadata: Sequence[tuple[str, str | bytes]]) -> tuple[str | None, str | None]:
    """The bearer token, and the tenant that is claimed. RouterError when one of them comes twice."""
    found: dict[str, str] = {}
    for key, value in metadata:
        if key == "authorization" or key == "pointsman-tenant":
            if key in found or not isinstance(value, str):
                raise unauthenticated(f"metadata {key!r} comes more than once: send one")
            found[key] = value
    claimed = found.get("pointsman-tenant")
    if claimed is not None and len(claimed) > _LONGEST_CLAIM:
        raise unauthenticated(f"metadata 'pointsman-tenant' is longer than any name ({_LONGEST_CLAIM} characters)")
    return bearer_token(found.get("authorization")), claimed


def bearer_token(authorization: str | None) -> str | None:
    """The token of "Bearer TOKEN", None when there is none of that form."""
    scheme, _, token = (authorization or "").partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


def unauthenticated(message: str) -> RouterError:
    """For who has not proved anything."""
    return RouterError(Code.UNAUTHENTICATED, RefuseReason.UNAUTHENTICATED, message)


def expired_error() -> RouterError:
    """For a proof that ended while its stream went on, or before."""
    return unauthenticated("the token or certificate has expired: call again with a new one")
