"""Who calls, as proved, and what they may do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, unique
from typing import Generic, NewType, TypeVar

CallerId = NewType("CallerId", str)
"""What a credential proves: "token:" and the SHA-256 of a static token in hexadecimal, a SPIFFE id ("spiffe://..."),
"dns:" and a name, or "jwt:" and a subject. It holds no secret."""

_SHOWN_CHARS = len("token:") + 12

Caller = TypeVar("Caller", covariant=True)


@unique
class CallerRole(Enum):
    """What a caller may do. Each may do what those before it may."""

    READER = "reader"
    """Queries that PostgreSQL itself keeps from writing."""
    WRITER = "writer"
    ADMIN = "admin"
    """Operates the router; known on the operators' port only."""

    def allows(self, needed: CallerRole) -> bool:
        """Whether what needs that role may be done by this one. Operators are no callers: they have no tenant."""
        match self:
            case CallerRole.READER:
                return needed is CallerRole.READER
            case CallerRole.WRITER:
                return needed is not CallerRole.ADMIN
            case CallerRole.ADMIN:
                return needed is CallerRole.ADMIN


@dataclass(frozen=True, repr=False)
class CallerGrant:
    """An identity and the role it has in the tenant, or router, that lists it."""

    id: CallerId
    role: CallerRole

    def __repr__(self) -> str:
        return f"{shown(self.id)} ({self.role.value})"


@dataclass(frozen=True, slots=True)
class Evidence:
    """What one call has proved. Both empty: nothing."""

    token: CallerId | None = None
    """Of its bearer token, static or signed."""
    certificate: tuple[CallerId, ...] = ()
    """Names of its certificate: one SPIFFE id, or any number of DNS names."""


@dataclass(frozen=True, slots=True)
class Admission(Generic[Caller]):
    """A call that may go on, and as whom."""

    caller: Caller
    role: CallerRole
    who: CallerId


def shown(who: CallerId) -> str:
    """An identity for people and logs; of a token a part of its hash."""
    return who[:_SHOWN_CHARS] if who.startswith("token:") else who
