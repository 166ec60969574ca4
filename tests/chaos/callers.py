"""Two ways to the router, one interface: the SDK, and the generated stubs as any language has them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import pointsman
from grpc import aio
from pointsman.options import WriteOptions
from pointsman.status import error_from_rpc, error_from_status
from pointsman.v1 import query_service_pb2 as pb
from pointsman.v1 import query_service_pb2_grpc as query_rpc
from pointsman.v1 import transaction_service_pb2 as tx_pb
from pointsman.v1 import transaction_service_pb2_grpc as tx_rpc
from pointsman.v1 import types_pb2

Steps = Sequence[tuple[str, Sequence[Any]]]

_READS = {"": 0, "primary": types_pb2.READ_PREFERENCE_PRIMARY, "replica": types_pb2.READ_PREFERENCE_REPLICA,
          "any": types_pb2.READ_PREFERENCE_ANY}
_ISOLATIONS = {"": 0, "read committed": pb.ISOLATION_LEVEL_READ_COMMITTED,
               "repeatable read": pb.ISOLATION_LEVEL_REPEATABLE_READ, "serializable": pb.ISOLATION_LEVEL_SERIALIZABLE}


@dataclass(frozen=True, slots=True)
class Answer:
    """What an operation gave: the rows of each step, and the receipt's facts."""

    rows: Sequence[Sequence[Sequence[Any]]] = field(default_factory=tuple)
    endpoint: str = ""
    topology: int = 0
    attempts: int = 1
    role: str = ""


class Caller(Protocol):
    """Every method raises pointsman.Error. A key makes a write exactly-once."""

    name: str

    async def read(self, sql: str, *args: Any, prefer: str, timeout: float) -> Answer: ...

    async def write(self, sql: str, *args: Any, timeout: float, key: str = "", request_id: str = "") -> Answer: ...

    async def batch(self, steps: Steps, *, timeout: float, isolation: str = "", key: str = "") -> Answer: ...

    async def transact(self, steps: Steps, *, timeout: float, isolation: str = "") -> Answer: ...

    async def cancel(self, request_id: str) -> None: ...

    async def close(self) -> None: ...


class SdkCaller:
    """The Python SDK."""

    name = "sdk"

    def __init__(self, db: pointsman.Client) -> None:
        self.db = db
        self._repeats = "idempotent" in WriteOptions.__annotations__

    async def read(self, sql: str, *args: Any, prefer: str, timeout: float) -> Answer:
        rows = await self.db.query(sql, *args, read=prefer, timeout=timeout)  # type: ignore[arg-type]
        return _answer([rows], rows.receipt)

    async def write(self, sql: str, *args: Any, timeout: float, key: str = "", request_id: str = "") -> Answer:
        options: dict[str, Any] = {"timeout": timeout}
        if request_id:
            options["request_id"] = request_id
        if key:
            options["idempotency_key"] = key
            if self._repeats:
                options["idempotent"] = True
        result = await self.db.execute(sql, *args, **options)
        return _answer([result.rows], result.receipt)

    async def batch(self, steps: Steps, *, timeout: float, isolation: str = "", key: str = "") -> Answer:
        options: dict[str, Any] = {"timeout": timeout}
        if isolation:
            options["isolation"] = isolation
        if key:
            options["idempotency_key"] = key
        asked = [pointsman.Step(sql, args, want_rows=True) for sql, args in steps]
        results = await self.db.batch(asked, **options)
        return _answer([one.rows for one in results], results.receipt)

    async def transact(self, steps: Steps, *, timeout: float, isolation: str = "") -> Answer:
        until = time.monotonic() + timeout
        level: Any = isolation or None
        tx = self.db.transaction(isolation=level, timeout=timeout)
        async with tx:
            rows = []
            for sql, args in steps:
                left = max(0.001, until - time.monotonic())
                rows.append((await tx.execute(sql, *args, timeout=left)).rows)
            await tx.commit(timeout=max(0.001, until - time.monotonic()))
        return _answer(rows, tx.receipt)

    async def cancel(self, request_id: str) -> None:
        await self.db.cancel(request_id, timeout=1)

    async def close(self) -> None:
        await self.db.close()


