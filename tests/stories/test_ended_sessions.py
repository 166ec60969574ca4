"""What a tenant does to its own sessions, as often as it likes: that is no news of the server, and holds nobody up."""

from __future__ import annotations

import asyncio
import time

import pointsman
import pytest

from tests.stories.conftest import undisturbed
from tests.support.running_router import RunningRouter

pytestmark = pytest.mark.pg


async def test_who_ends_its_own_sessions_in_a_loop_puts_nothing_in_doubt(
    router: RunningRouter, db: pointsman.Client
) -> None:
    said_before = len(router.log.read_text())
    async with undisturbed(router) as neighbour:
        for _ in range(25):
            with pytest.raises(pointsman.Error):
                await db.execute("select pg_terminate_backend(pg_backend_pid())", timeout=2)
            await asyncio.sleep(0.005)
        await neighbour.one_more()
    said = router.log.read_text()[said_before:]
    assert "suspect" not in said.lower(), said[-3000:]
    assert await db.query_value("select 1") == 1


async def test_who_has_its_writes_refused_in_a_loop_holds_nobody_up(
    router: RunningRouter, db: pointsman.Client
) -> None:
    said_before = len(router.log.read_text())
    ends_at = time.monotonic() + 2

    async def write() -> None:
        async with db.transaction() as tx:
            await tx.execute("set transaction read only")
            await tx.execute("insert into marks values (1, 'x')")

    async def be_refused() -> None:
        while time.monotonic() < ends_at:
            with pytest.raises(pointsman.Error) as error:
                await write()
            assert error.value.sqlstate == "25006"

    async with undisturbed(router) as neighbour:
        await asyncio.gather(*(be_refused() for _ in range(4)))
        await neighbour.one_more()
    said = router.log.read_text()[said_before:]
    assert said.count('"after": "suspect"') <= 1, said[-3000:]
