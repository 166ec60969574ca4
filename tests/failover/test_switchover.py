"""A planned switchover as callers see it: requests and transactions wait, and none fails."""

from __future__ import annotations

import asyncio

import pytest
from pointsman.v1 import admin_service_pb2 as admin_pb

from router.devcluster import DevCluster
from tests.failover.load import Load, ledger, says
from tests.support.eventually import eventually
from tests.support.running_router import RunningRouter, running_router

pytestmark = [pytest.mark.pg, pytest.mark.chaos]


def order(router: RunningRouter, to: str = "") -> admin_pb.SwitchoverResponse:
    """Move the primary; the last message."""
    with router.operator() as operator:
        request = admin_pb.SwitchoverRequest(cluster="main", to=to)
        return list(operator.stream("Switchover", request, 30.0))[-1]


async def test_under_load_nothing_fails_and_transactions_go_on_around_it(fresh_cluster: DevCluster) -> None:
    cluster = fresh_cluster
    async with running_router(cluster) as router, router.connect() as db:
        load = Load(db)
        await load.setup()
        began, moved = asyncio.Event(), asyncio.Event()

        def holding() -> bool:
            return '"after": "holding"' in router.log.read_text()

        async def begun_before() -> str:
            """Begins before, writes and commits while everybody else waits."""
            async with db.transaction() as transaction:
                await transaction.execute("insert into ledger values (-1, 'before')")
                began.set()
                await eventually(holding, within_s=10, what="the hold")
                done = await transaction.execute("insert into ledger values (-2, 'while')")
                return done.receipt.endpoint

        async def begun_meanwhile() -> str:
            """Asks for a transaction in the pause, and gets it from the new primary."""
            await began.wait()
            await eventually(holding, within_s=10, what="the hold")
            async with db.transaction() as transaction:
                done = await transaction.execute("insert into ledger values (-3, 'after')")
                return done.receipt.endpoint

        async def move() -> None:
            transactions = asyncio.gather(begun_before(), begun_meanwhile())
            await began.wait()
            ended = await asyncio.to_thread(order, router)
            assert ended.done
            assert await transactions == ["n1", ended.primary]
            assert ended.pause_s < 1.5, "longer than a transaction that is waited for"
            moved.set()

        await load.run(4, move)
        assert moved.is_set()
        assert not load.errors, says(load, router)
        assert not load.unknown, says(load, router)
        assert load.outcomes["strong read"] > 30
        rows = ledger(cluster)
        assert {-1, -2, -3} <= rows
        assert set(load.acknowledged) <= rows
