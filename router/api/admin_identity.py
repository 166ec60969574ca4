"""Who may use the admin port: holders of a static token. Tenants' tokens are of no use here."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass

from router.model.errors import Code, RouterError
from router.model.reasons import RefuseReason
from router.model.topology import Secret


@dataclass(frozen=True, slots=True)
class OperatorIdentity:
    """A proved operator."""

    token_number: int
    """Which of the configured tokens, from 0; the token itself goes no further."""


class AdminIdentity:
    """Compares tokens in constant time. Without configured tokens nobody is let in."""

    def __init__(self, tokens: Sequence[Secret]) -> None:
        self._digests = [_digest(token.value) for token in tokens if token.value]

    def __call__(self, token: str | None, claimed: str | None) -> OperatorIdentity:
        """The operator whose token this is; RouterError UNAUTHENTICATED. Operators claim no tenant."""
        if not self._digests:
            raise _refused("no admin token is configured: set one under admin.tokens")
        if token is None:
            raise _refused('the call has no token: send the metadata "authorization: Bearer TOKEN"')
        offered = _digest(token)
        # Every one is compared, so that the time taken tells nothing.
        matches = [number for number, known in enumerate(self._digests) if hmac.compare_digest(offered, known)]
        if not matches:
            raise _refused("the token is not one of the admin tokens")
        return OperatorIdentity(matches[0])


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def _refused(message: str) -> RouterError:
    return RouterError(Code.UNAUTHENTICATED, RefuseReason.UNAUTHENTICATED, message)
