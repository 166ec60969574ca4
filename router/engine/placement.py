"""From a call to an endpoint: route it, or hold it until its cluster has a primary."""

from __future__ import annotations

from collections.abc import Collection

from router.decisions.durability import durability
from router.decisions.routing import Hold, Route, pick
from router.engine.calls import Call
from router.engine.causal_reads import CausalReads, token_of_route
from router.engine.clusters import Clusters
from router.engine.holding import HoldingRoom
from router.engine.positions import Positions
from router.engine.tenants import TenantRuntime
from router.model.identity import EndpointName, TenantName
from router.model.request import DEFAULT_OPTIONS, Access, OnFailover, Request
from router.model.result import Durability
from router.model.topology import Role
from router.model.views import WaitPhase
from router.ports import Chance, Clock


class Placement:
    """Chooses endpoints; the only place where calls enter a hold."""

    def __init__(self, clusters: Clusters, clock: Clock, chance: Chance, positions: Positions) -> None:
        self._clusters = clusters
        self._clock = clock
        self._chance = chance
        self._causal = CausalReads(positions, clock)

    async def route(self, runtime: TenantRuntime, call: Call, access: Access) -> Route:
        """An endpoint for the next attempt. RouterError when there is none within hold and deadline, AttemptFailed when
        the primary was to be asked for its position and did not answer."""
        tenant = runtime.tenant
        cluster = self._clusters[tenant.cluster]
        want = runtime.want(access, call.request.options)
        after = call.request.after if access is Access.READ_ONLY else None
        while True:
            state = cluster.supervisor.state
            found = runtime.book.candidates(state, want, tenant.weights)
            if after is not None:
                narrowed = self._causal.narrow(runtime, call, after, found, state)
                if narrowed is None:
                    await self._causal.catch_up(runtime, call, found, state, self._chance.draw())
                    continue
                found = narrowed
            choice = pick(found, runtime.balancer, runtime.in_flight, self._chance.draw(), call.tried)
            if isinstance(choice, Route):
                if choice.role is not Role.PRIMARY or not self._goes_behind(call, cluster.room):
                    return self._chosen(call, choice)
            elif not isinstance(choice, Hold):
                raise choice.error()
            # No await between reading the state and entering the room: a release cannot be missed.
            await self._hold(call, cluster.room, tenant.name, choice.message if isinstance(choice, Hold) else "")

    def route_now(
        self, runtime: TenantRuntime, request: Request, exclude: Collection[EndpointName] = ()
    ) -> Route | None:
        """An endpoint for the first attempt of a read; None when it must wait, go behind others, or be refused."""
        tenant = runtime.tenant
        cluster = self._clusters.get(tenant.cluster)
        if cluster is None:
            return None
        options = request.options
        want = runtime.plain_read if options is DEFAULT_OPTIONS else runtime.want(Access.READ_ONLY, options)
        state = cluster.supervisor.state
        found = runtime.book.candidates(state, want, tenant.weights)
        if request.after is not None:
            narrowed = self._causal.at_once(request, request.after, found, state)
            if narrowed is None:
                return None
            found = narrowed
        choice = pick(found, runtime.balancer, runtime.in_flight, self._chance.draw(), exclude)
        if not isinstance(choice, Route) or (choice.role is Role.PRIMARY and cluster.room.held > 0):
            return None
        return choice

    def note_commit(self, call: Call) -> None:
        """Note on a call whose write was confirmed where it is safe now. Never raises: an error would be its answer."""
        call.durability = self._durability(call)

    def waits_for_standby(self, call: Call) -> bool:
        """Whether a commit where the call goes may wait for a standby."""
        return self._durability(call) is not Durability.LOCAL

    def _durability(self, call: Call) -> Durability:
        cluster = self._clusters.get(call.tenant.cluster)
        if cluster is None:  # it has left the configuration since the call was routed
            return Durability.UNKNOWN
        return durability(call.tenant.policy.commit_wait, cluster.supervisor.state, call.endpoint)

    @staticmethod
    def _goes_behind(call: Call, room: HoldingRoom) -> bool:
        """While a room empties, newcomers go behind those who wait in it; but who asked not to wait does not."""
        return room.held > 0 and not call.released and call.request.options.on_failover is OnFailover.WAIT

    async def _hold(self, call: Call, room: HoldingRoom, tenant: TenantName, why: str) -> None:
        now = self._clock.now()
        if not call.hold_until:
            call.hold_until = now + room.window_s
        call.enter(WaitPhase.HOLD, now)
        try:
            until = min(call.request.deadline, call.hold_until)
            await room.wait(tenant, call.request.size_bytes, until, why=why, before_s=call.held_s)
        finally:
            call.held_s += self._clock.now() - now
        call.released = True

    def _chosen(self, call: Call, route: Route) -> Route:
        take(call, route)
        call.enter(WaitPhase.ACQUIRE, self._clock.now())
        return route


def take(call: Call, route: Route) -> None:
    """Note on the call where it goes."""
    call.endpoint = route.endpoint
    call.role = route.role
    call.route_reason = route.reason
    call.topology = route.topology
    call.token = route.token
    if call.request.after is not None:
        token_of_route(call, call.request.after)
