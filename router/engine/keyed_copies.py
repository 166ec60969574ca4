"""Copies with an idempotency key: the key's row, the data and the answer are one transaction, in three round trips.

The row is written before the caller is asked for data, so twins settle it first. What it says of the request is known
in two parts: its statement at once, its data once all of it has passed; the second is written in front of COMMIT. What
was done before is compared with the data that its caller sends again, none of which goes to PostgreSQL.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
from collections.abc import AsyncIterator
from dataclasses import replace

from router.decisions import keys, stored_answers
from router.engine.batches import OpeningFailed
from router.engine.calls import Call, cancelled_error
from router.engine.copy_run import CopyRun, begin
from router.engine.key_rows import Stored
from router.engine.keyed_writes import met
from router.engine.lane_pool import LanePool, Slot
from router.model.errors import Code, Executed, RouterError
from router.model.observation import AttemptFailed, Fault, FaultKind, Stage
from router.model.reasons import RefuseReason
from router.model.request import Statement, TransactionMode, WriteOutcome
from router.model.result import StatementResult

_HASH_BYTES = 32


class CopyDigest:
    """Of a copy: 32 bytes of its statement, 32 of its data. However the data was cut, it is the same."""

    def __init__(self, call: Call) -> None:
        self._statement = keys.request_hash(call.request)
        self._data = hashlib.sha256()
        self.update = self._data.update
        """Takes the next piece of data."""

    def same_statement(self, digest: bytes) -> bool:
        """Whether a stored digest may be this copy's, whatever its data."""
        return len(digest) == 2 * _HASH_BYTES and digest[:_HASH_BYTES] == self._statement

    def whole(self) -> bytes:
        """After the last piece."""
        return self._statement + self._data.digest()

    def closing(self, call: Call, result: StatementResult) -> tuple[Statement, ...]:
        """The data is in: what goes in front of COMMIT, for what the row still lacks."""
        key = keys.Key(call.tenant.name, call.request.idempotency_key)
        return keys.closing_copy(key, stored_answers.store([result]), self.whole())


async def begin_in(pool: LanePool, slot: Slot, call: Call) -> CopyRun | Stored:
    """A copy whose data can flow, with a key within the transaction of its row; or what that row says when the copy
    was done before. AttemptFailed as lanes do, with KEY_BUSY while another transaction holds the key."""
    if not call.request.keyed:
        return await begin(pool, slot, call)
    call.stop_running = functools.partial(pool.stop_running, slot)
    stored: Stored | None = None
    begun = False
    try:
        stored = await _take_key(pool, slot, call)
        if call.cancel_asked:
            # By its row it was done, if it is the same: the data that would tell has not been asked for.
            raise cancelled_error(Executed.ROLLED_BACK if stored is None else Executed.MAYBE)
        begun = stored is None
    finally:
        call.stop_running = None
        call.committing = False
        if not begun:
            pool.release(slot)
    return stored or await begin(pool, slot, call)


async def _take_key(pool: LanePool, slot: Slot, call: Call) -> Stored | None:
    request = call.request
    key = keys.Key(call.tenant.name, request.idempotency_key)
    wait_s = call.tenant.policy.key_wait_s
    opening = keys.opening(TransactionMode(), key, keys.request_hash(request), wait_s)
    try:
        await pool.run_pinned(slot, opening, request.deadline, commits=False)
    except AttemptFailed as failure:
        if failure.fault.kind is not FaultKind.SERVER_ERROR:
            raise
        met_at = OpeningFailed(replace(failure.fault, step=0), failure.fault.step)
        return await met(pool, slot, call, met_at)
    call.in_doubt = False  # the row was ours to write: nothing before was done
    return None


async def compare(call: Call, source: AsyncIterator[bytes], stored: Stored) -> StatementResult:
    """The answer of a copy that was done before, if the source gives the same data. RouterError KEY_REUSED if not."""
    digest = CopyDigest(call)
    if not digest.same_statement(stored.digest):
        raise keys.reused()
    call.in_doubt = True  # it was done, if it is the same
    try:
        async with asyncio.timeout_at(call.request.deadline) as limit:
            async for data in source:
                digest.update(data)
                call.copied_bytes += len(data)
    except RouterError as error:
        error.executed = Executed.MAYBE
        raise
    except TimeoutError:
        if not limit.expired():
            raise
        raise _not_compared() from None
    call.in_doubt = False
    return replayed(call, stored, digest)


def replayed(call: Call, stored: Stored, digest: CopyDigest) -> StatementResult:
    """What a row answers to a copy whose data is known. RouterError KEY_REUSED when it is another one's."""
    if stored.digest != digest.whole():
        raise keys.reused()
    call.replayed = True
    return stored.only_result()


def found_after_commit(call: Call, found: Stored | WriteOutcome, digest: CopyDigest) -> StatementResult:
    """What became of a copy whose COMMIT was not answered. AttemptFailed KEY_BUSY while its transaction is open."""
    match found:
        case Stored():
            call.in_doubt = False
            return replayed(call, found, digest)
        case WriteOutcome.RUNNING:
            raise AttemptFailed(Fault(FaultKind.KEY_BUSY, Stage.EXECUTE, message="its transaction is open"))
        case _:
            call.in_doubt = False
            raise RouterError(
                Code.UNAVAILABLE,
                RefuseReason.BACKEND_LOST,
                "the connection was lost before the copy was committed: nothing was kept; send it again",
                executed=Executed.ROLLED_BACK,
                retry_after_s=0.1,
                numbers={"attempts": call.charged, "endpoint": call.endpoint},
            )


def _not_compared() -> RouterError:
    return RouterError(
        Code.DEADLINE_EXCEEDED,
        RefuseReason.DEADLINE,
        "a copy with this idempotency key was done; whether it is this one is not known, as the deadline passed before "
        "all data had come to be compared",
        executed=Executed.MAYBE,
    )
