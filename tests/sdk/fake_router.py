"""A router without PostgreSQL: a real grpc.aio server in the test's process whose answers the test scripts."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from grpc import aio
from pointsman.v1 import errors_pb2, query_service_pb2_grpc, transaction_service_pb2_grpc
from pointsman.v1 import query_service_pb2 as pb
from pointsman.v1 import transaction_service_pb2 as tx_pb
from pointsman.v1 import types_pb2 as types

Answer = pb.MultiplexReply | None
OnCall = Callable[[pb.MultiplexCall], Awaitable[Answer]]

INTEGER = types.COLUMN_KIND_INTEGER
TEXT = types.COLUMN_KIND_TEXT


def result_set(
    names: Iterable[str] = ("n",), rows: Iterable[Iterable[int]] = ((1,),), **fields: Any
) -> types.ResultSet:
    """A result of int8 columns."""
    rows = [list(row) for row in rows]
    columns = list(names)
    return types.ResultSet(
        schema=types.ResultSchema(
            has_columns=True, columns=[types.ColumnInfo(name=name, kind=INTEGER, type_oid=20) for name in columns]
        ),
        batch=types.RowBatch(
            row_count=len(rows),
            columns=[types.ColumnData(integers=[row[position] for row in rows]) for position in range(len(columns))],
        ),
        **fields,
    )


def status(
    code: grpc.StatusCode,
    message: str = "",
    *,
    reason: str = "",
    retry_s: float | None = None,
    pg: errors_pb2.PgErrorDetail | None = None,
    **metadata: str,
) -> errors_pb2.Status:
    """A status as the router makes it."""
    found = errors_pb2.Status(code=code.value[0], message=message)
    if reason or metadata:
        info = errors_pb2.ErrorInfo(reason=reason, domain="pointsman", metadata=metadata)
        found.details.append(packed("google.rpc.ErrorInfo", info))
    if retry_s is not None:
        delay = Duration(seconds=int(retry_s), nanos=int(retry_s % 1 * 1e9))
        found.details.append(packed("google.rpc.RetryInfo", errors_pb2.RetryInfo(retry_delay=delay)))
    if pg is not None:
        found.details.append(packed("pointsman.v1.PgErrorDetail", pg))
    return found


def packed(name: str, message: Any) -> AnyMessage:
    """A message as a detail of a status."""
    return AnyMessage(type_url=f"type.googleapis.com/{name}", value=message.SerializeToString())


async def abort_with(context: Any, failure: errors_pb2.Status) -> None:
    """Ends an RPC with a status, details in the trailer."""
    context.set_trailing_metadata((("grpc-status-details-bin", failure.SerializeToString()),))
    code = next(code for code in grpc.StatusCode if code.value[0] == failure.code)
    await context.abort(code, failure.message)


async def one_row(call: pb.MultiplexCall) -> Answer:
    """Answers everything with the row (1,)."""
    receipt = types.Receipt(endpoint="one", attempts=1)
    which = call.WhichOneof("call")
    if which == "query":
        return pb.MultiplexReply(query=pb.QueryResponse(result=result_set(), receipt=receipt))
    if which == "execute":
        done = types.ResultSet(rows_affected=1, command_tag="INSERT 0 1")
        return pb.MultiplexReply(execute=pb.ExecuteResponse(result=done, receipt=receipt))
    steps = [pb.StepResult(result=types.ResultSet(rows_affected=1)) for _ in call.batch.steps]
    return pb.MultiplexReply(batch=pb.ExecuteBatchResponse(steps=steps, receipt=receipt))


async def until(condition: Callable[[], Any], *, within_s: float = 5.0) -> None:
    """Waits for something that another task brings about."""
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110 -- most conditions here have no event
            await asyncio.sleep(0.005)


async def never(call: pb.MultiplexCall) -> Answer:
    """A frozen router: takes everything, answers nothing."""
    await asyncio.Event().wait()
    return None


class MuxStream:
    """One Multiplex stream as the server sees it."""

    def __init__(self, context: Any) -> None:
        self.context = context
        self.half_closed = asyncio.Event()
        self.replies: asyncio.Queue[pb.MultiplexResponse | errors_pb2.Status | None] = asyncio.Queue()

    def drain(self) -> None:
        """Says that new calls belong elsewhere."""
        self.replies.put_nowait(pb.MultiplexResponse(draining=True))

    def end(self, failure: errors_pb2.Status | None = None) -> None:
        """Ends the stream, with an error or without."""
        self.replies.put_nowait(failure)


class FakeRouter(query_service_pb2_grpc.QueryServiceServicer, transaction_service_pb2_grpc.TransactionServiceServicer):
    """`on_call` answers; everything received is kept for the test to look at."""

    def __init__(self) -> None:
        self.on_call: OnCall = one_row
        self.headers: tuple[tuple[str, str], ...] = (("pointsman-stream", "open"),)
        self.on_stream: Callable[[MuxStream], Awaitable[None]] | None = None
        self.on_rows: Callable[[pb.StreamQueryRequest, Any], AsyncIterator[pb.StreamQueryResponse]] | None = None
        self.on_listen: Callable[[pb.ListenRequest, Any], AsyncIterator[pb.ListenResponse]] | None = None
        self.on_transact: Callable[[tx_pb.TransactRequest], Awaitable[tx_pb.TransactResponse | None]] | None = None
        self.messages: list[pb.MultiplexRequest] = []
        self.streams: list[MuxStream] = []
        self.cancelled: list[int] = []
        self.metadata: list[dict[str, str]] = []
        self.transact_failure: errors_pb2.Status | None = None
        """Ends the stream after its first answer."""
        self.transact_messages: list[tx_pb.TransactRequest] = []
        self.transact_peers: list[str] = []
        self.transact_ends = 0
        self.cancel_requests: list[str] = []
        self.outcome = pb.GetOutcomeResponse()
        self.outcome_requests: list[pb.GetOutcomeRequest] = []
        self.on_question: Callable[[Any], Awaitable[None]] | None = None
        """Before GetOutcome and CancelQuery answer, with their context."""
        self.address = ""
        self._server: aio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def calls(self) -> list[pb.MultiplexCall]:
        """Every call received, cancels left out."""
        return [call for message in self.messages for call in message.calls if call.WhichOneof("call") != "cancel"]

    async def start(self, port: int = 0) -> None:
        """Listens."""
        self._server = aio.server(
            options=[("grpc.http2.min_ping_interval_without_data_ms", 10_000), ("grpc.so_reuseport", 0)]
        )
        query_service_pb2_grpc.add_QueryServiceServicer_to_server(self, self._server)
        transaction_service_pb2_grpc.add_TransactionServiceServicer_to_server(self, self._server)
        bound = self._server.add_insecure_port(f"127.0.0.1:{port}")
        self.address = f"127.0.0.1:{bound}"
        await self._server.start()

    async def stop(self) -> None:
        """Ends everything at once, as a killed process would."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    async def Multiplex(self, request_iterator: Any, context: Any) -> AsyncIterator[pb.MultiplexResponse]:
        self.metadata.append(dict(context.invocation_metadata()))
        stream = MuxStream(context)
        self.streams.append(stream)
        if self.on_stream is not None:
            await self.on_stream(stream)
        if stream.replies.empty():  # the router refuses before it lets in
            await context.send_initial_metadata(self.headers)
        reader = self._spawn(self._read(request_iterator, stream))
        try:
            while True:
                said = await stream.replies.get()
                while isinstance(said, pb.MultiplexResponse):
                    # As the router does: what is ready goes out together.
                    if stream.replies.empty() or said.draining:
                        yield said
                        said = await stream.replies.get()
                        continue
                    more = stream.replies.get_nowait()
                    if isinstance(more, pb.MultiplexResponse):
                        said.MergeFrom(more)
                    else:
                        yield said
                        said = more
                if said is not None:
                    await abort_with(context, said)
                return
        finally:
            reader.cancel()

    async def _read(self, requests: Any, stream: MuxStream) -> None:
        running: dict[int, asyncio.Task[None]] = {}
        async for message in requests:
            self.messages.append(message)
            for call in message.calls:
                if call.WhichOneof("call") == "cancel":
                    self.cancelled.append(call.id)
                    if call.id in running:
                        running[call.id].cancel()
                else:
                    running[call.id] = self._spawn(self._answer(call, stream))
        stream.half_closed.set()

    async def _answer(self, call: pb.MultiplexCall, stream: MuxStream) -> None:
        reply = await self.on_call(call)
        if reply is not None:
            reply.id = call.id
            stream.replies.put_nowait(pb.MultiplexResponse(replies=[reply]))

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def StreamQuery(self, request: pb.StreamQueryRequest, context: Any) -> AsyncIterator[pb.StreamQueryResponse]:
        assert self.on_rows is not None
        async for message in self.on_rows(request, context):
            yield message

    async def Listen(self, request: pb.ListenRequest, context: Any) -> AsyncIterator[pb.ListenResponse]:
        assert self.on_listen is not None
        self.metadata.append(dict(context.invocation_metadata()))
        async for message in self.on_listen(request, context):
            yield message

    async def Transact(self, request_iterator: Any, context: Any) -> AsyncIterator[tx_pb.TransactResponse]:
        assert self.on_transact is not None
        self.transact_peers.append(context.peer())
        try:
            async for message in request_iterator:
                self.transact_messages.append(message)
                answer = await self.on_transact(message)
                if answer is not None:
                    answer.tag = message.tag
                    yield answer
                if self.transact_failure is not None:
                    await abort_with(context, self.transact_failure)
                if message.end:
                    return
        finally:
            self.transact_ends += 1

    async def GetOutcome(self, request: pb.GetOutcomeRequest, context: Any) -> pb.GetOutcomeResponse:
        self.outcome_requests.append(request)
        if self.on_question is not None:
            await self.on_question(context)
        return self.outcome

    async def CancelQuery(self, request: pb.CancelQueryRequest, context: Any) -> pb.CancelQueryResponse:
        self.cancel_requests.append(request.request_id)
        if self.on_question is not None:
            await self.on_question(context)
        known = request.request_id == "a-known-request-id"
        return pb.CancelQueryResponse(result=pb.CANCEL_RESULT_CANCELLING if known else pb.CANCEL_RESULT_NOT_FOUND)


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A router that takes connections and never says a word."""
    with contextlib.suppress(asyncio.CancelledError):
        await reader.read()
    writer.close()
