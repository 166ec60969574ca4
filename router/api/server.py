"""The two gRPC servers, one for callers and one for operators, with their limits, health and reflection."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from pointsman.v1 import admin_service_pb2, query_service_pb2, transaction_service_pb2

from router.api.admin_identity import AdminIdentity, OperatorIdentity
from router.api.admin_service import AdminService
from router.api.answering import Answering
from router.api.auditing import Audit, AuditedCopies, AuditedExecutor, AuditedListeners, AuditedSessions
from router.api.binding import bind
from router.api.calls import Gate
from router.api.certificates import credentials
from router.api.copying import Copying
from router.api.departures import keep_out_of_log
from router.api.drain import Drain
from router.api.hearing import Hearing
from router.api.listening import stop_listening
from router.api.multiplex import Multiplexing
from router.api.proving import Proving, Registry
from router.api.query_service import CancelElsewhere, QueryService
from router.api.results import ResultEncoder
from router.api.surface import (
    Configuration,
    Copies,
    Executor,
    Listeners,
    Operator,
    Outcomes,
    Overview,
    Sessions,
    TenantStore,
    Workers,
)
from router.api.tenant_orders import TenantOrders
from router.api.transaction_service import TransactionService
from router.api.transport import server_options
from router.model.certificates import PortCertificates
from router.model.errors import RouterError
from router.model.identity import TenantName
from router.model.policy import ServerPolicy
from router.model.port_policies import JwtPolicy, ListenerTls
from router.model.request import Method
from router.model.topology import Tenant
from router.model.views import ServerView
from router.ports import Chance, Clock, EventSink

if TYPE_CHECKING:
    from router.api.jwt_keys import JwtVerifier
    from router.api.peer_certificate import PeerCertificates

QUERY_SERVICE: ServiceDescriptor = query_service_pb2.DESCRIPTOR.services_by_name["QueryService"]
TRANSACTION_SERVICE: ServiceDescriptor = transaction_service_pb2.DESCRIPTOR.services_by_name["TransactionService"]
ADMIN_SERVICE: ServiceDescriptor = admin_service_pb2.DESCRIPTOR.services_by_name["AdminService"]
PUBLIC_SERVICES = (QUERY_SERVICE, TRANSACTION_SERVICE)

STOP_GRACE_S = 0.1
"""For bytes already written to leave; what still runs then is cancelled."""

LINGER_S = 0.2
"""How long a drained process of several still refuses in words what was on its way."""

_METHODS = {
    "pointsman.v1.QueryService.Query": Method.QUERY,
    "pointsman.v1.QueryService.StreamQuery": Method.STREAM_QUERY,
    "pointsman.v1.QueryService.Execute": Method.EXECUTE,
    "pointsman.v1.QueryService.ExecuteBatch": Method.EXECUTE_BATCH,
    "pointsman.v1.QueryService.CopyOut": Method.COPY_OUT,
    "pointsman.v1.QueryService.CopyIn": Method.COPY_IN,
    "pointsman.v1.QueryService.Listen": Method.LISTEN,
    "pointsman.v1.QueryService.GetOutcome": Method.GET_OUTCOME,
    "pointsman.v1.TransactionService.Transact": Method.TRANSACT,
}

_SHORT = frozenset(
    method.full_name
    for method in QUERY_SERVICE.methods
    if not method.client_streaming and not method.server_streaming
)
"""Plain calls of a stub, which knows nothing of a drain before its connection ends: served until then. Longer ones are
refused, and go to another process."""

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@dataclass(frozen=True, slots=True)
class PublicParts:
    """What stands behind the callers' port."""

    directory: Registry[Tenant]
    executor: Executor
    sessions: Sessions
    copies: Copies
    listeners: Listeners
    outcomes: Outcomes
    encoder: ResultEncoder
    clock: Clock
    chance: Chance
    events: EventSink
    cancel_elsewhere: CancelElsewhere | None = None
    audit: Audit | None = None


@dataclass(frozen=True, slots=True)
class AdminParts:
    """What stands behind the operators' port."""

    overview: Overview
    operator: Operator
    configuration: Configuration
    tenants: TenantStore
    workers: Workers
    server_view: Callable[[], ServerView]
    clock: Clock
    events: EventSink
    operators: AdminIdentity
    audit: Audit | None = None


