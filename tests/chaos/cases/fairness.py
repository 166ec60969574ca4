"""Too much work: what a crowd of one tenant costs another, what is served at twice and ten times the capacity, and
thousands of streams that begin at once. One server, no faults; callers are processes of their own (tests/chaos/crowd).
Where there are two cores or more, the server has one to itself and all others have the rest, as with a machine each:
else a server that is busy would be measured by how late callers and router are woken up.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pointsman

from tests.benchmarks.figures import percentile
from tests.benchmarks.processes import with_children
from tests.chaos.cases.run import Found, Run
from tests.chaos.crowd import Count, Crowd, Plan, crowd
from tests.chaos.figures import Figure, none_of
from tests.chaos.stage import TENANT, Stage, staged
from tests.support.backends import counted
from tests.support.dev_cluster import new_cluster
from tests.support.running_router import Config

VICTIM = "globex"
CAP = 10
PHASE_S = 2.0
"""Of each measurement; with the settling before it, twice a round."""
SETTLE_S = 0.6
SLEEPS = "select pg_sleep(0.02)"
BURNS = "select sum(sqrt(g)) from generate_series(1, {rows}) g"
"""Nothing but processor time: about a millisecond for each 10,000 rows."""


@asynccontextmanager
async def one_server(edit: Callable[[Config], None]) -> AsyncIterator[Stage]:
    """A primary alone, and a router that only follows."""
    cluster = await asyncio.to_thread(new_cluster, replicas=0)
    try:
        with _apart(with_children(cluster.primary().pid or 0)):
            async with staged(mode="follow", cluster=cluster, edit=edit) as stage:
                yield stage
    finally:
        await asyncio.to_thread(cluster.stop)


@contextmanager
def _apart(servers: Iterable[int]) -> Iterator[None]:
    """The servers' processes have the first core, we and whom we start have the others."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        yield
        return
    _put(servers, cores[:1])
    _put(_threads(), cores[1:])
    try:
        yield
    finally:
        _put(_threads(), cores)


def _threads() -> list[int]:
    return [int(name) for name in os.listdir("/proc/self/task")]


def _put(tasks: Iterable[int], cores: Collection[int]) -> None:
    for task in tasks:
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(task, cores)


@asynccontextmanager
async def crowds(stage: Stage, plans: Sequence[Plan]) -> AsyncIterator[list[Crowd]]:
    """A process for each plan, which needs no address and token yet."""
    async with contextlib.AsyncExitStack() as stack:
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pointsman-crowd-")))
        address, tokens = stage.router.address, stage.router.tokens
        yield [
            await stack.enter_async_context(
                crowd(replace(plan, address=address, token=tokens[plan.tenant]), logs / f"{number}.log")
            )
            for number, plan in enumerate(plans)
        ]


def plan(tenant: str, sql: str, callers: int = 1, writes: int = 0, per_s: float = 0.0, timeout: float = 10.0) -> Plan:
    """A plan whose address and token are the stage's."""
    return Plan("", tenant, "", sql, callers, writes, per_s, timeout)


def capped(config: Config) -> None:
    """Two tenants with the same share of ten connections."""
    for endpoint in config["clusters"]["main"]["endpoints"].values():
        endpoint["max_connections"] = CAP
    for section in config["tenants"].values():
        section["pool"] = {"max_size": CAP}


# --- noisy neighbours -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Neighbourhood:
    """A calm tenant and a loud one on the same server."""

    what: str
    most: float | None
    """Times its p99 alone that the calm one's may be; None: only stated."""
    calm: Plan
    loud: Plan
    concurrency: str = "fixed"
    settle_s: float = SETTLE_S
    """From the loud one's beginning to the measurement."""


