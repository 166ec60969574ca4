"""The cases. To add one, write a `compare(...)` (or anything with a name, a title and a `run`) and put it in CASES."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from tests.benchmarks.cases import big_results, footprint, point_reads, tails, transactions
from tests.benchmarks.figures import CaseResult
from tests.benchmarks.rounds import Bench


class Case(Protocol):
    """Something to be measured."""

    @property
    def name(self) -> str:
        """For --cases."""

    @property
    def title(self) -> str: ...

    def run(self, bench: Bench) -> CaseResult: ...


CASES: Sequence[Case] = (
    *point_reads.CASES,
    *transactions.CASES,
    *big_results.CASES,
    *tails.CASES,
    footprint.CASE,
)


def chosen(names: str) -> list[Case]:
    """Those whose name is, or begins with, one of the comma-separated words; all when there are none.

    ValueError for a word that fits nothing.
    """
    words = [word.strip() for word in names.split(",") if word.strip()]
    known = [case.name for case in CASES]
    wanted: set[str] = set()
    for word in words:
        found = [word] if word in known else [name for name in known if name.startswith(word)]
        if not found:
            raise ValueError(f"no case begins with {word!r}; there are {', '.join(known)}")
        wanted.update(found)
    return [case for case in CASES if not words or case.name in wanted]
