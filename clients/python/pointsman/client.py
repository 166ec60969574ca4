"""The asynchronous client: what a caller asks for becomes a message, and its reply a Python value."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Unpack

import grpc
from grpc import aio

from pointsman.batches import StepLike, put_batch
from pointsman.connection import GRACE_S, Connections
from pointsman.errors import ClientClosed, Executed
from pointsman.multiplex import Multiplexer
from pointsman.options import (
    TLS,
    WRITE_ONLY,
    BatchOptions,
    Isolation,
    ReadOptions,
    ReadPreference,
    WriteOptions,
    put_options,
    seconds,
)
from pointsman.parameters import put_statement
from pointsman.results import BatchResults, Result, Rows, result_of, rows_of, single_row, single_value
from pointsman.rows import Record
from pointsman.status import error_from_rpc, error_from_status
from pointsman.streams import RowStream
from pointsman.tokens import TokenKeeper
from pointsman.transactions import Transaction, begin_message
from pointsman.v1 import query_service_pb2 as pb

DEFAULT_TIMEOUT_S = 30.0

Consistency = Literal["session", "eventual"]

_forks = 0


def _count_fork() -> None:
    global _forks
    _forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_count_fork)


class Client:
    """A connection to a router for one tenant; make it with `connect`. It belongs to one event loop.

    It connects at the first call, again whenever the connection is lost, and carries any number of calls at once.
    """

    def __init__(
        self,
        address: str,
        *,
        tenant: str = "",
        token: str | Callable[[], str] | None = None,
        tls: bool | TLS | None = None,
        timeout: float = DEFAULT_TIMEOUT_S,
        consistency: Consistency = "session",
    ) -> None:
        if consistency not in ("session", "eventual"):
            raise ValueError(f"consistency must be 'session' or 'eventual', not {consistency!r}")
        self._timeout_s = seconds("timeout", timeout)
        self._connections = Connections(address, tenant=tenant, token=token, tls=tls)
        self._tokens = TokenKeeper(enabled=consistency == "session")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._mux: Multiplexer | None = None
        self._fork = _forks
        self._closed = False

    async def query(self, sql: str, *args: Any, **options: Unpack[ReadOptions]) -> Rows:
        """Runs a read-only statement. PostgreSQL refuses writes in it; the router may repeat it."""
        mux = self._bound()
        message = pb.MultiplexCall()
        request = message.query
        put_statement(request.statement, sql, args)
        self._put_read_options(request, options, "query")
        version = self._tokens.version
        reply = await mux.roundtrip(
            message.SerializeToString(), self._timeout_of(options), writes=False, replayable=True
        )
        if reply.WhichOneof("reply") != "query":
            raise error_from_status(reply.failure, writes=False)
        answer = reply.query
        self._tokens.keep(answer.receipt.token, version)
        return rows_of(answer.result, answer.receipt.SerializeToString())

    async def query_one(self, sql: str, *args: Any, **options: Unpack[ReadOptions]) -> Record | None:
        """The only row of a read, or None. NoSingleRow when there are more."""
        rows = await self.query(sql, *args, **options)
        return single_row(rows)

    async def query_value(self, sql: str, *args: Any, **options: Unpack[ReadOptions]) -> Any:
        """The first column of the only row of a read. NoSingleRow unless there is exactly one row."""
        rows = await self.query(sql, *args, **options)
        return single_value(rows)

    async def execute(self, sql: str, *args: Any, **options: Unpack[WriteOptions]) -> Result:
        """Runs a statement on the primary, in a transaction of its own."""
        mux = self._bound()
        message = pb.MultiplexCall()
        request = message.execute
        put_statement(request.statement, sql, args)
        if options:
            put_options(request.options, options, "execute", WRITE_ONLY)
            request.request_id = options.get("request_id") or ""
            request.idempotency_key = options.get("idempotency_key") or ""
        version = self._tokens.version
        reply = await mux.roundtrip(
            message.SerializeToString(),
            self._timeout_of(options),
            writes=True,
            replayable=bool(options.get("idempotency_key")),
        )
        if reply.WhichOneof("reply") != "execute":
            raise error_from_status(reply.failure, writes=True)
        answer = reply.execute
        self._tokens.keep(answer.receipt.token, version)
        return result_of(answer.result, answer.receipt.SerializeToString())

    async def batch(self, steps: Sequence[StepLike], **options: Unpack[BatchOptions]) -> BatchResults:
        """Runs several statements as one transaction in one message: all of them or none."""
        mux = self._bound()
        message = pb.MultiplexCall()
        put_batch(message.batch, steps, options)
        writes = not options.get("read_only")
        version = self._tokens.version
        reply = await mux.roundtrip(
            message.SerializeToString(),
            self._timeout_of(options),
            writes=writes,
            replayable=not writes or bool(options.get("idempotency_key")),
        )
        if reply.WhichOneof("reply") != "batch":
            raise error_from_status(reply.failure, writes=writes)
        answer = reply.batch
        self._tokens.keep(answer.receipt.token, version)
        receipt = answer.receipt.SerializeToString()
        return BatchResults((result_of(step.result, receipt, skipped=step.skipped) for step in answer.steps), receipt)

    def stream(self, sql: str, *args: Any, **options: Unpack[ReadOptions]) -> RowStream:
        """Runs a read-only statement whose rows come in chunks: `async for row in db.stream(…)`.

        With a timeout the whole stream must end in time; without one, each chunk must come within the default.
        """
        self._bound()
        request = pb.StreamQueryRequest()
        put_statement(request.statement, sql, args)
        self._put_read_options(request, options, "stream")
        timeout = options.get("timeout")
        total_s = None if timeout is None else seconds("timeout", timeout)
        return RowStream(self._connections, self._tokens, request, total_s=total_s, chunk_s=self._timeout_s)

    def transaction(
        self,
        *,
        isolation: Isolation | None = None,
        read_only: bool = False,
        deferrable: bool = False,
        read: ReadPreference | None = None,
        timeout: float | None = None,
    ) -> Transaction:
        """A transaction: `async with db.transaction() as tx`. Commits at a clean exit, rolls back at an exception.

        `timeout` is the time of each of its statements. It begins with its first statement.
        """
        self._bound()
        begin = begin_message(isolation=isolation, read_only=read_only, deferrable=deferrable)
        if read is not None:
            put_options(begin.options, {"read": read}, "transaction")
        if read_only and read != "primary" and self._tokens.enabled and self._tokens.value:
            begin.options.after_token = self._tokens.value
        return Transaction(
            self._connections,
            self._tokens,
            begin,
            timeout_s=self._timeout_s if timeout is None else seconds("timeout", timeout),
        )

    async def cancel(self, request_id: str, *, timeout: float | None = None) -> bool:
        """Asks to stop the request of that id; True when it was running and has been asked to."""
        self._bound()
        link = self._connections.acquire()
        try:
            call: aio.UnaryUnaryMultiCallable[pb.CancelQueryRequest, pb.CancelQueryResponse] = link.channel.unary_unary(
                "/pointsman.v1.QueryService/CancelQuery",
                request_serializer=pb.CancelQueryRequest.SerializeToString,
                response_deserializer=pb.CancelQueryResponse.FromString,
            )
            answer = await call(
                pb.CancelQueryRequest(request_id=request_id),
                timeout=self._timeout_of({"timeout": timeout}) + GRACE_S,
                metadata=self._connections.metadata(),
            )
        except aio.AioRpcError as failure:
            raise error_from_rpc(failure, writes=False) from None
        finally:
            link.release()
        return answer.result == pb.CANCEL_RESULT_CANCELLING

    @property
    def token(self) -> str:
        """What this client has seen, as text; give it to another client to let it see no less. "" forgets it."""
        return self._tokens.text

    @token.setter
    def token(self, text: str) -> None:
        self._tokens.text = text

    async def close(self) -> None:
        """Ends the client; calls under way fail with ClientClosed. Closing again does nothing."""
        if self._closed:
            return
        if self._mux is None:
            self._closed = True
            return
        self._bound()
        self._closed = True
        await self._mux.close()
        await self._connections.close()

    async def __aenter__(self) -> Client:
        self._bound()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<pointsman.Client {self._connections.address}{' closed' if self._closed else ''}>"

    def _bound(self) -> Multiplexer:
        """The multiplexer of the running loop; the first call binds the client to it."""
        loop = asyncio.get_running_loop()
        if self._fork != _forks:
            raise RuntimeError(
                "this client was made before a fork, which cannot share connections: make one in the child"
            )
        if self._closed:
            raise ClientClosed("the client is closed", code=grpc.StatusCode.CANCELLED, executed=Executed.NO)
        if self._mux is None:
            self._loop = loop
            self._mux = Multiplexer(self._connections, loop)
        elif loop is not self._loop:
            raise RuntimeError(
                "this client belongs to another event loop: make one client a loop, or use pointsman.sync"
            )
        return self._mux

    def _timeout_of(self, options: Mapping[str, Any]) -> float:
        timeout = options.get("timeout")
        return self._timeout_s if timeout is None else seconds("timeout", timeout)

    def _put_read_options(
        self, request: pb.QueryRequest | pb.StreamQueryRequest, options: ReadOptions, method: str
    ) -> None:
        if options:
            put_options(request.options, options, method)
            request.request_id = options.get("request_id") or ""
        # Without a preference the tenant's default decides, and that may be a replica.
        if self._tokens.enabled and self._tokens.value and options.get("read") != "primary":
            request.options.after_token = self._tokens.value


def connect(
    address: str,
    *,
    tenant: str = "",
    token: str | Callable[[], str] | None = None,
    tls: bool | TLS | None = None,
    timeout: float = DEFAULT_TIMEOUT_S,
    consistency: Consistency = "session",
) -> Client:
    """A client for the router at `address` ("host:port"); nothing is sent before its first call.

    tenant       which of the tenants that the token may use; may be empty when there is one
    token        proves who calls; or a function that returns it, asked at each new connection
    tls          None for plain text, True for the system's authorities, or pointsman.TLS(…)
    timeout      seconds for a call that names none
    consistency  "session": reads see what this client has seen and written, also on replicas; "eventual": they may not
    """
    return Client(address, tenant=tenant, token=token, tls=tls, timeout=timeout, consistency=consistency)
