"""The supervisor with real probers and surgeons on real servers: who is primary, and how soon it is known."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import psycopg
import pytest

from router.devcluster import DevCluster
from router.engine.supervisor import ClusterSupervisor, SnapshotNumbers
from router.model.events import FailoverStep, Health, Phase, PhaseChanged
from router.model.policy import ClusterPolicy, FailoverPolicy
from router.model.reasons import PhaseReason
from router.model.state import ClusterState
from router.model.topology import FailoverMode
from router.postgres.edges import PostgresEdges
from router.system import SystemChance, SystemClock
from tests.postgres.control_cluster import configured
from tests.support.builders import Recorder
from tests.support.dev_cluster import MakeCluster, make_cluster, on_every_major

__all__ = ["make_cluster"]
pytestmark = [pytest.mark.pg, pytest.mark.chaos]


@asynccontextmanager
async def supervised(
    dev: DevCluster, mode: FailoverMode = FailoverMode.PROMOTE, *, edges: PostgresEdges | None = None
) -> AsyncIterator[tuple[ClusterSupervisor, Recorder]]:
    cluster = replace(configured(dev), mode=mode, policy=ClusterPolicy(failover=FailoverPolicy(min_gap_s=0)))
    told = Recorder()
    edges = edges or PostgresEdges("tests")
    supervisor = ClusterSupervisor(cluster, edges, SystemClock(), SystemChance(), told, SnapshotNumbers())
    supervisor.subscribe(lambda state: supervisor.report_drained() if state.phase is Phase.DRAINING else None)
    running = asyncio.create_task(supervisor.run())
    try:
        await until(supervisor, lambda state: all(e.health is Health.UP for e in state.endpoints.values()))
        yield supervisor, told
    finally:
        await supervisor.stop()
        await running


async def until(
    supervisor: ClusterSupervisor, condition: Callable[[ClusterState], bool], within_s: float = 15.0
) -> float:
    loop = asyncio.get_running_loop()
    began = loop.time()
    while not (supervisor.state.phase is Phase.STEADY and condition(supervisor.state)):
        assert loop.time() - began < within_s, f"still {supervisor.state}"
        await asyncio.sleep(0.002)
    return loop.time() - began


def insert(dev: DevCluster, name: str, number: int) -> None:
    """One acknowledged row, by the tenant."""
    with psycopg.connect(dev.tenant_dsn("acme", dev.servers[name]), autocommit=True) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS ledger (id integer)")
        connection.execute("INSERT INTO ledger VALUES (%s)", [number])


def rows(dev: DevCluster, name: str) -> list[int]:
    with psycopg.connect(dev.tenant_dsn("acme", dev.servers[name])) as connection:
        return [row[0] for row in connection.execute("SELECT id FROM ledger ORDER BY id")]


@on_every_major
async def test_killed_twice_promoted_twice_and_nothing_acknowledged_is_lost(make_cluster: MakeCluster, pg_major: int):
    dev = make_cluster(major=pg_major)
    async with supervised(dev) as (supervisor, told):
        for number in (1, 2):
            former = supervisor.state.primary
            assert former is not None
            await asyncio.to_thread(insert, dev, former, number)
            await asyncio.to_thread(dev.servers[former].kill)
            assert await until(supervisor, lambda state, old=former: state.primary != old) < 3.0
            present = supervisor.state.primary
            assert present is not None
            assert supervisor.state.term == number + 1
            assert await asyncio.to_thread(rows, dev, present) == list(range(1, number + 1))
            await asyncio.to_thread(dev.rejoin, former)
            await until(supervisor, lambda state, old=former: state.endpoints[old].health is Health.UP)
        assert all(step.ok for step in told.of(FailoverStep) if isinstance(step, FailoverStep))


async def test_a_frozen_primary_is_left_behind_and_a_thawed_one_stays_out(make_cluster: MakeCluster):
    dev = make_cluster()
    async with supervised(dev) as (supervisor, _):
        await asyncio.to_thread(insert, dev, "n1", 1)
        dev.servers["n1"].freeze()
        assert await until(supervisor, lambda state: state.primary != "n1") < 6.0
        dev.servers["n1"].thaw()
        await until(supervisor, lambda state: state.endpoints["n1"].health is Health.QUARANTINED)  # type: ignore[index]
        await asyncio.sleep(1)
        present = supervisor.state.primary
        assert present in ("n2", "n3")
        assert await asyncio.to_thread(rows, dev, present) == [1]


async def test_a_crash_of_one_backend_moves_nothing(make_cluster: MakeCluster):
    dev = make_cluster()
    async with supervised(dev) as (supervisor, told):
        await asyncio.to_thread(dev.servers["n1"].crash_one_backend)
        await asyncio.sleep(1.5)
        await until(supervisor, lambda state: state.primary == "n1")
        assert (supervisor.state.term, supervisor.state.generation) == (1, 1)
        assert not told.of(FailoverStep)


async def test_somebody_else_promotes_and_the_router_follows(make_cluster: MakeCluster):
    dev = make_cluster()
    async with supervised(dev, FailoverMode.FOLLOW) as (supervisor, told):
        dev.servers["n1"].kill()
        await asyncio.to_thread(dev.fail_over, "n3")
        assert await until(supervisor, lambda state: state.primary == "n3") < 1.0
        reasons = [e.reason for e in told.of(PhaseChanged) if isinstance(e, PhaseChanged)]
        assert PhaseReason.PROMOTION_STARTED not in reasons
        assert not told.of(FailoverStep)


@on_every_major
async def test_a_planned_switchover_there_and_back(make_cluster: MakeCluster, pg_major: int):
    dev = make_cluster(major=pg_major)
    async with supervised(dev) as (supervisor, _):
        for number, to in ((1, "n2"), (2, "n1")):
            former = supervisor.state.primary
            assert former is not None
            await asyncio.to_thread(insert, dev, former, number)
            endpoint = next(e.name for e in supervisor.cluster.endpoints if e.name == to)
            assert await supervisor.switchover(endpoint, 10.0) == to
            assert supervisor.state.primary == to
            assert await asyncio.to_thread(rows, dev, to) == list(range(1, number + 1))
            await asyncio.to_thread(insert, dev, to, 100 + number)
            await asyncio.to_thread(dev.rejoin, former)
            await until(supervisor, lambda state, old=former: state.endpoints[old].health is Health.UP)
            with psycopg.connect(dev.tenant_dsn("acme", dev.servers[to]), autocommit=True) as connection:
                connection.execute("DELETE FROM ledger WHERE id > 100")
