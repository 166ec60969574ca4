"""Running the command in this process, and an AdminService that answers what a test wants."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent import futures
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from pointsman.v1 import admin_service_pb2 as pb
from pointsman.v1 import admin_service_pb2_grpc, errors_pb2, query_service_pb2, types_pb2

from router.cli import main
from router.console import status_view
from tests.sdk.fake_router import FakeRouter, OnCall, status

TOKEN = "operator-token"
TLS_VARIABLES = ("POINTSMAN_TLS", "POINTSMAN_CA", "POINTSMAN_CERT", "POINTSMAN_KEY")


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


Command = Callable[..., Ended]
Ask = Callable[..., Ended]
"""Runs a command of an operator against `admin`."""


def failing(code: grpc.StatusCode, message: str, **more: Any) -> OnCall:
    """Answers every call with that error."""

    async def answer(call: query_service_pb2.MultiplexCall) -> query_service_pb2.MultiplexReply:
        return query_service_pb2.MultiplexReply(failure=status(code, message, **more))

    return answer


@pytest.fixture
async def fake() -> AsyncIterator[FakeRouter]:
    """A router that answers callers as a test wants."""
    router = FakeRouter()
    await router.start()
    yield router
    await router.stop()


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    """Commands that serve tune the collector of their process, which here is that of the tests."""
    yield
    gc.enable()


@pytest.fixture
def two_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """`status --watch` looks twice, and is interrupted."""
    looks = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(status_view.time, "sleep", sleep)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs `pointsman` with arguments; nothing of the caller's environment reaches it."""
    for name in ("ADDRESS", "TENANT", "TOKEN", "ADMIN_ADDRESS", "ADMIN_TOKEN", "DEV", "CONFIG"):
        monkeypatch.delenv(f"POINTSMAN_{name}", raising=False)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["pointsman", *arguments])
        code = 0
        try:
            main()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 0
        for name in TLS_VARIABLES:  # the options in front of a command are handed on by them
            os.environ.pop(name, None)
        out, err = capsys.readouterr()
        return Ended(code, out, err)

    return run


ENDPOINTS = [
    pb.EndpointState(
        name="pg1", cluster="main", host="one", port=5432, zone="a", role=types_pb2.ENDPOINT_ROLE_PRIMARY,
        health=pb.ENDPOINT_HEALTH_UP, timeline=3, lsn="0/3000148", lag_s=0, weight=100, in_flight=7, connections=9,
        connections_cap=80, connections_wanted=3,
        probe_ms=0.4,
    ),
    pb.EndpointState(
        name="pg2", cluster="main", host="two", port=5433, role=types_pb2.ENDPOINT_ROLE_REPLICA,
        health=pb.ENDPOINT_HEALTH_DOWN, health_reason="probe_timeout", lag_s=12.5, lag_bytes=409600, draining=True,
    ),
    pb.EndpointState(name="pg3", cluster="main", host="three", port=1, role=types_pb2.ENDPOINT_ROLE_REPLICA, lag_s=-1),
]  # fmt: skip


