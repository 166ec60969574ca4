"""A router whose callers prove themselves by certificates and signed tokens, over real TLS."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from pointsman.v1 import query_service_pb2 as pb
from pointsman.v1 import query_service_pb2_grpc, types_pb2

from router.engine.directory import token_id
from router.model.callers import CallerGrant, CallerId, CallerRole
from router.model.identity import ClusterName, TenantName
from router.model.policy import ServerPolicy
from router.model.port_policies import JwtPolicy, ListenerTls
from router.model.topology import Login, Tenant, Topology
from tests.api.conftest import World
from tests.support.builders import replace_tenants
from tests.support.certificates import Authority, Issued
from tests.support.signed_tokens import AUDIENCE, ISSUER, Issuer

QUERY = pb.QueryRequest(statement=types_pb2.Statement(sql="s"))
WEB = "spiffe://example.org/acme/web"
READER = "spiffe://example.org/acme/reports"
GLOBEX = "spiffe://example.org/globex/web"
BOTH = "spiffe://example.org/both"
HASHED = "a-token-of-which-the-router-knows-the-hash"
OPERATOR = "spiffe://operators.example.org/night-shift"


def tenants() -> tuple[Tenant, ...]:
    acme = {WEB: True, READER: False, BOTH: True, "dns:web.acme.example": True, "jwt:acme-web": True}
    acme |= {"jwt:acme-reports": False, token_id(HASHED): True, token_id("reader-token"): False}
    globex = {GLOBEX: True, BOTH: False, "jwt:globex-web": True}
    return tuple(
        Tenant(TenantName(name), ClusterName("main"), name, Login(name), callers=_grants(callers))
        for name, callers in (("acme", acme), ("globex", globex))
    )


def _grants(callers: dict[str, bool]) -> tuple[CallerGrant, ...]:
    roles = {True: CallerRole.WRITER, False: CallerRole.READER}
    return tuple(CallerGrant(CallerId(who), roles[writes]) for who, writes in callers.items())


def topology(*found: Tenant) -> Topology:
    return Topology({}, {one.name: one for one in found})


class ProofWorld:
    """The world of this folder's tests, and callers of every kind."""

    def __init__(self, directory: Path, *, mutual: bool, leeway_s: float = 0.0) -> None:
        self.authority, self.operators, self.issuer = Authority(), Authority("operators"), Issuer()
        self.directory = directory
        self.jwks = directory / "keys.json"
        self.issuer.publish(self.jwks)
        self.mutual = mutual
        self.leeway_s = leeway_s
        self.keys = str(self.jwks)

    def policy(self, policy: ServerPolicy) -> ServerPolicy:
        found = {}
        for name, authority in (("tls", self.authority), ("admin_tls", self.operators)):
            cert, key, ca = (self.directory / f"{name}.{part}" for part in ("pem", "key", "ca"))
            authority.issue(dns=["localhost"]).write(cert, key)
            ca.write_bytes(authority.pem)
            found[name] = ListenerTls(str(cert), str(key), str(ca) if self.mutual else "")
        jwt = JwtPolicy(self.keys, ISSUER, AUDIENCE, leeway_s=self.leeway_s)
        return replace(policy, jwt=jwt, **found)

    @asynccontextmanager
    async def serving(self, policy: ServerPolicy) -> AsyncIterator[World]:
        world = World(self.policy(policy))
        replace_tenants(world.directory, topology(*tenants()))
        operators = (CallerGrant(CallerId(OPERATOR), CallerRole.ADMIN),)
        world.operators.apply((), operators)
        await world.start()
        try:
            yield world
        finally:
            await world.stop()

    def channel(self, world: World, own: Issued | None, *, admin: bool = False) -> grpc.aio.Channel:
        roots = (self.operators if admin else self.authority).pem
        credentials = grpc.ssl_channel_credentials(roots, own.key if own else None, own.cert if own else None)
        address = world.server.admin_address if admin else world.server.public_address
        options = [("grpc.use_local_subchannel_pool", 1)]
        return grpc.aio.secure_channel(address.replace("127.0.0.1", "localhost"), credentials, options=options)

    async def query(self, world: World, own: Issued | None = None, *metadata: tuple[str, str]) -> Any:
        async with self.channel(world, own) as channel:
            stub: Any = query_service_pb2_grpc.QueryServiceStub(channel)
            return await stub.Query(QUERY, metadata=metadata, timeout=5)


def bearer(token: str) -> tuple[str, str]:
    return ("authorization", f"Bearer {token}")


def claim(tenant: str) -> tuple[str, str]:
    return ("pointsman-tenant", tenant)
