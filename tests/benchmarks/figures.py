"""What was measured, as values: samples, their medians, and what one contender is beside another. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from statistics import median
from typing import Any


class Metric(Enum):
    """A figure of a sample; the value is its name in the results file."""

    RATE = "rate"
    """Operations a second (rows or bytes a second where those are the operations)."""
    P50_MS = "p50_ms"
    P99_MS = "p99_ms"
    TAIL = "tail"
    """p99 over p50."""
    CLIENT_CPU_US = "client_cpu_us"
    POOLER_CPU_US = "pooler_cpu_us"
    """Microseconds of processor time per operation: the router with all its processes, or PgBouncer."""
    POSTGRES_CPU_US = "postgres_cpu_us"
    CONNECTIONS = "connections"
    """Server connections seen in pg_stat_activity, the router's probes included."""
    NETWORK_SHARE = "network_share"
    """Part of a core that the network's proxy was busy; near 1 it would be what is measured."""
    START_S = "start_s"
    MEMORY_MIB = "memory_mib"
    """Resident memory of the router, all processes."""
    MEMORY_GROWTH_MIB = "memory_growth_mib"
    """Peak of the router's resident memory while it worked, less what it had before its first work."""


@dataclass(frozen=True)
class Sample:
    """One contender in one round."""

    values: Mapping[Metric, float]
    operations: int = 0

    def get(self, metric: Metric) -> float | None:
        """The figure; None when it was not measured."""
        if metric is Metric.TAIL:
            p50, p99 = self.values.get(Metric.P50_MS), self.values.get(Metric.P99_MS)
            return p99 / p50 if p50 and p99 is not None else None
        return self.values.get(metric)


@dataclass(frozen=True)
class Measured:
    """One contender in all rounds of a case."""

    name: str
    title: str
    samples: Sequence[Sample] = field(default_factory=tuple)

    def each(self, metric: Metric) -> list[float]:
        """The figure of every round that has it."""
        return [value for sample in self.samples if (value := sample.get(metric)) is not None]

    def median(self, metric: Metric) -> float | None:
        """The middle of the rounds; None when no round has the figure."""
        values = self.each(metric)
        return median(values) if values else None

    def to_json(self) -> dict[str, Any]:
        """Rounds and medians under the metrics' names."""
        rounds = [{metric.value: _short(value) for metric, value in one.values.items()} for one in self.samples]
        medians = {metric.value: _short(value) for metric in Metric if (value := self.median(metric)) is not None}
        return {"name": self.name, "title": self.title, "median": medians, "rounds": rounds,
                "operations": [one.operations for one in self.samples]}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Measured:
        """What to_json wrote; medians are counted again."""
        rounds = zip(data["rounds"], data["operations"], strict=True)
        return Measured(data["name"], data["title"], tuple(
            Sample({Metric(name): value for name, value in values.items()}, count) for values, count in rounds
        ))


def _short(value: float) -> float:
    """Six digits: what a clock cannot tell need not be kept."""
    return float(f"{value:.6g}")


def ratio(of: Measured, to: Measured, metric: Metric) -> float | None:
    """The median over the rounds of `of` divided by `to`; None when a figure is missing.

    Round by round, since what the machine does beside us lasts longer than a round and hits both alike.
    """
    pairs = zip(of.each(metric), to.each(metric), strict=False)
    ratios = [one / other for one, other in pairs if other]
    return median(ratios) if ratios else None


def percentile(ordered: Sequence[float], share: float) -> float:
    """The nearest-rank percentile of sorted values; ValueError when there are none."""
    if not ordered:
        raise ValueError("no values")
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


@dataclass(frozen=True)
class Verdict:
    """What was asked of a case, what came out. `reached` None: nothing was asked, or it could not be measured."""

    what: str
    asked: str
    figure: float | None
    said: str
    """The figure with its unit, as printed."""
    reached: bool | None
    bound: float | None = None
    is_ratio: bool = False
    """A ratio to the peer: belongs into the plot of ratios."""


@dataclass(frozen=True)
class CaseResult:
    """One case, measured and judged."""

    name: str
    title: str
    unit: str
    measured: Sequence[Measured] = ()
    verdicts: Sequence[Verdict] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)
    """Contender → why it did not run."""
    notes: Sequence[str] = ()
    failed: str = ""
    when: str = ""
    rounds: int = 0
    seconds: float = 0.0

    def of(self, name: str) -> Measured | None:
        """A contender's figures; None when it did not run."""
        return next((one for one in self.measured if one.name == name), None)

    def to_json(self) -> dict[str, Any]:
        """As the results file holds it."""
        data = dict(self.__dict__)
        data["measured"] = [one.to_json() for one in self.measured]
        data["verdicts"] = [dict(one.__dict__) for one in self.verdicts]
        data["skipped"] = dict(self.skipped)
        data["notes"] = list(self.notes)
        return data

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> CaseResult:
        """What to_json wrote."""
        values = dict(data)
        values["measured"] = tuple(Measured.from_json(one) for one in data["measured"])
        values["verdicts"] = tuple(Verdict(**one) for one in data["verdicts"])
        values["notes"] = tuple(data["notes"])
        return CaseResult(**values)
