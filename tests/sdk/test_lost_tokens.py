"""What a failover has lost is told once, whichever way the client hears of it; then it goes on without its token."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pointsman
import pytest
from pointsman.v1 import query_service_pb2 as query_pb
from pointsman.v1 import transaction_service_pb2 as pb

from tests.sdk.copy_router import CopyRouter
from tests.sdk.fake_router import abort_with, status

LOST = status(grpc.StatusCode.FAILED_PRECONDITION, reason="TOKEN_LOST", executed="no")


@pytest.fixture
async def router() -> AsyncIterator[CopyRouter]:
    fake = CopyRouter()
    await fake.start()
    fake.refusals = [LOST]

    async def answer(_: query_pb.MultiplexCall) -> query_pb.MultiplexReply:
        return query_pb.MultiplexReply(failure=LOST)

    async def rows(request: query_pb.StreamQueryRequest, context: Any) -> AsyncIterator[query_pb.StreamQueryResponse]:
        await abort_with(context, LOST)
        yield query_pb.StreamQueryResponse()

    async def transact(request: pb.TransactRequest) -> pb.TransactResponse:
        return pb.TransactResponse(failed=LOST)

    fake.on_call, fake.on_rows, fake.on_transact = answer, rows, transact
    yield fake
    await fake.stop()


async def stream(db: pointsman.Client) -> None:
    async for _ in db.stream("select", read="replica"):
        pass


async def copy_out(db: pointsman.Client) -> None:
    async for _ in db.copy_out("t", read="replica"):
        pass


async def transaction(db: pointsman.Client) -> None:
    async with db.transaction(read_only=True, read="replica") as tx:
        await tx.query("select")


PATHS: dict[str, Callable[[pointsman.Client], Awaitable[Any]]] = {
    "query": lambda db: db.query("select", read="replica"),
    "execute": lambda db: db.execute("update"),
    "batch": lambda db: db.batch(["update"]),
    "stream": stream,
    "copy out": copy_out,
    "copy in": lambda db: db.copy_in("t", b"1\n"),
    "transaction": transaction,
}


@pytest.mark.parametrize("path", PATHS)
async def test_it_is_forgotten_once_told(router: CopyRouter, db: pointsman.Client, path: str) -> None:
    db.token = "dDE="
    with pytest.raises(pointsman.TokenLost):
        await PATHS[path](db)
    assert db.token == ""


async def test_a_transaction_whose_stream_ends_with_it(router: CopyRouter, db: pointsman.Client) -> None:
    db.token = "dDE="

    async def nothing(_: pb.TransactRequest) -> None:
        return None

    router.on_transact, router.transact_failure = nothing, LOST
    with pytest.raises(pointsman.TokenLost):
        await transaction(db)
    assert db.token == ""


async def test_what_was_seen_since_is_kept(router: CopyRouter, db: pointsman.Client) -> None:
    db.token = "dDE="
    rows = db.stream("select", read="replica")
    db.observe("dDI=")
    with pytest.raises(pointsman.TokenLost):
        await rows.next_chunk()
    assert db.token != ""
