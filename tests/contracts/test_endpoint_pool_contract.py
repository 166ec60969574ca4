"""What ports.EndpointPool promises about stopping, giving back and lending, asked of the fake and of the real one."""

from __future__ import annotations

import asyncio

import pytest

from router.model.identity import Generation
from router.model.observation import AttemptFailed, FaultKind, Stage
from router.model.reasons import CloseReason
from tests.contracts.promises import (
    MAX_SIZE,
    SLACK_S,
    MakePool,
    Run,
    ended,
    fault_of,
    run_on,
    same_connection,
    soon,
    submit,
    values,
)
from tests.support.builders import now

# --- stopping ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("patient_cancels")
def test_a_cancelled_statement_is_answered_and_its_lane_stays_good(run: Run) -> None:
    async def told(make: MakePool) -> None:
        pool = make()
        lane = await pool.open_lane(soon())
        done = submit(lane, "select pg_sleep(30)")
        await asyncio.sleep(0.1)
        assert await lane.cancel(), "it has arrived for certain"
        fault = fault_of(await asyncio.wait_for(done, 1))
        assert (fault.kind, fault.sqlstate) == (FaultKind.SERVER_ERROR, "57014")
        assert lane.usable
        assert not lane.in_transaction
        assert values(await run_on(lane, "select 7")) == [b"7"]
        await lane.give_back()
        assert pool.statistics().idle == 1
        await ended(pool)

    run(told)


def test_a_cancel_with_nothing_in_flight_does_nothing(run: Run) -> None:
    async def told(make: MakePool) -> None:
        pool = make()
        lane = await pool.open_lane(soon())
        assert await lane.cancel()
        assert lane.usable
        assert values(await run_on(lane, "select 7")) == [b"7"]
        await lane.give_back()
        await lane.cancel()
        await ended(pool)

    run(told)


def test_a_cancel_that_was_interrupted_leaves_the_lane_unusable(run: Run) -> None:
    async def told(make: MakePool) -> None:
        pool = make()
        lane = await pool.open_lane(soon())
        done = submit(lane, "select pg_sleep(0.3)")
        await asyncio.sleep(0.1)
        cancelling = asyncio.create_task(lane.cancel())
        await asyncio.sleep(0)
        cancelling.cancel()
        await asyncio.wait({cancelling})
        await done
        assert not lane.usable, "the request may still arrive"
        await lane.give_back()
        fresh = await pool.open_lane(soon())
        assert not same_connection(fresh, lane)
        await fresh.give_back()
        await ended(pool)

    run(told)


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        (CloseReason.ABANDONED, FaultKind.CLOSED),
        (CloseReason.SHUTDOWN, FaultKind.CLOSED),
        (CloseReason.GENERATION, FaultKind.STALE),
        (CloseReason.CONNECTION_LOST, FaultKind.CONNECTION_LOST),
    ],
)
def test_abandoning_ends_everything_at_once(run: Run, reason: CloseReason, kind: FaultKind) -> None:
    async def told(make: MakePool) -> None:
        pool = make()
        lane = await pool.open_lane(soon())
        running = submit(lane, "select pg_sleep(30)")
        behind = submit(lane, "select 1", commits=False)
        await asyncio.sleep(0.05)
        unsent = submit(lane, "select 1")
        before = now()
        lane.abandon(reason)
        assert (lane.usable, lane.in_flight, lane.in_transaction) == (False, 0, False)
        assert not running.done(), "done is called in the next turn, not inside"
        faults = [fault_of(one) for one in await asyncio.gather(running, behind, unsent)]
        assert now() - before < SLACK_S
        assert [(one.kind, one.stage) for one in faults] == [
            (kind, Stage.COMMIT), (kind, Stage.EXECUTE), (kind, Stage.SEND)]
        late = fault_of(await run_on(lane, "select 1"))
        assert (late.kind, late.stage) == (FaultKind.CONNECTION_LOST, Stage.SEND)
        lane.abandon(reason)
        await lane.give_back()
        await ended(pool)

    run(told)


# --- giving back ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("left", ["nothing", "transaction", "failed transaction", "taint", "in flight"])
def test_only_what_is_proven_idle_is_lent_again(run: Run, left: str) -> None:
    async def told(make: MakePool) -> None:
        pool = make()
        lane = await pool.open_lane(soon())
        if left == "transaction":
            await run_on(lane, "BEGIN")
        elif left == "failed transaction":
            await run_on(lane, "BEGIN", "select 1/0")
        elif left == "in flight":
            submit(lane, "select pg_sleep(1)")
        await lane.give_back(tainted=left == "taint")
        assert not lane.usable
        await lane.give_back()
        await asyncio.sleep(0.05)
        assert pool.statistics().leased == 0
        fresh = await pool.open_lane(soon())
        assert same_connection(fresh, lane) is (left == "nothing")
        assert not fresh.in_transaction
        assert values(await run_on(fresh, "select 5")) == [b"5"]
        await fresh.give_back()
        await ended(pool)

    run(told)


