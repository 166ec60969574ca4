"""Listening against a scripted Listen: what comes, what is told to be missing, and how it comes back."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import grpc
import pointsman
import pytest
from pointsman import Gap, GapReason, Notification
from pointsman.loop_thread import loop_thread
from pointsman.v1 import query_service_pb2 as pb

from tests.sdk.fake_router import FakeRouter, abort_with, status
from tests.support.eventually import eventually

Said = pb.ListenResponse | Exception | float


def ready(endpoint: str = "one", heartbeat_ms: int = 10_000) -> pb.ListenResponse:
    return pb.ListenResponse(ready=pb.ListenReady(endpoint=endpoint, heartbeat_ms=heartbeat_ms))


def note(*payloads: str) -> pb.ListenResponse:
    sent = [pb.ListenNotification(channel="jobs", payload=one, process_id=3) for one in payloads]
    return pb.ListenResponse(notifications=pb.ListenNotifications(notifications=sent))


def gap(reason: pb.GapReason.ValueType, since_ms: int = 2000, missed: int = 0) -> pb.ListenResponse:
    return pb.ListenResponse(gap=pb.ListenGap(reason=reason, since_ms=since_ms, missed=missed))


def beat(*, listening: bool) -> pb.ListenResponse:
    return pb.ListenResponse(heartbeat=pb.ListenHeartbeat(listening=listening))


DRAINING = pb.ListenResponse(draining=pb.ListenDraining())
BROKEN = status(grpc.StatusCode.UNAVAILABLE)
DRAINED = status(grpc.StatusCode.UNAVAILABLE, "going", reason="DRAINING", executed="no")


class Script:
    """Each stream says its own lines, then ends with its last one, or hangs."""

    def __init__(self, *streams: list[Any]) -> None:
        self.streams = list(streams)
        self.requests: list[pb.ListenRequest] = []
        self.ended = 0
        self.broke: list[datetime] = []
        """When streams were ended by their script."""

    async def __call__(self, request: pb.ListenRequest, context: Any) -> AsyncIterator[pb.ListenResponse]:
        self.requests.append(request)
        lines = self.streams.pop(0) if self.streams else [ready("last")]
        try:
            for line in lines:
                if isinstance(line, pb.ListenResponse):
                    yield line
                elif isinstance(line, float):
                    await asyncio.sleep(line)
                else:
                    self.broke.append(datetime.now(UTC))
                    await abort_with(context, line)
            await asyncio.Event().wait()
        finally:
            self.ended += 1


async def ended(script: Script) -> None:
    await eventually(lambda: script.ended == 1, within_s=3, what="the end of the stream")


async def test_what_is_sent_comes(router: FakeRouter, db: pointsman.Client) -> None:
    script = router.on_listen = Script([ready(), note("1", "2"), beat(listening=True), note("3")])
    async with db.listen("jobs", "news") as heard:
        assert (heard.endpoint, heard.channels) == ("one", ("jobs", "news"))
        got = [await anext(heard), await heard.next(), await heard.next()]
        assert got == [Notification("jobs", one, 3) for one in "123"]
        assert await heard.next(timeout=0.02) is None
    await ended(script)
    assert [*script.requests[0].channels] == ["jobs", "news"]
    assert router.metadata[0]["authorization"] == "Bearer secret"
    assert [item async for item in heard] == []


async def test_what_the_router_tells_to_be_missing(router: FakeRouter, db: pointsman.Client) -> None:
    router.on_listen = Script([
        ready(), beat(listening=False), gap(pb.GAP_REASON_BACKEND_FAILOVER), ready("two"), note("1"),
        gap(pb.GAP_REASON_SLOW_CONSUMER, 100, 7), note("2"),
    ])  # fmt: skip
    heard = db.listen("jobs")
    missing = await heard.next()
    assert isinstance(missing, Gap)
    assert missing.reason is GapReason.BACKEND_FAILOVER
    assert heard.endpoint == "two"  # it listens already: whoever reads anew now misses nothing
    assert 1.9 < (datetime.now(UTC) - missing.since).total_seconds() < 4
    assert isinstance(await heard.next(), Notification)
    slow = await heard.next()
    assert isinstance(slow, Gap)
    assert (slow.reason, slow.missed) == (GapReason.SLOW_CONSUMER, 7)
    assert isinstance(await heard.next(), Notification)
    await heard.aclose()


@pytest.mark.parametrize(
    "end",
    [
        [DRAINING, DRAINED],
        [status(grpc.StatusCode.UNAVAILABLE)],
        [status(grpc.StatusCode.INTERNAL)],
        [status(grpc.StatusCode.UNAUTHENTICATED, reason="UNAUTHENTICATED")],
    ],
)
async def test_a_stream_that_ends_is_a_gap(router: FakeRouter, db: pointsman.Client, end: list[Any]) -> None:
    script = router.on_listen = Script([ready(), note("1"), *end], [ready("two"), note("2")])
    began = datetime.now(UTC)
    heard = [item async for item in first(3, db.listen("jobs"))]
    assert [type(item) for item in heard] == [Notification, Gap, Notification]
    assert heard[1].reason is GapReason.RECONNECT
    assert began <= heard[1].since <= datetime.now(UTC)
    assert len(script.requests) == 2


@pytest.mark.parametrize("pause", [lambda: asyncio.sleep(0.1), lambda: blocked(0.1)], ids=["waits", "computes"])
def test_a_gap_begins_before_the_break_also_for_who_is_busy(pause: Callable[[], Awaitable[None]]) -> None:
    """What came before the break is taken after it, and says nothing about when the router was last heard."""
    thread, fake = loop_thread(), FakeRouter()  # on another loop, since this one is held up
    script = fake.on_listen = Script([ready(), *map(note, "123"), BROKEN], [ready("two")])

    async def use() -> Gap:
        async with pointsman.connect(fake.address, timeout=5) as db, db.listen("jobs") as heard:
            while not script.broke:
                await pause()
            await asyncio.sleep(0.05)
            async for item in heard:
                if isinstance(item, Gap):
                    return item
                await pause()
        raise AssertionError

    thread.run(fake.start())
    try:
        assert asyncio.run(use()).since <= script.broke[0]
    finally:
        thread.run(fake.stop())


async def blocked(seconds: float) -> None:
    time.sleep(seconds)  # noqa: ASYNC251 -- a program that computes


async def test_a_gap_begins_at_the_message_before_the_last_for_who_waits(
    router: FakeRouter, db: pointsman.Client
) -> None:
    router.on_listen = Script([ready(), 0.2, note("1"), 0.2, beat(listening=True), 0.2, BROKEN], [ready("two")])
    async with db.listen("jobs") as heard:
        await heard.next()
        took = datetime.now(UTC)
        missing = await heard.next()
        assert isinstance(missing, Gap)
        assert abs((missing.since - took).total_seconds()) < 0.15


async def first(count: int, listening: pointsman.Listening) -> AsyncIterator[Any]:
    async with listening:
        for _ in range(count):
            yield await listening.next()


async def test_a_restarted_router_is_found_again(router: FakeRouter, db: pointsman.Client) -> None:
    router.on_listen = Script([ready()], [ready("two"), note("after")])
    async with db.listen("jobs") as heard:
        port = int(router.address.rpartition(":")[2])
        await router.stop()
        await asyncio.sleep(0.3)
        await router.start(port)
        assert isinstance(await heard.next(), Gap)
        assert await heard.next() == Notification("jobs", "after", 3)


async def test_a_router_that_says_nothing_is_left(router: FakeRouter, db: pointsman.Client) -> None:
    router.on_listen = Script([ready(heartbeat_ms=30)], [ready("two")])
    async with db.listen("jobs") as heard:
        for _ in range(3):
            assert await heard.next(timeout=0.01) is None  # short waits do not hide the silence
        missing = await heard.next(timeout=3)
        assert isinstance(missing, Gap)
        assert heard.endpoint == "two"


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (status(grpc.StatusCode.RESOURCE_EXHAUSTED, "64 streams", reason="QUOTA"), pointsman.ResourceExhausted),
        (status(grpc.StatusCode.PERMISSION_DENIED, "no", reason="CHANNEL_DENIED"), pointsman.PermissionDenied),
        (status(grpc.StatusCode.UNAUTHENTICATED, "no", reason="UNAUTHENTICATED"), pointsman.Unauthenticated),
    ],
)
async def test_what_no_other_stream_would_mend_is_raised(
    router: FakeRouter, db: pointsman.Client, failure: Any, kind: type[Exception]
) -> None:
    script = router.on_listen = Script([failure])
    with pytest.raises(kind):
        await db.listen("jobs").ready()
    assert len(script.requests) == 1


async def test_an_error_is_raised_again_and_is_no_silence(router: FakeRouter, db: pointsman.Client) -> None:
    router.on_listen = Script([ready(), status(grpc.StatusCode.PERMISSION_DENIED, "no", reason="TENANT_DENIED")])
    heard = db.listen("jobs")
    for _ in range(3):
        with pytest.raises(pointsman.PermissionDenied):
            await heard.next(timeout=1)
    await heard.aclose()
    assert await heard.next(timeout=1) is None


async def test_a_refusal_that_may_pass_is_asked_again_until_the_timeout(
    router: FakeRouter, db: pointsman.Client
) -> None:
    script = router.on_listen = Script(*[[status(grpc.StatusCode.UNAVAILABLE, "none", reason="NO_BACKEND")]] * 99)
    began = time.monotonic()
    with pytest.raises(pointsman.Unavailable, match="none"):
        async with db.listen("jobs", timeout=0.3):
            pass
    assert time.monotonic() - began < 2
    assert len(script.requests) > 1


async def test_a_cancelled_wait_loses_nothing(router: FakeRouter, db: pointsman.Client) -> None:
    script = router.on_listen = Script([ready(), 0.1, note("1")])
    async with db.listen("jobs") as heard:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await heard.next()
        assert await heard.next() == Notification("jobs", "1", 3)
    assert len(script.requests) == 1


async def test_a_listening_that_is_dropped_ends(router: FakeRouter, db: pointsman.Client) -> None:
    script = router.on_listen = Script([ready(), note("1")])
    async for _ in db.listen("jobs"):
        break
    gc.collect()
    await ended(script)


async def test_the_end_of_the_client_ends_it(router: FakeRouter) -> None:
    router.on_listen = Script([ready()])
    client = pointsman.connect(router.address, timeout=5)
    heard = await client.listen("jobs").ready()
    waiting = asyncio.create_task(heard.next())
    await asyncio.sleep(0.02)
    await client.close()
    with pytest.raises(pointsman.ClientClosed):
        await waiting


async def test_no_channel_is_a_mistake(db: pointsman.Client) -> None:
    with pytest.raises(ValueError, match="channel"):
        db.listen()


async def test_the_synchronous_twin(router: FakeRouter) -> None:
    router.on_listen = Script([ready(), note("1"), status(grpc.StatusCode.UNAVAILABLE)], [ready("two")])

    def use() -> list[Any]:
        with pointsman.sync.connect(router.address, timeout=5) as db, db.listen("jobs") as heard:
            assert (heard.endpoint, heard.channels) == ("one", ("jobs",))
            return [next(heard), next(iter(heard)), heard.next(timeout=0.02), heard.endpoint]

    one, missing, nothing, endpoint = await asyncio.to_thread(use)
    assert (one, nothing, endpoint) == (Notification("jobs", "1", 3), None, "two")
    assert isinstance(missing, Gap)
