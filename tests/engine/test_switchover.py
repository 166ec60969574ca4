"""Planned switchovers over fake servers, on virtual time."""

import asyncio
import gc
from collections.abc import Sequence
from typing import Any, cast

import pytest

from router.engine import switchover
from router.engine.operator import Operator
from router.engine.supervisor import ClusterSupervisor
from router.engine.supervisors import Supervisors
from router.model.errors import RouterError
from router.model.events import FailoverEnded, FailoverStep, Health, Phase
from router.model.identity import EndpointName
from router.model.journal import MoveStage
from router.model.observation import Fault, FaultKind, Stage
from router.model.reasons import RefuseReason
from router.model.topology import FailoverMode
from router.model.views import Load
from tests.engine.supervising import supervised, until
from tests.support.fake_journal import FakeJournal
from tests.support.fake_servers import FakeServers, Mood
from tests.support.virtual_time import VirtualClock, virtual

N1, N2, N3 = (EndpointName(name) for name in ("n1", "n2", "n3"))


@virtual
async def test_the_primary_moves_to_the_standby_named():
    servers = FakeServers.of(3)
    async with supervised(servers) as (supervisor, kept):
        steps: list[FailoverStep] = []
        phases = []
        supervisor.subscribe(lambda state: phases.append(state.phase))
        assert await supervisor.switchover(N3, 5.0, steps.append) == N3
        assert (supervisor.state.primary, supervisor.state.term, supervisor.state.generation) == (N3, 2, 2)
        named = [(step.step, step.endpoint) for step in steps]
        assert named[:8] == [
            ("set_synchronous", N3),
            ("catch_up", N3),
            ("hold_writes", N1),
            ("catch_up", N3),
            ("fence", N3),
            ("fence", N2),
            ("promote", N3),
            ("commits_wait", N3),
        ]
        assert set(named[8:]) == {("verify_write", N3), ("repoint", N2)}
        assert all(step.ok for step in steps)
        assert Phase.HOLDING in phases
        assert len(kept.of(FailoverStep)) == len(steps)
        [ended] = kept.of(FailoverEnded)
        assert isinstance(ended, FailoverEnded)
        assert ended.took_s < 0.3
        await until(supervisor, lambda state: state.endpoints[N1].health is Health.QUARANTINED)


@virtual
async def test_the_next_primary_is_announced_before_writes_wait():
    servers = FakeServers.of(3)
    async with supervised(servers) as (supervisor, _):
        seen = []
        supervisor.subscribe(lambda state: seen.append((state.phase, state.successor)))
        assert await supervisor.switchover(N3, 5.0) == N3
        held = next(index for index, (phase, _) in enumerate(seen) if phase is Phase.HOLDING)
        assert {successor for _, successor in seen[:held]} == {N3}
        assert seen[-1][1] is None
        servers.failing.add(("set_synchronous", N2))
        servers.follow("n1", "n3")
        await until(supervisor, lambda state: state.phase is Phase.STEADY and state.endpoints[N1].health is Health.UP)
        with pytest.raises(RouterError, match="set_synchronous"):
            await supervisor.switchover(N2, 5.0)
        assert supervisor.state.successor is None


@virtual
async def test_unnamed_it_moves_to_the_most_advanced():
    servers = FakeServers.of(3)
    async with supervised(servers) as (supervisor, _):
        assert await supervisor.switchover(None, 5.0) == N2


@pytest.mark.parametrize("step", ["hold_writes", "fence", "set_synchronous"])
@virtual
async def test_a_failure_before_the_promotion_is_undone(step: str):
    servers = FakeServers.of(3)
    servers.failing |= {(step, name) for name in (N1, N2, N3)}
    async with supervised(servers) as (supervisor, _):
        with pytest.raises(RouterError) as refused:
            await supervisor.switchover(N2, 5.0)
        assert refused.value.reason is RefuseReason.SWITCHOVER_REFUSED
        assert step in refused.value.message or "fenced" in refused.value.message
        await until(supervisor, lambda state: state.phase is Phase.STEADY)
        assert (supervisor.state.primary, supervisor.state.generation) == (N1, 1)
        assert not servers["n1"].read_only
        assert not servers["n2"].fenced
        assert not servers["n3"].fenced


