"""The run of a comparison: its contenders in turn, round by round."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.benchmarks.contenders import CONTENDERS
from tests.benchmarks.database import Database
from tests.benchmarks.figures import CaseResult, Measured, Metric, Sample
from tests.benchmarks.judging import Judge
from tests.benchmarks.stage import Performer, Setting, Stage, stage_for
from tests.benchmarks.starting import BenchmarkFailed, PeerMissing

Tell = Callable[[str, float], None]
"""What is under way, and how much of the case is done (0 to 1)."""


FULL_ROWS = 1_000_000


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    rounds: int = 5
    seconds: float = 2.0
    rows: int = FULL_ROWS
    quick: bool = False


@dataclass(frozen=True)
class Bench:
    """What a case runs with."""

    database: Database
    options: Options
    tell: Tell = lambda _what, _done: None


@dataclass(frozen=True)
class Entry:
    """One line of a case's table: a contender, doing something; mostly each contender once."""

    contender: str
    name: str = ""
    """Where one contender has several lines."""
    job: Mapping[str, Any] = field(default_factory=dict)
    """Beyond, or instead of, what the case's job says."""
    title: str = ""

    @property
    def key(self) -> str:
        return self.name or self.contender


Observe = Callable[[Performer, Callable[[], Sample]], Sample]
"""Around a round: to measure more than every round does."""


def _plainly(_: Performer, work: Callable[[], Sample]) -> Sample:
    return work()


@dataclass(frozen=True)
class Comparison:
    """A case in which contenders do the same work in turn."""

    name: str
    title: str
    unit: str
    entries: Sequence[Entry]
    setting: Setting
    job: Mapping[str, Any]
    judges: Sequence[Judge]
    notes: Sequence[str] = ()
    observe: Observe = _plainly
    counts_rows: bool = False
    """Its work is one large result, whose length --rows may change."""

    def run(self, bench: Bench) -> CaseResult:
        """Measure and judge; a contender that fails is told, and the others go on without it."""
        names = list(dict.fromkeys(entry.contender for entry in self.entries))
        bench.tell("starting contenders", 0.0)
        with stage_for(names, bench.database, self.setting) as stage:
            rounds = _rounds(self, stage, bench)
            measured = tuple(
                Measured(entry.key, entry.title or CONTENDERS[entry.contender].title, tuple(rounds[entry.key]))
                for entry in self.entries if rounds.get(entry.key)
            )
            failed = "; ".join(f"{CONTENDERS[name].title}: {why}" for name, why in stage.failed.items())
            skipped, notes = dict(stage.skipped), [*self.notes, *stage.notes]
        if self.counts_rows and bench.options.rows != FULL_ROWS:
            notes.append(f"of {bench.options.rows:,} rows only")
        notes += greedy(measured, self.setting.connections)
        figures = {one.name: one for one in measured}
        verdicts = tuple(judge(figures) for judge in self.judges)
        return CaseResult(
            self.name, self.title, self.unit, measured, verdicts, skipped, notes, failed,
            when=time.strftime("%Y-%m-%d"), rounds=bench.options.rounds, seconds=bench.options.seconds,
        )


def compare(
    name: str, title: str, unit: str, contenders: Sequence[str | Entry], setting: Setting, job: Mapping[str, Any],
    *judges: Judge, notes: Sequence[str] = (), observe: Observe = _plainly, counts_rows: bool = False,
) -> Comparison:
    """A comparison, shortly written."""
    entries = tuple(Entry(one) if isinstance(one, str) else one for one in contenders)
    return Comparison(name, title, unit, entries, setting, job, judges, notes, observe, counts_rows)


def greedy(measured: Sequence[Measured], allowed: int) -> list[str]:
    """Who held more server connections than was allowed: such a comparison would not be fair."""
    most = {one.title: max(one.each(Metric.CONNECTIONS), default=0.0) for one in measured}
    return [
        f"unfair: {title} held {count:.0f} server connections, {allowed} are allowed"
        for title, count in most.items() if count > allowed
    ]


def _rounds(case: Comparison, stage: Stage, bench: Bench) -> dict[str, list[Sample]]:
    """Samples by entry; none of contenders that failed.

    Every other round goes backwards, so that nobody always follows the same neighbour.
    """
    found: dict[str, list[Sample]] = {}
    # One more round, not counted: caches, prepared statements and learned costs.
    total, done = (bench.options.rounds + 1) * len(case.entries), 0
    for number in range(bench.options.rounds + 1):
        entries = case.entries if number % 2 else case.entries[::-1]
        for entry in entries:
            done += 1
            if entry.contender in stage.skipped or entry.contender in stage.failed:
                continue
            label = f"round {number}/{bench.options.rounds} {entry.key}" if number else f"warm-up {entry.key}"
            bench.tell(label, done / total)
            performer = stage.performers[entry.contender]
            job = {"seconds": bench.options.seconds, "rows": bench.options.rows, **case.job, **entry.job}
            if not number and "seconds" in job:
                job["seconds"] = min(float(job["seconds"]), 0.5)
            try:
                sample = case.observe(performer, lambda on=performer, do=job: on.perform(do))  # type: ignore[misc]
            except PeerMissing as missing:
                stage.skipped[entry.contender] = str(missing)
                continue
            except BenchmarkFailed as failure:
                # Its figures so far would be those of a contender that does not do its work.
                stage.failed[entry.contender] = str(failure)
                continue
            if number:
                found.setdefault(entry.key, []).append(sample)
    bad = {entry.key for entry in case.entries if entry.contender in stage.failed}
    return {key: samples for key, samples in found.items() if key not in bad}
