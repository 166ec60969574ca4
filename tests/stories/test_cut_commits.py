"""The connection to PostgreSQL is cut at a COMMIT, before or after it got there: with a key nobody notices, without one
nobody is told a lie."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pointsman
import pytest
from pointsman import Executed

from router.devcluster import DevCluster
from tests.support.eventually import ask, eventually
from tests.support.proxy import Proxy
from tests.support.running_router import running_router

pytestmark = pytest.mark.pg

ADD = "update counters set n = n + 1 where id = 1 returning n"
ARRIVES = pytest.mark.parametrize("arrives", [False, True], ids=["before it arrives", "after it arrived"])


@pytest.fixture
async def cut(pg_cluster: DevCluster) -> AsyncIterator[tuple[Proxy, pointsman.Client]]:
    primary = pg_cluster.primary()
    async with (
        Proxy(primary.port) as proxy,
        running_router(pg_cluster, mode="follow", ports={primary.name: proxy.port}) as router,
        router.connect() as db,
    ):
        await db.batch(["delete from counters", "insert into counters values (1, 0)"])
        yield proxy, db


def arm(proxy: Proxy, *, arrives: bool, at: bytes = b"COMMIT") -> None:
    proxy.cut_arrives, proxy.cut_at, proxy.cuts = arrives, at, 0


async def settled(cluster: DevCluster) -> int:
    """The counter, once no backend is at work on what was cut."""
    sql = "select count(*) from pg_stat_activity where usename = 'acme' and state <> 'idle'"
    await eventually(
        lambda: asyncio.to_thread(lambda: ask(cluster, sql) == 0), within_s=10, what="the end of what was cut"
    )
    return int(await asyncio.to_thread(ask, cluster, "select n from counters where id = 1", database="acme"))


@ARRIVES
async def test_a_keyed_write_is_done_once(
    cut: tuple[Proxy, pointsman.Client], pg_cluster: DevCluster, arrives: bool
) -> None:
    proxy, db = cut
    for number in range(1, 6):
        arm(proxy, arrives=arrives)
        done = await db.execute(ADD, idempotent=True)
        assert proxy.cuts == 1
        assert done.rows[0].n == number
        assert done.receipt.replayed == arrives
        assert done.receipt.attempts > 1
        arm(proxy, arrives=arrives)
        batch: Any = await db.batch(["select 1"], idempotency_key=str(uuid.uuid4()))
        assert (proxy.cuts, batch.receipt.replayed) == (1, arrives)
    assert await settled(pg_cluster) == 5


@ARRIVES
async def test_without_a_key_the_outcome_is_told_as_unknown(
    cut: tuple[Proxy, pointsman.Client], pg_cluster: DevCluster, arrives: bool
) -> None:
    proxy, db = cut
    arm(proxy, arrives=arrives)
    with pytest.raises(pointsman.OutcomeUnknown) as caught:
        await db.batch([ADD])
    assert (proxy.cuts, caught.value.executed) == (1, Executed.MAYBE)
    assert await settled(pg_cluster) == arrives
    arm(proxy, arrives=arrives, at=b"update counters")
    with pytest.raises(pointsman.OutcomeUnknown) as caught:
        await db.execute(ADD)
    assert (proxy.cuts, caught.value.executed) == (1, Executed.MAYBE)
    assert await settled(pg_cluster) == 2 * arrives


@ARRIVES
async def test_a_read_only_batch_is_repeated_where_it_can_have_done_nothing(
    cut: tuple[Proxy, pointsman.Client], arrives: bool
) -> None:
    proxy, db = cut
    arm(proxy, arrives=arrives)
    read: Any = await db.batch(["select 1", "set local work_mem = '1MB'"], read_only=True)
    assert (proxy.cuts, read.receipt.attempts) == (1, 2)
    for sql in ("do $$ begin perform 1; end $$", "notify nobody"):
        arm(proxy, arrives=arrives)
        with pytest.raises(pointsman.OutcomeUnknown) as caught:
            await db.batch([sql], read_only=True)
        assert (proxy.cuts, caught.value.executed) == (1, Executed.MAYBE)
