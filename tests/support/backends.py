"""How many connections of tenants a server sees, as that server itself says."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from router.devcluster import Server
from tests.support.dev_cluster import TENANTS

OF_TENANTS = "select count(*) from pg_stat_activity where usename = any(%s)"


@contextlib.asynccontextmanager
async def counted(server: Server, query: str = OF_TENANTS, pause_s: float = 0.002) -> AsyncIterator[list[int]]:
    """Numbers of connections to a server while the block runs, asked for in a thread; query takes TENANTS' names."""
    seen: list[int] = []
    ended = False

    def count() -> None:
        with server.connect() as connection:
            while not ended:
                row = connection.execute(query, [list(TENANTS)]).fetchone()
                seen.append(int(row[0]) if row else -1)
                time.sleep(pause_s)

    counting = asyncio.get_running_loop().run_in_executor(None, count)
    try:
        yield seen
    finally:
        ended = True
        await counting
