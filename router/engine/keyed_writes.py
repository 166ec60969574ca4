"""Writes with an idempotency key: the key's row and the work are one transaction, in two round trips.

The first carries BEGIN, the row and the caller's statements, the second the answer for the row, and COMMIT. A key that
was used is answered from its row; one that is in use is waited for, which PostgreSQL's unique index does for us.
"""

from __future__ import annotations

from dataclasses import replace

from router.decisions import keys, stored_answers
from router.decisions.keys import KeyTrouble
from router.engine.batches import OpeningFailed, Results, commit, run_steps
from router.engine.calls import Call
from router.engine.lane_pool import LanePool, Slot
from router.model.errors import Code, Executed, RouterError
from router.model.observation import AttemptFailed, Fault, FaultKind, Stage
from router.model.reasons import RefuseReason
from router.model.request import TransactionMode


async def run_keyed(pool: LanePool, slot: Slot, call: Call) -> Results:
    """Run the steps once, whatever happened before: their results, or those of the request that was first.

    AttemptFailed as lanes do, with KEY_BUSY while another transaction holds the key. RouterError KEY_REUSED,
    IDEMPOTENCY_NOT_CONFIGURED, GUARD_FAILED.
    """
    request = call.request
    digest = keys.request_hash(request)
    wait_s = call.tenant.policy.key_wait_s
    key = keys.Key(call.tenant.name, request.idempotency_key)
    opening = keys.opening(request.mode or TransactionMode(), key, digest, wait_s)
    try:
        results = await run_steps(pool, slot, call, opening)
    except OpeningFailed as failure:
        return await answer_trouble(pool, slot, call, failure, digest)
    except AttemptFailed as failure:
        if failure.fault.kind is FaultKind.SERVER_ERROR:
            call.in_doubt = False  # the row was ours to write: nothing before was done
        raise
    except RouterError:
        call.in_doubt = False
        raise
    call.in_doubt = False
    answer = stored_answers.store(results, [step.want_rows for step in request.steps])
    await commit(pool, slot, call, keys.closing(key, answer))
    return results


async def answer_trouble(
    pool: LanePool, slot: Slot, call: Call, failure: OpeningFailed, digest: bytes
) -> Results:
    """The stored answer when the opening failed because the key was used; else what became of it is raised."""
    match keys.trouble(failure.fault, at_row=failure.place == keys.INSERT_PLACE):
        case None:
            raise failure
        case KeyTrouble.NOT_CONFIGURED:
            raise keys.not_configured(failure.fault) from failure
        case KeyTrouble.BUSY:
            raise AttemptFailed(replace(failure.fault, kind=FaultKind.KEY_BUSY)) from failure
        case KeyTrouble.TAKEN:
            return await _replay(pool, slot, call, digest)


async def _replay(pool: LanePool, slot: Slot, call: Call, digest: bytes) -> Results:
    call.in_doubt = True  # until the row has told, and its standby has it
    call.committing = True
    key = keys.Key(call.tenant.name, call.request.idempotency_key)
    statements = keys.looking(key, after_failure=True)
    unit = await pool.run_pinned(slot, statements, call.request.deadline, commits=True, final=True)
    cells = unit.results[keys.LOOK_PLACE].cells
    if cells is None or not cells.ntuples:
        # It has just expired; or its transaction, which we met, is undone after all.
        call.committing = False
        raise AttemptFailed(Fault(FaultKind.KEY_BUSY, Stage.EXECUTE, message="the key's row is gone"))
    call.in_doubt = False
    if unhexed(cells.get_value(0, 0)) != digest:
        raise keys.reused()
    call.replayed = True
    return restored(cells.get_value(0, 1))


def restored(cell: bytes | None) -> Results:
    """The answer in a bytea cell. RouterError when it is none of ours: the write was done all the same."""
    try:
        return stored_answers.restore(unhexed(cell))
    except ValueError as error:
        raise RouterError(
            Code.INTERNAL,
            RefuseReason.INTERNAL,
            f"the write was done before, but its stored answer cannot be read ({error})",
            executed=Executed.YES,
        ) from error


def unhexed(cell: bytes | None) -> bytes:
    """A bytea in PostgreSQL's text form. ValueError for anything else."""
    if cell is None or cell[:2] != b"\\x":
        raise ValueError("no bytes")
    return bytes.fromhex(cell[2:].decode("ascii"))
