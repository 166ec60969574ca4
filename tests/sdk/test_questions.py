"""outcome() and cancel(): asked until the router answers, or the timeout; and what a close makes of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pointsman
import pytest
from grpc import aio
from pointsman.v1 import query_service_pb2 as pb

from tests.sdk.fake_router import FakeRouter, abort_with, status, until

Ask = Callable[..., Awaitable[Any]]
DRAINING = status(grpc.StatusCode.UNAVAILABLE, "going", reason="DRAINING", executed="no")


async def outcome(db: pointsman.Client, **options: Any) -> Any:
    found = await db.outcome("k", **options)
    return found.outcome is pointsman.WriteOutcome.COMMITTED


async def cancel(db: pointsman.Client, **options: Any) -> Any:
    return await db.cancel("a-known-request-id", **options)


pytestmark = pytest.mark.parametrize("ask", [outcome, cancel])


@pytest.fixture(autouse=True)
def committed(router: FakeRouter) -> None:
    router.outcome = pb.GetOutcomeResponse(outcome=pb.WRITE_OUTCOME_COMMITTED)


def asked(router: FakeRouter) -> int:
    return len(router.outcome_requests) + len(router.cancel_requests)


async def test_a_close_says_that_the_client_was_closed(router: FakeRouter, db: pointsman.Client, ask: Ask) -> None:
    async def hang(context: Any) -> None:
        await asyncio.Event().wait()

    router.on_question = hang
    asking = asyncio.ensure_future(ask(db))
    await until(lambda: asked(router))
    await db.close()
    with pytest.raises(pointsman.ClientClosed):
        await asking


async def test_a_cancel_is_a_cancel(router: FakeRouter, db: pointsman.Client, ask: Ask) -> None:
    async def hang(context: Any) -> None:
        await asyncio.Event().wait()

    router.on_question = hang
    asking = asyncio.ensure_future(ask(db))
    await until(lambda: asked(router))
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking


async def test_a_router_that_comes_up_in_time_is_asked(unused_tcp_port: int, ask: Ask) -> None:
    fake = FakeRouter()
    fake.outcome = pb.GetOutcomeResponse(outcome=pb.WRITE_OUTCOME_COMMITTED)
    async with pointsman.connect(f"127.0.0.1:{unused_tcp_port}") as db:
        asking = asyncio.ensure_future(ask(db, timeout=5))
        await asyncio.sleep(0.2)
        await fake.start(unused_tcp_port)
        assert await asking
    await fake.stop()


async def test_no_router_is_unavailable_after_the_timeout(unused_tcp_port: int, ask: Ask) -> None:
    async with pointsman.connect(f"127.0.0.1:{unused_tcp_port}") as db:
        begun = time.monotonic()
        with pytest.raises(pointsman.Unavailable, match=r"was not reached within 0\.3 s"):
            await ask(db, timeout=0.3)
        assert time.monotonic() - begun < 1


async def test_a_draining_router_is_left_for_another(router: FakeRouter, db: pointsman.Client, ask: Ask) -> None:
    peers: list[str] = []

    async def refuse_first(context: aio.ServicerContext[Any, Any]) -> None:
        peers.append(context.peer())
        if len(peers) == 1:
            await abort_with(context, DRAINING)

    router.on_question = refuse_first
    assert await ask(db)
    assert len(set(peers)) == 2, "the refused connection was left"


async def test_the_routers_own_refusal_is_told_at_once(router: FakeRouter, db: pointsman.Client, ask: Ask) -> None:
    async def refuse(context: Any) -> None:
        await abort_with(context, status(grpc.StatusCode.UNAVAILABLE, "no primary", reason="NO_BACKEND"))

    router.on_question = refuse
    with pytest.raises(pointsman.Unavailable, match="no primary"):
        await ask(db)
    assert asked(router) == 1
