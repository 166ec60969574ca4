"""Callers under load while something happens to the servers, and what they saw of it."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Awaitable, Callable

import pointsman
import psycopg

from router.devcluster import DevCluster
from tests.support.running_router import RunningRouter


class Load:
    """Callers in a closed loop at a total rate; every answer is counted, the longest gap between writes measured."""

    def __init__(self, db: pointsman.Client) -> None:
        self.db = db
        self.outcomes: Counter[str] = Counter()
        self.acknowledged: list[int] = []
        self.unknown: list[int] = []
        self.write_times: list[float] = []
        self.errors: list[BaseException] = []
        self._next = 0
        self._stopping = False

    async def setup(self) -> None:
        await self.db.execute("create table if not exists ledger (id int primary key, kind text)")
        await self.db.execute("truncate ledger")

    async def read(self) -> None:
        await self.db.query("select count(*) from accounts", read="any", timeout=10)
        self.outcomes["read"] += 1

    async def strong_read(self) -> None:
        await self.db.query("select max(id) from ledger", timeout=10)
        self.outcomes["strong read"] += 1

    async def batch(self) -> None:
        number = self._take()
        sql = "insert into ledger values ($1, 'batch')"
        try:
            await self.db.batch([(sql, [number]), "select 1"], timeout=10)
        except pointsman.OutcomeUnknown:
            self.unknown.append(number)
            self.outcomes["batch unknown"] += 1
            return
        self._acknowledge(number, "batch")

    async def write(self) -> None:
        number = self._take()
        try:
            await self.db.execute("insert into ledger values ($1, 'write')", number, timeout=10)
        except pointsman.OutcomeUnknown:
            self.unknown.append(number)
            self.outcomes["write unknown"] += 1
            return
        self._acknowledge(number, "write")

    def _take(self) -> int:
        self._next += 1
        return self._next

    def _acknowledge(self, number: int, kind: str) -> None:
        self.acknowledged.append(number)
        self.write_times.append(time.monotonic())
        self.outcomes[kind] += 1

    async def _loop(self, act: Callable[[], Awaitable[None]], rate: float) -> None:
        while not self._stopping:
            began = time.monotonic()
            try:
                await act()
            except Exception as error:
                self.errors.append(error)
            await asyncio.sleep(max(0.0, 1 / rate - (time.monotonic() - began)))

    async def run(self, seconds: float, event: Callable[[], Awaitable[None]], before: float = 1.0) -> None:
        """200 requests a second for a while, with an event in between."""
        acts = [self.read] * 6 + [self.strong_read] * 2 + [self.batch] * 8 + [self.write] * 4
        callers = [asyncio.create_task(self._loop(act, 10)) for act in acts]
        await asyncio.sleep(before)
        await event()
        await asyncio.sleep(seconds - before)
        self._stopping = True
        await asyncio.gather(*callers)

    def longest_write_gap(self) -> float:
        times = sorted(self.write_times)
        return max(after - before for before, after in itertools.pairwise(times))

    def says(self) -> str:
        """What the callers saw, on one line."""
        errors = f" errors={self.errors[:3]!r} of {len(self.errors)}" if self.errors else ""
        return f"{dict(self.outcomes)}{errors}"


def ledger(cluster: DevCluster) -> set[int]:
    server = cluster.primary()
    with psycopg.connect(cluster.tenant_dsn("acme", server)) as connection:
        return {row[0] for row in connection.execute("select id from ledger")}


def says(load: Load, router: RunningRouter) -> str:
    return f"{dict(load.outcomes)} errors={load.errors[:3]!r} of {len(load.errors)}\n{router.log.read_text()[-3000:]}"
