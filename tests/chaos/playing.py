"""Runs one case: whatever becomes of it is a result, so that one broken case stops no other."""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Callable

from router.devcluster import DevClusterError
from tests.benchmarks.starting import BenchmarkFailed
from tests.chaos import results
from tests.chaos.cases import Case, Size
from tests.chaos.cases.run import Found, Run, Skipped
from tests.chaos.figures import CaseResult
from tests.chaos.stage import StageBroken


def play(
    case: Case, size: Size, seed: int, tell: Callable[[str, float], None] = lambda _what, _done: None, *,
    count: int = 0,
) -> CaseResult:
    """One case at one size (or `count` units of it) from one seed. Blocks."""
    units = count or case.count(size)
    run = Run(units, seed, tell)
    began, when = time.monotonic(), time.strftime("%Y-%m-%d")
    words = size.value if not count else f"{count} {case.unit}"

    def result(**more: object) -> CaseResult:
        return CaseResult(case.name, case.title, words, seed, when=when,
                          took_s=round(time.monotonic() - began, 1), **more)  # type: ignore[arg-type]

    try:
        found = asyncio.run(_run(case, run))
    except Skipped as reason:
        return result(skipped=str(reason), notes=tuple(run.notes))
    except (StageBroken, DevClusterError, BenchmarkFailed, AssertionError, OSError) as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return result(failed=f"{type(error).__name__}: {error} ({where.name}, line {where.lineno})",
                      notes=tuple(run.notes))
    drawn = results.strip(found.history) if found.history is not None else found.strip
    return result(figures=tuple(found.figures), notes=tuple(found.notes), strip=drawn)


async def _run(case: Case, run: Run) -> Found:
    return await case.run(run)
