"""A key's row on its server: what it says, once its standby has it too, and whether an open transaction holds it."""

from __future__ import annotations

from dataclasses import dataclass

from router.decisions import keys, stored_answers
from router.decisions.keys import KeyTrouble
from router.engine.attempts import at_route
from router.engine.calls import Call
from router.engine.endpoints import Pools
from router.engine.lane_pool import LanePool, Slot
from router.engine.placement import Placement
from router.engine.tenants import TenantRuntime
from router.model.errors import Code, Executed, RouterError
from router.model.observation import AttemptFailed
from router.model.reasons import RefuseReason
from router.model.request import Access, WriteOutcome
from router.model.result import StatementResult
from router.ports import Clock

_PROBE_S = 0.05
"""A key without a row that is waited for this long is held by an open transaction."""


@dataclass(frozen=True, slots=True)
class Stored:
    """The row of a write that was done."""

    digest: bytes
    """Of its request."""
    answer: bytes | None
    """As PostgreSQL gives it."""
    began_us: int
    """By the primary's clock (microseconds since 1970)."""

    def results(self) -> list[StatementResult | None]:
        """Its answer. RouterError when that is none of ours: the write was done all the same."""
        try:
            return stored_answers.restore(_unhexed(self.answer))
        except ValueError as error:
            raise _unreadable(str(error)) from error

    def only_result(self) -> StatementResult:
        """The same of a request with one statement."""
        match self.results():
            case [StatementResult() as result]:
                return result
        raise _unreadable("it is no answer to one statement")


async def read(pool: LanePool, slot: Slot, call: Call, *, after_failure: bool) -> Stored | None:
    """A key's row, alone or after a failed opening. AttemptFailed, with stage COMMIT while its standby has not
    confirmed it; RouterError IDEMPOTENCY_NOT_CONFIGURED."""
    statements = keys.looking(_key(call), after_failure=after_failure)
    try:
        unit = await pool.run_pinned(slot, statements, call.request.deadline, commits=True, final=True)
    except AttemptFailed as failure:
        at_row = failure.fault.step == len(statements) + keys.LOOK_PLACE
        if keys.trouble(failure.fault, at_row=at_row) is KeyTrouble.NOT_CONFIGURED:
            raise keys.not_configured(failure.fault) from failure
        raise
    cells = unit.results[keys.LOOK_PLACE].cells
    if cells is None or not cells.ntuples:
        return None
    return Stored(_unhexed(cells.get_value(0, 0)), cells.get_value(0, 1), int(cells.get_value(0, 2) or 0))


async def look(pool: LanePool, slot: Slot, call: Call) -> Stored | WriteOutcome:
    """A key's row; without one RUNNING when an open transaction holds the key, else NOT_FOUND. As read()."""
    while True:
        found = await read(pool, slot, call, after_failure=False)
        if found is not None:
            return found
        try:
            unit = await pool.run_pinned(slot, keys.probing(_key(call), _PROBE_S), call.request.deadline, commits=False)
        except AttemptFailed as failure:
            if keys.trouble(failure.fault, at_row=failure.fault.step == keys.PROBE_PLACE) is KeyTrouble.BUSY:
                return WriteOutcome.RUNNING
            raise
        cells = unit.results[keys.PROBE_PLACE].cells
        if cells is not None and cells.ntuples:
            return WriteOutcome.NOT_FOUND
        # It was committed between the two.


async def look_on_primary(
    runtime: TenantRuntime, call: Call, placement: Placement, pools: Pools, clock: Clock
) -> Stored | WriteOutcome:
    """The same on the primary of now, as an attempt of the call."""
    route = await placement.route(runtime, call, Access.READ_WRITE)
    pool = pools.get(runtime.tenant, route.endpoint, Access.READ_WRITE, route.generation)
    call.attempts += 1
    runtime.in_flight[route.endpoint] += 1
    try:
        slot = await pool.pin(call.request.deadline)
        started = clock.now()
        try:
            return await look(pool, slot, call)
        finally:
            call.executed_s = clock.now() - started
            pool.release(slot)
    except AttemptFailed as failure:
        raise at_route(failure, route) from failure
    finally:
        runtime.in_flight[route.endpoint] -= 1


def _key(call: Call) -> keys.Key:
    return keys.Key(call.tenant.name, call.request.idempotency_key)


def _unhexed(cell: bytes | None) -> bytes:
    """A bytea in PostgreSQL's text form. ValueError for anything else."""
    if cell is None or cell[:2] != b"\\x":
        raise ValueError("no bytes")
    return bytes.fromhex(cell[2:].decode("ascii"))


def _unreadable(why: str) -> RouterError:
    return RouterError(
        Code.INTERNAL,
        RefuseReason.INTERNAL,
        f"the write was done before, but its stored answer cannot be read ({why})",
        executed=Executed.YES,
    )
