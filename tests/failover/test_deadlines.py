"""Every request ends by its deadline and 100 ms, whatever its server does: frozen, behind a network that swallows, or
with no connection to spare. The machine's own delay, measured beside, is allowed on top."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pointsman
import pytest

from router.devcluster import DevCluster
from tests.support.proxy import Network, Proxy
from tests.support.running_router import Config, running_router

pytestmark = [pytest.mark.pg, pytest.mark.chaos]

REQUESTS = 300
TIMEOUT_S = 0.6
LATE_S = 0.1


class Delays:
    """How late this process itself is woken."""

    def __init__(self) -> None:
        self.worst = 0.0

    async def watch(self) -> None:
        while True:
            due = time.monotonic() + 0.01
            await asyncio.sleep(0.01)
            self.worst = max(self.worst, time.monotonic() - due)


@asynccontextmanager
async def delays() -> AsyncIterator[Delays]:
    found = Delays()
    task = asyncio.create_task(found.watch())
    try:
        yield found
    finally:
        task.cancel()
        await asyncio.wait({task})


async def all_in_time(db: pointsman.Client, name: str) -> Counter[str]:
    """Sends requests of all kinds, 150 at a time; asserts that each ended in time. How they ended."""
    ends: Counter[str] = Counter()
    late: list[float] = []

    async def one(number: int) -> None:
        began = time.monotonic()
        try:
            if number % 3 == 0:
                await db.query("select 1", timeout=TIMEOUT_S)
            elif number % 3 == 1:
                await db.execute("update accounts set balance = balance where id = -1", timeout=TIMEOUT_S)
            else:
                await db.batch(["update accounts set balance = balance where id = -1"], timeout=TIMEOUT_S)
            ends["ok"] += 1
        except pointsman.Error as error:
            ends[error.reason or type(error).__name__] += 1
        late.append(time.monotonic() - began - TIMEOUT_S)

    async with delays() as machine:
        for start in range(0, REQUESTS, 150):
            await asyncio.gather(*(one(number) for number in range(start, start + 150)))
    print(f"\n{name}: latest {max(late) * 1000:.0f} ms past its deadline of {REQUESTS}, machine "
          f"{machine.worst * 1000:.0f} ms late; {dict(ends)}")
    assert len(late) == REQUESTS
    assert max(late) <= LATE_S + 2 * machine.worst
    return ends


async def test_a_frozen_server(fresh_cluster: DevCluster) -> None:
    primary = fresh_cluster.servers["n1"]
    async with running_router(fresh_cluster, mode="follow") as router, router.connect() as db:
        await db.execute("select 1")
        await asyncio.to_thread(primary.freeze)
        try:
            ends = await all_in_time(db, "frozen")
        finally:
            await asyncio.to_thread(primary.thaw)
        assert ends["ok"] == 0


async def test_a_network_that_swallows(pg_cluster: DevCluster) -> None:
    async with (
        Proxy(pg_cluster.servers["n1"].port) as proxy,
        running_router(pg_cluster, mode="follow", ports={"n1": proxy.port}) as router,
        router.connect() as db,
    ):
        await db.execute("select 1")
        await proxy.become(Network.HANGS)
        ends = await all_in_time(db, "swallowed")
        assert ends["ok"] == 0


async def test_no_connection_to_spare(pg_cluster: DevCluster) -> None:
    def small(config: Config) -> None:
        config["tenants"]["acme"]["pool"] = {"max_size": 2}

    async with running_router(pg_cluster, edit=small) as router, router.connect() as db, router.connect() as hog:
        sleeping = [
            asyncio.create_task(hog.execute("select pg_sleep(5)", timeout=20)) for _ in range(2)
        ] + [asyncio.create_task(hog.query("select pg_sleep(5)", timeout=20)) for _ in range(2)]
        await asyncio.sleep(0.3)
        ends = await all_in_time(db, "exhausted")
        assert ends["ok"] == 0, "all connections were taken"
        for task in sleeping:
            task.cancel()
        await asyncio.gather(*sleeping, return_exceptions=True)
