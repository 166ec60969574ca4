"""The synchronous twin: the same client on an event loop in a background thread. Safe to use from many threads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, TypeVar, Unpack, overload

from pointsman import client as asynchronous
from pointsman.batches import StepLike
from pointsman.copies import CopyStream
from pointsman.copy_data import Row, SyncSource, Target, lines
from pointsman.copy_requests import CopyInOptions, CopyOutOptions, CopyResult, CopyRowsOptions, Progress, TableName
from pointsman.loop_thread import LoopThread, loop_thread
from pointsman.options import TLS, BatchOptions, Isolation, ReadOptions, ReadPreference, StreamOptions, WriteOptions
from pointsman.outcomes import Outcome
from pointsman.repeating import keyed
from pointsman.results import BatchResults, Receipt, Result, Rows, single_row, single_value
from pointsman.rows import Column, ColumnBatch, Record
from pointsman.streams import RowStream
from pointsman.sync_listening import SyncListening
from pointsman.transactions import Savepoint, StatementOptions, Transaction

T = TypeVar("T")


async def _call(make: Callable[[], T]) -> T:
    return make()


class Client:
    """What pointsman.Client is, with plain calls; make it with `connect`."""

    def __init__(self, inner: asynchronous.Client, thread: LoopThread) -> None:
        self._inner = inner
        self._requests = inner._requests
        self._thread = thread

    def query(self, sql: str, *args: Any, **options: Unpack[ReadOptions]) -> Rows:
        """Runs a read-only statement."""
        call = self._requests.read(sql, args, options)
        return self._requests.rows(call, self._thread.roundtrip(self._inner._bound, call))

    def query_one(self, sql: str, *args: Any, **options: Unpack[ReadOptions]) -> Record | None:
        """The only row of a read, or None."""
        return single_row(self.query(sql, *args, **options))

    def query_value(self, sql: str, *args: Any, **options: Unpack[ReadOptions]) -> Any:
        """The first column of the only row of a read."""
        return single_value(self.query(sql, *args, **options))

    def execute(self, sql: str, *args: Any, **options: Unpack[WriteOptions]) -> Result:
        """Runs a statement on the primary, in a transaction of its own."""
        if options and keyed(options) is not None:
            return self._thread.run(self._inner.execute(sql, *args, **options))
        call = self._requests.write(sql, args, options)
        return self._requests.result(call, self._thread.roundtrip(self._inner._bound, call))

    def batch(self, steps: Sequence[StepLike], **options: Unpack[BatchOptions]) -> BatchResults:
        """Runs several statements as one transaction in one message."""
        if options and keyed(options) is not None:
            return self._thread.run(self._inner.batch(steps, **options))
        call = self._requests.batch(steps, options)
        return self._requests.results(call, self._thread.roundtrip(self._inner._bound, call))

    def stream(self, sql: str, *args: Any, **options: Unpack[StreamOptions]) -> SyncRowStream:
        """Runs a read-only statement whose rows come in chunks: `for row in db.stream(…)`."""
        made = self._thread.run(_call(lambda: self._inner.stream(sql, *args, **options)))
        return SyncRowStream(made, self._thread)

    @overload
    def copy_out(
        self,
        table: TableName | None = None,
        *,
        query: str | None = None,
        to: None = None,
        progress: Progress | None = None,
        **options: Unpack[CopyOutOptions],
    ) -> SyncCopyStream: ...

    @overload
    def copy_out(
        self,
        table: TableName | None = None,
        *,
        query: str | None = None,
        to: Target,
        progress: Progress | None = None,
        **options: Unpack[CopyOutOptions],
    ) -> CopyResult: ...

    def copy_out(
        self,
        table: TableName | None = None,
        *,
        query: str | None = None,
        to: Target | None = None,
        progress: Progress | None = None,
        **options: Unpack[CopyOutOptions],
    ) -> SyncCopyStream | CopyResult:
        """Copies a table, or what a query returns, as raw data: to a path or an open file, or to the caller by
        `for data in db.copy_out("accounts")`. `progress` is called in the client's own thread."""

        async def start() -> CopyStream | CopyResult:
            stream = self._inner.copy_out(table, query=query, to=to, progress=progress, **options)
            return stream if to is None else await stream

        made = self._thread.run(start())
        return SyncCopyStream(made, self._thread) if isinstance(made, CopyStream) else made

    def copy_in(
        self,
        table: TableName,
        source: SyncSource,
        *,
        progress: Progress | None = None,
        **options: Unpack[CopyInOptions],
    ) -> CopyResult:
        """Copies raw data into a table, as a whole or not at all. An iterable is advanced in a thread."""
        return self._thread.run(
            self._inner._fill(table, progress, options, source, lambda: source, in_thread=True)
        )

    def copy_rows(
        self,
        table: TableName,
        rows: Iterable[Row],
        columns: Sequence[str] | None = None,
        *,
        progress: Progress | None = None,
        **options: Unpack[CopyRowsOptions],
    ) -> CopyResult:
        """The same with rows of Python values."""
        chosen = {**options, "columns": columns}
        return self._thread.run(
            self._inner._fill(table, progress, chosen, rows, lambda: lines(rows, in_thread=True))
        )

    def listen(self, *channels: str, timeout: float | None = None) -> SyncListening:
        """What others NOTIFY: `for item in db.listen("jobs")`."""
        made = self._thread.run(_call(lambda: self._inner.listen(*channels, timeout=timeout)))
        return SyncListening(made, self._thread)

    def transaction(
        self,
        *,
        isolation: Isolation | None = None,
        read_only: bool = False,
        deferrable: bool = False,
        read: ReadPreference | None = None,
        timeout: float | None = None,
    ) -> SyncTransaction:
        """A transaction: `with db.transaction() as tx`."""
        made = self._thread.run(
            _call(
                lambda: self._inner.transaction(
                    isolation=isolation, read_only=read_only, deferrable=deferrable, read=read, timeout=timeout
                )
            )
        )
        return SyncTransaction(made, self._thread)

    def outcome(
        self, idempotency_key: str = "", *, request_id: str = "", timeout: float | None = None
    ) -> Outcome:
        """What became of a write whose answer did not arrive."""
        return self._thread.run(self._inner.outcome(idempotency_key, request_id=request_id, timeout=timeout))

    def cancel(self, request_id: str, *, timeout: float | None = None) -> bool:
        """Asks to stop the request of that id."""
        return self._thread.run(self._inner.cancel(request_id, timeout=timeout))

    @property
    def token(self) -> str:
        """What this client has seen, as text."""
        return self._inner.token

    @token.setter
    def token(self, text: str) -> None:
        self._inner.token = text

    def observe(self, token: str) -> None:
        """Takes another client's token, besides all that this one saw itself."""
        self._inner.observe(token)

    def with_token(self, token: str = "") -> Client:
        """A client over the same connections with a memory of its own, which begins with the token."""
        return Client(self._thread.run(_call(lambda: self._inner.with_token(token))), self._thread)

    def close(self) -> None:
        """Ends the client; calls under way in other threads fail with ClientClosed."""
        self._thread.end(self._inner.close())

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class SyncCopyStream:
    """The data of a copy_out, for `for`. Leaving early ends it on the server."""

    def __init__(self, inner: CopyStream, thread: LoopThread) -> None:
        self._inner = inner
        self._thread = thread

    @property
    def result(self) -> CopyResult | None:
        """Set once all has come."""
        return self._inner.result

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        data = self._thread.run(self._inner.next_piece())
        if data is None:
            raise StopIteration
        return data

    def close(self) -> None:
        """Ends it on the server, if it still runs."""
        self._thread.end(self._inner.aclose())

    def __enter__(self) -> SyncCopyStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class SyncRowStream:
    """The rows of a stream, for `for`. Leaving early ends the statement on the server."""

    def __init__(self, inner: RowStream, thread: LoopThread) -> None:
        self._inner = inner
        self._thread = thread
        self._rows: Iterator[Record] = iter(())

    @property
    def columns(self) -> tuple[Column, ...]:
        """The columns; empty before the first chunk has come."""
        return self._inner.columns

    @property
    def receipt(self) -> Receipt | None:
        """How the request went; None before its end."""
        return self._inner.receipt

    @property
    def rowcount(self) -> int | None:
        """How many rows there were; None before the end."""
        return self._inner.rowcount

    def __iter__(self) -> Iterator[Record]:
        return self

    def __next__(self) -> Record:
        for row in self._rows:
            return row
        records = self._thread.run(self._inner.next_chunk())
        if records is None:
            raise StopIteration
        self._rows = iter(records)
        return next(self._rows)

    def chunks(self) -> Iterator[list[Record]]:
        """The same rows, a list a chunk: quicker for many rows."""
        return iter(self._next_chunk, None)

    def batches(self) -> Iterator[ColumnBatch]:
        """The same rows, column by column: quickest, and what numpy and the like take."""
        return iter(self._next_columns, None)

    def _next_chunk(self) -> list[Record] | None:
        left = list(self._rows)
        return left if left else self._thread.run(self._inner.next_chunk())

    def _next_columns(self) -> ColumnBatch | None:
        left = list(self._rows)
        return ColumnBatch.of(left) if left else self._thread.run(self._inner.next_columns())

    def close(self) -> None:
        """Ends the statement on the server, if it still runs."""
        self._thread.end(self._inner.aclose())

    def __enter__(self) -> SyncRowStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class SyncTransaction:
    """What pointsman.Transaction is, with plain calls."""

    def __init__(self, inner: Transaction, thread: LoopThread) -> None:
        self._inner = inner
        self._thread = thread

    def query(self, sql: str, *args: Any, **options: Unpack[StatementOptions]) -> Rows:
        """Runs a statement and returns its rows."""
        return self._thread.run(self._inner.query(sql, *args, **options))

    def query_one(self, sql: str, *args: Any, **options: Unpack[StatementOptions]) -> Record | None:
        """The only row, or None."""
        return self._thread.run(self._inner.query_one(sql, *args, **options))

    def query_value(self, sql: str, *args: Any, **options: Unpack[StatementOptions]) -> Any:
        """The first column of the only row."""
        return self._thread.run(self._inner.query_value(sql, *args, **options))

    def execute(self, sql: str, *args: Any, **options: Unpack[StatementOptions]) -> Result:
        """Runs a statement."""
        return self._thread.run(self._inner.execute(sql, *args, **options))

    def savepoint(self) -> SyncSavepoint:
        """`with tx.savepoint()`: what is inside is undone alone when it raises."""
        return SyncSavepoint(self, self._inner.savepoint(), self._thread)

    def commit(self, **options: Unpack[StatementOptions]) -> None:
        """Commits now, and ends the transaction."""
        self._thread.run(self._inner.commit(**options))

    def rollback(self, **options: Unpack[StatementOptions]) -> None:
        """Rolls back now, and ends the transaction."""
        self._thread.run(self._inner.rollback(**options))

    @property
    def receipt(self) -> Receipt | None:
        """How the commit went; None before."""
        return self._inner.receipt

    def __enter__(self) -> SyncTransaction:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.leave(self._inner.__aexit__(kind, error, trace), error)


class SyncSavepoint:
    """The inside of `with tx.savepoint()`."""

    def __init__(self, transaction: SyncTransaction, inner: Savepoint, thread: LoopThread) -> None:
        self._transaction = transaction
        self._inner = inner
        self._thread = thread

    def __enter__(self) -> SyncTransaction:
        self._thread.run(self._inner.__aenter__())
        return self._transaction

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.leave(self._inner.__aexit__(kind, error, trace), error)


def connect(
    address: str,
    *,
    tenant: str = "",
    token: str | Callable[[], str] | None = None,
    tls: bool | TLS | None = None,
    ca: str | None = None,
    cert: str | None = None,
    key: str | None = None,
    timeout: float = asynchronous.DEFAULT_TIMEOUT_S,
    consistency: asynchronous.Consistency = "session",
    channels: int = asynchronous.DEFAULT_CHANNELS,
) -> Client:
    """What pointsman.connect is, for programs without asyncio."""
    inner = asynchronous.connect(
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
    return Client(inner, loop_thread())
