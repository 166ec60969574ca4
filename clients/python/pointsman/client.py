"""The asynchronous client: what a caller asks for becomes a message, and its reply a Python value."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterable, Callable, Iterable, Mapping, Sequence
from threading import get_ident
from typing import Any, Literal, TypeVar, Unpack

import grpc

from pointsman.batches import StepLike
from pointsman.calls import Call, other_loop
from pointsman.cancelling import cancel
from pointsman.connection import Connections
from pointsman.copies import CopyStream
from pointsman.copy_data import Row, Source, Target, lines
from pointsman.copy_requests import (
    CopyInOptions,
    CopyOutOptions,
    CopyResult,
    CopyRowsOptions,
    Progress,
    TableName,
    in_start,
    out_request,
    total_timeout,
)
from pointsman.errors import ClientClosed, Error, Executed
from pointsman.filling import Filling, fill
from pointsman.forking import forks, made_before_fork
from pointsman.listening import Listening
from pointsman.multiplex import Multiplexer
from pointsman.options import (
    MAY_BE_BEHIND,
    TLS,
    BatchOptions,
    Isolation,
    ReadOptions,
    ReadPreference,
    StreamOptions,
    WriteOptions,
    put_options,
    seconds,
)
from pointsman.outcomes import Outcome, ask
from pointsman.parameters import put_statement
from pointsman.repeating import Repetition, keyed
from pointsman.replies import Reply
from pointsman.requests import Requests
from pointsman.results import BatchResults, Result, Rows, single_row, single_value
from pointsman.rows import Record
from pointsman.streams import RowStream
from pointsman.tokens import TokenKeeper
from pointsman.transactions import Transaction, begin_message
from pointsman.v1 import query_service_pb2 as pb

DEFAULT_TIMEOUT_S = 30.0
DEFAULT_CHANNELS = 4

Consistency = Literal["session", "eventual"]
Done = TypeVar("Done")


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
        ca: str | None = None,
        cert: str | None = None,
        key: str | None = None,
        timeout: float = DEFAULT_TIMEOUT_S,
        consistency: Consistency = "session",
        channels: int = DEFAULT_CHANNELS,
    ) -> None:
        if consistency not in ("session", "eventual"):
            raise ValueError(f"consistency must be 'session' or 'eventual', not {consistency!r}")
        if isinstance(channels, bool) or not isinstance(channels, int) or channels < 1:
            raise ValueError(f"channels must be a whole number from 1, not {channels!r}")
        self._channels = channels
        self._timeout_s = seconds("timeout", timeout)
        self._connections = Connections(address, tenant=tenant, token=token, tls=TLS.chosen(tls, ca, cert, key))
        self._tokens = TokenKeeper(enabled=consistency == "session")
        self._requests = Requests(self._tokens, self._timeout_s)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._mux: Multiplexer | None = None
        self._fork = forks()
        self._closed = False
        self._borrowed = False
        """The connections are another client's to close."""

    async def query(self, sql: str, *args: Any, **options: Unpack[ReadOptions]) -> Rows:
        """Runs a read-only statement. PostgreSQL refuses writes in it; the router may repeat it."""
        mux = self._bound()
        call = self._requests.read(sql, args, options)
        return self._requests.rows(call, await mux.roundtrip(call))

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
        if options and (with_key := keyed(options)) is not None:
            return await self._repeated(self._requests.write, (sql, args), with_key, self._requests.result)
        call = self._requests.write(sql, args, options)
        return self._requests.result(call, await mux.roundtrip(call))

    async def batch(self, steps: Sequence[StepLike], **options: Unpack[BatchOptions]) -> BatchResults:
        """Runs several statements as one transaction in one message: all of them or none."""
        mux = self._bound()
        if options and (with_key := keyed(options)) is not None:
            return await self._repeated(self._requests.batch, (steps,), with_key, self._requests.results)
        call = self._requests.batch(steps, options)
        return self._requests.results(call, await mux.roundtrip(call))

    async def _repeated(
        self,
        make: Callable[..., Call],
        content: tuple[Any, ...],
        options: dict[str, Any],
        read: Callable[[Call, Reply], Done],
    ) -> Done:
        """A write with a key: sent until it is answered, or its deadline. It is made once: what it is made of may be
        an iterator, or change meanwhile."""
        made = make(*content, options)
        attempts = Repetition(made.timeout_s)
        while True:
            call = made.again(attempts.left_s())
            call.doubt = attempts.in_doubt
            try:
                return read(call, await self._bound().roundtrip(call))
            except Error as error:
                await asyncio.sleep(attempts.failed(error))

    def stream(self, sql: str, *args: Any, **options: Unpack[StreamOptions]) -> RowStream:
        """Runs a read-only statement whose rows come in chunks: `async for row in db.stream(…)`.

        With a timeout the whole stream must end in time; without one, each chunk must come within the default.
        """
        self._bound()
        request = pb.StreamQueryRequest()
        put_statement(request.statement, sql, args)
        self._requests.put_read_options(request, options, "stream")
        timeout = options.get("timeout")
        total_s = None if timeout is None else seconds("timeout", timeout)
        return RowStream(self._connections, self._tokens, request, total_s=total_s, chunk_s=self._timeout_s)

    def copy_out(
        self,
        table: TableName | None = None,
        *,
        query: str | None = None,
        to: Target | None = None,
        progress: Progress | None = None,
        **options: Unpack[CopyOutOptions],
    ) -> CopyStream:
        """Copies a table, or what a query returns, as raw data: the fastest way to many rows. Read-only.

        `await db.copy_out("accounts", to="accounts.csv", format="csv", header=True)` gives a CopyResult; without `to`
        the data comes by `async for data in db.copy_out("accounts")`, cut anywhere. `to` is a path, which holds all of
        it in the end or stays as it was, or an open file. With a timeout all of it must come in time; without one each
        piece must come within the client's default. `progress` is called with the bytes so far and, at the end, the
        rows.
        """
        self._bound()
        request, read_options = out_request(table, query, options)
        self._requests.put_read_options(request, read_options, "copy_out")
        return CopyStream(
            self._connections,
            self._tokens,
            request,
            to=to,
            progress=progress,
            total_s=total_timeout(options),
            chunk_s=self._timeout_s,
        )

    async def copy_in(
        self,
        table: TableName,
        source: Source,
        *,
        progress: Progress | None = None,
        **options: Unpack[CopyInOptions],
    ) -> CopyResult:
        """Copies raw data into a table, on the primary, as a whole or not at all.

        The source is a path, bytes, an open file, or an iterable or asynchronous iterable of bytes of any size. When
        it raises, or the call is cancelled, everything is rolled back. Without a timeout the router's longest holds.
        With a key the rows are there once, and data that can be read again (the path of a file, bytes, a list) is sent
        again until the copy is done, with progress from 0.
        """
        return await self._fill(table, progress, options, source, lambda: source)

    async def copy_rows(
        self,
        table: TableName,
        rows: Iterable[Row] | AsyncIterable[Row],
        columns: Sequence[str] | None = None,
        *,
        progress: Progress | None = None,
        **options: Unpack[CopyRowsOptions],
    ) -> CopyResult:
        """The same with rows of Python values: far quicker than inserts."""
        return await self._fill(table, progress, {**options, "columns": columns}, rows, lambda: lines(rows))

    async def _fill(
        self,
        table: TableName,
        progress: Progress | None,
        options: Mapping[str, Any],
        given: Any,
        source: Callable[[], Any],
        *,
        in_thread: bool = False,
    ) -> CopyResult:
        def make(chosen: Mapping[str, Any]) -> Filling:
            self._bound()
            start, total_s = in_start(table, chosen), total_timeout(chosen)
            return Filling(
                self._connections, self._tokens, start, progress=progress, total_s=total_s, connect_s=self._timeout_s
            )

        return await fill(make, options, given, source, patience_s=self._timeout_s, in_thread=in_thread)

    def listen(self, *channels: str, timeout: float | None = None) -> Listening:
        """What others NOTIFY: `async for item in db.listen("jobs")` gives Notifications, and a Gap wherever some may be
        missing. Without a timeout it connects again for as long as it takes, but for the first time."""
        self._bound()
        if not channels:
            raise ValueError("name at least one channel")
        again_s = None if timeout is None else seconds("timeout", timeout)
        return Listening(self._connections, channels, first_s=again_s or self._timeout_s, again_s=again_s)

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
        if read_only and read in MAY_BE_BEHIND and self._tokens.enabled and self._tokens.value:
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
        return await cancel(self._connections, request_id, self._requests.timeout_s({"timeout": timeout}))

    async def outcome(
        self, idempotency_key: str = "", *, request_id: str = "", timeout: float | None = None
    ) -> Outcome:
        """What became of a write whose answer did not arrive, by its key: asks the present primary, changes nothing.

        A write without a key leaves no trace that could tell: by request_id one hears whether the router is at work on
        it, else UNKNOWN.
        """
        self._bound()
        return await ask(self._connections, idempotency_key, request_id, self._requests.timeout_s({"timeout": timeout}))

    @property
    def token(self) -> str:
        """What this client has seen, as text; give it to another client to let it see no less. "" forgets it."""
        return self._tokens.text

    @token.setter
    def token(self, text: str) -> None:
        self._tokens.text = text

    def observe(self, token: str) -> None:
        """Takes another client's token: reads of this one see what that one had seen, besides all it saw itself."""
        self._tokens.observe(token)

    def with_token(self, token: str = "") -> Client:
        """A client over the same connections with a memory of its own, which begins with the token: one for each
        request of a service, say. Closing it does nothing."""
        self._bound()
        made = copy.copy(self)
        made._tokens = TokenKeeper(enabled=self._tokens.enabled)
        made._tokens.text = token
        made._requests = Requests(made._tokens, self._timeout_s)
        made._borrowed = True
        return made

    async def close(self) -> None:
        """Ends the client; calls under way fail with ClientClosed. Closing again does nothing."""
        if self._closed or self._borrowed:
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

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<pointsman.Client {self._connections.address}{' closed' if self._closed else ''}>"

    def _bound(self) -> Multiplexer:
        """The multiplexer of the running loop; the first call binds the client to it."""
        if self._closed or self._fork != forks() or self._thread != get_ident() or self._mux is None:
            return self._bind()
        # The same thread may run another loop by now. That shows when the call is awaited; asking for the running
        # loop would cost a system call each time.
        return self._mux

    def _bind(self) -> Multiplexer:
        """The same with all checks, and the words for what is wrong."""
        loop = asyncio.get_running_loop()
        if self._fork != forks():
            raise made_before_fork()
        if self._closed:
            raise ClientClosed("the client is closed", code=grpc.StatusCode.CANCELLED, executed=Executed.NO)
        if self._mux is None:
            self._loop, self._thread = loop, get_ident()
            self._mux = Multiplexer(self._connections, loop, channels=self._channels)
        elif loop is not self._loop:
            raise other_loop()
        return self._mux


def connect(
    address: str,
    *,
    tenant: str = "",
    token: str | Callable[[], str] | None = None,
    tls: bool | TLS | None = None,
    ca: str | None = None,
    cert: str | None = None,
    key: str | None = None,
    timeout: float = DEFAULT_TIMEOUT_S,
    consistency: Consistency = "session",
    channels: int = DEFAULT_CHANNELS,
) -> Client:
    """A client for the router at `address` ("host:port"); nothing is sent before its first call.

    tenant       which of the tenants that the token may use; may be empty when there is one
    token        proves who calls; or a function that returns it, asked at each new connection
    tls          None for plain text, True for the system's authorities, or pointsman.TLS(…)
    ca           file with the authorities that the router's certificate is believed by, instead of the system's
    cert, key    files of this client's own certificate, where the router knows callers by it; read again on changes
    timeout      seconds for a call that names none
    consistency  "session": reads on replicas see what this client has seen and written; "eventual": they may not
    channels     the most connections that calls are spread over; a second is made only when the first is not enough
    """
    return Client(
        address,
        tenant=tenant,
        token=token,
        tls=tls,
        ca=ca,
        cert=cert,
        key=key,
        timeout=timeout,
        consistency=consistency,
        channels=channels,
    )
