"""AdminService: the engine's state for operators, and their orders. The wrapper in calls.py has proved the operator."""

from __future__ import annotations

from base64 import b64decode, urlsafe_b64encode
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from pointsman.v1 import admin_service_pb2 as pb

from router.api import admin_messages as messages
from router.api.drain import Drain
from router.api.surface import Configuration, Operator, Overview, Workers
from router.api.tenant_orders import AdminCall, TenantOrders
from router.model.errors import bad_request
from router.model.identity import ClusterName, EndpointName, TenantName
from router.model.reasons import RefuseReason
from router.model.views import ServerView

DEFAULT_PAGE = 200
MAX_PAGE = 1000
DEFAULT_SWITCHOVER_S = 10.0
MAX_WEIGHT = 1_000_000

T = TypeVar("T")


class AdminService:
    """pointsman.v1.AdminService."""

    def __init__(
        self,
        overview: Overview,
        operator: Operator,
        configuration: Configuration,
        tenants: TenantOrders,
        workers: Workers,
        server_view: Callable[[], ServerView],
        drain: Drain,
    ) -> None:
        self._overview = overview
        self._operator = operator
        self._configuration = configuration
        self._workers = workers
        self.get_tenant = tenants.show
        self.create_tenant = tenants.create
        self.change_tenant = tenants.change
        self.pause_tenant = tenants.pause
        self.resume_tenant = tenants.resume
        self.remove_tenant = tenants.remove
        self._server_view = server_view
        self._drain = drain

    async def get_server_info(self, call: AdminCall, message: pb.GetServerInfoRequest) -> pb.GetServerInfoResponse:
        """The process itself."""
        view = self._server_view()
        return pb.GetServerInfoResponse(
            version=view.version,
            uptime_s=view.uptime_s,
            topology=view.topology,
            draining=self._drain.begun,
            libpq_version=view.libpq_version,
            config_problem=next(iter(view.config.problems), ""),
            config_path=view.config.path,
            config_problems=view.config.problems,
            config_refused_s=view.config.refused_s,
            config_age_s=view.config.age_s,
            certificate_troubles=[messages.certificate_message(one) for one in view.certificates],
        )

    async def list_tenants(self, call: AdminCall, message: pb.ListTenantsRequest) -> pb.ListTenantsResponse:
        """Tenants by name, a page at a time."""
        await self._workers.refresh()
        after = _page_start(message.page_token)
        size = min(message.page_size or DEFAULT_PAGE, MAX_PAGE)
        rest = sorted((view for view in self._overview.tenants() if view.name > after), key=lambda view: view.name)
        page = rest[:size]
        return pb.ListTenantsResponse(
            tenants=[messages.tenant_message(view) for view in page],
            next_page_token=_page_token(page[-1].name) if len(rest) > size else "",
        )

    async def list_endpoints(self, call: AdminCall, message: pb.ListEndpointsRequest) -> pb.ListEndpointsResponse:
        """Endpoints of one cluster or of all."""
        await self._workers.refresh()
        views = self._overview.endpoints(ClusterName(message.cluster) if message.cluster else None)
        return pb.ListEndpointsResponse(endpoints=[messages.endpoint_message(view) for view in views])

    async def list_pools(self, call: AdminCall, message: pb.ListPoolsRequest) -> pb.ListPoolsResponse:
        """Pools of one tenant or of all."""
        await self._workers.refresh()
        views = self._overview.pools(TenantName(message.tenant) if message.tenant else None)
        return pb.ListPoolsResponse(pools=[messages.pool_message(view) for view in views])

    async def list_waiters(self, call: AdminCall, message: pb.ListWaitersRequest) -> pb.ListWaitersResponse:
        """Requests under way, the longest wait first."""
        await self._workers.refresh()
        views = self._overview.waiters(TenantName(message.tenant) if message.tenant else None)
        ordered = sorted(views, key=lambda view: view.waited_s, reverse=True)
        return pb.ListWaitersResponse(waiters=[messages.waiter_message(view) for view in ordered])

    async def watch_topology(
        self, call: AdminCall, message: pb.WatchTopologyRequest
    ) -> AsyncGenerator[pb.WatchTopologyResponse, None]:
        """The whole state now and after each change; ends with the operator."""
        async with _closing(self._overview.subscribe()) as changes:
            yield await self._topology()
            async for _ in changes:
                yield await self._topology()

    async def drain_endpoint(self, call: AdminCall, message: pb.DrainEndpointRequest) -> pb.DrainEndpointResponse:
        """Give an endpoint no new work."""
        await self._workers.refresh()
        in_flight = self._operator.drain(_endpoint(message.endpoint))
        return pb.DrainEndpointResponse(in_flight=in_flight, behind=await self._workers.behind())

    async def resume_endpoint(self, call: AdminCall, message: pb.ResumeEndpointRequest) -> pb.ResumeEndpointResponse:
        """End a drain."""
        self._operator.resume(_endpoint(message.endpoint))
        return pb.ResumeEndpointResponse(behind=await self._workers.behind())

    async def set_endpoint_weight(
        self, call: AdminCall, message: pb.SetEndpointWeightRequest
    ) -> pb.SetEndpointWeightResponse:
        """Change an endpoint's share of reads."""
        if message.weight > MAX_WEIGHT:
            raise bad_request(
                RefuseReason.BAD_REQUEST, f"weight must be at most {MAX_WEIGHT}, not {message.weight}", limit=MAX_WEIGHT
            )
        previous = self._operator.set_weight(_endpoint(message.endpoint), message.weight)
        return pb.SetEndpointWeightResponse(previous=previous, behind=await self._workers.behind())

    async def switchover(
        self, call: AdminCall, message: pb.SwitchoverRequest
    ) -> AsyncGenerator[pb.SwitchoverResponse, None]:
        """Move the primary by plan, and tell each step."""
        if not message.cluster:
            raise bad_request(RefuseReason.BAD_REQUEST, "name the cluster whose primary is to move")
        target = EndpointName(message.to) if message.to else None
        timeout_s = message.timeout_ms / 1000 or DEFAULT_SWITCHOVER_S
        progress = self._operator.switchover(ClusterName(message.cluster), target, timeout_s)
        async with _closing(progress) as steps:
            async for step in steps:
                yield messages.progress_message(step)

    async def reload_config(self, call: AdminCall, message: pb.ReloadConfigRequest) -> pb.ReloadConfigResponse:
        """Read the configuration again."""
        result = await self._configuration.reload()
        behind = await self._workers.behind() if result.applied else ()
        return pb.ReloadConfigResponse(
            applied=result.applied, changes=result.changes, problems=result.problems, behind=behind
        )

    async def diff_config(self, call: AdminCall, message: pb.DiffConfigRequest) -> pb.DiffConfigResponse:
        """What a configuration would change."""
        return messages.diff_message(await self._configuration.diff(message.document))

    async def list_workers(self, call: AdminCall, message: pb.ListWorkersRequest) -> pb.ListWorkersResponse:
        """The processes that serve callers."""
        await self._workers.refresh()
        return pb.ListWorkersResponse(workers=[messages.worker_message(view) for view in self._workers.views()])

    async def restart_workers(
        self, call: AdminCall, message: pb.RestartWorkersRequest
    ) -> AsyncGenerator[pb.RestartWorkersResponse, None]:
        """Replace them one by one, and tell each step."""
        async with _closing(self._workers.restart_workers()) as steps:
            async for step in steps:
                yield messages.restart_message(step)

    async def _topology(self) -> pb.WatchTopologyResponse:
        await self._workers.refresh()
        return pb.WatchTopologyResponse(
            topology=self._server_view().topology,
            clusters=[messages.cluster_message(view) for view in self._overview.clusters()],
        )


def _endpoint(name: str) -> EndpointName:
    if not name:
        raise bad_request(RefuseReason.BAD_REQUEST, "name the endpoint")
    return EndpointName(name)


def _page_token(name: str) -> str:
    return urlsafe_b64encode(name.encode()).decode()


def _page_start(token: str) -> str:
    try:
        return b64decode(token.encode(), altchars=b"-_", validate=True).decode()
    except ValueError:
        raise bad_request(
            RefuseReason.BAD_REQUEST, "page_token is not one that this router gave out: start without one"
        ) from None


@asynccontextmanager
async def _closing(iterator: AsyncIterator[T]) -> AsyncIterator[AsyncIterator[T]]:
    """Close an iterator that can be closed, at once when its reader goes away."""
    try:
        yield iterator
    finally:
        close = getattr(iterator, "aclose", None)
        if close is not None:
            await close()
