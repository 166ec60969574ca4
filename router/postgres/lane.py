"""A lane: one connection in libpq pipeline mode that carries many callers' units, at psycopg.pq level.

A Sync after each unit keeps errors and implicit transactions apart
(https://www.postgresql.org/docs/current/libpq-pipeline-mode.html). One reader callback per connection; bytes of all
units that were submitted in a loop turn leave together. Not here: which lane a unit takes (decisions/lanes), and what
a fault means (decisions/retry).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.pq import ExecStatus, TransactionStatus

from router.model.identity import EndpointName, Generation
from router.model.observation import Fault, FaultKind, Stage
from router.model.reasons import CloseReason
from router.model.result import StatementResult
from router.ports import Unit
from router.postgres import faults
from router.postgres.liveness import shut_socket
from router.postgres.prepared import PreparedStatements

if TYPE_CHECKING:
    from psycopg.pq.abc import PGconn, PGresult

_ROWS = (ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK, ExecStatus.EMPTY_QUERY)
_CHUNKS = (ExecStatus.TUPLES_CHUNK, ExecStatus.SINGLE_TUPLE)
_COPY = (ExecStatus.COPY_IN, ExecStatus.COPY_OUT, ExecStatus.COPY_BOTH)
_MAX_NOTICES = 20
_CANCEL_S = 0.1
_ABANDONED = {CloseReason.GENERATION: FaultKind.STALE, CloseReason.CONNECTION_LOST: FaultKind.CONNECTION_LOST}


class _Pending:
    """A unit on the wire: what answers are still to come, in their order."""

    __slots__ = ("commands", "local_commit", "notices", "streamed", "unit")

    def __init__(self, unit: Unit) -> None:
        self.unit = unit
        self.commands: deque[tuple[int, bytes | None]] = deque()
        """(step, key): step -1 is a PREPARE or CLOSE; key names the prepared statement an EXECUTE uses."""
        self.notices: list[Any] | None = None
        self.local_commit = False
        self.streamed = False


class PipelineLane:
    """ports.Lane over one psycopg connection."""

    def __init__(
        self,
        connection: psycopg.AsyncConnection[Any],
        endpoint: EndpointName,
        generation: Generation,
        expires_at: float,
        prepared: PreparedStatements,
        returned: Callable[[PipelineLane, CloseReason | None], Any],
    ) -> None:
        self._connection = connection
        self._pgconn: PGconn = connection.pgconn
        self._endpoint = endpoint
        self._generation = generation
        self._expires_at = expires_at
        self._prepared = prepared
        self._returned = returned
        self._loop = asyncio.get_running_loop()
        self._inbox: deque[Unit] = deque()
        self._pending: deque[_Pending] = deque()
        self._fd = self._pgconn.socket
        self._reading = True
        self._writing = False
        self._closed: CloseReason | None = None
        self._given_back = False
        self._cancel_unconfirmed = False
        """A cancel request was sent, and may not have arrived yet: it would hit whatever runs here next."""
        self._notices_before = self._pgconn.notice_handler
        self._pgconn.nonblocking = 1
        self._pgconn.enter_pipeline_mode()
        self._pgconn.notice_handler = self._on_notice
        self._loop.add_reader(self._fd, self._on_readable)

    def __repr__(self) -> str:
        state = self._closed.value if self._closed else "open"
        return f"<PipelineLane {self._endpoint} generation={self._generation} in_flight={self.in_flight} {state}>"

    @property
    def generation(self) -> Generation:
        return self._generation

    @property
    def connection(self) -> psycopg.AsyncConnection[Any]:
        """For the pool that lent it."""
        return self._connection

    @property
    def in_flight(self) -> int:
        return len(self._inbox) + len(self._pending)

    @property
    def usable(self) -> bool:
        if self._closed is not None or self._given_back or self._cancel_unconfirmed:
            return False
        return self._loop.time() < self._expires_at

    @property
    def in_transaction(self) -> bool:
        if self._closed is not None:
            return False
        return bool(self._inbox) or self._pgconn.transaction_status != TransactionStatus.IDLE

    @property
    def in_failed_transaction(self) -> bool:
        return self._closed is None and self._pgconn.transaction_status == TransactionStatus.INERROR

    def submit(self, unit: Unit) -> None:
        """ports.Lane.submit."""
        if self._closed is not None or self._given_back:
            self._fail_unsent(unit, FaultKind.CONNECTION_LOST, "lane is closed")
            return
        if not self._inbox:
            self._loop.call_soon(self._send_inbox)
        self._inbox.append(unit)

    # --- sending -----------------------------------------------------------------------------------------------

    def _send_inbox(self) -> None:
        now = self._loop.time()
        inbox = self._inbox
        try:
            while inbox:
                pending = _Pending(inbox.popleft())
                # In the queue before the first byte: whatever fails from here on counts as sent.
                self._pending.append(pending)
                pending.unit.sent = True
                pending.unit.sent_at = now
                self._send_unit(pending)
            if self._pending:
                self._flush()
        except (psycopg.Error, ValueError) as error:
            self._lose(faults.first_line(error))

    def _send_unit(self, pending: _Pending) -> None:
        pgconn = self._pgconn
        unit = pending.unit
        for step, statement in enumerate(unit.statements):
            plan = self._prepared.plan(statement) if unit.on_rows is None else None
            if plan is None:
                pgconn.send_query_params(
                    statement.sql, statement.params, statement.oids or None, statement.formats or None
                )
                pending.commands.append((step, None))
                continue
            if plan.evicted is not None:
                pgconn.send_close_prepared(plan.evicted)
                pending.commands.append((-1, None))
            if plan.prepare:
                pgconn.send_prepare(plan.name, statement.sql, statement.oids or None)
                pending.commands.append((-1, plan.name))
            pgconn.send_query_prepared(plan.name, statement.params, statement.formats or None)
            pending.commands.append((step, plan.name))
        if unit.on_rows is not None and unit.chunk_rows:
            pgconn.set_chunked_rows_mode(unit.chunk_rows)
        pgconn.pipeline_sync()

    def _flush(self) -> None:
        if self._pgconn.flush() == 0:
            if self._writing:
                self._writing = False
                self._loop.remove_writer(self._fd)
        elif not self._writing:
            self._writing = True
            self._loop.add_writer(self._fd, self._on_writable)

    def _on_writable(self) -> None:
        try:
            self._flush()
        except psycopg.Error as error:
            self._lose(faults.first_line(error))

    # --- receiving ---------------------------------------------------------------------------------------------

    def _on_readable(self) -> None:
        try:
            self._pgconn.consume_input()
            self._take_results()
            if self._writing:
                self._flush()
        except psycopg.Error as error:
            self._lose(faults.first_line(error))

    def _take_results(self) -> None:
        pgconn = self._pgconn
        while self._pending and self._reading and self._closed is None and not pgconn.is_busy():
            result = pgconn.get_result()
            pending = self._pending[0]
            if result is None:
                if pending.commands:
                    pending.commands.popleft()
                continue
            status = result.status
            if status == ExecStatus.PIPELINE_SYNC:
                self._pending.popleft()
                self._finish(pending)
            else:
                self._take_result(pending, status, result)

    def _take_result(self, pending: _Pending, status: int, result: PGresult) -> None:
        step, name = pending.commands[0] if pending.commands else (len(pending.unit.statements) - 1, None)
        unit = pending.unit
        if status in _CHUNKS:
            self._deliver(pending, result)
        elif status in _ROWS:
            if step >= 0:
                unit.results.append(self._statement_result(result))
        elif status == ExecStatus.PIPELINE_ABORTED:
            if step < 0 and name is not None:
                self._prepared.forget(name)
        elif status in _COPY:
            self._lose("COPY on a lane", FaultKind.PROTOCOL)
        else:
            self._take_error(pending, result, step, name)

    def _take_error(self, pending: _Pending, result: PGresult, step: int, name: bytes | None) -> None:
        unit = pending.unit
        stage = self._stage(pending)
        fault = faults.from_result(result, stage, max(step, 0), prepared=name is not None)
        if name is not None and (step < 0 or fault.stale_statement):
            self._prepared.forget(name)
        if fault.kind is FaultKind.CONNECTION_LOST:
            self._lose(fault.message, sqlstate=fault.sqlstate)
        elif unit.fault is None:
            unit.fault = self._at_home(fault)

    def _deliver(self, pending: _Pending, result: PGresult) -> None:
        pending.streamed = True
        on_rows = pending.unit.on_rows
        if on_rows is not None and not on_rows(result):
            self._reading = False
            self._loop.remove_reader(self._fd)

    def resume_reading(self) -> None:
        """ports.Lane.resume_reading."""
        if self._closed is not None or self._reading:
            return
        self._reading = True
        self._loop.add_reader(self._fd, self._on_readable)
        # What libpq has already taken from the socket raises no event: look at it first.
        self._loop.call_soon(self._on_buffered)

    def _on_buffered(self) -> None:
        if self._closed is not None or self._given_back:
            return
        try:
            self._take_results()
        except psycopg.Error as error:
            self._lose(faults.first_line(error))

    @staticmethod
    def _statement_result(result: PGresult) -> StatementResult:
        tag = result.command_status
        return StatementResult(
            result if result.nfields or result.status == ExecStatus.TUPLES_OK else None,
            tag.decode() if tag else "",
            result.command_tuples or 0,
        )

    def _on_notice(self, result: PGresult) -> None:
        if not self._pending:
            return
        pending = self._pending[0]
        if faults.says_local_commit(result):
            pending.local_commit = True
        if pending.notices is None:
            pending.notices = []
        if len(pending.notices) < _MAX_NOTICES:
            pending.notices.append(faults.notice(result))

    def _finish(self, pending: _Pending) -> None:
        unit = pending.unit
        if pending.notices and unit.results:
            unit.results[-1].notices = tuple(pending.notices)
        if pending.local_commit and unit.fault is None:
            what = "committed here, not confirmed by the synchronous standby"
            unit.fault = self._fault(FaultKind.LOCAL_COMMIT, Stage.COMMIT, what, "01000")
        unit.done_at = self._loop.time()
        unit.done(unit)

    # --- ending ------------------------------------------------------------------------------------------------

    def _stage(self, pending: _Pending) -> Stage:
        if pending.streamed:
            return Stage.STREAM
        return Stage.COMMIT if pending.unit.commits else Stage.EXECUTE

    def _fault(self, kind: FaultKind, stage: Stage, message: str, sqlstate: str = "") -> Fault:
        return Fault(kind, stage, sqlstate, message, endpoint=self._endpoint, generation=self._generation)

    def _at_home(self, fault: Fault) -> Fault:
        return Fault(
            fault.kind,
            fault.stage,
            fault.sqlstate,
            fault.message,
            fault.detail,
            self._endpoint,
            self._generation,
            fault.step,
            fault.stale_statement,
        )

    def _lose(self, message: str, kind: FaultKind = FaultKind.CONNECTION_LOST, sqlstate: str = "") -> None:
        self._end(CloseReason.CONNECTION_LOST, kind, message, sqlstate)

    def abandon(self, reason: CloseReason) -> None:
        """ports.Lane.abandon."""
        self._end(reason, _ABANDONED.get(reason, FaultKind.CLOSED), f"connection abandoned: {reason.value}")

    def _end(self, reason: CloseReason, kind: FaultKind, message: str, sqlstate: str = "") -> None:
        if self._closed is not None or self._given_back:
            return
        self._closed = reason
        self._detach()
        shut_socket(self._pgconn)
        unsent, self._inbox = self._inbox, deque()
        pending, self._pending = self._pending, deque()
        self._pgconn.finish()
        for entry in pending:
            unit = entry.unit
            if unit.fault is None:
                unit.fault = self._fault(kind, self._stage(entry), message, sqlstate)
            unit.done_at = self._loop.time()
            self._loop.call_soon(unit.done, unit)
        for unit in unsent:
            self._fail_unsent(unit, kind, message, sqlstate)
        self._returned(self, reason)

    def _fail_unsent(self, unit: Unit, kind: FaultKind, message: str, sqlstate: str = "") -> None:
        unit.fault = self._fault(kind, Stage.SEND, message, sqlstate)
        unit.done_at = self._loop.time()
        self._loop.call_soon(unit.done, unit)

    def _detach(self) -> None:
        self._loop.remove_reader(self._fd)
        if self._writing:
            self._writing = False
            self._loop.remove_writer(self._fd)
        self._pgconn.notice_handler = self._notices_before

    async def cancel(self) -> None:
        """ports.Lane.cancel."""
        if self._closed is not None or self._given_back or not self._pending:
            return
        self._cancel_unconfirmed = True
        try:
            await self._connection.cancel_safe(timeout=_CANCEL_S)
        except faults.CLIENT_ERRORS:
            return  # best effort: the caller abandons the lane when the answer does not come
        # The server closes the request's connection after it has signalled the backend.
        self._cancel_unconfirmed = False

    async def give_back(self, *, tainted: bool = False) -> None:
        """ports.Lane.give_back."""
        if self._closed is not None or self._given_back:
            return
        reason = self._why_not_reusable(tainted)
        if reason is not None:
            self._end(reason, FaultKind.CLOSED, f"connection closed: {reason.value}")
            return
        self._given_back = True
        self._detach()
        self._pgconn.exit_pipeline_mode()
        self._pgconn.nonblocking = 0
        await asyncio.shield(self._returned(self, None))

    def _why_not_reusable(self, tainted: bool) -> CloseReason | None:
        if self.in_flight:
            return CloseReason.OUT_OF_SYNC
        if self._pgconn.transaction_status != TransactionStatus.IDLE:
            return CloseReason.NOT_IDLE
        if self._cancel_unconfirmed:
            return CloseReason.CANCEL_UNCONFIRMED
        if tainted:
            return CloseReason.TAINTED
        if self._loop.time() >= self._expires_at:
            return CloseReason.LIFETIME
        return None
