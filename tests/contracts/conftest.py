"""The fixture that asks a promise of the fake and of real PostgreSQL alike."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from router.devcluster import DevCluster
from router.model.policy import PoolPolicy
from router.model.request import Access
from router.ports import EndpointPool
from tests.contracts.promises import MAX_SIZE, Run, Told
from tests.contracts.real_pool import make_real_pool
from tests.support.fake_endpoint_pool import FakeEndpointPool
from tests.support.fake_server import FakeServer
from tests.support.virtual_time import run_virtual


@pytest.fixture(params=["fake", pytest.param("postgresql", marks=pytest.mark.pg)])
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a promise against one of the two."""
    real: DevCluster | None = None
    if request.param == "postgresql":
        real = request.getfixturevalue("pg_cluster")
    server_of: list[FakeServer] = []

    def make(access: Access = Access.READ_WRITE, **policy: Any) -> EndpointPool:
        limits = PoolPolicy(max_size=MAX_SIZE, **policy)
        if real is not None:
            return make_real_pool(real, access, limits)
        if not server_of:
            server_of.append(FakeServer())
        return FakeEndpointPool(server_of[0], max_size=MAX_SIZE, access=access, lifetime_s=limits.lifetime_s)

    def run(told: Told) -> None:
        if real is not None:
            asyncio.run(told(make))  # type: ignore[arg-type]
        else:
            run_virtual(told(make))  # type: ignore[arg-type]

    return run
