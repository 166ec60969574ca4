"""Running a supervisor over fake servers, for the tests of the engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from router.engine.supervisor import ClusterSupervisor, SnapshotNumbers
from router.model.events import Phase
from router.model.policy import ClusterPolicy
from router.model.state import ClusterState
from router.model.topology import FailoverMode
from router.ports import Journal
from tests.support.builders import Recorder
from tests.support.fake_servers import FakeServers
from tests.support.virtual_time import SeededChance, VirtualClock


@asynccontextmanager
async def supervised(
    servers: FakeServers,
    mode: FailoverMode = FailoverMode.PROMOTE,
    policy: ClusterPolicy | None = None,
    *,
    drains: bool = True,
    steady: bool = True,
    journal: Journal | None = None,
) -> AsyncIterator[tuple[ClusterSupervisor, Recorder]]:
    """A running supervisor whose waiting room is always empty, STEADY unless told otherwise."""
    kept = Recorder()
    cluster = servers.cluster(mode, policy)
    clock, chance, numbers = VirtualClock(), SeededChance(7), SnapshotNumbers()
    supervisor = ClusterSupervisor(cluster, servers, clock, chance, kept, numbers, journal=journal)
    if drains:
        supervisor.subscribe(lambda state: supervisor.report_drained() if state.phase is Phase.DRAINING else None)
    running = asyncio.create_task(supervisor.run())
    try:
        if steady:
            await until(supervisor, lambda state: state.phase is Phase.STEADY)
        yield supervisor, kept
    finally:
        await supervisor.stop()
        await running
        assert servers.open_edges == 0, "connections were left open"


async def until(
    supervisor: ClusterSupervisor, condition: Callable[[ClusterState], bool], within_s: float = 120.0
) -> float:
    """Wait for a state; returns how long it took. TimeoutError with the last state."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    while not condition(supervisor.state):
        if loop.time() - began > within_s:
            raise TimeoutError(f"still {supervisor.state}")
        await asyncio.sleep(0.001)
    return loop.time() - began
