"""The consistency token: how far the write-ahead log had come when a caller saw or wrote something. Opaque to callers.

Wire form, version 1, 22 bytes: version, system identifier, timeline, position, flags (big-endian). So that the bytes
of one cluster's tokens sort as the tokens do, and another language's SDK may keep the greater of two.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from router.model.identity import Lsn, Term, lsn_to_text

MAX_BYTES = 40
"""No version will be longer."""
_VERSION = 1
_SIZE = 22
_UNCONFIRMED, _NOW = 1, 2
_UNSIGNED = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Token:
    """What a read that carries it must see at least.

    Tokens of one system form a join semilattice under merge: whoever merges all that it was given, in any order and
    however often, has the same token.
    """

    system_id: int
    """PostgreSQL's system identifier."""
    timeline: Term
    lsn: Lsn
    unconfirmed: bool = False
    """The cluster confirmed writes without a synchronous standby: what lies near a switch of timelines may be lost."""
    now: bool = False
    """And whatever was committed before the token is presented: what the holder saw on the primary, at no cost then."""

    def encode(self) -> bytes:
        """The wire form."""
        flags = _UNCONFIRMED * self.unconfirmed | _NOW * self.now
        system, place = (self.system_id & _UNSIGNED).to_bytes(8, "big"), self.timeline << 64 | self.lsn
        return bytes((_VERSION,)) + system + place.to_bytes(12, "big") + bytes((flags,))

    def __str__(self) -> str:
        return f"{lsn_to_text(self.lsn)} on timeline {self.timeline}{' and now' if self.now else ''}"

    def merge(self, other: Token) -> Token:
        """What sees all that either sees. ValueError for tokens of two systems."""
        if self.system_id != other.system_id:
            raise ValueError(f"tokens of two systems: {self.system_id} and {other.system_id}")
        greater = max(self, other, key=_place)
        now = self.now or other.now
        return greater if greater.now is now else replace(greater, now=now)


def _place(token: Token) -> tuple[int, int, bool]:
    return token.timeline, token.lsn, token.unconfirmed


def decode(raw: bytes) -> Token:
    """Read a wire form. ValueError when it is none that this router knows."""
    if len(raw) != _SIZE or raw[0] != _VERSION or raw[-1] & ~(_UNCONFIRMED | _NOW) or not any(raw[9:13]):
        raise ValueError("not a consistency token of this version")
    system_id, timeline, lsn = (int.from_bytes(raw[a:b], "big") for a, b in ((1, 9), (9, 13), (13, 21)))
    return Token(system_id, Term(timeline), Lsn(lsn), bool(raw[-1] & _UNCONFIRMED), bool(raw[-1] & _NOW))
