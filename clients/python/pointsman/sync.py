"""The synchronous twin: the same client on an event loop in a background thread. Safe to use from many threads."""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from types import TracebackType
from typing import Any, TypeVar, Unpack

from pointsman import client as asynchronous
from pointsman.batches import StepLike
from pointsman.options import TLS, BatchOptions, Isolation, ReadOptions, ReadPreference, WriteOptions
from pointsman.results import BatchResults, Receipt, Result, Rows
from pointsman.rows import Column, Record
from pointsman.streams import RowStream
from pointsman.transactions import Savepoint, StatementOptions, Transaction

T = TypeVar("T")

STOP_S = 2.0
"""How long the end of the process waits for the thread."""


class LoopThread:
    """One event loop in a daemon thread, shared by all synchronous clients of a process."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(_on_loop_exception)
        self._thread = threading.Thread(target=self._loop.run_forever, name="pointsman", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine there and waits for it; an interrupt of the waiting thread cancels it."""
        if self.pid != os.getpid():
            work.close()
            raise RuntimeError(
                "this client was made before a fork, which cannot share connections: make one in the child"
            )
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def stop(self) -> None:
        """Ends loop and thread, and what unclosed clients left running there."""
        if self.pid == os.getpid() and self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._wind_down(), self._loop)
            self._thread.join(STOP_S)
            if not self._thread.is_alive():
                self._loop.close()

    async def _wind_down(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._loop.call_soon(self._loop.stop)


def _on_loop_exception(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    # Older grpcio shares one completion queue among all loops of a process and stumbles, without harm, when
    # another loop was quicker to read it.
    if not isinstance(context.get("exception"), BlockingIOError):
        loop.default_exception_handler(context)


_shared: list[LoopThread] = []
_making = threading.Lock()


def loop_thread() -> LoopThread:
    """The thread of this process, started at its first use."""
    with _making:
        if not _shared or _shared[0].pid != os.getpid():
            _shared[:] = [LoopThread()]
            atexit.register(_shared[0].stop)
        return _shared[0]


async def _call(make: Callable[[], T]) -> T:
    return make()


class Client:
    """What pointsman.Client is, with plain calls; make it with `connect`."""

    def __init__(self, inner: asynchronous.Client, thread: LoopThread) -> None:
        self._inner = inner
        self._thread = thread

    def query(self, sql: str, *args: Any, **options: Unpack[ReadOptions]) -> Rows:
        """Runs a read-only statement."""
        return self._thread.run(self._inner.query(sql, *args, **options))

    def query_one(self, sql: str, *args: Any, **options: Unpack[ReadOptions]) -> Record | None:
        """The only row of a read, or None."""
        return self._thread.run(self._inner.query_one(sql, *args, **options))

    def query_value(self, sql: str, *args: Any, **options: Unpack[ReadOptions]) -> Any:
        """The first column of the only row of a read."""
        return self._thread.run(self._inner.query_value(sql, *args, **options))

    def execute(self, sql: str, *args: Any, **options: Unpack[WriteOptions]) -> Result:
        """Runs a statement on the primary, in a transaction of its own."""
        return self._thread.run(self._inner.execute(sql, *args, **options))

    def batch(self, steps: Sequence[StepLike], **options: Unpack[BatchOptions]) -> BatchResults:
        """Runs several statements as one transaction in one message."""
        return self._thread.run(self._inner.batch(steps, **options))

    def stream(self, sql: str, *args: Any, **options: Unpack[ReadOptions]) -> SyncRowStream:
        """Runs a read-only statement whose rows come in chunks: `for row in db.stream(…)`."""
        made = self._thread.run(_call(lambda: self._inner.stream(sql, *args, **options)))
        return SyncRowStream(made, self._thread)

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

    def close(self) -> None:
        """Ends the client; calls under way in other threads fail with ClientClosed."""
        self._thread.run(self._inner.close())

    def __enter__(self) -> Client:
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

    def close(self) -> None:
        """Ends the statement on the server, if it still runs."""
        self._thread.run(self._inner.aclose())

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
        self._thread.run(self._inner.__aexit__(kind, error, trace))


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
        self._thread.run(self._inner.__aexit__(kind, error, trace))


def connect(
    address: str,
    *,
    tenant: str = "",
    token: str | Callable[[], str] | None = None,
    tls: bool | TLS | None = None,
    timeout: float = asynchronous.DEFAULT_TIMEOUT_S,
    consistency: asynchronous.Consistency = "session",
) -> Client:
    """What pointsman.connect is, for programs without asyncio."""
    inner = asynchronous.connect(address, tenant=tenant, token=token, tls=tls, timeout=timeout, consistency=consistency)
    return Client(inner, loop_thread())
