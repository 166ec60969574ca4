"""From a caller's source into a COPY: no faster than PostgreSQL takes it, undone for certain when the source fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from router.engine.calls import Call
from router.engine.copy_run import CopyRun
from router.model.errors import Executed, RouterError

LEAVING_S = 1.0
"""How long a cancelled read of the caller's source may take to end; it takes a turn of the loop."""


async def fill(
    run: CopyRun, call: Call, source: AsyncIterator[bytes], seen: Callable[[bytes], object] | None = None
) -> None:
    """Pass the source on to its end, and wait for PostgreSQL's word. AttemptFailed when that is not good; what the
    source raises, once everything is undone. seen: called with each piece before it leaves."""
    # A task of its own, so that PostgreSQL's refusal ends the wait for a caller that sends nothing.
    pumping = asyncio.create_task(_pump(run, call, source, seen))
    pumping.add_done_callback(_look_at)
    try:
        await asyncio.wait({pumping, run.ended}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await _ended(pumping)
    if not run.ended.done():
        problem = _problem_of(pumping)
        if problem is not None:
            await _undo(run, problem)
            raise problem
        run.finish()
        call.committing = run.committing
        await asyncio.wait({run.ended})
    run.check()


async def _ended(pumping: asyncio.Task[None]) -> None:
    """Take the pump off the source, also when cancelled: its owner closes the source next, and Python refuses to close
    a generator in use, with a RuntimeError in place of what ended the copy."""
    pumping.cancel()
    by = asyncio.get_running_loop().time() + LEAVING_S
    cancelled: asyncio.CancelledError | None = None
    while not pumping.done() and (left_s := by - asyncio.get_running_loop().time()) > 0:
        try:
            await asyncio.wait({pumping}, timeout=left_s)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled


async def _pump(
    run: CopyRun, call: Call, source: AsyncIterator[bytes], seen: Callable[[bytes], object] | None
) -> None:
    """From the caller to PostgreSQL: the next piece is asked for once there is room for it."""
    async for data in source:
        if seen is not None:
            seen(data)
        if not await run.write(data):
            await asyncio.wait({run.ended})
            return
        call.copied_bytes += len(data)


def _problem_of(pumping: asyncio.Task[None]) -> BaseException | None:
    try:
        return pumping.exception()
    except asyncio.CancelledError as error:
        return error  # the source's own, not another one: it may say more


async def _undo(run: CopyRun, problem: BaseException) -> None:
    """The source failed: stop, and be certain of it before anyone is told."""
    if run.stop():
        await asyncio.wait({run.ended})
    if isinstance(problem, RouterError):
        problem.executed = Executed.ROLLED_BACK


def _look_at(task: asyncio.Task[None]) -> None:
    """An exception that comes after the caller went away is nobody's any more."""
    if not task.cancelled():
        task.exception()
