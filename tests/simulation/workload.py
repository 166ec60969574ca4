"""Callers: writes with identifiers of their own, batches, transactions, strong and replica reads, with deadlines."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from router.model.errors import RouterError
from router.model.request import BatchStep, Method, Options, ReadFrom, Request, Statement, TransactionMode
from router.model.topology import Tenant
from tests.simulation.backend import READ
from tests.simulation.callers import Callers, read
from tests.simulation.judge import Judge
from tests.simulation.router_life import RouterLife
from tests.support.virtual_time import SeededChance

STRONG, REPLICA = Options(read=ReadFrom.PRIMARY), Options(read=ReadFrom.REPLICA)


def write_of(identifier: str) -> bytes:
    """The statement that writes it."""
    return f"insert into t values ('{identifier}')".encode()


class Workload(Callers):
    """Callers of all tenants, until told to stop."""

    CLIENTS = 6

    def __init__(
        self, judge: Judge, life: Callable[[], RouterLife | None], chance: SeededChance, *, cancels: bool = False
    ) -> None:
        self._count = 0
        self.committed_at = 0.0
        """When a write was last answered with OK."""
        super().__init__(judge, life, chance, cancels=cancels)

    async def _client(self, number: int) -> None:
        while not self._stopping:
            life = await self._next_life()
            if life is None:
                continue
            draw, who = self._chance.draw(), self._tenant(number)
            if draw < 0.4:
                await self._write(life, who, 1)
            elif draw < 0.55:
                await self._write(life, who, 2)
            elif draw < 0.65:
                await self._transaction(life, who)
            elif draw < 0.85:
                await self._read(life, who, strong=True)
            else:
                await self._read(life, who, strong=False)

    def _writes(self, count: int) -> tuple[bytes, ...]:
        self._count += count
        return tuple(write_of(f"w{self._count - one}") for one in range(count))

    async def _write(self, life: RouterLife, who: Tenant, steps: int) -> None:
        writes, deadline = self._writes(steps), self._deadline()
        batch = steps > 1
        asked = Request(
            Method.EXECUTE_BATCH if batch else Method.EXECUTE,
            tuple(BatchStep(Statement(one)) for one in writes),
            deadline,
            mode=TransactionMode() if batch else None,
            size_bytes=100,
        )
        await self._ask(life, "a batch" if batch else "a write", deadline, life.path.executor.run(who, asked), writes)

    async def _transaction(self, life: RouterLife, who: Tenant) -> None:
        writes, deadline = self._writes(2), self._deadline()

        async def run() -> bool:
            session = await life.path.sessions.open(who, TransactionMode(), Options(), deadline, "")
            try:
                for one in writes:
                    await session.run(Statement(one), deadline)
                    await asyncio.sleep(0.01 * self._chance.draw())
                    if self._loop.time() >= deadline:
                        return False
                await session.commit(deadline)
                return True
            finally:
                await session.close()

        await self._ask(life, "a transaction", deadline, run(), writes)

    async def _read(self, life: RouterLife, who: Tenant, *, strong: bool) -> None:
        deadline, known = self._deadline(), self._judge.told_by(life.host)
        options = STRONG if strong else REPLICA
        asked = Request(Method.QUERY, (BatchStep(Statement(READ)),), deadline, options, size_bytes=50)
        quick = self._chance.draw() < 0.5
        answer = await self._ask(life, "a read", deadline, read(life, who, asked, quick=quick))
        if answer is not None:
            seen = int(answer.results[0].cells.get_value(0, 0))
            self._judge.read_answered(seen, known, strong=strong)

    async def _ask(
        self, life: RouterLife, what: str, deadline: float, work: Any, writes: tuple[bytes, ...] = ()
    ) -> Any:
        """One request; its answer, or None."""
        end = await self._attempt(life, what, deadline, work)
        if end is None:
            return None
        if isinstance(end.error, RouterError):
            if writes:
                self._judge.refused_write(writes, end.error)
            else:
                self._judge.counts[f"read {end.error.reason.value}"] += 1
            return None
        if writes and end.answer is not False:
            self.committed_at = self._loop.time()
            self._judge.answered_write(writes, life.host)
        return end.answer
