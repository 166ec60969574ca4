"""Streams of rows."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pointsman
import pytest
from pointsman.streams import RowStream
from pointsman.v1 import query_service_pb2 as pb
from pointsman.v1 import types_pb2 as types

from tests.sdk.fake_router import FakeRouter, abort_with, result_set, status, until


def chunk(rows: list[int], *, schema: bool = False, end: bool = False) -> pb.StreamQueryResponse:
    found = result_set(("n",), [[row] for row in rows])
    message = pb.StreamQueryResponse()
    if rows:
        message.batch.CopyFrom(found.batch)
    if schema:
        message.schema.CopyFrom(found.schema)
    if end:
        message.end.CopyFrom(pb.StreamEnd(rows=4, receipt=types.Receipt(endpoint="pg-a", token=b"t1")))
    return message


class Source:
    """A scripted StreamQuery that remembers what became of it."""

    def __init__(self, *messages: pb.StreamQueryResponse, then: Any = None) -> None:
        self.messages = messages
        self.then = then
        self.sent = 0
        self.ended = asyncio.Event()
        self.requests: list[pb.StreamQueryRequest] = []

    async def __call__(self, request: pb.StreamQueryRequest, context: Any) -> AsyncIterator[pb.StreamQueryResponse]:
        self.requests.append(request)
        try:
            for message in self.messages:
                yield message
                self.sent += 1
            if self.then is not None:
                await self.then(context)
        finally:
            self.ended.set()


async def forever(context: Any) -> None:
    await asyncio.Event().wait()


FOUR = (chunk([1, 2], schema=True), chunk([]), chunk([3, 4]), chunk([], end=True))


async def test_rows_come_in_order_and_the_receipt_at_the_end(router: FakeRouter, db: pointsman.Client) -> None:
    router.on_rows = source = Source(*FOUR)
    stream = db.stream("select $1", 7, read="replica")
    assert stream.receipt is None
    assert [row.n async for row in stream] == [1, 2, 3, 4]
    assert stream.rowcount == 4
    assert stream.receipt is not None
    assert stream.receipt.endpoint == "pg-a"
    assert [column.name for column in stream.columns] == ["n"]
    assert db.token == "dDE="
    assert source.requests[0].statement.params[0].integer == 7
    assert source.requests[0].options == types.QueryOptions(read=types.READ_PREFERENCE_REPLICA)
    assert [row async for row in stream] == []


async def test_chunks_give_the_same_rows_a_list_each(router: FakeRouter, db: pointsman.Client) -> None:
    router.on_rows = Source(*FOUR)
    assert [rows async for rows in db.stream("select").chunks()] == [[(1,), (2,)], [(3,), (4,)]]


async def test_batches_give_the_same_rows_column_by_column(router: FakeRouter, db: pointsman.Client) -> None:
    router.on_rows = Source(*FOUR)
    batches = [batch async for batch in db.stream("select").batches()]
    assert [(len(batch), batch["n"], batch[0], batch.fields) for batch in batches] == [
        (2, [1, 2], [1, 2], ("n",)),
        (2, [3, 4], [3, 4], ("n",)),
    ]


async def test_a_batch_may_follow_single_rows(router: FakeRouter, db: pointsman.Client) -> None:
    router.on_rows = Source(*FOUR)
    stream = db.stream("select")
    assert (await anext(stream)).n == 1
    assert [batch["n"] async for batch in stream.batches()] == [[2], [3, 4]]


@pytest.mark.parametrize("way", ["chunks", "batches"])
async def test_a_batch_that_does_not_fit_its_schema_ends_the_stream(
    router: FakeRouter, db: pointsman.Client, way: str
) -> None:
    wrong = chunk([1, 2], schema=True)
    wrong.batch.row_count = 3
    router.on_rows = source = Source(wrong, then=forever)
    stream = db.stream("select")
    with pytest.raises(pointsman.InternalError, match="3 rows announced, 2 sent"):
        await anext(getattr(stream, way)())
    await asyncio.wait_for(source.ended.wait(), 5)
    with pytest.raises(pointsman.InternalError, match="3 rows announced, 2 sent"):
        await stream.next_chunk()


async def test_rows_in_the_last_message_are_not_lost(router: FakeRouter, db: pointsman.Client) -> None:
    router.on_rows = Source(chunk([1], schema=True, end=True))
    assert [row.n async for row in db.stream("select")] == [1]


async def test_a_break_ends_the_statement(router: FakeRouter, db: pointsman.Client) -> None:
    router.on_rows = source = Source(chunk([1, 2], schema=True), then=forever)
    async for row in db.stream("select"):
        assert row.n == 1
        break
    gc.collect()
    await asyncio.wait_for(source.ended.wait(), 5)


async def test_leaving_async_with_ends_the_statement(router: FakeRouter, db: pointsman.Client) -> None:
    router.on_rows = source = Source(chunk([1, 2], schema=True), then=forever)
    async with db.stream("select") as stream:
        assert (await anext(stream)).n == 1
    await asyncio.wait_for(source.ended.wait(), 5)
    assert [row async for row in stream] == []


async def test_a_slow_reader_holds_the_router_back(router: FakeRouter, db: pointsman.Client) -> None:
    wide = chunk(list(range(2**40, 2**40 + 8000)))
    router.on_rows = source = Source(chunk([1], schema=True), *[wide] * 2000)
    async with db.stream("select") as stream:
        await anext(stream)
        await asyncio.sleep(0.3)
        held = source.sent
        await asyncio.sleep(0.2)
        assert source.sent == held < 1000


async def test_an_error_in_the_middle_is_raised_after_the_rows_before_it(
    router: FakeRouter, db: pointsman.Client
) -> None:
    async def fail(context: Any) -> None:
        await abort_with(
            context, status(grpc.StatusCode.UNAVAILABLE, "lost", reason="BACKEND_LOST", executed="rolled_back")
        )

    router.on_rows = Source(chunk([1], schema=True), then=fail)
    stream = db.stream("select")
    assert (await anext(stream)).n == 1
    with pytest.raises(pointsman.Unavailable, match="lost") as caught:
        await anext(stream)
    assert caught.value.reason == "BACKEND_LOST"


async def test_an_early_end_is_an_error_and_no_short_result(router: FakeRouter, db: pointsman.Client) -> None:
    router.on_rows = Source(chunk([1], schema=True))
    with pytest.raises(pointsman.Error, match="before its last rows"):
        _ = [row async for row in db.stream("select")]


@pytest.mark.parametrize("first", [(), (chunk([1], schema=True),)])
async def test_a_router_that_falls_silent_costs_the_timeout(
    router: FakeRouter, db: pointsman.Client, first: tuple[pb.StreamQueryResponse, ...]
) -> None:
    router.on_rows = source = Source(*first, then=forever)
    begun = time.monotonic()
    with pytest.raises(pointsman.DeadlineExceeded):
        _ = [row async for row in db.stream("select", timeout=0.3)]
    assert 0.29 < time.monotonic() - begun < 0.45
    assert source.requests[0].options.timeout_ms == 300
    await asyncio.wait_for(source.ended.wait(), 5)


async def test_a_lost_connection_before_the_first_rows_is_opened_again(
    router: FakeRouter, db: pointsman.Client
) -> None:
    answers = iter((status(grpc.StatusCode.UNAVAILABLE, "Socket closed"), None))

    async def rows(request: pb.StreamQueryRequest, context: Any) -> AsyncIterator[pb.StreamQueryResponse]:
        failure = next(answers)
        if failure is not None:
            await abort_with(context, failure)
        for message in FOUR:
            yield message

    router.on_rows = rows
    assert [row.n async for row in db.stream("select")] == [1, 2, 3, 4]


async def refuse(context: Any) -> None:
    await abort_with(context, status(grpc.StatusCode.INTERNAL, "broken", reason="X"))


@pytest.mark.parametrize("each", [aiter, RowStream.chunks, RowStream.batches], ids=["rows", "chunks", "batches"])
@pytest.mark.parametrize(
    ("then", "first", "again"),
    [(forever, TimeoutError, pointsman.Cancelled), (refuse, pointsman.InternalError, pointsman.InternalError)],
    ids=["cancelled", "failed"],
)
async def test_a_part_is_never_taken_for_the_whole(
    router: FakeRouter, db: pointsman.Client, each: Any, then: Any, first: type[Exception], again: type[Exception]
) -> None:
    router.on_rows = Source(chunk([1], schema=True), then=then)
    stream = db.stream("select")
    pieces = each(stream)
    await anext(pieces)
    with pytest.raises(first):
        await asyncio.wait_for(anext(pieces), 0.1)
    for _ in range(2):
        with pytest.raises(again):
            await anext(pieces)
    with pytest.raises(again):
        await stream.next_chunk()
    await stream.aclose()
    assert [row async for row in stream] == [], "who closes it knows that it has ended"


async def test_a_token_function_that_fails_keeps_no_place_on_the_connection(router: FakeRouter) -> None:
    def token() -> str:
        raise LookupError("the vault is sealed")

    async with pointsman.connect(router.address, token=token) as db:
        for _ in range(2):
            with pytest.raises(LookupError):
                await anext(db.stream("select"))
        assert [link.users for link in db._connections._links] in ([], [0])


async def test_no_router_is_unavailable(unused_tcp_port: int) -> None:
    async with pointsman.connect(f"127.0.0.1:{unused_tcp_port}") as db:
        with pytest.raises(pointsman.Unavailable, match="was not reached"):
            _ = [row async for row in db.stream("select", timeout=0.3)]


async def test_cancelling_the_reader_ends_the_statement(router: FakeRouter, db: pointsman.Client) -> None:
    router.on_rows = source = Source(then=forever)

    async def read() -> None:
        async for _ in db.stream("select"):
            pass

    task = asyncio.create_task(read())
    await until(lambda: source.requests)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(source.ended.wait(), 5)
