"""One streamed result on a lane of its own: chunks pass through a short queue; a slow reader stops the lane's reading,
which stops PostgreSQL."""

from __future__ import annotations

import asyncio
from collections import deque

from router.decisions.retry import Replayability
from router.engine.lane_pool import LanePool, Slot
from router.model.observation import AttemptFailed, Fault, FaultKind, Stage
from router.model.request import Access, Request
from router.model.result import Cells, StatementResult
from router.ports import Unit

CHUNK_ROWS = 500
"""Rows that libpq collects into one result."""
MAX_CHUNKS = 4
"""Chunks waiting for the caller before the lane stops reading."""


class RowStream:
    """Rows of one statement as they arrive. first(), then next_chunk() until None, then close()."""

    def __init__(self, pool: LanePool, slot: Slot, request: Request) -> None:
        self._pool = pool
        self._slot = slot
        self._chunks: deque[Cells] = deque()
        self._wake: asyncio.Future[None] | None = None
        self._paused = False
        self._delivered = False
        self._dropping = False
        """Nobody wants more rows: the rest passes by until the cancel is answered."""
        self._expired = False
        self._closed = False
        self._done = False
        self._unit = Unit(
            (request.steps[0].statement,), self._on_done, on_rows=self._on_rows, chunk_rows=CHUNK_ROWS, commits=False
        )
        # One timer, not a time-out per chunk: a reader that stands still must not keep the lane either.
        self._timer = asyncio.get_running_loop().call_at(request.deadline, self._on_deadline)
        pool.submit(slot, self._unit)

    @property
    def results(self) -> list[StatementResult]:
        """After the end: the statement's result, with its columns and tag but no rows."""
        return self._unit.results

    def replayability(self) -> Replayability:
        """Nothing can be repeated once a row has left."""
        return Replayability(Access.READ_ONLY, first_row_sent=self._delivered)

    def _on_rows(self, cells: Cells) -> bool:
        if self._dropping:
            return True
        self._chunks.append(cells)
        self._notify()
        self._paused = len(self._chunks) >= MAX_CHUNKS
        return not self._paused

    def _on_done(self, _: Unit) -> None:
        self._done = True
        self._timer.cancel()
        self._notify()

    def _on_deadline(self) -> None:
        self._expired = True
        self.close()  # here, as nobody knows when its reader will look again
        self._notify()

    def _notify(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def _next_event(self) -> None:
        self._wake = asyncio.get_running_loop().create_future()
        try:
            await self._wake
        finally:
            self._wake = None

    async def first(self) -> None:
        """Wait for the first chunk or the end. AttemptFailed while nothing has left for the caller."""
        while not self._chunks and not self._done:
            self._check_deadline()
            await self._next_event()
        if not self._chunks:
            self._check_end()

    async def next_chunk(self) -> Cells | None:
        """The next chunk, None after the last. AttemptFailed when the rest does not come."""
        while not self._chunks and not self._done:
            self._check_deadline()
            await self._next_event()
        if self._chunks:
            cells = self._chunks.popleft()
            if self._paused and len(self._chunks) < MAX_CHUNKS // 2:
                self._paused = False
                self._slot.lane.resume_reading()
            self._delivered = True
            return cells
        self._check_deadline()
        self._check_end()
        return None

    def _check_deadline(self) -> None:
        if self._expired:
            raise AttemptFailed(Fault(FaultKind.SILENT, self._stage, message="the deadline passed"))

    def _check_end(self) -> None:
        if self._unit.fault is not None:
            raise AttemptFailed(self._unit.fault)
        if self._dropping:
            # It was faster than its cancel; but rows are missing, so this is no answer.
            raise AttemptFailed(Fault(FaultKind.CANCELLED, self._stage, message="stopped"))

    @property
    def _stage(self) -> Stage:
        return Stage.STREAM if self._delivered else Stage.EXECUTE

    def stop(self) -> bool:
        """Have PostgreSQL stop, and drop what is still on its way. False when it has ended already."""
        if self._done or self._dropping:
            return not self._done  # once: by now the lane may be someone else's
        self._dropping = True
        self._chunks.clear()
        self._slot.lane.resume_reading()
        self._pool.stop(self._slot, self._unit)
        return True

    def close(self) -> None:
        """End it: what still runs is cancelled, and the lane goes back or is destroyed."""
        if self._closed:
            return
        self._closed = True
        self._timer.cancel()
        self.stop()
        self._pool.release(self._slot)
