"""What ports.Lane promises about units, transactions and streams, asked of the fake and of real PostgreSQL alike.

A fake that is kinder than the server makes every test above it worthless: whatever the engine's tests lean on is here.
"""

from __future__ import annotations

import asyncio
from typing import Any

from router.model.observation import FaultKind, Stage
from router.model.reasons import CloseReason
from router.model.request import Access, Statement
from router.ports import Unit
from tests.contracts.promises import (
    MakePool,
    Run,
    ended,
    fault_of,
    run_on,
    soon,
    submit,
    tags,
    values,
)

# --- units ---------------------------------------------------------------------------------------------------------


def test_answers_come_in_order_and_errors_stay_apart(run: Run) -> None:
    async def told(make: MakePool) -> None:
        pool = make()
        lane = await pool.open_lane(soon())
        order: list[int] = []
        futures = [submit(lane, "select 1/0" if n == 2 else f"select {n}") for n in range(5)]
        for n, future in enumerate(futures):
            future.add_done_callback(lambda _, n=n: order.append(n))  # type: ignore[misc]
        assert lane.in_flight == 5
        assert not futures[0].done(), "done is never called from submit"
        units = await asyncio.gather(*futures)
        await asyncio.sleep(0)
        assert order == [0, 1, 2, 3, 4]
        assert [values(one) for one in units] == [[b"0"], [b"1"], [], [b"3"], [b"4"]]
        fault = fault_of(units[2])
        assert (fault.kind, fault.sqlstate, fault.stage) == (FaultKind.SERVER_ERROR, "22012", Stage.COMMIT)
        assert fault.detail is not None
        assert (fault.detail.severity, fault.detail.sqlstate) == ("ERROR", "22012")
        assert all(one.sent and one.sent_at <= one.done_at for one in units)
        assert (lane.in_flight, lane.in_transaction, lane.usable) == (0, False, True)
        await lane.give_back()
        assert pool.statistics().idle == 1
        await ended(pool)

    run(told)


def test_what_is_submitted_now_has_been_sent_when_that_returns(run: Run) -> None:
    async def told(make: MakePool) -> None:
        pool = make()
        lane = await pool.open_lane(soon())
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[Unit]] = [loop.create_future() for _ in range(4)]
        units = [Unit((Statement(b"select %d" % n),), future.set_result) for n, future in enumerate(futures)]
        lane.submit_now(*units[:2])
        assert [one.sent for one in units] == [True, True, False, False]
        assert not futures[0].done(), "done is never called from there"
        assert [values(await future) for future in futures[:2]] == [[b"0"], [b"1"]]
        lane.abandon(CloseReason.ABANDONED)
        lane.submit_now(*units[2:])
        faults = [fault_of(await future) for future in futures[2:]]
        assert [(fault.kind, fault.stage) for fault in faults] == [(FaultKind.CONNECTION_LOST, Stage.SEND)] * 2
        assert [one.sent for one in units[2:]] == [False, False]
        await ended(pool)

    run(told)


def test_the_statements_of_a_unit_succeed_or_fail_together(run: Run) -> None:
    async def told(make: MakePool) -> None:
        pool = make()
        lane = await pool.open_lane(soon())
        unit = await run_on(lane, "select 1", "select 1/0", "select 3", commits=False)
        fault = fault_of(unit)
        assert (fault.step, fault.stage, len(unit.results)) == (1, Stage.EXECUTE, 1)
        assert not lane.in_transaction
        await lane.give_back()
        await ended(pool)

    run(told)


