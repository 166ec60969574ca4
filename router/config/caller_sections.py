"""`callers` of a tenant or of the operators: sections to identities with roles."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence

from router.config.problems import Place
from router.config.schema import CallerSection, OperatorSection
from router.model.callers import CallerGrant, CallerId, CallerRole
from router.model.topology import Secret

_SPIFFE = re.compile(r"spiffe://[a-z0-9._-]{1,255}(/[A-Za-z0-9._-]+)+")
"""https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE-ID.md"""
_DNS = re.compile(r"(?!-)[a-z0-9-]{1,63}(\.(?!-)[a-z0-9-]{1,63})*")
_MOST_BYTES = 2048

Report = Callable[[Place, str], None]
ReadToken = Callable[[Place, str], Secret | None]


def token_id(token: str) -> CallerId:
    """What a static token proves."""
    return CallerId(f"token:{hashlib.sha256(token.encode('utf-8', 'surrogateescape')).hexdigest()}")


def grants(
    place: Place, sections: Sequence[OperatorSection], read: ReadToken, report: Report, *, jwt: bool
) -> Iterator[CallerGrant]:
    """The identities that stand there; what is wrong is reported. jwt: whether signed tokens are taken."""
    seen: set[CallerId] = set()
    for index, section in enumerate(sections):
        here: Place = (*place, "callers", index)
        who = _identity(here, section, read, report, jwt=jwt)
        if who is None:
            continue
        if who in seen:
            report(here, "stands here twice: one identity has one role")
        seen.add(who)
        role = CallerRole(section.role.value) if isinstance(section, CallerSection) else CallerRole.ADMIN
        yield CallerGrant(who, role)


def _identity(here: Place, section: OperatorSection, read: ReadToken, report: Report, *, jwt: bool) -> CallerId | None:
    kinds = [kind for kind in ("spiffe", "dns", "subject", "token") if getattr(section, kind, None) is not None]
    if len(kinds) != 1:
        choices = "spiffe, dns, subject and token" if isinstance(section, CallerSection) else "spiffe, dns and token"
        report(here, f"must have exactly one of {choices}, not {len(kinds)}")
        return None
    (kind,) = kinds
    value: str = getattr(section, kind)
    match kind:
        case "token":
            return _token(here, value, read)
        case "spiffe" if _SPIFFE.fullmatch(value) is None or len(value) > _MOST_BYTES:
            report((*here, kind), f"must look like spiffe://TRUST-DOMAIN/PATH, not {value!r}")
        case "dns" if _DNS.fullmatch(value) is None or len(value) > 253:
            report((*here, kind), f"must be a whole DNS name in lower case, without a wildcard, not {value!r}")
        case "subject" if not value.isprintable() or len(value) > 255:
            report((*here, kind), "must be at most 255 printable characters")
        case "subject" if not jwt:
            report((*here, kind), "has no use: no signed token is taken without server.jwt")
        case "spiffe":
            return CallerId(value)
        case "dns":
            return CallerId(f"dns:{value}")
        case _:
            return CallerId(f"jwt:{value}")
    return None


def _token(here: Place, reference: str, read: ReadToken) -> CallerId | None:
    if reference.startswith("sha256:"):
        return CallerId(f"token:{reference.removeprefix('sha256:')}")
    secret = read((*here, "token"), reference)
    return None if secret is None else token_id(secret.value)
