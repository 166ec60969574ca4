"""Listen streams of all tenants: opened within their limits, kept together by tenant, ended when they may not go on."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection
from functools import partial

from router.decisions.channels import refuse_channels, refuse_listener
from router.decisions.refusal import Refuse
from router.engine.admitting import Admitting
from router.engine.calls import Call, Register
from router.engine.channel_hub import ChannelHub
from router.engine.clusters import Clusters
from router.engine.directory import removed
from router.engine.listener import Listener
from router.engine.tenants import TenantRuntime, Tenants
from router.model.errors import Code, Executed, RouterError
from router.model.identity import EndpointName, TenantName
from router.model.reasons import CloseReason, RefuseReason
from router.model.request import Request
from router.model.state import ClusterState
from router.model.topology import Tenant, TenantChanges
from router.model.views import WaitPhase
from router.ports import Chance, Clock
from router.ports.listening import ListeningFactory


class Listeners:
    """Called from the event loop only. Raises RouterError only."""

    def __init__(
        self,
        tenants: Tenants,
        register: Register,
        clusters: Clusters,
        factory: ListeningFactory,
        clock: Clock,
        chance: Chance,
    ) -> None:
        self._tenants = tenants
        self._register = register
        self._clusters = clusters
        self._factory = factory
        self._clock = clock
        self._chance = chance
        self._admitting = Admitting(register, clock)
        self._hubs: dict[TenantName, ChannelHub] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self, tenant: Tenant, request: Request, channels: Collection[str]) -> Listener:
        """A stream, which tells itself when it is ready; close() it. RouterError: the tenant may not, or not now."""
        wanted = frozenset(channels)
        call = self._register.enter(tenant, request)
        try:
            self._admitting.check_open()
            runtime = await self._tenants.resumed(tenant, request.deadline, patient=True)
            self._check(runtime, wanted)
            runtime.admission.count()
        except BaseException as error:
            stopped = self._register.failed(call, error)
            if stopped is not None:
                raise stopped from None
            raise
        return self._begin(runtime, call, wanted)

    def _check(self, runtime: TenantRuntime, wanted: frozenset[str]) -> None:
        tenant = runtime.tenant
        present = self.channels_of(tenant.name)
        refusal = refuse_channels(tenant, wanted) or refuse_listener(
            tenant, runtime.admission.listeners, len(present), len(present | wanted)
        )
        if isinstance(refusal, Refuse):
            raise refusal.error()

    def _begin(self, runtime: TenantRuntime, call: Call, wanted: frozenset[str]) -> Listener:
        """Without a pause: what was checked holds."""
        hub, policy = self._hub_of(runtime.tenant), runtime.tenant.policy
        listener = Listener(wanted, policy.listen_heartbeat_s, partial(self._left, runtime, call, hub))
        runtime.admission.listeners += 1
        self._register.admit(call)
        call.task, call.read = None, listener
        call.enter(WaitPhase.LISTEN, self._clock.now())
        hub.add(listener)
        listener.patience = asyncio.get_running_loop().call_later(policy.default_timeout_s, hub.late, listener)
        return listener

    def _left(self, runtime: TenantRuntime, call: Call, hub: ChannelHub, listener: Listener) -> None:
        hub.leave(listener)
        runtime.admission.listeners -= 1
        error = listener.error
        if error is not None and error.reason is RefuseReason.DRAINING and listener.was_ready:
            error = None  # it had all that there was to have
        self._register.finish(call, error, cancelled=error is None and not listener.was_ready)

    def _hub_of(self, tenant: Tenant) -> ChannelHub:
        hub = self._hubs.get(tenant.name)
        if hub is None or hub.over:
            parts = (self._clusters, self._factory, self._clock, self._chance, self._register.events)
            hub = self._hubs[tenant.name] = ChannelHub(tenant, *parts)
            task = asyncio.get_running_loop().create_task(hub.run())
            self._tasks.add(task)
            task.add_done_callback(partial(self._ended, hub))
        return hub

    def _ended(self, hub: ChannelHub, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if self._hubs.get(hub.tenant.name) is hub:
            del self._hubs[hub.tenant.name]
        for listener in hub.listeners:  # only after a mistake of ours, or at the end
            message = "the router has stopped listening"
            hub.end(listener, RouterError(Code.INTERNAL, RefuseReason.INTERNAL, message, executed=Executed.NO))

    # --- what changes --------------------------------------------------------------------------------------------

    def on_state(self, state: ClusterState) -> None:
        """Called after each publication of a cluster's state, synchronously."""
        for hub in self._hubs.values():
            if hub.tenant.cluster == state.name:
                hub.on_state(state)

    def take(self, changes: TenantChanges) -> None:
        """Tenants have changed or gone: streams that they may not have any more end."""
        for tenant in changes.changed:
            hub = self._hubs.get(tenant.name)
            if hub is None:
                continue
            hub.take(tenant)
            for listener in hub.listeners:
                refusal = refuse_channels(tenant, listener.channels)
                if refusal is not None:
                    hub.end(listener, refusal.error())
        for name in changes.removed:
            hub = self._hubs.get(name)
            if hub is None:
                continue
            for listener in hub.listeners:
                hub.end(listener, removed(name))
            hub.cut(CloseReason.DRAIN)

    def renew(self, tenant: TenantName) -> None:
        """Another login of the tenant is in use by now."""
        hub = self._hubs.get(tenant)
        if hub is not None:
            hub.renew()

    def forget_servers(self, changed: set[EndpointName]) -> None:
        """Endpoints whose address or protection changed: listen there anew."""
        for hub in self._hubs.values():
            if hub.endpoint in changed:
                hub.cut(CloseReason.DRAIN)

    def drain(self) -> None:
        """From now on every new stream is refused; what there is goes on."""
        self._admitting.draining = True

    async def close(self) -> None:
        """End all."""
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(set(self._tasks))

    # --- for operators -------------------------------------------------------------------------------------------

    def channels_of(self, tenant: TenantName) -> set[str]:
        """What its streams listen to, together."""
        hub = self._hubs.get(tenant)
        return hub.channels if hub is not None else set()

    def endpoints(self) -> Counter[EndpointName]:
        """Connections that listen, by endpoint."""
        return Counter(hub.endpoint for hub in self._hubs.values() if hub.endpoint)
