"""Results as tables: on the terminal with rich, in two pages as Markdown: the goals here, every figure there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tests.benchmarks.report import Markers
from tests.benchmarks.results_file import is_busy
from tests.chaos.figures import CaseResult, Figure
from tests.chaos.results import Results

PLACE = Markers("<!-- chaos-results -->", "<!-- /chaos-results -->")
POOLED_FROM = 4
"""Questions asked by so many cases stand in the table of goals once."""
PICTURE = "tests/chaos/results/latest.svg"


def outcome(figure: Figure) -> str:
    """The figure's last word."""
    if figure.reached is None:
        return "" if figure.n else "not measured"
    return "reached" if figure.reached else "not reached"


def print_case(console: Console, case: CaseResult) -> None:
    """A case on the terminal: each goal beside what was reached."""
    table = Table(title=Text(f"{case.title} (seed {case.seed}, {case.took_s:.0f} s)"), title_justify="left")
    for heading in ("", "goal", "reached", "N", ""):
        table.add_column(heading, justify="right" if heading == "N" else "left", overflow="fold")
    for one in case.figures:
        style = {True: "green", False: "bold red", None: "dim"}[one.reached]
        table.add_row(Text(one.what), Text(one.goal), Text(one.said), f"{one.n:,}", Text(outcome(one), style=style))
    if case.figures:
        console.print(table)
    else:
        console.print(Text(case.title))
    if case.skipped:
        console.print(Text(f"  skipped: {case.skipped}", style="yellow"))
    for note in case.notes:
        console.print(Text(f"  {note}"))
    if case.failed:
        console.print(Text(f"  failed: {case.failed}", style="red"))
    console.print()


def goals(results: Results) -> str:
    """What the main README shows: each case's goals, what all cases ask, the picture."""
    return "\n".join(_goals(results)) + "\n"


def figures(results: Results) -> str:
    """What the page of its own shows: every figure of every case, and remarks."""
    return "\n".join(_figures(results)) + "\n"


def _conditions(results: Results) -> str:
    machine = results.machine
    return (
        f"Measured {results.when[:10]}: {machine['cores']} cores ({machine['processor']}), PostgreSQL "
        f"{machine['postgres']}, Python {machine['python']}, "
        + ", ".join(f"{name} {version}" for name, version in machine["libraries"].items()
                    if version != "not installed")
        + "; fsync off." + (" **The machine had other work at the time.**" if is_busy(machine) else "")
    )


def _goals(results: Results) -> Iterator[str]:
    yield _conditions(results)
    yield ""
    yield "| case | | goal | reached | |"
    yield "|---|---|---|---|---|"
    shared = pooled(results.cases)
    for case in results.cases:
        yield from _rows(case, without={one.what for one in shared})
    title = "all cases together"
    for one in shared:
        yield _figure_row(title, one)
        title = ""
    yield ""
    yield f"![Throughput, latency and events over time]({PICTURE})"


def _figures(results: Results) -> Iterator[str]:
    yield _conditions(results)
    yield ""
    yield "| case | | goal | reached | |"
    yield "|---|---|---|---|---|"
    for case in results.cases:
        yield from _rows(case)
    notes = [(case, note) for case in results.cases for note in case.notes]
    if notes:
        yield ""
        yield "<details><summary>Remarks, and the first of each error</summary>"
        yield ""
        for case, note in notes:
            yield f"- {case.name}: {_plain(note)}"
        yield ""
        yield "</details>"


def pooled(cases: Sequence[CaseResult]) -> list[Figure]:
    """The questions that most cases ask, over all of them: sums of what was bad and of N; of ratios the worst."""
    asked = Counter(one.what for case in cases for one in case.figures)
    found = []
    for what in (what for what, count in asked.items() if count >= POOLED_FROM):
        same = [one for case in cases for one in case.figures if one.what == what and one.reached is not None]
        if not same:
            continue
        n, reached, goal = sum(one.n for one in same), all(one.reached for one in same), same[0].goal
        if goal == "0":
            bad = sum(one.figure or 0 for one in same)
            found.append(Figure(what, goal, f"{bad:,.0f} of {n:,}", n, bad, reached))
        else:
            worst = max(one.figure or 0 for one in same)
            found.append(Figure(what, goal, f"{worst:.3f} in the worst case, over {n:,}", n, worst, reached))
    return found


def _rows(case: CaseResult, without: Collection[str] = ()) -> Iterator[str]:
    title = case.title
    if case.skipped or case.failed:
        why = f"skipped: {case.skipped}" if case.skipped else f"failed: {case.failed.splitlines()[0]}"
        yield _row([title, "", "", why, "**not measured**"])
        title = ""
    for one in case.figures:
        if (not one.n and one.reached is None) or (one.what in without and one.reached is not False):
            continue
        yield _figure_row(title, one)
        title = ""


def _figure_row(title: str, one: Figure) -> str:
    word = outcome(one)
    return _row([title, one.what, one.goal, one.said, f"**{word}**" if one.reached is False else word])


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_plain(cell).replace("|", "\\|") if not cell.startswith("**") else cell
                             for cell in cells) + " |"


def _plain(text: str) -> str:
    return text.replace("\n", " ").replace("<", "&lt;").replace(">", "&gt;")