CALM_BURNS = plan(VICTIM, BURNS.format(rows=50_000), 2)
LOUD_BURNS = plan(TENANT, BURNS.format(rows=200_000), 40)
NEIGHBOURHOODS = (
    Neighbourhood("slow statements hold every connection", 1.3, plan(VICTIM, SLEEPS, 4),
                  plan(TENANT, "select pg_sleep(0.05)", 100, writes=2)),
    Neighbourhood("a queue full of short ones", 1.3, plan(VICTIM, SLEEPS, 4),
                  plan(TENANT, "select pg_sleep(0.005)", 200)),
    Neighbourhood("statements that burn processor time, concurrency: adaptive", 3.0, CALM_BURNS, LOUD_BURNS,
                  concurrency="adaptive", settle_s=4.0),
    Neighbourhood("statements that burn processor time, concurrency: fixed", None, CALM_BURNS, LOUD_BURNS,
                  settle_s=4.0),
)


async def noisy(run: Run) -> Found:
    """Each neighbourhood, `size` rounds of the calm one alone, then beside the loud one: its p99 in pairs."""
    figures = []
    for number, one in enumerate(NEIGHBOURHOODS):
        run.tell(one.what, number / len(NEIGHBOURHOODS))
        async with one_server(_limited(one.concurrency)) as stage, crowds(stage, (one.calm, one.loud)) as (calm, loud):
            await calm.go()
            pairs = [await _beside(calm, loud, one.settle_s) for _ in range(run.size)]
        figures.append(_slower(one, pairs, run.notes))
    return Found(figures, run.notes)


def _limited(concurrency: str) -> Callable[[Config], None]:
    def edit(config: Config) -> None:
        capped(config)
        config["clusters"]["main"]["concurrency"] = concurrency

    return edit


async def _beside(calm: Crowd, loud: Crowd, settle_s: float) -> tuple[Count, Count, Count]:
    """What the calm one has alone, what it has beside the loud one, what that one has."""
    await asyncio.sleep(SETTLE_S)
    alone = await calm.measure(PHASE_S)
    await loud.go()
    await asyncio.sleep(settle_s)
    beside, other = await asyncio.gather(calm.measure(PHASE_S), loud.measure(PHASE_S))
    await loud.rest()
    return alone, beside, other


def _slower(one: Neighbourhood, pairs: Sequence[tuple[Count, Count, Count]], notes: list[str]) -> Figure:
    what = f"p99 beside a neighbour, times alone: {one.what}"
    ratios = [_p99(beside) / _p99(alone) for alone, beside, _ in pairs]
    ratio = statistics.median(ratios)
    alone_ms, beside_ms = (statistics.median(_p99(pair[at]) for pair in pairs) * 1e3 for at in (0, 1))
    calls = sum(len(count.served) for pair in pairs for count in pair[:2])
    said = f"{ratio:.2f} (median of {len(pairs)}; {alone_ms:.1f} → {beside_ms:.1f} ms) over {calls:,} requests"
    rates = [statistics.median(pair[at].per_s for pair in pairs) for at in range(3)]
    failed = [count.failed for pair in pairs for count in pair if count.failed]
    notes.append(f"{one.what}: {rates[0]:.0f} → {rates[1]:.0f} requests a second beside {rates[2]:.0f} of the neighbour"
                 + (f"; errors {failed[0]}" if failed else ""))
    if one.most is None:
        return Figure(what, "stated", said, calls, ratio, None, ratios)
    return Figure(what, f"≤ {one.most:g}", said, calls, ratio, ratio <= one.most, ratios)


def _p99(count: Count) -> float:
    return percentile(sorted(count.served), 0.99)


# --- overload -------------------------------------------------------------------------------------------------------


PLACES = 4
OVERLOADS = (
    ("waiting statements", "select pg_sleep(0.05)", 0.5),
    ("processor time", BURNS.format(rows=200_000), 0.5),
)


def _few_places(config: Config) -> None:
    capped(config)
    config["tenants"][TENANT]["limits"] = {"max_in_flight": PLACES}


async def overload(run: Run) -> Found:
    """Callers that come at 2 and 10 times the rate that can be served, `size` rounds beside the capacity of the day."""
    figures = []
    async with one_server(_few_places) as stage:
        for kind, sql, timeout in OVERLOADS:
            for times in (2, 10):
                run.tell(f"{kind}, {times} times the capacity", 0.0)
                rounds = [await _overloaded(stage, sql, times, timeout) for _ in range(run.size)]
                figures += _served(kind, times, rounds)
                failed = [after.failed for _, after in rounds if after.failed]
                if failed:
                    run.notes.append(f"{kind}, {times} times the capacity: {failed[0]}")
    return Found(figures, run.notes)


