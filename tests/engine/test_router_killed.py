"""A router killed before and after each act of a move, on virtual time: the next one finishes or undoes it.

The journal and the servers are all that the two routers share. What the first one does after its death has no effect.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from router.engine.supervisor import ClusterSupervisor, SnapshotNumbers
from router.model.errors import RouterError
from router.model.events import JournalWriteFailed, Phase
from router.model.identity import ClusterName, EndpointName
from router.model.journal import ClusterRecord, MoveStage
from router.model.observation import AttemptFailed, Fault, FaultKind, Stage
from router.model.topology import Cluster, Endpoint, FailoverMode
from router.ports import Prober, Surgeon
from tests.engine.supervising import until
from tests.support.builders import Recorder
from tests.support.fake_journal import FakeJournal
from tests.support.fake_servers import FakeServers, FakeSurgeon, Mood
from tests.support.virtual_time import SeededChance, VirtualClock, virtual

N1, N2, N3 = (EndpointName(name) for name in ("n1", "n2", "n3"))
MAIN = ClusterName("main")
CONVERGED_S = 5.0
ACTS = 18
"""A move has fewer acts and pages than this."""


class Killed(AttemptFailed):
    """What a dead router's acts come to."""

    def __init__(self) -> None:
        super().__init__(Fault(FaultKind.CLOSED, Stage.EXECUTE, message="the router is dead"))


class Mortal:
    """The outside world of a router that dies at its n-th act or page, before or after it has taken effect."""

    def __init__(self, servers: FakeServers, journal: FakeJournal, dies_at: int, *, after: bool) -> None:
        self.servers, self.journal = servers, journal
        self.dies_at, self.after = dies_at, after
        self.counting = False
        self.acts: list[str] = []
        self.dead = False

    async def act(self, name: str, work: Any) -> Any:
        if self.counting:
            self.acts.append(name)
        dies = self.counting and len(self.acts) == self.dies_at
        if self.dead or (dies and not self.after):
            self.dead = True
            work.close()
            raise Killed
        done = await work
        if dies:
            self.dead = True
            raise Killed
        return done

    def prober(self, cluster: Cluster, endpoint: Endpoint) -> Prober:
        return self.servers.prober(cluster, endpoint)

    def surgeon(self, cluster: Cluster) -> Surgeon:
        return _MortalSurgeon(self, self.servers.surgeon(cluster))  # type: ignore[return-value]

    def read(self, cluster: ClusterName) -> ClusterRecord | None:
        return self.journal.read(cluster)

    async def write(self, record: ClusterRecord) -> None:
        stage = record.move.stage.value if record.move is not None else "settled"
        await self.act(f"write {stage}", self.journal.write(record))


class _MortalSurgeon:
    def __init__(self, world: Mortal, surgeon: FakeSurgeon) -> None:
        self._world, self._surgeon = world, surgeon

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._surgeon, name)
        if name == "close":
            return method
        return lambda *args, **kwargs: self._world.act(name, method(*args, **kwargs))


@asynccontextmanager
async def running(servers: FakeServers, edges: Any, journal: Any) -> AsyncIterator[tuple[ClusterSupervisor, Recorder]]:
    told = Recorder()
    cluster = servers.cluster(FailoverMode.PROMOTE)
    supervisor = ClusterSupervisor(
        cluster, edges, VirtualClock(), SeededChance(7), told, SnapshotNumbers(), journal=journal
    )
    supervisor.subscribe(lambda state: supervisor.report_drained() if state.phase is Phase.DRAINING else None)
    task = asyncio.create_task(supervisor.run())
    try:
        yield supervisor, told
    finally:
        await supervisor.stop()
        await task


async def begin(world: Mortal, supervisor: ClusterSupervisor, *, planned: bool) -> None:
    """Start a move, and wait until the router has died of it, or is done."""
    await until(supervisor, lambda state: state.phase is Phase.STEADY)
    await asyncio.sleep(1)
    world.counting = True
    if planned:
        with suppress(RouterError, Killed):
            await supervisor.switchover(N2, 10.0)
    else:
        world.servers["n1"].mood = Mood.DEAD
    with suppress(TimeoutError):
        await until(supervisor, lambda state: world.dead or state.primary == N2, within_s=10)


CASES = [
    (planned, returns, after, dies_at)
    for planned, returns in ((False, False), (False, True), (True, True), (True, False))
    for after in (False, True)
    for dies_at in range(1, ACTS + 1)
]


@pytest.mark.parametrize(("planned", "returns", "after", "dies_at"), CASES)
@virtual
async def test_the_next_router_finishes_or_undoes_what_the_last_one_left(
    planned: bool, returns: bool, after: bool, dies_at: int
):
    """returns: the old primary is there (again) when the next router starts."""
    servers, journal = FakeServers.of(3), FakeJournal()
    world = Mortal(servers, journal, dies_at, after=after)
    async with running(servers, world, world) as (first, _):
        await begin(world, first, planned=planned)
        if not world.dead:
            assert len(world.acts) <= dies_at  # this move has fewer acts: nothing was interrupted
            return
        acknowledged = servers["n1"].lsn
        known = journal.read(MAIN)
        assert known is not None
        servers["n1"].mood = Mood.RUNNING if returns else Mood.DEAD
        untouched = servers.streams(servers["n2"])
        async with running(servers, servers, journal) as (second, told):
            took = await until(second, lambda state: state.phase is Phase.STEADY, within_s=20)
            assert took < CONVERGED_S, (took, world.acts)
            state = second.state
            assert state.primary is not None
            assert state.term >= known.term
            chosen = servers.servers[state.primary]
            writable = [one for one in servers.servers.values() if not one.in_recovery and one.mood is Mood.RUNNING]
            assert chosen.timeline == max(one.timeline for one in writable)
            assert sum(one.timeline == chosen.timeline for one in writable) == 1
            assert chosen.lsn >= acknowledged
            assert not chosen.read_only
            if known.move is not None and known.move.stage is MoveStage.PROMOTE and not untouched:
                assert state.primary == known.move.chosen
            # Whoever can follow does so in the end, and the journal says that nothing is under way.
            others = [one for one in servers.servers.values() if one.in_recovery and one.mood is Mood.RUNNING]
            await until(second, lambda _: all(servers.streams(one) for one in others), within_s=12)
            await until(second, lambda _: journal.pages[-1].move is None)
            assert (journal.pages[-1].primary, journal.pages[-1].term) == (state.primary, state.term)
            assert not told.of(JournalWriteFailed)


