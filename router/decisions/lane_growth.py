"""Over how many lanes fast statements spread: more while they wait too long and more lanes help, fewer when fewer do.

When the processor or we ourselves are the limit, more lanes only make each slower; the wait then stays long, whatever
is opened. So each change is a trial: lanes are doubled, and unless clearly more is answered per second, that is undone
and the next trial comes later; now and then they are halved, and unless clearly less is answered, that stays. What is
not used falls idle and goes back.

Slow statements leave fast ones the lanes that their work fills, whatever the wait of the moment, and one at least
until none has come for a while.
"""

from __future__ import annotations

from math import ceil

MEASURE_S = 0.1
"""Answers and waits are measured over this long (seconds)."""
GAIN = 0.3
"""Twice the lanes must answer this much more per second."""
LOSS = 0.1
"""Half the lanes may answer this much less per second."""
HOLD_S = 1.0
"""After a trial in vain, the next one comes this much later; doubled each time (seconds)."""
NARROW_S = 4.0
"""Lanes that have proved useful are used this long before fewer are tried; doubled each time in vain (seconds)."""
HOLD_MOST_S = 60.0
FILLED = 0.6
"""A lane is filled when it works this part of the time on fast statements; beyond, waits become long."""
EASE = 0.9
"""What is left of the need for lanes after each measurement without it: callers that pause come back."""
EXPECTED_S = 10.0
"""Who has had fast statements lately will have more: one lane at least is kept for them for so long (seconds)."""
PATIENCE_S = 2.0
"""A trial whose lanes cannot be opened within this ends without a verdict (seconds)."""
_LONG_S = 1.0


class Spread:
    """The number of lanes, and the trial under way. step() is called now and then while work is under way."""

    __slots__ = ("_answered", "_before", "_began", "_grow_s", "_marked", "_most", "_narrow_at", "_narrow_s", "_rate",
                 "_rate_before", "_steps", "_waited_s", "_widen_at", "_widen_s", "_work", "_worked_s", "fast_at",
                 "lanes")

    def __init__(self, grow_s: float, most: int) -> None:
        self.lanes = 1
        """Lanes that fast statements use."""
        self.fast_at = float("-inf")
        """When a fast statement was last answered (monotonic seconds)."""
        self._grow_s = grow_s
        self._most = most
        self._before = 0
        """Lanes before the trial; 0: none is under way."""
        self._rate_before = 0.0
        self._began = 0.0
        self._rate = 0.0
        self._marked = 0.0
        self._answered = 0
        self._worked_s = 0.0
        self._waited_s = 0.0
        self._steps = 0
        self._work = 0.0
        """Seconds of lanes' time that fast statements took per second."""
        self._widen_at = 0.0
        self._widen_s = HOLD_S
        self._narrow_at = 0.0
        self._narrow_s = NARROW_S

    def needs(self, now: float, waiting: int = 0) -> int:
        """Lanes that the work of fast statements fills; 0: there have been none for a while, and none waits."""
        return max(1, ceil(self._work / FILLED)) if waiting or now - self.fast_at < EXPECTED_S else 0

    def step(self, wait_s: float, lanes: int, answered: int, worked_s: float, now: float) -> None:
        """wait_s: what a fast statement would wait now; lanes: those that are there for them; answered: statements
        ever, worked_s: time of lanes that the fast ones among them took (seconds)."""
        self._waited_s += min(wait_s, _LONG_S)
        self._steps += 1
        if self._before and lanes < self.lanes:
            # Its lanes are still being opened: the trial has not begun.
            self._mark(answered, worked_s, now)
            if now - self._began > PATIENCE_S:
                self._before = 0
        elif self._measured(answered, worked_s, now):
            waited_s = self._waited_s / self._steps
            if self._before:
                self._judge(waited_s, now)
            elif lanes >= self.lanes:
                self._consider(waited_s, now)
            self._mark(answered, worked_s, now)
        elif self.lanes == 1 and not self._before and lanes and wait_s > self._grow_s:
            self._consider(wait_s, now)  # one lane is quickly too few
            self._mark(answered, worked_s, now)

    def _consider(self, waited_s: float, now: float) -> None:
        if waited_s > self._grow_s and self.lanes < self._most and now >= self._widen_at:
            self._try(min(2 * self.lanes, self._most), now)
        elif self.lanes > 1 and self._rate and now >= self._narrow_at:
            self._try((self.lanes + 1) // 2, now)

    def _try(self, lanes: int, now: float) -> None:
        self._before, self._rate_before, self._began = self.lanes, self._rate, now
        self.lanes = lanes

    def _judge(self, waited_s: float, now: float) -> None:
        before, self._before = self._before, 0
        if self.lanes > before:
            helps = self._rate >= self._rate_before * (1 + GAIN * (self.lanes / before - 1))
            if helps or waited_s <= self._grow_s:
                self._widen_s = HOLD_S
                self._narrow_at = now + self._narrow_s
            else:
                self.lanes = before
                self._widen_at = now + self._widen_s
                self._widen_s = min(2 * self._widen_s, HOLD_MOST_S)
        elif self._rate >= self._rate_before * (1 - LOSS):
            self._narrow_at = now + NARROW_S
            self._widen_at = now + self._widen_s
        else:
            self.lanes = before
            self._narrow_s = min(2 * self._narrow_s, HOLD_MOST_S)
            self._narrow_at = now + self._narrow_s

    def _mark(self, answered: int, worked_s: float, now: float) -> None:
        self._answered, self._worked_s, self._marked = answered, worked_s, now
        self._waited_s, self._steps = 0.0, 0

    def _measured(self, answered: int, worked_s: float, now: float) -> bool:
        """Whether a measurement has just been completed."""
        since = now - self._marked
        if since < MEASURE_S:
            return False
        # After a pause nothing is known; a trial then succeeds.
        self._rate = (answered - self._answered) / since if since <= 2 * MEASURE_S else 0.0
        self._work = max((worked_s - self._worked_s) / since, self._work * EASE)
        return True
