"""The waiting room: bounds, fairness, slow start, and no wake-up, place or count that gets lost."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from router.engine.holding import HoldingRoom
from router.model.errors import Code, Executed, RouterError
from router.model.events import HoldEnded, HoldStarted, Phase
from router.model.identity import ClusterName, EndpointName, TenantName
from router.model.policy import HoldPolicy
from router.model.reasons import HoldEndReason, RefuseReason
from router.model.state import ClusterState
from tests.support.builders import Recorder, now
from tests.support.sweeping import Sweep, sweep
from tests.support.virtual_time import VirtualClock, settle, virtual

ACME, GLOBEX = TenantName("acme"), TenantName("globex")


class Room:
    """A room whose cluster is in a phase."""

    def __init__(self, phase: Phase = Phase.HOLDING, **policy: Any) -> None:
        self.events = Recorder()
        self.drained = 0
        self.room = HoldingRoom(self.state(phase), HoldPolicy(**policy), VirtualClock(), self.events, self.on_drained)
        self.order: list[Any] = []

    def on_drained(self) -> None:
        """As the supervisor does: a drain that is over is the steady state."""
        self.drained += 1
        assert self.drained < 100
        self.enter(Phase.STEADY)

    @staticmethod
    def state(phase: Phase) -> ClusterState:
        primary = EndpointName("a") if phase in (Phase.STEADY, Phase.DRAINING) else None
        return ClusterState(ClusterName("main"), phase, primary)

    def enter(self, phase: Phase) -> None:
        self.room.on_state(self.state(phase))

    def wait(self, tenant: TenantName = ACME, *, size: int = 10, timeout: float = 60.0, tag: Any = None) -> Any:
        async def waiting() -> float:
            waited = await self.room.wait(tenant, size, now() + timeout)
            self.order.append(tag)
            return waited

        return asyncio.create_task(waiting())

    def check(self) -> None:
        room = self.room
        assert room.entered == sum(room.ended.values()) + room.held
        assert len(self.events.of(HoldStarted)) == room.entered
        assert len(self.events.of(HoldEnded)) == sum(room.ended.values())
        if not room.held:
            assert room._bytes == 0
            assert not room._queues


async def refusal(work: Any) -> RouterError:
    with pytest.raises(RouterError) as failed:
        await work
    return failed.value


@virtual
async def test_everyone_is_released_by_slow_start_and_told_how_long_it_took() -> None:
    room = Room(release_start=2, release_step_s=0.1)
    waits = [room.wait(tag=number) for number in range(14)]
    await asyncio.sleep(1)
    room.enter(Phase.DRAINING)
    times = sorted(round(one, 3) for one in await asyncio.gather(*waits))
    assert times == [1.0] * 2 + [1.1] * 4 + [1.2] * 8
    assert room.order == list(range(14))
    assert room.drained == 1
    room.check()


@virtual
async def test_tenants_take_turns() -> None:
    room = Room(release_start=1, release_step_s=0.1)
    waits = [room.wait(ACME, tag="acme") for _ in range(6)] + [room.wait(GLOBEX, tag="globex") for _ in range(2)]
    await settle()
    room.enter(Phase.DRAINING)
    await asyncio.gather(*waits)
    assert room.order[:4] == ["acme", "globex", "acme", "globex"]


@virtual
async def test_the_window_and_the_deadline_end_a_wait() -> None:
    room = Room(window_s=2.0)
    before = now()
    error = await refusal(room.wait())
    assert (error.code, error.reason, error.executed) == (Code.UNAVAILABLE, RefuseReason.HOLD_WINDOW, Executed.NO)
    assert now() - before == pytest.approx(2.0)
    before = now()
    await refusal(room.wait(timeout=0.5))
    assert now() - before == pytest.approx(0.5)
    assert (room.room.ended[HoldEndReason.WINDOW], room.room.ended[HoldEndReason.DEADLINE]) == (1, 1)
    room.check()


@virtual
async def test_count_bytes_and_share_are_bounded() -> None:
    room = Room(max_requests=4, max_bytes=100, tenant_share=0.5)
    waits = [room.wait(ACME), room.wait(ACME)]
    await settle()
    assert (await refusal(room.wait(ACME))).reason is RefuseReason.HOLD_SHARE
    assert (await refusal(room.wait(GLOBEX, size=81))).reason is RefuseReason.HOLD_FULL
    waits += [room.wait(GLOBEX), room.wait(GLOBEX)]
    await settle()
    error = await refusal(room.wait(TenantName("third")))
    assert (error.reason, error.numbers["held"], error.numbers["limit"]) == (RefuseReason.HOLD_FULL, 4, 4)
    for one in waits:
        one.cancel()
    await asyncio.wait(waits)
    room.check()
    assert room.room.held == 0
    fresh = [room.wait(ACME), room.wait(GLOBEX)]
    await settle()
    room.enter(Phase.STEADY)
    await asyncio.gather(*fresh)
    room.check()


@virtual
async def test_a_primary_lost_again_keeps_the_rest_until_the_next_one() -> None:
    room = Room(release_start=1, release_step_s=0.1)
    waits = [room.wait(tag=number) for number in range(4)]
    await settle()
    room.enter(Phase.DRAINING)
    await settle()
    room.enter(Phase.HOLDING)
    await asyncio.sleep(1)
    assert room.order == [0]
    assert room.drained == 0
    room.enter(Phase.DRAINING)
    await asyncio.gather(*waits)
    assert room.order == [0, 1, 2, 3]
    assert room.drained == 1
    room.check()


@virtual
async def test_who_enters_while_the_room_empties_goes_behind_and_is_released_too() -> None:
    room = Room(release_start=1, release_step_s=0.1)
    waits = [room.wait(tag="early") for _ in range(3)]
    await settle()
    room.enter(Phase.DRAINING)
    waits.append(room.wait(tag="late"))
    await asyncio.gather(*waits)
    assert room.order == ["early"] * 3 + ["late"]
    room.check()


@virtual
async def test_who_enters_a_serving_room_is_released_without_another_state() -> None:
    room = Room(Phase.STEADY)
    assert await room.wait() < 1
    room.check()


@virtual
async def test_an_empty_room_is_drained_at_once_and_told_once() -> None:
    room = Room()
    room.enter(Phase.DRAINING)
    assert room.drained == 1
    for _ in range(3):
        room.enter(Phase.STEADY)
    assert room.drained == 1


@virtual
async def test_the_last_one_to_give_up_drains_the_room_as_well() -> None:
    room = Room(release_start=1, release_step_s=0.5)
    waits = [room.wait(), room.wait()]
    await settle()
    room.enter(Phase.DRAINING)
    waits[1].cancel()
    await asyncio.sleep(1)
    assert room.drained == 1
    room.check()


@virtual
async def test_closing_sends_everyone_away_and_lets_nobody_in() -> None:
    room = Room()
    waits = [room.wait() for _ in range(3)]
    await settle()
    room.room.close()
    for one in waits:
        assert (await refusal(one)).reason is RefuseReason.DRAINING
    assert (await refusal(room.wait())).reason is RefuseReason.DRAINING
    room.enter(Phase.DRAINING)
    room.check()


@virtual
async def test_a_dry_run_holds_nothing_and_says_so() -> None:
    room = Room(dry_run=True)
    assert (await refusal(room.wait())).reason is RefuseReason.HOLD_OFF
    assert room.room.entered == 0


def test_cancelled_in_any_turn_no_place_is_lost() -> None:
    async def story(one: Sweep) -> None:
        room = Room(release_start=1, release_step_s=0.1, max_requests=3, tenant_share=1.0)
        others = [room.wait(), room.wait()]
        await settle()
        asyncio.get_running_loop().call_later(0.05, room.enter, Phase.DRAINING)
        asyncio.get_running_loop().call_later(0.06, room.enter, Phase.HOLDING)
        asyncio.get_running_loop().call_later(0.3, room.enter, Phase.DRAINING)
        await one.act(room.room.wait(GLOBEX, 10, now() + 60))
        await asyncio.gather(*others)
        await asyncio.sleep(1)
        assert room.room.held == 0
        assert room.drained >= 1
        room.check()

    assert sweep(story) > 3
