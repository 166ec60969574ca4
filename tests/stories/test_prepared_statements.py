"""The router prepares statements; callers never learn of it, also while the schema changes under them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pointsman
import psycopg
import pytest

from router.devcluster import DevCluster
from tests.support.eventually import eventually

pytestmark = pytest.mark.pg

READ = "select * from evolving where id = $1"
ADD = "update evolving set n = n + 1 where id = 1 returning *"
CHANGES = 20


@pytest.fixture
def owner(pg_cluster: DevCluster) -> Iterator[psycopg.Connection[Any]]:
    """Another session of the tenant, which changes the schema."""
    with psycopg.connect(pg_cluster.tenant_dsn("acme"), autocommit=True) as connection:
        connection.execute("drop table if exists evolving; create table evolving (id int primary key, n int)")
        connection.execute("insert into evolving values (1, 0)")
        yield connection
        connection.execute("drop table evolving")


class Callers:
    """Call again and again until told to stop; an error ends them all."""

    def __init__(self, db: pointsman.Client) -> None:
        self.db = db
        self.added = 0
        self.calls = 0
        self.stopping = False

    async def read(self) -> None:
        assert (await self.db.query(READ, 1, timeout=10))[0][0] == 1

    async def write(self) -> None:
        await self.db.execute(ADD, timeout=10)
        self.added += 1

    async def batch(self) -> None:
        await self.db.batch([ADD, "select * from evolving"], timeout=10)
        self.added += 1

    async def transact(self) -> None:
        async with self.db.transaction() as tx:
            await tx.execute(ADD, timeout=10)
            await tx.execute(ADD, timeout=10)
        self.added += 2

    async def repeat(self, call: Callable[[], Awaitable[None]]) -> None:
        while not self.stopping:
            await call()
            self.calls += 1


async def test_a_schema_that_changes_all_the_time_is_seen_by_nobody(
    db: pointsman.Client, owner: psycopg.Connection[Any]
) -> None:
    callers = Callers(db)
    kinds = [*[callers.read] * 6, *[callers.write] * 2, *[callers.batch] * 2, *[callers.transact] * 2]
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for call in kinds:
            group.create_task(callers.repeat(call))
        for change in range(CHANGES):
            await asyncio.to_thread(owner.execute, f"alter table evolving add column c{change} int")
            enough = callers.calls + 3 * len(kinds)
            await eventually(lambda: callers.calls >= enough, within_s=10, what="calls go on")  # noqa: B023
        callers.stopping = True
    assert await db.query_value("select n from evolving where id = 1") == callers.added
    assert len((await db.query(READ, 1))[0]) == CHANGES + 2


async def test_a_column_that_changes_its_type_takes_the_new_values_at_once(
    db: pointsman.Client, owner: psycopg.Connection[Any]
) -> None:
    for _ in range(20):
        assert await db.query_value("select n from evolving where id = $1", "1") == 0
    owner.execute("alter table evolving alter id type text; update evolving set id = 'first'")
    values = [await db.query_value("select n from evolving where id = $1", "first") for _ in range(20)]
    assert values == [0] * 20
