"""More than one stream: when another is opened, which calls it gets, and when it goes; deadlines of many calls."""

from __future__ import annotations

import asyncio
import math
import time
from typing import Any

import grpc
import pointsman
import pytest
from pointsman import multiplex, mux_stream
from pointsman.mux_stream import WINDOW, Stream
from pointsman.v1 import query_service_pb2 as pb

from tests.sdk.fake_router import FakeRouter, MuxStream, never, one_row, status, until


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams with little room, so that few calls fill them."""
    monkeypatch.setattr(mux_stream, "WINDOW", 4)
    monkeypatch.setattr(multiplex, "WINDOW", 4)
    monkeypatch.setattr(multiplex, "FILL", 2)
    monkeypatch.setattr(multiplex, "SPREAD", 2)


def streams_of(db: pointsman.Client) -> list[Stream]:
    assert db._mux is not None
    return db._mux._open


class Held:
    """Answers nothing before it is released."""

    def __init__(self, router: FakeRouter) -> None:
        self.released = asyncio.Event()
        router.on_call = self

    async def __call__(self, call: pb.MultiplexCall) -> Any:
        await self.released.wait()
        return await one_row(call)


async def test_a_full_stream_gets_another_one_on_a_connection_of_its_own(router: FakeRouter, small: None) -> None:
    held = Held(router)
    async with pointsman.connect(router.address, timeout=5, channels=3) as db:
        calls = [asyncio.create_task(db.query("select 1")) for _ in range(20)]
        await until(lambda: len(router.calls) == 12)
        await asyncio.sleep(0.05)
        assert len(router.calls) == 12, "three streams with a window of four"
        assert len({stream.context.peer() for stream in router.streams}) == 3
        held.released.set()
        assert len(await asyncio.gather(*calls)) == 20
    assert len(router.streams) == 3


async def test_few_calls_stay_on_one_stream_though_many_are_made(router: FakeRouter, db: pointsman.Client) -> None:
    for _ in range(5):
        await asyncio.gather(*(db.query("select 1") for _ in range(WINDOW // 2)))
    assert len(router.streams) == 1


async def test_a_router_of_several_processes_gets_a_stream_for_each_as_far_as_there_is_work(
    router: FakeRouter, small: None
) -> None:
    held = Held(router)
    router.headers += (("pointsman-workers", "3"),)
    async with pointsman.connect(router.address, timeout=5, channels=8) as db:
        calls = [asyncio.create_task(db.query("select 1")) for _ in range(2)]
        await until(lambda: len(router.calls) == 2)
        assert len(router.streams) == 1
        calls += [asyncio.create_task(db.query("select 1")) for _ in range(2)]
        await until(lambda: len(streams_of(db)) == 2)
        calls += [asyncio.create_task(db.query("select 1")) for _ in range(4)]
        await until(lambda: len(streams_of(db)) == 3)
        held.released.set()
        await asyncio.gather(*calls)
    assert len(router.streams) == 3


async def test_an_open_stream_with_room_is_used_before_the_full_one(router: FakeRouter, small: None) -> None:
    held = Held(router)
    async with pointsman.connect(router.address, timeout=5, channels=2) as db:
        calls = [asyncio.create_task(db.query("select 1")) for _ in range(5)]
        await until(lambda: len(streams_of(db)) == 2 and len(router.calls) == 5)
        first, second = streams_of(db)
        assert (len(first), len(second)) == (4, 1)
        calls.append(asyncio.create_task(db.query("select 1")))
        await until(lambda: len(second) == 2)
        held.released.set()
        await asyncio.gather(*calls)


async def test_a_stream_held_up_gives_what_it_has_not_sent_to_another_one(
    router: FakeRouter, db: pointsman.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    await db.query("select 1")
    [first] = streams_of(db)
    stuck = asyncio.Event()
    write = first._rpc.write

    async def held_up(data: bytes) -> None:
        await stuck.wait()
        await write(data)

    monkeypatch.setattr(first._rpc, "write", held_up)
    behind = asyncio.create_task(db.query("select behind"))
    await asyncio.sleep(mux_stream.BLOCKED_S + 0.02)
    queued = [asyncio.create_task(db.execute("insert")) for _ in range(3)]
    assert [result.rowcount for result in await asyncio.gather(*queued)] == [1, 1, 1]
    assert len(router.streams) == 2
    assert not behind.done()
    assert (await db.query("select 1"))[0].n == 1, "new calls avoid the stream that is held up"
    stuck.set()
    assert (await behind)[0].n == 1


async def test_a_further_stream_that_is_refused_costs_nothing(router: FakeRouter, small: None) -> None:
    held = Held(router)

    async def refuse_second(stream: MuxStream) -> None:
        if len(router.streams) > 1:
            stream.end(status(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many streams", reason="QUEUE_FULL"))

    router.on_stream = refuse_second
    async with pointsman.connect(router.address, timeout=5) as db:
        calls = [asyncio.create_task(db.execute("insert")) for _ in range(9)]
        await until(lambda: len(router.streams) == 2)
        await until(lambda: db._mux is not None and db._mux._growing is None)
        held.released.set()
        assert [result.rowcount for result in await asyncio.gather(*calls)] == [1] * 9
    assert len(router.streams) == 2, "not asked again at once"


async def test_a_further_stream_without_work_is_ended_and_the_first_stays(
    router: FakeRouter, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(multiplex, "IDLE_S", 0.05)
    held = Held(router)
    async with pointsman.connect(router.address, timeout=5) as db:
        calls = [asyncio.create_task(db.query("select 1")) for _ in range(6)]
        await until(lambda: len(streams_of(db)) == 2)
        await asyncio.sleep(0.15)
        assert len(streams_of(db)) == 2, "calls are under way on both"
        held.released.set()
        await asyncio.gather(*calls)
        await until(lambda: len(streams_of(db)) == 1)
        await asyncio.wait_for(router.streams[1].half_closed.wait(), 5)
        router.streams[1].end()
        await until(lambda: db._mux is not None and len(db._mux._streams) == 1)
        assert db._mux is not None
        assert db._mux._trimming is None
        assert (await db.query("select 1"))[0].n == 1
    assert len(router.streams) == 2


async def test_a_broken_stream_hands_its_calls_to_those_that_work(router: FakeRouter, small: None) -> None:
    held = Held(router)
    async with pointsman.connect(router.address, timeout=5, channels=2) as db:
        calls = [asyncio.create_task(db.query("select 1")) for _ in range(6)]
        await until(lambda: len(router.calls) == 6)
        # The one that is left is full for a moment, and if its answers are slow, opening another would be right.
        assert db._mux is not None
        db._mux._grow_from = math.inf
        router.streams[1].end(status(grpc.StatusCode.UNAVAILABLE, "bye"))
        held.released.set()
        assert len(await asyncio.gather(*calls)) == 6
    assert len(router.streams) == 2


async def test_closing_fails_the_calls_of_all_streams(router: FakeRouter, small: None) -> None:
    router.on_call = never
    async with pointsman.connect(router.address, timeout=5, channels=2) as db:
        calls = [asyncio.create_task(db.query("select 1")) for _ in range(10)]
        await until(lambda: len(router.calls) == 8)
    for call in calls:
        with pytest.raises(pointsman.ClientClosed):
            await call


@pytest.mark.parametrize("channels", [0, -1, True, 1.5, "2"])
def test_the_number_of_channels_is_checked(channels: Any) -> None:
    with pytest.raises(ValueError, match="channels must be"):
        pointsman.connect("router:1", channels=channels)


async def test_each_of_many_calls_keeps_its_own_deadline(router: FakeRouter, db: pointsman.Client) -> None:
    await db.query("select 1")
    router.on_call = never

    async def waited(timeout: float) -> float:
        begun = time.monotonic()
        with pytest.raises(pointsman.DeadlineExceeded):
            await db.query("select 1", timeout=timeout)
        return time.monotonic() - begun - timeout

    # The latest first: the alarm must be set anew for each that is earlier.
    late = await asyncio.gather(*(waited(timeout) for timeout in (0.5, 0.3, 0.3, 0.1, 0.2, 0.15)))
    assert all(-0.01 < seconds < 0.15 for seconds in late), late
    await until(lambda: len(router.cancelled) == 6)
    assert len(streams_of(db)[0]) == 0


async def test_a_call_whose_time_was_up_before_it_could_be_sent_is_told_so_and_never_sent(
    router: FakeRouter, db: pointsman.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    await db.query("select 1")
    [stream] = streams_of(db)
    write, stuck = stream._rpc.write, asyncio.Event()

    async def held_up(data: bytes) -> None:
        await stuck.wait()
        await write(data)

    monkeypatch.setattr(stream._rpc, "write", held_up)
    first = asyncio.create_task(db.query("select 2"))
    await asyncio.sleep(0)
    late = asyncio.create_task(db.execute("insert", timeout=0.03))
    # Between the deadline and the alarm, which comes GRACE_S later.
    await asyncio.sleep(0.045)
    stuck.set()
    with pytest.raises(pointsman.DeadlineExceeded, match="never sent") as caught:
        await asyncio.wait_for(late, 1)
    assert caught.value.executed is pointsman.Executed.NO
    await first
    assert [call.query.statement.sql for call in router.calls] == ["select 1", "select 2"]


async def test_calls_that_come_one_after_another_need_no_timer_each(router: FakeRouter, db: pointsman.Client) -> None:
    await db.query("select 1")
    assert db._mux is not None
    alarm = db._mux._alarm
    for _ in range(20):
        await db.query("select 1")
    assert db._mux._alarm is alarm


def test_a_client_used_in_a_second_run_of_asyncio_is_told_so(unused_tcp_port: int) -> None:
    db = pointsman.connect(f"127.0.0.1:{unused_tcp_port}")

    async def first() -> None:
        with pytest.raises(pointsman.Unavailable):
            await db.query("select 1", timeout=0.1)

    async def second() -> None:
        with pytest.raises(RuntimeError, match="another event loop"):
            await db.query("select 1", timeout=0.1)

    asyncio.run(first())
    asyncio.run(second())
