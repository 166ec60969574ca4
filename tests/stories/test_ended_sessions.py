"""A tenant may end its own sessions as often as it likes: that is no news of the server, and holds nobody."""

from __future__ import annotations

import asyncio

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
