"""A program that cancels all tasks but its own: the client's are among them, and it must still be of use."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator

import pointsman
import pytest
from pointsman.calls import Call
from pointsman.loop_thread import LoopThread, loop_thread
from pointsman.multiplex import Multiplexer

from tests.sdk.fake_router import FakeRouter, never, one_row, until
from tests.sdk.test_keyed_writes import Told

Body = Callable[[pointsman.Client], Awaitable[None]]


@pytest.fixture
def thread() -> LoopThread:
    return loop_thread()


@pytest.fixture
def elsewhere(thread: LoopThread) -> Iterator[FakeRouter]:
    """A router on another loop than the test's, whose tasks stay."""
    fake = FakeRouter()
    thread.run(fake.start())
    yield fake
    thread.run(fake.stop())


def run(router: FakeRouter, body: Body) -> None:
    async def with_client() -> None:
        async with pointsman.connect(router.address, timeout=2) as db:
            await body(db)

    asyncio.run(with_client())


def cancel_all_others() -> None:
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()


def opened(db: pointsman.Client) -> Multiplexer:
    assert db._mux is not None
    return db._mux


def started(db: pointsman.Client, *, writes: bool) -> Told:
    call = db._requests.write("insert", (), {}) if writes else db._requests.read("select", (), {})
    assert isinstance(call, Call)
    call.waiter = told = Told()
    opened(db).submit(call)
    return told


def test_the_next_call_opens_another_stream(elsewhere: FakeRouter) -> None:
    async def body(db: pointsman.Client) -> None:
        await db.query("select 1")
        cancel_all_others()
        await asyncio.sleep(0.1)
        assert len(elsewhere.streams) == 1, "not by itself"
        assert opened(db)._open == []
        assert (await db.execute("insert")).rowcount == 1
        assert len(elsewhere.streams) == 2

    run(elsewhere, body)


def test_calls_under_way_are_told(elsewhere: FakeRouter) -> None:
    async def body(db: pointsman.Client) -> None:
        await db.query("select 1")
        elsewhere.on_call = never
        read, write = started(db, writes=False), started(db, writes=True)
        await until(lambda: len(elsewhere.calls) == 3)
        cancel_all_others()
        await until(lambda: read.done() and write.done())
        for told, executed in ((read, pointsman.Executed.NO), (write, pointsman.Executed.MAYBE)):
            assert isinstance(told.error, pointsman.Cancelled)
            assert told.error.executed is executed
        elsewhere.on_call = one_row
        await db.query("select 1")

    run(elsewhere, body)


def test_calls_that_wait_for_a_stream_are_told(unused_tcp_port: int) -> None:
    async def body(db: pointsman.Client) -> None:
        db._bound()
        write = started(db, writes=True)
        await asyncio.sleep(0.1)
        cancel_all_others()
        await until(write.done)
        assert isinstance(write.error, pointsman.Cancelled)
        assert write.error.executed is pointsman.Executed.NO

    fake = FakeRouter()
    fake.address = f"127.0.0.1:{unused_tcp_port}"
    run(fake, body)


async def test_a_writer_that_is_cancelled_ends_its_stream(router: FakeRouter, db: pointsman.Client) -> None:
    await db.query("select 1")
    opened(db)._open[0]._writer.cancel()
    assert (await db.query("select 2", timeout=2))[0].n == 1
    assert len(router.streams) == 2
