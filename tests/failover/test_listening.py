"""Listeners over the death of the primary and its return: a gap, and nothing missing without one."""

from __future__ import annotations

import asyncio

import pointsman
import psycopg
import pytest
from pointsman import Gap, GapReason, Notification

from router.devcluster import DevCluster, Server
from tests.support.running_router import running_router

pytestmark = [pytest.mark.pg, pytest.mark.chaos]


class Talker:
    """Notifies one number after the other, and keeps those that were committed."""

    def __init__(self, db: pointsman.Client) -> None:
        self.db = db
        self.committed: list[int] = []
        self.unknown: list[int] = []
        self._next = 0

    async def talk(self, count: int) -> None:
        for number in range(self._next, self._next + count):
            try:
                await self.db.execute("select pg_notify('numbers', $1)", str(number), timeout=30)
                self.committed.append(number)
            except pointsman.OutcomeUnknown:
                self.unknown.append(number)
        self._next += count


async def heard_until(listening: pointsman.Listening, last: int) -> list[int | Gap]:
    found: list[int | Gap] = []
    async with asyncio.timeout(60):
        while last not in found:
            item = await listening.next()
            assert item is not None
            found.append(int(item.payload) if isinstance(item, Notification) else item)
    return found


def notify_on(cluster: DevCluster, server: Server, payload: str) -> None:
    with psycopg.connect(cluster.tenant_dsn("acme", server), autocommit=True) as connection:
        connection.execute("select pg_notify('numbers', %s)", [payload])


async def test_nothing_is_missing_without_a_gap_and_nothing_comes_twice(fresh_cluster: DevCluster) -> None:
    cluster = fresh_cluster
    async with running_router(cluster) as router, router.connect() as db, db.listen("numbers") as listening:
        talker = Talker(db)
        await talker.talk(20)
        assert await heard_until(listening, 19) == [*range(20)]

        old = cluster.primary()
        talking = asyncio.create_task(talker.talk(200))
        await asyncio.sleep(0.2)
        await asyncio.to_thread(old.kill)
        await talking
        await talker.talk(5)
        check(await heard_until(listening, 224), talker, first=20)
        assert listening.endpoint == cluster.primary().name != old.name

        await asyncio.to_thread(old.start)  # writable, on its old timeline
        await asyncio.to_thread(notify_on, cluster, old, "-1")
        await talker.talk(5)
        assert await heard_until(listening, 229) == [*range(225, 230)]
        assert await listening.next(timeout=0.3) is None


def check(heard: list[int | Gap], talker: Talker, first: int) -> None:
    """One gap, and around it everything that was committed, once and in order."""
    (place,) = [index for index, item in enumerate(heard) if isinstance(item, Gap)]
    gap, before, after = heard[place], heard[:place], heard[place + 1 :]
    assert isinstance(gap, Gap)
    assert gap.reason is GapReason.BACKEND_FAILOVER
    sent = sorted([*talker.committed, *talker.unknown])
    assert before == [number for number in sent if first <= number < first + len(before)]
    assert [*after] == [number for number in talker.committed if number >= int(after[0])]  # type: ignore[arg-type]
    print(f"\ngap of {int(after[0]) - first - len(before)} numbers")  # type: ignore[arg-type]
