"""A real server over a scripted engine, and channels to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio
import pytest
from pointsman.v1 import admin_service_pb2_grpc, query_service_pb2_grpc, transaction_service_pb2_grpc

from router.api.admin_identity import AdminIdentity
from router.api.auditing import Audit
from router.api.server import AdminParts, ApiServer, PublicParts
from router.api.surface import AuditSink
from router.engine.directory import Directory
from router.model.identity import ClusterName, TenantName, TopologyNumber
from router.model.policy import ServerPolicy, TenantPolicy
from router.model.port_policies import AuditScope
from router.model.topology import Login, Secret, Tenant, Topology
from router.model.views import CertificateTrouble, ConfigView, ServerView
from router.system import SystemChance, SystemClock
from tests.api.fake_copies import FakeCopies, FakeOutcomes
from tests.api.fake_engine import (
    FakeConfiguration,
    FakeEncoder,
    FakeExecutor,
    FakeOperator,
    FakeOverview,
    FakeSessions,
    FakeTenantStore,
    FakeWorkers,
)
from tests.api.fake_listeners import FakeListeners
from tests.support.builders import Recorder

TOKEN = "acme-token"
ADMIN_TOKEN = "operators-token"
AUTH = (("authorization", f"Bearer {TOKEN}"),)
ADMIN_AUTH = (("authorization", f"Bearer {ADMIN_TOKEN}"),)


def _tenant(name: str, *tokens: str) -> Tenant:
    policy = TenantPolicy(default_timeout_s=7.0, max_timeout_s=20.0)
    secrets = tuple(Secret(token) for token in tokens)
    return Tenant(TenantName(name), ClusterName("main"), name, Login(name), secrets, policy=policy)


CONFIG = ConfigView("router.yaml", problems=("a", "b"), refused_s=2.5)
CERTIFICATES = (CertificateTrouble("operators", "file ca.pem holds no certificates", 7.5),)


class World:
    """The server under test, the engine behind it, and a channel to each port."""

    def __init__(self, policy: ServerPolicy, audit: tuple[AuditSink, AuditScope] | None = None) -> None:
        told = Audit(*audit) if audit is not None else None
        self.executor = FakeExecutor()
        self.sessions = FakeSessions()
        self.copies = FakeCopies()
        self.listeners = FakeListeners()
        self.outcomes = FakeOutcomes()
        self.overview = FakeOverview()
        self.operator = FakeOperator()
        self.tenants = FakeTenantStore()
        self.events = Recorder()
        tenants = (_tenant("acme", TOKEN, "both"), _tenant("umbrella", "umbrella-token", "both"))
        topology = Topology({}, {tenant.name: tenant for tenant in tenants})
        self.workers = FakeWorkers()
        self.directory = Directory(topology)
        self.operators = AdminIdentity((Secret("first-admin"), Secret(ADMIN_TOKEN)))
        self.server = ApiServer(
            policy,
            PublicParts(
                self.directory,
                self.executor,
                self.sessions,
                self.copies,
                self.listeners,
                self.outcomes,
                FakeEncoder(),
                SystemClock(),
                SystemChance(),
                self.events,
                self.workers.cancel,
                told,
            ),
            AdminParts(
                self.overview,
                self.operator,
                FakeConfiguration(),
                self.tenants,
                self.workers,
                lambda: ServerView("1.2.3", 12.5, TopologyNumber(7), 180000, CONFIG, CERTIFICATES),
                SystemClock(),
                self.events,
                self.operators,
                told,
            ),
        )

    async def start(self) -> None:
        await self.server.start()
        await self.server.set_serving(serving=True)
        self.channel = grpc.aio.insecure_channel(self.server.public_address)
        self.admin_channel = grpc.aio.insecure_channel(self.server.admin_address)
        self.query: Any = query_service_pb2_grpc.QueryServiceStub(self.channel)
        self.transact: Any = transaction_service_pb2_grpc.TransactionServiceStub(self.channel)
        self.admin: Any = admin_service_pb2_grpc.AdminServiceStub(self.admin_channel)

    async def stop(self) -> None:
        await self.channel.close()
        await self.admin_channel.close()
        await self.server.stop()


@pytest.fixture
def policy() -> ServerPolicy:
    return ServerPolicy(
        listen="127.0.0.1:0", admin_listen="127.0.0.1:0", max_message_bytes=1 << 20, max_stream_calls=64, grace_s=2.0
    )


@pytest.fixture
async def world(policy: ServerPolicy) -> AsyncIterator[World]:
    world = World(policy)
    await world.start()
    try:
        yield world
    finally:
        await world.stop()


async def eventually(condition: Callable[[], object], seconds: float = 3.0) -> None:
    """Wait until the condition holds; AssertionError when it does not in time."""
    end = asyncio.get_running_loop().time() + seconds
    while not condition():
        assert asyncio.get_running_loop().time() < end, "the condition never came true"
        await asyncio.sleep(0.005)
