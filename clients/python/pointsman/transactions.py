"""Interactive transactions over Transact: one stream each, pinned to one connection of the router."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from types import TracebackType
from typing import Any, TypedDict, Unpack

import grpc
from grpc import aio

from pointsman.connection import GRACE_S, Connections, Link, Pauses
from pointsman.errors import (
    Aborted,
    DeadlineExceeded,
    Error,
    Executed,
    InvalidRequest,
    OutcomeUnknown,
    TransactionLost,
)
from pointsman.options import milliseconds, put_transaction, seconds
from pointsman.parameters import put_statement
from pointsman.placeholders import hinted
from pointsman.results import Receipt, Result, Rows, result_of, single_row, single_value
from pointsman.rows import Record
from pointsman.status import drained, error_from_rpc, error_from_status, worth_another_try
from pointsman.tokens import TokenKeeper
from pointsman.v1 import transaction_service_pb2 as pb

METHOD = "/pointsman.v1.TransactionService/Transact"

WIND_UP_S = 2.0
"""How long a finished stream may take to end by itself, in the background; and a savepoint to be undone by a cancel."""

Rpc = Any  # aio.StreamStreamCall[pb.TransactRequest, pb.TransactResponse]


class StatementOptions(TypedDict, total=False):
    """What statements in a transaction take: `timeout` in seconds."""

    timeout: float | None


def begin_message(**options: Any) -> pb.TransactBegin:
    """The message that begins a transaction."""
    begin = pb.TransactBegin()
    put_transaction(begin.transaction, options)
    return begin


class Transaction:
    """`async with db.transaction() as tx`; begins with its first statement. One statement at a time."""

    def __init__(
        self, connections: Connections, tokens: TokenKeeper, begin: pb.TransactBegin, *, timeout_s: float
    ) -> None:
        self._connections = connections
        self._tokens = tokens
        self._version = tokens.version
        self._begin = begin
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._lock = asyncio.Lock()
        self._rpc: Rpc | None = None
        self._link: Link | None = None
        self._tag = 0
        self._savepoints = 0
        self._over = ""
        self._receipt = b""

    async def query(self, sql: str, *args: Any, **options: Unpack[StatementOptions]) -> Rows:
        """Runs a statement and returns its rows."""
        return (await self.execute(sql, *args, **options)).rows

    async def query_one(self, sql: str, *args: Any, **options: Unpack[StatementOptions]) -> Record | None:
        """The only row, or None. NoSingleRow when there are more."""
        return single_row(await self.query(sql, *args, **options))

    async def query_value(self, sql: str, *args: Any, **options: Unpack[StatementOptions]) -> Any:
        """The first column of the only row."""
        return single_value(await self.query(sql, *args, **options))

    async def execute(self, sql: str, *args: Any, **options: Unpack[StatementOptions]) -> Result:
        """Runs a statement. After an error only a rollback, or leaving the savepoint around it, goes on."""
        request = pb.TransactRequest()
        put_statement(request.run, sql, args)
        answer = await self._exchange(request, options)
        return result_of(answer.done, answer.receipt.SerializeToString())

    def savepoint(self) -> Savepoint:
        """`async with tx.savepoint()`: what is inside is undone alone when it raises or is cancelled. Where it cannot
        be, the transaction is lost, and its exit says so."""
        self._savepoints += 1
        return Savepoint(self, f"pointsman_{self._savepoints}")

    async def commit(self, **options: Unpack[StatementOptions]) -> None:
        """Commits now, and ends the transaction. Aborted when PostgreSQL could only roll back."""
        if self._begun_nothing("committed"):
            return
        answer = await self._exchange(pb.TransactRequest(end=pb.TRANSACT_END_COMMIT), options)
        self._end("committed")
        if answer.outcome != pb.TRANSACT_OUTCOME_COMMITTED:
            raise Aborted(
                "nothing was committed: a statement of the transaction had failed, so PostgreSQL rolled it back",
                code=grpc.StatusCode.ABORTED,
                reason="TRANSACTION_MISUSE",
                executed=Executed.ROLLED_BACK,
            )
        self._receipt = answer.receipt.SerializeToString()
        self._tokens.keep(answer.receipt.token, self._version)

    async def rollback(self, **options: Unpack[StatementOptions]) -> None:
        """Rolls back now, and ends the transaction."""
        if self._begun_nothing("rolled back"):
            return
        await self._exchange(pb.TransactRequest(end=pb.TRANSACT_END_ROLLBACK), options)
        self._end("rolled back")

    @property
    def receipt(self) -> Receipt | None:
        """How the commit went; None before."""
        return Receipt.from_bytes(self._receipt) if self._receipt else None

    async def __aenter__(self) -> Transaction:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._over:
            if error is None and self._over == "lost":
                raise over_error("lost")  # the body went on as if nothing had happened, and believes in its commit
            return
        if error is None:
            try:
                await self.commit()
            finally:
                self._break("ended")
            return
        try:
            if isinstance(error, Exception):
                await self.rollback()
        except Error:
            pass  # the end of the stream rolls back as well, and the body's own error matters more
        finally:
            self._break("rolled back")

    async def _act(self, action: str, name: str) -> None:
        request = pb.TransactRequest()
        setattr(request, action, name)
        await self._exchange(request, {})

    async def _exchange(self, request: pb.TransactRequest, options: Mapping[str, Any]) -> pb.TransactResponse:
        """Sends one message and returns its answer; raises what it says went wrong."""
        timeout = options.get("timeout")
        timeout_s = self._timeout_s if timeout is None else seconds("timeout", timeout)
        committing = request.end == pb.TRANSACT_END_COMMIT
        async with self._lock:
            if self._over:
                raise over_error(self._over)
            deadline = self._loop.time() + timeout_s
            try:
                answer = await self._send(request, deadline)
            except BaseException as error:
                # An answer that nobody reads would be taken for the next one: the transaction cannot go on.
                self._break("lost")
                found = self._loss(error, committing, timeout_s)
                raise (self._tokens.told(found, self._version) if isinstance(found, Error) else found) from None
        if answer.WhichOneof("event") == "failed":
            failure = self._tokens.told(error_from_status(answer.failed, writes=True), self._version)
            if request.end:
                self._end("ended")
            elif isinstance(failure, TransactionLost):
                self._break("lost")
            raise hinted(failure, [request.run])
        return answer

    async def _send(self, request: pb.TransactRequest, deadline: float) -> pb.TransactResponse:
        if self._rpc is not None:
            return await self._send_once(request, deadline)
        request.begin.CopyFrom(self._begin)
        pauses = Pauses()
        while True:
            self._rpc, self._link = await self._connections.open_until(self._start, deadline)
            try:
                answer = await self._send_once(request, deadline)
                if answer.WhichOneof("event") != "failed" or not drained(error_from_status(answer.failed, writes=True)):
                    return answer
            except aio.AioRpcError as failure:
                # What was answered nothing yet can begin anew: the old one can only be rolled back.
                if not worth_another_try(error_from_rpc(failure, writes=True)):
                    raise
            pauses.failed()
            pause_s = pauses.next_s()
            if self._loop.time() + pause_s >= deadline:
                raise self._connections.unavailable(self._timeout_s, "the router is going away")
            self._link.retire()
            self._drop()
            await asyncio.sleep(pause_s)

    async def _send_once(self, request: pb.TransactRequest, deadline: float) -> pb.TransactResponse:
        rpc: Rpc = self._rpc
        self._tag += 1
        request.tag = self._tag
        request.timeout_ms = milliseconds("timeout", max(0.001, deadline - self._loop.time()))
        async with asyncio.timeout_at(deadline + GRACE_S):
            # An RPC that has ended says why when it is read, not when it is written.
            with contextlib.suppress(asyncio.InvalidStateError):
                await rpc.write(request)
            while True:
                answer = await rpc.read()
                if not isinstance(answer, pb.TransactResponse):
                    raise ConnectionResetError("the router closed the stream")
                if answer.tag == self._tag:
                    return answer

    def _start(self, channel: aio.Channel) -> Rpc:
        start: Any = channel.stream_stream(
            METHOD,
            request_serializer=pb.TransactRequest.SerializeToString,
            response_deserializer=pb.TransactResponse.FromString,
        )
        return start(metadata=self._connections.metadata())

    def _loss(self, error: BaseException, committing: bool, timeout_s: float) -> BaseException:
        """What a broken exchange means: only a COMMIT under way leaves its outcome open."""
        executed = Executed.MAYBE if committing else Executed.ROLLED_BACK
        closed = self._connections.met_close(error, executed)
        if closed is not None:
            return closed
        if isinstance(error, TimeoutError):
            return DeadlineExceeded(
                f"no answer within {timeout_s:g} s; "
                + ("the commit may have been done" if committing else "the transaction is rolled back"),
                code=grpc.StatusCode.DEADLINE_EXCEEDED,
                reason="DEADLINE",
                executed=executed,
            )
        if isinstance(error, aio.AioRpcError):
            found = error_from_rpc(error, writes=True)
            if "executed" in found.metadata or found.code is not grpc.StatusCode.UNAVAILABLE:
                if "executed" not in found.metadata:
                    found.executed = executed
                return found
        elif not isinstance(error, ConnectionResetError):
            return error
        words = "the connection to the router was lost"
        if committing:
            return OutcomeUnknown(
                words + " while the commit was under way",
                code=grpc.StatusCode.UNKNOWN,
                reason="OUTCOME_UNKNOWN",
                executed=executed,
            )
        return TransactionLost(
            words + ", and the transaction with it",
            code=grpc.StatusCode.ABORTED,
            reason="TRANSACTION_LOST",
            executed=executed,
        )

    def _begun_nothing(self, over: str) -> bool:
        if self._rpc is None and not self._over:
            self._over = over
            return True
        return False

    def _end(self, over: str) -> None:
        """The router has answered the end: let the stream run out in the background."""
        self._over = over
        rpc, self._rpc = self._rpc, None
        link, self._link = self._link, None
        if rpc is not None and link is not None:
            self._connections.spawn(_wind_up(rpc, link))

    def _break(self, over: str) -> None:
        """Ends the stream as it is; the router rolls back what was not committed."""
        self._over = self._over or over
        self._drop()

    def _drop(self) -> None:
        rpc, self._rpc = self._rpc, None
        link, self._link = self._link, None
        if rpc is not None:
            rpc.cancel()
        if link is not None:
            link.release()


class Savepoint:
    """The inside of `async with tx.savepoint()`."""

    def __init__(self, transaction: Transaction, name: str) -> None:
        self._transaction = transaction
        self._name = name

    async def __aenter__(self) -> Transaction:
        await self._transaction._act("savepoint", self._name)
        return self._transaction

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._transaction._over:
            return
        if error is None:
            await self._transaction._act("release", self._name)
            return
        undone = False
        try:
            if not isinstance(error, GeneratorExit):  # nothing can be awaited under one
                # Who is cancelled or interrupted shall not be held up by a router that does not answer.
                async with asyncio.timeout(None if isinstance(error, Exception) else WIND_UP_S):
                    await self._transaction._act("rollback_to", self._name)
                undone = True
        except (Error, TimeoutError):
            if isinstance(error, Exception):
                raise
        finally:
            if not undone:  # else its work would be committed with the rest
                self._transaction._break("lost")


async def _wind_up(rpc: Rpc, link: Link) -> None:
    try:
        async with asyncio.timeout(WIND_UP_S):
            await rpc.done_writing()
            while isinstance(await rpc.read(), pb.TransactResponse):
                pass
    except (TimeoutError, aio.AioRpcError, asyncio.InvalidStateError):
        pass  # the outcome is known already
    finally:
        rpc.cancel()
        link.release()


def over_error(over: str) -> Error:
    """The error of a statement in a transaction that has ended."""
    if over == "lost":
        return TransactionLost(
            "the transaction was lost by an earlier error and is rolled back",
            code=grpc.StatusCode.ABORTED,
            reason="TRANSACTION_LOST",
            executed=Executed.ROLLED_BACK,
        )
    return InvalidRequest(
        f"the transaction is {over}; begin another",
        code=grpc.StatusCode.FAILED_PRECONDITION,
        reason="TRANSACTION_MISUSE",
        executed=Executed.NO,
    )
