"""What came out of a case, as values: each figure with its goal, its N, and the raw numbers behind it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.benchmarks.figures import percentile


@dataclass(frozen=True)
class Figure:
    """One goal, and what was reached. `reached` None: nothing was asked, or it could not be measured."""

    what: str
    goal: str
    said: str
    n: int
    """How many things were looked at."""
    figure: float | None = None
    reached: bool | None = None
    raw: Sequence[float] = ()
    """Every measured value, in the order in which they came (seconds)."""
    histogram: Mapping[str, int] = field(default_factory=dict)
    """Upper bound in seconds → how many, where the raw values are too many."""


@dataclass(frozen=True)
class Strip:
    """One run over time, in slots of a fixed length."""

    slot_s: float
    served: Sequence[int]
    """Operations that succeeded, by slot of their end."""
    failed: Sequence[int]
    p50_ms: Sequence[float | None]
    p99_ms: Sequence[float | None]
    events: Sequence[tuple[float, str]]
    """(seconds from the beginning, what)."""


@dataclass(frozen=True)
class CaseResult:
    """One case: what was done, what came out."""

    name: str
    title: str
    size: str
    seed: int
    figures: Sequence[Figure] = ()
    notes: Sequence[str] = ()
    strip: Strip | None = None
    skipped: str = ""
    """Why it could not run here."""
    failed: str = ""
    """What stopped it."""
    when: str = ""
    took_s: float = 0.0

    @property
    def missed(self) -> bool:
        """Whether a goal was not reached."""
        return bool(self.failed) or any(one.reached is False for one in self.figures)

    def to_json(self) -> dict[str, Any]:
        """As the results file holds it."""
        data = dict(self.__dict__)
        data["figures"] = [{**one.__dict__, "raw": [round(value, 4) for value in one.raw],
                            "figure": None if one.figure is None else round(one.figure, 4),
                            "histogram": dict(one.histogram)} for one in self.figures]
        data["notes"] = list(self.notes)
        data["strip"] = None if self.strip is None else dict(self.strip.__dict__)
        return data

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> CaseResult:
        """What to_json wrote."""
        values = dict(data)
        values["figures"] = tuple(Figure(**one) for one in data["figures"])
        values["notes"] = tuple(data["notes"])
        if data["strip"] is not None:
            strip = dict(data["strip"])
            strip["events"] = tuple((at, what) for at, what in strip["events"])
            values["strip"] = Strip(**strip)
        return CaseResult(**values)


BOUNDS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 30.0)


def histogram(values: Sequence[float]) -> dict[str, int]:
    """How many values lie at or below each bound, and above the one before."""
    counts = dict.fromkeys([f"{bound:g}" for bound in BOUNDS_S] + ["more"], 0)
    for value in values:
        counts[next((f"{bound:g}" for bound in BOUNDS_S if value <= bound), "more")] += 1
    return {bound: count for bound, count in counts.items() if count}


def none_of(what: str, bad: int, n: int, of: str, goal: str = "") -> Figure:
    """Nothing of n may be bad; with n of 0 nothing was measured."""
    if not n:
        return Figure(what, goal or "0", f"not measured: no {of}", 0)
    return Figure(what, goal or "0", f"{bad:,} of {n:,} {of}", n, float(bad), bad == 0)


def times(what: str, values: Sequence[float], *, p50: float = 0.0, p99: float = 0.0, most: float = 0.0) -> Figure:
    """Durations against their bounds (seconds); a bound of 0 is not asked."""
    asked = [(f"p50 ≤ {_time(p50)}", p50, 0.5), (f"p99 ≤ {_time(p99)}", p99, 0.99), (f"max ≤ {_time(most)}", most, 1.0)]
    wanted = [(words, bound, share) for words, bound, share in asked if bound]
    goal = ", ".join(words for words, _, _ in wanted)
    if not values:
        return Figure(what, goal, "not measured", 0)
    ordered = sorted(values)
    reached = all(percentile(ordered, share) <= bound for _, bound, share in wanted) if wanted else None
    said = ", ".join(f"{name} {_time(percentile(ordered, share))}" for name, share in
                     (("p50", 0.5), ("p99", 0.99), ("max", 1.0)) if name != "p99" or len(ordered) >= 20)
    return Figure(what, goal, f"{said} over {len(ordered):,}", len(ordered), percentile(ordered, 0.5), reached, values)


def _time(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"
