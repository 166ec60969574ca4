"""A commit whose wait for the standby is ended: PostgreSQL answers as if all were well, and the lane says otherwise."""

from __future__ import annotations

import asyncio

import pytest

from router.model.observation import FaultKind, Stage
from router.model.policy import PoolPolicy
from router.model.reasons import CloseReason
from router.model.request import Access, Statement
from router.ports import Unit
from tests.contracts.real_pool import make_real_pool
from tests.support.dev_cluster import MakeCluster

pytestmark = [pytest.mark.pg, pytest.mark.chaos]


async def test_a_commit_that_no_standby_confirmed_is_a_local_one(make_cluster: MakeCluster) -> None:
    cluster = make_cluster()
    loop = asyncio.get_running_loop()
    pool = make_real_pool(cluster, Access.READ_WRITE, PoolPolicy())
    lane = await pool.open_lane(loop.time() + 10)
    standbys = [server for name, server in cluster.servers.items() if name != "n1"]
    for server in standbys:
        await asyncio.to_thread(server.freeze)
    try:
        done: asyncio.Future[Unit] = loop.create_future()
        lane.submit(Unit((Statement(b"create table waits (id int)"),), done.set_result))
        finished, _ = await asyncio.wait({done}, timeout=0.5)
        assert not finished
        await lane.cancel()
        fault = (await asyncio.wait_for(done, 10)).fault
    finally:
        for server in standbys:
            server.thaw()
    assert fault is not None
    assert (fault.kind, fault.stage, fault.sqlstate) == (FaultKind.LOCAL_COMMIT, Stage.COMMIT, "01000")
    await lane.give_back()
    await pool.close(CloseReason.SHUTDOWN)
