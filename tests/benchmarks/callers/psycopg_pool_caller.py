"""psycopg 3 with psycopg_pool, straight or through PgBouncer, as its documentation has it, autocommit."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import conninfo
from psycopg_pool import AsyncConnectionPool

from tests.benchmarks.callers import contract
from tests.benchmarks.callers.contract import Target, percented

_POINT_READ = percented(contract.POINT_READ)
_UPDATE_ACCOUNT = percented(contract.UPDATE_ACCOUNT)
_SELECT_ACCOUNT = percented(contract.SELECT_ACCOUNT)
_UPDATE_TELLER = percented(contract.UPDATE_TELLER)
_UPDATE_BRANCH = percented(contract.UPDATE_BRANCH)
_INSERT_HISTORY = percented(contract.INSERT_HISTORY)

STREAM_ROWS = 1000
"""Rows a chunk of `cursor.stream`: libpq's chunked mode, measured faster than a server-side cursor."""


class PsycopgCaller:
    """A pool as large as the callers, up to the target's connections."""

    def __init__(self, target: Target) -> None:
        size = min(target.callers, target.connections)
        dsn = conninfo.make_conninfo(
            host=target.host, port=target.port, user=target.user, password=target.password, dbname=target.database,
            application_name=target.application, sslmode="disable", gssencmode="disable",
        )
        self._pool: AsyncConnectionPool[psycopg.AsyncConnection[Any]] = AsyncConnectionPool(
            dsn, min_size=size, max_size=size, open=False, timeout=60,
            kwargs={"autocommit": True, "prepare_threshold": 5 if target.prepares else None},
        )
        self._pipelined = target.pipelined

    async def open(self) -> None:
        await self._pool.open(wait=True, timeout=60)

    async def point_read(self, aid: int) -> Any:
        async with self._pool.connection() as connection:
            cursor = await connection.execute(_POINT_READ, (aid,))
            return await cursor.fetchone()

    async def sleep(self, seconds: float) -> None:
        async with self._pool.connection() as connection:
            await connection.execute("select pg_sleep(%s)", (seconds,))

    async def transfer(self, aid: int, tid: int, bid: int, delta: int) -> Any:
        async with self._pool.connection() as connection:
            if not self._pipelined:
                async with connection.transaction():
                    return await self._statements(connection, aid, tid, bid, delta)
            async with connection.pipeline(), connection.transaction():
                return await self._statements_at_once(connection, aid, tid, bid, delta)

    async def _statements(self, connection: Any, aid: int, tid: int, bid: int, delta: int) -> Any:
        await connection.execute(_UPDATE_ACCOUNT, (delta, aid))
        row = await (await connection.execute(_SELECT_ACCOUNT, (aid,))).fetchone()
        await connection.execute(_UPDATE_TELLER, (delta, tid))
        await connection.execute(_UPDATE_BRANCH, (delta, bid))
        await connection.execute(_INSERT_HISTORY, (tid, bid, aid, delta))
        return row[0]

    async def _statements_at_once(self, connection: Any, aid: int, tid: int, bid: int, delta: int) -> Any:
        """In pipeline mode nothing is read until the end."""
        await connection.execute(_UPDATE_ACCOUNT, (delta, aid))
        selected = await connection.execute(_SELECT_ACCOUNT, (aid,))
        await connection.execute(_UPDATE_TELLER, (delta, tid))
        await connection.execute(_UPDATE_BRANCH, (delta, bid))
        await connection.execute(_INSERT_HISTORY, (tid, bid, aid, delta))
        return (await selected.fetchone())[0]

    async def stream(self, rows: int) -> int:
        count = 0
        async with self._pool.connection() as connection, connection.cursor(binary=True) as cursor:
            async for _ in cursor.stream(contract.ROWS_QUERY.format(rows=rows), size=STREAM_ROWS):
                count += 1
        return count

    async def copy_out(self, rows: int, path: str) -> int:
        written = 0
        statement = f"copy ({contract.COPY_QUERY.format(rows=rows)}) to stdout"
        async with self._pool.connection() as connection, connection.cursor() as cursor:
            with open(path, "wb") as file:  # noqa: ASYNC230 - as every contender here writes it
                async with cursor.copy(statement) as copy:
                    async for data in copy:
                        written += file.write(data)
        return written

    async def close(self) -> None:
        await self._pool.close()
