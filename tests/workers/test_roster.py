"""The lives of workers, with members that die when a test says so, on virtual time where pauses matter."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import pytest

from router.model.errors import RouterError
from router.model.views import Load, RestartProgress, WorkerState, WorkerView
from router.system import SystemClock
from router.workers.messages import Look, Sent
from router.workers.roster import Roster


class FakeMember:
    """A worker without a process."""

    made: list[FakeMember] = []  # noqa: RUF012 (a fixture empties it)
    fails = 0
    """The next so many starts fail."""

    def __init__(self, place: int, identity: int, clock: SystemClock, *told: Any) -> None:
        self.place, self.identity, self.pid = place, identity, 1000 + identity
        self.state = WorkerState.STARTING
        self.started = clock.now()
        self.gone: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.look = Look(Load(), 0)
        self.applied = 0
        self.obeys = True
        self.takes_s = 0.0
        """To drain."""
        self.said: list[object] = []
        self.told = False
        self.on_begun = told[-1]
        self.graces: list[float] = []
        FakeMember.made.append(self)

    @property
    def words(self) -> str:
        return f"worker {self.place} (pid {self.pid})"

    def view(self, restarts: int) -> WorkerView:
        return WorkerView(self.place, self.pid, self.state, restarts=restarts)

    async def start(self, begin: Callable[[Any], object]) -> None:
        await asyncio.sleep(0)
        if FakeMember.fails:
            FakeMember.fails -= 1
            self.die(1)
            raise RouterError(*_error("it did not start"))
        begin(self)
        self.told = True
        self.on_begun(self)
        self.state = WorkerState.SERVING

    def die(self, code: int = -9) -> None:
        if not self.gone.done():
            self.told = False
            self.gone.set_result(code)

    async def drain(self, grace_s: float, slack_s: float) -> int:
        self.state = WorkerState.DRAINING
        self.graces.append(grace_s)
        await asyncio.sleep(self.takes_s)
        self.die(0)
        return await asyncio.shield(self.gone)

    async def kill(self) -> int:
        self.die()
        return await asyncio.shield(self.gone)

    def tell(self, *messages: object) -> None:
        self.said += messages
        for message in messages:
            if isinstance(message, Sent) and self.obeys:
                self.applied = message.number

    async def confirm(self, number: int) -> None:
        if self.applied < number:
            await asyncio.shield(self.gone)


def _error(words: str) -> Any:
    from router.model.errors import Code
    from router.model.reasons import RefuseReason

    return Code.UNAVAILABLE, RefuseReason.INTERNAL, words


class World:
    """A roster of fakes, and what it told of them."""

    def __init__(self, count: int = 2) -> None:
        FakeMember.made, FakeMember.fails = [], 0
        self.gone: list[int] = []
        self.begun: list[int] = []
        self.roster = Roster(
            count,
            SystemClock(),
            lambda member: object(),  # type: ignore[arg-type,return-value]
            lambda *_: None,
            lambda *_: asyncio.sleep(0),
            lambda member: self.begun.append(member.pid),
            lambda member: self.gone.append(member.pid),
            FakeMember,  # type: ignore[arg-type]
        )

    @property
    def made(self) -> list[FakeMember]:
        return FakeMember.made

    async def settle(self, seconds: float = 0.02) -> None:
        await asyncio.sleep(seconds)

    def serving(self) -> list[tuple[int, int]]:
        return [(one.number, one.pid) for one in self.roster.views() if one.state is WorkerState.SERVING]


async def test_every_place_is_filled_and_all_end() -> None:
    world = World(3)
    await world.roster.start()
    assert [number for number, _ in world.serving()] == [1, 2, 3]
    await world.roster.stop(1.5)
    assert not world.roster.members
    assert [one.graces for one in world.made] == [[1.5]] * 3
    assert len(world.gone) == 3, "nobody is filled in while the router ends"
    assert len(world.made) == 3


async def test_a_start_that_fails_ends_those_that_had_started() -> None:
    world = World(3)
    FakeMember.fails = 1
    with pytest.raises(RouterError, match="did not start"):
        await world.roster.start()
    assert not world.roster.members
    assert all(one.gone.done() for one in world.made)


async def test_a_dead_worker_is_replaced_at_its_place_after_its_end_was_told() -> None:
    world = World()
    await world.roster.start()
    victim = world.made[0]
    victim.die()
    await world.settle()
    assert world.gone == [victim.pid]
    assert [number for number, _ in world.serving()] == [1, 2]
    assert [one.restarts for one in world.roster.views()] == [1, 0]
    await world.roster.stop(0)


async def test_who_dies_again_and_again_is_started_less_and_less_often() -> None:
    world = World(1)
    await world.roster.start()
    FakeMember.fails = 3
    world.made[0].die()
    await world.settle(0.05)
    assert len(world.made) == 2, "at once after the first death, then with a pause"
    assert world.roster.serving is False
    end = asyncio.get_running_loop().time() + 5
    while not world.serving():
        assert asyncio.get_running_loop().time() < end
        await world.settle()
    assert len(world.made) == 5
    await world.roster.stop(0)


async def test_replacing_all_starts_the_new_one_before_the_old_one_drains() -> None:
    world = World()
    await world.roster.start()
    old = world.made[:]
    steps = []
    async with aclosing(world.roster.replace_all(2.0)) as replacing:  # type: ignore[type-var]
        async for step in replacing:
            steps.append((step.worker, step.step))
            assert len(world.serving()) == 2 or step.step == "serves"
    assert steps == [(1, "serves"), (1, "ended"), (2, "serves"), (2, "ended"), (0, "done")]
    assert [one.graces for one in old] == [[2.0], [2.0]]
    assert not {one.pid for one in old} & {pid for _, pid in world.serving()}
    assert [one.restarts for one in world.roster.views()] == [0, 0]
    await world.roster.stop(0)


async def test_a_replacement_that_does_not_start_leaves_the_old_ones_at_work() -> None:
    world = World()
    await world.roster.start()
    before = world.serving()
    FakeMember.fails = 1
    with pytest.raises(RouterError, match=r"the restart stops here, worker 1 \(pid 1001\) and those after it go on"):
        async for _ in world.roster.replace_all(1.0):
            pass
    assert world.serving() == before
    async for step in world.roster.replace_all(1.0):
        last = step
    assert last.done, "and it can be tried again"
    await world.roster.stop(0)


async def test_an_old_worker_that_dies_while_its_replacement_fails_is_filled_in() -> None:
    world = World()
    await world.roster.start()
    FakeMember.fails = 1
    replacing = world.roster.replace_all(1.0)
    task = asyncio.create_task(anext(replacing))
    world.made[0].die()
    with pytest.raises(RouterError):
        await task
    await world.settle(0.3)
    assert [number for number, _ in world.serving()] == [1, 2]
    await world.roster.stop(0)


async def test_who_watches_a_restart_may_go_away() -> None:
    world = World()
    await world.roster.start()
    replacing = world.roster.replace_all(1.0)
    await anext(replacing)
    await replacing.aclose()  # type: ignore[attr-defined]
    await world.settle()
    assert [number for number, _ in world.serving()] == [1, 2], "not two at one place"
    await world.roster.stop(0)


async def test_only_one_restart_at_a_time() -> None:
    world = World()
    await world.roster.start()
    first = world.roster.replace_all(1.0)
    await anext(first)
    with pytest.raises(RouterError, match="already"):
        await anext(world.roster.replace_all(1.0))
    await first.aclose()  # type: ignore[attr-defined]
    await world.roster.stop(0)


async def test_whoever_has_not_taken_an_order_is_named_and_the_dead_are_excepted() -> None:
    world = World(3)
    await world.roster.start()
    world.made[1].obeys = False
    assert await world.roster.behind(0.05) == ["worker 2 (pid 1002) has not confirmed within 0.05 s"]
    waiting = asyncio.create_task(world.roster.behind(2.0))
    await world.settle()
    world.made[1].die()
    assert await waiting == []
    await world.roster.stop(0)


async def test_a_router_that_ends_stops_a_restart_under_way_and_starts_nobody() -> None:
    """New workers were started, and killed while they served."""
    world = World(3)
    await world.roster.start()
    replacing = world.roster.replace_all(1.0)
    await anext(replacing)
    task = asyncio.create_task(_all(replacing))
    await asyncio.gather(world.roster.stop(1.5), asyncio.wait({task}))
    with pytest.raises(RouterError, match="the router ends"):
        await task
    assert len(world.made) == 4, "only the one that served already"
    assert all(one.gone.result() == 0 for one in world.made)
    assert not world.roster.members


async def test_a_place_that_is_to_be_filled_again_stays_empty_once_the_router_ends() -> None:
    world = World(2)
    await world.roster.start()
    victim = world.made[0]
    world.made[1].takes_s = 0.5
    FakeMember.fails = 1
    victim.die()
    await world.settle(0.05)  # one start has failed, the next one is after a pause
    assert len(world.made) == 3
    await world.roster.stop(1.5)
    assert len(world.made) == 3
    assert not world.roster.members


async def _all(steps: AsyncIterator[RestartProgress]) -> None:
    async for _ in steps:
        pass
