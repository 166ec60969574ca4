"""Listen over a real server and fed streams: what a caller gets, when it ends, and that its end is noticed."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import grpc.aio
import pytest
from pointsman.v1 import query_service_pb2 as pb

from router.api.hearing import GAP_REASONS, MOST_CHANNELS
from router.engine.directory import token_id
from router.engine.listener import Listener
from router.model.callers import CallerGrant, CallerRole
from router.model.errors import Code, RouterError
from router.model.identity import ClusterName, EndpointName, Generation, TenantName, TopologyNumber
from router.model.listening import Gap, Notification
from router.model.reasons import GapReason, RefuseReason
from router.model.request import Access, Method
from router.model.topology import Login, Tenant, TenantChanges
from tests.api.conftest import AUTH, World, eventually
from tests.api.reading import reason_of

HOME = (EndpointName("pg1"), Generation(1))


async def begun(world: World, *channels: str, metadata: Any = AUTH) -> tuple[Any, Listener]:
    """A stream that has got its ready, and the engine's end of it."""
    call = world.query.Listen(pb.ListenRequest(channels=channels or ("jobs",)), metadata=metadata)
    await eventually(lambda: world.listeners.open_ones)
    one = world.listeners.open_ones[-1]
    one.ready(HOME, TopologyNumber(7))
    ready = (await call.read()).ready
    assert (ready.endpoint, ready.topology, ready.heartbeat_ms) == ("pg1", 7, 10_000)
    return call, one


def payloads(message: pb.ListenResponse) -> list[str]:
    return [one.payload for one in message.notifications.notifications]


async def to_end(call: Any) -> list[pb.ListenResponse]:
    """What still comes; AioRpcError when that is an error."""
    found = []
    while (message := await call.read()) is not grpc.aio.EOF:
        found.append(message)
    return found


async def ending(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await to_end(call)
    return caught.value.code(), reason_of(caught.value)[0]


async def test_a_callers_stream(world: World) -> None:
    call, one = await begun(world, "jobs", "news", "jobs")
    assert one.channels == {"jobs", "news"}
    (asked,) = world.listeners.requests
    assert (asked.method, asked.access, len(asked.request_id)) == (Method.LISTEN, Access.READ_ONLY, 22)
    one.notify(Notification("jobs", "päylöad", 42), 0.0)
    one.notify(Notification("news", "", 42), 0.0)
    sent = (await call.read()).notifications.notifications
    found = [(each.channel, each.payload, each.process_id) for each in sent]
    assert found == [("jobs", "päylöad", 42), ("news", "", 42)]
    now = asyncio.get_running_loop().time()
    one._put(Gap(GapReason.BACKEND_FAILOVER, now - 1.5, 3))
    gap = (await call.read()).gap
    assert (gap.reason, gap.missed) == (pb.GAP_REASON_BACKEND_FAILOVER, 3)
    assert 1500 <= gap.since_ms < 2500
    call.cancel()
    await eventually(lambda: world.listeners.closed == 1)


def test_every_gap_has_its_word() -> None:
    assert set(GAP_REASONS) == set(GapReason)
    assert len({*GAP_REASONS.values()}) == len(GAP_REASONS)


async def test_a_heartbeat_comes_when_nothing_else_does(world: World) -> None:
    world.listeners.heartbeat_s = 0.02
    call, one = await begun(world)
    assert (await call.read()).heartbeat.listening
    one.interrupted(0.0)
    while (beat := (await call.read()).heartbeat).listening:
        pass
    assert not beat.listening
    call.cancel()
    await eventually(lambda: world.listeners.closed == 1)


async def test_what_the_engine_refuses(world: World) -> None:
    world.listeners.refuse_with = RouterError(
        Code.RESOURCE_EXHAUSTED, RefuseReason.QUOTA, "too many", numbers={"limit": 64}
    )
    call = world.query.Listen(pb.ListenRequest(channels=["jobs"]), metadata=AUTH)
    assert await ending(call) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA")
    call = world.query.Listen(pb.ListenRequest(channels=["jobs"] * (MOST_CHANNELS + 1)), metadata=AUTH)
    assert await ending(call) == (grpc.StatusCode.INVALID_ARGUMENT, "BAD_REQUEST")
    assert len(world.listeners.requests) == 1
    assert [method for _, method, _ in world.executor.refusals] == [Method.LISTEN]


async def test_an_error_ends_it_behind_what_had_come(world: World) -> None:
    call, one = await begun(world)
    one.notify(Notification("jobs", "last", 1), 0.0)
    one.end(RouterError(Code.UNAVAILABLE, RefuseReason.NO_BACKEND, "gone"))
    assert payloads(await call.read()) == ["last"]
    assert await ending(call) == (grpc.StatusCode.UNAVAILABLE, "NO_BACKEND")
    assert world.listeners.closed == 1


async def test_a_drain_is_told_first_and_does_not_take_the_whole_grace(world: World) -> None:
    call, one = await begun(world)
    draining = asyncio.create_task(world.server.drain(5.0))
    assert (await call.read()).WhichOneof("event") == "draining"
    one.notify(Notification("jobs", "still", 1), 0.0)
    assert payloads(await call.read()) == ["still"]
    assert await ending(call) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
    assert await asyncio.wait_for(draining, 2.0)
    assert world.listeners.closed == 1


async def test_a_reader_may_listen_until_its_token_is_taken_away(world: World) -> None:
    callers = (CallerGrant(token_id("reader"), CallerRole.READER),)
    acme = Tenant(TenantName("acme"), ClusterName("main"), "acme", Login("acme"), callers=callers)
    world.directory.change(TenantChanges((acme,)))
    call, one = await begun(world, metadata=(("authorization", "Bearer reader"),))
    world.directory.change(TenantChanges(removed=(acme.name,)))
    one.notify(Notification("jobs", "not for you any more", 1), 0.0)
    assert await ending(call) == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")
    assert world.listeners.closed == 1
