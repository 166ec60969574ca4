"""How many connections of tenants a server sees, as that server itself says."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from router.devcluster import DevCluster
from tests.support.dev_cluster import TENANTS


@contextlib.asynccontextmanager
async def counted(cluster: DevCluster) -> AsyncIterator[list[int]]:
    """Numbers of connections to the primary while the block runs, as often as can be asked."""
    seen: list[int] = []
    ended = False

    def count() -> None:
        query = "select count(*) from pg_stat_activity where usename = any(%s)"
        with cluster.primary().connect() as connection:
            while not ended:
                row = connection.execute(query, [list(TENANTS)]).fetchone()
                seen.append(int(row[0]) if row else -1)
                time.sleep(0.002)

    counting = asyncio.get_running_loop().run_in_executor(None, count)
    try:
        yield seen
    finally:
        ended = True
        await counting
