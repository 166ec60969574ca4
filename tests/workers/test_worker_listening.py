"""Listeners on two workers: each worker has a connection of its own, and what one loses the other takes over."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest
from pointsman import Gap, GapReason, Notification

from router.devcluster import DevCluster
from tests.stories.test_notifications import LISTENERS
from tests.support.eventually import ask
from tests.workers.callers import all_serve, clients, two_workers

pytestmark = [pytest.mark.pg]


async def test_all_hear_and_those_of_a_killed_worker_have_a_gap(pg_cluster: DevCluster) -> None:
    async with two_workers(pg_cluster) as router, clients(router, 12) as ones:
        found = await all_serve(router)
        streams = [db.listen("workers' news") for db in ones]
        await asyncio.gather(*(one.ready() for one in streams))
        assert await asyncio.to_thread(ask, pg_cluster, LISTENERS, "acme") == 2
        await ones[0].execute("select pg_notify($1, 'first')", "workers' news")
        for one in streams:
            item = await asyncio.wait_for(one.next(), 5)
            assert isinstance(item, Notification)
        os.kill(found[0].pid, signal.SIGKILL)
        gone = 0
        for one in streams:
            item = await one.next(timeout=2.0 if not gone else 0.5)
            assert item is None or isinstance(item, Gap)
            gone += item is not None
            assert item is None or item.reason is GapReason.RECONNECT
        assert 0 < gone < 12
        await ones[0].execute("select pg_notify($1, 'second')", "workers' news", timeout=10)
        for one in streams:
            while isinstance(item := await asyncio.wait_for(one.next(), 5), Gap):
                pass
            assert isinstance(item, Notification)
            assert item.payload == "second"
        for one in streams:
            await one.aclose()
