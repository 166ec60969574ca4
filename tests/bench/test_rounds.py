"""Rounds over a stage of puppets: who performs when, and what becomes of those that fail."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.benchmarks import rounds
from tests.benchmarks.figures import Metric, Sample
from tests.benchmarks.judging import at_least
from tests.benchmarks.rounds import Bench, Entry, Options, compare
from tests.benchmarks.stage import Setting, Stage
from tests.benchmarks.starting import BenchmarkFailed, PeerMissing

JOB = {"work": "point_reads"}
NAMES = ("router", "psycopg_pgbouncer", "asyncpg_pgbouncer")


@dataclass
class Puppet:
    """Notes each round, and fails in the one it is told to."""

    name: str
    seen: list[tuple[str, float]]
    rate: float = 100.0
    fails: dict[int, Exception] = field(default_factory=dict)
    router: None = None

    def perform(self, job: dict[str, Any]) -> Sample:
        number = sum(name == self.name for name, _ in self.seen)
        self.seen.append((self.name, job["seconds"]))
        if number in self.fails:
            raise self.fails[number]
        return Sample({Metric.RATE: self.rate}, 1)


@pytest.fixture(name="seen")
def what_was_seen() -> list[tuple[str, float]]:
    return []


@pytest.fixture(name="puppets")
def puppets_on_stage(monkeypatch: pytest.MonkeyPatch, seen: list[tuple[str, float]]) -> dict[str, Puppet]:
    puppets = {name: Puppet(name, seen) for name in NAMES}

    @contextmanager
    def stage_for(names: Any, database: Any, setting: Any) -> Iterator[Stage]:
        yield Stage({name: puppets[name] for name in names})  # type: ignore[misc]

    monkeypatch.setattr(rounds, "stage_for", stage_for)
    return puppets


def run(*contenders: str | Entry) -> Any:
    case = compare("case", "A case", "reads/s", contenders, Setting(1), JOB, at_least(2))
    return case.run(Bench(None, Options(rounds=3, seconds=2.0)))  # type: ignore[arg-type]


def test_rounds_alternate_after_a_short_one_that_does_not_count(
    puppets: dict[str, Puppet], seen: list[tuple[str, float]]
) -> None:
    puppets["router"].rate = 250.0
    result = run("router", "psycopg_pgbouncer")
    there, back = ("router", 2.0), ("psycopg_pgbouncer", 2.0)
    assert seen == [("psycopg_pgbouncer", 0.5), ("router", 0.5), there, back, back, there, there, back]
    assert [len(one.samples) for one in result.measured] == [3, 3]
    assert (result.verdicts[0].figure, result.verdicts[0].reached, result.failed) == (2.5, True, "")


def test_a_contender_that_fails_is_told_and_the_others_go_on(puppets: dict[str, Puppet]) -> None:
    puppets["asyncpg_pgbouncer"].fails[2] = BenchmarkFailed("it broke")
    result = run(*NAMES)
    assert [one.name for one in result.measured] == ["router", "psycopg_pgbouncer"]
    assert result.failed == "asyncpg → PgBouncer: it broke"


def test_a_contender_that_cannot_is_left_out_with_the_reason(puppets: dict[str, Puppet]) -> None:
    puppets["router"].fails[0] = PeerMissing("not yet")
    result = run("router", "psycopg_pgbouncer")
    assert (result.skipped, result.failed) == ({"router": "not yet"}, "")
    assert result.verdicts[0].reached is None


def test_a_contender_may_have_several_lines(puppets: dict[str, Puppet]) -> None:
    result = run("router", Entry("router", "router_mixed", {"slow_share": 0.1}, "mixed"))
    assert [(one.name, one.title) for one in result.measured] == [
        ("router", "Pointsman SDK"), ("router_mixed", "mixed")]