def test_giving_back_completes_also_when_its_caller_is_cancelled(run: Run) -> None:
    async def told(make: MakePool) -> None:
        pool = make()
        for turns in range(4):
            lane = await pool.open_lane(soon())
            giving = asyncio.create_task(lane.give_back())
            for _ in range(turns):
                await asyncio.sleep(0)
            giving.cancel()
            await asyncio.wait({giving})
            if lane.usable:
                await lane.give_back()  # it had not begun
            await asyncio.sleep(0.02)
            assert pool.statistics().leased == 0
        await ended(pool)

    run(told)


def test_a_connection_past_its_lifetime_is_not_lent_again(run: Run) -> None:
    async def told(make: MakePool) -> None:
        pool = make(lifetime_s=0.3)
        lane = await pool.open_lane(soon())
        assert lane.usable
        await asyncio.sleep(0.35)
        assert not lane.usable
        assert values(await run_on(lane, "select 1")) == [b"1"], "it may finish what it has"
        await lane.give_back()
        fresh = await pool.open_lane(soon())
        assert fresh.usable
        await fresh.give_back()
        await ended(pool)

    run(told)


# --- borrowing -----------------------------------------------------------------------------------------------------


def test_a_full_pool_says_so_by_the_deadline_and_lends_what_comes_back(run: Run) -> None:
    async def told(make: MakePool) -> None:
        pool = make()
        lanes = [await pool.open_lane(soon()) for _ in range(MAX_SIZE)]
        before = now()
        with pytest.raises(AttemptFailed) as failed:
            await pool.open_lane(soon(0.3))
        assert 0.25 < now() - before < 0.3 + SLACK_S
        assert (failed.value.fault.kind, failed.value.fault.stage) == (FaultKind.POOL_TIMEOUT, Stage.ACQUIRE)
        waiting = asyncio.create_task(pool.open_lane(soon()))
        await asyncio.sleep(0.05)
        await lanes.pop().give_back()
        lanes.append(await waiting)
        waiting = asyncio.create_task(pool.open_lane(soon()))
        await asyncio.sleep(0.05)
        lanes.pop().abandon(CloseReason.ABANDONED)
        lanes.append(await waiting)
        assert pool.statistics().leased == MAX_SIZE
        for lane in lanes:
            await lane.give_back()
        await ended(pool)

    run(told)


def test_a_borrower_that_is_cancelled_takes_no_connection_along(run: Run) -> None:
    async def told(make: MakePool) -> None:
        pool = make()
        for wait in (0.0, 0.001, 0.003, 0.006, 0.01, 0.02):
            opening = asyncio.create_task(pool.open_lane(soon()))
            await asyncio.sleep(wait)
            opening.cancel()
            await asyncio.wait({opening})
            if not opening.cancelled():
                await opening.result().give_back()
        await asyncio.sleep(0.1)
        assert pool.statistics().leased == 0
        lanes = [await pool.open_lane(soon()) for _ in range(MAX_SIZE)]
        for lane in lanes:
            await lane.give_back()
        await ended(pool)

    run(told)


def test_fencing_ends_what_is_older_and_lends_only_what_is_newer(run: Run) -> None:
    async def told(make: MakePool) -> None:
        pool = make()
        idle = await pool.open_lane(soon())
        lane = await pool.open_lane(soon())
        await idle.give_back()
        running = submit(lane, "select pg_sleep(30)")
        await asyncio.sleep(0.02)
        pool.fence(pool.generation)
        assert lane.usable, "the same generation changes nothing"
        pool.fence(Generation(2))
        assert pool.generation == 2
        assert not lane.usable
        assert fault_of(await running).kind is FaultKind.STALE
        lanes = [await pool.open_lane(soon()) for _ in range(MAX_SIZE)]
        assert {one.generation for one in lanes} == {2}
        for one in lanes:
            await one.give_back()
        await ended(pool)

    run(told)


def test_a_closed_pool_lends_nothing(run: Run) -> None:
    async def told(make: MakePool) -> None:
        pool = make()
        lane = await pool.open_lane(soon())
        running = submit(lane, "select pg_sleep(30)")
        await asyncio.sleep(0.02)
        before = now()
        await pool.close(CloseReason.SHUTDOWN)
        assert fault_of(await running).kind is FaultKind.CLOSED
        with pytest.raises(AttemptFailed) as failed:
            await pool.open_lane(soon())
        assert failed.value.fault.kind is FaultKind.CLOSED
        assert now() - before < 1
        assert pool.statistics().leased == 0

    run(told)
