"""Histories of list-append transactions, searched for anomalies as Elle does. Pure.

Every append is unique and every read gives a whole list, so a list's longest read tells the order of its versions, and
with it who depends on whom: ww (overwrote), wr (read from), rw (read what the other overwrote). A cycle of ww edges is
G0, of ww and wr G1c, with exactly one rw G-single, with more G2. Serializable forbids all of them; snapshot isolation
allows G2 between concurrent transactions; with session edges, what one caller did in turn counts as order, too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class Anomaly(Enum):
    """What a history may show that no serial execution could."""

    G0 = "G0: writes in a cycle"
    G1A = "G1a: read of an aborted append"
    G1B = "G1b: read of a transaction's intermediate list"
    G1C = "G1c: reads and writes in a cycle"
    G_SINGLE = "G-single: a cycle with one anti-dependency (read skew, lost update)"
    G2 = "G2: a cycle with several anti-dependencies (write skew)"
    INCOMPATIBLE = "two reads of a list, of which neither is the beginning of the other"
    DUPLICATE = "an append done twice"
    INTERNAL = "a transaction that does not see what it did or read itself"
    GARBAGE = "a read of what nobody appended"
    LOST = "an acknowledged append that is not in the last list"
    STALE = "a read without what was acknowledged before it began"


@dataclass(frozen=True, slots=True)
class Transaction:
    """Its steps in order: ("append", key, number) or ("read", key, numbers)."""

    name: int
    steps: Sequence[tuple[Any, ...]]
    committed: bool | None = True
    """None: nobody knows. Its reads count for nothing then."""
    invoked: float = 0.0
    ended: float = 0.0
    process: int = 0

    def appends(self) -> Iterator[tuple[int, int]]:
        """(key, number) of each."""
        return ((step[1], step[2]) for step in self.steps if step[0] == "append")

    def reads(self) -> Iterator[tuple[int, tuple[int, ...]]]:
        """(key, numbers) of each."""
        return ((step[1], tuple(step[2])) for step in self.steps if step[0] == "read")


@dataclass(frozen=True, slots=True)
class Finding:
    """One anomaly, and the transactions that show it."""

    anomaly: Anomaly
    transactions: tuple[int, ...]
    words: str = ""


Edges = dict[int, dict[int, set[str]]]


@dataclass
class _World:
    """What can be inferred from a history."""

    transactions: Sequence[Transaction]
    by_name: dict[int, Transaction] = field(default_factory=dict)
    writer: dict[tuple[int, int], Transaction] = field(default_factory=dict)
    orders: dict[int, tuple[int, ...]] = field(default_factory=dict)
    """Each list's longest known content: the order of its appends."""
    findings: list[Finding] = field(default_factory=list)

    def found(self, anomaly: Anomaly, *names: int, words: str = "") -> None:
        self.findings.append(Finding(anomaly, names, words))


def check(
    transactions: Iterable[Transaction], final: Mapping[int, Sequence[int]] | None = None, *, session: bool = False
) -> list[Finding]:
    """All anomalies of a history. final: the lists as they are in the end, read when nothing ran any more.

    session: the order in which one process did its transactions is an order that all must agree with.
    """
    world = _World(list(transactions))
    for one in world.transactions:
        world.by_name[one.name] = one
        for key, number in one.appends():
            world.writer[key, number] = one
    _orders(world, final)
    _look_at_reads(world)
    if final is not None:
        _look_at_the_end(world, final)
    edges = _edges(world)
    if session:
        _add_sessions(world, edges)
    world.findings += _cycles(edges)
    return world.findings


def _certain(world: _World) -> list[Transaction]:
    return [one for one in world.transactions if one.committed]


def _orders(world: _World, final: Mapping[int, Sequence[int]] | None) -> None:
    longest: dict[int, tuple[tuple[int, ...], int]] = {
        key: (tuple(numbers), -1) for key, numbers in (final or {}).items()
    }
    reads = [(key, numbers, one.name) for one in _certain(world) for key, numbers in one.reads()]
    for key, numbers, name in sorted(reads, key=lambda read: len(read[1])):
        if len(numbers) > len(longest.get(key, ((), 0))[0]):
            longest[key] = numbers, name
    for key, numbers, name in reads:
        whole, other = longest.get(key, ((), 0))
        last = whole if final is None else tuple(final.get(key, ()))
        if whole[: len(numbers)] != numbers or last[: len(numbers)] != numbers:
            world.found(Anomaly.INCOMPATIBLE, name, other, words=f"list {key}: {numbers} and {whole}, at last {last}")
    for key, (numbers, name) in longest.items():
        if len(set(numbers)) < len(numbers):
            world.found(Anomaly.DUPLICATE, name, words=f"list {key}: {numbers}")
        world.orders[key] = tuple(dict.fromkeys(numbers))


