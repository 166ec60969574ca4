"""The lives of the workers: every place filled, again after a death, and anew one by one when that is asked for.

A place is filled by one worker that serves; while it is replaced, by two. Each life is watched by a task of its own
that ends with it, so nothing polls. All end with stop().
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass

from router.decisions.connection_ledger import WorkerId
from router.decisions.worker_restarts import pause_s, young_deaths
from router.model.errors import Code, RouterError
from router.model.reasons import RefuseReason
from router.model.views import RestartProgress, WorkerState, WorkerView
from router.ports import Clock
from router.telemetry.log_setup import process_log
from router.workers.member import Member
from router.workers.messages import Begin, Sent

SLACK_S = 5.0
"""A worker that has not ended so long after its grace is killed: closing connections takes a moment."""
CONFIRM_S = 1.0
"""How long an operator's answer waits for the workers to have taken the order."""


@dataclass(slots=True)
class _Place:
    number: int
    current: Member | None = None
    restarts: int = 0
    young: int = 0
    replacing: bool = False


class Roster:
    """The workers of a router. Called from the event loop only."""

    def __init__(
        self,
        count: int,
        clock: Clock,
        begin: Callable[[Member], Begin],
        on_message: Callable[[Member, object], None],
        on_question: Callable[[Member, object], Awaitable[object]],
        on_begun: Callable[[Member], None],
        on_gone: Callable[[Member], None],
        make: type[Member] = Member,
    ) -> None:
        """begin: what a worker is told first, as of that moment. on_begun: it has been told. on_gone: its process was
        reaped."""
        self._make = make
        self._places = [_Place(number) for number in range(1, count + 1)]
        self._clock = clock
        self._begin = begin
        self._on_message = on_message
        self._on_question = on_question
        self._on_begun = on_begun
        self._on_gone = on_gone
        self._identities = itertools.count(1)
        self._members: list[Member] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._marks = 0
        self._rolling = False
        self._stopping = False

    # --- reading -----------------------------------------------------------------------------------------------

    @property
    def members(self) -> list[Member]:
        """All living workers, also those that start or drain."""
        return list(self._members)

    @property
    def told(self) -> list[Member]:
        """Those that take part in what is published."""
        return [one for one in self._members if one.told]

    @property
    def serving(self) -> bool:
        """Whether anyone takes callers."""
        return any(one.state in (WorkerState.SERVING, WorkerState.SILENT) for one in self._members)

    def views(self) -> list[WorkerView]:
        """For operators, by place."""
        restarts = {place.number: place.restarts for place in self._places}
        return sorted((one.view(restarts[one.place]) for one in self._members), key=lambda one: (one.number, one.pid))

    # --- telling -----------------------------------------------------------------------------------------------

    def tell(self, *messages: object) -> None:
        """Tell all that take part; who joins later begins with what is in force then."""
        for member in self.told:
            member.tell(*messages)

    async def behind(self, timeout_s: float = CONFIRM_S) -> list[str]:
        """Wait until all have taken what was told; who has not within timeout_s, in words. The dead are excepted."""
        self._marks += 1
        mark, told = self._marks, self.told
        for member in told:
            member.tell(Sent(mark))
        waiting = {asyncio.create_task(one.confirm(mark)): one for one in told}
        if not waiting:
            return []
        try:
            _, late = await asyncio.wait(waiting, timeout=timeout_s)
        finally:
            for task in waiting:
                task.cancel()
        return [f"{waiting[task].words} has not confirmed within {timeout_s:g} s" for task in late]

    # --- life --------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Fill every place. RouterError when one cannot be filled; then all have ended again."""
        starting = [asyncio.create_task(self._fill(place)) for place in self._places]
        try:
            await asyncio.gather(*starting)
        except BaseException:
            for task in starting:
                task.cancel()
            await asyncio.gather(*starting, return_exceptions=True)
            await self.stop(0.0)
            raise

    async def _fill(self, place: _Place) -> Member:
        """A new worker that serves at the place. RouterError UNAVAILABLE when it does not, or the router ends."""
        self._check_going_on()
        member = self._make(
            place.number,
            WorkerId(next(self._identities)),
            self._clock,
            self._on_message,
            self._on_question,
            self._on_begun,
        )
        self._members.append(member)
        self._spawn(self._watch(place, member))
        await member.start(self._begin)
        place.current = member
        process_log().info("worker serves", worker=place.number, pid=member.pid)
        return member

    async def _watch(self, place: _Place, member: Member) -> None:
        """One life, to its end and what follows from it."""
        code = await asyncio.shield(member.gone)
        self._members.remove(member)
        self._on_gone(member)
        process_log().info("worker ended", worker=place.number, pid=member.pid, exit_code=code)
        if place.current is not member or self._stopping:
            return
        place.current = None
        place.restarts += 1
        place.young = young_deaths(place.young, self._clock.now() - member.started)
        if not place.replacing:
            await self._refill(place)

    async def _refill(self, place: _Place) -> None:
        """Fill a place again, as often as it takes."""
        while not self._stopping:
            await self._clock.sleep(pause_s(place.young))
            if self._stopping:
                return
            began = self._clock.now()
            try:
                await self._fill(place)
            except RouterError as error:
                process_log().error("worker did not start", worker=place.number, message=str(error))
                place.young = young_deaths(place.young, self._clock.now() - began)
            else:
                return

    async def replace_all(self, grace_s: float) -> AsyncIterator[RestartProgress]:
        """Replace one after the other: the new one serves before the old one drains.

        RouterError UNAVAILABLE when a new one does not serve: the old one and all after it go on; or when the router
        ends, and all with it. RouterError FAILED_PRECONDITION while another replacement is under way.
        """
        if self._rolling or self._stopping:
            raise RouterError(
                Code.FAILED_PRECONDITION, RefuseReason.BAD_REQUEST, "the workers are being restarted, or end, already"
            )
        self._rolling = True
        began = self._clock.now()
        try:
            for place in self._places:
                self._check_going_on()
                old = place.current
                if old is None:
                    continue  # it has just died: whoever comes is new
                fresh = await self._replacement(place, old)
                # On its own: whoever watches this may go away, and two must not stay at one place.
                ending = asyncio.create_task(old.drain(grace_s, SLACK_S))
                yield RestartProgress(place.number, "serves", f"pid {fresh.pid}", self._clock.now() - began)
                code = await asyncio.shield(ending)
                how = f"pid {old.pid}" if code == 0 else f"pid {old.pid}, exit code {code}"
                yield RestartProgress(place.number, "ended", how, self._clock.now() - began)
            yield RestartProgress(0, "done", f"{len(self._places)} workers", self._clock.now() - began, done=True)
        finally:
            self._rolling = False

    async def _replacement(self, place: _Place, old: Member) -> Member:
        place.replacing = True
        try:
            return await self._fill(place)
        except RouterError as error:
            raise RouterError(
                error.code, error.reason, f"{error}; the restart stops here, {old.words} and those after it go on"
            ) from error
        finally:
            place.replacing = False
            if place.current is None and not self._stopping:
                self._spawn(self._refill(place))  # the old one died in the meantime

    def _check_going_on(self) -> None:
        """RouterError UNAVAILABLE once stop() has begun: it drains whom it finds, and kills who comes later."""
        if self._stopping:
            raise RouterError(Code.UNAVAILABLE, RefuseReason.DRAINING, "the router ends, and starts no worker any more")

    async def stop(self, grace_s: float) -> None:
        """Drain all, for the grace at most, and wait until the last process was reaped."""
        self._stopping = True
        await asyncio.gather(*(self._end(one, grace_s) for one in self._members))
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=0.1)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
            await asyncio.gather(*(one.kill() for one in self._members))

    async def _end(self, member: Member, grace_s: float) -> None:
        if member.state is WorkerState.STARTING:
            await member.kill()
        else:
            await member.drain(grace_s, SLACK_S)

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
