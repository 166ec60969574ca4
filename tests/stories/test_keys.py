"""Writes with an idempotency key, from the SDK to PostgreSQL: done once, whoever asks how often."""

from __future__ import annotations

import asyncio
import uuid

import pointsman
import psycopg
import pytest
from pointsman import Executed, Step, no_rows
from pointsman.outcomes import WriteOutcome

from router.decisions.keys import purging
from router.devcluster import DevCluster
from tests.support.eventually import eventually
from tests.support.running_router import RunningRouter, running_router

pytestmark = pytest.mark.pg

Client = pointsman.Client
ADD = "update counters set n = n + 1 where id = $1 returning n"


@pytest.fixture(autouse=True)
async def counters(db: Client) -> None:
    await db.batch(["delete from counters", "insert into counters select i, 0 from generate_series(1, 9) i"])


async def value(db: Client, number: int) -> int:
    return int(await db.query_value("select n from counters where id = $1", number))


async def test_the_second_gets_the_answer_of_the_first(db: Client) -> None:
    key = str(uuid.uuid4())
    first = await db.execute(ADD, 1, idempotency_key=key)
    second = await db.execute(ADD, 1, idempotency_key=key)
    assert (first.rowcount, first.command_tag, first.rows[0].n) == (1, "UPDATE 1", 1)
    assert (second.rowcount, second.command_tag, second.rows[0].n) == (1, "UPDATE 1", 1)
    assert (first.receipt.replayed, second.receipt.replayed) == (False, True)
    assert await value(db, 1) == 1


async def test_a_made_key_is_another_one_each_time(db: Client) -> None:
    assert [(await db.execute(ADD, 1, idempotent=True)).rows[0].n for _ in range(3)] == [1, 2, 3]


async def test_a_batch_is_replayed_with_its_skipped_steps_and_wanted_rows(db: Client) -> None:
    key = str(uuid.uuid4())
    steps = [
        Step("insert into marks values (1, 'a') on conflict do nothing"),
        Step("update counters set n = 7 where id = 2", guard=no_rows(0, otherwise="skip")),
        Step("select g, 'row ' || g, null::int from generate_series(1, 150) g", want_rows=True),
    ]
    first = await db.batch(steps, idempotency_key=key)
    await db.execute("delete from marks")
    second = await db.batch(steps, idempotency_key=key)
    assert second.receipt.replayed
    for one, other in zip(first, second, strict=True):
        assert (one.rowcount, one.command_tag, one.skipped) == (other.rowcount, other.command_tag, other.skipped)
        assert [tuple(row) for row in one.rows] == [tuple(row) for row in other.rows]
        assert one.rows.columns == other.rows.columns
    assert len(second[2].rows) == 150
    assert await db.query_value("select count(*) from marks") == 0


async def test_the_key_of_another_request_is_refused(db: Client) -> None:
    key = str(uuid.uuid4())
    await db.execute(ADD, 1, idempotency_key=key)
    for again in (
        db.execute(ADD, 2, idempotency_key=key),
        db.execute(ADD + " ", 1, idempotency_key=key),
        db.batch([(ADD, [1])], idempotency_key=key),
    ):
        with pytest.raises(pointsman.Error) as caught:
            await again
        assert (caught.value.reason, caught.value.executed) == ("KEY_REUSED", Executed.NO)
    assert await value(db, 1) == 1
    assert await value(db, 2) == 0


async def test_a_failed_write_leaves_its_key_free(db: Client) -> None:
    key = str(uuid.uuid4())
    for _ in range(2):
        with pytest.raises(pointsman.Error) as caught:
            await db.execute("insert into counters values (1, 1)", idempotency_key=key)
        assert (caught.value.sqlstate, caught.value.executed) == ("23505", Executed.ROLLED_BACK)
    assert (await db.execute(ADD, 3, idempotency_key=key)).rows[0].n == 1


async def test_rows_of_more_than_64_kib_are_left_out_and_it_says_so(db: Client) -> None:
    key = str(uuid.uuid4())
    sql = "insert into marks select g, repeat('x', 1000) from generate_series(1, 100) g returning id, note"
    try:
        first = await db.execute(sql, idempotency_key=key)
        second = await db.execute(sql, idempotency_key=key)
    finally:
        await db.execute("delete from marks")
    assert (first.rowcount, len(first.rows), first.truncated) == (100, 100, False)
    assert (second.rowcount, len(second.rows), second.truncated) == (100, 0, True)
    assert second.rows.columns == first.rows.columns
    assert second.receipt.replayed


async def test_twins_settle_it_among_themselves(db: Client) -> None:
    key = str(uuid.uuid4())
    results = await asyncio.gather(*(db.execute(ADD, 1, idempotency_key=key) for _ in range(40)))
    assert {result.rows[0].n for result in results} == {1}
    assert sum(not result.receipt.replayed for result in results) == 1
    assert await value(db, 1) == 1


async def test_a_twin_waits_for_one_that_takes_long(db: Client) -> None:
    key = str(uuid.uuid4())
    slow = "update counters set n = n + 1 from pg_sleep(1.3) where id = 4 returning n"
    first = asyncio.create_task(db.execute(slow, idempotency_key=key))
    await asyncio.sleep(0.2)
    with pytest.raises(pointsman.Error) as caught:
        await db.execute(slow, idempotency_key=key, timeout=0.5)
    assert caught.value.executed is Executed.MAYBE, "its twin may do it"
    assert (await db.execute(slow, idempotency_key=key)).receipt.replayed
    assert not (await first).receipt.replayed
    assert await value(db, 4) == 1