@virtual
async def test_a_standby_that_does_not_catch_up_in_time_is_given_up():
    servers = FakeServers.of(3)
    async with supervised(servers) as (supervisor, _):
        servers.hanging.add(("fence", N2))
        began = asyncio.get_running_loop().time()
        with pytest.raises(RouterError, match=r"longer than 0\.69"):
            await supervisor.switchover(N2, 1.0)
        assert asyncio.get_running_loop().time() - began < 1.1
        await until(supervisor, lambda state: state.primary == N1)


@virtual
async def test_the_old_primary_does_not_write_again_beside_one_that_somebody_else_has_promoted():
    servers = FakeServers.of(3)
    async with supervised(servers) as (supervisor, _):
        call = asyncio.create_task(supervisor.switchover(N3, 5.0))
        await until(supervisor, lambda _: any(step == "hold_writes" for step, _ in servers.journal))
        servers.promote("n2")
        with pytest.raises(RouterError, match="somebody else has promoted it"):
            await call
        await until(supervisor, lambda state: state.primary == N2)
        assert supervisor.state.term == 2
        assert servers["n1"].read_only
        assert not any(step == "allow_writes" for step, _ in servers.journal)


@virtual
async def test_what_is_written_after_the_last_position_is_not_left_behind():
    """By another client, or one that was on its way: the standbys follow once more, and get it."""
    servers, journal = FakeServers.of(3), FakeJournal()
    async with supervised(servers, journal=journal) as (supervisor, kept):
        call = asyncio.create_task(supervisor.switchover(N3, 5.0))
        await until(supervisor, lambda _: servers["n3"].fenced and servers["n2"].fenced)
        servers.write("n1")
        written = servers["n1"].lsn
        assert await call == N3
        assert servers["n3"].lsn >= written
        told = [(one.step, one.endpoint) for one in kept.of(FailoverStep) if isinstance(one, FailoverStep)]
        assert told.count(("hold_writes", N1)) == 2
        assert stages(journal) == [MoveStage.HOLD, MoveStage.PROMOTE, MoveStage.FENCE, MoveStage.PROMOTE]


@virtual
async def test_the_hold_on_writes_is_taken_back_as_soon_as_the_primary_can_be_reached():
    servers = FakeServers.of(3)
    servers.failing |= {("fence", N2), ("allow_writes", N1)}
    async with supervised(servers) as (supervisor, _):
        with pytest.raises(RouterError):
            await supervisor.switchover(N2, 5.0)
        await asyncio.sleep(5)
        assert (supervisor.state.primary, servers["n1"].read_only) == (None, True)
        assert "read_only" in supervisor.state.detail
        servers.failing.clear()
        assert await until(supervisor, lambda state: state.primary == N1) < 1.2


@virtual
async def test_a_failure_after_the_promotion_follows_the_facts():
    servers = FakeServers.of(3)
    servers.failing.add(("verify_write", N2))
    async with supervised(servers) as (supervisor, _):
        with pytest.raises(RouterError):
            await supervisor.switchover(N2, 5.0)
        await until(supervisor, lambda state: state.primary == N2)


@virtual
async def test_a_caller_that_goes_away_does_not_stop_it_half_way():
    servers = FakeServers.of(3)
    async with supervised(servers) as (supervisor, _):
        call = asyncio.create_task(supervisor.switchover(N2, 5.0))
        await until(supervisor, lambda state: state.phase is Phase.HOLDING)
        call.cancel()
        await until(supervisor, lambda state: state.primary == N2)


