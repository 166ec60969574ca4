"""The results file and the picture over time. A run of some cases replaces those and keeps the others."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.figures import percentile
from tests.chaos.figures import CaseResult, Strip
from tests.chaos.history import History, Outcome

FOLDER = Path(__file__).parent / "results"
MAX_SLOTS = 240


@dataclass(frozen=True)
class Results:
    """All cases, and the machine."""

    when: str
    machine: Mapping[str, Any]
    cases: Sequence[CaseResult]

    def to_json(self) -> str:
        """As it is written: one case a line, so that what changed shows."""
        head = json.dumps({"when": self.when, "machine": dict(self.machine)}, ensure_ascii=False)
        cases = ",\n".join(json.dumps(one.to_json(), ensure_ascii=False) for one in self.cases)
        return f'{head[:-1]}, "cases": [\n{cases}\n]}}\n'

    @staticmethod
    def from_json(text: str) -> Results:
        """What to_json wrote."""
        data = json.loads(text)
        return Results(data["when"], data["machine"], tuple(CaseResult.from_json(one) for one in data["cases"]))

    def merged_over(self, older: Results | None, order: Sequence[str]) -> Results:
        """These cases, and of the older results those that were not run now, in the given order."""
        found = {one.name: one for one in (*(older.cases if older else ()), *self.cases)}
        return Results(self.when, self.machine, tuple(found[name] for name in order if name in found))


def read(path: Path) -> Results | None:
    """The results; None when there is no such file."""
    return Results.from_json(path.read_text()) if path.exists() else None


def strip(history: History, *, most_s: float = 60.0) -> Strip | None:
    """The first minute of a run as slots; None when nothing ran."""
    if not history.operations:
        return None
    first = min(one.invoked for one in history.operations)
    length = min(most_s, max(one.ended for one in history.operations) - first)
    slot_s = max(0.1, round(length / MAX_SLOTS, 2))
    slots = int(length / slot_s) + 1
    served, failed = [0] * slots, [0] * slots
    times: list[list[float]] = [[] for _ in range(slots)]
    for one in history.operations:
        at = int((one.ended - first) / slot_s)
        if at >= slots:
            continue
        if one.outcome is Outcome.OK:
            served[at] += 1
            times[at].append(one.took_s * 1000)
        elif not one.cancelled:
            failed[at] += 1
    events = [(round(one.at - first, 2), one.what) for one in history.events if -1 <= one.at - first <= length]
    return Strip(slot_s, served, failed, [_share(each, 0.5) for each in times], [_share(each, 0.99) for each in times],
                 events)


def _share(values: list[float], share: float) -> float | None:
    return round(percentile(sorted(values), share), 2) if values else None
