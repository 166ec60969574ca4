"""asyncpg with its pool, straight or through PgBouncer."""

from __future__ import annotations

from typing import Any

import asyncpg

from tests.benchmarks.callers import contract
from tests.benchmarks.callers.contract import Target, numbered

_POINT_READ = numbered(contract.POINT_READ)
_UPDATE_ACCOUNT = numbered(contract.UPDATE_ACCOUNT)
_SELECT_ACCOUNT = numbered(contract.SELECT_ACCOUNT)
_UPDATE_TELLER = numbered(contract.UPDATE_TELLER)
_UPDATE_BRANCH = numbered(contract.UPDATE_BRANCH)
_INSERT_HISTORY = numbered(contract.INSERT_HISTORY)

PREFETCH_ROWS = 5000


async def _leave_as_it_is(connection: Any) -> None:
    """Instead of the pool's reset query: a round trip for each release, of no use to statements without state."""


class AsyncpgCaller:
    """A pool as large as the callers, up to the target's connections."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._pool: Any = None

    async def open(self) -> None:
        target = self._target
        size = min(target.callers, target.connections)
        self._pool = await asyncpg.create_pool(
            host=target.host, port=target.port, user=target.user, password=target.password, database=target.database,
            min_size=size, max_size=size, reset=_leave_as_it_is, ssl=False,
            statement_cache_size=100 if target.prepares else 0,
            server_settings={"application_name": target.application},
        )

    async def point_read(self, aid: int) -> Any:
        return await self._pool.fetchrow(_POINT_READ, aid)

    async def sleep(self, seconds: float) -> None:
        await self._pool.execute("select pg_sleep($1)", seconds)

    async def transfer(self, aid: int, tid: int, bid: int, delta: int) -> Any:
        async with self._pool.acquire() as connection, connection.transaction():
            await connection.execute(_UPDATE_ACCOUNT, delta, aid)
            balance = await connection.fetchval(_SELECT_ACCOUNT, aid)
            await connection.execute(_UPDATE_TELLER, delta, tid)
            await connection.execute(_UPDATE_BRANCH, delta, bid)
            await connection.execute(_INSERT_HISTORY, tid, bid, aid, delta)
            return balance

    async def stream(self, rows: int) -> int:
        count = 0
        async with self._pool.acquire() as connection, connection.transaction():
            async for _ in connection.cursor(contract.ROWS_QUERY.format(rows=rows), prefetch=PREFETCH_ROWS):
                count += 1
        return count

    async def copy_out(self, rows: int, path: str) -> int:
        with open(path, "wb") as file:  # noqa: ASYNC230 - as every contender here writes it
            async with self._pool.acquire() as connection:
                await connection.copy_from_query(contract.COPY_QUERY.format(rows=rows), output=file)
            return file.tell()

    async def close(self) -> None:
        if self._pool is not None:
            await self._pool.close()