class PublicServer:
    """The callers' port. Start, set_serving, then drain and stop. To be made inside the running event loop."""

    def __init__(
        self,
        policy: ServerPolicy,
        parts: PublicParts,
        drain: Drain,
        *,
        processes: int = 1,
        certificates: PortCertificates | None = None,
    ) -> None:
        """processes: how many of this router listen on the port; it is reserved by somebody when they are several.
        certificates: to begin with while the port's files cannot serve."""
        parts = _audited(parts)
        self._policy = policy
        self._drain = drain
        self._processes = processes
        self._certificates = certificates
        self._events = parts.events
        self._shared_port = processes > 1
        self._health = health.aio.HealthServicer()
        self._jwt = _verifier(policy.jwt, parts.events)
        self._refreshing: asyncio.Task[None] | None = None
        self._gate = self._make_gate(parts)
        self._server = make_server(policy, PUBLIC_SERVICES, self._health, shared_port=self._shared_port)
        self.address = policy.listen
        """After start, with the real port."""
        self._add_services(parts)

    async def start(self) -> None:
        """Take the port and serve, with health NOT_SERVING. RouterError when the port cannot be had."""
        await self.set_serving(serving=False)
        self.address = await bind(
            self._server,
            self._policy.listen,
            "server.listen",
            shared=self._shared_port,
            credentials=credentials(self._policy.tls, "callers", self._events, self._certificates),
        )
        if self._jwt is not None:
            self._refreshing = asyncio.create_task(self._jwt.run())
        await self._server.start()

    async def set_serving(self, *, serving: bool) -> None:
        """Tell health checkers; a drain has the last word."""
        await set_health(self._health, serving=serving and not self._drain.begun)

    @property
    def running(self) -> int:
        """RPCs of callers under way."""
        return self._gate.running

    async def drain(self, grace_s: float | None = None) -> bool:
        """Take no new work and wait for what runs, for the policy's grace at most; whether all of it has ended."""
        grace_s = self._policy.grace_s if grace_s is None else grace_s
        if self._shared_port:
            stop_listening(self.address)  # first: the port's other processes take whoever comes from now on
        self._drain.begin(grace_s, _SHORT if self._shared_port else frozenset())
        await self.set_serving(serving=False)
        try:
            await asyncio.wait_for(self._gate.wait_idle(), grace_s)
        except TimeoutError:
            return False
        if self._shared_port:
            # What crosses the end of the server ends without our words; what is refused before that is repeated.
            await asyncio.sleep(min(LINGER_S, self._drain.remaining_s))
        return True

    async def stop(self) -> None:
        """Cancel what still runs and close the port. May be called without start, and twice."""
        if self._refreshing is not None:
            self._refreshing.cancel()
        await self._server.stop(STOP_GRACE_S)

    def _make_gate(self, parts: PublicParts) -> Gate[Tenant]:
        def refused(tenant: Tenant | None, name: str, error: RouterError) -> None:
            if name in _METHODS:
                parts.executor.refused(tenant.name if tenant else TenantName(""), _METHODS[name], error)

        proving = Proving(parts.directory, jwt=self._jwt, certificates=_asked_for(self._policy.tls))
        return Gate(
            proving,
            refused,
            clock=parts.clock,
            events=parts.events,
            drain=self._drain,
            max_message_bytes=self._policy.max_message_bytes,
            audit=parts.audit,
        )

    def _add_services(self, parts: PublicParts) -> None:
        answering = Answering(parts.executor, parts.encoder, parts.chance)
        multiplexing = Multiplexing(
            answering, self._drain, parts.clock, parts.events, self._policy.max_stream_calls, self._processes
        )
        transactions = TransactionService(
            parts.sessions, parts.encoder, parts.chance, parts.clock, self._drain, parts.executor.refused
        )
        copying = Copying(parts.copies, parts.chance)
        hearing = Hearing(parts.listeners, self._drain, parts.chance, parts.clock)
        queries = QueryService(answering, multiplexing, copying, hearing, parts.outcomes, parts.cancel_elsewhere)
        gate = self._gate
        self._server.add_generic_rpc_handlers(
            (
                gate.service(QUERY_SERVICE, queries),
                gate.service(TRANSACTION_SERVICE, transactions),
            )
        )


