"""Promotions that somebody or something interferes with, on real servers: never two, never back, never silently."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from router.devcluster import DevCluster
from router.devcluster.rejoining import RejoinMethod
from router.model.events import FailoverStep, Health, HealthChanged
from router.model.identity import EndpointName
from router.model.reasons import HealthReason
from router.model.topology import Cluster, Endpoint
from router.postgres.edges import PostgresEdges
from router.postgres.surgeon import PostgresSurgeon
from tests.failover.test_moving_the_primary import insert, rows, supervised, until
from tests.support.dev_cluster import MakeCluster, make_cluster
from tests.support.eventually import eventually

__all__ = ["make_cluster"]
pytestmark = [pytest.mark.pg, pytest.mark.chaos]

N1, N2 = EndpointName("n1"), EndpointName("n2")
Interference = Callable[[Endpoint], Awaitable[None]]


class Interfered(PostgresEdges):
    """Real edges, but something happens before or after an act of the surgeon."""

    def __init__(self, owner: str, act: str = "", before: Interference | None = None) -> None:
        super().__init__(owner)
        self._act, self._before = act, before

    def surgeon(self, cluster: Cluster) -> PostgresSurgeon:
        made: Any = super().surgeon(cluster)
        if self._before is not None:
            plain, interfere = getattr(made, self._act), self._before

            async def act(endpoint: Endpoint, *rest: Any) -> Any:
                await interfere(endpoint)
                return await plain(endpoint, *rest)

            setattr(made, self._act, act)
        return made  # type: ignore[no-any-return]


def writable(dev: DevCluster) -> dict[str, int | None]:
    return {one.name: one.timeline for one in dev.observe().values() if not one.in_recovery}


async def test_two_routers_promote_one_standby(make_cluster: MakeCluster):
    dev = make_cluster()
    one, other = PostgresEdges("a"), PostgresEdges("b")
    async with supervised(dev, edges=one) as (first, _), supervised(dev, edges=other) as (second, _):
        await asyncio.to_thread(insert, dev, "n1", 1)
        await asyncio.to_thread(dev.servers["n1"].kill)
        for router in (first, second):
            await until(router, lambda state: state.primary not in (None, N1))
        assert first.state.primary == second.state.primary
        assert (first.state.term, second.state.term) == (2, 2)
        assert writable(dev) == {first.state.primary: 2}
        assert await asyncio.to_thread(rows, dev, str(first.state.primary)) == [1]


async def test_a_person_promotes_the_other_standby_in_the_middle_of_ours(make_cluster: MakeCluster):
    dev = make_cluster()

    async def somebody_else(chosen: Endpoint) -> None:
        other = "n3" if chosen.name == N2 else "n2"
        if dev.servers["n1"].is_running or other in writable(dev):
            return
        with dev.servers[other].connect() as connection:
            connection.execute("SELECT pg_promote(true)")

    async with supervised(dev, edges=Interfered("a", "set_synchronous", somebody_else)) as (supervisor, told):
        await asyncio.to_thread(insert, dev, "n1", 1)
        await asyncio.to_thread(dev.servers["n1"].kill)
        await until(supervisor, lambda state: state.primary not in (None, N1))
        assert writable(dev) == {supervisor.state.primary: 2}
        failed = [one.step for one in told.of(FailoverStep) if isinstance(one, FailoverStep) and not one.ok]
        assert "recheck" in failed or "fence" in failed
        assert await asyncio.to_thread(rows, dev, str(supervisor.state.primary)) == [1]


async def test_a_candidate_that_dies_once_promoted_bars_the_way_back_to_the_old_primary(make_cluster: MakeCluster):
    dev = make_cluster()

    async def dies(candidate: Endpoint) -> None:
        await asyncio.to_thread(dev.servers[candidate.name].kill)

    async with supervised(dev, edges=Interfered("a", "verify_write", dies)) as (supervisor, _):
        await asyncio.to_thread(insert, dev, "n1", 1)
        await asyncio.to_thread(dev.servers["n1"].kill)
        # A probe may have seen it as primary before it died: then nothing goes back behind its timeline.
        await eventually(
            lambda: "may have been promoted" in supervisor.state.detail or supervisor.state.term == 2,
            within_s=15,
            what="the pledge",
        )
        candidate = next(name for name in ("n2", "n3") if not dev.servers[name].is_running)
        await asyncio.to_thread(dev.servers["n1"].start)
        for _ in range(20):
            await asyncio.sleep(0.1)
            assert supervisor.state.primary is None, "back at the old primary, while another may be one"
        await asyncio.to_thread(dev.servers[candidate].start)
        await until(supervisor, lambda state: state.primary == candidate)
        assert supervisor.state.term == 2
        await until(supervisor, lambda state: state.endpoints[N1].health is Health.QUARANTINED)


async def test_an_old_primary_with_more_log_is_kept_out_told_and_rewound(make_cluster: MakeCluster):
    dev = make_cluster()
    async with supervised(dev, edges=PostgresEdges("a")) as (supervisor, told):
        await asyncio.to_thread(insert, dev, "n1", 1)
        with dev.servers["n1"].connect("acme") as connection:
            for (pid,) in connection.execute("SELECT pid FROM pg_stat_replication").fetchall():
                os.kill(pid, signal.SIGSTOP)  # senders, not receivers: those still read what is on its way
            connection.execute("SET synchronous_commit = local")
            connection.execute("INSERT INTO ledger SELECT generate_series(100, 5000)")
            dev.servers["n1"].kill()
        await until(supervisor, lambda state: state.primary not in (None, N1))
        new = str(supervisor.state.primary)
        await asyncio.to_thread(dev.servers["n1"].start)
        await until(supervisor, lambda state: state.endpoints[N1].health is Health.QUARANTINED)
        assert supervisor.state.endpoints[N1].health_reason is HealthReason.OLD_TERM
        reasons = [e.reason for e in told.of(HealthChanged) if isinstance(e, HealthChanged) and e.endpoint == N1]
        assert HealthReason.OLD_TERM in reasons
        back = await asyncio.to_thread(dev.rejoin, "n1")
        assert back.method is RejoinMethod.REWOUND
        await until(supervisor, lambda state: state.endpoints[N1].health is Health.UP)
        await asyncio.to_thread(insert, dev, new, 2)
        assert await asyncio.to_thread(rows, dev, new) == [1, 2]
        await eventually(lambda: rows(dev, "n1") == [1, 2], within_s=5, what="the old primary has what the new one has")
