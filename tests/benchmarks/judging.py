"""What is asked of a case. A judge looks at its figures and says what came out. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from tests.benchmarks.figures import Measured, Metric, Verdict, ratio

Figures = Mapping[str, Measured]
"""Contenders of a case by name."""
Judge = Callable[[Figures], Verdict]

STATED = "stated"
"""What is asked where nothing is."""
ROUTER = "router"
PEER = "psycopg_pgbouncer"

_UNITS = {
    Metric.P50_MS: "ms",
    Metric.P99_MS: "ms",
    Metric.CLIENT_CPU_US: "µs",
    Metric.POOLER_CPU_US: "µs",
    Metric.POSTGRES_CPU_US: "µs",
    Metric.START_S: "s",
    Metric.MEMORY_MIB: "MiB",
    Metric.MEMORY_GROWTH_MIB: "MiB",
}


def at_least(bound: float, *, metric: Metric = Metric.RATE, what: str = "", of: str = ROUTER, to: str = PEER) -> Judge:
    """The router's figure is this many times the peer's, or more."""
    return _ratio_judge(bound, metric, what or f"{of} / {to}", of, to, more=True)


def at_most(bound: float, *, metric: Metric, what: str = "", of: str = ROUTER, to: str = PEER) -> Judge:
    """The router's figure is this many times the peer's, or less."""
    return _ratio_judge(bound, metric, what or f"{of} / {to}", of, to, more=False)


def below(bound: float, metric: Metric, what: str, *, of: str = ROUTER) -> Judge:
    """The figure itself is at most this."""

    def judge(figures: Figures) -> Verdict:
        asked = f"≤ {bound:g}{_unit(metric)}"
        value = figures[of].median(metric) if of in figures else None
        if value is None:
            return Verdict(what, asked, None, "not measured", None, bound)
        return Verdict(what, asked, value, f"{value:.3g}{_unit(metric)}", value <= bound, bound)

    return judge


def grows(metric: Metric, what: str, *, of: str, without: str, at_most: float | None = None) -> Judge:
    """A contender's figure in one condition over its own in another; without a bound it is only told."""

    if at_most is None:
        return stated_ratio(metric, what, of=of, to=without)

    def judge(figures: Figures) -> Verdict:
        return replace(_ratio_judge(at_most, metric, what, of, without, more=False)(figures), is_ratio=False)

    return judge


def stated_ratio(metric: Metric, what: str, *, of: str, to: str = PEER) -> Judge:
    """Nothing is asked; how many times the peer's the figure is, is told."""

    def judge(figures: Figures) -> Verdict:
        verdict = _ratio_judge(0.0, metric, what, of, to, more=False)(figures)
        return replace(verdict, asked=STATED, reached=None, bound=None, is_ratio=False)

    return judge


def stated(metric: Metric, what: str, *, of: str = ROUTER) -> Judge:
    """Nothing is asked; the figure is told."""

    def judge(figures: Figures) -> Verdict:
        value = figures[of].median(metric) if of in figures else None
        said = "not measured" if value is None else f"{value:,.4g}{_unit(metric)}"
        return Verdict(what, STATED, value, said, None)

    return judge


def _compact(value: float | None) -> str:
    """Three digits, with k or M."""
    if value is None:
        return "–"
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def _unit(metric: Metric) -> str:
    return f" {_UNITS[metric]}" if metric in _UNITS else ""


def _ratio_judge(bound: float, metric: Metric, what: str, of: str, to: str, *, more: bool) -> Judge:
    def judge(figures: Figures) -> Verdict:
        asked = f"{'≥' if more else '≤'} {bound:g}×"
        both = of in figures and to in figures
        value = ratio(figures[of], figures[to], metric) if both else None
        if value is None:
            return Verdict(what, asked, None, "not measured", None, bound, is_ratio=True)
        reached = value >= bound if more else value <= bound
        both_told = " : ".join(_compact(figures[name].median(metric)) for name in (of, to))
        return Verdict(what, asked, value, f"{value:.2f}× ({both_told})", reached, bound, is_ratio=True)

    return judge
