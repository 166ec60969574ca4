"""What callers do: each workload makes operations, one at a time, and says what an answer meant.

Writes tell the timeline and the port of the server that did them, and whether it waited for a standby, as that server
itself says it: so the survivors, the answers and the stale primary's own rows can be laid side by side.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import Any

from tests.chaos.callers import Answer, Caller
from tests.chaos.history import Kind, Operation

SCHEMA = (
    "create table ledger (id bigint, timeline int, server int)",
    "create table increments (id bigint, timeline int, server int)",
    "create table counters (name int primary key, value bigint not null)",
    "create table lists (k int primary key, v text not null)",
    "create table own (k int primary key, n bigint not null)",
    "create table probes (timeline int)",
)
# From the log's present segment: pg_control still shows the old timeline for a while after a promotion.
TIMELINE_SQL = "('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int"
_COPIED = "current_setting('synchronous_standby_names') <> ''"
_APPEND = f"insert into ledger values ($1, {TIMELINE_SQL}, inet_server_port()) returning timeline, server, {_COPIED}"
_INCREMENT = (
    "with bumped as (update counters set value = value + 1 where name = $1 returning value), "
    f"noted as (insert into increments select $2, {TIMELINE_SQL}, inet_server_port() from bumped "
    "returning timeline, server) "
    f"select noted.timeline, noted.server, {_COPIED}, bumped.value from noted, bumped"
)
COUNTERS = 64


class Numbers:
    """Ids that no two operations of a run share."""

    def __init__(self) -> None:
        self._next = itertools.count(1)

    def take(self) -> int:
        return next(self._next)


class Workload:
    """Makes the operations of one kind; shared by all callers of a run."""

    kind = Kind.APPEND
    keyed = False

    def __init__(self, numbers: Numbers, chance: random.Random) -> None:
        self.numbers = numbers
        self.chance = chance

    def setup(self) -> Sequence[str]:
        """Statements to be done before the first operation, besides SCHEMA."""
        return ()

    def value(self, process: int) -> Any:
        """What the next operation of a process is about."""
        return self.numbers.take()

    async def act(self, caller: Caller, one: Operation, timeout: float) -> Answer:
        """Ask."""
        raise NotImplementedError

    def learn(self, one: Operation, answer: Answer) -> None:
        """Note what the answer says: of writes, who did them."""
        if answer.rows and answer.rows[-1]:
            one.timeline, one.server, one.copied = answer.rows[-1][0][:3]
            one.result = answer.rows[-1][0][3:]


class Appends(Workload):
    """Un-keyed rows of the ledger; each id is written once or never."""

    async def act(self, caller: Caller, one: Operation, timeout: float) -> Answer:
        return await caller.write(_APPEND, one.value, timeout=timeout)


class CancellableAppends(Appends):
    """The same, each with a name by which it can be cancelled."""

    async def act(self, caller: Caller, one: Operation, timeout: float) -> Answer:
        return await caller.write(_APPEND, one.value, timeout=timeout, request_id=request_id(one.value))


def request_id(number: int) -> str:
    """The name of an append."""
    return f"append-{number:012d}"


class Batches(Appends):
    """The same as whole transactions, which the router may repeat up to their COMMIT."""

    kind = Kind.BATCH

    async def act(self, caller: Caller, one: Operation, timeout: float) -> Answer:
        return await caller.batch([(_APPEND, [one.value])], timeout=timeout)


class Transactions(Appends):
    """The same in interactive transactions: a read, then the row."""

    kind = Kind.TRANSACT

    async def act(self, caller: Caller, one: Operation, timeout: float) -> Answer:
        return await caller.transact([("select 1", []), (_APPEND, [one.value])], timeout=timeout)


class Increments(Workload):
    """x = x + 1 and a row that says so, by one statement; keyed where the router can."""

    kind = Kind.INCREMENT

    def __init__(self, numbers: Numbers, chance: random.Random, *, keyed: bool) -> None:
        super().__init__(numbers, chance)
        self.keyed = keyed

    def setup(self) -> Sequence[str]:
        return (f"insert into counters select n, 0 from generate_series(0, {COUNTERS - 1}) n",)

    def value(self, process: int) -> Any:
        return self.numbers.take(), self.chance.randrange(COUNTERS)

    async def act(self, caller: Caller, one: Operation, timeout: float) -> Answer:
        number, counter = one.value
        key = f"increment-{number}" if self.keyed else ""
        return await caller.write(_INCREMENT, counter, number, timeout=timeout, key=key)


class Reads(Workload):
    """A counter's value: on the primary it must hold all that was acknowledged before."""

    def __init__(self, numbers: Numbers, chance: random.Random, *, replica: bool = False) -> None:
        super().__init__(numbers, chance)
        self.kind = Kind.REPLICA_READ if replica else Kind.STRONG_READ
        self._prefer = "any" if replica else "primary"

    def value(self, process: int) -> Any:
        return self.chance.randrange(COUNTERS)

    async def act(self, caller: Caller, one: Operation, timeout: float) -> Answer:
        return await caller.read("select value from counters where name = $1", one.value, prefer=self._prefer,
                                 timeout=timeout)

    def learn(self, one: Operation, answer: Answer) -> None:
        one.result = answer.rows[0][0][0] if answer.rows[0] else None


