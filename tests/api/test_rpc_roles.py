"""Every RPC of every service stands in one table of roles, and is refused to all others."""

from __future__ import annotations

from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.descriptor import MethodDescriptor
from pointsman.v1 import query_service_pb2 as pb
from pointsman.v1 import types_pb2

from router.api.rpc_roles import IN_MULTIPLEX, NEEDED, check_role
from router.api.server import ADMIN_SERVICE, PUBLIC_SERVICES
from router.engine.directory import token_id
from router.model.callers import CallerGrant, CallerRole
from router.model.errors import RouterError
from router.model.identity import ClusterName, TenantName
from router.model.reasons import RefuseReason
from router.model.topology import Login, Tenant, Topology
from tests.api.conftest import World
from tests.api.reading import reason_of
from tests.api.test_identity import call_any
from tests.support.builders import replace_tenants

PUBLIC = [method for service in PUBLIC_SERVICES for method in service.methods]
METHODS = [*PUBLIC, *ADMIN_SERVICE.methods]
READS = {"Query", "StreamQuery", "CopyOut", "CancelQuery", "Multiplex", "Listen"}
STATEMENT = types_pb2.Statement(sql="s")


def test_the_table_is_the_services() -> None:
    assert set(NEEDED) == {method.full_name for method in METHODS}


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@pytest.mark.parametrize("role", CallerRole)
def test_who_may_what(method: MethodDescriptor, role: CallerRole) -> None:
    if method.containing_service is ADMIN_SERVICE:
        allowed = role is CallerRole.ADMIN
    else:
        allowed = role is CallerRole.WRITER or (role is CallerRole.READER and method.name in READS)
    if allowed:
        check_role(role, NEEDED[method.full_name], method.name)
        return
    with pytest.raises(RouterError) as caught:
        check_role(role, NEEDED[method.full_name], method.name)
    assert caught.value.reason is RefuseReason.ROLE_DENIED


@pytest.mark.parametrize("role", CallerRole)
def test_what_is_not_in_the_table_is_open_to_nobody(role: CallerRole) -> None:
    with pytest.raises(RouterError, match="open to nobody"):
        check_role(role, NEEDED.get("pointsman.v1.QueryService.New"), "New")


def test_every_kind_of_call_in_a_stream_has_a_role() -> None:
    kinds = {field.name for field in pb.MultiplexCall.DESCRIPTOR.oneofs_by_name["call"].fields}
    assert set(IN_MULTIPLEX) == kinds - {"cancel"}


@pytest.fixture
def reading(world: World) -> World:
    """A world in which a token may read."""
    callers = (CallerGrant(token_id("reader"), CallerRole.READER),)
    acme = Tenant(TenantName("acme"), ClusterName("main"), "acme", Login("acme"), callers=callers)
    replace_tenants(world.directory, Topology({}, {acme.name: acme}))
    return world


@pytest.mark.parametrize("method", [one for one in PUBLIC if one.name not in READS], ids=lambda method: method.name)
async def test_a_reader_calls_nothing_that_writes(reading: World, method: MethodDescriptor) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call_any(reading.channel, method, (("authorization", "Bearer reader"),))
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert reason_of(caught.value) == ("ROLE_DENIED", "no")
    assert not reading.executor.requests
    assert not reading.sessions.opened
    assert not reading.copies.requests


async def test_a_reader_reads_and_writes_nothing_in_a_stream(reading: World) -> None:
    call: Any = reading.query.Multiplex(metadata=(("authorization", "Bearer reader"),))
    batch = pb.ExecuteBatchRequest(steps=[pb.BatchStep(statement=STATEMENT)])
    calls = [
        pb.MultiplexCall(id=1, query=pb.QueryRequest(statement=STATEMENT)),
        pb.MultiplexCall(id=2, execute=pb.ExecuteRequest(statement=STATEMENT)),
        pb.MultiplexCall(id=3, batch=batch),
    ]
    await call.write(pb.MultiplexRequest(calls=calls))
    replies: dict[int, str | None] = {}
    while len(replies) < 3:
        replies.update({reply.id: reply.WhichOneof("reply") for reply in (await call.read()).replies})
    assert replies == {1: "query", 2: "failure", 3: "failure"}
    assert len(reading.executor.requests) == 1
    call.cancel()
