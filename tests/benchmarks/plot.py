"""The results as one picture: throughput by the number of callers, and every ratio beside what was asked."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.figures import CaseResult, Metric
from tests.benchmarks.results_file import Results

SIZE = (12.0, 5.2)
REACHED, MISSED, ROUTER, PEER = "#2a8f57", "#c0463a", "#1f5fbf", "#8a8f98"
SERIES = {
    "router": ("Pointsman SDK", ROUTER, "o-"),
    "router_workers": ("Pointsman, 2 workers", ROUTER, "o--"),
    "psycopg_pgbouncer": ("psycopg → PgBouncer", "#c77d1e", "s-"),
    "asyncpg_pgbouncer": ("asyncpg → PgBouncer", PEER, "^-"),
    "psycopg_straight": ("psycopg, straight", "#c77d1e", "s:"),
    "asyncpg_straight": ("asyncpg, straight", PEER, "^:"),
}


def write(results: Results, *paths: Path) -> None:
    """Write the picture, in the form of each path's suffix. ImportError without matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    # Equal results make equal files.
    matplotlib.rcParams.update({"svg.hashsalt": "pointsman", "svg.fonttype": "none", "font.size": 9})
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=SIZE, width_ratios=(1, 1.15), layout="constrained")
    _draw_throughput(left, results.cases)
    _draw_ratios(right, results.cases)
    for path in paths:
        figure.savefig(path, dpi=130, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)


def throughput(cases: Sequence[CaseResult]) -> dict[str, list[tuple[int, float]]]:
    """Points (callers, reads a second) by contender, out of the cases point_read_N."""
    found: dict[str, list[tuple[int, float]]] = {}
    for case in cases:
        number = re.fullmatch(r"point_read_(\d+)", case.name)
        for line in case.measured if number else ():
            rate = line.median(Metric.RATE)
            if number and rate:
                found.setdefault(line.name, []).append((int(number[1]), rate))
    return {name: sorted(points) for name, points in found.items()}


def ratios(cases: Sequence[CaseResult]) -> list[tuple[str, float, float, bool]]:
    """(label, ratio, asked, reached) of every verdict that is a ratio to a peer and was measured."""
    return [
        (f"{case.title}\n{verdict.what} (asked {verdict.asked})", verdict.figure, verdict.bound or 0.0,
         bool(verdict.reached))
        for case in cases for verdict in case.verdicts
        if verdict.is_ratio and verdict.figure is not None and verdict.reached is not None
    ]


def _draw_throughput(axes: Any, cases: Sequence[CaseResult]) -> None:
    for name, points in throughput(cases).items():
        if name not in SERIES:
            continue  # the gRPC stream that reads nothing
        label, colour, style = SERIES[name]
        axes.plot(*zip(*points, strict=True), style, color=colour, label=label, linewidth=1.6, markersize=4)
    axes.set_xscale("log", base=4)
    axes.set_xlabel("callers in one Python process")
    axes.set_ylabel("point reads per second")
    axes.set_xticks([1, 4, 16, 64, 256], ["1", "4", "16", "64", "256"])
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)


def _draw_ratios(axes: Any, cases: Sequence[CaseResult]) -> None:
    lines = ratios(cases)[::-1]
    places = range(len(lines))
    axes.barh(places, [one[1] for one in lines], height=0.55, color=[REACHED if one[3] else MISSED for one in lines])
    axes.plot([one[2] for one in lines], places, "|", color="black", markersize=16, markeredgewidth=1.5)
    for place, (_, value, asked, _) in zip(places, lines, strict=True):
        axes.text(max(value, asked), place, f"  {value:.2f}×", va="center")
    axes.set_yticks(places, [one[0] for one in lines], fontsize=7.5)
    axes.axvline(1, color="black", linewidth=0.6, alpha=0.5)
    axes.set_xlabel("ratio to the peer; | is what was asked")
    axes.margins(x=0.15)
    axes.spines[["top", "right"]].set_visible(False)
