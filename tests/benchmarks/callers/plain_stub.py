"""The router through the generated stubs alone, as any language has them: one unary call a statement, no SDK."""

from __future__ import annotations

from typing import Any

from grpc import aio
from pointsman.v1 import query_service_pb2 as pb
from pointsman.v1 import query_service_pb2_grpc as rpc

from tests.benchmarks.callers import contract
from tests.benchmarks.callers.contract import OnlyPointReads, Target, numbered

_POINT_READ = numbered(contract.POINT_READ)


class StubCaller(OnlyPointReads):
    """One channel; reads only."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._metadata = (("authorization", f"Bearer {target.token}"), ("pointsman-tenant", target.tenant))

    async def open(self) -> None:
        self._channel = aio.insecure_channel(f"{self._target.host}:{self._target.port}")
        self._stub: Any = rpc.QueryServiceStub(self._channel)
        await self.point_read(1)

    async def point_read(self, aid: int) -> Any:
        request = pb.QueryRequest()
        request.statement.sql = _POINT_READ
        request.statement.params.add().integer = aid
        answer = await self._stub.Query(request, metadata=self._metadata, timeout=30)
        return tuple(column.integers[0] for column in answer.result.batch.columns)

    async def close(self) -> None:
        await self._channel.close()
