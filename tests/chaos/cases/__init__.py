"""The cases by name, in the order in which they run. To add one: write `async def name(run) -> Found`, add its line.

A case has three sizes: quick (seconds, as in `make test`), the default, and large (the goal's own N).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from enum import Enum

from tests.chaos.cases import consistency, failovers, fairness, limits, managed, schedules, surroundings, truths
from tests.chaos.cases.run import Found, Run


class Size(Enum):
    """How much of a case is done."""

    QUICK = "quick"
    DEFAULT = "default"
    LARGE = "large"


@dataclass(frozen=True)
class Case:
    """A case: what it is called, how large each size is and in what unit, and what it does."""

    name: str
    title: str
    unit: str
    quick: int
    default: int
    large: int
    run: Callable[[Run], Awaitable[Found]]

    def count(self, size: Size) -> int:
        """How many units of it."""
        return {Size.QUICK: self.quick, Size.DEFAULT: self.default, Size.LARGE: self.large}[size]


CASES = (
    Case("kill", "kill -9 of the primary, promote mode", "kills", 1, 8, 50, failovers.killed),
    Case("freeze", "every process of the primary frozen, promote mode", "freezes", 1, 3, 50, failovers.frozen),
    Case("follow", "kill -9, someone else promotes, follow mode", "promotions", 1, 5, 100, failovers.followed),
    Case("switchover", "planned switchover", "switchovers", 2, 8, 50, failovers.switched),
    Case("truth", "un-keyed writes cut off around their COMMIT", "unknown outcomes", 20, 200, 5_000, truths.cut_off),
    Case("cancels", "cancelled, left or out of time at COMMIT, then a failover", "cancels", 30, 120, 2_000,
         truths.cancelled),
    Case("volume", "as many writes as go through, under random faults", "acknowledged writes", 2_000, 20_000, 400_000,
         truths.volume),
    Case("split_brain", "random faults, returning primaries", "schedules", 1, 5, 100, schedules.split_brain),
    Case("needless", "trouble that is no reason for a promotion", "trials", 3, 8, 100, schedules.needless),
    Case("router_killed", "kill -9 of the router at each step of a promotion", "kills at each step", 1, 1, 10,
         schedules.router_killed),
    Case("isolation", "list-append transactions, serializable, under faults", "transactions", 300, 2_500, 50_000,
         consistency.isolation),
    Case("own_reads", "read-your-writes on lagging replicas", "reads", 500, 4_000, 50_000, consistency.own_reads),
    Case("deadlines", "requests with 0.1 to 1 s of time under faults", "requests", 600, 3_000, 12_000,
         limits.deadlines),
    Case("retries", "a full outage, then connections that break all the time", "seconds of each", 6, 12, 30,
         limits.retries),
    Case("connections", "an outsider takes every connection", "seconds", 2, 5, 30, limits.connections),
    Case("noisy", "a noisy neighbour on the same server", "rounds", 1, 3, 15, fairness.noisy),
    Case("overload", "more requests than can be served", "rounds", 1, 3, 15, fairness.overload),
    Case("streams", "streams opened at once", "streams", 200, 1_000, 5_000, fairness.streams),
    Case("partition", "cables pulled (network namespaces)", "partitions", 3, 3, 60, surroundings.partition),
    Case("disk_full", "the primary's disk is full (tmpfs)", "full disks", 1, 1, 10, surroundings.disk_full),
    Case("patroni", "a real Patroni moves the primary, follow mode", "moves", 3, 6, 60, managed.patroni),
)

PART_MINUTES = 10.0


def segments(hours: float) -> Iterator[Case]:
    """Hours of random faults as parts, each on a cluster of its own with everything asked at its end."""
    parts = max(1, round(hours * 60 / PART_MINUTES))
    minutes = hours * 60 / parts

    async def part(run: Run) -> Found:
        return await schedules.segment(run, minutes)

    for number in range(1, parts + 1):
        title = f"random faults for {minutes:g} minutes, part {number} of {parts}"
        yield Case(f"hours_{number}", title, "part", 1, 1, 1, part)


def chosen(names: str) -> list[Case]:
    """The cases whose names begin with one of those in a comma-separated list; all for an empty one."""
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    for name in wanted:
        if not any(case.name.startswith(name) for case in CASES):
            raise ValueError(f"no case begins with {name!r}; there are: {', '.join(case.name for case in CASES)}")
    return [case for case in CASES if not wanted or any(case.name.startswith(name) for name in wanted)]
