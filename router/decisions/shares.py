"""How tenants share an endpoint's connections: how many each is due, and whose turn it is for those that remain.

A tenant has a floor, a weight and a ceiling. What is due is weighted max-min fair (Bertsekas and Gallager, Data
Networks, 6.5.2) between floor and ceiling: everybody's wish up to its floor, then all rise together, each in
proportion to its weight, until its wish or its ceiling is met or nothing is left. So what one does not use is lent to
the others, and due again as soon as it is wanted.

Connections are whole, dues are not. Who gets the connections that the fractions add up to is decided by weighted
database time, as in start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996): each tenant's time runs as fast as
it uses connections, divided by its weight; who is furthest behind is next. Whoever begins to wait starts at the time
of those who wait already, so that nobody saves up credit while it is idle. Pure: times used and `now` come in.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from math import floor
from typing import Generic, TypeVar

TURN_S = 0.25
"""A tenant's only connection changes hands for the sake of turns once its holder is this far ahead (weighted
seconds)."""
LONG_TURN_S = 1.0
"""The same for one connection of several: who waits for that has others."""
MOST_AHEAD_S = 5.0
"""What was used beyond one's share, by a floor, is remembered up to this much (weighted seconds)."""
KEPT = 0.5
"""A connection that is kept counts at least this part of its time as used: the others cannot have it."""
UNBOUNDED = 1 << 30
_EXACT = 1e-9
_K = TypeVar("_K", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Claim:
    """What one tenant has of an endpoint's connections, and what it would like."""

    keeps: int
    """Connections it has and was not asked to give up."""
    wants: int = 0
    """How many more it would use now."""
    floor: int = 0
    weight: float = 100.0
    ceiling: int = UNBOUNDED
    time_s: float = 0.0
    """Its weighted database time (seconds); only differences count."""

    @property
    def most(self) -> int:
        """It would not use more."""
        return min(self.keeps + self.wants, self.ceiling)

    @property
    def least(self) -> int:
        """It is never due less, while the cap has room for all floors."""
        return min(self.floor, self.most)


def dues(claims: Sequence[Claim], cap: float) -> list[float]:
    """Connections due to each, not rounded; their sum is the cap, or all that is wished for.

    Each gets weight * level, but not less than its least nor more than its most; the level is raised until the cap is
    used up. Floors that exceed the cap are cut in proportion.
    """
    bounds = [(claim.least, claim.most, claim.weight) for claim in claims]
    floors = sum(least for least, _, _ in bounds)
    if floors >= cap:
        return [least * cap / floors if floors else 0.0 for least, _, _ in bounds]
    if sum(most for _, most, _ in bounds) <= cap:
        return [float(most) for _, most, _ in bounds]
    level = _level(bounds, cap - floors)
    return [min(max(weight * level, least), most) for least, most, weight in bounds]


def _level(bounds: Sequence[tuple[int, int, float]], left: float) -> float:
    """To which everybody rises between least and most by weight, left being what there is beyond the leasts."""
    changes: dict[float, float] = {}
    for least, most, weight in bounds:
        changes[least / weight] = changes.get(least / weight, 0.0) + weight
        changes[most / weight] = changes.get(most / weight, 0.0) - weight
    level = slope = 0.0
    for at, change in sorted(changes.items()):
        if slope > _EXACT and (at - level) * slope >= left:
            return level + left / slope
        left -= (at - level) * slope
        level, slope = at, slope + change
    return level


def targets(claims: Sequence[Claim], cap: int, due: Sequence[float] | None = None) -> list[int]:
    """Whole connections for each, now. Their sum is the cap, or all that is wished for.

    A part that cannot be divided goes to whoever is furthest behind by weighted database time; who has it keeps it
    until another is a turn behind. due: what dues() says, where that is known.
    """
    due = dues(claims, cap) if due is None else due
    whole = [floor(one + _EXACT) for one in due]
    left = round(sum(due)) - sum(whole)
    if left > 0:
        parts = [index for index, one in enumerate(due) if one - whole[index] > _EXACT]
        parts.sort(key=lambda index: (_standing(claims[index], whole[index]), index))
        for index in parts[:left]:
            whole[index] += 1
    return whole


def _standing(claim: Claim, whole: int) -> float:
    turn_s = LONG_TURN_S if whole else TURN_S
    return claim.time_s - (turn_s if claim.keeps > whole else 0.0)


def turn(beyond: int, time_s: float) -> tuple[bool, float]:
    """By this, the least first, those that wait get what becomes free: who has not what it is due, and of these who is
    furthest behind. beyond: connections that one has beyond its due; time_s: its weighted database time."""
    return beyond >= 0, time_s


class Turns(Generic[_K]):
    """Weighted database time of each tenant at one endpoint, kept only while some wait.

    Invariant: nobody's time is below `time_s` when it begins to wait, nor more than MOST_AHEAD_S above it.
    """

    def __init__(self) -> None:
        self.time_s = 0.0
        """Of those who wait: the least."""
        self._times: dict[_K, float] = {}
        self._waiting: frozenset[_K] = frozenset()

    def of(self, tenant: _K) -> float:
        """A tenant's time (weighted seconds)."""
        return max(self._times.get(tenant, 0.0), self.time_s)

    def begin(self) -> None:
        """Nobody has waited for a while: what was used meanwhile was nobody's loss."""
        self.time_s = max([self.time_s, *self._times.values()])
        self._times.clear()
        self._waiting = frozenset()

    def step(self, used_s: Mapping[_K, float], weights: Mapping[_K, float], waiting: Collection[_K]) -> None:
        """used_s: connection seconds that each has used since the last step; weights: of all of these and of those
        who wait now."""
        mean = sum(weights.values()) / len(weights) if weights else 1.0
        for tenant, used in used_s.items():
            self._times[tenant] = self._times.get(tenant, self.time_s) + used * mean / weights[tenant]
        stayed = [self._times.get(one, self.time_s) for one in waiting if one in self._waiting]
        if stayed:
            self.time_s = max(self.time_s, min(stayed))
        for tenant in waiting:
            if tenant not in self._waiting:
                self._times[tenant] = max(self._times.get(tenant, 0.0), self.time_s)
        most = self.time_s + MOST_AHEAD_S
        self._times = {one: min(time_s, most) for one, time_s in self._times.items() if one in weights}
        self._waiting = frozenset(waiting)
