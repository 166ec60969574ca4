"""A storm of first callers opens at most two connections to an endpoint at once, whoever they are."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest

from router.devcluster import DevCluster
from router.model.reasons import CloseReason
from tests.postgres.test_lane import make_pool, soon

pytestmark = pytest.mark.pg


async def test_two_connects_in_flight_per_endpoint(pg_cluster: DevCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    pools = [make_pool(pg_cluster) for _ in range(4)]
    for pool in pools[1:]:
        pool._opener.gate = pools[0]._opener.gate  # one factory gives all pools of an endpoint the same gate
    now = most = 0
    connect = psycopg.AsyncConnection.connect

    async def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.01)
        try:
            return await connect(*args, **kwargs)
        finally:
            now -= 1

    monkeypatch.setattr(psycopg.AsyncConnection, "connect", counted)
    lanes = await asyncio.gather(*(pool.open_lane(soon()) for pool in pools for _ in range(3)))
    assert len(lanes) == 12
    assert most == 2
    for lane in lanes:
        await lane.give_back()
    for pool in pools:
        await pool.close(CloseReason.SHUTDOWN)
