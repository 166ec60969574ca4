"""One streamed result on a lane of its own: rows pass through a short queue; a slow reader stops the lane's reading,
which stops PostgreSQL.

The lane brings small chunks, cheap to make while they are in the processor's cache; they leave in runs. The first run
is whatever has come, the next ones grow, and no row waits longer than LINGER_S for company.
"""

from __future__ import annotations

import asyncio

from router.decisions.retry import Replayability
from router.engine.calls import Call
from router.engine.lane_pool import LanePool, Slot
from router.engine.positions import note_on, position_wanted
from router.model.observation import AttemptFailed, Fault, FaultKind, Stage
from router.model.request import Access, Request
from router.model.result import Cells, RowRun, StatementResult
from router.ports import Unit

CHUNK_ROWS = 128
"""Rows that libpq collects into one result, at most."""
RUN_BYTES = 112 << 10
"""A run of rows is about this long as text, once the stream is under way; its message is a little shorter."""
FIRST_RUNS_BYTES = 1, 4 << 10, 16 << 10
"""How much the first runs wait for: the first row is wanted early, company only later."""
MAX_WAITING_BYTES = 256 << 10
"""Rows waiting for the caller before the lane stops reading."""
MAX_WAITING_CHUNKS = 1024
"""The same for rows without much in them."""
LINGER_S = 0.01
"""How long a row waits for others to leave with."""
_ROW_BYTES = 16
"""Added to a row's cells: a row of NULLs takes memory too."""


_LOOK_EVERY = 64
"""Of so many rows of a chunk one is looked at, for how long they are."""
_STRIDE = 7
"""From chunk to chunk it is another row: of rows that are long now and then, the right share is seen."""


class RowStream:
    """Rows of one statement as they arrive. first(), then next_chunk() until None, then close()."""

    def __init__(self, pool: LanePool, slot: Slot, request: Request) -> None:
        self._pool = pool
        self._slot = slot
        self._loop = asyncio.get_running_loop()
        self._chunks: list[Cells] = []
        self._sizes: list[int] = []
        """Of each chunk, in bytes, from a few of its rows."""
        self._waiting = 0
        """Their sum."""
        self._looked_at = -_STRIDE
        self._since = 0.0
        """When the oldest of them came."""
        self._enough = iter(FIRST_RUNS_BYTES)
        self._wanted = 1
        """Bytes that the reader waits for, for no longer than LINGER_S."""
        self._wake: asyncio.Future[None] | None = None
        self._lingering: asyncio.TimerHandle | None = None
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
        self._timer = self._loop.call_at(request.deadline, self._on_deadline)
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
        self._looked_at += _STRIDE
        count = cells.ntuples
        size = _size_of(cells, range(self._looked_at % min(count, _LOOK_EVERY), count, _LOOK_EVERY))
        if not self._chunks:
            self._since = self._loop.time()
        self._chunks.append(cells)
        self._sizes.append(size)
        self._waiting += size
        if self._waiting >= self._wanted:
            self._notify()
        elif self._wake is not None and self._lingering is None:
            self._lingering = self._loop.call_at(self._since + LINGER_S, self._on_lingered)
        self._paused = self._waiting >= MAX_WAITING_BYTES or len(self._chunks) >= MAX_WAITING_CHUNKS
        return not self._paused

    def _on_lingered(self) -> None:
        self._lingering = None
        self._notify()

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
        self._wake = self._loop.create_future()
        if self._chunks and self._lingering is None:
            self._lingering = self._loop.call_at(self._since + LINGER_S, self._on_lingered)
        try:
            await self._wake
        finally:
            self._wake = None

    async def first(self) -> None:
        """Wait for the first row or the end. AttemptFailed while nothing has left for the caller."""
        while not self._chunks and not self._done:
            self._check_deadline()
            await self._next_event()
        if not self._chunks:
            self._check_end()

    async def next_chunk(self) -> Cells | None:
        """The next run of rows, None after the last. AttemptFailed when the rest does not come."""
        self._wanted = next(self._enough, RUN_BYTES)
        while not self._done and not self._ready():
            self._check_deadline()
            await self._next_event()
        if self._chunks:
            self._delivered = True
            return self._take()
        self._check_deadline()
        self._check_end()
        return None

    async def note_position(self, call: Call, now: float) -> None:
        """After the end: put the exact token on the call, where its caller passes tokens on."""
        if position_wanted(call.request) is not None and not self._closed:
            await note_on(self._pool, self._slot, call, now)

    def _ready(self) -> bool:
        """Whether the rows that wait should leave."""
        if not self._chunks:
            return False
        return self._waiting >= self._wanted or self._paused or self._loop.time() >= self._since + LINGER_S

    def _take(self) -> Cells:
        """The oldest chunks, about RUN_BYTES of them; afterwards the lane may read on."""
        count = taken = 0
        for size in self._sizes:
            count += 1
            taken += size
            if taken >= RUN_BYTES:
                break
        run = self._chunks[:count]
        del self._chunks[:count], self._sizes[:count]
        self._waiting -= taken
        self._stop_lingering()
        if self._paused and self._waiting < MAX_WAITING_BYTES // 2 and len(self._chunks) < MAX_WAITING_CHUNKS // 2:
            self._paused = False
            self._slot.lane.resume_reading()
        return RowRun(run) if count > 1 else run[0]

    def _stop_lingering(self) -> None:
        if self._lingering is not None:
            self._lingering.cancel()
            self._lingering = None

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
        self._sizes.clear()
        self._waiting = 0
        self._stop_lingering()
        self._slot.lane.resume_reading()
        self._pool.stop(self._slot, self._unit)
        return True

    def close(self) -> None:
        """End it: what still runs is cancelled, and the lane goes back or is destroyed."""
        if self._closed:
            return
        self._closed = True
        self._timer.cancel()
        self._stop_lingering()
        self.stop()
        self._pool.release(self._slot)


def _size_of(chunk: Cells, rows: range) -> int:
    """Bytes of a chunk, as if all its rows were as long as these: to look at all costs more than to carry them."""
    get = chunk.get_value
    size = 0
    for row in rows:
        for column in range(chunk.nfields):
            cell = get(row, column)
            if cell is not None:
                size += len(cell)
    return (size // len(rows) + _ROW_BYTES) * chunk.ntuples
