"""Interactive transactions and batches: what they promise, also when the caller, the server or the time goes away."""

from __future__ import annotations

import asyncio
import contextlib
import time

import grpc
import pointsman
import pytest
from pointsman import Executed, Step, no_rows, rows_affected, rows_at_least
from pointsman.v1 import transaction_service_pb2 as pb

from router.devcluster import DevCluster
from tests.stories.conftest import undisturbed
from tests.support.eventually import ask, eventually, running, until_running
from tests.support.running_router import Config, RunningRouter, running_router

pytestmark = pytest.mark.pg

Client = pointsman.Client
TRANSACT = "/pointsman.v1.TransactionService/Transact"


@pytest.fixture(autouse=True)
async def counters(db: Client) -> None:
    await db.batch(["delete from counters", "insert into counters select i, 0 from generate_series(1, 9) i"])


async def value(db: Client, number: int) -> int:
    return int(await db.query_value("select n from counters where id = $1", number))


# --- commit and rollback -------------------------------------------------------------------------------------------


async def test_commit_rollback_and_an_exception(db: Client) -> None:
    async with db.transaction() as tx:
        await tx.execute("update counters set n = 1 where id = 1")
        assert await value(db, 1) == 0, "nobody else sees it before the commit"
        assert await tx.query_value("select n from counters where id = 1") == 1
    assert tx.receipt is not None
    assert tx.receipt.role == "primary"
    assert await value(db, 1) == 1
    async with db.transaction() as tx:
        await tx.execute("update counters set n = 2 where id = 1")
        await tx.rollback()

    async def fail() -> None:
        async with db.transaction() as tx:
            await tx.execute("update counters set n = 3 where id = 1")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert await value(db, 1) == 1


async def test_savepoints_undo_their_inside_alone(db: Client) -> None:
    async with db.transaction() as tx:
        await tx.execute("update counters set n = 1 where id = 2")
        with contextlib.suppress(pointsman.UniqueViolation):
            async with tx.savepoint():
                await tx.execute("update counters set n = 2 where id = 2")
                await tx.execute("insert into counters values (2, 0)")
                pytest.fail("the number 2 exists")
        async with tx.savepoint():
            await tx.execute("update counters set n = n + 10 where id = 2")
            with contextlib.suppress(ZeroDivisionError):
                async with tx.savepoint():
                    await tx.execute("update counters set n = 99 where id = 2")
                    raise ZeroDivisionError
    assert await value(db, 2) == 11


async def test_a_failed_transaction_is_not_committed_and_says_so(db: Client) -> None:
    async with db.transaction() as tx:
        await tx.execute("update counters set n = 5 where id = 3")
        with pytest.raises(pointsman.DataError):
            await tx.execute("select 1 / 0")
        with pytest.raises(pointsman.Error) as caught:
            await tx.execute("select 1")
        assert caught.value.sqlstate == "25P02"
        with pytest.raises(pointsman.Aborted) as aborted:
            await tx.commit()
        assert aborted.value.executed is Executed.ROLLED_BACK
    assert await value(db, 3) == 0


async def test_isolation_and_read_only(db: Client, eventual_db: Client) -> None:
    async with db.transaction(isolation="serializable", read_only=True, deferrable=True) as tx:
        assert await tx.query_value("show transaction_isolation") == "serializable"
        assert await tx.query_value("show transaction_read_only") == "on"
        with pytest.raises(pointsman.ReadOnlyViolation):
            await tx.execute("update counters set n = 1")
        await tx.rollback()
    async with eventual_db.transaction(read_only=True, read="replica") as tx:
        assert await tx.query_value("select pg_is_in_recovery()") is True


