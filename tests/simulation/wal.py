"""Records of the write-ahead log, and the rule who must confirm a commit. Read without any code of the router."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tests.support.fake_keys import Row

RECORD_BYTES = 100
"""Each record counts as so many bytes, so that positions look like LSNs."""


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """One record: a commit with its writes, or the start of a timeline (without writes). Compared by identity, so
    that two servers share a history as far as their lists hold the same objects."""

    serial: int
    node: str
    timeline: int
    writes: tuple[bytes, ...] = ()
    keys: tuple[tuple[bytes, Row], ...] = ()
    """Rows of idempotency keys that the same transaction wrote."""


def quorum(sync_names: str) -> tuple[int, tuple[str, ...]]:
    """k and names of `ANY k (a, b)`; k is 0 when nobody must confirm."""
    found = re.fullmatch(r"(?:ANY|FIRST) (\d+) \((.*)\)", sync_names.strip())
    if found is None:
        return 0, ()
    return int(found[1]), tuple(name.strip().strip('"') for name in found[2].split(","))


def common_length(one: list[Record], other: list[Record]) -> int:
    """How many records two histories share. Histories of one cluster part once and never meet again."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[middle - 1] is other[middle - 1]:
            low = middle
        else:
            high = middle - 1
    return low