def _look_at_reads(world: _World) -> None:
    for one in _certain(world):
        _look_inside(world, one)
        own = set(one.appends())
        for key, numbers in one.reads():
            for number in numbers:
                writer = world.writer.get((key, number))
                if writer is None:
                    world.found(Anomaly.GARBAGE, one.name, words=f"{number} in list {key}")
                elif writer.committed is False:
                    world.found(Anomaly.G1A, one.name, writer.name, words=f"{number} in list {key}")
            last = numbers[-1:] and (key, numbers[-1])
            if last and last not in own and last in world.writer:
                writer = world.writer[last]
                after = [number for at, number in writer.appends() if at == key]
                if after[-1] != last[1] and writer is not one:
                    world.found(Anomaly.G1B, one.name, writer.name, words=f"list {key} ended with {last[1]}")


def _look_inside(world: _World, one: Transaction) -> None:
    """Reads within a transaction follow from its earlier steps."""
    known: dict[int, tuple[int, ...]] = {}
    added: dict[int, tuple[int, ...]] = defaultdict(tuple)
    for step in one.steps:
        key = step[1]
        if step[0] == "append":
            added[key] += (step[2],)
            if key in known:
                known[key] += (step[2],)
            continue
        numbers = tuple(step[2])
        tail = numbers[len(numbers) - len(added[key]) :] if added[key] else ()
        if (key in known and known[key] != numbers) or tail != added[key]:
            world.found(Anomaly.INTERNAL, one.name, words=f"list {key} read as {numbers}")
        known[key] = numbers


def _look_at_the_end(world: _World, final: Mapping[int, Sequence[int]]) -> None:
    ends = {key: set(numbers) for key, numbers in final.items()}
    for one in world.transactions:
        for key, number in one.appends():
            there = number in ends.get(key, ())
            if one.committed and not there:
                world.found(Anomaly.LOST, one.name, words=f"{number} in list {key}")
            elif one.committed is False and there:
                world.found(Anomaly.G1A, -1, one.name, words=f"{number} in list {key}")
    for key, numbers in final.items():
        for number in numbers:
            if (key, number) not in world.writer:
                world.found(Anomaly.GARBAGE, -1, words=f"{number} in list {key}")


def stale_reads(transactions: Sequence[Transaction]) -> list[Finding]:
    """Reads without an append that had been acknowledged before their transaction began."""
    ended: dict[int, list[tuple[float, int, int]]] = defaultdict(list)
    for one in transactions:
        for key, number in one.appends() if one.committed else ():
            ended[key].append((one.ended, number, one.name))
    found = []
    for one in transactions:
        for key, numbers in one.reads() if one.committed else ():
            seen = set(numbers)
            for at, number, name in ended[key]:
                if at < one.invoked and number not in seen:
                    found.append(Finding(Anomaly.STALE, (one.name, name), f"{number} in list {key}"))
    return found


# --- who depends on whom ---------------------------------------------------------------------------------------------


def _edges(world: _World) -> Edges:
    edges: Edges = defaultdict(lambda: defaultdict(set))

    def edge(one: Transaction | None, other: Transaction | None, kind: str) -> None:
        if one is not None and other is not None and one is not other and one.committed and other.committed:
            edges[one.name][other.name].add(kind)

    # A transaction of unknown outcome whose append is in a list has been committed; its reads remain unknown.
    sure = _with_proved(world)
    following: dict[tuple[int, int | None], Transaction] = {}
    for key, numbers in world.orders.items():
        before: int | None = None
        for number in numbers:
            writer = sure.get((key, number))
            if writer is not None:
                following[key, before] = writer
                edge(sure.get((key, before)) if before is not None else None, writer, "ww")
            before = number
    for one in _certain(world):
        for key, numbers in one.reads():
            last = numbers[-1] if numbers else None
            if last is not None:
                edge(sure.get((key, last)), one, "wr")
            if last is None or last in world.orders.get(key, ()):
                edge(one, _next_writer(world, following, key, last, one), "rw")
    return edges


