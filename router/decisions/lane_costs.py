"""What each statement text costs, learned from its answers: seconds of a lane's time, as the head of the lane.

Answers that come in one turn of the loop share the time since the turn before in proportion to what they were expected
to cost: an answer's own time cannot be seen when several lie in the socket together. A lane that had run dry when we
looked says only how long it took at most (the rest was our own time), so such a turn raises an estimate little.
A single outlier moves an estimate little; a statement that has become slow is known as slow after a few answers.
What was not seen for forget_s is unknown again. Keeps hashes, not texts; a collision only makes an estimate wrong.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from router.decisions.concurrency import Usual

RISE = 0.1
"""Share of a new answer in a rising estimate."""
RISE_DRY = 0.02
"""The same when the lane had run dry: the answer is an upper bound."""
RISE_SLOW = 0.5
"""The same when the answer was slow: taking a slow statement for a fast one makes its neighbours wait."""
FALL = 0.1
FALL_YOUNG = 0.5
"""The same for a falling estimate of few answers: a first call is often slower than all that follow."""
YOUNG = 8
"""Answers until an estimate is no longer young."""
OUTLIER = 8.0
"""An answer counts as at most this many times the estimate."""
KIND = 0.1
"""Share of a new answer in the part of answers that were slow."""
SLOW_FROM = 0.6
"""A fast statement is slow when this part of its answers is: not for how slow a few are, which a busy machine makes."""
FAST_BELOW = 0.2
"""A slow one is fast again below this part: no flapping."""
TOUCH_S = 0.1
"""The order of forgetting is kept this exactly (seconds)."""


class Cost:
    """The estimate of one statement text. Whoever runs it keeps the object; the book keeps it up to date."""

    __slots__ = ("answers", "expected_s", "fast", "key", "seen_at", "slow_part", "usual")

    def __init__(self, key: int, unknown_s: float) -> None:
        self.key = key
        self.expected_s = unknown_s
        """What it counts as on a lane (seconds); of an unknown one: as much as a slow one."""
        self.fast = False
        """Known to be fast."""
        self.slow_part = 0.0
        """Part of its answers that were slow, the latest counting most."""
        self.answers = 0
        """Answers learned from; 0: unknown."""
        self.seen_at = 0.0
        """When it was last answered, to TOUCH_S (monotonic seconds)."""
        self.usual: Usual | None = None
        """What it takes when little else runs; learned where concurrency is adaptive."""

    def __repr__(self) -> str:
        kind = "unknown" if not self.answers else "fast" if self.fast else "slow"
        return f"<Cost {kind} {self.expected_s * 1e3:.3f} ms>"


class CostBook:
    """The estimates of one tenant's statements on one endpoint."""

    __slots__ = ("_costs", "_forget_s", "_limit", "_slow_s")

    def __init__(self, slow_s: float, limit: int = 4096, forget_s: float = 600.0) -> None:
        self._slow_s = slow_s
        self._limit = limit
        self._forget_s = forget_s
        self._costs: OrderedDict[int, Cost] = OrderedDict()

    def __len__(self) -> int:
        return len(self._costs)

    def of(self, sql: bytes | tuple[bytes, ...]) -> Cost:
        """The estimate of a statement text, or of several in one unit; a new, unknown one when it was never seen."""
        key = hash(sql)
        cost = self._costs.get(key)
        if cost is None:
            cost = self._costs[key] = Cost(key, self._slow_s)
            if len(self._costs) > self._limit:
                self._costs.popitem(last=False)
        return cost

    def touch(self, cost: Cost, now: float) -> None:
        """It is in use: forget it last."""
        if now - cost.seen_at > TOUCH_S:
            cost.seen_at = now
            if cost.key in self._costs:
                self._costs.move_to_end(cost.key)

    def forget(self, now: float) -> None:
        """Called now and then: drop what was not seen for forget_s."""
        costs = self._costs
        while costs:
            cost = next(iter(costs.values()))
            if not cost.seen_at:  # not answered yet: counted from now
                cost.seen_at = now
                costs.move_to_end(cost.key)
            elif now - cost.seen_at > self._forget_s:
                costs.popitem(last=False)
            else:
                return

    def learn(self, answers: Mapping[Cost, int], took_s: float, *, dry: bool = False) -> bool:
        """Answers that came in one turn, with how many of each, took so long together. Whether one changed its kind.

        dry: nothing was left on the lane, so that they may have come earlier than we looked.
        """
        if len(answers) == 1:
            ((cost, count),) = answers.items()
            was_fast = cost.fast
            self._learn(cost, took_s / count, dry)
            cost.answers += count - 1
            return cost.fast is not was_fast
        expected_s = sum(cost.expected_s * count for cost, count in answers.items())
        changed = False
        for cost, count in answers.items():
            # In proportion; a book that knows only zeros shares evenly.
            each_s = took_s * cost.expected_s / expected_s if expected_s > 0.0 else took_s / sum(answers.values())
            was_fast = cost.fast
            self._learn(cost, each_s, dry)
            cost.answers += count - 1
            changed = changed or cost.fast is not was_fast
        return changed

    def learn_stuck(self, cost: Cost, so_far_s: float) -> bool:
        """No answer yet after so_far_s: it costs at least that. Whether it changed its kind."""
        was_fast = cost.fast
        if not cost.answers or so_far_s > cost.expected_s:
            self._learn(cost, so_far_s, dry=False)
        return cost.fast is not was_fast

    def _learn(self, cost: Cost, took_s: float, dry: bool) -> None:
        before, first, young = cost.expected_s, not cost.answers, cost.answers < YOUNG
        slow = 1.0 if took_s > self._slow_s else 0.0
        if first:
            cost.expected_s = took_s
            cost.slow_part = slow
        elif took_s > before:
            share = RISE_SLOW if slow else RISE_DRY if dry else RISE
            most = max(OUTLIER * before, self._slow_s / 10)
            cost.expected_s = before + share * (min(took_s, most) - before)
        else:
            cost.expected_s = before + (FALL_YOUNG if young else FALL) * (took_s - before)
        cost.slow_part += (FALL_YOUNG if young else KIND) * (slow - cost.slow_part)
        cost.answers += 1
        cost.fast = cost.slow_part < (SLOW_FROM if cost.fast or first else FAST_BELOW)
        if cost.fast and cost.expected_s > self._slow_s:
            cost.expected_s = self._slow_s  # a few slow answers among many
