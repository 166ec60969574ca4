"""A lane, its load, and who uses it."""

from __future__ import annotations

import asyncio
from collections import deque

from router.decisions.lane_costs import Cost
from router.decisions.lanes import LaneLoad
from router.model.request import Residue
from router.ports import Lane, Unit


def has_arrived(cancelling: asyncio.Task[bool]) -> bool:
    """Whether a cancel request has done what it can do, for certain."""
    return cancelling.done() and not cancelling.cancelled() and cancelling.exception() is None and cancelling.result()


class Slot(LaneLoad):
    """One lane of a lane pool."""

    __slots__ = (
        "answered_at",
        "answers",
        "given_up",
        "idle_since",
        "lane",
        "pinned",
        "pinned_at",
        "reserved",
        "residue",
        "running",
        "stopping",
        "turn_at",
        "units",
    )

    def __init__(self, lane: Lane, now: float) -> None:
        super().__init__()
        self.lane = lane
        self.units: deque[Unit] = deque()
        """Submitted and not done, in the order of their answers."""
        self.answered_at = 0.0
        """When the last answers were taken from the lane: from then on its next unit is the head."""
        self.answers: dict[Cost, int] = {}
        """Answers taken in this turn of the loop, to be learned from at its end."""
        self.turn_at = 0.0
        """When the first of them had become the head."""
        self.idle_since = now
        self.pinned = False
        """Lent to one caller, who ends that with LanePool.release."""
        self.pinned_at = 0.0
        """Since when (monotonic seconds)."""
        self.reserved = False
        """Shared no longer: it runs dry for work that waits for a lane alone."""
        self.stopping: asyncio.Task[bool] | None = None
        """A cancel request is on its way: until it has arrived for certain, nobody else may use the lane."""
        self.given_up = False
        """Its lane was ended with a cancel request while it was pinned: nothing more is sent here."""
        self.residue = Residue.NONE
        """Of what ran here since it was clean."""
        self.running = False
        """Counted as a connection at work (engine/running)."""

    @property
    def empty(self) -> bool:
        """Nothing runs here, or is on its way to what ran here."""
        return self.in_flight == 0 and not self.pinned and self.stopping is None

    def pin(self, now: float) -> None:
        """Lend it to one caller."""
        self.private = self.pinned = True
        self.pinned_at = now

    def running_s(self, now: float) -> float:
        """How long what runs here now has been running (seconds); 0: nothing does."""
        if self.pinned:
            return now - self.pinned_at
        head = self.units[0] if self.units else None
        return now - max(head.sent_at, self.answered_at) if head is not None and head.sent else 0.0
