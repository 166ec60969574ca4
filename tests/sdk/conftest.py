"""A fake router and a client connected to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pointsman
import pytest
from pointsman.loop_thread import LoopThread

from tests.sdk.bounded import bounded
from tests.sdk.copy_router import CopyRouter
from tests.sdk.fake_router import FakeRouter


@pytest.fixture
async def router() -> AsyncIterator[FakeRouter]:
    fake = FakeRouter()
    await fake.start()
    yield fake
    await fake.stop()


@pytest.fixture
async def db(router: FakeRouter) -> AsyncIterator[pointsman.Client]:
    async with pointsman.connect(router.address, tenant="acme", token="secret", timeout=5) as client:
        yield client


@pytest.fixture
def copy_router() -> Iterator[CopyRouter]:
    """A router beside synchronous clients, in a thread that none of them can hold up."""
    thread, fake = LoopThread(), CopyRouter()
    bounded(lambda: thread.run(fake.start()))
    yield fake
    bounded(lambda: thread.run(fake.stop()))
    thread.stop()


@pytest.fixture
def own_thread() -> Iterator[LoopThread]:
    """A thread of synchronous clients of the test's own: what ends it or holds it up meets no other test."""
    thread = LoopThread()
    yield thread
    thread.stop()


@pytest.fixture
def own_db(copy_router: CopyRouter, own_thread: LoopThread) -> Iterator[pointsman.sync.Client]:
    client = pointsman.sync.Client(pointsman.connect(copy_router.address, timeout=5), own_thread)
    yield client
    bounded(client.close)
