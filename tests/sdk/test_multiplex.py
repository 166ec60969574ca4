"""One stream for many calls: batching, deadlines, cancellation, reconnecting, draining."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
import pointsman
import pytest
from grpc import aio
from pointsman.calls import Call, after_break
from pointsman.mux_stream import WINDOW
from pointsman.status import error_from_rpc
from pointsman.v1 import query_service_pb2 as pb

from tests.sdk.fake_router import FakeRouter, MuxStream, never, one_row, status, until


async def test_calls_queued_together_travel_in_one_message(router: FakeRouter, db: pointsman.Client) -> None:
    await db.query("select 0")
    router.messages.clear()
    results = await asyncio.gather(*(db.query("select $1", number) for number in range(100)))
    assert [rows[0].n for rows in results] == [1] * 100
    assert len(router.messages) == 1
    assert sorted(call.query.statement.params[0].integer for call in router.messages[0].calls) == list(range(100))
    assert len({call.id for call in router.messages[0].calls}) == 100


async def test_what_queues_before_the_connection_travels_in_one_message(
    router: FakeRouter, db: pointsman.Client
) -> None:
    await asyncio.gather(*(db.query("select 1") for _ in range(50)))
    assert [len(message.calls) for message in router.messages] == [50]


async def test_replies_are_matched_by_id_not_by_order(router: FakeRouter, db: pointsman.Client) -> None:
    async def later_first(call: pb.MultiplexCall) -> pb.MultiplexReply | None:
        number = call.query.statement.params[0].integer
        await asyncio.sleep(0.03 - number * 0.01)
        reply = await one_row(call)
        assert reply is not None
        reply.query.result.batch.columns[0].integers[0] = number
        return reply

    router.on_call = later_first
    results = await asyncio.gather(*(db.query("select $1", number) for number in range(3)))
    assert [rows[0].n for rows in results] == [0, 1, 2]


async def test_tenant_and_token_travel_as_metadata(router: FakeRouter, db: pointsman.Client) -> None:
    await db.query("select 1")
    assert router.metadata[0]["authorization"] == "Bearer secret"
    assert router.metadata[0]["pointsman-tenant"] == "acme"


async def test_the_token_may_be_a_function(router: FakeRouter) -> None:
    tokens = iter(("first", "second"))
    async with pointsman.connect(router.address, token=lambda: next(tokens), timeout=5) as db:
        await db.query("select 1")
        router.streams[0].end()
        await until(lambda: db._mux is not None and not db._mux._open)
        await db.query("select 1")
    assert [seen["authorization"] for seen in router.metadata] == ["Bearer first", "Bearer second"]


@pytest.mark.parametrize(
    ("method", "executed"), [("query", pointsman.Executed.NO), ("execute", pointsman.Executed.MAYBE)]
)
async def test_a_router_that_never_answers_costs_the_timeout_and_no_more(
    router: FakeRouter, db: pointsman.Client, method: str, executed: pointsman.Executed
) -> None:
    await db.query("select 1")
    router.on_call = never
    begun = time.monotonic()
    with pytest.raises(pointsman.DeadlineExceeded) as caught:
        await getattr(db, method)("select 1", timeout=0.2)
    assert 0.19 < time.monotonic() - begun < 0.45
    assert caught.value.executed is executed
    assert caught.value.reason == "DEADLINE"
    sent = router.calls[-1]
    assert 0 < sent.timeout_ms <= 200
    await until(lambda: router.cancelled == [sent.id])


async def test_a_port_that_takes_connections_and_says_nothing_costs_the_timeout(unused_tcp_port: int) -> None:
    writers: list[asyncio.StreamWriter] = []

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)

    server = await asyncio.start_server(silent, "127.0.0.1", unused_tcp_port)
    begun = time.monotonic()
    async with pointsman.connect(f"127.0.0.1:{unused_tcp_port}", timeout=0.3) as db:
        with pytest.raises(pointsman.Error) as caught:
            await db.execute("insert", timeout=0.3)
        assert time.monotonic() - begun < 0.55
    assert caught.value.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    for writer in writers:
        writer.close()
        await writer.wait_closed()
    server.close()
    await server.wait_closed()


async def test_no_router_at_all_is_unavailable_with_the_address_after_the_timeout(unused_tcp_port: int) -> None:
    async with pointsman.connect(f"127.0.0.1:{unused_tcp_port}") as db:
        begun = time.monotonic()
        with pytest.raises(
            pointsman.Unavailable, match=rf"router 127\.0\.0\.1:{unused_tcp_port} .*Check that"
        ) as caught:
            await db.execute("insert", timeout=0.3)
        assert 0.29 < time.monotonic() - begun < 0.55
    assert caught.value.executed is pointsman.Executed.NO


async def test_a_router_that_comes_up_in_time_is_used(unused_tcp_port: int) -> None:
    fake = FakeRouter()
    async with pointsman.connect(f"127.0.0.1:{unused_tcp_port}", timeout=5) as db:
        call = asyncio.create_task(db.execute("insert"))
        await asyncio.sleep(0.2)
        await fake.start(unused_tcp_port)
        assert (await call).rowcount == 1
    await fake.stop()


async def test_cancelling_a_task_cancels_the_call_and_frees_it(router: FakeRouter, db: pointsman.Client) -> None:
    router.on_call = never
    call = asyncio.create_task(db.query("select pg_sleep(60)"))
    await until(lambda: router.calls)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await until(lambda: router.cancelled == [router.calls[0].id])
    assert db._mux is not None
    assert len(db._mux._open[0]) == 0


@pytest.mark.parametrize("connected", [False, True])
async def test_a_call_cancelled_before_it_is_sent_is_never_sent(
    router: FakeRouter, db: pointsman.Client, connected: bool
) -> None:
    if connected:
        await db.execute("insert 0")
    router.messages.clear()
    call = asyncio.create_task(db.execute("insert 1"))
    await asyncio.sleep(0)
    call.cancel()
    await db.execute("insert 2")
    assert [sent.execute.statement.sql for sent in router.calls] == ["insert 2"]


async def test_a_broken_stream_resends_reads_and_keyed_writes_and_owns_up_about_writes(
    router: FakeRouter, db: pointsman.Client
) -> None:
    await db.query("select 1")
    router.on_call = never
    read = asyncio.create_task(db.query("read"))
    write = asyncio.create_task(db.execute("write"))
    keyed = asyncio.create_task(db.execute("keyed", idempotency_key="k1"))
    batch = asyncio.create_task(db.batch(["batched"]))
    await until(lambda: len(router.calls) == 5)
    router.on_call = one_row
    router.streams[0].end(status(grpc.StatusCode.UNAVAILABLE, "bye"))
    assert (await read)[0].n == 1
    assert (await keyed).rowcount == 1
    for lost in (write, batch):
        with pytest.raises(pointsman.OutcomeUnknown) as caught:
            await lost
        assert caught.value.executed is pointsman.Executed.MAYBE
    again = [call.query.statement.sql or call.execute.statement.sql for call in router.calls[5:]]
    assert sorted(again) == ["keyed", "read"]
    assert len(router.streams) == 2


def lost(code: grpc.StatusCode, executed: str = "", reason: str = "X") -> aio.AioRpcError:
    failure = status(code, "lost", reason=reason, executed=executed) if executed else status(code, "lost")
    details = ("grpc-status-details-bin", failure.SerializeToString())
    return aio.AioRpcError(code, aio.Metadata(), aio.Metadata(details), "lost")


@pytest.mark.parametrize(
    ("failure", "answered", "read", "write", "keyed"),
    [
        (None, False, None, pointsman.OutcomeUnknown, None),
        (lost(grpc.StatusCode.UNAVAILABLE), False, None, pointsman.OutcomeUnknown, None),
        (lost(grpc.StatusCode.UNAVAILABLE), True, None, pointsman.OutcomeUnknown, None),
        (lost(grpc.StatusCode.CANCELLED), True, None, pointsman.OutcomeUnknown, None),
        (lost(grpc.StatusCode.UNAVAILABLE, "no"), False, None, None, None),
        (lost(grpc.StatusCode.UNAVAILABLE, "no"), True, None, pointsman.OutcomeUnknown, None),
        (lost(grpc.StatusCode.UNAVAILABLE, "maybe"), False, None, pointsman.OutcomeUnknown, None),
        (lost(grpc.StatusCode.UNAVAILABLE, "no", "DRAINING"), True, None, None, None),
        (lost(grpc.StatusCode.PERMISSION_DENIED, "no"), False, *[pointsman.PermissionDenied] * 3),
        (lost(grpc.StatusCode.RESOURCE_EXHAUSTED), True, *[pointsman.ResourceExhausted] * 3),
    ],
)
async def test_what_becomes_of_calls_whose_stream_broke(
    failure: aio.AioRpcError | None, answered: bool, read: Any, write: Any, keyed: Any
) -> None:
    for kind, writes, replayable in ((read, False, True), (write, True, False), (keyed, True, True)):
        call = Call(b"", 1.0, writes, replayable)
        error = after_break(call, failure, answered=answered)
        assert type(error) is (kind or type(None))
        if error is not None and answered and writes:
            assert error.executed is pointsman.Executed.MAYBE


async def test_a_stream_refused_at_once_without_effect_resends_writes_too(
    router: FakeRouter, db: pointsman.Client
) -> None:
    async def refuse_once(stream: MuxStream) -> None:
        if len(router.streams) == 1:
            await asyncio.sleep(0.05)
            stream.end(status(grpc.StatusCode.UNAVAILABLE, "restarting", reason="DRAINING", executed="no"))

    router.on_stream = refuse_once
    assert (await db.execute("insert")).rowcount == 1
    assert len(router.streams) == 2


async def test_a_refused_token_fails_the_calls_and_is_not_retried(router: FakeRouter, db: pointsman.Client) -> None:
    async def refuse(stream: MuxStream) -> None:
        stream.end(status(grpc.StatusCode.UNAUTHENTICATED, "unknown token", reason="UNAUTHENTICATED", executed="no"))

    router.on_stream = refuse
    with pytest.raises(pointsman.Unauthenticated, match="unknown token") as caught:
        await db.execute("insert")
    assert caught.value.executed is pointsman.Executed.NO
    assert len(router.streams) == 1


async def test_a_call_that_breaks_every_stream_is_given_up(router: FakeRouter, db: pointsman.Client) -> None:
    async def crash(call: pb.MultiplexCall) -> None:
        router.streams[-1].end(status(grpc.StatusCode.UNKNOWN, "bug"))

    router.on_call = crash
    with pytest.raises(pointsman.InternalError, match="bug"):
        await db.query("select poison")
    assert len(router.streams) == 3


async def test_a_killed_router_that_returns_costs_reads_time_and_no_error(router: FakeRouter) -> None:
    port = int(router.address.rpartition(":")[2])
    async with pointsman.connect(router.address, timeout=5) as db:
        await db.query("select 1")
        router.on_call = never
        read = asyncio.create_task(db.query("select 2"))
        await until(lambda: len(router.calls) == 2)
        await router.stop()
        await asyncio.sleep(0.1)
        router.on_call = one_row
        await router.start(port)
        assert (await read)[0].n == 1


async def test_draining_moves_new_calls_to_a_new_connection_while_the_old_one_finishes(
    router: FakeRouter, db: pointsman.Client
) -> None:
    release = asyncio.Event()

    async def slow_on_first(call: pb.MultiplexCall) -> Any:
        if call.execute.statement.sql == "slow":
            await release.wait()
        return await one_row(call)

    router.on_call = slow_on_first
    slow = asyncio.create_task(db.execute("slow"))
    await until(lambda: router.calls)
    router.streams[0].drain()
    await until(lambda: db._mux is not None and not db._mux._open)
    assert (await db.execute("new")).rowcount == 1
    assert len(router.streams) == 2
    peers = {stream.context.peer() for stream in router.streams}
    assert len(peers) == 2, "the new stream must have a connection of its own"
    assert not slow.done()
    release.set()
    assert (await slow).rowcount == 1


async def test_a_call_refused_by_a_draining_router_goes_elsewhere(router: FakeRouter, db: pointsman.Client) -> None:
    async def refuse_first(call: pb.MultiplexCall) -> Any:
        if len(router.streams) == 1:
            refusal = status(grpc.StatusCode.UNAVAILABLE, "draining", reason="DRAINING", executed="no")
            return pb.MultiplexReply(failure=refusal)
        return await one_row(call)

    router.on_call = refuse_first
    assert (await db.execute("insert")).rowcount == 1
    assert len(router.streams) == 2


async def test_a_stream_ended_by_a_drain_resends_also_writes(router: FakeRouter, db: pointsman.Client) -> None:
    await db.query("select 1")
    router.on_call = never
    write = asyncio.create_task(db.execute("insert"))
    await until(lambda: len(router.calls) == 2)
    router.on_call = one_row
    router.streams[0].end(status(grpc.StatusCode.UNAVAILABLE, "draining", reason="DRAINING", executed="no"))
    assert (await write).rowcount == 1


async def test_a_drained_stream_is_ended_politely(router: FakeRouter, db: pointsman.Client) -> None:
    await db.query("select 1")
    router.streams[0].drain()
    await asyncio.wait_for(router.streams[0].half_closed.wait(), 5)


async def test_no_more_calls_are_under_way_on_a_stream_than_routers_accept(router: FakeRouter) -> None:
    release = asyncio.Event()

    async def held(call: pb.MultiplexCall) -> Any:
        await release.wait()
        return await one_row(call)

    router.on_call = held
    async with pointsman.connect(router.address, timeout=5, channels=1) as db:
        calls = [asyncio.create_task(db.query("select 1")) for _ in range(1000)]
        await until(lambda: len(router.calls) == WINDOW)
        await asyncio.sleep(0.05)
        assert len(router.calls) == WINDOW
        release.set()
        assert len(await asyncio.gather(*calls)) == 1000


async def test_a_write_on_a_connection_that_just_broke_is_a_lost_connection() -> None:
    failure = aio.AioRpcError(grpc.StatusCode.INTERNAL, aio.Metadata(), aio.Metadata(), "Internal error from Core")
    assert error_from_rpc(failure, writes=False).code is grpc.StatusCode.UNAVAILABLE


async def test_a_request_too_large_for_a_message_is_refused_here(router: FakeRouter, db: pointsman.Client) -> None:
    with pytest.raises(pointsman.InvalidRequest, match="limit") as caught:
        await db.execute("insert into t values ($1)", b"x" * (4 * 1024 * 1024))
    assert caught.value.executed is pointsman.Executed.NO
    assert router.calls == []


@pytest.mark.parametrize(("size", "shares"), [(3_000_000, [1, 1, 1, 1]), (700_000, [1, 1, 1, 1]), (400_000, [2, 2])])
async def test_large_requests_are_spread_over_messages(
    router: FakeRouter, db: pointsman.Client, size: int, shares: list[int]
) -> None:
    await asyncio.gather(*(db.execute("insert", b"x" * size) for _ in range(4)))
    assert [len(message.calls) for message in router.messages] == shares


async def test_closing_fails_what_is_under_way(router: FakeRouter, db: pointsman.Client) -> None:
    router.on_call = never
    read, write = asyncio.create_task(db.query("select 1")), asyncio.create_task(db.execute("insert"))
    await until(lambda: len(router.calls) == 2)
    await db.close()
    await db.close()
    with pytest.raises(pointsman.ClientClosed) as caught:
        await write
    assert caught.value.executed is pointsman.Executed.MAYBE
    with pytest.raises(pointsman.ClientClosed) as caught:
        await read
    assert caught.value.executed is pointsman.Executed.NO
    with pytest.raises(pointsman.ClientClosed, match="closed"):
        await db.query("select 1")


async def test_another_event_loop_is_refused_in_words(router: FakeRouter, db: pointsman.Client) -> None:
    await db.query("select 1")

    def elsewhere() -> None:
        async def call() -> None:
            with pytest.raises(RuntimeError, match=r"another event loop.*pointsman\.sync"):
                await db.query("select 1")

        asyncio.run(call())

    await asyncio.to_thread(elsewhere)


async def test_a_client_from_before_a_fork_is_refused_in_words(
    db: pointsman.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pointsman.forking._forks", 1)
    with pytest.raises(RuntimeError, match="fork"):
        await db.query("select 1")
    monkeypatch.undo()
