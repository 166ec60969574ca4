"""What every case is made of: its size and seed, the usual mix of callers, and the usual questions to the survivors."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pointsman

from tests.chaos import checker
from tests.chaos.callers import SdkCaller
from tests.chaos.figures import Figure, Strip, none_of
from tests.chaos.history import History, Kind
from tests.chaos.load import TIMEOUT_S, Load
from tests.chaos.stage import TENANT, Stage
from tests.chaos.workloads import (
    SCHEMA,
    Batches,
    CancellableAppends,
    Increments,
    Lists,
    Numbers,
    Reads,
    Transactions,
    Workload,
)


@dataclass
class Found:
    """What a case brings back."""

    figures: Sequence[Figure]
    notes: Sequence[str] = ()
    history: History | None = None
    """Drawn over time, when given."""
    strip: Strip | None = None
    """The same, drawn already."""


class Skipped(Exception):
    """The case cannot run here; the words say why."""


@dataclass
class Run:
    """One case being run."""

    size: int
    seed: int
    tell: Callable[[str, float], None]
    """(what is being done, part done from 0 to 1)."""
    hours: float = 0.0
    chance: random.Random = field(init=False)
    numbers: Numbers = field(default_factory=Numbers)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)

    async def set_up(self, stage: Stage, workloads: Sequence[Workload] = ()) -> None:
        """The tables, and what the workloads need in them."""
        statements = dict.fromkeys(statement for one in workloads for statement in one.setup())
        await stage.do(stage.run_sql, *SCHEMA, *statements)

    async def keyed(self, stage: Stage) -> bool:
        """Whether the router takes idempotency keys."""
        caller = SdkCaller(stage.router.connect(TENANT))
        try:
            await caller.write("select 1", timeout=5, key=f"asked-{uuid.UUID(int=self.chance.getrandbits(128))}")
        except pointsman.Error as error:
            self.notes.append(f"keyed writes are left out: the router refuses keys ({error.reason or error.code.name})")
            return False
        finally:
            await caller.close()
        return True

    async def mix(self, stage: Stage, *, lists: bool = False, writes_only: bool = False) -> list[Workload]:
        """Reads of both kinds, un-keyed writes by every method, increments (keyed where possible)."""
        numbers, chance = self.numbers, self.chance
        increments = Increments(numbers, chance, keyed=await self.keyed(stage))
        made: list[Workload] = [CancellableAppends(numbers, chance), Batches(numbers, chance),
                                Transactions(numbers, chance), increments, increments]
        if writes_only:
            made.append(increments)
        else:
            made += [Reads(numbers, chance), Reads(numbers, chance), Reads(numbers, chance, replica=True),
                     Reads(numbers, chance, replica=True)]
        if lists:
            made += [Lists(numbers, chance)] * 2
        await self.set_up(stage, made)
        return made

    def load(self, stage: Stage, workloads: Sequence[Workload], *, rate: float = 250.0, processes: int = 32,
             timeout: Callable[[random.Random], float] | float = TIMEOUT_S) -> Load:
        """Callers of both kinds in equal parts."""
        callers = stage.callers(2, 2)
        stage.load = Load(stage.history, callers, workloads, processes=processes, rate=rate, timeout=timeout,
                          seed=self.seed)
        return stage.load

    async def verdict(self, stage: Stage, *, lists: bool = False) -> list[Figure]:
        """The usual questions, asked of the primary once all is well and nothing runs."""
        answers = [await stage.do(stage.rows, query) for query in checker.QUERIES]
        held = checker.survivors(answers, await stage.timeline())
        history = stage.history
        figures = checker.write_figures(history, held)
        figures.append(self.two_timelines(history))
        stale, reads = checker.stale_strong_reads(history)
        figures.append(none_of("stale strong reads", stale, reads, "strong reads"))
        if lists:
            figure, notes = checker.list_figure(history, held)
            figures.append(figure)
            self.notes += notes
        return [*figures, checker.late_figure(history), checker.attempts_figure(history)]

    def two_timelines(self, history: History) -> Figure:
        """Split brain as the callers could see it."""
        pairs = checker.two_timelines(history)
        if pairs:
            self.notes.append(f"two timelines: {pairs[0][0]} and {pairs[0][1]}"[:600])
        n = sum(1 for one in history.of(*checker.WRITES) if one.outcome.acknowledged)
        return none_of("writes acknowledged on two timelines at once", len(pairs), n, "acknowledged writes")

    def errors(self, history: History, what: str, *kinds: Kind, keyed: bool = True) -> Figure:
        """Operations that did not succeed, of the given kinds and, unless told otherwise, keyed writes."""
        wanted = [one for one in history.operations if one.kind in kinds or (keyed and one.keyed)]
        figure, notes = checker.errors_figure(what, wanted, "requests")
        self.notes += notes
        return figure
