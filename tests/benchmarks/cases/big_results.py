"""A million rows of five columns (bigint, integer, text, double precision, timestamptz with NULLs), and their COPY."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tests.benchmarks import processes
from tests.benchmarks.contenders import PYTHON_PEERS
from tests.benchmarks.figures import Metric, Sample
from tests.benchmarks.judging import at_least, below
from tests.benchmarks.rounds import compare
from tests.benchmarks.stage import Performer, Setting


def watching_memory(performer: Performer, work: Callable[[], Sample]) -> Sample:
    """A round, and the router's memory: its peak so far over what it had before the first, uncounted round."""
    if performer.router is None:
        return work()
    pids = performer.router.pids()
    if performer.memory_before_mib is None:
        processes.forget_peaks(pids)
        performer.memory_before_mib = processes.memory_mib(pids)
    before = performer.memory_before_mib
    sample = work()
    grown = processes.peak_memory_mib(pids) - before
    return replace(sample, values={**sample.values, Metric.MEMORY_MIB: before, Metric.MEMORY_GROWTH_MIB: grown})


CASES = (
    compare(
        "stream", "1,000,000 rows × 5 columns to Python objects", "rows/s", ("router", *PYTHON_PEERS), Setting(1),
        {"work": "stream", "seconds": 0.0},
        at_least(1, what="rows/s"),
        below(32, Metric.MEMORY_GROWTH_MIB, "growth of the router's memory"),
        notes=(
            "psycopg: cursor.stream in chunks of 1000, binary (no server-side cursor was faster); "
            "asyncpg: a cursor with prefetch 5000; the SDK: stream().chunks()",
        ),
        observe=watching_memory, counts_rows=True,
    ),
    compare(
        "copy_out", "COPY of the same rows into a file", "bytes/s", ("router", *PYTHON_PEERS), Setting(1),
        {"work": "copy_out", "seconds": 0.0},
        at_least(0.7, what="bytes/s"),
        below(32, Metric.MEMORY_GROWTH_MIB, "growth of the router's memory"),
        observe=watching_memory, counts_rows=True,
    ),
)
