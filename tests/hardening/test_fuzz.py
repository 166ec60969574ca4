"""Requests that nobody would write, by the thousand: the router answers each, keeps nothing of them, and goes on.

FUZZ_REQUESTS=100000 and FUZZ_SEED=7 make more of it, and other ones.
"""

from __future__ import annotations

import os
import random

import pytest
from pointsman.v1 import admin_service_pb2 as admin_pb

from router.devcluster import DevCluster
from tests.hardening.campaign import ADMIN, PUBLIC, Campaign
from tests.hardening.residue import residue_of, until_at_rest
from tests.support.running_router import ADMIN_TOKEN, RunningRouter

pytestmark = [pytest.mark.pg, pytest.mark.timeout(3600)]

REQUESTS = int(os.environ.get("FUZZ_REQUESTS", "1500"))
SEED = int(os.environ.get("FUZZ_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 30)
MEMORY_MORE_BYTES = 64 << 20
"""After the first tenth. Caches of statements and options, and what malloc keeps, come to rest below it."""


async def test_whatever_callers_send_is_answered_and_leaves_nothing(
    fuzzed_router: RunningRouter, pg_cluster: DevCluster
) -> None:
    router = fuzzed_router
    before = await residue_of(router)
    campaign = Campaign(router.address, router.tokens["acme"], PUBLIC, SEED)
    warm_up = REQUESTS // 10
    await campaign.run(0, warm_up)
    warm = await residue_of(router)
    tally = await campaign.run(warm_up, REQUESTS - warm_up)
    await campaign.close()
    print(tally)
    assert not tally.wrong, tally.told()
    assert tally.codes["OK"] > REQUESTS // 20, "hardly anything got as far as PostgreSQL"
    left = await until_at_rest(router, pg_cluster, before, "acme")
    print(f"memory: {before.memory_bytes >> 20} MiB, {warm.memory_bytes >> 20}, {left.memory_bytes >> 20}")
    assert left.memory_bytes < warm.memory_bytes + MEMORY_MORE_BYTES
    await still_serves(router)


async def test_whatever_operators_send_is_answered(fuzzed_router: RunningRouter) -> None:
    router = fuzzed_router
    count = REQUESTS // 10
    campaign = Campaign(router.admin, ADMIN_TOKEN, ADMIN, SEED)
    tally = await campaign.run(0, count)
    await campaign.close()
    print(tally)
    assert not tally.wrong, tally.told()
    with router.operator() as operator:
        for cluster in operator.clusters():
            for endpoint in cluster.endpoints:
                await router.operate("ResumeEndpoint", admin_pb.ResumeEndpointRequest(endpoint=endpoint.name))
    await still_serves(router)


async def still_serves(router: RunningRouter) -> None:
    """Both tenants, reads and writes; the process that was started, with nothing of a mistake in its log."""
    assert router.process.poll() is None
    for tenant in router.tokens:
        async with router.connect(tenant, timeout=5) as db:
            assert await db.query_value("select 40 + $1::int", 2) == 42
            assert (await db.execute("update accounts set score = score where id = $1", 2)).rowcount == 1
    log = router.logged()
    for word in ("Traceback", "request handler failed", "was never retrieved", "was destroyed"):
        assert word not in log, log[max(0, log.index(word) - 500) :][:3000]

