"""Orders about tenants, as RPCs of AdminService: answered once every worker has them, or with who has not."""

from __future__ import annotations

from pointsman.v1 import admin_service_pb2 as pb

from router.api.admin_identity import OperatorIdentity
from router.api.admin_messages import change_messages
from router.api.auditing import ABOUT
from router.api.calls import Call
from router.api.surface import TenantStore, Workers

AdminCall = Call[OperatorIdentity]


class TenantOrders:
    """The part of AdminService that makes, changes, pauses and removes tenants."""

    def __init__(self, store: TenantStore, workers: Workers) -> None:
        self._store = store
        self._workers = workers

    async def show(self, call: AdminCall, message: pb.GetTenantRequest) -> pb.GetTenantResponse:
        """A tenant's document."""
        ABOUT.set(message.tenant)
        found = await self._store.show(message.tenant)
        return pb.GetTenantResponse(document=found.document, version=found.version, problems=found.problems)

    async def create(self, call: AdminCall, message: pb.CreateTenantRequest) -> pb.CreateTenantResponse:
        """A new tenant."""
        ABOUT.set(message.tenant)
        done = await self._store.create(message.tenant, message.document)
        behind = await self._workers.behind()
        return pb.CreateTenantResponse(version=done.version, changes=change_messages(done.changes), behind=behind)

    async def change(self, call: AdminCall, message: pb.ChangeTenantRequest) -> pb.ChangeTenantResponse:
        """Another document."""
        ABOUT.set(message.tenant)
        done = await self._store.change(message.tenant, message.document, message.version)
        behind = await self._workers.behind()
        return pb.ChangeTenantResponse(version=done.version, changes=change_messages(done.changes), behind=behind)

    async def pause(self, call: AdminCall, message: pb.PauseTenantRequest) -> pb.PauseTenantResponse:
        """Let its requests wait."""
        ABOUT.set(message.tenant)
        done = await self._store.pause(message.tenant, message.version, paused=True)
        behind = await self._workers.behind()
        return pb.PauseTenantResponse(version=done.version, changes=change_messages(done.changes), behind=behind)

    async def resume(self, call: AdminCall, message: pb.ResumeTenantRequest) -> pb.ResumeTenantResponse:
        """Let them go on."""
        ABOUT.set(message.tenant)
        done = await self._store.pause(message.tenant, message.version, paused=False)
        behind = await self._workers.behind()
        return pb.ResumeTenantResponse(version=done.version, changes=change_messages(done.changes), behind=behind)

    async def remove(self, call: AdminCall, message: pb.RemoveTenantRequest) -> pb.RemoveTenantResponse:
        """No such tenant any more."""
        ABOUT.set(message.tenant)
        done = await self._store.remove(message.tenant, message.version)
        behind = await self._workers.behind()
        return pb.RemoveTenantResponse(changes=change_messages(done.changes), behind=behind)
