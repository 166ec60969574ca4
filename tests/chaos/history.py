"""What was asked, when, and what was told about it. Times are seconds of the monotonic clock."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class Outcome(Enum):
    """What a caller knows about an operation after its end."""

    OK = "ok"
    DONE = "done"
    """The router says that it was done; only the answer could not be delivered."""
    FAILED = "failed"
    """Provably without effect: nothing sent, or rolled back."""
    UNKNOWN = "unknown"
    """It may have been done, or may yet be."""

    @property
    def acknowledged(self) -> bool:
        """Whether its effect was promised."""
        return self in (Outcome.OK, Outcome.DONE)


class Kind(Enum):
    """What an operation does; what is checked of it follows from that."""

    APPEND = "append"
    """One row with an id of its own, un-keyed, by Execute."""
    BATCH = "batch"
    """The same as ExecuteBatch."""
    TRANSACT = "transact"
    """The same in an interactive transaction."""
    INCREMENT = "increment"
    """x = x + 1 and a row with an id of its own; with an idempotency key where the router takes one."""
    STRONG_READ = "strong read"
    REPLICA_READ = "replica read"
    OWN_READ = "own read"
    LISTS = "lists"
    """A transaction of appends to lists and reads of whole lists."""
    SLEEP = "sleep"

    @property
    def is_read(self) -> bool:
        """Whether it has no effect."""
        return self in (Kind.STRONG_READ, Kind.REPLICA_READ, Kind.OWN_READ, Kind.SLEEP)


@dataclass(slots=True)
class Operation:
    """One operation of one caller."""

    kind: Kind
    process: int
    value: Any
    invoked: float
    deadline: float
    via: str = ""
    keyed: bool = False
    ended: float = 0.0
    outcome: Outcome = Outcome.UNKNOWN
    reason: str = ""
    """Name of the failure; empty when it succeeded."""
    message: str = ""
    cancelled: bool = False
    """The caller itself called it off."""
    endpoint: str = ""
    topology: int = 0
    role: str = ""
    """Of the server that answered a read."""
    attempts: int = 1
    timeline: int = 0
    """Of the server that did a write, told by that server itself; 0 when it told nothing."""
    server: int = 0
    """Port of the server that did a write, told by itself."""
    copied: bool = False
    """A write's server waited for a synchronous standby."""
    result: Any = None

    @property
    def took_s(self) -> float:
        """From the call to its answer."""
        return self.ended - self.invoked

    @property
    def late_s(self) -> float:
        """By how much it ended after its deadline."""
        return self.ended - self.deadline


@dataclass(frozen=True, slots=True)
class Event:
    """Something was done to the servers, the network or the router, or was seen of them."""

    at: float
    what: str


@dataclass
class History:
    """All operations of a run in the order of their ends, and what happened meanwhile."""

    began: float = field(default_factory=time.monotonic)
    operations: list[Operation] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    stalls: list[tuple[float, float]] = field(default_factory=list)
    """Spans in which the harness itself did not come to run: it can tell nothing about lateness there."""

    def note(self, what: str) -> float:
        """Something happens now; the time of it."""
        now = time.monotonic()
        self.events.append(Event(now, what))
        return now

    def of(self, *kinds: Kind) -> Iterator[Operation]:
        """The operations of some kinds."""
        return (one for one in self.operations if one.kind in kinds)

    def stalled_during(self, start: float, end: float) -> float:
        """Seconds of a span in which the harness did not run."""
        return sum(max(0.0, min(end, until) - max(start, since)) for since, until in self.stalls)
