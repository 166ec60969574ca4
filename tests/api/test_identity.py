"""Nothing is served without proof of who calls, on either port; each port knows only its own tokens."""

from __future__ import annotations

from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.descriptor import MethodDescriptor
from pointsman.v1 import query_service_pb2 as pb
from pointsman.v1 import types_pb2

from router.api.proving import bearer_token
from router.api.server import ADMIN_SERVICE, PUBLIC_SERVICES
from router.engine.directory import token_id
from router.model.callers import Evidence
from router.model.errors import RouterError
from router.model.identity import TenantName
from router.model.reasons import RefuseReason
from router.model.topology import Secret
from tests.api.conftest import ADMIN_TOKEN, TOKEN, World
from tests.api.reading import reason_of

ALL_METHODS = [method for service in (*PUBLIC_SERVICES, ADMIN_SERVICE) for method in service.methods]
QUERY = pb.QueryRequest(statement=types_pb2.Statement(sql="s"))


async def call_any(channel: grpc.aio.Channel, method: MethodDescriptor, metadata: Any) -> Any:
    """Call a method of any kind with an empty message, and read to the end."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    if method.client_streaming:
        call: Any = channel.stream_stream(path)(metadata=metadata)
        await call.done_writing()
    elif method.server_streaming:
        call = channel.unary_stream(path)(b"", metadata=metadata)
    else:
        return await channel.unary_unary(path)(b"", metadata=metadata, timeout=5)
    return await call.read()


@pytest.mark.parametrize("method", ALL_METHODS, ids=lambda method: method.name)
@pytest.mark.parametrize("authorization", [None, "", "Bearer", "Bearer wrong", "Basic YTpi", "the other port's"])
async def test_no_method_without_proof(world: World, method: MethodDescriptor, authorization: str | None) -> None:
    admin = method.containing_service is ADMIN_SERVICE
    if authorization == "the other port's":
        authorization = f"Bearer {TOKEN if admin else ADMIN_TOKEN}"
    metadata = () if authorization is None else (("authorization", authorization),)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call_any(world.admin_channel if admin else world.channel, method, metadata)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert reason_of(caught.value) == ("UNAUTHENTICATED", "no")
    assert not world.executor.requests
    assert not world.operator.log
    assert not world.sessions.opened


@pytest.mark.parametrize("method", ALL_METHODS, ids=lambda method: method.name)
async def test_no_port_serves_the_others_methods(world: World, method: MethodDescriptor) -> None:
    admin = method.containing_service is ADMIN_SERVICE
    metadata = (("authorization", f"Bearer {ADMIN_TOKEN if admin else TOKEN}"),)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call_any(world.channel if admin else world.admin_channel, method, metadata)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("claim", ["umbrella", "nobody", "ACME"])
async def test_a_token_serves_its_own_tenant_only(world: World, claim: str) -> None:
    metadata = (("authorization", f"Bearer {TOKEN}"), ("pointsman-tenant", claim))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.query.Query(QUERY, metadata=metadata)
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert reason_of(caught.value) == ("TENANT_DENIED", "no")
    ((tenant, _, error),) = world.executor.refusals
    assert (tenant, error.reason) == (TenantName(""), RefuseReason.TENANT_DENIED)


async def test_a_token_of_two_tenants_must_choose(world: World) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.query.Query(QUERY, metadata=(("authorization", "Bearer both"),))
    assert reason_of(caught.value)[0] == "TENANT_DENIED"
    for tenant in ("acme", "umbrella"):
        metadata = (("authorization", "bearer both"), ("pointsman-tenant", tenant))
        await world.query.Query(QUERY, metadata=metadata)
    assert world.executor.tenants == ["acme", "umbrella"]


async def test_an_operator_may_hold_any_of_the_tokens(world: World) -> None:
    for token in (ADMIN_TOKEN, "first-admin"):
        info = await world.admin.GetServerInfo(
            _message("GetServerInfo"), metadata=(("authorization", f"Bearer {token}"),)
        )
        assert info.version == "1.2.3"


def test_no_admin_token_means_nobody() -> None:
    from router.api.admin_identity import AdminIdentity

    with pytest.raises(RouterError, match=r"admin\.tokens"):
        AdminIdentity().admit(Evidence(token_id("anything")), None)
    with pytest.raises(RouterError):
        AdminIdentity((Secret(""),)).admit(Evidence(token_id("")), None)


@pytest.mark.parametrize(
    ("header", "token"),
    [(None, None), ("", None), ("Bearer", None), ("Bearer  ", None), ("bearer a", "a"), ("Token a", None)],
)
def test_only_bearer_tokens_count(header: str | None, token: str | None) -> None:
    assert bearer_token(header) == token


def _message(name: str) -> Any:
    from google.protobuf.message_factory import GetMessageClass

    return GetMessageClass(ADMIN_SERVICE.methods_by_name[name].input_type)()
