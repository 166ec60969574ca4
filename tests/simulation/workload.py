"""Callers: writes with identifiers of their own, batches, transactions, strong and replica reads, with deadlines."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from router.model.errors import RouterError
from router.model.identity import TenantName
from router.model.policy import PoolPolicy
from router.model.request import BatchStep, Method, Options, ReadFrom, Request, Statement, TransactionMode
from router.model.topology import Tenant
from tests.simulation.backend import READ
from tests.simulation.judge import Judge
from tests.simulation.router_life import RouterLife
from tests.support.builders import tenant
from tests.support.virtual_time import SeededChance

DEADLINES_S = (0.3, 1.0, 2.0, 4.0, 8.0)
STRONG, REPLICA = Options(read=ReadFrom.PRIMARY), Options(read=ReadFrom.REPLICA)


def write_of(identifier: str) -> bytes:
    """The statement that writes it."""
    return f"insert into t values ('{identifier}')".encode()


class Workload:
    """Callers of all tenants, until told to stop."""

    def __init__(
        self, judge: Judge, life: Callable[[], RouterLife | None], chance: SeededChance, *, tenants: int = 2,
        clients: int = 6, pause_s: float = 0.4, cancels: bool = False,
    ) -> None:
        self._judge = judge
        self._life = life
        self._chance = chance
        self._pause_s = pause_s
        self._cancels = cancels
        self._tenants = [tenant(f"tenant{one}", pool=PoolPolicy(max_size=3)) for one in range(tenants)]
        self._loop = asyncio.get_running_loop()
        self._stopping = False
        self._count = 0
        self._open: dict[asyncio.Task[Any], tuple[str, float]] = {}
        self.committed_at = 0.0
        """When a write was last answered with OK."""
        self._clients = [self._loop.create_task(self._client(number)) for number in range(clients)]

    @property
    def tenants(self) -> list[TenantName]:
        return [one.name for one in self._tenants]

    def check(self) -> None:
        """Nobody waits much longer than the deadline."""
        for what, deadline in self._open.values():
            self._judge.ended(what, deadline)

    async def stop(self) -> None:
        """Let what runs end."""
        self._stopping = True
        await asyncio.gather(*self._clients)

    async def _client(self, number: int) -> None:
        while not self._stopping:
            await asyncio.sleep(2 * self._pause_s * self._chance.draw())
            life = self._life()
            if life is None or life.dead:
                continue
            draw, who = self._chance.draw(), self._tenants[number % len(self._tenants)]
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

    def _deadline(self) -> float:
        return self._loop.time() + DEADLINES_S[int(self._chance.draw() * len(DEADLINES_S))]

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
        deadline, known = self._deadline(), self._judge.told
        options = STRONG if strong else REPLICA
        asked = Request(Method.QUERY, (BatchStep(Statement(READ)),), deadline, options, size_bytes=50)
        quick = self._chance.draw() < 0.5
        answer = await self._ask(life, "a read", deadline, _read(life, who, asked, quick=quick))
        if answer is not None:
            seen = int(answer.results[0].cells.get_value(0, 0))
            self._judge.read_answered(seen, known, strong=strong)

    async def _ask(
        self, life: RouterLife, what: str, deadline: float, work: Any, writes: tuple[bytes, ...] = ()
    ) -> Any:
        """One request to its end, its caller's patience or the end of the router."""
        life.arrived += 1
        task = life.spawn(work)
        self._open[task] = (what, deadline)
        task.add_done_callback(lambda one: self._open.pop(one, None))
        patience = None
        if self._cancels and self._chance.draw() < 0.1:
            patience = self._chance.draw() * 0.05
        done, _ = await asyncio.wait({task, life.died}, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
        if not done:  # the caller goes away
            self._judge.counts["gone away"] += 1
            task.cancel()
            await asyncio.wait({task, life.died}, return_when=asyncio.FIRST_COMPLETED)
            if task.done() and not task.cancelled():
                task.exception()
            return None
        if life.died in done:
            self._judge.counts["router died"] += 1
            return None
        self._judge.ended(what, deadline)
        error = None if task.cancelled() else task.exception()
        if error is None and not task.cancelled():
            if writes and task.result() is not False:
                self.committed_at = self._loop.time()
                self._judge.answered_write(writes)
            return task.result()
        if not isinstance(error, RouterError):
            self._judge.fail(f"{what} ended with {error!r}")
        elif writes:
            self._judge.refused_write(writes, error)
        else:
            self._judge.counts[f"read {error.reason.value}"] += 1
        return None


async def _read(life: RouterLife, who: Tenant, asked: Request, *, quick: bool) -> Any:
    """A read by one of the two ways that the engine has for it."""
    executor = life.path.executor
    if not quick:
        return await executor.run(who, asked)
    ended: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    read = executor.start(who, asked, 1, lambda one: ended.done() or ended.set_result(one))
    if read is None:
        return await executor.run(who, asked)
    try:
        await ended
    except asyncio.CancelledError:
        if not ended.done() or ended.cancelled():
            read.abandon()
        raise
    if read.error is not None:
        raise read.error
    return read.answer