class StubCaller:
    """The generated stubs over one channel, without any cleverness."""

    name = "stub"

    def __init__(self, address: str, tenant: str, token: str, *, session: bool = False) -> None:
        """session: carry the newest consistency token from answer to read, as a careful caller would."""
        # A channel's own pauses between connects grow to minutes; the router's restart would be missed.
        options = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200)]
        self._channel = aio.insecure_channel(address, options=options)
        self._query: Any = query_rpc.QueryServiceStub(self._channel)
        self._transactions: Any = tx_rpc.TransactionServiceStub(self._channel)
        self._session = session
        self.token = b""
        self._metadata = (("authorization", f"Bearer {token}"), ("pointsman-tenant", tenant))

    async def read(self, sql: str, *args: Any, prefer: str, timeout: float) -> Answer:
        request = pb.QueryRequest(statement=_statement(sql, args))
        request.options.read = _READS[prefer]
        if self._session:
            request.options.after_token = self.token
        answer = await self._call(self._query.Query, request, timeout, writes=False)
        self.token = answer.receipt.token or self.token
        return _told([answer.result], answer.receipt)

    async def write(self, sql: str, *args: Any, timeout: float, key: str = "", request_id: str = "") -> Answer:
        request = pb.ExecuteRequest(statement=_statement(sql, args), idempotency_key=key, request_id=request_id)
        answer = await self._call(self._query.Execute, request, timeout)
        self.token = answer.receipt.token or self.token
        return _told([answer.result], answer.receipt)

    async def batch(self, steps: Steps, *, timeout: float, isolation: str = "", key: str = "") -> Answer:
        request = pb.ExecuteBatchRequest(idempotency_key=key)
        request.transaction.isolation = _ISOLATIONS[isolation]
        for sql, args in steps:
            request.steps.add(statement=_statement(sql, args), want_rows=True)
        answer = await self._call(self._query.ExecuteBatch, request, timeout)
        return _told([one.result for one in answer.steps], answer.receipt)

    async def transact(self, steps: Steps, *, timeout: float, isolation: str = "") -> Answer:
        until = time.monotonic() + timeout
        try:
            call = self._transactions.Transact(metadata=self._metadata, timeout=timeout + 0.05)
            rows = []
            for number, (sql, args) in enumerate(steps):
                request = tx_pb.TransactRequest(tag=number + 1, run=_statement(sql, args))
                if not number:
                    request.begin.transaction.isolation = _ISOLATIONS[isolation]
                if number == len(steps) - 1:
                    request.end = tx_pb.TRANSACT_END_COMMIT
                request.timeout_ms = max(1, round((until - time.monotonic()) * 1000))
                await call.write(request)
                event = await _event(call)
                rows.append(event.done)
            if event.outcome != tx_pb.TRANSACT_OUTCOME_COMMITTED:
                raise pointsman.Aborted("not committed", executed=pointsman.Executed.ROLLED_BACK)
            return _told(rows, event.receipt)
        except aio.AioRpcError as failure:
            raise error_from_rpc(failure, writes=True) from None
        finally:
            call.cancel()

    async def cancel(self, request_id: str) -> None:
        await self._call(self._query.CancelQuery, pb.CancelQueryRequest(request_id=request_id), 1, writes=False)

    async def close(self) -> None:
        await self._channel.close()

    async def _call(self, method: Any, request: Any, timeout: float, *, writes: bool = True) -> Any:
        try:
            return await method(request, metadata=self._metadata, timeout=timeout)
        except aio.AioRpcError as failure:
            raise error_from_rpc(failure, writes=writes) from None


async def _event(call: Any) -> Any:
    """The next answer of a transaction; its failure as an error."""
    while True:
        event = await call.read()
        if event is aio.EOF:
            raise aio.AioRpcError(await call.code(), aio.Metadata(), await call.trailing_metadata(),
                                  await call.details() or "the stream ended")
        if event.WhichOneof("event") == "failed":
            raise error_from_status(event.failed, writes=True)
        if event.WhichOneof("event") == "done":
            return event


def _statement(sql: str, args: Sequence[Any]) -> types_pb2.Statement:
    statement = types_pb2.Statement(sql=sql)
    for value in args:
        parameter = statement.params.add()
        if isinstance(value, int):
            parameter.integer = value
        else:
            parameter.text = str(value)
    return statement


def _told(results: Sequence[Any], receipt: Any) -> Answer:
    role = "replica" if receipt.role == types_pb2.ENDPOINT_ROLE_REPLICA else "primary"
    return Answer([_rows(one) for one in results], receipt.endpoint, receipt.topology, receipt.attempts, role)


def _rows(result: Any) -> list[list[Any]]:
    """Small results as rows; NULLs are not looked at, as no workload reads any."""
    return [list(row) for row in zip(*(_cells(one) for one in result.batch.columns), strict=True)]


def _cells(column: Any) -> list[Any]:
    for name in ("integers", "texts", "booleans", "reals"):
        cells = getattr(column, name)
        if len(cells):
            return list(cells)
    return []


def _answer(rows: Sequence[Any], receipt: Any) -> Answer:
    plain = [[list(row) for row in one] for one in rows]
    if receipt is None:
        return Answer(plain)
    return Answer(plain, receipt.endpoint, receipt.topology, receipt.attempts, receipt.role)
