"""The router, through the Python SDK."""

from __future__ import annotations

from typing import Any

import pointsman

from tests.benchmarks.callers import contract
from tests.benchmarks.callers.contract import Target, numbered

_POINT_READ = numbered(contract.POINT_READ)
_UPDATE_ACCOUNT = numbered(contract.UPDATE_ACCOUNT)
_SELECT_ACCOUNT = numbered(contract.SELECT_ACCOUNT)
_UPDATE_TELLER = numbered(contract.UPDATE_TELLER)
_UPDATE_BRANCH = numbered(contract.UPDATE_BRANCH)
_INSERT_HISTORY = numbered(contract.INSERT_HISTORY)


class SdkCaller:
    """One client for all callers, as a service has one; it opens further channels by itself."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._client: pointsman.Client

    async def open(self) -> None:
        target = self._target
        self._client = pointsman.connect(f"{target.host}:{target.port}", tenant=target.tenant, token=target.token)
        await self._client.query_value("select 1")

    async def point_read(self, aid: int) -> Any:
        return await self._client.query_one(_POINT_READ, aid)

    async def sleep(self, seconds: float) -> None:
        await self._client.query("select pg_sleep($1)", seconds)

    async def transfer(self, aid: int, tid: int, bid: int, delta: int) -> Any:
        done = await self._client.batch([
            (_UPDATE_ACCOUNT, [delta, aid]),
            pointsman.Step(_SELECT_ACCOUNT, [aid], want_rows=True),
            (_UPDATE_TELLER, [delta, tid]),
            (_UPDATE_BRANCH, [delta, bid]),
            (_INSERT_HISTORY, [tid, bid, aid, delta]),
        ])
        return done[1].rows[0][0]

    async def stream(self, rows: int) -> int:
        count = 0
        async with self._client.stream(contract.ROWS_QUERY.format(rows=rows), timeout=300) as found:
            async for chunk in found.chunks():
                count += len(chunk)
        return count

    async def copy_out(self, rows: int, path: str) -> int:
        query = contract.COPY_QUERY.format(rows=rows)
        done: pointsman.CopyResult = await self._client.copy_out(query=query, to=path, timeout=300)
        return done.bytes

    async def close(self) -> None:
        await self._client.close()