async def test_a_read_only_batch_needs_no_table_for_its_key(db: Client) -> None:
    done = await db.batch([Step("select 1", want_rows=True)], read_only=True, idempotency_key="read")
    assert done[0].rows[0][0] == 1


async def test_without_the_table_nothing_is_executed(
    pg_cluster: DevCluster, router: RunningRouter, db: Client
) -> None:
    def rename(before: str, after: str) -> None:
        with pg_cluster.primary().connect("globex") as connection:
            connection.execute(f"alter table pointsman.{before} rename to {after}")

    await asyncio.to_thread(rename, "idempotency", "hidden")
    try:
        async with router.connect("globex") as other:
            with pytest.raises(pointsman.Error) as caught:
                await other.execute("update accounts set name = 'x'", idempotent=True)
            assert (caught.value.reason, caught.value.executed) == ("IDEMPOTENCY_NOT_CONFIGURED", Executed.NO)
            assert await other.query_value("select count(*) from accounts where name = 'x'") == 0
    finally:
        await asyncio.to_thread(rename, "hidden", "idempotency")


async def runs(db: Client, key: str) -> bool:
    return (await db.outcome(key)).outcome is WriteOutcome.RUNNING


async def test_the_outcome_of_a_key(db: Client) -> None:
    key = str(uuid.uuid4())
    assert (await db.outcome(key)).outcome is WriteOutcome.NOT_FOUND
    slow = asyncio.create_task(db.execute("select pg_sleep(1)", idempotency_key=key, request_id="k" * 20))
    await eventually(lambda: runs(db, key), within_s=5, what="the outcome is running")
    assert (await db.outcome(request_id="k" * 20)).outcome is WriteOutcome.RUNNING
    await slow
    found = await db.outcome(key)
    assert (found.outcome, found.command_tags) == (WriteOutcome.COMMITTED, ("SELECT 1",))
    assert found.began is not None
    assert found.receipt.role == "primary"
    assert (await db.outcome(request_id="k" * 20)).outcome is WriteOutcome.UNKNOWN


async def test_any_router_tells_the_outcome_of_a_key_and_of_no_key_says_that_it_does_not_know(
    pg_cluster: DevCluster, db: Client
) -> None:
    """The row is the truth, also while its transaction is open: no router has to ask another one."""
    key, keyless = str(uuid.uuid4()), str(uuid.uuid4())
    async with running_router(pg_cluster) as another, another.connect() as elsewhere:
        with psycopg.connect(pg_cluster.tenant_dsn("acme")) as lock:
            lock.execute("lock table counters in exclusive mode")
            keyed = asyncio.create_task(db.execute(ADD, 5, idempotency_key=key, timeout=60))
            unkeyed = asyncio.create_task(db.execute(ADD, 5, request_id=keyless, timeout=60))
            await eventually(lambda: runs(elsewhere, key), within_s=30, what="the other router finds it running")
            assert (await elsewhere.outcome(request_id=keyless)).outcome is WriteOutcome.UNKNOWN
        await asyncio.gather(keyed, unkeyed)
        found = await elsewhere.outcome(key)
        assert (found.outcome, found.command_tags) == (WriteOutcome.COMMITTED, ("UPDATE 1",))
        assert (await elsewhere.execute(ADD, 5, idempotency_key=key)).receipt.replayed
        assert (await elsewhere.outcome(request_id=keyless)).outcome is WriteOutcome.UNKNOWN
        assert await value(db, 5) == 2


async def test_old_keys_are_deleted_by_the_statement_that_the_router_uses(db: Client, pg_cluster: DevCluster) -> None:
    old, young = str(uuid.uuid4()), str(uuid.uuid4())
    for key in (old, young):
        await db.execute(ADD, 1, idempotency_key=key)

    def purge() -> list[str]:
        statement = purging("acme", 3600.0)
        with psycopg.connect(pg_cluster.tenant_dsn("acme"), autocommit=True) as connection:
            aged = "update pointsman.idempotency set created_at = now() - interval '2 hours' where key = %s"
            connection.execute(aged, [old])
            connection.pgconn.exec_params(statement.sql, list(statement.params), list(statement.oids))
            left = connection.execute("select key from pointsman.idempotency where key = any(%s)", [[old, young]])
            return [row[0] for row in left]

    assert await asyncio.to_thread(purge) == [young]
    assert not (await db.execute(ADD, 1, idempotency_key=old)).receipt.replayed


async def test_whoever_may_write_the_table_cannot_make_the_router_fail(db: Client, pg_cluster: DevCluster) -> None:
    key = str(uuid.uuid4())
    await db.execute(ADD, 1, idempotency_key=key)

    def spoil() -> None:
        with psycopg.connect(pg_cluster.tenant_dsn("acme"), autocommit=True) as connection:
            connection.execute("update pointsman.idempotency set answer = 'nonsense' where key = %s", [key])

    await asyncio.to_thread(spoil)
    with pytest.raises(pointsman.Error) as caught:
        await db.execute(ADD, 1, idempotency_key=key)
    assert caught.value.executed is Executed.YES
