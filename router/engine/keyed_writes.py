"""Writes with an idempotency key: the key's row and the work are one transaction, in two round trips.

The first carries BEGIN, the row and the caller's statements, the second the answer for the row, and COMMIT. A key that
was used is answered from its row; one that is in use is waited for, which PostgreSQL's unique index does for us.
"""

from __future__ import annotations

from dataclasses import replace

from router.decisions import keys, stored_answers
from router.decisions.keys import KeyTrouble
from router.engine import key_rows
from router.engine.batches import OpeningFailed, Results, commit, run_steps
from router.engine.calls import Call
from router.engine.key_rows import Stored
from router.engine.lane_pool import LanePool, Slot
from router.model.errors import RouterError
from router.model.observation import AttemptFailed, Fault, FaultKind, Stage
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
    stored = await met(pool, slot, call, failure)
    if stored.digest != digest:
        raise keys.reused()
    call.replayed = True
    return stored.results()


async def met(pool: LanePool, slot: Slot, call: Call, failure: OpeningFailed) -> Stored:
    """The row that an opening met, when it failed because the key was used; else what became of it is raised."""
    at_row = failure.place == keys.INSERT_PLACE
    match keys.trouble(failure.fault, at_row=at_row):
        case None:
            # Stopped while it waited for the key's holder, which may do the very same: that this one did nothing is
            # not the whole truth.
            call.in_doubt = call.in_doubt or (at_row and failure.fault.sqlstate == "57014")
            raise failure
        case KeyTrouble.NOT_CONFIGURED:
            raise keys.not_configured(failure.fault) from failure
        case KeyTrouble.BUSY:
            raise AttemptFailed(replace(failure.fault, kind=FaultKind.KEY_BUSY)) from failure
        case KeyTrouble.TAKEN:
            return await _read(pool, slot, call)


async def _read(pool: LanePool, slot: Slot, call: Call) -> Stored:
    call.in_doubt = True  # until the row has told, and its standby has it
    call.committing = True
    stored = await key_rows.read(pool, slot, call, after_failure=True)
    if stored is None:
        # It has just expired; or its transaction, which we met, is undone after all.
        call.committing = False
        raise AttemptFailed(Fault(FaultKind.KEY_BUSY, Stage.EXECUTE, message="the key's row is gone"))
    call.in_doubt = False
    return stored
