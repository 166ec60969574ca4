"""One COPY on a lane of its own, from its statement to PostgreSQL's last word; never stopped once all data was sent."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from router.decisions.retry import Replayability
from router.engine.batches import commit
from router.engine.calls import Call
from router.engine.lane_pool import LanePool, Slot
from router.engine.positions import note_on
from router.model.copying import QUERY_PREFIX, CopyLayout
from router.model.observation import AttemptFailed, Fault, FaultKind, Stage
from router.model.request import Method, Request, Statement
from router.model.result import StatementResult
from router.ports import Unit


class CopyRun:
    """begin(), then read() until b"" or write() and finish(), then close(). AttemptFailed when it does not come to
    its end. Without a finish() before it, and with a key a commit(), the close of a CopyIn undoes it."""

    def __init__(self, pool: LanePool, slot: Slot, request: Request) -> None:
        self._pool = pool
        self._slot = slot
        self._request = request
        self._first: bytes | None = None
        self._delivered = False
        self._stopped = False
        self._expired = False
        self._closed = False
        loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = loop.create_future()
        """Done when PostgreSQL has had its last word, the connection is gone, or the deadline has passed."""
        self._unit = Unit((request.steps[0].statement,), self._on_done, commits=False)
        # One timer, not a time-out per piece: a caller that stands still must not keep the lane either.
        self._timer = loop.call_at(request.deadline, self._on_deadline)
        self._channel = pool.open_copy(slot, self._unit)

    @property
    def layout(self) -> CopyLayout:
        """After begin()."""
        return self._channel.layout or CopyLayout(0, binary=False)

    @property
    def committing(self) -> bool:
        """All data was sent, and is PostgreSQL's to keep or to refuse; never so inside a transaction of ours."""
        return self._unit.commits

    @property
    def result(self) -> StatementResult:
        """After the end."""
        return self._unit.results[-1]

    def _on_done(self, _: Unit) -> None:
        self._timer.cancel()
        self._end()

    def _on_deadline(self) -> None:
        self._expired = True
        if not self.stop():
            self._end()  # committing: its answer is waited for no longer

    def _end(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)

    def replayability(self, facts: Replayability) -> Replayability:
        """Undone unless it was committing; nothing is repeated once a byte has left for the caller."""
        return replace(facts, batch=True, first_row_sent=self._delivered)

    async def begin_out(self) -> None:
        """Wait for the first piece or the end: up to here nothing has left, and it can be repeated."""
        await self._channel.started()
        self._first = await self._channel.read()
        if not self._first:
            self.check()

    async def begin_in(self) -> None:
        """Wait until PostgreSQL takes data."""
        await self._channel.started()
        if self._channel.layout is None or self.ended.done():
            self.check()

    async def read(self) -> bytes:
        """The next piece; b"" at the end, which is then proven."""
        piece, self._first = self._first, None
        if piece is None:
            piece = await self._channel.read()
        if piece:
            self._delivered = True
        else:
            self.check()
        return piece

    async def write(self, data: bytes) -> bool:
        """Pass data on, no faster than PostgreSQL takes it. False when it takes no more: then it has ended."""
        return await self._channel.write(data)

    def finish(self) -> None:
        """All data was written, so it is to be kept, with a key once its transaction is committed; nothing happens when
        it was stopped."""
        if not self._stopped:
            self._channel.finish(commits=not self._request.keyed)

    def check(self) -> None:
        """AttemptFailed unless it came to its end."""
        fault = self._unit.fault
        if self._expired and (fault is None or fault.kind is FaultKind.CLOSED):
            raise AttemptFailed(Fault(FaultKind.SILENT, self._stage, message="the deadline passed"))
        if fault is not None:
            raise AttemptFailed(self._at_home(fault))
        if self._stopped:
            # It was faster than its cancel; but data is missing, so this is no answer.
            raise AttemptFailed(Fault(FaultKind.CANCELLED, self._stage, message="stopped"))

    def _at_home(self, fault: Fault) -> Fault:
        """The position of an error as its caller counts: within the query, as the rest of the text is ours."""
        if fault.detail is None or not fault.detail.position:
            return fault
        mine = len(QUERY_PREFIX) if self._request.nested_query else fault.detail.position
        return replace(fault, detail=replace(fault.detail, position=max(0, fault.detail.position - mine)))

    @property
    def _stage(self) -> Stage:
        if self._unit.commits:
            return Stage.COMMIT
        return Stage.STREAM if self._delivered else Stage.EXECUTE

    def stop(self) -> bool:
        """Have PostgreSQL stop and undo it; `ended` says when it has. False when it has ended or is committing."""
        if self._unit.done_at or self._unit.commits:
            return False
        if not self._stopped:
            self._stopped = True
            self._channel.drop()
            self._channel.fail("stopped by the router")
            # A server that waits for something else than data hears a cancel request only.
            self._pool.stop(self._slot, self._unit)
        return True

    async def commit(self, call: Call, closing: Sequence[Statement]) -> None:
        """After the end: commit the transaction around it, with what goes in front. AttemptFailed with stage COMMIT
        when its outcome is unknown."""
        await commit(self._pool, self._slot, call, closing)

    async def note_position(self, call: Call, now: float) -> None:
        """After the end: put the exact token on the call."""
        if not self._closed:
            await note_on(self._pool, self._slot, call, now)

    def close(self) -> None:
        """End it: what still runs is stopped, and the lane goes back or is destroyed."""
        if self._closed:
            return
        self._closed = True
        self._timer.cancel()
        self.stop()
        self._pool.release(self._slot)


async def begin(pool: LanePool, slot: Slot, call: Call) -> CopyRun:
    """A copy whose data can flow: up to here it can be repeated."""
    run = CopyRun(pool, slot, call.request)
    call.stop_running = run.stop
    try:
        await (run.begin_out() if call.request.method is Method.COPY_OUT else run.begin_in())
    except BaseException:
        call.stop_running = None
        run.close()
        raise
    return run