@virtual
async def test_a_primary_that_dies_during_a_switchover_is_replaced_after_it():
    servers = FakeServers.of(3)
    servers.hanging.add(("hold_writes", N1))
    async with supervised(servers) as (supervisor, _):
        call = asyncio.create_task(supervisor.switchover(N2, 2.0))
        await asyncio.sleep(0.5)
        servers["n1"].mood = Mood.DEAD
        with pytest.raises(RouterError):
            await call
        await until(supervisor, lambda state: state.primary in (N2, N3))
        assert supervisor.state.term == 2


@virtual
async def test_it_is_refused_in_words():
    servers = FakeServers.of(3)
    async with supervised(servers) as (supervisor, _):
        servers["n3"].mood = Mood.DEAD
        await until(supervisor, lambda state: state.endpoints[N3].health is Health.DOWN)
        for to, words in ((N1, "already"), (N3, "cannot take over"), (N2, "of 2 standbys only n2 .* not n3; 2 are")):
            with pytest.raises(RouterError, match=words) as refused:
                await supervisor.switchover(to, 5.0)
            assert refused.value.reason is RefuseReason.SWITCHOVER_REFUSED
        with pytest.raises(RouterError, match="no endpoint n9") as unknown:
            await supervisor.switchover(EndpointName("n9"), 5.0)
        assert unknown.value.reason is RefuseReason.UNKNOWN_NAME
        assert servers.journal == []


@virtual
async def test_one_at_a_time():
    servers = FakeServers.of(3)
    async with supervised(servers) as (supervisor, _):
        first = asyncio.create_task(supervisor.switchover(N2, 5.0))
        await asyncio.sleep(0)
        with pytest.raises(RouterError, match="about to move its primary to n2 already"):
            await supervisor.switchover(N3, 5.0)
        await until(supervisor, lambda state: state.phase is Phase.HOLDING)
        with pytest.raises(RouterError, match="not steady"):
            await supervisor.switchover(N3, 5.0)
        assert await first == N2


@virtual
async def test_one_that_could_not_be_prepared_is_in_nobodys_way():
    servers = FakeServers.of(3)
    servers.failing.add(("set_synchronous", N2))
    async with supervised(servers) as (supervisor, _):
        with pytest.raises(RouterError, match="set_synchronous"):
            await supervisor.switchover(N2, 5.0)
        assert await supervisor.switchover(N3, 5.0) == N3


def stages(journal: FakeJournal) -> list[MoveStage]:
    return [one.move.stage for one in journal.pages if one.move is not None]


@pytest.mark.parametrize("later_s", [0.0, 0.1, 0.29, 0.31, 0.35])
@virtual
async def test_a_second_order_does_not_take_back_the_first_ones_stage(later_s: float):
    servers, journal = FakeServers.of(3), FakeJournal()
    servers.hanging.add(("promote", N2))
    async with supervised(servers, journal=journal) as (supervisor, _):
        first = asyncio.create_task(supervisor.switchover(N2, 50.0))
        await asyncio.sleep(later_s)
        with pytest.raises(RouterError) as refused:
            await supervisor.switchover(N3, 50.0)
        assert refused.value.reason is RefuseReason.SWITCHOVER_REFUSED
        await asyncio.sleep(1)
        assert stages(journal) == [MoveStage.HOLD, MoveStage.PROMOTE]
        with pytest.raises(RouterError):
            await first
        assert MoveStage.HOLD not in stages(journal)[1:]


@virtual
async def test_a_promotion_that_begins_meanwhile_keeps_its_stage(monkeypatch: pytest.MonkeyPatch):
    servers, journal = FakeServers.of(3), FakeJournal()
    servers.hanging |= {("promote", N2), ("promote", N3)}
    monkeypatch.setattr(switchover, "LANES_S", 0.6)
    async with supervised(servers, journal=journal) as (supervisor, _):
        call = asyncio.create_task(supervisor.switchover(N2, 50.0))
        await asyncio.sleep(0.01)
        servers["n1"].mood = Mood.DEAD
        supervisor.report_fault(Fault(FaultKind.CONNECTION_LOST, Stage.EXECUTE, endpoint=N1))
        await until(supervisor, lambda _: any(step == "promote" for step, _ in servers.journal), 0.59)
        with pytest.raises(RouterError):
            await call
        assert stages(journal) == [MoveStage.FENCE, MoveStage.PROMOTE]


