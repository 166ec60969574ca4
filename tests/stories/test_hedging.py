"""A hedged read on real servers: the second replica answers, the first one is told to stop, and it is counted."""

from __future__ import annotations

import pointsman
import pytest

from router.decisions.latencies import YOUNG
from router.devcluster import DevCluster
from tests.support.eventually import until_gone
from tests.support.running_router import RunningRouter

pytestmark = pytest.mark.pg

# Slow on one server only, by the same text, which its usual time is learned for.
SQL = "select pg_sleep(case when inet_server_port() = $1::int then 60 else 0 end)"
WON = 'pointsman_hedges_total{outcome="won"}'


async def test_a_read_that_one_replica_delays_is_answered_by_the_other_and_stopped_there(
    router: RunningRouter, pg_cluster: DevCluster, eventual_db: pointsman.Client
) -> None:
    db, slow = eventual_db, pg_cluster.servers["n3"]
    replicas = {name for name, server in pg_cluster.servers.items() if server is not pg_cluster.primary()}
    assert slow.name in replicas
    for _ in range(3):  # at most, on a machine where usual times are long
        for _ in range(YOUNG + 20):
            await db.query(SQL, 0, read="replica", hedge=True)
        won = router.scrape().get(WON, 0.0)
        answers = [await db.query(SQL, slow.port, read="replica", hedge=True, timeout=20) for _ in range(6)]
        hedged = [one.receipt for one in answers if one.receipt.hedged and one.receipt.attempts == 2]
        if hedged:
            break
    assert hedged, "none of the reads met the slow replica first"
    assert {one.receipt.endpoint for one in answers} == replicas - {slow.name}
    assert router.scrape()[WON] - won >= len(hedged)
    await until_gone(pg_cluster, "inet_server_port", within_s=10, server=slow)