@virtual
async def test_the_acts_of_a_move_are_all_died_at():
    for planned in (False, True):
        servers, journal = FakeServers.of(3), FakeJournal()
        world = Mortal(servers, journal, 0, after=False)
        async with running(servers, world, world) as (router, _):
            await begin(world, router, planned=planned)
            await asyncio.sleep(1)
        assert {"write fence", "write promote", "write settled", "fence", "promote", "verify_write"} <= set(
            world.acts
        ) | ({"write fence"} if planned else set())
        assert len(world.acts) <= ACTS, world.acts


@virtual
async def test_nothing_is_done_that_could_not_be_written_down():
    servers, journal = FakeServers.of(3), FakeJournal()
    async with running(servers, servers, journal) as (router, _):
        await until(router, lambda state: state.phase is Phase.STEADY)
        await asyncio.sleep(1)
        journal.fails = True
        servers["n1"].mood = Mood.DEAD
        await asyncio.sleep(5)
        assert "no space left" in router.state.detail
        assert not servers.journal, "servers were touched"
        journal.fails = False
        await until(router, lambda state: state.primary == N2, within_s=3)


@virtual
async def test_a_switchovers_first_stage_is_on_disk_before_writes_wait():
    servers, journal = FakeServers.of(3), FakeJournal()
    async with running(servers, servers, journal) as (router, _):
        await until(router, lambda state: state.phase is Phase.STEADY)
        await asyncio.sleep(1)
        written = []
        router.subscribe(lambda state: written.append(journal.pages[-1].move) if state.phase is Phase.HOLDING else None)
        await router.switchover(N2, 5.0)
        assert written[0] is not None
        assert written[0].stage is MoveStage.HOLD
        await asyncio.sleep(1)
        assert (journal.pages[-1].move, journal.pages[-1].primary) == (None, N2)


@pytest.mark.parametrize("trouble", ["disk", "standby"])
@virtual
async def test_a_switchover_that_could_not_begin_leaves_no_stage_on_disk(trouble: str):
    servers, journal = FakeServers.of(3), FakeJournal()
    async with running(servers, servers, journal) as (router, _):
        await until(router, lambda state: state.phase is Phase.STEADY)
        await asyncio.sleep(1)
        journal.fails = trouble == "disk"
        if trouble == "standby":
            servers["n2"].lsn -= 1
            servers["n2"].upstream = None  # it does not catch up
        with pytest.raises(RouterError, match=r"cannot take over|catch up"):
            await router.switchover(N2, 0.5)
        assert router.state.phase is Phase.STEADY
        assert ("hold_writes", N1) not in servers.journal
        assert any(page.move is not None for page in journal.pages) == (trouble == "standby")
        journal.fails = False
        await asyncio.sleep(1)
        assert journal.pages[-1].move is None


@virtual
async def test_a_disk_that_fails_or_hangs_does_not_stop_what_others_have_done():
    for trouble in ("fails", "hangs"):
        servers, journal = FakeServers.of(3), FakeJournal()
        setattr(journal, trouble, True)
        async with running(servers, servers, journal) as (router, told):
            assert await until(router, lambda state: state.primary == N1) < 2.5
            assert told.of(JournalWriteFailed)
            servers.promote("n2")
            servers["n1"].mood = Mood.DEAD
            assert await until(router, lambda state: state.primary == N2) < 3.5


@virtual
async def test_a_lower_timeline_is_never_routed_to_after_a_restart():
    servers, journal = FakeServers.of(3), FakeJournal()
    async with running(servers, servers, journal) as (router, _):
        servers.promote("n2")
        await until(router, lambda state: state.primary == N2)
        await asyncio.sleep(1)
    servers["n2"].mood = Mood.DEAD  # and n1 still says that it is the primary, of timeline 1
    servers["n3"].mood = Mood.DEAD
    async with running(servers, servers, journal) as (router, _):
        for _ in range(100):
            await asyncio.sleep(1)
            assert router.state.primary is None
        servers["n2"].mood = Mood.RUNNING
        await until(router, lambda state: state.primary == N2)


@virtual
async def test_another_cluster_under_the_same_names_is_refused():
    servers, journal = FakeServers.of(3), FakeJournal()
    async with running(servers, servers, journal) as (router, _):
        await until(router, lambda state: state.phase is Phase.STEADY)
        await asyncio.sleep(1)
    for server in servers.servers.values():
        server.system_id += 1
    async with running(servers, servers, journal) as (router, _):
        await asyncio.sleep(70)
        assert router.state.primary is None
        assert "another system" in router.state.detail
