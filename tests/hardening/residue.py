"""What a router and its servers still hold once everybody has gone: what is more than before is a leak."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from pointsman.v1 import admin_service_pb2 as admin_pb

from router.devcluster import DevCluster
from tests.support.eventually import ask, eventually
from tests.support.running_router import RunningRouter

SERVING = (str(Path(__file__).with_name("serving.py")),)
"""The program of a router whose tasks can be asked for."""
_TASKS_MORE = 3
"""The prober, the doctor and psycopg_pool have short tasks of their own."""
_FILES_MORE = 4
"""And connections."""

_OPEN_TRANSACTIONS = (
    "select count(*) from pg_stat_activity where usename = %s and state <> 'idle' and backend_type = 'client backend'"
)


@dataclass(frozen=True)
class Residue:
    """At one moment."""

    tasks: Counter[str]
    files: int
    memory_bytes: int


async def residue_of(router: RunningRouter) -> Residue:
    """Tasks of the loop, open files, resident memory."""
    path = router.config.parent / "tasks"
    path.unlink(missing_ok=True)
    router.signal(signal.SIGUSR2)
    await eventually(path.exists, within_s=5, what="the list of tasks")
    files = len(os.listdir(f"/proc/{router.process.pid}/fd"))
    return Residue(Counter(json.loads(path.read_text())), files, router.memory_bytes())


async def until_at_rest(router: RunningRouter, cluster: DevCluster, before: Residue, user: str) -> Residue:
    """Wait until nothing is under way any more, and as many tasks and files are there as before. What is then there."""

    async def idle() -> bool:
        waiters = await router.operate("ListWaiters")
        pools = await router.operate("ListPools", admin_pb.ListPoolsRequest())
        return not waiters.waiters and not any(pool.in_flight or pool.waiting for pool in pools.pools)

    await eventually(idle, within_s=8, what="a router with nothing to do", pause_s=0.1)
    left = await residue_of(router)

    async def no_more() -> bool:
        nonlocal left
        left = await residue_of(router)
        more = sum((left.tasks - before.tasks).values())
        return more <= _TASKS_MORE and left.files <= before.files + _FILES_MORE

    try:
        await eventually(no_more, within_s=8, what="as many tasks and files as before", pause_s=0.2)
    except AssertionError as late:
        more = left.tasks - before.tasks
        raise AssertionError(f"{late}: {more}, {left.files} files, {before.files} before") from None
    for server in cluster.servers.values():
        open_transactions = await asyncio.to_thread(ask, cluster, _OPEN_TRANSACTIONS, user, server=server)
        assert open_transactions == 0, f"{open_transactions} sessions of {user} are not idle"
    return left
