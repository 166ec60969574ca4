"""A whole transaction on a lane of its own: BEGIN and the steps first, COMMIT only once all of them have succeeded.

Sending COMMIT apart costs one more round trip to a near server, and buys certainty: a batch that loses its connection
before COMMIT was sent is undone for sure and can be repeated; a cancel never reaches a COMMIT; a guard can look at an
earlier step's count.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from router.decisions.keys import ASSERT_DURABILITY, COMMIT
from router.engine.calls import Call, cancelled_error
from router.engine.lane_pool import LanePool, Slot
from router.engine.positions import PositionBehind
from router.model.errors import Code, Executed, RouterError, bad_request
from router.model.observation import AttemptFailed, Fault, FaultKind, Stage
from router.model.reasons import RefuseReason
from router.model.request import BatchStep, Guard, Statement, TransactionMode
from router.model.result import StatementResult

FORGET_SEQUENCES = Statement(b"DISCARD SEQUENCES")
"""Before the first question for currval or lastval: what earlier users of the connection drew is not the caller's."""

Results = list[StatementResult | None]


class OpeningFailed(AttemptFailed):
    """What was sent in front of the first step failed; place: which statement of it."""

    def __init__(self, fault: Fault, place: int) -> None:
        super().__init__(fault)
        self.place = place


async def run_batch(pool: LanePool, slot: Slot, call: Call) -> Results:
    """Run the steps atomically. AttemptFailed as lanes do; RouterError GUARD_FAILED when a guard ends the batch."""
    mode = call.request.mode or TransactionMode()
    results = await run_steps(pool, slot, call, (Statement(mode.begin_sql()),))
    await commit(pool, slot, call, before_commit(call))
    return results


def before_commit(call: Call) -> tuple[Statement, ...]:
    """What goes in front of a COMMIT without a key: nothing only where there is nothing to make durable, for sure."""
    mode = call.request.mode
    return () if mode is not None and mode.read_only and not call.request.escape else (ASSERT_DURABILITY,)


async def run_steps(pool: LanePool, slot: Slot, call: Call, opening: Sequence[Statement]) -> Results:
    """Begin the transaction with these statements and run the steps; COMMIT is the caller's. OpeningFailed, too."""
    steps = call.request.steps
    results: Results = []
    begun = False
    while len(results) < len(steps):
        start = len(results)
        end = _next_dependent(steps, start)
        chosen = [index for index in range(start, end) if _wanted(steps[index], results)]
        results.extend([None] * (end - start))
        if chosen or not begun:
            prefix = () if begun else opening
            if not begun and call.request.own_sequences:
                prefix = (*prefix, FORGET_SEQUENCES)
            begun = True
            answers = await _run_segment(pool, slot, call, prefix, chosen)
            for index, answer in zip(chosen, answers, strict=True):
                results[index] = answer
        if call.cancel_asked:
            raise cancelled_error(Executed.ROLLED_BACK)
    return results


def check_guards(steps: Sequence[BatchStep]) -> None:
    """RouterError BAD_REQUEST for a guard that looks at no earlier step."""
    for index, step in enumerate(steps):
        if step.guard is not None and not 0 <= step.guard.step < index:
            raise bad_request(
                RefuseReason.BAD_REQUEST, f"step {index}: its guard looks at step {step.guard.step}, not an earlier one"
            )


def _next_dependent(steps: Sequence[BatchStep], position: int) -> int:
    """The first step after position whose guard looks at a step that has not run yet at position."""
    for index in range(position + 1, len(steps)):
        guard = steps[index].guard
        if guard is not None and guard.step >= position:
            return index
    return len(steps)


def _wanted(step: BatchStep, results: Sequence[StatementResult | None]) -> bool:
    guard = step.guard
    if guard is None:
        return True
    earlier = results[guard.step]
    if earlier is not None and guard.holds(earlier.rows_affected):
        return True
    if guard.skip:
        return False
    raise _guard_failed(guard, earlier)


def _guard_failed(guard: Guard, earlier: StatementResult | None) -> RouterError:
    found = earlier.rows_affected if earlier is not None else None
    need = f"{guard.need.value.replace('_', ' ')} {guard.count}" if guard.need.value != "no_rows" else "no rows"
    saw = f"it affected {found}" if found is not None else "it was skipped"
    return RouterError(
        Code.FAILED_PRECONDITION,
        RefuseReason.GUARD_FAILED,
        f"guard on step {guard.step} does not hold: needs {need}, {saw}; the batch was rolled back",
        executed=Executed.ROLLED_BACK,
        numbers={"step": guard.step, "rows": found if found is not None else -1},
    )


async def _run_segment(
    pool: LanePool, slot: Slot, call: Call, prefix: Sequence[Statement], chosen: Sequence[int]
) -> list[StatementResult]:
    steps = call.request.steps
    statements = [*prefix, *(steps[index].statement for index in chosen)]
    try:
        unit = await pool.run_pinned(slot, statements, call.request.deadline, commits=False)
    except AttemptFailed as failure:
        # A step is counted as the caller counts: without our BEGIN, with the steps that were skipped.
        place = failure.fault.step - len(prefix)
        if place < 0 and failure.fault.kind is FaultKind.SERVER_ERROR:
            raise OpeningFailed(replace(failure.fault, step=0), failure.fault.step) from failure
        step = chosen[place] if 0 <= place < len(chosen) else 0
        raise AttemptFailed(replace(failure.fault, step=step)) from failure
    return unit.results[len(prefix) :]


async def commit(
    pool: LanePool, slot: Slot, call: Call, before: Sequence[Statement] = (ASSERT_DURABILITY,)
) -> None:
    """COMMIT, with what goes in front of it; never cancelled once sent. AttemptFailed with stage COMMIT when its
    outcome is unknown."""
    call.committing = True
    behind = PositionBehind()
    unit = await pool.run_pinned(
        slot, (*before, COMMIT), call.request.deadline, commits=True, final=True, behind=behind
    )
    tag = unit.results[-1].command_tag if unit.results else ""
    if tag != "COMMIT":
        # In a failed transaction PostgreSQL answers COMMIT with ROLLBACK, and raises no error.
        raise AttemptFailed(Fault(FaultKind.SERVER_ERROR, Stage.EXECUTE, "25P02", f"COMMIT was answered with {tag}"))
    await behind.note(call, unit, asyncio.get_running_loop().time())
