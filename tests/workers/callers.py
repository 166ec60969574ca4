"""A router of two workers in front of a real cluster, and many callers of it: a channel meets one worker only."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pointsman

from router.devcluster import DevCluster
from tests.support.running_router import Config, RunningRouter, running_router


def with_two_workers(config: Config) -> None:
    """An edit of the configuration."""
    config["server"]["workers"] = 2


@asynccontextmanager
async def two_workers(
    cluster: DevCluster, edit: Callable[[Config], object] = lambda _: None, **options: Any
) -> AsyncIterator[RunningRouter]:
    """A router with two workers, as an operator would run it."""

    def both(config: Config) -> None:
        with_two_workers(config)
        edit(config)

    async with running_router(cluster, edit=both, **options) as router:
        yield router


@asynccontextmanager
async def clients(router: RunningRouter, count: int, tenant: str = "acme") -> AsyncIterator[list[pointsman.Client]]:
    """Clients with a channel each, connected."""
    async with contextlib.AsyncExitStack() as stack:
        ones = [await stack.enter_async_context(router.connect(tenant)) for _ in range(count)]
        await asyncio.gather(*(one.query("select 1", timeout=10) for one in ones))
        yield ones


async def workers(router: RunningRouter) -> list[Any]:
    """What the router says about its workers."""
    return list((await router.operate("ListWorkers")).workers)


async def all_serve(router: RunningRouter, seconds: float = 15.0, *, restarts: int = 0) -> list[Any]:
    """Wait until both places are filled again."""
    end = asyncio.get_running_loop().time() + seconds
    while True:
        found = await workers(router)
        serving = [one for one in found if one.state == 2]
        if len(found) == len(serving) == 2 and sum(one.restarts for one in found) >= restarts:
            return found
        assert asyncio.get_running_loop().time() < end, f"{found}\n{router.log.read_text()[-3000:]}"
        await asyncio.sleep(0.05)


class Callers:
    """Reads and un-keyed writes in closed loops, spread over channels; every end is counted."""

    def __init__(self, ones: list[pointsman.Client], rate: float = 25.0, *, loses_transactions: bool = False) -> None:
        """loses_transactions: an open transaction may end with an error, as when its worker is killed."""
        self.ones = ones
        self.loses_transactions = loses_transactions
        self.rate = rate
        self.outcomes: Counter[str] = Counter()
        self.errors: list[BaseException] = []
        self.acknowledged: set[int] = set()
        self.unknown: set[int] = set()
        self._next = 0
        self._stopping = False

    async def setup(self) -> None:
        await self.ones[0].execute("create table if not exists kept (id int primary key)")
        await self.ones[0].execute("truncate kept")

    async def _read(self, db: pointsman.Client) -> None:
        await db.query("select count(*) from accounts", read="any", timeout=10)
        self.outcomes["read"] += 1

    async def _write(self, db: pointsman.Client) -> None:
        self._next += 1
        number = self._next
        try:
            await db.execute("insert into kept values ($1)", number, timeout=10)
        except pointsman.OutcomeUnknown:
            self.unknown.add(number)
            self.outcomes["unknown"] += 1
            return
        self.acknowledged.add(number)
        self.outcomes["write"] += 1

    async def _transact(self, db: pointsman.Client) -> None:
        try:
            async with db.transaction() as tx:
                await tx.query("select 1")
        except pointsman.Error:
            if not self.loses_transactions:
                raise
            self.outcomes["lost transaction"] += 1
        self.outcomes["transaction"] += 1

    async def _loop(self, act: Callable[[pointsman.Client], Awaitable[None]], db: pointsman.Client) -> None:
        while not self._stopping:
            try:
                await act(db)
            except Exception as error:
                self.errors.append(error)
            await asyncio.sleep(1 / self.rate)

    @asynccontextmanager
    async def at_work(self, *, transactions: bool = False) -> AsyncIterator[None]:
        """Load while inside."""
        acts = [self._read, self._write, *([self._transact] if transactions else [])]
        loops = [asyncio.create_task(self._loop(act, db)) for db in self.ones for act in acts]
        await asyncio.sleep(0.5)
        try:
            yield
            await asyncio.sleep(0.3)
        finally:
            self._stopping = True
            await asyncio.gather(*loops)

    def says(self, router: RunningRouter) -> str:
        return f"{dict(self.outcomes)} {self.errors[:3]!r} of {len(self.errors)}\n{router.log.read_text()[-4000:]}"
