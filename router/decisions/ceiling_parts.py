"""Divides a tenant's ceiling at one endpoint among the workers of a router, by what they use of it.

As with the cap (connection_ledger.py), what counts is what a worker *may have open*, `held`, which falls only by its
own word. Invariant: the sum of what workers may have open never passes the ceiling (one that was lowered aside: until
the workers have followed, nobody gets more).

Who lacks nothing keeps what it has, and what nobody needs lies with those that use the tenant's connections, so that
they may open more without asking. Where more workers want some than there are connections, they take turns. A worker
that neither has nor wants any has no part. Pure: `now` comes in, monotonic seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from router.decisions.max_min import fill
from router.model.ledger import CeilingWish

TURN_S = 0.25
"""Where they take turns, a worker keeps a connection for at least this long."""
_K = TypeVar("_K", bound=int)


@dataclass(frozen=True, slots=True)
class CeilingPart:
    """One worker's."""

    granted: int = 0
    """By its newest grant."""
    held: int = 0
    """Most it may have open: held >= granted."""
    wish: int = 0
    """Used and wanted, by its newest word."""
    ceiling: int = 0
    """As it knows it, over all workers; 0: it neither has nor wants any."""
    since: float = float("-inf")
    """When it was given the first of those that it has, or lost the last one."""


NO_PART = CeilingPart()


def hear(part: CeilingPart, word: CeilingWish | None, *, obeys: bool) -> CeilingPart:
    """A worker's word; None: it does not speak of this tenant. obeys: it knows its newest grant."""
    in_use = word.in_use if word is not None else 0
    held = min(part.held, max(part.granted, in_use)) if obeys else part.held
    held = max(held, in_use)  # what it had open before there was a ceiling
    if word is None:
        return replace(part, held=held, wish=0, ceiling=0)
    return replace(part, held=held, wish=word.wish, ceiling=word.ceiling)


def is_settled(parts: Mapping[_K, CeilingPart]) -> bool:
    """Whether divide() would change nothing: nobody lacks anything, and nobody has what is not its own."""
    ceiling = max(part.ceiling for part in parts.values())
    granted = sum(part.granted for part in parts.values())
    return granted == ceiling and all(
        part.granted >= part.wish if part.ceiling else not part.granted for part in parts.values()
    )


def divide(parts: Mapping[_K, CeilingPart], now: float) -> dict[_K, CeilingPart]:
    """The parts as they are to be granted now."""
    ceiling = max(part.ceiling for part in parts.values())
    due = _dues(parts, ceiling, now)
    granted = {one: part.granted if part.ceiling else 0 for one, part in parts.items()}
    held = {one: part.held for one, part in parts.items()}
    _ask_back(granted, due, ceiling)
    for one in sorted(parts, key=lambda one: (granted[one], parts[one].since)):
        # What it may still have open by an older grant is its own already.
        free = max(0, ceiling - sum(held.values()))
        granted[one] = max(granted[one], min(due[one], held[one] + free))
        held[one] = max(held[one], granted[one])
    free = max(0, ceiling - sum(held.values()))
    present = sorted((one for one in parts if parts[one].ceiling), key=lambda one: granted[one])
    granted = fill(present, granted, dict.fromkeys(present, ceiling), sum(granted.values()) + free)
    return {one: _granted(part, granted[one], now) for one, part in parts.items()}


def _granted(part: CeilingPart, granted: int, now: float) -> CeilingPart:
    since = part.since if bool(granted) == bool(part.granted) else now
    return replace(part, granted=granted, held=max(part.held, granted), since=since)


def _dues(parts: Mapping[_K, CeilingPart], ceiling: int, now: float) -> dict[_K, int]:
    wishes = {one: part.wish for one, part in parts.items()}
    wanting = sorted(one for one in parts if wishes[one])
    if len(wanting) > ceiling:
        wanting.sort(key=lambda one: _turn(parts[one], now))
        return {one: int(one in wanting[:ceiling]) for one in parts}
    order = sorted(parts, key=lambda one: (-parts[one].granted, one))
    return fill(order, dict.fromkeys(order, 0), wishes, ceiling)


def _turn(part: CeilingPart, now: float) -> tuple[int, float]:
    """Whose turn is not over, then who has waited longest, then who has had it for the shortest time."""
    if not part.granted:
        return 1, part.since
    return (0 if now - part.since < TURN_S else 2), -part.since


def _ask_back(granted: dict[_K, int], due: Mapping[_K, int], ceiling: int) -> None:
    """What others are due and is not free, one after the other from whoever has most beyond its own due."""
    short = sum(max(0, due[one] - granted[one]) for one in granted) + sum(granted.values()) - ceiling
    while short > 0:
        rich = max(granted, key=lambda one: (granted[one] - due[one], one))
        if granted[rich] <= due[rich]:
            return
        granted[rich] -= 1
        short -= 1