@dataclass
class FakeAdmin(admin_service_pb2_grpc.AdminServiceServicer):
    """Answers like a router with one cluster of three endpoints and three tenants on two pages."""

    seen: list[Any] = field(default_factory=list)
    steps: list[pb.SwitchoverResponse] = field(default_factory=list)
    reload: pb.ReloadConfigResponse = field(default_factory=lambda: pb.ReloadConfigResponse(applied=True))
    address: str = ""
    behind: list[str] = field(default_factory=list)
    restart_stops: bool = False
    findings: list[pb.Finding] = field(default_factory=list)
    workers: list[pb.Worker] = field(
        default_factory=lambda: [
            pb.Worker(number=1, pid=101, state=pb.WORKER_STATE_SERVING, uptime_s=12.5, in_flight=3, connections=8),
            pb.Worker(number=2, pid=102, state=pb.WORKER_STATE_SILENT, restarts=2),
        ]
    )

    def _check(self, request: Any, context: Any) -> None:
        self.seen.append(request)
        if dict(context.invocation_metadata()).get("authorization") != f"Bearer {TOKEN}":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "the token is not one of the admin tokens")

    def GetServerInfo(self, request: Any, context: Any) -> Any:
        self._check(request, context)
        return pb.GetServerInfoResponse(version="9.9", uptime_s=4000, topology=7, config_path="/etc/p.yaml")

    def WatchTopology(self, request: Any, context: Any) -> Iterator[Any]:
        self._check(request, context)
        cluster = pb.ClusterState(
            name="main", phase=pb.CLUSTER_PHASE_STEADY, primary="pg1", term=3, generation=2, mode="follow", held=4,
            phase_age_s=12, detail="a detail", endpoints=ENDPOINTS, findings=self.findings,
        )  # fmt: skip
        yield pb.WatchTopologyResponse(topology=7, clusters=[cluster])
        context.is_active()

    def ListTenants(self, request: Any, context: Any) -> Any:
        self._check(request, context)
        if not request.page_token:
            first = [pb.TenantState(name="acme", served=2**40, in_flight=3), pb.TenantState(name="beta", paused=True)]
            return pb.ListTenantsResponse(tenants=first, next_page_token="more")
        return pb.ListTenantsResponse(tenants=[pb.TenantState(name="gamma")])

    def ListPools(self, request: Any, context: Any) -> Any:
        self._check(request, context)
        pool = pb.PoolState(tenant="acme", endpoint="pg1", access="read_only", size=3, max_size=8, lanes=2)
        return pb.ListPoolsResponse(pools=[pool])

    def ListWorkers(self, request: Any, context: Any) -> Any:
        self._check(request, context)
        return pb.ListWorkersResponse(workers=self.workers)

    def RestartWorkers(self, request: Any, context: Any) -> Iterator[Any]:
        self._check(request, context)
        yield pb.RestartWorkersResponse(worker=1, step="serves", detail="pid 201", elapsed_s=0.5)
        if not self.restart_stops:
            yield pb.RestartWorkersResponse(step="done", done=True, elapsed_s=1.5)

    def ListWaiters(self, request: Any, context: Any) -> Any:
        self._check(request, context)
        waiter = pb.Waiter(
            tenant="acme", request_id="r1", method="query", phase="hold", waited_s=1.5, waits_for="a primary"
        )
        return pb.ListWaitersResponse(waiters=[waiter] if request.tenant in ("", "acme") else [])

    def DrainEndpoint(self, request: Any, context: Any) -> Any:
        self._check(request, context)
        if request.endpoint not in ("pg1", "pg2"):
            info = errors_pb2.Status(code=5, message="x", details=[AnyMessage()])
            context.set_trailing_metadata((("grpc-status-details-bin", info.SerializeToString()),))
            context.abort(grpc.StatusCode.NOT_FOUND, f"there is no endpoint {request.endpoint}")
        return pb.DrainEndpointResponse(in_flight=2, behind=self.behind)

    def ResumeEndpoint(self, request: Any, context: Any) -> Any:
        self._check(request, context)
        return pb.ResumeEndpointResponse()

    def SetEndpointWeight(self, request: Any, context: Any) -> Any:
        self._check(request, context)
        return pb.SetEndpointWeightResponse(previous=100, behind=self.behind)

    def CreateTenant(self, request: Any, context: Any) -> Any:
        self._check(request, context)
        return pb.CreateTenantResponse()

    def Switchover(self, request: Any, context: Any) -> Iterator[Any]:
        self._check(request, context)
        yield from self.steps

    def ReloadConfig(self, request: Any, context: Any) -> Any:
        self._check(request, context)
        return self.reload

    def DiffConfig(self, request: Any, context: Any) -> Any:
        self._check(request, context)
        if request.document:
            return pb.DiffConfigResponse(problems=["new.yaml:1: x", "new.yaml:2: y"])
        change = pb.ConfigChange(place="tenants.acme", change="removed", effect=pb.CONFIG_EFFECT_DRAINS)
        return pb.DiffConfigResponse(changes=[change])


@pytest.fixture
def admin() -> Iterator[FakeAdmin]:
    """A running FakeAdmin."""
    servicer = FakeAdmin()
    with futures.ThreadPoolExecutor(2) as threads:
        server = grpc.server(threads)
        admin_service_pb2_grpc.add_AdminServiceServicer_to_server(servicer, server)
        servicer.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        yield servicer
        server.stop(None).wait()


@pytest.fixture
def ask(command: Command, admin: FakeAdmin) -> Ask:
    def run(*arguments: str) -> Ended:
        return command(*arguments, "--address", admin.address, "--token", TOKEN)

    return run
