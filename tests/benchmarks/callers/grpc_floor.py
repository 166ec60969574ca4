"""The SDK's way of calling without the SDK: whatever is queued leaves as one message, and comes back as it is."""

from __future__ import annotations

import asyncio
import struct
from typing import Any

from grpc import aio

from tests.benchmarks.callers.contract import OnlyPointReads, Target
from tests.benchmarks.grpc_floor import METHOD, SERVICE

ITEM = struct.Struct("<QQ64x")
"""80 bytes, about what a point read and its answer take: the call's number, what is asked."""


class FloorCaller(OnlyPointReads):
    """One stream; it answers what it was asked."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._queued: list[bytes] = []
        self._waiting: dict[int, asyncio.Future[tuple[int]]] = {}
        self._count = 0
        self._filled = asyncio.Event()

    async def open(self) -> None:
        self._channel = aio.insecure_channel(f"{self._target.host}:{self._target.port}")
        start: Any = self._channel.stream_stream(f"/{SERVICE}/{METHOD}")
        self._rpc = start()
        self._tasks = [asyncio.ensure_future(self._write()), asyncio.ensure_future(self._read())]
        await self.point_read(1)

    async def point_read(self, aid: int) -> Any:
        self._count += 1
        answer = self._waiting[self._count] = asyncio.get_running_loop().create_future()
        self._queued.append(ITEM.pack(self._count, aid))
        self._filled.set()
        return await answer

    async def _write(self) -> None:
        while await self._filled.wait():
            self._filled.clear()
            message = b"".join(self._queued)
            self._queued.clear()
            await self._rpc.write(message)

    async def _read(self) -> None:
        while (message := await self._rpc.read()) is not aio.EOF:
            for number, aid in ITEM.iter_unpack(message):
                self._waiting.pop(number).set_result((aid,))

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await self._channel.close()
