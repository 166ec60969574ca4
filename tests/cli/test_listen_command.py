"""`pointsman listen` over a scripted router: what it prints, for people and for programs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import grpc
from pointsman.v1 import query_service_pb2 as pb

from tests.cli.conftest import Command, Ended
from tests.sdk.fake_router import FakeRouter, abort_with, status


def note(payload: str) -> pb.ListenResponse:
    sent = pb.ListenNotification(channel="jobs", payload=payload, process_id=3)
    return pb.ListenResponse(notifications=pb.ListenNotifications(notifications=[sent]))


async def said(request: pb.ListenRequest, context: Any) -> AsyncIterator[pb.ListenResponse]:
    yield pb.ListenResponse(ready=pb.ListenReady(endpoint="one", heartbeat_ms=10_000))
    yield note("\x1b[31m1")
    yield pb.ListenResponse(gap=pb.ListenGap(reason=pb.GAP_REASON_SLOW_CONSUMER, since_ms=10, missed=7))
    yield note("2")
    await asyncio.Event().wait()


async def listen(command: Command, fake: FakeRouter, *arguments: str) -> Ended:
    given = ("--address", fake.address, "--tenant", "acme", "--token", "t")
    return await asyncio.to_thread(command, "listen", *arguments, *given)


async def test_one_line_each(command: Command, fake: FakeRouter):
    fake.on_listen = said
    ended = await listen(command, fake, "jobs", "news", "--count", "2")
    assert ended.code == 0
    begun, first, missing, second = ended.out.splitlines()
    assert begun == "listening on one to jobs, news"
    assert (first.startswith("jobs: "), "\x1b" in first, second) == (True, False, "jobs: 2")
    assert missing.startswith("-- gap (slow_consumer): ")
    assert missing.endswith("7 for certain")


async def test_json_lines(command: Command, fake: FakeRouter):
    fake.on_listen = said
    ended = await listen(command, fake, "jobs", "--count", "2", "--json")
    lines = [json.loads(line) for line in ended.out.splitlines()]
    assert [line["event"] for line in lines] == ["listening", "notification", "gap", "notification"]
    assert lines[1] == {"event": "notification", "channel": "jobs", "payload": "\x1b[31m1", "process_id": 3}
    assert (lines[2]["reason"], lines[2]["missed"]) == ("slow_consumer", 7)


async def test_while_nothing_is_heard_it_says_so(command: Command, fake: FakeRouter):
    async def interrupted(request: pb.ListenRequest, context: Any) -> AsyncIterator[pb.ListenResponse]:
        yield pb.ListenResponse(ready=pb.ListenReady(endpoint="one", heartbeat_ms=10_000))
        yield pb.ListenResponse(heartbeat=pb.ListenHeartbeat(listening=False))
        await asyncio.sleep(1.5)
        yield pb.ListenResponse(gap=pb.ListenGap(reason=pb.GAP_REASON_BACKEND_FAILOVER, since_ms=10))
        yield pb.ListenResponse(ready=pb.ListenReady(endpoint="two", heartbeat_ms=10_000))
        yield note("1")
        await asyncio.Event().wait()

    fake.on_listen = interrupted
    ended = await listen(command, fake, "jobs", "--count", "1", "--json")
    lines = [json.loads(line) for line in ended.out.splitlines()]
    assert [line["event"] for line in lines] == ["listening", "waiting", "listening", "gap", "notification"]
    assert [line["endpoint"] for line in lines[:3]] == ["one", "", "two"]


async def test_a_refusal(command: Command, fake: FakeRouter):
    async def refuse(request: pb.ListenRequest, context: Any) -> AsyncIterator[pb.ListenResponse]:
        words = "tenant acme may not listen to 'jobs'"
        await abort_with(context, status(grpc.StatusCode.PERMISSION_DENIED, words, reason="CHANNEL_DENIED"))
        yield pb.ListenResponse()

    fake.on_listen = refuse
    ended = await listen(command, fake, "jobs")
    assert (ended.code, "may not listen to 'jobs'" in ended.err) == (1, True)