class AdminServer:
    """The operators' port; it serves to the end, also while callers are drained."""

    def __init__(self, policy: ServerPolicy, parts: AdminParts, drain: Drain) -> None:
        self._policy = policy
        self._drain = drain
        self._events = parts.events
        self._health = health.aio.HealthServicer()
        self._server = make_server(policy, (ADMIN_SERVICE,), self._health)
        self.address = policy.admin_listen
        """After start, with the real port."""
        gate: Gate[OperatorIdentity] = Gate(
            Proving(parts.operators, certificates=_asked_for(policy.admin_tls)),
            lambda caller, name, error: None,
            clock=parts.clock,
            events=parts.events,
            drain=None,
            max_message_bytes=policy.max_message_bytes,
            audit=parts.audit,
            audit_all=True,
        )
        service = AdminService(
            parts.overview,
            parts.operator,
            parts.configuration,
            TenantOrders(parts.tenants, parts.workers),
            parts.workers,
            parts.server_view,
            drain,
        )
        self._server.add_generic_rpc_handlers((gate.service(ADMIN_SERVICE, service),))

    async def start(self) -> None:
        """Take the port and serve. RouterError when it cannot be had."""
        await self.set_serving(serving=False)
        await self._health.set(ADMIN_SERVICE.full_name, _SERVING)
        self.address = await bind(
            self._server,
            self._policy.admin_listen,
            "server.admin_listen",
            credentials=credentials(self._policy.admin_tls, "operators", self._events),
        )
        await self._server.start()

    async def set_serving(self, *, serving: bool) -> None:
        """Tell whoever asks here about the callers' port."""
        await set_health(self._health, serving=serving and not self._drain.begun)

    async def stop(self) -> None:
        """Close the port. May be called without start, and twice."""
        await self._server.stop(STOP_GRACE_S)


class ApiServer:
    """Both ports in one process."""

    def __init__(self, policy: ServerPolicy, public: PublicParts, admin: AdminParts) -> None:
        drain = Drain(public.clock)
        self._public = PublicServer(policy, public, drain)
        self._admin = AdminServer(policy, admin, drain)

    @property
    def public_address(self) -> str:
        """After start, with the real port."""
        return self._public.address

    @property
    def admin_address(self) -> str:
        """After start, with the real port."""
        return self._admin.address

    @property
    def running(self) -> int:
        """RPCs of callers under way."""
        return self._public.running

    async def start(self) -> None:
        """Take both ports and serve, with health NOT_SERVING for callers. RouterError when a port cannot be had."""
        await self._public.start()
        await self._admin.start()

    async def set_serving(self, *, serving: bool) -> None:
        """Tell health checkers; a drain has the last word."""
        await asyncio.gather(self._public.set_serving(serving=serving), self._admin.set_serving(serving=serving))

    async def drain(self, grace_s: float | None = None) -> bool:
        """See PublicServer.drain."""
        draining = asyncio.create_task(self._public.drain(grace_s))
        await asyncio.sleep(0)
        await self._admin.set_serving(serving=False)
        return await draining

    async def stop(self) -> None:
        """Cancel what still runs and close both ports. May be called without start, and twice."""
        await asyncio.gather(self._public.stop(), self._admin.stop())


def make_server(
    policy: ServerPolicy,
    services: Sequence[ServiceDescriptor],
    health_servicer: health.aio.HealthServicer,
    *,
    shared_port: bool = False,
) -> grpc.aio.Server:
    """A server with our limits, health and reflection."""
    keep_out_of_log()
    server = grpc.aio.server(
        options=server_options(policy, shared_port=shared_port), maximum_concurrent_rpcs=policy.transport.max_rpcs
    )
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    if policy.reflection:
        names = [descriptor.full_name for descriptor in services]
        reflection.enable_server_reflection([*names, health.SERVICE_NAME, reflection.SERVICE_NAME], server)
    return server


def _audited(parts: PublicParts) -> PublicParts:
    if parts.audit is None:
        return parts
    return replace(
        parts,
        executor=AuditedExecutor(parts.executor, parts.audit),
        copies=AuditedCopies(parts.copies, parts.audit),
        listeners=AuditedListeners(parts.listeners, parts.audit),
        sessions=AuditedSessions(parts.sessions, parts.audit),
    )


# Both stand on the cryptography package: 9 MiB of memory that only those who use them shall pay.


def _verifier(policy: JwtPolicy, events: EventSink) -> JwtVerifier | None:
    if not policy.on:
        return None
    from router.api.jwt_keys import JwtVerifier

    return JwtVerifier(policy, events.emit)


def _asked_for(tls: ListenerTls) -> PeerCertificates | None:
    if not tls.client_ca:
        return None
    from router.api.peer_certificate import PeerCertificates

    return PeerCertificates()


async def set_health(servicer: health.aio.HealthServicer, *, serving: bool) -> None:
    """What health checkers are told about the callers' services."""
    for service in ("", *(descriptor.full_name for descriptor in PUBLIC_SERVICES)):
        await servicer.set(service, _SERVING if serving else _NOT_SERVING)
