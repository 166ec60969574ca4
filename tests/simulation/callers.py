"""What all kinds of callers share: tenants, a pause between requests, deadlines, patience, and how a request ends."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from router.model.errors import RouterError
from router.model.policy import PoolPolicy
from router.model.request import Request
from router.model.topology import Tenant
from tests.simulation.judge import Judge
from tests.simulation.router_life import RouterLife
from tests.support.builders import tenant
from tests.support.virtual_time import SeededChance

DEADLINES_S = (0.3, 1.0, 2.0, 4.0, 8.0)
PAUSE_S = 0.4
TENANTS = 2


@dataclass(frozen=True, slots=True)
class End:
    """How a request that was waited for has ended."""

    answer: Any = None
    error: RouterError | None = None


class Callers(ABC):
    """Some clients that ask, until told to stop."""

    CLIENTS: int

    def __init__(
        self, judge: Judge, life: Callable[[], RouterLife | None], chance: SeededChance, *, cancels: bool = False
    ) -> None:
        """life: the router to ask next; cancels: some callers go away before they are answered."""
        self._judge = judge
        self._life = life
        self._chance = chance
        self._cancels = cancels
        self._tenants = [tenant(f"tenant{one}", pool=PoolPolicy(max_size=3)) for one in range(TENANTS)]
        self._loop = asyncio.get_running_loop()
        self._stopping = False
        self._open: dict[asyncio.Task[Any], tuple[str, float]] = {}
        self._clients = [self._loop.create_task(self._client(number)) for number in range(self.CLIENTS)]

    @abstractmethod
    async def _client(self, number: int) -> None:
        """One client's life, until self._stopping."""

    def check(self) -> None:
        """Nobody waits much longer than the deadline."""
        for what, deadline in self._open.values():
            self._judge.ended(what, deadline)

    async def stop(self) -> None:
        """Let what runs end."""
        self._stopping = True
        await asyncio.gather(*self._clients)

    def _tenant(self, number: int) -> Tenant:
        return self._tenants[number % len(self._tenants)]

    def _deadline(self) -> float:
        return self._loop.time() + DEADLINES_S[int(self._chance.draw() * len(DEADLINES_S))]

    async def _next_life(self, pause_s: float = PAUSE_S) -> RouterLife | None:
        """Pause, for so long on average (seconds); the router to ask, if one is there."""
        await asyncio.sleep(2 * pause_s * self._chance.draw())
        life = self._life()
        return None if life is None or life.dead else life

    async def _attempt(self, life: RouterLife, what: str, deadline: float, work: Any) -> End | None:
        """One request to its end; None: to its caller's patience, or the end of the router."""
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
            return End(task.result())
        if isinstance(error, RouterError):
            return End(error=error)
        self._judge.fail(f"{what} ended with {error!r}")
        return None


async def read(life: RouterLife, who: Tenant, asked: Request, *, quick: bool) -> Any:
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
