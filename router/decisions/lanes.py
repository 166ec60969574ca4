"""Which lane takes the next statement, and when another connection is worth opening.

Here: learned costs, and placement by expected wait. A statement in a deep pipeline costs PostgreSQL and us a few
microseconds, a connection of its own a process; so statements known to be fast share few lanes, a slow or unknown
one gets a lane where nobody waits behind it, and work that must not share (writes, batches, sessions, streams) gets a
lane alone. Not here: the lanes themselves (postgres/), queues and deadlines (the engine).

Expected wait of a lane = the sum of the costs in flight on it. Growing by expected wait sizes the pool by measured
demand: a thousand statements of 20 µs are 20 ms of work, one report is seconds.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, unique


@dataclass(slots=True, eq=False)
class LaneLoad:
    """What placement needs to know of one lane; the engine keeps one beside each lane and updates it."""

    in_flight: int = 0
    """Statements submitted and not answered."""
    expected_s: float = 0.0
    """Sum of their costs (seconds)."""
    private: bool = False
    """In use by work that must not share, or kept for it."""

    def add(self, cost_s: float) -> None:
        """A statement was submitted."""
        self.in_flight += 1
        self.expected_s += cost_s

    def remove(self, cost_s: float) -> None:
        """It was answered; cost_s as it was added."""
        self.in_flight -= 1
        # Sums of floats drift; an empty lane is exactly empty.
        self.expected_s = self.expected_s - cost_s if self.in_flight > 0 else 0.0


@dataclass(frozen=True, slots=True)
class LaneLimits:
    """Bounds of one pool's lanes; the numbers are PoolPolicy's."""

    window: int
    """Statements in flight on one lane at most; the rest stays in the router, where it can still be moved."""
    max_size: int
    """Connections of the pool at most."""
    slow_s: float
    """A statement that costs more is slow; one of unknown cost counts as this (seconds)."""
    grow_s: float
    """Another lane is opened when a fast statement would wait longer (seconds)."""


@unique
class Sharing(Enum):
    """Whether others may be in flight on the same lane."""

    SHARED = "shared"
    ALONE = "alone"


@dataclass(frozen=True, slots=True)
class PlacementWant:
    """What is to be placed."""

    sharing: Sharing = Sharing.SHARED
    cost_s: float | None = None
    """Learned cost (seconds); None: never seen."""


@dataclass(frozen=True, slots=True)
class Use:
    """Submit to the lane at this position."""

    index: int


@unique
class Defer(Enum):
    """Not now."""

    OPEN = "open"
    """Open another lane, then place again."""
    WAIT = "wait"
    """Place again when a lane has answered, or the one being opened is there."""


_USES = tuple(Use(index) for index in range(256))


def place(
    loads: Sequence[LaneLoad], want: PlacementWant, limits: LaneLimits, opening: int = 0, queued_s: float = 0.0
) -> Use | Defer:
    """Where the next piece of work goes; see place_shared and place_alone."""
    if want.sharing is Sharing.ALONE:
        return place_alone(loads, limits, opening)
    return place_shared(loads, want.cost_s, limits, opening, queued_s)


def place_shared(
    loads: Sequence[LaneLoad],
    cost_s: float | None,
    limits: LaneLimits,
    opening: int = 0,
    queued_s: float = 0.0,
) -> Use | Defer:
    """Place a statement that may share. opening: lanes being opened; queued_s: cost of what waits in the router.

    An idle lane always wins, the first one first, so that at low load the later lanes stay idle and age out.
    """
    best = -1
    least = 0.0
    sharing = 0
    window = limits.window
    for index, load in enumerate(loads):
        if load.private:
            continue
        in_flight = load.in_flight
        if in_flight == 0:
            return _use(index)
        sharing += 1
        if in_flight < window:
            expected = load.expected_s
            if best < 0 or expected < least:
                best, least = index, expected
    room = len(loads) + opening < limits.max_size
    if cost_s is not None and cost_s <= limits.slow_s:
        # Lanes that are being opened will take their part: one at a time is enough for work this quick.
        if room and not opening and _expected_wait(loads, best, least, sharing, queued_s) > limits.grow_s:
            return Defer.OPEN
    elif room and (cost_s is not None or not opening):
        # Slow: a lane of its own. Unknown: the same, but a burst of first calls must not open the whole pool.
        return Defer.OPEN
    if best >= 0:
        return _use(best)
    return Defer.OPEN if room and not sharing and not opening else Defer.WAIT


def place_alone(loads: Sequence[LaneLoad], limits: LaneLimits, opening: int = 0) -> Use | Defer:
    """Place work that must not share. opening: lanes being opened for others that wait alone.

    The last idle lane first: the early ones are those that fast statements share.
    """
    for index in range(len(loads) - 1, -1, -1):
        load = loads[index]
        if load.in_flight == 0 and not load.private:
            return _use(index)
    return Defer.OPEN if len(loads) + opening < limits.max_size else Defer.WAIT


def reserve(loads: Sequence[LaneLoad]) -> int | None:
    """The shared lane that falls idle first: mark it private to let it run dry for work that waits alone.

    Without this a full pool under steady fast load would never have an idle lane. None when no lane is shared.
    """
    best: int | None = None
    for index, load in enumerate(loads):
        if not load.private and (best is None or load.expected_s < loads[best].expected_s):
            best = index
    return best


def _expected_wait(loads: Sequence[LaneLoad], best: int, least: float, sharing: int, queued_s: float) -> float:
    if not sharing:
        return float("inf")
    if best < 0:
        least = min(load.expected_s for load in loads if not load.private)
    return least + queued_s / sharing


def _use(index: int) -> Use:
    return _USES[index] if index < len(_USES) else Use(index)


class CostBook:
    """What each statement text costs, learned from its answers (seconds of a lane's time).

    Rises at once towards a slower answer and falls slowly: taking a slow statement for a fast one makes its
    neighbours wait, the reverse costs a connection. What was not seen for forget_s is unknown again. Keeps hashes,
    not texts; a collision only makes an estimate wrong.
    """

    __slots__ = ("_costs", "_forget_s", "_limit")

    _FALL = 0.1
    _RISE = 0.5

    def __init__(self, limit: int = 4096, forget_s: float = 600.0) -> None:
        self._limit = limit
        self._forget_s = forget_s
        self._costs: OrderedDict[int, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._costs)

    def cost(self, sql: bytes, now: float) -> float | None:
        """Learned cost of a statement text; None when unknown."""
        known = self._costs.get(hash(sql))
        if known is None or now - known[1] > self._forget_s:
            return None
        return known[0]

    def learn(self, sql: bytes, took_s: float, now: float) -> None:
        """An answer came: took_s from the later of its sending and the lane's previous answer."""
        key = hash(sql)
        costs = self._costs
        known = costs.get(key)
        if known is None or now - known[1] > self._forget_s:
            costs[key] = (took_s, now)
        else:
            before = known[0]
            share = self._RISE if took_s > before else self._FALL
            costs[key] = (before + share * (took_s - before), now)
        costs.move_to_end(key)
        if len(costs) > self._limit:
            costs.popitem(last=False)