def test_what_a_transaction_says_of_itself(run: Run) -> None:
    async def told(make: MakePool) -> None:
        pool = make()
        lane = await pool.open_lane(soon())
        busy = submit(lane, "BEGIN", "select 1", commits=False)
        assert lane.in_transaction, "not known to be idle while something is in flight"
        assert tags(await busy) == ["BEGIN", "SELECT 1"]
        assert (lane.in_transaction, lane.in_failed_transaction) == (True, False)
        assert tags(await run_on(lane, "SAVEPOINT p")) == ["SAVEPOINT"]
        assert fault_of(await run_on(lane, "select 1/0", commits=False)).sqlstate == "22012"
        assert (lane.in_transaction, lane.in_failed_transaction) == (True, True)
        assert fault_of(await run_on(lane, "select 1", commits=False)).sqlstate == "25P02"
        assert tags(await run_on(lane, "ROLLBACK TO SAVEPOINT p")) == ["ROLLBACK"]
        assert (lane.in_transaction, lane.in_failed_transaction) == (True, False)
        await run_on(lane, "select 1/0", commits=False)
        failed = await run_on(lane, "COMMIT")
        assert (tags(failed), failed.fault) == (["ROLLBACK"], None), "no error: only the tag tells"
        assert not lane.in_transaction
        assert tags(await run_on(lane, "BEGIN READ ONLY")) == ["BEGIN"]
        assert tags(await run_on(lane, "COMMIT")) == ["COMMIT"]
        await lane.give_back()
        await ended(pool)

    run(told)


def test_begin_and_a_failing_statement_leave_a_failed_transaction(run: Run) -> None:
    async def told(make: MakePool) -> None:
        pool = make()
        lane = await pool.open_lane(soon())
        unit = await run_on(lane, "BEGIN READ WRITE", "select 1/0", commits=False)
        assert fault_of(unit).step == 1
        assert (lane.in_transaction, lane.in_failed_transaction) == (True, True)
        assert tags(await run_on(lane, "ROLLBACK", commits=False)) == ["ROLLBACK"]
        assert not lane.in_transaction
        await lane.give_back()
        await ended(pool)

    run(told)


def test_read_only_connections_write_nothing(run: Run) -> None:
    async def told(make: MakePool) -> None:
        pool = make(Access.READ_ONLY)
        lane = await pool.open_lane(soon())
        fault = fault_of(await run_on(lane, "create table never_made (n int)"))
        assert (fault.kind, fault.sqlstate) == (FaultKind.SERVER_ERROR, "25006")
        await lane.give_back()
        await ended(pool)

    run(told)


# --- streams -------------------------------------------------------------------------------------------------------


def test_a_stream_stops_while_its_reader_does_and_loses_nothing(run: Run) -> None:
    async def told(make: MakePool) -> None:
        pool = make()
        lane = await pool.open_lane(soon())
        seen: list[int] = []
        paused = asyncio.Event()

        def on_rows(cells: Any) -> bool:
            seen.append(cells.ntuples)
            if len(seen) % 3 == 0:
                paused.set()
                return False
            return True

        done = submit(lane, "select g from generate_series(1, 10000) g", on_rows=on_rows, chunk_rows=500)
        count = 0
        while not done.done():
            waiting: asyncio.Future[Any] = asyncio.create_task(paused.wait())
            await asyncio.wait([done, waiting], return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            if paused.is_set():
                paused.clear()
                count = len(seen)
                await asyncio.sleep(0.02)
                assert len(seen) == count
                assert lane.in_flight == 1
                lane.resume_reading()
        unit = done.result()
        assert unit.fault is None
        assert (sum(seen), max(seen)) == (10000, 500)
        assert unit.results[0].cells is not None
        assert (unit.results[0].cells.ntuples, unit.results[0].cells.nfields) == (0, 1)
        assert (unit.results[0].command_tag, unit.results[0].rows_affected) == ("SELECT 10000", 10000)
        await lane.give_back()
        assert pool.statistics().idle == 1
        await ended(pool)

    run(told)


def test_a_stream_cut_off_after_its_first_rows_says_so(run: Run) -> None:
    async def told(make: MakePool) -> None:
        pool = make()
        lane = await pool.open_lane(soon())
        paused = asyncio.Event()

        def on_rows(_: Any) -> bool:
            paused.set()
            return False

        done = submit(lane, "select g from generate_series(1, 10000) g", on_rows=on_rows, chunk_rows=500, commits=False)
        await paused.wait()
        lane.abandon(CloseReason.ABANDONED)
        fault = fault_of(await done)
        assert (fault.kind, fault.stage) == (FaultKind.CLOSED, Stage.STREAM)
        await ended(pool)

    run(told)
