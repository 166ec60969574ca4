"""A read that shares its lane with others: what its caller gives and gets, and one sending of it.

Two objects, because a read stuck behind a stalled head is sent again elsewhere: two sendings, one answer. What comes
late writes into its own sending, never into an answer that was given out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from router.decisions.lane_costs import Cost
from router.engine.lane_slots import Slot
from router.model.observation import Fault
from router.model.request import Statement
from router.model.result import StatementResult
from router.ports import Done, Unit

if TYPE_CHECKING:
    from router.engine.lane_lines import Line


class SharedRead:
    """A read for LanePool.start_shared: no task, no future, no timer of its own.

    Made by the caller, who may derive from it to keep more beside it. answered is called once, from the event loop,
    by the deadline and a tick at the latest; then results, fault, sent_at and done_at are final. It must not raise.
    """

    __slots__ = (
        "answered",
        "cost",
        "deadline",
        "done_at",
        "expected_s",
        "fault",
        "line",
        "number",
        "over",
        "queued",
        "rescued",
        "results",
        "sendings",
        "sent_at",
        "statement",
        "statements",
        "until",
        "waiting",
    )

    def __init__(
        self,
        statement: Statement,
        deadline: float,
        answered: Callable[[SharedRead], None],
        also: Statement | None = None,
    ) -> None:
        """also: a second statement, run right behind it; its result is the last one."""
        self.statement = statement
        self.statements = (statement,) if also is None else (statement, also)
        self.deadline = deadline
        """Monotonic seconds; the fault is SILENT when it passes."""
        self.answered = answered
        self.results: list[StatementResult] = []
        self.fault: Fault | None = None
        """Why there is no result; None: there is one."""
        self.sent_at = 0.0
        """When the answered sending left (monotonic seconds); 0: it never did."""
        self.done_at = 0.0
        """When it was answered (monotonic seconds)."""
        self.queued = False
        """It waited in the router for a lane."""
        self.rescued = False
        """It was sent again, as the head of its lane had stalled."""
        # The rest is the lane pool's.
        self.over = False
        """Answered, or given up."""
        self.waiting = False
        """In line for a lane, also for its second sending."""
        self.sendings: tuple[Sending, ...] = ()

    cost: Cost
    line: Line
    number: int
    until: float
    expected_s: float
    """Set when it joins a line: the line, its place among all that wait, when waiting ends (monotonic seconds), and
    what it counts as (seconds)."""


class Sending(Unit):
    """One sending of a read: the unit that a lane runs."""

    __slots__ = ("cost", "counted_s", "counts_slow", "read", "slot")

    def __init__(self, read: SharedRead, slot: Slot, cost: Cost, done: Done) -> None:
        # Field by field: half the time of the dataclass's own constructor, once per read. A test compares the fields.
        self.statements = read.statements
        self.done = done
        self.on_rows = None
        self.chunk_rows = 0
        self.commits = self.tells_executed = False
        self.results = []
        self.fault = None
        self.sent = False
        self.sent_at = 0.0
        self.done_at = 0.0
        self.read = read
        self.slot = slot
        self.cost = cost
        self.counted_s = cost.expected_s
        self.counts_slow = not cost.fast
