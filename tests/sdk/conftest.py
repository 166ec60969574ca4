"""A fake router and a client connected to it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pointsman
import pytest

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