@virtual
async def test_another_primary_is_accepted_while_a_switchover_is_prepared():
    servers, journal = FakeServers.of(3), FakeJournal()
    async with supervised(servers, journal=journal) as (supervisor, _):
        call = asyncio.create_task(supervisor.switchover(N3, 50.0))
        await asyncio.sleep(0.01)
        servers.promote("n2")
        servers["n1"].mood = Mood.DEAD
        supervisor.report_fault(Fault(FaultKind.CONNECTION_LOST, Stage.EXECUTE, endpoint=N1))
        assert await until(supervisor, lambda state: state.primary == N2) < 0.2
        assert not call.done()
        with pytest.raises(RouterError):
            await call


@virtual
async def test_follow_mode_leaves_it_to_others():
    async with supervised(FakeServers.of(3), FailoverMode.FOLLOW) as (supervisor, _):
        with pytest.raises(RouterError, match="follow mode"):
            await supervisor.switchover(N2, 5.0)


@virtual
async def test_stopping_during_a_switchover_undoes_it():
    servers = FakeServers.of(3)
    servers.hanging.add(("fence", N2))
    async with supervised(servers) as (supervisor, _):
        call = asyncio.create_task(supervisor.switchover(N2, 50.0))
        await asyncio.sleep(0.5)
        assert servers["n1"].read_only
        began = asyncio.get_running_loop().time()
        await supervisor.stop()
        assert asyncio.get_running_loop().time() - began < 4.5
        with pytest.raises(asyncio.CancelledError):
            await call
        assert not servers["n1"].read_only
        assert not servers["n2"].fenced


@virtual
async def test_stopping_lets_a_switchover_that_is_nearly_done_end():
    servers = FakeServers.of(3)
    async with supervised(servers) as (supervisor, _):
        call = asyncio.create_task(supervisor.switchover(N2, 50.0))
        await until(supervisor, lambda state: state.phase is Phase.HOLDING)
        await supervisor.stop()
        assert await call == N2
        assert supervisor.state.primary == N2


# --- as operators order it ----------------------------------------------------------------------------------------


def operator(supervisor: ClusterSupervisor) -> Operator:
    of_one = cast("Supervisors", {supervisor.cluster.name: supervisor})
    return Operator(of_one, cast("Any", Load), VirtualClock())


async def ordered(supervisor: ClusterSupervisor, told: list[str]) -> None:
    async for progress in operator(supervisor).switchover(supervisor.cluster.name, N3, 5.0):
        told.append("done" if progress.done else progress.step)


@virtual
async def test_an_order_tells_each_step_and_at_last_the_pause():
    async with supervised(FakeServers.of(3)) as (supervisor, _):
        told: list[str] = []
        await ordered(supervisor, told)
        assert (told[0], told[-1], supervisor.state.primary) == ("set_synchronous", "done", N3)


@virtual
@pytest.mark.parametrize("turns", [0, 1, 2, 3, 4, 6, 8, 12])
@pytest.mark.parametrize("mode", [FailoverMode.FOLLOW, FailoverMode.PROMOTE])
async def test_an_order_whose_caller_goes_away_leaves_no_word_of_a_mistake(mode: FailoverMode, turns: int):
    """In follow mode it is refused; else it is carried out all the same."""
    complaints: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    async with supervised(FakeServers.of(3), mode) as (supervisor, _):
        ordering = asyncio.create_task(ordered(supervisor, []))
        for _ in range(turns):
            await asyncio.sleep(0)
        ordering.cancel()
        await asyncio.wait({ordering})
        if mode is FailoverMode.PROMOTE and turns:
            await until(supervisor, lambda state: state.primary == N3)
    del ordering
    gc.collect()
    assert _words(complaints) == []


def _words(complaints: Sequence[Any]) -> list[str]:
    return [str(context.get("message")) for context in complaints]
