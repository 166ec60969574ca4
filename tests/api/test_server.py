"""The servers: bad input on the wire, health, reflection, ports that cannot be had, drain, and nothing left behind."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from pointsman.v1 import query_service_pb2 as pb
from pointsman.v1 import types_pb2

from router.model.errors import RouterError
from router.model.policy import ServerPolicy
from router.model.reasons import RefuseReason
from tests.api.conftest import ADMIN_AUTH, AUTH, World, eventually
from tests.api.reading import reason_of, trailers

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
QUERY = pb.QueryRequest(statement=types_pb2.Statement(sql="s"))


async def health(channel: grpc.aio.Channel, service: str = "") -> int:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    response = await stub.Check(health_pb2.HealthCheckRequest(service=service))
    return int(response.status)


async def reflected(channel: grpc.aio.Channel) -> list[str]:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
    call = stub.ServerReflectionInfo()
    await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    await call.done_writing()
    response = await call.read()
    return sorted(service.name for service in response.list_services_response.service)


@pytest.mark.parametrize("method", ["Query", "Execute", "ExecuteBatch", "CancelQuery"])
@pytest.mark.parametrize("raw", [b"\xff\xff\xff\xff", b"\x0a\x05\x0a\xff", b"\x0a\x03\x0a\x01\xff"])
async def test_bytes_that_are_no_message(world: World, method: str, raw: bytes) -> None:
    call: Any = world.channel.unary_unary(f"/pointsman.v1.QueryService/{method}")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(raw, metadata=AUTH)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert reason_of(caught.value) == ("BAD_REQUEST", "no")
    assert not world.executor.requests
    assert not world.events.events


async def test_a_message_beyond_the_limit_is_told_so_in_words(world: World) -> None:
    large = pb.QueryRequest(statement=types_pb2.Statement(sql="x" * (1 << 20)))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.query.Query(large, metadata=AUTH)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert reason_of(caught.value) == ("MESSAGE_TOO_LARGE", "no")
    huge = pb.QueryRequest(statement=types_pb2.Statement(sql="x" * (3 << 20)))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.query.Query(huge, metadata=AUTH)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED  # gRPC's own bound, twice ours
    assert (await world.query.Query(QUERY, metadata=AUTH)).result.rows_affected == 1


async def test_a_method_that_does_not_exist(world: World) -> None:
    call: Any = world.channel.unary_unary("/pointsman.v1.QueryService/Nothing")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(b"", metadata=AUTH)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_refused_request_is_counted_once_with_its_tenant(world: World) -> None:
    with pytest.raises(grpc.aio.AioRpcError):
        await world.query.Execute(pb.ExecuteRequest(), metadata=AUTH)
    ((tenant, method, error),) = world.executor.refusals
    assert (tenant, method.value, error.reason) == ("acme", "execute", RefuseReason.STATEMENT_MISSING)


async def test_health_follows_the_serving_state(world: World) -> None:
    services = ("", "pointsman.v1.QueryService", "pointsman.v1.TransactionService")
    assert {await health(world.channel, service) for service in services} == {SERVING}
    await world.server.set_serving(serving=False)
    assert {await health(world.channel, service) for service in services} == {NOT_SERVING}
    await world.server.set_serving(serving=True)
    await world.server.drain(0.1)
    await world.server.set_serving(serving=True)
    assert {await health(world.channel, service) for service in services} == {NOT_SERVING}
    assert await health(world.admin_channel, "pointsman.v1.AdminService") == SERVING
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await health(world.channel, "pointsman.v1.Nothing")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_reflection_lists_what_the_port_serves(world: World) -> None:
    common = ["grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"]
    public = ["pointsman.v1.QueryService", "pointsman.v1.TransactionService"]
    assert await reflected(world.channel) == [*common, *public]
    assert await reflected(world.admin_channel) == [*common, "pointsman.v1.AdminService"]


async def test_reflection_can_be_turned_off(policy: ServerPolicy) -> None:
    world = World(replace(policy, reflection=False))
    await world.start()
    try:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await reflected(world.channel)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    finally:
        await world.stop()


async def test_a_port_in_use_is_told_with_its_address_and_setting(policy: ServerPolicy) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for field, setting in (("listen", "server.listen"), ("admin_listen", "server.admin_listen")):
            world = World(replace(policy, **{field: address}))
            with pytest.raises(RouterError) as caught:
                await world.server.start()
            await world.server.stop()
            assert caught.value.reason is RefuseReason.CONFIG_INVALID
            assert caught.value.message.startswith(f"cannot listen on {address} ({setting}): the port is in use")


async def test_a_second_router_cannot_share_the_port(world: World, policy: ServerPolicy) -> None:
    second = World(replace(policy, listen=world.server.public_address))
    with pytest.raises(RouterError, match="in use"):
        await second.server.start()
    await second.server.stop()


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("no-such-host.invalid:7432", "cannot be resolved"),
        ("203.0.113.7:0", "does not belong to this machine"),
        ("127.0.0.1", "HOST:PORT"),
    ],
)
async def test_an_address_that_cannot_be_had(policy: ServerPolicy, address: str, words: str) -> None:
    world = World(replace(policy, listen=address))
    with pytest.raises(RouterError, match=words):
        await world.server.start()
    await world.server.stop()


async def test_ipv6_and_names_can_be_had(policy: ServerPolicy) -> None:
    world = World(replace(policy, listen="localhost:0"))
    await world.start()
    assert world.server.public_address.startswith("localhost:")
    assert (await world.query.Query(QUERY, metadata=AUTH)).result.rows_affected == 1
    await world.stop()


async def test_a_drain_refuses_new_work_and_waits_for_what_runs(world: World) -> None:
    world.executor.run_with = world.executor.wait_for_gate
    slow = pb.QueryRequest(statement=types_pb2.Statement(sql="slow"))
    running = asyncio.ensure_future(_call(world.query.Query(slow, metadata=AUTH)))
    await eventually(lambda: world.executor.running == 1)
    draining = asyncio.create_task(world.server.drain(3.0))
    await asyncio.sleep(0.02)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.query.Query(QUERY, metadata=AUTH)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert reason_of(caught.value) == ("DRAINING", "no")
    assert int(trailers(caught.value)["grpc-retry-pushback-ms"]) > 0
    assert len(world.executor.refusals) == 1
    assert not draining.done()
    world.executor.gate.set()
    assert (await running).receipt.endpoint == "pg1"
    assert await draining


async def test_a_drain_ends_with_its_grace_and_stop_cancels_the_rest(world: World) -> None:
    world.executor.run_with = world.executor.wait_for_gate
    slow = pb.QueryRequest(statement=types_pb2.Statement(sql="slow"))
    running = asyncio.ensure_future(_call(world.query.Query(slow, metadata=AUTH)))
    await eventually(lambda: world.executor.running == 1)
    assert not await world.server.drain(0.05)
    await world.server.stop()
    assert world.executor.running == 0
    with pytest.raises(grpc.aio.AioRpcError):
        await running


async def test_health_watchers_do_not_hold_up_the_end(world: World) -> None:
    stub: Any = health_pb2_grpc.HealthStub(world.channel)
    call = stub.Watch(health_pb2.HealthCheckRequest())
    assert (await call.read()).status == SERVING
    began = asyncio.get_running_loop().time()
    assert await world.server.drain(5.0)
    assert (await call.read()).status == NOT_SERVING
    await world.server.stop()
    assert asyncio.get_running_loop().time() - began < 2.0


async def test_nothing_is_left_behind(policy: ServerPolicy) -> None:
    before = asyncio.all_tasks()
    world = World(policy)
    await world.start()
    await world.query.Query(QUERY, metadata=AUTH)
    call = world.query.Multiplex(metadata=AUTH)
    await call.write(pb.MultiplexRequest(calls=[pb.MultiplexCall(id=1, query=QUERY)]))
    await call.read()
    assert (await world.query.Query(QUERY, metadata=AUTH)).receipt.attempts == 2
    await world.stop()
    await world.server.stop()
    await eventually(lambda: asyncio.all_tasks() <= before)


async def test_operators_are_served_during_a_drain(world: World) -> None:
    from pointsman.v1 import admin_service_pb2

    await world.server.drain(0.1)
    request = admin_service_pb2.ListTenantsRequest()
    assert (await world.admin.ListTenants(request, metadata=ADMIN_AUTH)).tenants[0].name == "acme"


async def _call(call: Any) -> Any:
    return await call
