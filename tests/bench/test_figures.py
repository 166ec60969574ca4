"""Statistics, ratios and verdicts of the benchmark."""

from __future__ import annotations

import pytest

from tests.benchmarks.figures import Measured, Metric, Sample, percentile, ratio
from tests.benchmarks.judging import at_least, at_most, below, grows, stated


def measured(name: str, *values: dict[Metric, float]) -> Measured:
    return Measured(name, name.title(), tuple(Sample(one, 100) for one in values))


def rates(name: str, *values: float) -> Measured:
    return measured(name, *({Metric.RATE: value} for value in values))


@pytest.mark.parametrize(
    ("share", "expected"), [(0.5, 2), (0.51, 3), (0.99, 4), (0.25, 1), (0.0, 1), (1.0, 4)]
)
def test_a_percentile_is_the_nearest_rank(share: float, expected: int) -> None:
    assert percentile([1, 2, 3, 4], share) == expected


def test_there_is_no_percentile_of_nothing() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentile([], 0.5)


def test_a_ratio_is_taken_round_by_round_so_that_a_bad_moment_hits_both() -> None:
    # Ratio of the medians: 100 / 100. The machine was slow in the second half of the first and third round.
    router, peer = rates("router", 300, 100, 90), rates("psycopg_pgbouncer", 100, 50, 200)
    assert ratio(router, peer, Metric.RATE) == 2.0


def test_a_ratio_needs_both_figures() -> None:
    assert ratio(rates("router", 1), rates("peer"), Metric.RATE) is None
    assert ratio(rates("router", 1), rates("peer", 0), Metric.RATE) is None
    assert ratio(rates("router", 1), rates("peer", 1), Metric.P50_MS) is None


def test_the_tail_is_p99_over_p50() -> None:
    line = measured("router", {Metric.P50_MS: 2.0, Metric.P99_MS: 5.0}, {Metric.P50_MS: 1.0, Metric.P99_MS: 1.5})
    assert line.each(Metric.TAIL) == [2.5, 1.5]
    assert line.median(Metric.TAIL) == 2.0


def test_at_least_and_at_most_compare_with_the_peer() -> None:
    figures = {
        "router": measured("router", {Metric.RATE: 300, Metric.P50_MS: 3.0}),
        "psycopg_pgbouncer": measured("psycopg_pgbouncer", {Metric.RATE: 100, Metric.P50_MS: 2.0}),
    }
    reached = at_least(3, what="throughput")(figures)
    assert (reached.reached, reached.said, reached.asked, reached.bound, reached.is_ratio) == (
        True, "3.00× (300 : 100)", "≥ 3×", 3, True)
    assert at_least(3.1)(figures).reached is False
    assert at_most(1.5, metric=Metric.P50_MS)(figures).reached is True
    assert at_most(1.4, metric=Metric.P50_MS)(figures).reached is False


@pytest.mark.parametrize(("rate", "said"), [(12_345, "12.3k"), (56_400_000, "56.4M"), (0.456, "0.456")])
def test_a_ratio_names_both_figures_shortly(rate: float, said: str) -> None:
    figures = {name: measured(name, {Metric.RATE: rate}) for name in ("router", "psycopg_pgbouncer")}
    assert at_least(1)(figures).said == f"1.00× ({said} : {said})"


def test_below_looks_at_the_figure_itself() -> None:
    figures = {"router": measured("router", {Metric.POOLER_CPU_US: 39.0}, {Metric.POOLER_CPU_US: 41.0})}
    verdict = below(40, Metric.POOLER_CPU_US, "router CPU")(figures)
    assert (verdict.reached, verdict.said, verdict.asked) == (True, "40 µs", "≤ 40 µs")
    assert below(39.9, Metric.POOLER_CPU_US, "router CPU")(figures).reached is False


def test_growth_compares_a_contender_with_itself() -> None:
    figures = {
        "router": measured("router", {Metric.P99_MS: 2.0}),
        "router_mixed": measured("router_mixed", {Metric.P99_MS: 7.0}),
    }
    judge = grows(Metric.P99_MS, "p99", of="router_mixed", without="router", at_most=3)
    verdict = judge(figures)
    assert (verdict.figure, verdict.reached, verdict.is_ratio) == (3.5, False, False)
    told = grows(Metric.P99_MS, "p99", of="router_mixed", without="router")(figures)
    assert (told.figure, told.reached, told.asked) == (3.5, None, "stated")


@pytest.mark.parametrize("judge", [
    at_least(1), at_most(1, metric=Metric.P50_MS), below(1, Metric.TAIL, "tail"), stated(Metric.RATE, "rate"),
    grows(Metric.P99_MS, "p99", of="router", without="psycopg_pgbouncer", at_most=3),
])
def test_what_was_not_measured_is_neither_reached_nor_missed(judge: object) -> None:
    verdict = judge({})  # type: ignore[operator]
    assert (verdict.figure, verdict.reached, verdict.said) == (None, None, "not measured")
