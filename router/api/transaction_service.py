"""Transact: one interactive transaction a stream, pinned to one connection from its first statement to its end.

Failures of a message are answered in-band, since the transaction may live on after rollback_to. The RPC itself ends
with an error only when the transaction is gone. Limits of age and idleness are kept by the engine's session.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from pointsman.v1 import transaction_service_pb2 as pb
from pointsman.v1 import types_pb2

from router.api.calls import Call, draining_error, timeout_s
from router.api.drain import Drain
from router.api.message_stream import MessageStream, check_size
from router.api.results import ResultEncoder, ResultWriter, WhenTooLarge, limits_from, write_receipt
from router.api.rpc_roles import check_role
from router.api.status import status_of
from router.api.surface import Session, Sessions
from router.api.token_metadata import merged
from router.api.transact_plan import Action, Begin, End, Plan, plan_from
from router.model.callers import CallerRole
from router.model.errors import Code, Executed, RouterError
from router.model.identity import TenantName
from router.model.reasons import RefuseReason
from router.model.request import DEFAULT_OPTIONS, Method, TransactionState
from router.model.result import StatementResult
from router.model.topology import Tenant
from router.ports import Chance, Clock

_STATUSES = {
    TransactionState.IDLE: pb.TRANSACTION_STATUS_IDLE,
    TransactionState.IN_TRANSACTION: pb.TRANSACTION_STATUS_IN_TRANSACTION,
    TransactionState.IN_ERROR: pb.TRANSACTION_STATUS_IN_ERROR,
}
_GONE = frozenset(
    {
        RefuseReason.TRANSACTION_LOST,
        RefuseReason.TRANSACTION_EXPIRED,
        RefuseReason.BACKEND_LOST,
        RefuseReason.OUTCOME_UNKNOWN,
    }
)
"""After these there is no transaction left to go on with."""
_READ_TAGS = ("SELECT", "SHOW", "FETCH", "EXPLAIN", "VALUES", "TABLE")


@dataclass(frozen=True, slots=True)
class TransactionService:
    """pointsman.v1.TransactionService."""

    sessions: Sessions
    encoder: ResultEncoder
    chance: Chance
    clock: Clock
    drain: Drain
    refused: Callable[[TenantName, Method, RouterError], None]
    """Told of messages that the engine never saw."""

    async def transact(self, call: Call[Tenant], stream: MessageStream[pb.TransactRequest]) -> None:
        """Serve one transaction until it ends or the caller does."""
        call.counted = True
        await _Transaction(self, call, stream).run()


class _Transaction:
    """One stream. Messages are done one after the other, in the order in which they came."""

    def __init__(
        self, shared: TransactionService, call: Call[Tenant], stream: MessageStream[pb.TransactRequest]
    ) -> None:
        self._shared = shared
        self._prove = call.prove
        self._call = call
        self._tenant = call.caller
        self._stream = stream
        self._options = DEFAULT_OPTIONS
        self._session: Session | None = None
        self._ended = False
        self._skipping = False
        """A message failed though PostgreSQL never saw it: what follows must not be done as if it had succeeded."""
        self._fatal: RouterError | None = None
        self._deadline = float("inf")
        self._write_turn = asyncio.Lock()
        self._notice: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Until the transaction or the stream has ended; what was not committed is rolled back at once."""
        unsubscribe = self._shared.drain.subscribe(self._tell_drain)
        try:
            while not self._ended and (message := await self._stream.read()) is not None:
                check_role(self._prove().role, CallerRole.WRITER, "Transact")  # it may have been taken away
                await self._send(await self._perform(message))
                del message  # it may be large, and the next one may not come for long
                if self._fatal is not None:
                    raise self._fatal
        finally:
            unsubscribe()
            if self._notice is not None:
                self._notice.cancel()
            await self._close()

    async def _perform(self, message: pb.TransactRequest) -> pb.TransactResponse:
        """Do what one message asks for: begin, then its action, then its end."""
        response = pb.TransactResponse(tag=message.tag)
        try:
            plan = self._plan(message)
        except RouterError as error:
            self._shared.refused(self._tenant.name, Method.TRANSACT, error)
            await self._after_failure(message.end != 0, error, response)
        else:
            await self._carry_out(plan, response)
        self._write_state(response)
        return response

    def _plan(self, message: pb.TransactRequest) -> Plan:
        check_size(self._stream.last_bytes, self._stream.max_bytes)
        plan = plan_from(message, begun=self._session is not None)
        if plan.begin is not None and self._shared.drain.begun:
            self._fatal = draining_error()
            raise self._fatal
        if self._skipping:
            _refuse_after_failure(plan)
        return plan

    async def _carry_out(self, plan: Plan, response: pb.TransactResponse) -> None:
        now = self._shared.clock.now()
        if plan.begin is not None and plan.begin.timeout_ms:
            self._deadline = now + plan.begin.timeout_ms / 1000
        limit = timeout_s(self._tenant.policy, self._stream.time_remaining(), plan.timeout_ms)
        deadline = min(self._deadline, now + limit)
        try:
            if plan.begin is not None:
                await self._open(plan.begin, deadline)
            if plan.action is not None:
                await self._act(plan.action, deadline, response)
            if plan.end is End.COMMIT:
                await self._commit(deadline, response)
        except RouterError as error:
            await self._after_failure(plan.end is not End.NOT, error, response)
        else:
            if plan.end is End.ROLLBACK:
                await self._roll_back(response)
            response.done.SetInParent()

    async def _act(self, action: Action, deadline: float, response: pb.TransactResponse) -> None:
        session = self._session
        assert session is not None
        before = session.status
        try:
            if action.statement is not None:
                self._write_result(await session.run(action.statement, deadline), response)
            elif action.kind == "savepoint":
                await session.savepoint(action.name, deadline)
            elif action.kind == "rollback_to":
                await session.rollback_to(action.name, deadline)
                self._skipping = False
            else:
                await session.release(action.name, deadline)
        except RouterError as error:
            lost = before is not TransactionState.IDLE and session.status is TransactionState.IDLE
            if lost or error.reason in _GONE:
                self._fatal = error
            raise

    async def _open(self, begin: Begin, deadline: float) -> None:
        self._options = begin.options
        try:
            after = merged(begin.after, self._call.presented or "")
            self._session = await self._shared.sessions.open(
                self._tenant, begin.mode, begin.options, deadline, self._shared.chance.identifier(), after
            )
        except RouterError as error:
            self._fatal = error  # there is nothing that could live on
            raise

    async def _commit(self, deadline: float, response: pb.TransactResponse) -> None:
        self._ended = True
        if self._session is not None:
            await self._session.commit(deadline)
            self._call.token = self._session.receipt().token
        response.outcome = pb.TRANSACT_OUTCOME_COMMITTED

    async def _roll_back(self, response: pb.TransactResponse) -> None:
        self._ended = True
        if self._session is not None:
            with contextlib.suppress(RouterError):
                await self._session.rollback()  # a connection that cannot say so is closed, which rolls back too
        response.outcome = pb.TRANSACT_OUTCOME_ROLLED_BACK

    async def _after_failure(self, ends: bool, error: RouterError, response: pb.TransactResponse) -> None:
        """A message that failed is never committed, nor is what follows as if it had succeeded."""
        undone = error.executed in (Executed.NO, Executed.ROLLED_BACK)
        if self._ended:  # the commit itself failed: only the error knows
            if undone:
                response.outcome = pb.TRANSACT_OUTCOME_ROLLED_BACK
        elif ends:
            await self._roll_back(response)
            if error.executed is Executed.YES:
                error.executed = Executed.ROLLED_BACK
        elif self._fatal is not None:
            if undone:
                response.outcome = pb.TRANSACT_OUTCOME_ROLLED_BACK
        elif self._session is not None and error.executed is not Executed.YES:
            self._skipping = self._session.status is not TransactionState.IN_ERROR
        self._write_failure(response, error)

    def _write_result(self, result: StatementResult, response: pb.TransactResponse) -> None:
        reads = result.command_tag.startswith(_READ_TAGS)
        writer = ResultWriter(
            self._shared.encoder,
            limits_from(self._options, self._tenant.policy),
            WhenTooLarge.REFUSE_DONE if reads else WhenTooLarge.TRUNCATE,
        )
        answer = types_pb2.ResultSet()
        writer.write(result, answer)
        response.done.CopyFrom(answer)

    def _write_failure(self, response: pb.TransactResponse, error: RouterError) -> None:
        status = status_of(error, self._tenant.name)
        response.failed.MergeFromString(status.SerializeToString())

    def _write_state(self, response: pb.TransactResponse) -> None:
        if self._session is None:
            response.status = pb.TRANSACTION_STATUS_IDLE
            return
        skipping = self._skipping and not self._ended
        response.status = pb.TRANSACTION_STATUS_IN_ERROR if skipping else _STATUSES[self._session.status]
        write_receipt(self._session.receipt(), response.receipt)

    def _tell_drain(self) -> None:
        self._notice = asyncio.get_running_loop().create_task(self._send_drain())

    async def _send_drain(self) -> None:
        remaining_ms = max(1, int(self._shared.drain.remaining_s * 1000))
        await self._send(pb.TransactResponse(draining_ms=remaining_ms))

    async def _send(self, response: pb.TransactResponse) -> None:
        async with self._write_turn:
            await self._stream.write(response.SerializeToString())

    async def _close(self) -> None:
        """Give the connection up, also when the caller's going away cancels us twice."""
        if self._session is not None:
            with contextlib.suppress(RouterError):
                await asyncio.shield(self._session.close())


def _refuse_after_failure(plan: Plan) -> None:
    """Let only a way out pass; PostgreSQL does the same with 25P02 for what it has seen fail itself."""
    if plan.action is not None and plan.action.kind != "rollback_to":
        raise RouterError(
            Code.FAILED_PRECONDITION,
            RefuseReason.TRANSACTION_MISUSE,
            "an earlier message of this transaction failed: roll back, or roll back to a savepoint",
        )
    if plan.action is None and plan.end is End.COMMIT:
        raise RouterError(
            Code.ABORTED,
            RefuseReason.TRANSACTION_LOST,
            "an earlier message of this transaction failed: it was rolled back, not committed",
            executed=Executed.ROLLED_BACK,
        )
