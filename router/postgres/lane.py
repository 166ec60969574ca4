"""A lane: one connection in libpq pipeline mode that carries many callers' units, at psycopg.pq level.

How its units travel is unit_pipeline; here is the connection's loan: taken, stopped, cancelled, given back. Not here:
which lane a unit takes (decisions/lanes), and what a fault means (decisions/retry).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus

from router.model.identity import EndpointName, Generation
from router.model.observation import FaultKind, Stage
from router.model.reasons import CloseReason
from router.ports import Unit
from router.postgres import faults
from router.postgres.copy_channel import CopyHost, PqCopyChannel
from router.postgres.liveness import hang_up
from router.postgres.prepared import PreparedStatements
from router.postgres.session_guard import READ_ONLY, SessionGuard
from router.postgres.unit_pipeline import UnitPipeline

_CANCEL_S = 0.1
_OPEN_TRANSACTION = (TransactionStatus.INTRANS, TransactionStatus.INERROR)
_ABANDONED = {CloseReason.GENERATION: FaultKind.STALE, CloseReason.CONNECTION_LOST: FaultKind.CONNECTION_LOST}


class PipelineLane(UnitPipeline):
    """ports.Lane over one psycopg connection."""

    def __init__(
        self,
        connection: psycopg.AsyncConnection[Any],
        endpoint: EndpointName,
        generation: Generation,
        expires_at: float,
        prepared: PreparedStatements,
        guard: SessionGuard,
        returned: Callable[[PipelineLane, CloseReason | None], Any],
    ) -> None:
        super().__init__(connection.pgconn, endpoint, generation, prepared, guard)
        self._connection = connection
        self._expires_at = expires_at
        self._returned = returned
        self._cancel_unconfirmed = False
        """A cancel request was sent, and may not have arrived yet: it would hit whatever runs here next."""

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
        sent = len(self._inbox) + len(self._units)
        return sent + self._again.waiting if self._remarkable else sent

    @property
    def usable(self) -> bool:
        if self._closed is not None or self._given_back or self._cancel_unconfirmed:
            return False
        return self._now() < self._expires_at

    @property
    def in_transaction(self) -> bool:
        if self._closed is not None:
            return False
        return bool(self._inbox) or self._pgconn.transaction_status != TransactionStatus.IDLE

    @property
    def in_failed_transaction(self) -> bool:
        return self._closed is None and self._pgconn.transaction_status == TransactionStatus.INERROR

    @property
    def altered(self) -> bool:
        """ports.Lane.altered."""
        return self._closed is None and not self._given_back and self._guard.changed(self._pgconn)

    def _session_changed(self) -> None:
        if self._pgconn.transaction_status in _OPEN_TRANSACTION:
            return  # its caller's own: what stays of it is seen at its end
        if self._pgconn.parameter_status(READ_ONLY) != b"on":
            # What was sent behind it fails: it could write by now, or would be told so.
            self._end(CloseReason.TAINTED, FaultKind.CLOSED, "connection closed: a statement made it writable")
        else:
            self.retire()

    def submit(self, unit: Unit) -> None:
        """ports.Lane.submit."""
        if self._closed is not None or self._given_back:
            self._fail_unsent(unit, FaultKind.CONNECTION_LOST, "lane is closed")
            return
        if not self._inbox:
            self._loop.call_soon(self._send_inbox)
        self._inbox.append(unit)

    def submit_now(self, *units: Unit) -> None:
        """ports.Lane.submit_now."""
        if self._closed is not None or self._given_back:
            for unit in units:
                self._fail_unsent(unit, FaultKind.CONNECTION_LOST, "lane is closed")
            return
        self._inbox.extend(units)
        self._send_inbox()

    def open_copy(self, unit: Unit) -> PqCopyChannel:
        """ports.Lane.open_copy."""
        channel = PqCopyChannel(self._pgconn, unit, CopyHost(self._lose, self._take_error, self._end_copy))
        if self._closed is not None or self._given_back:
            self._fail_unsent(unit, FaultKind.CONNECTION_LOST, "lane is closed")
        else:
            self._units.append(unit)
            self._expected.append((0, None))
            channel.begin()
        return channel

    def _end_copy(self) -> None:
        self._pgconn.enter_pipeline_mode()
        self._loop.add_reader(self._fd, self._on_readable)
        self._expected.clear()
        self._finish(self._units.popleft())
        self._look_at_session()

    # --- ending ------------------------------------------------------------------------------------------------

    def abandon(self, reason: CloseReason) -> None:
        """ports.Lane.abandon."""
        self._end(reason, _ABANDONED.get(reason, FaultKind.CLOSED), f"connection abandoned: {reason.value}")

    def _end(self, reason: CloseReason, kind: FaultKind, message: str, sqlstate: str = "") -> None:
        if self._closed is not None or self._given_back:
            return
        self._closed = reason
        self._detach()
        hang_up(self._pgconn)
        unsent, self._inbox = self._inbox, deque()
        lost = [*self._units]
        for unit in lost:
            if unit.fault is None:
                unit.fault = self._fault(kind, self._stage(unit), message, sqlstate)
        self._units.clear()
        self._expected.clear()
        self._pgconn.finish()
        for unit in self._again.end(lost):
            unit.done_at = self._now()
            self._loop.call_soon(unit.done, unit)
        for unit in unsent:
            self._fail_unsent(unit, kind, message, sqlstate)
        self._returned(self, reason)

    def _fail_unsent(self, unit: Unit, kind: FaultKind, message: str, sqlstate: str = "") -> None:
        unit.fault = self._fault(kind, Stage.SEND, message, sqlstate)
        unit.done_at = self._now()
        self._loop.call_soon(unit.done, unit)

    def _detach(self) -> None:
        self._guarded = False
        self._row_mode.stop()
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)  # ours, or that of a COPY
        self._writing = False
        self._pgconn.notice_handler = self._notices_before

    def retire(self) -> None:
        """End the lifetime now: nothing new is placed here, and the connection closes after its last answer."""
        self._expires_at = min(self._expires_at, self._now())

    async def cancel(self) -> bool:
        """ports.Lane.cancel."""
        if self._closed is not None or self._given_back or not self._units:
            return not self._cancel_unconfirmed
        earlier, self._cancel_unconfirmed = self._cancel_unconfirmed, True
        try:
            await self._connection.cancel_safe(timeout=_CANCEL_S)
        except faults.CLIENT_ERRORS:
            return False  # best effort: the caller abandons the lane when the answer does not come
        # The server closes the request's connection after it has signalled the backend. An earlier one may yet come.
        self._cancel_unconfirmed = earlier
        return not earlier

    def forget_prepared(self) -> None:
        """ports.Lane.forget_prepared."""
        self._prepared.forget_all()

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
        if tainted or self.altered:
            return CloseReason.TAINTED
        if self._now() >= self._expires_at:
            return CloseReason.LIFETIME
        return None
