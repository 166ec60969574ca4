"""Units on a connection in libpq's pipeline mode: how they are sent, and how their answers are read.

A Sync after each unit keeps errors and implicit transactions apart
(https://www.postgresql.org/docs/current/libpq-pipeline-mode.html). One reader callback per connection; bytes of all
units that were submitted in a loop turn leave together. A unit whose prepared statement is outdated is sent once more
(second_tries). Not here: how the connection is lent, stopped and given back (lane).
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING

import psycopg
from psycopg.pq import ConnStatus, ExecStatus, TransactionStatus

from router.model.identity import EndpointName, Generation
from router.model.observation import Fault, FaultKind, Stage
from router.model.reasons import CloseReason
from router.model.request import Statement
from router.model.result import PgNotice, StatementResult
from router.ports import Unit
from router.postgres import faults
from router.postgres.answer_size import MOST_BYTES, MOST_UNASKED, AnswerSize
from router.postgres.command_tags import known_tags, read_tag
from router.postgres.pipeline_sync import queue_sync_on
from router.postgres.prepared import PreparedStatements, is_control
from router.postgres.row_mode import RowMode
from router.postgres.second_tries import NAME_ERRORS, SecondTries, Staleness, is_open_transaction, staleness
from router.postgres.session_guard import READ_ONLY, SEARCH_PATH, SessionGuard

if TYPE_CHECKING:
    from psycopg.pq.abc import PGconn, PGresult

_TUPLES = int(ExecStatus.TUPLES_OK)  # as plain integers: reading a member of an enum takes longer than the comparison
_COMMAND = int(ExecStatus.COMMAND_OK)
_SYNC = int(ExecStatus.PIPELINE_SYNC)
_IDLE = int(TransactionStatus.IDLE)
_CHUNKS = (ExecStatus.TUPLES_CHUNK, ExecStatus.SINGLE_TUPLE)
_MAX_NOTICES = 20
_COMMIT = b"COMMIT"

_Expected = tuple[int, bytes | None]
"""An answer that is to come: of which step of its unit, and the name of the prepared statement it depends on."""
_PREPARE, _CLOSE, _UNDO, _END = -1, -2, -3, -4
_END_OF_UNIT: _Expected = (_END, None)
_OUT_OF_STEP = "answers are out of step"


class UnitPipeline:
    """The sending and reading half of a lane. end() is the other half's: whoever ends it empties what is here."""

    def __init__(
        self, pgconn: PGconn, endpoint: EndpointName, generation: Generation, prepared: PreparedStatements,
        guard: SessionGuard,
    ) -> None:
        self._pgconn = pgconn
        self._endpoint = endpoint
        self._generation = generation
        self._prepared = prepared
        self._guard = guard
        self._guarded, self._search_path = guard.keeps_read_only, guard.search_path
        self._told = pgconn.parameter_status
        self._loop = asyncio.get_running_loop()
        self._now = self._loop.time
        self._inbox: deque[Unit] = deque()
        self._units: deque[Unit] = deque()
        """On the wire, in the order of their Syncs."""
        self._expected: deque[_Expected] = deque()
        self._again = SecondTries()
        self._remarkable = False
        """There is more to the end of a unit than telling its caller."""
        # Of the unit at the head of the wire:
        self._notices: list[PgNotice] = []
        self._local_commit = False
        self._streamed = False
        self._doubt: bytes | None = None
        """Its error may be that of this prepared statement only."""
        self._outside = True
        """What is sent next runs in no transaction that an earlier unit began."""
        self._fd = pgconn.socket
        self._reading, self._writing = True, False
        self._closed: CloseReason | None = None
        self._given_back = False
        pgconn.nonblocking = 1
        pgconn.enter_pipeline_mode()
        self._queue_sync = queue_sync_on(pgconn)
        self._notices_before = pgconn.notice_handler
        pgconn.notice_handler = self._on_notice
        self._row_mode = RowMode(pgconn, self._on_readable)
        self._size = AnswerSize(self._fd)
        self._loop.add_reader(self._fd, self._on_readable)

    def _end(self, reason: CloseReason, kind: FaultKind, message: str, sqlstate: str = "") -> None:
        """End the connection; every unit that has no fault yet gets this one."""
        raise NotImplementedError

    def _session_changed(self) -> None:
        """What keeps it from writing is gone, or names mean something else by now."""
        raise NotImplementedError

    def _lose(self, message: str, kind: FaultKind = FaultKind.CONNECTION_LOST, sqlstate: str = "") -> None:
        self._end(CloseReason.CONNECTION_LOST, kind, message, sqlstate)

    def _stage(self, unit: Unit) -> Stage:
        if self._streamed and unit is self._units[0]:
            return Stage.STREAM
        return Stage.COMMIT if unit.commits else Stage.EXECUTE

    def _fault(self, kind: FaultKind, stage: Stage, message: str, sqlstate: str = "") -> Fault:
        return Fault(kind, stage, sqlstate, message, endpoint=self._endpoint, generation=self._generation)

    # --- sending -----------------------------------------------------------------------------------------------

    def _send_inbox(self) -> None:
        inbox = self._inbox
        if not inbox:
            return  # ended meanwhile
        now = self._now()
        try:
            while inbox:
                unit = inbox.popleft()
                unit.sent = True
                unit.sent_at = now
                self._send(unit)
            self._flush()
        except (psycopg.Error, ValueError) as error:
            self._lose(faults.first_line(error))

    def _send(self, unit: Unit, *, named: bool = True, undo: bool = False) -> None:
        pgconn, prepared, statements = self._pgconn, self._prepared, unit.statements
        if not self._units:
            self._size.idle_from = None
            self._outside = pgconn.transaction_status == _IDLE
        # In the queue before the first byte: whatever fails from here on counts as sent.
        self._units.append(unit)
        if undo:
            self._expected.append((_UNDO, None))
            pgconn.send_query_params(b"ROLLBACK", None)
        if prepared.closing and unit.on_rows is None:  # libpq gives chunks of the first command only
            self._close_names()
        # An outdated plan would abort a transaction that cannot be repeated: in there nothing goes by name.
        named = named and self._outside and unit.on_rows is None
        if named and len(statements) == 1 and (plan := prepared.ready(statements[0])) is not None:
            statement = statements[0]
            self._expected.append(plan.use)
            pgconn.send_query_prepared(plan.name, statement.params, statement.formats or None)
        else:
            for step, statement in enumerate(statements):
                self._send_step(step, statement, named)
            if any(is_control(statement.sql) for statement in statements):
                # Until libpq can be asked again. A COMMIT ends its transaction also where it fails.
                self._outside = statements[-1].sql == _COMMIT
            if unit.on_rows is not None and unit.chunk_rows:
                self._row_mode.begin(unit.chunk_rows)
        if unit.tells_executed:
            pgconn.send_flush_request()
        self._expected.append(_END_OF_UNIT)
        self._queue_sync()

    def _send_step(self, step: int, statement: Statement, named: bool) -> None:
        pgconn, formats = self._pgconn, statement.formats or None
        name = None
        plan = self._prepared.ready(statement) if named else None
        if plan is not None:
            name = plan.name
        elif named and (plan := self._prepared.add(statement)) is not None:
            if self._prepared.closing:
                self._close_names()
            self._expected.append((_PREPARE, plan.name))
            pgconn.send_prepare(plan.name, statement.sql, statement.oids or None)
        # A plan made in the same breath is not outdated: that use depends on no name.
        self._expected.append((step, name))
        if plan is not None:
            pgconn.send_query_prepared(plan.name, statement.params, formats)
        else:
            pgconn.send_query_params(statement.sql, statement.params, statement.oids or None, formats)

    def _close_names(self) -> None:
        names, self._prepared.closing = self._prepared.closing, []
        for name in names:
            self._expected.append((_CLOSE, name))
            self._pgconn.send_close_prepared(name)

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
            if self._row_mode.open and not self._row_mode.decide():
                return
            idle = not self._units
            self._pgconn.consume_input()
            self._take_results()
            if idle and self._size.unasked():
                self._lose(f"more than {MOST_UNASKED} bytes that nobody asked for", FaultKind.PROTOCOL)
            elif self._units and self._size.too_large(self._units[0]):
                self._refuse_answer(self._units[0])
            elif self._writing:
                self._flush()
        except psycopg.Error as error:
            self._lose(faults.first_line(error))
        except faults.SENSELESS as error:
            self._lose_senseless(error)

    def _refuse_answer(self, unit: Unit) -> None:
        """It will not fit into a message, and what is still to come would fill the memory of everybody."""
        unit.fault = self._fault(FaultKind.TOO_LARGE, self._stage(unit), f"an answer of more than {MOST_BYTES} bytes")
        self._end(CloseReason.ABANDONED, FaultKind.CLOSED, "the connection was closed: an answer was too large")

    def _lose_senseless(self, error: Exception) -> None:
        """What the server says cannot be read: nothing that it says from here on counts."""
        self._lose(f"an answer that makes no sense: {type(error).__name__}", FaultKind.PROTOCOL)

    def _take_results(self) -> None:
        """The hot loop. A call of libpq costs as much as the rest, so it is asked only what is not known already."""
        units, expected = self._units, self._expected  # emptied when the lane ends
        is_busy, get_result = self._pgconn.is_busy, self._pgconn.get_result
        while units and not is_busy():
            result = get_result()
            if result is None:
                if expected[0] is not _END_OF_UNIT:
                    expected.popleft()
                elif units[0].fault is None or self._pgconn.status != ConnStatus.OK:
                    self._lose(_OUT_OF_STEP, FaultKind.PROTOCOL)
                continue
            status = result.status
            if status == _SYNC:
                if expected.popleft() is not _END_OF_UNIT:
                    self._lose(_OUT_OF_STEP, FaultKind.PROTOCOL)
                    return
                self._finish(units.popleft())
            elif status == _TUPLES:
                if expected.popleft()[0] < 0:
                    self._lose(_OUT_OF_STEP, FaultKind.PROTOCOL)
                    return
                tag, count = known_tags.get(result.command_status) or read_tag(result)
                units[0].results.append(StatementResult(result, tag, count))
                get_result()  # the None that ends a command: there already, and never waited for
            elif status == _COMMAND:
                if (step := expected.popleft()[0]) >= 0:
                    tag, count = known_tags.get(result.command_status) or read_tag(result)
                    units[0].results.append(StatementResult(None, tag, count))
                elif step == _END:
                    self._lose(_OUT_OF_STEP, FaultKind.PROTOCOL)
                    return
                get_result()
            elif not self._take_rare(result, status):
                return
        if self._guarded:
            self._look_at_session()

    def _look_at_session(self) -> None:
        told = self._told
        if self._guarded and (told(READ_ONLY) != b"on" or told(SEARCH_PATH) != self._search_path):
            self._session_changed()

    def _take_rare(self, result: PGresult, status: int) -> bool:
        """False: no more for now."""
        self._remarkable = True
        unit = self._units[0]
        step, name = self._expected[0]
        if status in _CHUNKS:
            self._streamed = True
            if unit.on_rows is not None and not unit.on_rows(result):
                self._reading = False
                self._loop.remove_reader(self._fd)
                return False
        elif status == ExecStatus.EMPTY_QUERY:
            unit.results.append(StatementResult(None))
        elif status == ExecStatus.PIPELINE_ABORTED:
            if step == _PREPARE and name is not None:
                self._prepared.forget(name, exists=False)
            elif step == _CLOSE and name is not None:
                self._prepared.closing.append(name)
        elif status in faults.COPYING:
            # Only its own unit is to blame; the others' answers are lost to it, through no fault of the server's.
            unit.fault = self._fault(FaultKind.PROTOCOL, self._stage(unit), "COPY on a lane")
            self._end(CloseReason.OUT_OF_SYNC, FaultKind.CLOSED, "the connection was closed: COPY on a lane")
        else:
            self._take_error(result)
        return True

    def _take_error(self, result: PGresult) -> None:
        unit = self._units[0]
        step, name = self._expected[0]
        # An error of the Sync itself (a deferred constraint) belongs to the last statement.
        place = max(step, 0) if step != _END else len(unit.statements) - 1
        fault = faults.from_result(result, self._stage(unit), place)
        if fault.kind is FaultKind.CONNECTION_LOST:
            self._lose(fault.message, sqlstate=fault.sqlstate)
            return
        if name is not None:
            stale = staleness(fault.detail, name, preparing=step == _PREPARE)
            if step == _PREPARE or stale is Staleness.CERTAIN:
                self._prepared.forget(name, exists=fault.sqlstate not in NAME_ERRORS and step != _PREPARE)
            if stale is not Staleness.NONE:
                self._doubt = name
        if unit.fault is None:
            stale_statement = name is not None and stale is Staleness.CERTAIN
            unit.fault = replace(
                fault, endpoint=self._endpoint, generation=self._generation, stale_statement=stale_statement
            )

    def resume_reading(self) -> None:
        """ports.Lane.resume_reading."""
        if self._closed is not None or self._reading:
            return
        self._reading = True
        self._loop.add_reader(self._fd, self._on_readable)
        # What libpq has already taken from the socket raises no event: look at it first.
        self._loop.call_soon(self._on_buffered)

    def _on_buffered(self) -> None:
        if self._closed is not None or self._given_back or not self._reading:
            return
        try:
            self._take_results()
        except psycopg.Error as error:
            self._lose(faults.first_line(error))
        except faults.SENSELESS as error:
            self._lose_senseless(error)

    def _on_notice(self, result: PGresult) -> None:
        if not self._units:
            return
        self._remarkable = True
        if faults.says_local_commit(result):
            self._local_commit = True
        if len(self._notices) < _MAX_NOTICES:
            self._notices.append(faults.notice(result))

    def _finish(self, unit: Unit) -> None:
        """Its Sync is answered."""
        if not self._remarkable:
            unit.done_at = self._now()
            try:
                unit.done(unit)
            except Exception as error:
                self._blame(unit, error)
            return
        doubt, self._doubt = self._doubt, None
        self._streamed = False
        if self._notices:
            self._take_remarks(unit)
        if doubt is not None and self._try_again(unit, doubt):
            return
        self._remarkable = False
        if self._again:
            if unit in self._again and unit.fault is None:
                self._prepared.forget(self._again.name(unit), exists=True)
            for one in self._again.settle(unit):
                self._finish(one)
            self._remarkable = bool(self._again)
        else:
            self._finish(unit)

    def _blame(self, unit: Unit, error: Exception) -> None:
        """One caller's mistake is not its neighbours'."""
        self._loop.call_exception_handler({"message": f"{unit.done!r} failed", "exception": error})

    def _take_remarks(self, unit: Unit) -> None:
        if unit.results:
            unit.results[-1].notices = tuple(self._notices)
        if self._local_commit and unit.fault is None:
            what = "committed here, not confirmed by the synchronous standby"
            unit.fault = self._fault(FaultKind.LOCAL_COMMIT, Stage.COMMIT, what, "01000")
        self._local_commit = False
        self._notices.clear()

    def _try_again(self, unit: Unit, name: bytes) -> bool:
        """Send a unit once more, unprepared, if it left nothing behind, or nothing that ROLLBACK does not undo."""
        # Its first statement of several: they were a transaction of their own, which the error has ended.
        several = len(unit.statements) > 1 and bool(unit.results)
        if several and (self._units or not is_open_transaction(unit.results)):
            return False
        unit.results.clear()
        unit.fault = None
        unit.sent_at = self._now()
        self._again.begin(unit, name)
        self._send(unit, named=False, undo=several)
        self._flush()
        return True
