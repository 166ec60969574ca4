"""Results as tables: on the terminal with rich, in two pages as Markdown: what was asked here, each contender there."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tests.benchmarks.contenders import CONTENDERS
from tests.benchmarks.figures import CaseResult, Measured, Metric, Verdict, ratio
from tests.benchmarks.judging import PEER
from tests.benchmarks.results_file import Results, is_busy

PLOT = "tests/benchmarks/results/latest.svg"

# Heading, metric, format (three digits when empty).
_COLUMNS = (
    ("p50 ms", Metric.P50_MS, "{:.2f}"),
    ("p99 ms", Metric.P99_MS, "{:.2f}"),
    ("CPU µs caller", Metric.CLIENT_CPU_US, ""),
    ("CPU µs pooler", Metric.POOLER_CPU_US, ""),
    ("CPU µs PostgreSQL", Metric.POSTGRES_CPU_US, ""),
    ("connections", Metric.CONNECTIONS, "{:.0f}"),
    ("proxy, of a core", Metric.NETWORK_SHARE, "{:.0%}"),
    ("start s", Metric.START_S, "{:.2f}"),
    ("memory MiB", Metric.MEMORY_MIB, "{:.0f}"),
    ("growth MiB", Metric.MEMORY_GROWTH_MIB, "{:.1f}"),
)
_BIG_UNITS = {"bytes/s": (1e6, "MB/s")}
_PER_OPERATION = {Metric.CLIENT_CPU_US, Metric.POOLER_CPU_US, Metric.POSTGRES_CPU_US}


class MarkersMissing(Exception):
    """The file has no place for the results."""


@dataclass(frozen=True)
class Markers:
    """The two lines of a page between which results stand."""

    start: str
    end: str

    def fill(self, text: str, body: str) -> str:
        """The text with what stands between the markers renewed. MarkersMissing when one is not there."""
        before, found, rest = text.partition(self.start)
        _, below, after = rest.partition(self.end)
        if not found or not below:
            raise MarkersMissing(f"needs a line {self.start} and, below it, a line {self.end}")
        return f"{before}{self.start}\n{body}{self.end}{after}"


PLACE = Markers("<!-- benchmark-results -->", "<!-- /benchmark-results -->")


def headings_and_rows(case: CaseResult) -> tuple[list[str], list[list[str]]]:
    """The case's table: only the columns that it has figures for. Bytes are told as megabytes, processor time too."""
    divisor, unit = _BIG_UNITS.get(case.unit, (1.0, case.unit))
    shown = [one for one in _COLUMNS if any(line.each(one[1]) for line in case.measured)]
    rates = [line.median(Metric.RATE) for line in case.measured]
    has_rate = any(rate is not None for rate in rates)
    peer = case.of(PEER)
    headings = ["contender"]
    if has_rate:
        headings += [unit, "× psycopg → PgBouncer"] if peer else [unit]
    rows = []
    for line, rate in zip(case.measured, rates, strict=True):
        row = [line.title]
        if has_rate:
            row.append("" if rate is None else _count(rate / divisor))
        if has_rate and peer:
            row.append(_beside(line, peer))
        row += [
            _formatted(line, metric, form, divisor if metric in _PER_OPERATION else 1.0) for _, metric, form in shown
        ]
        rows.append(row)
    return headings + [one[0] for one in shown], rows


def outcome(verdict: Verdict) -> str:
    """The verdict's last word."""
    if verdict.reached is None:
        return "" if verdict.figure is not None else "not measured"
    return "reached" if verdict.reached else "not reached"


def print_case(console: Console, case: CaseResult) -> None:
    """A case on the terminal."""
    headings, rows = headings_and_rows(case)
    if rows:
        table = Table(title=Text(case.title), title_justify="left")
        for number, heading in enumerate(headings):
            table.add_column(Text(heading), justify="right" if number else "left")
        for row in rows:
            table.add_row(*map(Text, row))
        console.print(table)
    else:
        console.print(Text(case.title))
    for verdict in case.verdicts:
        colour = {True: "green", False: "red", None: ""}[verdict.reached]
        line = Text(f"  {verdict.what}: {verdict.said} (asked: {verdict.asked}) ")
        console.print(line.append(outcome(verdict), style=colour))
    for name, reason in case.skipped.items():
        console.print(Text(f"  without {_title(name)}: {reason}"))
    for note in case.notes:
        console.print(Text(f"  {note}"))
    if case.failed:
        console.print(Text(f"  failed: {case.failed}", style="red"))
    console.print()


def verdicts(results: Results) -> str:
    """What the main README shows: what was asked beside what was measured, and the plot."""
    return "\n".join(_verdicts(results)) + "\n"


def contenders(results: Results) -> str:
    """What the page of its own shows: every contender of every case."""
    return "\n".join(_contenders(results)) + "\n"


def _conditions(results: Results) -> str:
    machine = results.machine
    return (
        f"Measured {results.when[:10]}: {machine['cores']} cores ({machine['processor']}), "
        f"PostgreSQL {machine['postgres']}, PgBouncer {machine['pgbouncer'] or 'none'}, Python {machine['python']}, "
        + ", ".join(f"{name} {version}" for name, version in machine["libraries"].items())
        + f"; {_rounds(results.cases)}."
        + (" **The machine had other work at the time.**" if is_busy(machine) else "")
    )


def _verdicts(results: Results) -> Iterator[str]:
    yield _conditions(results)
    yield ""
    yield "| case | asked | measured | |"
    yield "|---|---|---|---|"
    for case in results.cases:
        for verdict in case.verdicts:
            word = outcome(verdict)
            strong = f"**{word}**" if verdict.reached is False else word
            yield _row([f"{case.title}: {verdict.what}", verdict.asked, verdict.said, strong])
        if case.failed:
            yield _row([case.title, "", "failed: " + case.failed.splitlines()[0], "**not measured**"])
    yield ""
    yield f"![Throughput by number of callers, and each ratio beside what was asked]({PLOT})"


def _contenders(results: Results) -> Iterator[str]:
    yield _conditions(results)
    for case in results.cases:
        yield from _markdown_case(case)


def _rounds(cases: Sequence[CaseResult]) -> str:
    """How long it was looked at; cases that were measured again later may differ."""
    lengths = {(case.rounds, case.seconds) for case in cases if case.seconds}
    return " or ".join(f"{rounds} rounds of {seconds:g} s" for rounds, seconds in sorted(lengths))


def _markdown_case(case: CaseResult) -> Iterator[str]:
    headings, rows = headings_and_rows(case)
    yield ""
    yield f"## {case.title}"
    if rows:
        yield ""
        yield _row(headings)
        yield "|" + "---|" * len(headings)
        yield from map(_row, rows)
    remarks = [f"without {_title(name)}: {reason}" for name, reason in case.skipped.items()]
    for remark in (*remarks, *case.notes):
        yield ""
        yield re.sub(r"([<>])", r"\\\1", remark[0].upper() + remark[1:]) + "."


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _beside(line: Measured, peer: Measured) -> str:
    value = ratio(line, peer, Metric.RATE)
    return "" if value is None else f"{value:.2f}"


def _formatted(line: Measured, metric: Metric, form: str, times: float) -> str:
    value = line.median(metric)
    if value is None:
        return ""
    return form.format(value * times) if form else _count(value * times)


def _count(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _title(name: str) -> str:
    return CONTENDERS[name].title if name in CONTENDERS else name
