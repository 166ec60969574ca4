"""`make chaos`: hurt real servers, ask the survivors, print, write results. `python -m tests.chaos --help` says how.

Exit code 0 when every goal was reached, 1 when one was not or a case could not run, 2 when the arguments are wrong,
130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

# Before grpc is imported: processes are started while channels are open, and grpc notes each one on stderr.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")

from rich.console import Console

from router.devcluster import DevClusterError, find_binaries
from tests.benchmarks import results_file
from tests.benchmarks.starting import ROOT
from tests.chaos import plot, report, results
from tests.chaos.cases import CASES, Case, Size, chosen, segments
from tests.chaos.figures import CaseResult
from tests.chaos.playing import play
from tests.chaos.results import Results

LATEST = results.FOLDER / "latest.json"
PARTIAL = results.FOLDER / "partial.json"
HOURS = results.FOLDER / "hours.json"
PAGES = ((ROOT / "README.md", report.goals), (Path(__file__).with_name("README.md"), report.figures))
"""Where results are shown, and which part of them."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    asked = _parser().parse_args(arguments)
    console = Console(stderr=asked.json, width=None if sys.stdout.isatty() else 180, highlight=False)
    if asked.list:
        for case in CASES:
            sizes = f"{case.quick:,} / {case.default:,} / {case.large:,} {case.unit}"
            console.print(f"{case.name:14} {case.title}  [dim]{sizes}")
        return 0
    if asked.render:
        return _render(console)
    try:
        cases = chosen(asked.cases)
    except ValueError as error:
        print(f"chaos: {error}", file=sys.stderr)
        return 2
    if asked.hours:
        cases = list(segments(asked.hours))
    size = Size.QUICK if asked.quick else Size.LARGE if asked.large else Size.DEFAULT
    seed = asked.seed if asked.seed is not None else random.SystemRandom().randrange(1_000_000)
    found, interrupted = _play_all(console, cases, size, seed, asked.count or 0)
    made = Results(results_file.now(), _machine(), tuple(found))
    whole = len(cases) == len(CASES) and size is not Size.QUICK
    if found and asked.hours:
        _write(console, made, HOURS)
    elif found:
        _save(console, made, latest=(whole or asked.keep) and not interrupted)
    if asked.json:
        print(made.to_json(), end="")
    return 130 if interrupted else int(any(case.missed for case in found))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="make chaos", description="Real PostgreSQL servers and a router under faults; what survived is checked."
    )
    parser.add_argument("--cases", default="", metavar="A,B", help="only cases whose names begin so; see --list")
    parser.add_argument("--quick", action="store_true", help="small sizes: does it run at all?")
    parser.add_argument("--large", action="store_true", help="the sizes that the goals name; hours in all")
    parser.add_argument("--hours", type=float, default=0.0, help="instead of cases: random faults for so long")
    parser.add_argument("--count", type=int, metavar="N", help="N units of each case instead")
    parser.add_argument("--seed", type=int, help="the seed of an earlier run (printed by it)")
    parser.add_argument("--keep", action="store_true", help="renew latest.* and both pages also after a partial run")
    parser.add_argument("--json", action="store_true", help="JSON on standard output, tables on standard error")
    parser.add_argument("--list", action="store_true", help="the cases and their sizes")
    parser.add_argument("--render", action="store_true", help="only write picture and pages again, from latest.json")
    return parser


def _play_all(
    console: Console, cases: Sequence[Case], size: Size, seed: int, count: int
) -> tuple[list[CaseResult], bool]:
    """Every case; what was found before Ctrl-C, and whether there was one."""
    found: list[CaseResult] = []
    console.print(f"seed {seed}")
    for number, case in enumerate(cases, 1):
        if case.name.startswith("hours"):
            seed += number > 1  # each part draws its own faults, and can be repeated by its own seed
        begun = time.monotonic()
        console.print(f"[{number}/{len(cases)}] {case.name} ...", markup=False)
        try:
            with console.status(case.name) as status:
                found.append(play(case, size, seed, lambda what, _done, case=case: status.update(  # type: ignore[misc]
                    f"{case.name}: {what}"), count=count))
        except KeyboardInterrupt:
            return found, True
        console.print(f"  took {time.monotonic() - begun:.0f} s")
        report.print_case(console, found[-1])
    return found, False


def _machine() -> dict[str, object]:
    version = "none"
    with suppress(DevClusterError):
        version = str(find_binaries().major)
    machine = results_file.describe_machine(version, "")
    del machine["pgbouncer"]
    return machine


def _save(console: Console, made: Results, *, latest: bool) -> None:
    path = LATEST if latest else PARTIAL
    merged = made.merged_over(results.read(LATEST) if latest else None, [case.name for case in CASES])
    merged = Results.from_json(merged.to_json())  # as it is written: pages must show what the file says
    _write(console, merged, path)
    if latest:
        _show(merged)
        console.print("written: " + ", ".join(_short(page) for page, _ in PAGES))


def _show(made: Results) -> None:
    for page, part in PAGES:
        page.write_text(report.PLACE.fill(page.read_text(), part(made)))


def _write(console: Console, made: Results, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(made.to_json())
    console.print("written: " + ", ".join(_short(one) for one in [path, *_draw(console, made, path)]))


def _draw(console: Console, made: Results, beside: Path) -> list[Path]:
    try:
        drawn = plot.write(made, beside.with_suffix(".svg"))
    except ImportError:
        console.print("no picture: matplotlib is missing (pip install 'pointsman[dev]')")
        return []
    return [beside.with_suffix(".svg")] if drawn else []


def _render(console: Console) -> int:
    made = results.read(LATEST)
    if made is None:
        print(f"chaos: there is no {_short(LATEST)} yet", file=sys.stderr)
        return 1
    _draw(console, made, LATEST)
    _show(made)
    return 0


def _short(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


if __name__ == "__main__":
    sys.exit(main())
