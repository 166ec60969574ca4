"""Cases over time as one picture: operations a second, latency, and what was done when."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.chaos.figures import CaseResult, Strip
from tests.chaos.results import Results

MOST = 6
SERVED, FAILED, P50, P99, EVENT = "#1f5fbf", "#c0463a", "#2a8f57", "#c77d1e", "#8a8f98"


def write(results: Results, *paths: Path) -> bool:
    """Write the picture, in the form of each path's suffix; False when there is nothing to draw.

    ImportError without matplotlib.
    """
    import matplotlib

    matplotlib.use("Agg")
    # Equal results make equal files.
    matplotlib.rcParams.update({"svg.hashsalt": "pointsman", "svg.fonttype": "none", "font.size": 8})
    from matplotlib import pyplot

    shown = [case for case in results.cases if case.strip is not None][:MOST]
    if not shown:
        return False
    rows = (len(shown) + 1) // 2
    heights = [1, 1] * rows
    figure, axes = pyplot.subplots(
        2 * rows, 2, figsize=(13.0, 3.6 * rows), height_ratios=heights, layout="constrained", squeeze=False
    )
    for axis in axes.flat:
        axis.set_visible(False)
    for number, case in enumerate(shown):
        row, column = 2 * (number // 2), number % 2
        _draw(axes[row][column], axes[row + 1][column], case)
    for path in paths:
        figure.savefig(path, dpi=130, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)
    return True


def _draw(above: Any, below: Any, case: CaseResult) -> None:
    strip = case.strip
    assert strip is not None
    at = [slot * strip.slot_s for slot in range(len(strip.served))]
    above.set_visible(True)
    below.set_visible(True)
    above.set_title(case.title, fontsize=9, loc="left")
    above.fill_between(at, [count / strip.slot_s for count in strip.served], step="post", color=SERVED, alpha=0.35,
                       linewidth=0, label="served/s")
    above.step(at, [count / strip.slot_s for count in strip.failed], where="post", color=FAILED, label="not served/s")
    # Beside the title: within the axes it would hide events.
    above.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, fontsize=7, frameon=False)
    above.tick_params(labelbottom=False)
    for name, values, colour in (("p50 ms", strip.p50_ms, P50), ("p99 ms", strip.p99_ms, P99)):
        below.plot(at, [value if value is not None else float("nan") for value in values], color=colour, label=name,
                   linewidth=0.9)
    below.set_yscale("log")
    below.set_xlabel("seconds")
    below.legend(loc="upper right", ncols=2, fontsize=7, frameon=False)
    for axis in (above, below):
        axis.set_xlim(0, at[-1] + strip.slot_s)
        axis.spines[["top", "right"]].set_visible(False)
    _mark(above, below, strip)


def _mark(above: Any, below: Any, strip: Strip) -> None:
    for at, what in thinned(strip.events):
        above.axvline(at, color=EVENT, linewidth=0.7, linestyle=":")
        below.axvline(at, color=EVENT, linewidth=0.7, linestyle=":")
        above.annotate(what, (at, 0.98), xycoords=("data", "axes fraction"), rotation=90, fontsize=5.5, va="top",
                       ha="right", color="#444444")


def thinned(events: Sequence[tuple[float, str]], apart_s: float = 0.4, most: int = 24) -> list[tuple[float, str]]:
    """Events far enough from one another to be read."""
    kept: list[tuple[float, str]] = []
    for at, what in events:
        if len(kept) < most and (not kept or at - kept[-1][0] >= apart_s):
            kept.append((at, what if len(what) <= 40 else what[:39] + "…"))
    return kept