@pytest.mark.parametrize("value", [b"abcd", b"wxyz", b"\\x61", b"", bytes(range(256))])
async def test_bytes_arrive_whatever_the_transaction_has_set(db: Client, value: bytes) -> None:
    for rows in (1, 3):
        ask = f"select $1::bytea from generate_series(1, {rows})"
        async with db.transaction() as tx:
            await tx.execute("set local bytea_output = 'escape'")
            assert [one[0] for one in await tx.query(ask, value)] == [value] * rows
        results = await db.batch(["set local bytea_output = 'escape'", Step(ask, [value], want_rows=True)])
        assert [one[0] for one in results[1].rows] == [value] * rows
    switched = "select $1::bytea from set_config('bytea_output', 'escape', true)"
    assert await db.query_value(switched, value) == value


async def test_a_serialization_failure_is_told_and_the_repetition_works(db: Client) -> None:
    async def add(tx: pointsman.Transaction, seen: asyncio.Event, go: asyncio.Event) -> None:
        total = await tx.query_value("select sum(n)::int from counters where id in (4, 5)")
        seen.set()
        await go.wait()
        await tx.execute("update counters set n = $1 where id = 4", total + 1)

    one, two, go = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def attempt(seen: asyncio.Event) -> None:
        async with db.transaction(isolation="repeatable read") as tx:
            await add(tx, seen, go)

    tasks = [asyncio.create_task(attempt(one)), asyncio.create_task(attempt(two))]
    await one.wait()
    await two.wait()
    go.set()
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    (error,) = [end for end in ends if end is not None]
    assert isinstance(error, pointsman.SerializationFailure)
    assert (error.sqlstate, error.executed) == ("40001", Executed.ROLLED_BACK)
    assert error.code is grpc.StatusCode.ABORTED
    await attempt(asyncio.Event())
    assert await value(db, 4) == 2


async def test_a_deadlock_kills_one_of_two(db: Client) -> None:
    async def lock(first: int, second: int) -> None:
        async with db.transaction() as tx:
            await tx.execute("update counters set n = n + 1 where id = $1", first)
            await asyncio.sleep(0.1)
            await tx.execute("update counters set n = n + 1 where id = $1", second)

    ends = await asyncio.gather(lock(6, 7), lock(7, 6), return_exceptions=True)
    (error,) = [end for end in ends if end is not None]
    assert isinstance(error, pointsman.Deadlock)
    assert error.executed is Executed.ROLLED_BACK


# --- the caller goes away ------------------------------------------------------------------------------------------


def locks(cluster: DevCluster) -> int:
    """Sessions that hold a row lock on counters or an advisory lock."""
    return int(
        ask(
            cluster,
            "select count(distinct pid) from pg_locks where pid <> pg_backend_pid() and "
            "(locktype = 'advisory' or relation = 'counters'::regclass and mode = 'RowExclusiveLock')",
            database="acme",
        )
    )


async def no_locks(cluster: DevCluster) -> bool:
    return await asyncio.to_thread(locks, cluster) == 0


@pytest.mark.parametrize("how", ["channel", "task", "in mid-statement"])
async def test_a_caller_that_vanishes_leaves_nothing_behind(
    router: RunningRouter, db: Client, pg_cluster: DevCluster, how: str
) -> None:
    async with undisturbed(router):
        async with grpc.aio.insecure_channel(router.address) as channel:
            metadata = (("authorization", f"Bearer {router.tokens['acme']}"),)
            rpc = channel.stream_stream(TRANSACT, pb.TransactRequest.SerializeToString, pb.TransactResponse.FromString)(
                metadata=metadata
            )
            sql = "update counters set n = 77 where id = 8 returning pg_advisory_lock(4711)"
            await rpc.write(pb.TransactRequest(tag=1, begin=pb.TransactBegin(), run={"sql": sql}))
            assert (await rpc.read()).WhichOneof("event") == "done"
            assert await asyncio.to_thread(locks, pg_cluster) == 1
            mark = f"vanishing {time.monotonic_ns()}"
            if how == "in mid-statement":
                await rpc.write(pb.TransactRequest(tag=2, run={"sql": f"select pg_sleep(20) /* {mark} */"}))
                await until_running(pg_cluster, mark)
            if how == "channel":
                await channel.close()
            else:
                rpc.cancel()
            took = await eventually(lambda: no_locks(pg_cluster), within_s=1, what="the end of the locks")
            print(f"\nlocks gone {took * 1000:.0f} ms after the caller ({how})")
            assert await asyncio.to_thread(running, pg_cluster, mark) == 0
        assert await value(db, 8) == 0


