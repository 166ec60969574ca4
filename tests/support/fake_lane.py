"""ports.Lane on virtual time over a connection to a scripted server."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from router.model.identity import Generation
from router.model.observation import Fault, FaultKind, PgError, Stage
from router.model.reasons import CloseReason
from router.model.request import Access
from router.model.result import StatementResult
from router.ports import Unit
from tests.support.fake_copy import FakeCopyChannel
from tests.support.fake_server import Backend, Message, Status

if TYPE_CHECKING:
    from tests.support.fake_endpoint_pool import FakeEndpointPool

CANCEL_TAKES = 0.002
"""From a cancel request's start to its confirmed arrival (seconds)."""
CANCEL_S = 0.1
_ABANDONED = {CloseReason.GENERATION: FaultKind.STALE, CloseReason.CONNECTION_LOST: FaultKind.CONNECTION_LOST}


class FakeCells:
    """model.result.Cells of text columns."""

    def __init__(self, rows: tuple[tuple[bytes | None, ...], ...]) -> None:
        self.rows = rows
        self.ntuples = len(rows)
        self.nfields = len(rows[0]) if rows else 1

    def get_value(self, row_number: int, column_number: int) -> bytes | None:
        return self.rows[row_number][column_number]

    def fname(self, column_number: int) -> bytes | None:
        return b"column%d" % column_number

    def ftype(self, column_number: int) -> int:
        return 25

    def fmod(self, column_number: int) -> int:
        return -1

    def ftable(self, column_number: int) -> int:
        return 0

    def ftablecol(self, column_number: int) -> int:
        return 0

    def fformat(self, column_number: int) -> int:
        return 0


class FakeConnection:
    """One connection, lent to at most one lane at a time."""

    def __init__(self, pool: FakeEndpointPool, generation: Generation, expires_at: float) -> None:
        self.pool = pool
        self.generation = generation
        self.expires_at = expires_at
        self.lane: FakeLane | None = None
        self.backend = self._make_backend()

    def _make_backend(self) -> Backend:
        return Backend(self.pool.server, self.pool.access is Access.READ_ONLY, self._deliver)

    def _deliver(self) -> None:
        if self.lane is not None:
            self.lane.readable()


