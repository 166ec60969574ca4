"""Copies with an idempotency key, from the SDK to PostgreSQL: their rows are there once, whatever is cut."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pointsman
import pytest
from pointsman import Executed
from pointsman.outcomes import WriteOutcome

from router.devcluster import DevCluster
from tests.stories.test_cut_commits import arm, cut
from tests.support.eventually import ask, eventually
from tests.support.proxy import Proxy

__all__ = ["cut"]
pytestmark = pytest.mark.pg

ROWS = b"".join(b"%d\trow %d\n" % (n, n) for n in range(5000))


@pytest.fixture(autouse=True)
async def marks(db: pointsman.Client) -> AsyncIterator[None]:
    """Empty, before and after: other stories write there, too."""
    await db.execute("delete from marks")
    yield
    await db.execute("delete from marks")


async def count(db: pointsman.Client) -> int:
    return int(await db.query_value("select count(*) from marks"))


async def test_the_second_gets_the_answer_of_the_first(db: pointsman.Client) -> None:
    key = str(uuid.uuid4())
    first = await db.copy_in("marks", ROWS, idempotency_key=key)
    # Cut in other places, and from a source that can be read once only.
    second = await db.copy_in("marks", iter([ROWS[:7], ROWS[7:]]), idempotency_key=key)
    for one in (first, second):
        assert (one.rows, one.bytes, one.command_tag) == (5000, len(ROWS), "COPY 5000")
    assert (first.receipt.replayed, second.receipt.replayed) == (False, True)
    assert await count(db) == 5000
    found = await db.outcome(key)
    assert (found.outcome, found.command_tags) == (WriteOutcome.COMMITTED, ("COPY 5000",))


async def test_other_data_or_another_request_with_the_key_is_refused(db: pointsman.Client) -> None:
    key = str(uuid.uuid4())
    await db.copy_in("marks", ROWS, idempotency_key=key)
    for again in (
        db.copy_in("marks", ROWS[:-1] + b"x", idempotency_key=key),
        db.copy_in("marks", ROWS, columns=["id"], idempotency_key=key),
        db.execute("insert into marks values (1, 'a')", idempotency_key=key),
    ):
        with pytest.raises(pointsman.InvalidRequest) as caught:
            await again
        assert (caught.value.reason, caught.value.executed) == ("KEY_REUSED", Executed.NO)
    assert await count(db) == 5000


async def test_twins_settle_it_among_themselves(db: pointsman.Client) -> None:
    copies = [db.copy_in("marks", ROWS, idempotency_key="twins" + str(id(db))) for _ in range(8)]
    results = await asyncio.gather(*copies)
    assert sum(not result.receipt.replayed for result in results) == 1
    assert await count(db) == 5000


async def test_a_failed_copy_leaves_its_key_free(db: pointsman.Client) -> None:
    key = str(uuid.uuid4())
    for wrong in (b"1\tone\nnonsense\n", ROWS + b"7\trow 7\textra\n"):
        with pytest.raises(pointsman.DataError) as caught:
            await db.copy_in("marks", wrong, idempotency_key=key)
        assert caught.value.executed is Executed.ROLLED_BACK

    async def broken() -> AsyncIterator[bytes]:
        yield ROWS
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await db.copy_in("marks", broken(), idempotency_key=key)
    assert (await db.copy_in("marks", ROWS, idempotency_key=key)).rows == 5000
    assert await count(db) == 5000


async def test_under_way_it_is_running(db: pointsman.Client) -> None:
    key, go_on = str(uuid.uuid4()), asyncio.Event()

    async def source() -> AsyncIterator[bytes]:
        yield ROWS
        await go_on.wait()

    copying = asyncio.create_task(db.copy_in("marks", source(), idempotency_key=key))

    async def running() -> bool:
        return (await db.outcome(key)).outcome is WriteOutcome.RUNNING

    await eventually(running, within_s=5, what="the copy is under way")
    with pytest.raises(pointsman.Error) as caught:
        await db.copy_in("marks", ROWS, idempotency_key=key, timeout=0.3)
    assert caught.value.executed is Executed.MAYBE
    go_on.set()
    assert not (await copying).receipt.replayed


async def test_cut_at_its_commit_it_is_done_once_and_the_router_tells_the_truth(
    cut: tuple[Proxy, pointsman.Client], pg_cluster: DevCluster
) -> None:
    proxy, db = cut

    async def kept() -> Any:
        found = await asyncio.to_thread(ask, pg_cluster, "select count(*) from marks", database="acme")
        await db.execute("delete from marks")
        return found

    for arrives in (False, True):
        arm(proxy, arrives=arrives)
        done = await db.copy_in("marks", ROWS, idempotent=True)
        assert (proxy.cuts, done.rows, done.receipt.replayed) == (1, 5000, arrives)
        assert await kept() == 5000
    arm(proxy, arrives=True)
    assert (await db.copy_in("marks", iter([ROWS]), idempotency_key=str(uuid.uuid4()))).receipt.replayed
    assert (proxy.cuts, await kept()) == (1, 5000)
    arm(proxy, arrives=False)
    with pytest.raises(pointsman.Unavailable) as caught:
        await db.copy_in("marks", iter([ROWS]), idempotency_key=str(uuid.uuid4()))
    assert (caught.value.reason, caught.value.executed) == ("BACKEND_LOST", Executed.ROLLED_BACK)
    assert (proxy.cuts, await kept()) == (1, 0)