async def test_a_cancelled_body_rolls_back(db: Client, pg_cluster: DevCluster) -> None:
    async def body() -> None:
        async with db.transaction() as tx:
            await tx.execute("update counters set n = 1 where id = 9")
            await asyncio.sleep(30)

    task = asyncio.create_task(body())
    await eventually(lambda: some_lock(pg_cluster), within_s=2, what="the lock")
    task.cancel()
    await asyncio.wait({task})
    await eventually(lambda: no_locks(pg_cluster), within_s=1, what="the end of the lock")
    assert await value(db, 9) == 0


async def some_lock(cluster: DevCluster) -> bool:
    return not await no_locks(cluster)


async def test_an_idle_or_old_transaction_ends_loudly(pg_cluster: DevCluster) -> None:
    def shorten(config: Config) -> None:
        config["tenants"]["acme"]["limits"] = {
            "idle_in_transaction_s": 0.4, "max_transaction_s": 1.0, "max_transactions": 2
        }  # fmt: skip

    async with running_router(pg_cluster, edit=shorten) as router, undisturbed(router), router.connect() as db:
        tx = db.transaction()
        await tx.execute("update counters set n = 3 where id = 1")
        await asyncio.sleep(0.6)
        await eventually(lambda: no_locks(pg_cluster), within_s=0.5, what="the end of the idle transaction")
        with pytest.raises(pointsman.TransactionLost) as caught:
            await tx.execute("select 1")
        assert (caught.value.reason, caught.value.executed) == ("TRANSACTION_EXPIRED", Executed.ROLLED_BACK)
        assert "idle" in caught.value.message
        with pytest.raises(pointsman.TransactionLost) as caught:
            await tx.commit()
        assert caught.value.executed is Executed.ROLLED_BACK

        async def work_too_long() -> None:
            async with db.transaction() as tx:
                for _ in range(30):
                    await tx.execute("select pg_sleep(0.05)")

        with pytest.raises(pointsman.TransactionLost) as caught:
            await work_too_long()
        assert caught.value.reason == "TRANSACTION_EXPIRED"
        assert "max_transaction_s" in caught.value.message

        async def swallow() -> None:
            async with db.transaction() as tx:
                await tx.execute("update counters set n = 3 where id = 1")
                await asyncio.sleep(0.6)
                with contextlib.suppress(pointsman.Error):
                    await tx.execute("select 1")

        with pytest.raises(pointsman.TransactionLost):
            await swallow()
        async with db.transaction() as one, db.transaction() as two:
            await one.execute("select 1")
            await two.execute("select 1")
            with pytest.raises(pointsman.ResourceExhausted) as refused:
                await db.transaction().execute("select 1", timeout=0.5)
            assert refused.value.executed is Executed.NO
        assert await value(db, 1) == 0


# --- sessions ------------------------------------------------------------------------------------------------------


