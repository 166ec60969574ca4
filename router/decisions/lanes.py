"""Which lane takes the next statement, when another connection is worth opening, and when work is sent again.

A statement in a deep pipeline costs PostgreSQL and us a few microseconds, a connection of its own a process; so
statements known to be fast share few lanes, a slow or unknown one gets a lane where nobody waits behind it, and work
that must not share (writes, batches, sessions, streams) gets a lane alone. All is counted in expected seconds, not in
statements: a thousand statements of 20 µs are 20 ms of work, one report is seconds. Costs are learned in lane_costs,
the effect of growing is judged in lane_growth. Not here: the lanes themselves (postgres/), lines and deadlines (the
engine).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, unique

from router.model.policy import PoolPolicy

PACK = 0.25
"""A lane whose expected wait is below this part of grow_s takes fast statements before the next lane is touched."""
_INFINITE = float("inf")


@dataclass(slots=True, eq=False)
class LaneLoad:
    """What placement needs to know of one lane; the engine keeps one beside each lane and updates it."""

    in_flight: int = 0
    """Statements submitted and not answered."""
    expected_s: float = 0.0
    """Sum of their costs (seconds)."""
    private: bool = False
    """In use by work that must not share, or kept for it."""
    slow: int = 0
    """Slow or unknown statements among them."""
    stalled: bool = False
    """Its head takes much longer than expected: nothing is put behind it."""

    def add(self, cost_s: float, *, slow: bool = False) -> None:
        """A statement was submitted."""
        self.in_flight += 1
        self.expected_s += cost_s
        self.slow += slow

    def remove(self, cost_s: float, *, slow: bool = False) -> None:
        """It was answered; cost_s and slow as they were added."""
        self.in_flight -= 1
        # Sums of floats drift; an empty lane is exactly empty.
        self.expected_s = self.expected_s - cost_s if self.in_flight > 0 else 0.0
        self.slow -= slow


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
    window_s: float = 0.01
    """Expected cost in flight on one lane at most (seconds); a statement alone on its lane may cost more."""
    stall: float = 8.0
    """A head has stalled after so many times its cost, but not before slow_s."""

    @classmethod
    def of(cls, policy: PoolPolicy) -> LaneLimits:
        """The limits of a pool."""
        return cls(policy.lane_window, policy.max_size, policy.slow_s, policy.grow_s, policy.lane_window_s,
                   policy.stall_factor)


@unique
class Defer(Enum):
    """Not now."""

    OPEN = "open"
    """Open another lane, then place again."""
    WAIT = "wait"
    """Place again when a lane has answered, or the one being opened is there."""


def place_fast(loads: Sequence[LaneLoad], cost_s: float, limits: LaneLimits, spread: int = 1 << 30) -> int:
    """The lane that takes a fast statement, -1: none now. Never behind a slow one, and never beyond the window.

    The first lane with a short wait: few lanes stay deep, and those behind them fall idle, serve slow statements, or go
    back. Without one, the shortest wait. spread: how many lanes fast statements use (lane_growth).
    """
    best, least = -1, _INFINITE
    window, room_s, short_s = limits.window, limits.window_s - cost_s, limits.grow_s * PACK
    for index, load in enumerate(loads):
        if load.private or load.slow or load.stalled:
            continue
        in_flight = load.in_flight
        if in_flight == 0:
            return index
        expected = load.expected_s
        if in_flight < window and expected <= room_s:
            if expected <= short_s:
                return index
            if expected < least:
                best, least = index, expected
        spread -= 1
        if spread <= 0:
            break
    return best


def place_slow(
    loads: Sequence[LaneLoad], limits: LaneLimits, *, known: bool, opening: int = 0, fast_needs: int = 1
) -> int | Defer:
    """The lane that takes a slow statement, or one of unknown cost: an idle one, else a new one, else a shared one.

    At most one on a lane, and fast statements keep the lanes they need (fast_needs; 0: there are none). Unknown ones
    open lanes one at a time: a burst of first calls is over with the first answer.
    """
    private = slow = 0
    idle = best = -1
    least = _INFINITE
    for index, load in enumerate(loads):
        if load.private:
            private += 1
        elif load.slow or load.stalled:
            slow += 1
        elif load.in_flight == 0:
            idle = index  # the last one: fast statements share the first
        elif load.in_flight < limits.window and load.expected_s < least:
            best, least = index, load.expected_s
    left = limits.max_size - private - slow - 1
    if slow and left < fast_needs:
        return Defer.WAIT
    there = len(loads) - private - slow
    """Lanes that take fast statements now; connecting may take long, so the last one is not given away."""
    if idle >= 0 and (not slow or there > 1 or not fast_needs):
        return idle
    room = len(loads) + opening < limits.max_size
    if room and (known or not opening):
        return Defer.OPEN
    if slow and there < 2:
        return Defer.WAIT
    if opening and (known or there < 2):
        return Defer.WAIT  # an unknown one is likely to be fast: where fast ones keep a lane it need not wait for that
    return best if best >= 0 else Defer.WAIT


def place_alone(loads: Sequence[LaneLoad], limits: LaneLimits, opening: int = 0) -> int | Defer:
    """Place work that must not share. opening: lanes being opened for others that wait alone.

    The last idle lane first: the early ones are those that fast statements share.
    """
    for index in range(len(loads) - 1, -1, -1):
        load = loads[index]
        if load.in_flight == 0 and not load.private:
            return index
    return Defer.OPEN if len(loads) + opening < limits.max_size else Defer.WAIT


def reserve(loads: Sequence[LaneLoad]) -> int | None:
    """The shared lane that falls idle first: mark it private to let it run dry for work that waits alone.

    Without this a full pool under steady fast load would never have an idle lane. None when no lane is shared.
    """
    best: int | None = None
    for index, load in enumerate(loads):
        if load.private:
            continue
        if best is None or (load.stalled, load.expected_s) < (loads[best].stalled, loads[best].expected_s):
            best = index
    return best


@dataclass(frozen=True, slots=True)
class FastLanes:
    """How the lanes that take fast statements are doing."""

    lanes: int
    """Such lanes, at most as many as are in use by them."""
    wait_s: float
    """How long a fast statement that came now would wait (seconds); infinite without such a lane."""


def fast_lanes(loads: Sequence[LaneLoad], queued_s: float, spread: int) -> FastLanes:
    """The first lanes that take fast statements, at most spread. queued_s: what waits in the router and is fast."""
    lanes = 0
    least = _INFINITE
    for load in loads:
        if lanes < spread and not load.private and not load.stalled and not load.slow:
            lanes += 1
            least = min(least, load.expected_s)
    return FastLanes(lanes, least + queued_s / lanes if lanes else _INFINITE)


@dataclass(frozen=True, slots=True)
class Head:
    """The statement at the head of a lane, for which the lane's others wait."""

    since: float
    """When it became the head (monotonic seconds)."""
    cost_s: float
    """What it was expected to cost (seconds)."""
    answered_at: float
    """When its lane last answered (monotonic seconds; 0: never)."""


def stalled(heads: Sequence[Head | None], limits: LaneLimits, now: float) -> list[int]:
    """Lanes whose head takes much too long: nothing more goes there, and what stands behind it is sent again elsewhere.
    None: a lane without a head, or not shared."""
    return [
        index
        for index, head in enumerate(heads)
        if head is not None and now - head.since > max(limits.slow_s, limits.stall * head.cost_s)
    ]


def goes_on(heads: Sequence[Head | None], index: int) -> bool:
    """Whether another lane has answered since this one's head began. When none has, the server may stand still, and
    sending everything twice would only double its work."""
    mine = heads[index]
    return mine is not None and any(
        other is not None and other is not mine and other.answered_at > mine.since for other in heads
    )


def surplus(loads: Sequence[LaneLoad], idle_since: Sequence[float], idle_s: float, now: float) -> list[int]:
    """Lanes that go back to the pool of connections: unused for idle_s."""
    return [
        index
        for index, load in enumerate(loads)
        if not load.private and load.in_flight == 0 and now - idle_since[index] >= idle_s
    ]
