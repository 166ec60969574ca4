"""`make bench`: measure, print, write results. `python -m tests.benchmarks --help` says how.

Exit code 0 whatever the figures are, 1 when a case could not run, 2 when the arguments are wrong, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from router.devcluster import DevClusterError
from tests.benchmarks import pgbouncer, plot, report, results_file
from tests.benchmarks.cases import CASES, Case, chosen
from tests.benchmarks.database import running_database
from tests.benchmarks.figures import CaseResult
from tests.benchmarks.results_file import Results
from tests.benchmarks.rounds import Bench, Options
from tests.benchmarks.starting import ROOT, BenchmarkFailed

LATEST = results_file.FOLDER / "latest.json"
PARTIAL = results_file.FOLDER / "partial.json"
PAGES = ((ROOT / "README.md", report.verdicts), (Path(__file__).with_name("README.md"), report.contenders))
"""Where results are shown, and which part of them."""
QUICK = Options(rounds=2, seconds=0.6, rows=100_000, quick=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    asked = _parser().parse_args(arguments)
    console = Console(stderr=asked.json, width=None if sys.stdout.isatty() else 200, highlight=False)
    if asked.list:
        for case in CASES:
            console.print(f"{case.name:16} {case.title}")
        return 0
    if asked.render:
        return _render(console)
    try:
        cases = chosen(asked.cases)
    except ValueError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    base = QUICK if asked.quick else Options()
    options = Options(asked.rounds or base.rounds, asked.seconds or base.seconds, asked.rows or base.rows, asked.quick)
    try:
        results = _measure(console, cases, options)
    except (DevClusterError, BenchmarkFailed) as error:
        print(f"benchmarks: PostgreSQL: {error}", file=sys.stderr)
        return 1
    interrupted = len(results.cases) < len(cases)
    whole = len(cases) == len(CASES) and not asked.quick
    _save(console, results, latest=(whole or asked.keep) and not interrupted)
    if asked.json:
        print(results.to_json(), end="")
    return 130 if interrupted else int(any(case.failed for case in results.cases))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="make bench", description="The router beside its peers on this machine, in one run, in turn."
    )
    parser.add_argument("--cases", default="", metavar="A,B", help="only cases whose names begin so; see --list")
    parser.add_argument("--rounds", type=_positive_int, help="rounds of each case (5)")
    parser.add_argument("--seconds", type=_positive, help="length of a round of one contender (2)")
    parser.add_argument("--rows", type=_positive_int, help="rows of the large results (1000000)")
    parser.add_argument("--quick", action="store_true", help="2 rounds of 0.6 s, small results: does it run at all?")
    parser.add_argument("--keep", action="store_true", help="renew latest.* and both pages also after a partial run")
    parser.add_argument("--json", action="store_true", help="JSON on standard output, tables on standard error")
    parser.add_argument("--list", action="store_true", help="the cases")
    parser.add_argument("--render", action="store_true", help="only write plot and pages again, from latest.json")
    return parser


def _positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError("must be more than 0")
    return value


def _positive_int(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def _measure(console: Console, cases: Sequence[Case], options: Options) -> Results:
    console.print(f"starting PostgreSQL and filling it ({options.rows:,} rows in the large table) ...")
    with running_database(options.rows) as database:
        machine = results_file.describe_machine(database.version, pgbouncer.version())
        if results_file.is_busy(machine):
            console.print("the machine has other work: ratios may hold, figures will not", style="yellow")
        found: list[CaseResult] = []
        with suppress(KeyboardInterrupt):
            for number, case in enumerate(cases, 1):
                begun, label = time.monotonic(), Text(f"[{number}/{len(cases)}] {case.name}")
                with _Progress(console, label.plain) as progress:
                    result = _run(case, Bench(database, options, progress.tell))
                console.print(label.append(f" took {time.monotonic() - begun:.0f} s"))
                report.print_case(console, result)
                found.append(result)
    return Results(results_file.now(), machine, tuple(found))


def _run(case: Case, bench: Bench) -> CaseResult:
    """A case that cannot run is told and does not stop the others."""
    try:
        return case.run(bench)
    except (BenchmarkFailed, OSError) as error:
        return CaseResult(case.name, case.title, "", failed=str(error), when=time.strftime("%Y-%m-%d"))


class _Progress:
    """A bar on a terminal; nothing elsewhere."""

    def __init__(self, console: Console, label: str) -> None:
        words = TextColumn("{task.fields[case]}"), TextColumn("{task.description}")
        columns = (words[0], BarColumn(), words[1], TimeElapsedColumn())
        self._bar = Progress(*columns, console=console, transient=True) if console.is_terminal else None
        self._task = self._bar.add_task("", total=1.0, case=label) if self._bar else None
        self._context: AbstractContextManager[object] = self._bar or nullcontext()

    def __enter__(self) -> _Progress:
        self._context.__enter__()
        return self

    def __exit__(self, *what: object) -> None:
        self._context.__exit__(*what)  # type: ignore[arg-type]

    def tell(self, what: str, done: float) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=what, completed=done)


def _save(console: Console, results: Results, *, latest: bool) -> None:
    path = LATEST if latest else PARTIAL
    merged = results.merged_over(results_file.read(LATEST) if latest else None, [case.name for case in CASES])
    path.parent.mkdir(exist_ok=True)
    path.write_text(merged.to_json())
    merged = Results.from_json(merged.to_json())  # as it was written, rounded: pages must show what the file says
    written = [path, *_draw(console, merged, path)]
    if latest:
        _show(merged)
        written += [page for page, _ in PAGES]
    console.print("written: " + ", ".join(_short(one) for one in written))


def _show(results: Results) -> None:
    for page, part in PAGES:
        page.write_text(report.PLACE.fill(page.read_text(), part(results)))


def _draw(console: Console, results: Results, beside: Path) -> list[Path]:
    pictures = [beside.with_suffix(".svg"), beside.with_suffix(".png")]
    try:
        plot.write(results, *pictures)
    except ImportError:
        console.print("no plot: matplotlib is missing (pip install 'pointsman[bench]')")
        return []
    return pictures


def _render(console: Console) -> int:
    results = results_file.read(LATEST)
    if results is None:
        print(f"benchmarks: there is no {_short(LATEST)} yet", file=sys.stderr)
        return 1
    _draw(console, results, LATEST)
    _show(results)
    return 0


def _short(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


if __name__ == "__main__":
    sys.exit(main())