async def test_session_features_stay_inside(router: RunningRouter, db: Client, pg_cluster: DevCluster) -> None:
    async with db.transaction() as tx:
        await tx.execute("create temp table mine (id int)")
        await tx.execute("insert into mine values (1)")
        await tx.execute("set work_mem = '3MB'")
        await tx.execute("set search_path = pg_catalog")
        await tx.query("select pg_advisory_lock(815)")
        await tx.execute("listen news")
        await tx.execute("prepare p as select 42")
        assert await tx.query_value("execute p") == 42
        await tx.execute("declare c cursor for select generate_series(1, 10)")
        assert len(await tx.query("fetch 3 from c")) == 3
        assert await tx.query_value("select count(*) from mine") == 1
    await eventually(lambda: no_locks(pg_cluster), within_s=1, what="the end of the advisory lock")
    # Whoever borrows a connection next finds a fresh session, on every connection there is.
    answers = await asyncio.gather(
        *(
            db.execute(
                "select current_setting('work_mem') as work_mem, current_setting('search_path') as path, "
                "to_regclass('pg_temp.mine') is null as fresh, "
                "(select count(*) from pg_prepared_statements where name = 'p') as prepared, pg_sleep(0.05)"
            )
            for _ in range(12)
        )
    )
    seen = {(row.work_mem, row.path, row.fresh, row.prepared) for answer in answers for row in answer.rows}
    assert seen == {("4MB", '"$user", public', True, 0)}
    async with db.transaction() as tx:
        assert await tx.query_value("show work_mem") == "4MB"
        assert await tx.query_value("select to_regclass('pg_temp.mine') is null")
        assert await tx.query_value("select pg_try_advisory_lock(815)")


# --- batches -------------------------------------------------------------------------------------------------------


async def test_a_batch_is_all_or_nothing(db: Client) -> None:
    done = await db.batch(
        [
            ("update counters set n = n + $1 where id = 1", [5]),
            Step("select n from counters where id = 1", want_rows=True),
            "select 1",
        ]
    )
    assert [(one.rowcount, len(one.rows)) for one in done] == [(1, 0), (1, 1), (1, 0)]
    assert done[1].rows[0].n == 5
    with pytest.raises(pointsman.CheckViolation):
        await db.batch(["update counters set n = 6 where id = 1", "insert into shelves values (50, 'x', -1)"])
    assert await value(db, 1) == 5
    with pytest.raises(pointsman.ReadOnlyViolation):
        await db.batch(["update counters set n = 6 where id = 1"], read_only=True)
    isolated = await db.batch([Step("show transaction_isolation", want_rows=True)], isolation="serializable")
    assert isolated[0].rows[0][0] == "serializable"


async def test_guards_roll_back_or_skip(db: Client) -> None:
    take, give = "update counters set n = n - 1 where id = 2 and n > 0", "update counters set n = n + 1 where id = 3"
    with pytest.raises(pointsman.GuardFailed) as caught:
        await db.batch([take, Step(give, guard=rows_affected(0, equals=1))])
    assert caught.value.executed is Executed.ROLLED_BACK
    assert await value(db, 3) == 0
    skipped = await db.batch([take, Step(give, guard=rows_affected(0, equals=1, otherwise="skip")), "select 1"])
    assert [one.skipped for one in skipped] == [False, True, False]
    assert await value(db, 3) == 0
    await db.execute("update counters set n = 1 where id = 2")
    done = await db.batch([take, Step(give, guard=rows_affected(0, equals=1))])
    assert [one.rowcount for one in done] == [1, 1]
    assert (await value(db, 2), await value(db, 3)) == (0, 1)
    # Upsert by hand: insert only when there was none, and look at what is there only when there was.
    await db.execute("delete from marks where id = 60")
    for expected in ((False, True), (True, False)):
        done = await db.batch(
            [
                "select 1 from marks where id = 60",
                Step("insert into marks values (60, 'x')", guard=no_rows(0, otherwise="skip")),
                Step("select * from marks", guard=rows_at_least(0, otherwise="skip"), want_rows=True),
            ]
        )
        assert (done[1].skipped, done[2].skipped) == expected
    await db.execute("delete from marks where id = 60")


async def test_concurrent_batches_lose_no_update(db: Client) -> None:
    add = "update counters set n = n + 1 where id = 5"
    await asyncio.gather(*(db.batch([add, "select 1"], timeout=20) for _ in range(100)))
    assert await value(db, 5) == 100


