"""Callers that count: `x = x + 1` with an idempotency key, sent again until they know, sometimes twice at once."""

from __future__ import annotations

import asyncio

from router.model.request import BatchStep, Method, Request, Statement, TransactionMode
from router.model.topology import Tenant
from tests.simulation.callers import Callers

ATTEMPTS = 5


class KeyedCallers(Callers):
    """Each sends a key until it is answered, and some then ask what became of it."""

    CLIENTS = 3
    _count = 0

    async def _client(self, number: int) -> None:
        while not self._stopping:
            if await self._next_life() is not None:
                await self._increment(self._tenant(number))

    async def _increment(self, who: Tenant) -> None:
        self._count += 1
        key = f"key{self._count}"
        steps = 1 if self._chance.draw() < 0.7 else 2
        twins = self._chance.draw() < 0.2
        for _ in range(ATTEMPTS):
            sent = [self._loop.create_task(self._send(who, key, steps)) for _ in range(2 if twins else 1)]
            if any(await asyncio.gather(*sent)) or self._stopping:
                break
        if self._chance.draw() < 0.3:
            await self._look_up(who, key)

    async def _send(self, who: Tenant, key: str, steps: int) -> bool:
        """One request; whether it was answered with OK."""
        life = await self._next_life()
        if life is None:
            return False
        batch, deadline, keys = steps > 1, self._deadline(), self._judge.keys
        asked = Request(
            Method.EXECUTE_BATCH if batch else Method.EXECUTE,
            tuple(BatchStep(Statement(_INCREMENT % one), want_rows=True) for one in range(steps)),
            deadline,
            mode=TransactionMode() if batch else None,
            idempotency_key=key,
            size_bytes=100,
        )
        keys.begins(key.encode())
        end = await self._attempt(life, "a keyed write", deadline, life.path.executor.run(who, asked))
        if end is None:
            keys.vanished(key.encode())
        elif end.error is not None:
            keys.refused(key.encode(), end.error)
        else:
            stamp = end.answer.results[0].cells.get_value(0, 0)
            keys.answered(key.encode(), stamp, life.host, replayed=end.answer.receipt.replayed)
        return end is not None and end.error is None

    async def _look_up(self, who: Tenant, key: str) -> None:
        life = await self._next_life()
        if life is None:
            return
        deadline = self._deadline()
        work = life.path.outcomes.of_key(who, key, deadline, "")
        end = await self._attempt(life, "a look at an outcome", deadline, work)
        if end is not None and end.error is None:
            self._judge.keys.looked_up(key.encode(), end.answer.outcome, life.host)


_INCREMENT = b"update counter%d set x = x + 1 returning stamp"