async def _overloaded(stage: Stage, sql: str, times: float, timeout: float) -> tuple[Count, Count]:
    """What as many callers as there are places are served, then what comes of too many."""
    async with crowds(stage, (plan(TENANT, sql, PLACES, writes=1),)) as (enough,):
        await enough.go()
        await asyncio.sleep(SETTLE_S)
        capacity = await enough.measure(PHASE_S)
    async with crowds(stage, (plan(TENANT, sql, per_s=capacity.per_s * times, timeout=timeout),)) as (many,):
        await many.go()
        await asyncio.sleep(2 * SETTLE_S)
        return capacity, await many.measure(PHASE_S)


def _served(kind: str, times: int, rounds: Sequence[tuple[Count, Count]]) -> list[Figure]:
    parts = [after.per_s / capacity.per_s for capacity, after in rounds]
    part, capacity = statistics.median(parts), statistics.median(one.per_s for one, _ in rounds)
    calls = sum(len(after.served) + len(after.refused) for _, after in rounds)
    refused = sorted(took_s for _, after in rounds for took_s in after.refused)
    what = f"{times} times the capacity ({kind})"
    said = f"{part:.0%} (median of {len(rounds)}) of {capacity:.0f} a second, {calls:,} requests"
    goodput = Figure(f"goodput at {what}", "≥ 90 %", said, calls, part, part >= 0.9, parts)
    if not refused:
        return [goodput]
    p50, worst = (percentile(refused, share) * 1e3 for share in (0.5, 0.99))
    each = [percentile(sorted(after.refused), 0.99) for _, after in rounds if after.refused]
    p99 = statistics.median(each) * 1e3
    said = f"p50 {p50:.1f} ms, p99 {p99:.1f} ms (median of {len(each)}; of all {worst:.1f} ms) over {len(refused):,}"
    return [goodput, Figure(f"time to refuse at {what}", "p99 < 10 ms", said, len(refused), p99 / 1e3, p99 < 10, each)]


# --- thousands of streams -------------------------------------------------------------------------------------------


STREAMS_A_CHANNEL = 100


def _roomy(config: Config) -> None:
    capped(config)
    for section in config["tenants"].values():
        section["limits"] = {"max_queue": 8192}


async def streams(run: Run) -> Found:
    """`size` streams of rows opened at once, by two tenants: all must end well, and the server never sees more
    connections than the cap."""
    async with one_server(_roomy) as stage:
        clients = [stage.router.connect((TENANT, VICTIM)[number % 2])
                   for number in range(max(2, run.size // STREAMS_A_CHANNEL))]
        try:
            await asyncio.gather(*(db.query("select 1") for db in clients))
            async with counted(stage.cluster.primary()) as seen:
                began = time.monotonic()
                ended = await asyncio.gather(*(_stream(clients[number % len(clients)]) for number in range(run.size)))
                took_s = time.monotonic() - began
        finally:
            for db in clients:
                await db.close()
    bad = [one for one in ended if one]
    if bad:
        run.notes.append(f"first failure: {bad[0]}")
    run.notes.append(f"{run.size:,} streams on {len(clients)} connections took {took_s:.1f} s; "
                     f"the server saw at most {max(seen, default=0)} connections, the cap is {CAP}")
    return Found([
        none_of("streams opened at once that failed", len(bad), run.size, "streams"),
        none_of("looks at the server that saw more connections than the cap", sum(one > CAP for one in seen), len(seen),
                "looks"),
    ], run.notes)


async def _stream(db: pointsman.Client) -> str:
    """Why it failed; empty when it did not."""
    try:
        rows = [row async for row in db.stream("select g, repeat('x', 20) from generate_series(1, 50) g", timeout=120)]
    except pointsman.Error as error:
        return f"{error.reason or error.code.name}: {error}"
    return "" if len(rows) == 50 else f"{len(rows)} rows of 50"