def _next_writer(
    world: _World, following: Mapping[tuple[int, int | None], Transaction], key: int, last: int | None, one: Transaction
) -> Transaction | None:
    """Who appended first after a version that was read; one's own appends do not count."""
    order = world.orders.get(key, ())
    at = order.index(last) + 1 if last is not None else 0
    while at < len(order):
        writer = following.get((key, order[at - 1] if at else None))
        if writer is not one:
            return writer
        at += 1
    return None


def _with_proved(world: _World) -> dict[tuple[int, int], Transaction]:
    """The writer of each append, taken as committed where the lists prove it."""
    proved = {}
    for key, numbers in world.orders.items():
        for number in numbers:
            writer = world.writer.get((key, number))
            if writer is not None and writer.committed is None:
                proved[writer.name] = Transaction(
                    writer.name, tuple(s for s in writer.steps if s[0] == "append"), True, writer.invoked, writer.ended
                )
    return {place: proved.get(writer.name, writer) for place, writer in world.writer.items()}


def _add_sessions(world: _World, edges: Edges) -> None:
    last: dict[int, Transaction] = {}
    for one in sorted(_certain(world), key=lambda each: each.invoked):
        if one.process in last:
            edges[last[one.process].name][one.name].add("session")
        last[one.process] = one


# --- cycles ----------------------------------------------------------------------------------------------------------


def _cycles(edges: Edges) -> Iterator[Finding]:
    """One finding for each knot of transactions, of the gravest kind that it holds."""
    for knot in _knots(edges, {"ww", "wr", "rw", "session"}):
        inside = set(knot)
        if (cycle := _knot_within(edges, inside, {"ww", "session"})):
            yield Finding(Anomaly.G0, cycle)
        elif (cycle := _knot_within(edges, inside, {"ww", "wr", "session"})):
            yield Finding(Anomaly.G1C, cycle)
        elif (cycle := _single(edges, inside)):
            yield Finding(Anomaly.G_SINGLE, cycle)
        else:
            yield Finding(Anomaly.G2, tuple(sorted(inside)))


def _knot_within(edges: Edges, inside: set[int], kinds: set[str]) -> tuple[int, ...]:
    part: Edges = {one: {to: how for to, how in edges[one].items() if to in inside} for one in inside}
    return next((tuple(sorted(knot)) for knot in _knots(part, kinds)), ())


def _single(edges: Edges, inside: set[int]) -> tuple[int, ...]:
    """A cycle with exactly one rw edge: from its end back to its beginning without any."""
    for one in sorted(inside):
        for to, kinds in edges[one].items():
            if "rw" in kinds and to in inside:
                path = _path(edges, to, one, inside, {"ww", "wr", "session"})
                if path:
                    return path
    return ()


def _path(edges: Edges, start: int, end: int, inside: set[int], kinds: set[str]) -> tuple[int, ...]:
    came: dict[int, int] = {start: start}
    queue = [start]
    for one in queue:
        if one == end:
            path = [one]
            while path[-1] != start:
                path.append(came[path[-1]])
            return tuple(reversed(path))
        for to, how in edges[one].items() if one in edges else ():
            if to in inside and to not in came and how & kinds:
                came[to] = one
                queue.append(to)
    return ()


def _knots(edges: Edges, kinds: set[str]) -> Iterator[list[int]]:
    """Tarjan's strongly connected components of two or more, without recursion."""
    index: dict[int, int] = {}
    low: dict[int, int] = {}
    stack: list[int] = []
    waiting: set[int] = set()
    for root in list(edges):
        if root in index:
            continue
        work = [(root, iter([to for to, how in edges[root].items() if how & kinds]))]
        index[root] = low[root] = len(index)
        stack.append(root)
        waiting.add(root)
        while work:
            one, ahead = work[-1]
            step = next(ahead, None)
            if step is None:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[one])
                if low[one] == index[one]:
                    knot = []
                    while True:
                        knot.append(stack.pop())
                        waiting.discard(knot[-1])
                        if knot[-1] == one:
                            break
                    if len(knot) > 1:
                        yield knot
            elif step not in index:
                index[step] = low[step] = len(index)
                stack.append(step)
                waiting.add(step)
                after = edges.get(step, {})
                work.append((step, iter([to for to, how in after.items() if how & kinds])))
            elif step in waiting:
                low[one] = min(low[one], index[step])
