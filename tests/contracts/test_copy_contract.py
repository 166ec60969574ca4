"""What ports.CopyChannel promises, asked of the fake and of real PostgreSQL alike."""

from __future__ import annotations

import asyncio

import pytest

from router.model.observation import FaultKind, Stage
from router.model.reasons import CloseReason
from router.model.request import Access, Statement
from router.ports import CopyChannel, Lane, Unit
from tests.contracts.promises import MakePool, Run, ended, fault_of, run_on, soon, tags, values

TABLE = "copied_in_contract"
IN = f"copy {TABLE} from stdin"


def copy(lane: Lane, sql: str) -> tuple[CopyChannel, Unit, asyncio.Future[Unit]]:
    done: asyncio.Future[Unit] = asyncio.get_running_loop().create_future()
    unit = Unit((Statement(sql.encode()),), done.set_result, commits=False)
    return lane.open_copy(unit), unit, done


async def of_use(lane: Lane) -> None:
    assert (lane.in_flight, lane.in_transaction, lane.usable) == (0, False, True)
    assert values(await run_on(lane, "select 41")) == [b"41"]


async def with_table(lane: Lane) -> None:
    await run_on(lane, f"drop table if exists {TABLE}")
    await run_on(lane, f"create table {TABLE} (n int)")


def test_data_goes_in_and_the_lane_is_a_lane_again(run: Run) -> None:
    async def told(make: MakePool) -> None:
        pool = make()
        lane = await pool.open_lane(soon())
        await with_table(lane)
        channel, unit, done = copy(lane, IN)
        assert (lane.in_flight, channel.layout, unit.sent) == (1, None, True)
        await channel.started()
        assert channel.layout is not None
        assert channel.layout.columns == 1
        assert await channel.write(b"1\n")
        assert (unit.commits, lane.in_transaction) == (False, True)
        channel.finish(commits=True)
        assert unit.commits
        channel.fail("too late")
        assert not await channel.write(b"2\n")
        await done
        assert unit.fault is None
        assert tags(unit)[0].startswith("COPY")
        await of_use(lane)
        await lane.give_back()
        assert pool.statistics().idle == 1
        await ended(pool)

    run(told)


def test_fail_undoes_it_with_57014(run: Run) -> None:
    async def told(make: MakePool) -> None:
        pool = make()
        lane = await pool.open_lane(soon())
        await with_table(lane)
        for early in (False, True):
            channel, unit, done = copy(lane, IN)
            if not early:
                await channel.started()
                assert await channel.write(b"1\n")
            channel.fail("why not")
            channel.finish(commits=True)
            await done
            fault = fault_of(unit)
            assert (fault.kind, fault.sqlstate, fault.stage) == (FaultKind.SERVER_ERROR, "57014", Stage.EXECUTE)
            await of_use(lane)
        await lane.give_back()
        await ended(pool)

    run(told)


def test_within_a_transaction_its_end_commits_nothing(run: Run) -> None:
    async def told(make: MakePool) -> None:
        pool = make()
        lane = await pool.open_lane(soon())
        await with_table(lane)
        for fails in (False, True):
            await run_on(lane, "begin", commits=False)
            channel, unit, done = copy(lane, IN)
            await channel.started()
            assert await channel.write(b"1\n")
            if fails:
                channel.fail("why not")
            channel.finish(commits=False)
            await done
            assert (unit.commits, unit.fault is not None) == (False, fails)
            assert (lane.in_transaction, lane.in_failed_transaction) == (True, fails)
            await run_on(lane, "rollback")
            await of_use(lane)
        await lane.give_back()
        await ended(pool)

    run(told)


def test_a_read_only_connection_takes_no_data(run: Run) -> None:
    async def told(make: MakePool) -> None:
        pool = make(Access.READ_WRITE)
        lane = await pool.open_lane(soon())
        await with_table(lane)
        await lane.give_back()
        reader = make(Access.READ_ONLY)
        lane = await reader.open_lane(soon())
        channel, unit, done = copy(lane, IN)
        await channel.started()
        assert channel.layout is None
        await done
        assert fault_of(unit).sqlstate == "25006"
        await of_use(lane)
        await lane.give_back()
        await ended(reader)
        await pool.close(CloseReason.SHUTDOWN)

    run(told)


@pytest.mark.parametrize("finished", [False, True])
def test_abandoned_it_says_how_far_it_had_come(run: Run, finished: bool) -> None:
    async def told(make: MakePool) -> None:
        pool = make()
        lane = await pool.open_lane(soon())
        await with_table(lane)
        channel, unit, done = copy(lane, IN)
        await channel.started()
        assert await channel.write(b"1\n")
        if finished:
            channel.finish(commits=True)
        lane.abandon(CloseReason.ABANDONED)
        assert not done.done(), "done is never called from abandon"
        assert not await channel.write(b"2\n")
        channel.finish(commits=True)
        channel.drop()
        await done
        fault = fault_of(unit)
        assert (fault.kind, fault.stage) == (FaultKind.CLOSED, Stage.COMMIT if finished else Stage.EXECUTE)
        assert not lane.usable
        await lane.give_back()
        await ended(pool)

    run(told)


def test_a_lane_that_has_ended_copies_nothing(run: Run) -> None:
    async def told(make: MakePool) -> None:
        pool = make()
        lane = await pool.open_lane(soon())
        lane.abandon(CloseReason.ABANDONED)
        channel, unit, done = copy(lane, IN)
        assert not done.done()
        await channel.started()
        assert not await channel.write(b"1\n")
        assert await channel.read() == b""
        await done
        assert (fault_of(unit).stage, unit.sent) == (Stage.SEND, False)
        await ended(pool)

    run(told)


def test_a_cancel_ends_a_copy_that_waits(run: Run) -> None:
    async def told(make: MakePool) -> None:
        pool = make()
        lane = await pool.open_lane(soon())
        channel, unit, done = copy(lane, "copy (select pg_sleep(5)) to stdout")
        reading = asyncio.ensure_future(channel.read())
        await asyncio.sleep(0.1)
        channel.drop()
        await lane.cancel()
        await done
        assert await reading == b""
        assert fault_of(unit).sqlstate == "57014"
        await of_use(lane)
        await lane.give_back()
        await ended(pool)

    run(told)