class Sleeps(Workload):
    """A statement that takes a while, to fill pools with."""

    kind = Kind.SLEEP

    def value(self, process: int) -> Any:
        return round(self.chance.uniform(0.05, 0.3), 3)

    async def act(self, caller: Caller, one: Operation, timeout: float) -> Answer:
        return await caller.read(f"select 1, pg_sleep({one.value})::text", prefer="primary", timeout=timeout)

    def learn(self, one: Operation, answer: Answer) -> None:
        return


class Lists(Workload):
    """Transactions over lists: appends of unique numbers and reads of whole lists, serializable.

    value: a tuple of ("append", key, number) and ("read", key); result: the same with what reads found.
    """

    kind = Kind.LISTS
    isolation = "serializable"

    def __init__(self, numbers: Numbers, chance: random.Random, *, keys: int = 12, length: int = 40) -> None:
        super().__init__(numbers, chance)
        self._keys, self._length = keys, length
        self._made = 0

    def value(self, process: int) -> Any:
        # A window of keys that moves on, so that lists stay short and the checker's work linear.
        self._made += 1
        first = self._made // self._length
        steps: list[tuple[Any, ...]] = []
        for _ in range(self.chance.randint(1, 4)):
            key = first + self.chance.randrange(self._keys)
            steps.append(("append", key, self.numbers.take()) if self.chance.random() < 0.6 else ("read", key))
        return tuple(steps)

    async def act(self, caller: Caller, one: Operation, timeout: float) -> Answer:
        steps = [_list_step(step) for step in one.value]
        if self.chance.random() < 0.3:
            return await caller.transact(steps, timeout=timeout, isolation=self.isolation)
        return await caller.batch(steps, timeout=timeout, isolation=self.isolation)

    def learn(self, one: Operation, answer: Answer) -> None:
        one.result = tuple(
            ("read", step[1], read_list(rows[0][0] if rows else "")) if step[0] == "read" else step
            for step, rows in zip(one.value, answer.rows, strict=True)
        )


def _list_step(step: tuple[Any, ...]) -> tuple[str, list[Any]]:
    if step[0] == "read":
        return "select v from lists where k = $1", [step[1]]
    sql = "insert into lists values ($1, $2) on conflict (k) do update set v = lists.v || ',' || excluded.v"
    return sql, [step[1], str(step[2])]


def read_list(text: str) -> tuple[int, ...]:
    """A list as it is stored."""
    return tuple(int(word) for word in text.split(",") if word)


class OwnReads(Workload):
    """Read-your-writes: a process writes a growing number and reads it back from a replica with its own token."""

    kind = Kind.OWN_READ

    def __init__(self, numbers: Numbers, chance: random.Random, *, processes: int) -> None:
        super().__init__(numbers, chance)
        self._written = dict.fromkeys(range(processes), 0)
        self._seen = dict.fromkeys(range(processes), 0)

    def setup(self) -> Sequence[str]:
        return tuple(f"insert into own values ({process}, 0)" for process in self._written)

    def value(self, process: int) -> Any:
        return max(self._written[process], self._seen[process])

    async def act(self, caller: Caller, one: Operation, timeout: float) -> Answer:
        if self.chance.random() < 0.3:
            wanted = self.numbers.take()
            await caller.write("update own set n = $2 where k = $1", one.process, wanted, timeout=timeout)
            one.value = self._written[one.process] = wanted
        return await caller.read("select n from own where k = $1", one.process, prefer="replica", timeout=timeout)

    def learn(self, one: Operation, answer: Answer) -> None:
        one.result = answer.rows[0][0][0]
        self._seen[one.process] = max(self._seen[one.process], one.result)
