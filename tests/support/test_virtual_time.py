"""The virtual clock itself: jumps exactly, keeps order, and says when nothing can ever happen."""

import asyncio

import pytest

from router.system import SystemChance, SystemClock
from tests.support.virtual_time import Deadlock, FixedChance, VirtualClock, run_virtual, virtual


@virtual
async def test_an_hour_passes_at_once_and_exactly():
    clock = SystemClock()
    before = clock.now()
    await clock.sleep(3600)
    assert clock.now() - before == pytest.approx(3600, abs=1e-6)


@virtual
async def test_timers_fire_in_their_order():
    order: list[str] = []

    async def later(name: str, seconds: float) -> None:
        await asyncio.sleep(seconds)
        order.append(name)

    async with asyncio.TaskGroup() as group:
        group.create_task(later("second", 2))
        group.create_task(later("first", 1))
    assert order == ["first", "second"]


@virtual
async def test_timeouts_follow():
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(100):
            await asyncio.sleep(101)


def test_a_deadlock_is_told_instead_of_hanging():
    async def wait_for_nobody() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(Deadlock):
        run_virtual(wait_for_nobody())


def test_the_result_comes_back():
    async def answer() -> int:
        await VirtualClock().sleep(5)
        return 42

    assert run_virtual(answer()) == 42


def test_fixed_chance_repeats_its_last_draw():
    chance = FixedChance([0.1, 0.9])
    assert [chance.draw() for _ in range(4)] == [0.1, 0.9, 0.9, 0.9]


def test_identifiers_are_22_characters_and_differ():
    chance = SystemChance()
    made = {chance.identifier() for _ in range(1000)}
    assert len(made) == 1000
    assert {len(one) for one in made} == {22}
    assert all(0 <= chance.draw() < 1 for _ in range(100))
