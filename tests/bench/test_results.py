"""The results file, the tables and the plot, from a fixed file; and the pages are not stale."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

from tests.benchmarks import __main__ as benchmarks
from tests.benchmarks import plot, report, results_file
from tests.benchmarks.figures import Metric, Sample
from tests.benchmarks.results_file import Results

ROOT = Path(__file__).parents[2]
FIXED = Path(__file__).with_name("fixed_results.json")


@pytest.fixture(name="results")
def fixed_results() -> Results:
    return Results.from_json(FIXED.read_text())


def test_results_survive_being_written(results: Results) -> None:
    again = Results.from_json(results.to_json())
    assert again == results
    assert again.cases[0].measured[0].median(Metric.RATE) == 20000


def test_a_partial_run_replaces_its_cases_and_keeps_the_order(results: Results) -> None:
    newer = Results("later", results.machine, (results.cases[1],))
    merged = newer.merged_over(results, ["copy_out", "point_read_16", "another"])
    assert (merged.when, [one.name for one in merged.cases]) == ("later", ["copy_out", "point_read_16"])
    assert merged.cases[0] is results.cases[1]
    assert [one.name for one in newer.merged_over(None, ["copy_out"]).cases] == ["copy_out"]


def test_a_table_has_the_columns_that_were_measured(results: Results) -> None:
    headings, rows = report.headings_and_rows(results.cases[0])
    assert headings == ["contender", "reads/s", "× psycopg → PgBouncer", "p50 ms", "p99 ms", "CPU µs pooler",
                        "connections"]
    # The median of 2, 5 and 2 is the ratio of neighbours, not that of medians.
    assert rows[0] == ["Pointsman SDK", "20,000", "2.00", "0.70", "1.50", "35", "6"]
    assert rows[1][:3] == ["psycopg → PgBouncer", "10,000", "1.00"]
    assert report.headings_and_rows(results.cases[1])[1] == [["psycopg → PgBouncer", "40", "1.00"]]


def test_the_terminal_tells_figures_reasons_and_failures(results: Results) -> None:
    console = Console(file=io.StringIO(), width=200)
    for case in results.cases:
        report.print_case(console, case)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "throughput: 2.00× (asked: ≥ 1.5×) reached" in text
    assert "bytes/s: 0.35× (asked: ≥ 0.7×) not reached" in text
    assert "without Pointsman SDK → 2 workers: pointsman serve has no --workers yet" in text
    assert "failed: the router did not start" in text
    assert "MB/s" in text


def test_the_markdown_does_not_hide_what_was_missed(results: Results) -> None:
    text = report.verdicts(results) + report.contenders(results)
    assert "| Point read, 16 callers: throughput | ≥ 1.5× | 2.00× | reached |" in text
    assert "| COPY into a file: bytes/s | ≥ 0.7× | 0.35× | **not reached** |" in text
    assert "| COPY into a file: memory | ≤ 32 MiB | not measured | not measured |" in text
    assert "| Many tenants |  | failed: the router did not start | **not measured** |" in text
    assert "A \\<note\\>." in text
    assert "(Test | Processor)" in text
    assert "psycopg 3.3.9; 1 rounds of 2 s or 3 rounds of 2 s." in text
    assert "Traceback" not in text
    assert "other work" not in text
    busy = Results(results.when, {**results.machine, "load_before": 1.5}, results.cases)
    assert "**The machine had other work at the time.**" in report.verdicts(busy)


def test_results_are_filled_in_between_the_markers(results: Results) -> None:
    before = f"above\n{report.PLACE.start}\nold\n{report.PLACE.end}\nbelow\n"
    body = report.contenders(results)
    after = report.PLACE.fill(before, body)
    assert after == f"above\n{report.PLACE.start}\n{body}{report.PLACE.end}\nbelow\n"
    assert report.PLACE.fill(after, body) == after
    for broken in ("nothing", report.PLACE.start, f"{report.PLACE.end}\n{report.PLACE.start}"):
        with pytest.raises(report.MarkersMissing):
            report.PLACE.fill(broken, body)


def test_points_and_ratios_of_the_plot(results: Results) -> None:
    assert plot.throughput(results.cases) == {"router": [(16, 20000)], "psycopg_pgbouncer": [(16, 10000)]}
    assert [one[1:] for one in plot.ratios(results.cases)] == [(2.0, 1.5, True), (0.35, 0.7, False)]


def test_the_plot_is_a_picture_and_the_same_each_time(results: Results, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra [bench] is not installed")
    first, second, image = tmp_path / "a.svg", tmp_path / "b.svg", tmp_path / "c.png"
    plot.write(results, first, image)
    plot.write(results, second)
    assert first.read_bytes() == second.read_bytes()
    words = "".join(ElementTree.fromstring(first.read_text()).itertext())
    assert "Pointsman SDK" in words
    assert "2.00×" in words
    assert image.read_bytes().startswith(b"\x89PNG")


def test_what_is_shown_is_what_was_written(
    results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Figures are written rounded; the README was once made of the others, and stale at once."""
    monkeypatch.setattr(benchmarks, "LATEST", tmp_path / "latest.json")
    pages = tuple((tmp_path / f"{number}.md", part) for number, (_, part) in enumerate(benchmarks.PAGES))
    monkeypatch.setattr(benchmarks, "PAGES", pages)
    monkeypatch.setattr(benchmarks, "_draw", lambda *_: [])
    for page, _ in pages:
        page.write_text(f"{report.PLACE.start}\n{report.PLACE.end}\n")
    case = results.cases[0]
    odd = replace(case.measured[0], samples=(Sample({Metric.RATE: 1_179_784.7654}),))
    measured = Results(results.when, results.machine, (replace(case, measured=(odd, *case.measured[1:])),))
    benchmarks._save(Console(file=io.StringIO()), measured, latest=True)
    written = results_file.read(tmp_path / "latest.json")
    assert written is not None
    for page, part in pages:
        text = page.read_text()
        assert report.PLACE.fill(text, part(written)) == text != f"{report.PLACE.start}\n{report.PLACE.end}\n"


def test_both_pages_show_the_latest_results() -> None:
    latest = results_file.read(results_file.FOLDER / "latest.json")
    assert latest is not None, "make bench writes it"
    for page, part in benchmarks.PAGES:
        assert report.PLACE.fill(page.read_text(), part(latest)) == page.read_text(), "stale: make bench ARGS=--render"
