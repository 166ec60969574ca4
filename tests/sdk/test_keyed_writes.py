"""A keyed write that was under way when its router was lost, and then was not answered: nobody knows whether it was
done, and no error may say that it was not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pointsman
import pytest
from pointsman.calls import Call, after_break, closed, overdue, unexpected
from pointsman.loop_thread import loop_thread
from pointsman.v1 import query_service_pb2 as pb

from tests.sdk.fake_router import FakeRouter, MuxStream, never, one_row, status, until
from tests.sdk.test_multiplex import lost

LOST = status(grpc.StatusCode.UNAVAILABLE, "bye")
REFUSED = {
    "at once": status(grpc.StatusCode.UNAUTHENTICATED, "unknown token", reason="UNAUTHENTICATED", executed="no"),
    "as a mistake": status(grpc.StatusCode.FAILED_PRECONDITION, "no such tenant", reason="X", executed="no"),
}


async def under_way(router: FakeRouter, db: pointsman.Client, timeout: float = 5.0) -> asyncio.Task[Any]:
    """A keyed write that the router has read, and may have done."""
    router.on_call = never
    write = asyncio.create_task(db.execute("insert", idempotency_key="k", timeout=timeout))
    await until(lambda: router.calls)
    return write


async def executed(write: asyncio.Task[Any], kind: type[pointsman.Error]) -> pointsman.Executed:
    with pytest.raises(kind) as caught:
        await write
    assert type(caught.value) is kind
    return caught.value.executed


@pytest.mark.parametrize(
    "start",
    [
        lambda db: db.execute("insert", idempotency_key="k", timeout=0.4),
        lambda db: db.execute("insert", idempotent=True, timeout=0.4),
        lambda db: db.batch(["insert"], idempotency_key="k", timeout=0.4),
    ],
)
async def test_a_router_that_does_not_come_back(
    router: FakeRouter, db: pointsman.Client, start: Callable[[pointsman.Client], Any]
) -> None:
    router.on_call = never
    write = asyncio.create_task(start(db))
    await until(lambda: router.calls)
    await router.stop()
    assert await executed(write, pointsman.Unavailable) is pointsman.Executed.MAYBE


def test_a_router_that_does_not_come_back_to_a_thread() -> None:
    thread, fake = loop_thread(), FakeRouter()
    thread.run(fake.start())
    fake.on_call = never

    async def lose() -> None:
        await until(lambda: fake.calls)
        await fake.stop()

    with pointsman.sync.connect(fake.address) as db, ThreadPoolExecutor(1) as pool:
        write = pool.submit(db.execute, "insert", idempotency_key="k", timeout=0.4)
        thread.run(lose())
        with pytest.raises(pointsman.Unavailable) as caught:
            write.result(5)
    assert caught.value.executed is pointsman.Executed.MAYBE


async def test_a_close_before_the_router_comes_back(router: FakeRouter, db: pointsman.Client) -> None:
    write = await under_way(router, db)
    await router.stop()
    await until(lambda: db._mux is not None and db._mux._waiting)
    await db.close()
    assert await executed(write, pointsman.ClientClosed) is pointsman.Executed.MAYBE
    with pytest.raises(pointsman.ClientClosed, match="while the write was under way"):
        await write


@pytest.mark.parametrize("refusal", REFUSED)
async def test_the_next_router_refuses_the_stream(router: FakeRouter, db: pointsman.Client, refusal: str) -> None:
    async def refuse(stream: MuxStream) -> None:
        if len(router.streams) > 1:
            stream.end(REFUSED[refusal])

    router.on_stream = refuse
    write = await under_way(router, db)
    router.streams[0].end(LOST)
    with pytest.raises(pointsman.Error) as caught:
        await write
    assert caught.value.code.value[0] == REFUSED[refusal].code
    assert caught.value.executed is pointsman.Executed.MAYBE


@pytest.mark.parametrize(
    ("refusal", "known"),
    [
        # Before it looked at the key
        (status(grpc.StatusCode.RESOURCE_EXHAUSTED, reason="QUOTA", executed="no"), pointsman.Executed.MAYBE),
        (status(grpc.StatusCode.PERMISSION_DENIED, reason="X", executed="no"), pointsman.Executed.MAYBE),
        (status(grpc.StatusCode.DEADLINE_EXCEEDED, reason="X", executed="rolled_back"), pointsman.Executed.MAYBE),
        *(
            (status(grpc.StatusCode.INVALID_ARGUMENT, reason=reason, executed="no"), pointsman.Executed.MAYBE)
            for reason in ("STATEMENT_MISSING", "BAD_REQUEST", "NOT_REGISTERED")
        ),
        # After: had the first been done, this would be its answer
        (status(grpc.StatusCode.ALREADY_EXISTS, reason="X", executed="rolled_back"), pointsman.Executed.ROLLED_BACK),
        (status(grpc.StatusCode.INVALID_ARGUMENT, reason="KEY_REUSED", executed="no"), pointsman.Executed.NO),
    ],
)
async def test_the_next_router_refuses_the_write(
    router: FakeRouter, db: pointsman.Client, refusal: Any, known: pointsman.Executed
) -> None:
    async def refuse(call: pb.MultiplexCall) -> pb.MultiplexReply:
        return pb.MultiplexReply(failure=refusal)

    write = await under_way(router, db)
    router.on_call = refuse
    router.streams[0].end(LOST)
    with pytest.raises(pointsman.Error) as caught:
        await write
    assert caught.value.executed is known


async def test_the_doubt_outlives_an_attempt_that_the_router_answered(
    router: FakeRouter, db: pointsman.Client
) -> None:
    async def maybe(call: pb.MultiplexCall) -> pb.MultiplexReply:
        router.on_stream = refuse
        asyncio.get_running_loop().call_soon(router.streams[-1].end, LOST)
        return pb.MultiplexReply(
            failure=status(grpc.StatusCode.UNAVAILABLE, reason="OUTCOME_UNKNOWN", executed="maybe")
        )

    async def refuse(stream: MuxStream) -> None:
        stream.end(REFUSED["as a mistake"])

    router.on_call = maybe
    write = asyncio.create_task(db.execute("insert", idempotency_key="k"))
    assert await executed(write, pointsman.InvalidRequest) is pointsman.Executed.MAYBE


async def test_a_batch_from_an_iterator_is_sent_again_whole(router: FakeRouter, db: pointsman.Client) -> None:
    async def maybe_first(call: pb.MultiplexCall) -> pb.MultiplexReply | None:
        if len(router.calls) > 1:
            return await one_row(call)
        return pb.MultiplexReply(
            failure=status(grpc.StatusCode.UNAVAILABLE, reason="OUTCOME_UNKNOWN", executed="maybe")
        )

    router.on_call = maybe_first
    steps: Any = ((f"insert {number}", [number]) for number in range(2))
    assert len(await db.batch(steps, idempotent=True)) == 2
    first, second = (call.batch for call in router.calls)
    assert len(first.steps) == 2
    assert first == second


class Told:
    """Who waits for a call, and is no task."""

    def __init__(self) -> None:
        self.error: pointsman.Error | None = None

    def done(self) -> bool:
        return self.error is not None

    def cancel(self) -> bool:
        return False

    def set_result(self, result: Any, /) -> None:
        raise AssertionError

    def set_exception(self, exception: Any, /) -> None:
        self.error = exception


@pytest.mark.parametrize("end", [overdue, closed, lambda _: unexpected(ValueError())])
@pytest.mark.parametrize(
    ("failure", "answered", "known"),
    [
        (None, False, pointsman.Executed.MAYBE),
        (lost(grpc.StatusCode.UNAVAILABLE), True, pointsman.Executed.MAYBE),
        (lost(grpc.StatusCode.UNAVAILABLE, "no"), True, pointsman.Executed.MAYBE),
        (lost(grpc.StatusCode.UNAVAILABLE, "no"), False, pointsman.Executed.NO),
        (lost(grpc.StatusCode.UNAVAILABLE, "no", "DRAINING"), True, pointsman.Executed.NO),
    ],
)
def test_every_end_of_a_call_that_waits_to_be_sent_again(
    end: Callable[[Call], pointsman.Error], failure: Any, answered: bool, known: pointsman.Executed
) -> None:
    call = Call(b"", 1.0, writes=True, replayable=True)
    call.waiter = told = Told()
    call.written = True
    assert after_break(call, failure, answered=answered) is None
    call.written = False
    call.fail(end(call))
    assert told.error is not None
    assert told.error.executed is known
    assert ("never sent" in told.error.message) is (end is overdue and known is pointsman.Executed.NO)


async def test_a_call_that_breaks_every_stream_before_it_is_refused(router: FakeRouter, db: pointsman.Client) -> None:
    async def refuse(call: pb.MultiplexCall) -> None:
        router.streams[-1].end(status(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", reason="X", executed="no"))

    write = await under_way(router, db)
    router.on_call = refuse
    router.streams[0].end(LOST)
    assert await executed(write, pointsman.ResourceExhausted) is pointsman.Executed.MAYBE
