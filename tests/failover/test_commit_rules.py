"""COMMIT on real servers whose standbys confirm nothing for a while: what is answered is true after a failover, too."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pointsman
import pytest
from pointsman import Executed, WriteOutcome

from router.devcluster import DevCluster
from tests.support.dev_cluster import MakeCluster, new_cluster
from tests.support.eventually import ask, eventually
from tests.support.running_router import RunningRouter, running_router, started_router
from tests.support.walsenders import PATIENT, confirming_nothing, end_waits, waiting

pytestmark = [pytest.mark.pg, pytest.mark.chaos]

Client = pointsman.Client
Write = Callable[[Client, int, float], Awaitable[object]]
INSERT = "insert into kept values ($1)"
DURABLE = "standby_flushed"


@pytest.fixture(scope="module")
def cluster() -> Iterator[DevCluster]:
    made = new_cluster(settings=PATIENT)
    yield made
    made.stop()


@pytest.fixture(scope="module")
def router(cluster: DevCluster) -> Iterator[RunningRouter]:
    with started_router(cluster, mode="follow") as running:
        yield running


@pytest.fixture
async def db(router: RunningRouter) -> AsyncIterator[Client]:
    async with router.connect() as client:
        await client.execute("create table if not exists kept (id int)")
        await client.execute("truncate kept")
        yield client


async def execute(db: Client, number: int, timeout: float) -> object:
    return await db.execute(INSERT, number, timeout=timeout)


async def keyed(db: Client, number: int, timeout: float) -> object:
    return await db.execute(INSERT, number, timeout=timeout, idempotent=True)


async def batch(db: Client, number: int, timeout: float) -> object:
    return await db.batch([(INSERT, [number]), "select 1"], timeout=timeout)


async def lowered_in_batch(db: Client, number: int, timeout: float) -> object:
    lower = "do $$ begin set local synchronous_commit = off; set local client_min_messages = error; end $$"
    return await db.batch([(INSERT, [number]), lower], timeout=timeout)


async def transaction(db: Client, number: int, timeout: float) -> object:
    async with db.transaction(timeout=timeout) as tx:
        await tx.execute(INSERT, number)
    return tx


async def lowered_in_transaction(db: Client, number: int, timeout: float) -> object:
    async with db.transaction(timeout=timeout) as tx:
        await tx.execute("set local synchronous_commit = off")
        await tx.execute("set synchronous_commit = local")
        await tx.execute("set local statement_timeout = '100ms'")
        await tx.execute(INSERT, number)
    return tx


async def copy(db: Client, number: int, timeout: float) -> object:
    return await db.copy_in("kept", f"{number}\n".encode(), timeout=timeout)


WRITES: dict[str, Write] = {
    one.__name__: one
    for one in (execute, keyed, batch, lowered_in_batch, transaction, lowered_in_transaction, copy)
}  # fmt: skip


@pytest.mark.parametrize("write", WRITES)
async def test_a_deadline_ends_no_wait_for_the_standby(cluster: DevCluster, db: Client, write: str) -> None:
    assert WRITES[write]
    with confirming_nothing(cluster):
        began = time.monotonic()
        with pytest.raises(pointsman.Error) as caught:
            await WRITES[write](db, 7, 0.6)
        assert time.monotonic() - began < 1.6
        assert caught.value.executed is Executed.MAYBE, caught.value
        assert await asyncio.to_thread(waiting, cluster) == 1, "it was cancelled, and may have been acknowledged"
        assert await db.query_value("select count(*) from kept") == 0
    await eventually(lambda: has(cluster, [7]), within_s=5, what="the row is there once the standby has it")


async def has(cluster: DevCluster, rows: list[int]) -> bool:
    found = await asyncio.to_thread(ask, cluster, "select array_agg(id order by id) from kept", database="acme")
    return (found or []) == rows


@pytest.mark.parametrize("write", ["execute", "batch"])
async def test_a_cancel_by_id_ends_no_wait_either(cluster: DevCluster, db: Client, write: str) -> None:
    name = uuid.uuid4().hex
    with confirming_nothing(cluster):
        call = db.execute(INSERT, 1, request_id=name) if write == "execute" else db.batch(
            [(INSERT, [1])], request_id=name
        )  # fmt: skip
        running = asyncio.create_task(call)  # type: ignore[arg-type]
        await eventually(lambda: asyncio.to_thread(waiting, cluster), within_s=5, what="its commit waits")
        await asyncio.sleep(0.05)
        assert not await db.cancel(name)
        assert not running.done()
    assert (await running).receipt.durability == DURABLE
    assert await has(cluster, [1])


@pytest.mark.parametrize("function", ["pg_cancel_backend", "pg_terminate_backend"])
@pytest.mark.parametrize("write", ["execute", "batch", "transaction", "copy"])
async def test_a_wait_that_somebody_ends_is_no_success(
    cluster: DevCluster, db: Client, write: str, function: str
) -> None:
    with confirming_nothing(cluster):
        running = asyncio.ensure_future(WRITES[write](db, 3, 10.0))
        await eventually(lambda: asyncio.to_thread(waiting, cluster), within_s=5, what="its commit waits")
        (pid,) = await asyncio.to_thread(end_waits, cluster, function)
        with pytest.raises(pointsman.OutcomeUnknown) as caught:
            await running
        assert caught.value.executed is Executed.MAYBE
        assert await has(cluster, [3]), "it was committed here, and nowhere else"
        await eventually(lambda: is_gone(cluster, pid), within_s=5, what="its connection is gone")


async def is_gone(cluster: DevCluster, pid: int) -> bool:
    return await asyncio.to_thread(ask, cluster, "select count(*) from pg_stat_activity where pid = %s", pid) == 0


async def test_a_keyed_write_is_answered_once_the_standby_has_it(cluster: DevCluster, db: Client) -> None:
    key = str(uuid.uuid4())
    with confirming_nothing(cluster):
        running = asyncio.create_task(db.execute(INSERT, 5, idempotency_key=key))
        await eventually(lambda: asyncio.to_thread(waiting, cluster), within_s=5, what="its commit waits")
        assert (await db.outcome(key)).outcome is WriteOutcome.RUNNING
        assert len(await asyncio.to_thread(end_waits, cluster, "pg_cancel_backend")) == 1
        # Committed here only: the row is visible, and still neither success nor failure.
        await eventually(lambda: asyncio.to_thread(waiting, cluster), within_s=5, what="its row is looked up")
        assert (await db.outcome(key, timeout=0.4)).outcome is WriteOutcome.UNKNOWN
        assert not running.done()
    done = await running
    assert (done.receipt.replayed, done.receipt.durability) == (True, DURABLE)
    assert (await db.outcome(key)).outcome is WriteOutcome.COMMITTED
    assert await has(cluster, [5])


async def test_durability_is_on_the_receipt(db: Client) -> None:
    assert (await db.execute(INSERT, 1)).receipt.durability == DURABLE
    assert (await db.batch([(INSERT, [2])])).receipt.durability == DURABLE
    assert (await db.copy_in("kept", b"3\n")).receipt.durability == DURABLE
    async with db.transaction() as tx:
        await tx.execute(INSERT, 4)
    assert tx.receipt is not None
    assert tx.receipt.durability == DURABLE
    assert (await db.query("select 1")).receipt.durability == ""
    assert (await db.batch(["select 1"], read_only=True)).receipt.durability == ""


async def test_what_the_old_primary_alone_had_is_told_apart_after_a_failover(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(settings=PATIENT)
    kept, lost = str(uuid.uuid4()), str(uuid.uuid4())
    async with running_router(cluster) as router, router.connect() as db:
        await db.execute("create table kept (id int)")
        first = await db.execute(INSERT + " returning id", 1, idempotency_key=kept)
        with confirming_nothing(cluster) as old:
            repeated = asyncio.create_task(db.execute(INSERT, 2, idempotency_key=lost, timeout=25))
            unkeyed = asyncio.create_task(db.execute(INSERT, 3, timeout=25))
            await eventually(
                lambda: asyncio.to_thread(lambda: waiting(cluster) == 2), within_s=5, what="both commits wait"
            )
            await asyncio.to_thread(old.kill)
            with pytest.raises(pointsman.OutcomeUnknown) as caught:
                await unkeyed
            assert caught.value.executed is Executed.MAYBE
            done = await repeated
        assert cluster.primary().name != old.name
        assert (done.receipt.replayed, done.receipt.endpoint) == (False, cluster.primary().name)
        again = await db.execute(INSERT + " returning id", 1, idempotency_key=kept)
        assert again.receipt.replayed
        assert [tuple(row) for row in again.rows] == [tuple(row) for row in first.rows]
        assert (await db.outcome(kept)).outcome is WriteOutcome.COMMITTED
        assert (await db.outcome(str(uuid.uuid4()))).outcome is WriteOutcome.NOT_FOUND
        assert await has(cluster, [1, 2])
