"""Who may use the admin port. Tenants' tokens and certificates are of no use here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from router.engine.directory import token_id
from router.model.callers import Admission, CallerGrant, CallerId, CallerRole, Evidence, shown
from router.model.errors import Code, RouterError
from router.model.reasons import RefuseReason
from router.model.topology import Secret


@dataclass(frozen=True, slots=True)
class OperatorIdentity:
    """A proved operator."""

    name: str
    """As in logs; of a token a part of its hash."""


class AdminIdentity:
    """Operators by what they prove themselves with. Without any configured nobody is let in."""

    def __init__(self, tokens: Iterable[Secret] = (), callers: Iterable[CallerGrant] = ()) -> None:
        self._known: dict[CallerId, Admission[OperatorIdentity]] = {}
        self.apply(tokens, callers)

    def apply(self, tokens: Iterable[Secret], callers: Iterable[CallerGrant]) -> None:
        """Take a new configuration; calls under way go on."""
        ids = (*(token_id(token.value) for token in tokens if token.value), *(grant.id for grant in callers))
        self._known = {who: Admission(OperatorIdentity(shown(who)), CallerRole.ADMIN, who) for who in ids}

    def knows(self, who: CallerId) -> bool:
        """Whether it is an operator's."""
        return who in self._known

    def admit(self, evidence: Evidence, claimed: str | None) -> Admission[OperatorIdentity]:
        """The operator; RouterError UNAUTHENTICATED. Operators claim no tenant.

        A token must be known, if there is one; a certificate that is not known adds nothing to it.
        """
        if not self._known:
            raise _refused("no admin token is configured: set one under admin.tokens")
        if evidence.token is None and not evidence.certificate:
            raise _refused('the call has no token: send the metadata "authorization: Bearer TOKEN"')
        if evidence.token is not None and evidence.token not in self._known:
            raise _refused("the token is not one of the admin tokens")
        found = next(self._found(evidence), None)
        if found is None:
            raise _refused("the certificate is not one of an operator (admin.callers)")
        return found

    def _found(self, evidence: Evidence) -> Iterator[Admission[OperatorIdentity]]:
        for who in (evidence.token, *evidence.certificate):
            if who is not None and who in self._known:
                yield self._known[who]


def _refused(message: str) -> RouterError:
    return RouterError(Code.UNAUTHENTICATED, RefuseReason.UNAUTHENTICATED, message)
