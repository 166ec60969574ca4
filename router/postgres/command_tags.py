"""Command tags ("UPDATE 3") as text and count."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from psycopg.pq.abc import PGresult

MAX_TAGS = 1024
MOST_ROWS = (1 << 63) - 1

known_tags: dict[bytes | None, tuple[str, int]] = {}
"""By the tag as libpq has it: the same few come back for ever, and reading one takes longer than finding it."""


def read_tag(result: PGresult) -> tuple[str, int]:
    """Text and count of a result's tag, which are remembered."""
    tag = result.command_status
    # No server counts so far; one that cannot be trusted may say so, and a message has no room for it.
    read = (tag.decode() if tag else "", min(result.command_tuples or 0, MOST_ROWS))
    if len(known_tags) < MAX_TAGS:
        known_tags[tag] = read
    return read
