"""Many seeds, over several processes: progress, a summary to read and one as JSON, and how to see one again."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.simulation.world import Result, simulate

LAST_LINES = 40


def run_all(seeds: Iterable[int], jobs: int) -> Iterator[Result]:
    """Results in the order of the seeds."""
    if jobs == 1:
        yield from map(simulate, seeds)
        return
    with ProcessPoolExecutor(jobs) as pool:
        yield from pool.map(simulate, seeds, chunksize=4)


class Summary:
    """What many runs came to."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.results = 0
        self.broken: list[Result] = []
        self.virtual_s = self.real_s = self.slowest_recovery_s = 0.0
        self.promotions = self.faults = self.events = 0
        self.counts: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()

    def add(self, result: Result) -> None:
        self.results += 1
        self.virtual_s += result.virtual_s
        self.real_s += result.real_s
        self.slowest_recovery_s = max(self.slowest_recovery_s, result.recovered_s)
        self.promotions += result.promotions
        self.faults += result.faults
        self.events += result.events
        self.counts += result.counts
        self.kinds.update(result.kinds)
        if result.broken is not None:
            self.broken.append(result)

    @property
    def took_s(self) -> float:
        return time.perf_counter() - self.began

    @property
    def factor(self) -> float:
        """Virtual time by processor time of one core."""
        return self.virtual_s / self.real_s if self.real_s else 0.0

    def text(self) -> str:
        return (
            f"{self.results} seeds, {len(self.broken)} broken; {self.virtual_s / 3600:.2f} simulated hours in "
            f"{self.took_s:.0f} s ({self.factor:.0f} times real time a core); {self.faults} faults, "
            f"{self.promotions} promotions, {self.counts['failover']} failovers, {self.counts['committed']} commits, "
            f"{self.counts['strong read']} strong reads; slowest recovery {self.slowest_recovery_s:.1f} s"
        )

    def json(self) -> dict[str, Any]:
        return {
            "seeds": self.results,
            "simulated_s": round(self.virtual_s, 1),
            "times_real_time_per_core": round(self.factor, 1),
            "faults": self.faults,
            "promotions": self.promotions,
            "slowest_recovery_s": round(self.slowest_recovery_s, 3),
            "events": self.events,
            "counts": dict(sorted(self.counts.items())),
            "fault_kinds": dict(sorted(self.kinds.items())),
            "broken": [
                {key: value for key, value in asdict(one).items() if key != "counts"} for one in self.broken
            ],
        }


def story(result: Result) -> str:
    """A broken seed, to be read."""
    lines = [f"seed {result.seed}: {result.broken}", "  the last events:"]
    lines += [f"  {line}" for line in result.last_lines[-LAST_LINES:]]
    lines.append(f"  to see it again: make simulate SEED={result.seed} VERBOSE=1")
    return "\n".join(lines)


def run_and_tell(seeds: range, jobs: int, output: Path | None, *, stop: bool) -> bool:
    """Run them, tell progress; whether nothing was broken."""
    summary = Summary()
    step = max(1, len(seeds) // 20)
    for result in run_all(seeds, jobs):
        summary.add(result)
        if result.broken is not None:
            print(story(result), flush=True)
            if stop:
                break
        if summary.results % step == 0:
            print(f"  {summary.text()}", flush=True)
    print(summary.text())
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(summary.json(), indent=1) + os.linesep)
        print(f"written to {output}")
    return not summary.broken
