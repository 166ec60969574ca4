"""Callers in closed loops who do what the workloads say, and whose every operation is recorded."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pointsman
from pointsman import Executed

from tests.chaos.callers import Caller
from tests.chaos.history import History, Kind, Operation, Outcome
from tests.chaos.workloads import Workload

TIMEOUT_S = 10.0
_TICK_S = 0.01
_STALL_S = 0.03
_OUTCOMES = {
    Executed.NO: Outcome.FAILED,
    Executed.ROLLED_BACK: Outcome.FAILED,
    Executed.MAYBE: Outcome.UNKNOWN,
    Executed.YES: Outcome.DONE,
}


class Load:
    """Shares workloads among callers; pauses make the rate."""

    def __init__(
        self,
        history: History,
        callers: Sequence[Caller],
        workloads: Sequence[Workload],
        *,
        processes: int,
        rate: float = 0.0,
        timeout: Callable[[random.Random], float] | float = TIMEOUT_S,
        seed: int = 0,
    ) -> None:
        """rate: operations a second over all processes; 0 is as fast as answers come. workloads: repeated by share."""
        self.history = history
        self.callers = callers
        self.workloads = workloads
        self.processes = processes
        self.running: dict[int, tuple[asyncio.Task[None], Operation]] = {}
        """The operation under way by process."""
        self._rate = rate
        self._timeout = timeout
        self._chance = random.Random(seed)
        self._stopping = False

    def caller(self, process: int) -> Caller:
        """Who speaks for a process."""
        return self.callers[process % len(self.callers)]

    async def run(self, process: int, workload: Workload) -> Operation:
        """One operation, recorded whatever becomes of it."""
        timeout = self._timeout if isinstance(self._timeout, float | int) else self._timeout(self._chance)
        caller = self.caller(process)
        value = workload.value(process)
        now = time.monotonic()
        one = Operation(workload.kind, process, value, now, now + timeout, caller.name, workload.keyed)
        call = asyncio.create_task(self._ask(caller, workload, one, timeout))
        self.running[process] = call, one
        try:
            await asyncio.wait({call})
        except asyncio.CancelledError:
            call.cancel()
            await asyncio.wait({call})
            raise
        finally:
            one.ended = time.monotonic()
            self.running.pop(process, None)
            self.history.operations.append(one)
        return one

    async def _ask(self, caller: Caller, workload: Workload, one: Operation, timeout: float) -> None:
        try:
            answer = await workload.act(caller, one, timeout)
        except pointsman.Error as error:
            one.outcome = _OUTCOMES[error.executed]
            if one.kind.is_read and one.outcome is Outcome.UNKNOWN:
                one.outcome = Outcome.FAILED
            one.reason, one.message = error.reason or error.code.name, str(error)
            one.endpoint = error.metadata.get("endpoint", "")
            with contextlib.suppress(ValueError):
                one.attempts = int(error.metadata.get("attempts", "1"))
            return
        except asyncio.CancelledError:
            one.cancelled, one.reason = True, "CALLER_CANCELLED"
            return
        one.outcome = Outcome.OK
        one.endpoint, one.topology, one.attempts = answer.endpoint, answer.topology, answer.attempts
        one.role = answer.role
        workload.learn(one, answer)

    async def _loop(self, process: int) -> None:
        pause = self.processes / self._rate if self._rate else 0.0
        await asyncio.sleep(pause * self._chance.random())
        while not self._stopping:
            workload = self._chance.choice(self.workloads)
            one = await self.run(process, workload)
            spent = one.took_s
            if one.outcome is not Outcome.OK:
                spent = min(spent, pause / 2)  # whoever is refused at once must not ask a thousand times a second
                await asyncio.sleep(0.01)
            await asyncio.sleep(max(0.0, pause - spent))

    async def _heartbeat(self) -> None:
        last = time.monotonic()
        while True:
            await asyncio.sleep(_TICK_S)
            now = time.monotonic()
            if now - last > _TICK_S + _STALL_S:
                self.history.stalls.append((last, now))
            last = now

    @asynccontextmanager
    async def going(self) -> AsyncIterator[Load]:
        """The load runs while the block does; then all operations end by themselves, and the callers are closed."""
        self._stopping = False
        loops = [asyncio.create_task(self._loop(number)) for number in range(self.processes)]
        heart = asyncio.create_task(self._heartbeat())
        # A full collection over millions of records takes long enough to be taken for lateness of the router.
        gc.collect()
        gc.freeze()
        try:
            yield self
        finally:
            self._stopping = True
            results = await asyncio.gather(*loops, return_exceptions=True)
            heart.cancel()
            for caller in self.callers:
                await caller.close()
            gc.unfreeze()
            for result in results:
                if isinstance(result, BaseException):
                    raise result

    async def first_write_after(self, since: float, timeline: int, within_s: float) -> Operation | None:
        """The first write that a server on a higher timeline acknowledged with a standby's copy; None in time."""
        until = time.monotonic() + within_s
        looked = len(self.history.operations)
        while True:
            found = self.history.operations[looked:]
            looked += len(found)
            for one in found:
                good = one.outcome is Outcome.OK and one.copied and one.ended > since
                if good and one.timeline > timeline:
                    return one
            if time.monotonic() > until:
                return None
            await asyncio.sleep(0.005)

    async def until(self, count: int, kinds: Sequence[Kind], within_s: float) -> None:
        """Until so many operations of some kinds have ended, or time is up."""
        until, looked, seen = time.monotonic() + within_s, 0, 0
        while seen < count and time.monotonic() < until:
            found = self.history.operations[looked:]
            looked += len(found)
            seen += sum(one.kind in kinds for one in found)
            await asyncio.sleep(0.02)
