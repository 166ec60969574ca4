"""What callers were told, beside what the survivors hold. Pure: histories and rows in, figures out."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tests.chaos.figures import Figure, histogram, none_of
from tests.chaos.history import History, Kind, Operation, Outcome
from tests.chaos.list_append import Anomaly, Finding, Transaction, check, stale_reads
from tests.chaos.workloads import read_list

ROWS = (Kind.APPEND, Kind.BATCH, Kind.TRANSACT)
"""What leaves one row in the ledger."""
WRITES = (*ROWS, Kind.INCREMENT)
GRACE_S = 0.1
"""How long after its deadline a request may end."""
WINDOW_S = 10.0


@dataclass(frozen=True)
class Survivors:
    """What the surviving primary holds: id → how often, and what else the checker compares."""

    ledger: Mapping[int, int]
    increments: Mapping[int, int]
    counters: Mapping[int, int] = field(default_factory=dict)
    lists: Mapping[int, Sequence[int]] = field(default_factory=dict)
    timeline: int = 0


QUERIES = (
    "select id, count(*) from ledger group by id",
    "select id, count(*) from increments group by id",
    "select name, value from counters",
    "select k, v from lists",
)


def survivors(answers: Sequence[Iterable[tuple[object, ...]]], timeline: int) -> Survivors:
    """The answers to QUERIES."""
    ledger, increments, counters, lists = (dict(one) for one in answers)  # type: ignore[arg-type]
    return Survivors(ledger, increments, counters, {key: read_list(text) for key, text in lists.items()}, timeline)


@dataclass(frozen=True)
class Truth:
    """Writes whose caller was told something that is not so."""

    lost: list[Operation]
    told_failed: list[Operation]
    """Told to be without effect, and there."""
    doubled: list[Operation]
    acknowledged: int
    unknown: int
    writes: int


def number_of(one: Operation) -> int:
    """The id that a write left, or would have."""
    return int(one.value[0] if one.kind is Kind.INCREMENT else one.value)


def truth(operations: Iterable[Operation], held: Mapping[int, int]) -> Truth:
    """Every write beside what is there."""
    lost, told_failed, doubled = [], [], []
    fates: Counter[Outcome] = Counter()
    for one in operations:
        fates[one.outcome] += 1
        there = held.get(number_of(one), 0)
        if one.outcome.acknowledged and not there:
            lost.append(one)
        if one.outcome is Outcome.FAILED and there:
            told_failed.append(one)
        if there > 1:
            doubled.append(one)
    acknowledged = fates[Outcome.OK] + fates[Outcome.DONE]
    return Truth(lost, told_failed, doubled, acknowledged, fates[Outcome.UNKNOWN], fates.total())


def write_figures(history: History, held: Survivors) -> list[Figure]:
    """Acknowledged writes lost, callers told wrong, writes doubled, sums that do not match."""
    rows = truth(history.of(*ROWS), held.ledger)
    keyed = truth((one for one in history.of(Kind.INCREMENT) if one.keyed), held.increments)
    plain = truth((one for one in history.of(Kind.INCREMENT) if not one.keyed), held.increments)
    each = (rows, keyed, plain)
    acknowledged = sum(one.acknowledged for one in each)
    lost = sum(len(one.lost) for one in each)
    unkeyed = rows.writes + plain.writes
    wrong = sum(len(one.told_failed) + len(one.lost) for one in (rows, plain))
    doubled = len(rows.doubled) + len(plain.doubled)
    found = [
        none_of("acknowledged writes lost", lost, acknowledged, "acknowledged"),
        none_of("un-keyed writes whose caller was told wrong", wrong + doubled, unkeyed,
                f"writes, {rows.unknown + plain.unknown:,} told to be of unknown outcome"),
        none_of("keyed writes doubled, or told wrong",
                len(keyed.doubled) + len(keyed.told_failed), keyed.writes, "keyed writes"),
    ]
    if held.counters:
        off = abs(sum(held.counters.values()) - sum(held.increments.values()))
        found.append(none_of("x = x + 1: sum of the counters beside rows written with them", off,
                             sum(held.increments.values()), "increments"))
    return found


# --- timelines -------------------------------------------------------------------------------------------------------


def two_timelines(history: History) -> list[tuple[Operation, Operation]]:
    """Pairs that show two primaries at once: a write begun after a newer timeline had acknowledged one, acknowledged by
    an older; or two servers that wrote on one timeline."""
    wrong: list[tuple[Operation, Operation]] = []
    newest: Operation | None = None
    writers: dict[int, Operation] = {}
    acknowledged = [one for one in history.of(*WRITES) if one.outcome is Outcome.OK and one.timeline]
    starts = sorted(acknowledged, key=lambda one: one.invoked)
    ends = iter(sorted(acknowledged, key=lambda one: one.ended))
    ended = next(ends, None)
    for one in starts:
        while ended is not None and ended.ended < one.invoked:
            if newest is None or ended.timeline > newest.timeline:
                newest = ended
            ended = next(ends, None)
        if newest is not None and one.timeline < newest.timeline:
            wrong.append((newest, one))
        first = writers.setdefault(one.timeline, one)
        if first.server != one.server:
            wrong.append((first, one))
    return wrong


def late_arrivals(history: History, stale: Iterable[int], timeline: int) -> list[int]:
    """Ids among the rows of a server of `timeline` that were asked for after a newer timeline had acknowledged a
    write."""
    newer = [one for one in history.of(*WRITES) if one.outcome is Outcome.OK and one.timeline > timeline]
    if not newer:
        return []
    since = min(one.ended for one in newer)
    rows = set(stale)
    return [number_of(one) for one in history.of(*ROWS) if number_of(one) in rows and one.invoked > since]


# --- reads -----------------------------------------------------------------------------------------------------------


def stale_strong_reads(history: History) -> tuple[int, int]:
    """(stale, looked at): strong reads of a counter below what had been acknowledged before they began."""
    done: dict[int, list[float]] = defaultdict(list)
    for one in history.of(Kind.INCREMENT):
        if one.outcome.acknowledged:
            done[one.value[1]].append(one.ended)
    for each in done.values():
        each.sort()
    stale = looked = 0
    for one in history.of(Kind.STRONG_READ):
        if one.outcome is Outcome.OK and one.result is not None:
            looked += 1
            stale += one.result < bisect_right(done[one.value], one.invoked)
    return stale, looked


def stale_own_reads(history: History) -> tuple[int, int, int]:
    """(stale, looked at, served by replicas): reads below what their process had written or read before."""
    stale = looked = 0
    for one in history.of(Kind.OWN_READ):
        if one.outcome is Outcome.OK:
            looked += 1
            stale += one.result < one.value
    return stale, looked, sum(1 for one in history.of(Kind.OWN_READ) if one.role == "replica")


def transactions(history: History) -> list[Transaction]:
    """The list-append transactions of a history."""
    fates = {Outcome.OK: True, Outcome.DONE: True, Outcome.FAILED: False, Outcome.UNKNOWN: None}
    return [
        Transaction(number, one.result if one.outcome is Outcome.OK else
                    tuple(step for step in one.value if step[0] == "append"),
                    fates[one.outcome], one.invoked, one.ended, one.process)
        for number, one in enumerate(history.of(Kind.LISTS), 1)
    ]


def list_findings(history: History, held: Survivors) -> tuple[list[Finding], int]:
    """(anomalies, transactions looked at)."""
    made = transactions(history)
    return check(made, held.lists) + stale_reads(made), len(made)


def list_figure(history: History, held: Survivors) -> tuple[Figure, list[str]]:
    """Anomalies that serializable transactions may not show, and the first of them in words."""
    findings, n = list_findings(history, held)
    kinds = Counter(one.anomaly for one in findings)
    notes = [f"{kind.value}: {count}; {_first(findings, kind)}" for kind, count in kinds.items()]
    return none_of("anomalies in list-append transactions (serializable, primary)", len(findings), n,
                   "transactions"), notes


def _first(findings: Sequence[Finding], kind: Anomaly) -> str:
    one = next(each for each in findings if each.anomaly is kind)
    return f"first {one.transactions} {one.words}"


# --- time and repetition ---------------------------------------------------------------------------------------------


def lateness(history: History, kinds: Sequence[Kind] = tuple(Kind)) -> tuple[list[Operation], int, int]:
    """(late, looked at, left out): ends after deadline + GRACE_S, less the time in which the harness did not run.

    What is late only by that time is left out: nobody can tell.
    """
    late, looked, unseen = [], 0, 0
    for one in history.of(*kinds):
        looked += 1
        if one.late_s > GRACE_S:
            stalled = history.stalled_during(one.deadline - 0.05, one.ended)
            if one.late_s - stalled <= GRACE_S:
                unseen += 1
            else:
                late.append(one)
    return late, looked - unseen, unseen


def late_figure(history: History) -> Figure:
    """Requests that ended past their deadline."""
    late, n, unseen = lateness(history)
    figure = none_of("requests that ended past deadline + 100 ms", len(late), n,
                     "requests" + (f", {unseen} more unseen while the harness was stalled" if unseen else ""))
    overruns = [one.late_s for one in history.operations if one.late_s > 0]
    return Figure(figure.what, figure.goal, figure.said, figure.n, figure.figure, figure.reached,
                  histogram=histogram(overruns))


def attempts_figure(history: History, most: float = 1.10) -> Figure:
    """Attempts per request in the worst window of ten seconds that holds at least a hundred requests."""
    what = "attempts per request, failed connects included, worst 10 s"
    slots: dict[int, list[int]] = defaultdict(lambda: [0, 0])
    for one in history.operations:
        slot = slots[int(one.ended - history.began)]
        slot[0] += 1
        slot[1] += max(1, one.attempts)
    worst, counted = 0.0, sum(requests for requests, _ in slots.values())
    first, last = min(slots, default=0), max(slots, default=0)
    for start in range(first, max(first, last + 1 - int(WINDOW_S)) + 1):
        window = [slots[at] for at in range(start, start + int(WINDOW_S)) if at in slots]
        requests = sum(one[0] for one in window)
        if requests >= 100:
            worst = max(worst, sum(one[1] for one in window) / requests)
    if not worst:
        return Figure(what, f"≤ {most:.2f}", "not measured", counted)
    said = f"{worst:.3f} over {counted:,} requests"
    return Figure(what, f"≤ {most:.2f}", said, counted, worst, worst <= most)


def errors_figure(what: str, operations: Iterable[Operation], of: str) -> tuple[Figure, list[str]]:
    """Operations that did not succeed, and their reasons."""
    counts: Counter[str] = Counter()
    examples: dict[str, str] = {}
    n = 0
    for one in operations:
        n += 1
        if one.outcome is not Outcome.OK and not one.cancelled:
            counts[one.reason] += 1
            examples.setdefault(one.reason, f"{one.kind.value} via {one.via}: {one.message}"[:300])
    notes = [f"{reason}: {count}; first {examples[reason]}" for reason, count in counts.most_common(5)]
    return none_of(what, counts.total(), n, of), notes