class FakeLane:
    """ports.Lane."""

    def __init__(self, connection: FakeConnection) -> None:
        assert connection.lane is None, "a connection was lent twice"
        connection.lane = self
        self.connection = connection
        self.pool = connection.pool
        self.generation = connection.generation
        self._backend = connection.backend
        self._loop = asyncio.get_running_loop()
        self._inbox: deque[Unit] = deque()
        self._pending: deque[Unit] = deque()
        self._streamed: set[int] = set()
        self._status = connection.backend.status
        self._reading = True
        self._cancel_unconfirmed = False
        self.closed: CloseReason | None = None
        self.given_back = False
        self.most_in_flight = 0

    def __repr__(self) -> str:
        return f"<FakeLane in_flight={self.in_flight} {self.closed or 'open'}>"

    @property
    def in_flight(self) -> int:
        return len(self._inbox) + len(self._pending)

    @property
    def usable(self) -> bool:
        if self.closed is not None or self.given_back or self._cancel_unconfirmed:
            return False
        return self._loop.time() < self.connection.expires_at

    @property
    def in_transaction(self) -> bool:
        return self.closed is None and (self.in_flight > 0 or self._status is not Status.IDLE)

    @property
    def altered(self) -> bool:
        return False

    @property
    def in_failed_transaction(self) -> bool:
        return self.closed is None and self.in_flight == 0 and self._status is Status.FAILED

    def submit(self, unit: Unit) -> None:
        assert not self.given_back, "a unit was submitted to a lane that was given back"
        assert unit.done_at == 0, "a unit was submitted twice"
        if self.closed is not None:
            self._fail_unsent(unit, FaultKind.CONNECTION_LOST)
            return
        if not self._inbox:
            self._loop.call_soon(self._send)
        self._inbox.append(unit)
        self.most_in_flight = max(self.most_in_flight, self.in_flight)

    def submit_now(self, *units: Unit) -> None:
        for unit in units:
            self.submit(unit)
        self._send()

    def _send(self) -> None:
        if self.closed is not None:
            return
        while self._inbox:
            unit = self._inbox.popleft()
            unit.sent = True
            unit.sent_at = self._loop.time()
            self._pending.append(unit)
            self._backend.receive(unit)

    def open_copy(self, unit: Unit) -> FakeCopyChannel:
        assert not self.given_back, "a copy was opened on a lane that was given back"
        assert self.closed is not None or self.in_flight == 0, "a copy was opened on a lane in use"
        channel = FakeCopyChannel(self, unit)
        if self.closed is not None:
            self._fail_unsent(unit, FaultKind.CONNECTION_LOST)
        else:
            unit.sent = True
            unit.sent_at = self._loop.time()
            self._pending.append(unit)
            channel.begin()
        return channel

    # --- answers -----------------------------------------------------------------------------------------------

    def readable(self) -> None:
        outbox = self._backend.outbox
        while outbox and self._reading and self.closed is None:
            self._take(outbox.popleft())
        if self.closed is None:
            self._backend.drained()

    def _take(self, message: Message) -> None:
        unit = message.unit
        if message.ended or unit is None:
            self._end(CloseReason.CONNECTION_LOST, FaultKind.CONNECTION_LOST, message.last_word)
        elif message.chunk is not None:
            self._streamed.add(id(unit))
            if unit.on_rows is not None and not unit.on_rows(FakeCells(message.chunk)):
                self._reading = False
        elif message.error is not None:
            self._take_error(unit, message, message.error)
        elif message.reply is not None:
            rows = message.reply.rows
            cells = FakeCells(rows) if rows or message.reply.tag.startswith("SELECT") else None
            unit.results.append(StatementResult(cells, message.reply.tag, message.reply.affected or 0))
        elif message.done:
            self._status = message.status or self._backend.status
            self._finish(unit, message.local_commit)

    def _take_error(self, unit: Unit, message: Message, error: PgError) -> None:
        unit.fault = Fault(
            FaultKind.SERVER_ERROR, self._stage(unit), error.sqlstate, error.message, error,
            self.pool.endpoint, self.generation, message.step, message.stale,
        )

    def _finish(self, unit: Unit, local_commit: bool) -> None:
        assert self._pending.popleft() is unit
        if local_commit and unit.fault is None:
            unit.fault = self._fault(FaultKind.LOCAL_COMMIT, Stage.COMMIT, "01000")
        unit.done_at = self._loop.time()
        unit.done(unit)

    def _stage(self, unit: Unit) -> Stage:
        if id(unit) in self._streamed:
            return Stage.STREAM
        return Stage.COMMIT if unit.commits else Stage.EXECUTE

    def _fault(self, kind: FaultKind, stage: Stage, sqlstate: str = "") -> Fault:
        return Fault(kind, stage, sqlstate, "fake", endpoint=self.pool.endpoint, generation=self.generation)

    # --- ending ------------------------------------------------------------------------------------------------

    def abandon(self, reason: CloseReason) -> None:
        self._end(reason, _ABANDONED.get(reason, FaultKind.CLOSED))

    def _end(self, reason: CloseReason, kind: FaultKind, sqlstate: str = "") -> None:
        if self.closed is not None or self.given_back:
            return
        self.closed = reason
        for unit in self._pending:
            if unit.fault is None:
                unit.fault = self._fault(kind, self._stage(unit), sqlstate)
            unit.done_at = self._loop.time()
            self._loop.call_soon(unit.done, unit)
        for unit in self._inbox:
            self._fail_unsent(unit, kind, sqlstate)
        self._pending.clear()
        self._inbox.clear()
        self.pool.destroy(self.connection, reason)

    def _fail_unsent(self, unit: Unit, kind: FaultKind, sqlstate: str = "") -> None:
        unit.fault = self._fault(kind, Stage.SEND, sqlstate)
        unit.done_at = self._loop.time()
        self._loop.call_soon(unit.done, unit)

    def resume_reading(self) -> None:
        if self.closed is None and not self._reading:
            self._reading = True
            self._loop.call_soon(self.readable)

    async def cancel(self) -> bool:
        if self.closed is not None or self.given_back or not self._pending:
            return not self._cancel_unconfirmed
        if self._pending[0].commits and b"from stdin" in self._pending[0].statements[0].sql.lower():
            self.pool.server.violations.append("a cancel request after CopyDone")
        self._cancel_unconfirmed = True
        if self.pool.server.frozen or self.pool.cancel_takes > CANCEL_S:
            self._loop.call_later(self.pool.cancel_takes, self._backend.signal)
            await asyncio.sleep(CANCEL_S)
            return False
        self._loop.call_later(self.pool.cancel_takes, self._backend.signal)
        await asyncio.sleep(self.pool.cancel_takes)
        await asyncio.sleep(0)
        self._cancel_unconfirmed = False
        return True

    def forget_prepared(self) -> None:
        """Nothing is prepared here."""

    async def give_back(self, *, tainted: bool = False) -> None:
        if self.closed is not None or self.given_back:
            return
        reason = self._why_not_reusable(tainted)
        if reason is not None:
            self._end(reason, FaultKind.CLOSED)
            return
        self.given_back = True
        self.connection.lane = None
        self.pool.take_back(self.connection)
        await asyncio.sleep(0)

    def _why_not_reusable(self, tainted: bool) -> CloseReason | None:
        if self.in_flight:
            return CloseReason.OUT_OF_SYNC
        if self._status is not Status.IDLE:
            return CloseReason.NOT_IDLE
        if self._cancel_unconfirmed:
            return CloseReason.CANCEL_UNCONFIRMED
        if tainted:
            return CloseReason.TAINTED
        if self._loop.time() >= self.connection.expires_at:
            return CloseReason.LIFETIME
        return None
