"""How long each statement takes nearly always: a running 95th percentile, learned answer by answer. Pure.

An estimate rises by 19 times the share by which it falls, so it comes to rest where one answer in twenty is later. No
samples are kept. What was seen seldom is unknown, as its percentile says nothing yet.
"""

from __future__ import annotations

from collections import OrderedDict

PART = 0.95
"""Of the answers come within the estimate."""
STEP, STEP_YOUNG = 0.02, 0.2
"""How far one answer moves an estimate, as a part of it; of few answers further, to come near it."""
YOUNG = 40
"""Answers until an estimate is used, and moves in small steps."""
LEAST_S = 0.0005
"""No estimate is less: below that a hedge would cost more than the wait."""


class Latencies:
    """The estimates of one tenant's statements, the least recently used going first."""

    __slots__ = ("_limit", "_seen")

    def __init__(self, limit: int = 1024) -> None:
        self._limit = limit
        self._seen: OrderedDict[int, tuple[float, int]] = OrderedDict()

    def usual_s(self, sql: bytes) -> float | None:
        """The time within which 95 % of its answers came (seconds); None while too few did."""
        estimate, answers = self._seen.get(hash(sql), (0.0, 0))
        return estimate if answers >= YOUNG else None

    def learn(self, sql: bytes, took_s: float) -> None:
        """An answer came after this long, or, of one that was given up, would have taken at least so long."""
        key = hash(sql)
        estimate, answers = self._seen.get(key, (took_s, 0))
        step = STEP if answers >= YOUNG else STEP_YOUNG
        estimate *= 1 + step * PART if took_s > estimate else 1 - step * (1 - PART)
        self._seen[key] = max(estimate, LEAST_S), answers + 1
        self._seen.move_to_end(key)
        if len(self._seen) > self._limit:
            self._seen.popitem(last=False)
