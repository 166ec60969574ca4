"""A tenant may break its own sessions as it likes: its neighbours read and write on, and are never refused for it."""

from __future__ import annotations

import asyncio
import time

import pointsman
import pytest

from tests.support.running_router import RunningRouter

pytestmark = pytest.mark.pg

ENDS_ITSELF = "select pg_terminate_backend(pg_backend_pid())"
ATTACK_S = 1.5


async def test_who_ends_its_own_connections_does_not_take_the_primary_from_others(fuzzed_router: RunningRouter) -> None:
    ended = time.monotonic() + ATTACK_S
    refused: list[str] = []
    killed = written = 0

    async def attack(db: pointsman.Client) -> None:
        nonlocal killed
        while time.monotonic() < ended:
            with pytest.raises(pointsman.Error):
                await db.execute(ENDS_ITSELF, timeout=2)
            killed += 1

    async def write(db: pointsman.Client) -> None:
        nonlocal written
        while time.monotonic() < ended:
            try:
                await db.execute("update accounts set score = score where id = 2", timeout=2, on_failover="fail")
                written += 1
            except pointsman.Error as error:
                refused.append(str(error))
            await asyncio.sleep(0.002)

    async with fuzzed_router.connect("acme") as acme, fuzzed_router.connect("globex") as globex:
        await asyncio.gather(*(attack(acme) for _ in range(4)), write(globex))
    assert killed > 5
    assert not refused, f"{len(refused)} refused of {written}: {refused[0]}"
