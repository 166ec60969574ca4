"""The two gRPC servers, one for callers and one for operators, with their limits, health and reflection."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from pointsman.v1 import admin_service_pb2, query_service_pb2, transaction_service_pb2

from router.api.admin_identity import AdminIdentity, OperatorIdentity
from router.api.admin_service import AdminService
from router.api.answering import Answering
from router.api.binding import bind
from router.api.calls import Gate
from router.api.drain import Drain
from router.api.multiplex import Multiplexing
from router.api.query_service import QueryService
from router.api.results import ResultEncoder
from router.api.surface import Directory, Executor, Operator, Overview, Sessions
from router.api.transaction_service import TransactionService
from router.model.errors import RouterError
from router.model.identity import TenantName
from router.model.policy import ServerPolicy
from router.model.request import Method
from router.model.topology import Secret, Tenant
from router.model.views import ServerView
from router.ports import Chance, Clock, EventSink

QUERY_SERVICE: ServiceDescriptor = query_service_pb2.DESCRIPTOR.services_by_name["QueryService"]
TRANSACTION_SERVICE: ServiceDescriptor = transaction_service_pb2.DESCRIPTOR.services_by_name["TransactionService"]
ADMIN_SERVICE: ServiceDescriptor = admin_service_pb2.DESCRIPTOR.services_by_name["AdminService"]
PUBLIC_SERVICES = (QUERY_SERVICE, TRANSACTION_SERVICE)

STOP_GRACE_S = 0.1
"""For bytes already written to leave; what still runs then is cancelled."""

# No grpc.max_connection_age: it would cut Multiplex streams and transactions in mid-flight.
LIMITS = (
    ("grpc.so_reuseport", 0),  # else any process of the same user could take a share of the port's connections
    ("grpc.max_metadata_size", 8 << 10),
    ("grpc.absolute_max_metadata_size", 16 << 10),
    ("grpc.max_concurrent_streams", 256),
    ("grpc.server_handshake_timeout_ms", 5_000),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.max_ping_strikes", 2),
    ("grpc.max_connection_idle_ms", 300_000),
)

_METHODS = {
    "pointsman.v1.QueryService.Query": Method.QUERY,
    "pointsman.v1.QueryService.StreamQuery": Method.STREAM_QUERY,
    "pointsman.v1.QueryService.Execute": Method.EXECUTE,
    "pointsman.v1.QueryService.ExecuteBatch": Method.EXECUTE_BATCH,
    "pointsman.v1.TransactionService.Transact": Method.TRANSACT,
}

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@dataclass(frozen=True, slots=True)
class ApiParts:
    """What the servers put in front of callers, and the ports they need."""

    directory: Directory
    executor: Executor
    sessions: Sessions
    overview: Overview
    operator: Operator
    server_view: Callable[[], ServerView]
    encoder: ResultEncoder
    clock: Clock
    chance: Chance
    events: EventSink
    admin_tokens: Sequence[Secret] = ()


class ApiServer:
    """Start, set_serving, then drain and stop. To be made inside the running event loop."""

    def __init__(self, policy: ServerPolicy, parts: ApiParts) -> None:
        self._policy = policy
        self._drain = Drain(parts.clock)
        self._health = health.aio.HealthServicer()
        self._public_gate = self._make_public_gate(parts)
        self._public = self._make_server(PUBLIC_SERVICES)
        self._admin = self._make_server((ADMIN_SERVICE,))
        self.public_address = policy.listen
        """After start, with the real port."""
        self.admin_address = policy.admin_listen
        self._add_public_services(parts)
        self._add_admin_service(parts)

    async def start(self) -> None:
        """Take both ports and serve, with health NOT_SERVING for callers. RouterError when a port cannot be had."""
        await self.set_serving(serving=False)
        await self._health.set(ADMIN_SERVICE.full_name, _SERVING)
        self.public_address = await bind(self._public, self._policy.listen, "server.listen")
        self.admin_address = await bind(self._admin, self._policy.admin_listen, "server.admin_listen")
        await self._public.start()
        await self._admin.start()

    async def set_serving(self, *, serving: bool) -> None:
        """Tell health checkers; a drain has the last word."""
        status = _SERVING if serving and not self._drain.begun else _NOT_SERVING
        for service in ("", *(descriptor.full_name for descriptor in PUBLIC_SERVICES)):
            await self._health.set(service, status)

    @property
    def running(self) -> int:
        """RPCs of callers under way."""
        return self._public_gate.running

    async def drain(self, grace_s: float | None = None) -> bool:
        """Take no new work and wait for what runs, for the policy's grace at most; whether all of it has ended."""
        grace_s = self._policy.grace_s if grace_s is None else grace_s
        self._drain.begin(grace_s)
        await self.set_serving(serving=False)
        try:
            await asyncio.wait_for(self._public_gate.wait_idle(), grace_s)
        except TimeoutError:
            return False
        return True

    async def stop(self) -> None:
        """Cancel what still runs and close both ports. May be called without start, and twice."""
        await asyncio.gather(self._public.stop(STOP_GRACE_S), self._admin.stop(STOP_GRACE_S))

    def _make_server(self, services: Sequence[ServiceDescriptor]) -> grpc.aio.Server:
        # Twice the limit, so that the wrapper can answer a message that is somewhat too large in words.
        limit = ("grpc.max_receive_message_length", 2 * self._policy.max_message_bytes)
        server = grpc.aio.server(options=(*LIMITS, limit))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        if self._policy.reflection:
            names = [descriptor.full_name for descriptor in services]
            reflection.enable_server_reflection([*names, health.SERVICE_NAME, reflection.SERVICE_NAME], server)
        return server

    def _make_public_gate(self, parts: ApiParts) -> Gate[Tenant]:
        def refused(tenant: Tenant | None, name: str, error: RouterError) -> None:
            if name in _METHODS:
                parts.executor.refused(tenant.name if tenant else TenantName(""), _METHODS[name], error)

        return Gate(
            parts.directory.authenticate,
            refused,
            clock=parts.clock,
            events=parts.events,
            drain=self._drain,
            max_message_bytes=self._policy.max_message_bytes,
        )

    def _add_public_services(self, parts: ApiParts) -> None:
        answering = Answering(parts.executor, parts.encoder, parts.chance)
        multiplexing = Multiplexing(answering, self._drain, parts.clock, parts.events, self._policy.max_stream_calls)
        transactions = TransactionService(
            parts.sessions, parts.encoder, parts.chance, parts.clock, self._drain, parts.executor.refused
        )
        gate = self._public_gate
        self._public.add_generic_rpc_handlers(
            (
                gate.service(QUERY_SERVICE, QueryService(answering, multiplexing)),
                gate.service(TRANSACTION_SERVICE, transactions),
            )
        )

    def _add_admin_service(self, parts: ApiParts) -> None:
        gate: Gate[OperatorIdentity] = Gate(
            AdminIdentity(parts.admin_tokens),
            lambda caller, name, error: None,
            clock=parts.clock,
            events=parts.events,
            drain=None,
            max_message_bytes=self._policy.max_message_bytes,
        )
        service = AdminService(parts.overview, parts.operator, parts.server_view, self._drain)
        self._admin.add_generic_rpc_handlers((gate.service(ADMIN_SERVICE, service),))
