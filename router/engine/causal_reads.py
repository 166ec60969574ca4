"""Reads that carry a consistency token: placed where what it names can be seen, after a bounded wait.

An endpoint whose known position is past the token takes the read at once. Otherwise the replica that balancing prefers
is asked for its position, then the one that has come furthest every POLL_S, for the tenant's token_wait_s at most; then
the primary takes it, or the read is refused, as its fallback says. (Were the furthest asked first, every read of a
cluster that is written to would go there: who was asked last is always ahead of who was not.) A token that says "and
now", or of whose timeline only a part was taken over, is made exact first, by asking the primary. Used by Placement.
"""

from __future__ import annotations

from dataclasses import replace

from router.decisions.consistency import Ahead, Need, ahead, behind, is_past, judge, nearest, past, worth_waiting
from router.decisions.refusal import Refuse
from router.decisions.routing import Candidates, Route, pick
from router.engine.attempts import at_route
from router.engine.calls import Call, Causal
from router.engine.positions import Positions, seen
from router.engine.tenants import TenantRuntime
from router.model.identity import EndpointName
from router.model.observation import AttemptFailed
from router.model.request import Access, ReadFrom, Request
from router.model.state import ClusterState
from router.model.token import Token, decode
from router.model.topology import Role
from router.model.views import WaitPhase
from router.ports import Clock

POLL_S = 0.01
"""Between two questions to a replica that is behind."""


class CausalReads:
    """The part of placement that knows tokens."""

    def __init__(self, positions: Positions, clock: Clock) -> None:
        self._positions = positions
        self._clock = clock

    def at_once(self, request: Request, after: Token, found: Candidates, state: ClusterState) -> Candidates | None:
        """The candidates that can take it without any wait; None when it needs one, or a refusal."""
        need = judge(after, state)
        if not isinstance(need, Need):
            return None
        if request.options.read is ReadFrom.PRIMARY:
            return found
        if need.now:
            return None
        chosen = past(found, state, need, self._positions.known(state))
        return chosen if chosen.routes else None

    def narrow(
        self, runtime: TenantRuntime, call: Call, after: Token, found: Candidates, state: ClusterState
    ) -> Candidates | None:
        """The candidates that can take it now; None: catch_up() first. RouterError when it cannot be served."""
        now = self._clock.now()
        wait_s = runtime.tenant.policy.token_wait_s
        if call.causal is None:
            call.causal = Causal(after, min(now + wait_s, call.request.deadline))
        causal = call.causal
        waited_s = max(0.0, wait_s - max(0.0, causal.until - now))
        need = judge(causal.token, state)
        match need:
            case Refuse():
                raise need.error()
            case Ahead():
                if now >= causal.until:
                    raise ahead(causal.token, state, waited_s).error()
                return None
        if call.request.options.read is ReadFrom.PRIMARY:
            return found
        if need.now:
            primary = self._primary(runtime, call, state)
            return None if isinstance(primary.otherwise, Route) else primary
        chosen = past(found, state, need, self._positions.known(state))
        if chosen.routes or not found.routes:
            return chosen
        if now < causal.until and worth_waiting(found, state, wait_s):
            return None
        if isinstance(found.otherwise, Refuse):
            raise behind(found, state, need, waited_s).error()
        return chosen

    @staticmethod
    def _primary(runtime: TenantRuntime, call: Call, state: ClusterState) -> Candidates:
        """Where a write would go, or wait: only a primary knows what "now" is."""
        want = runtime.want(Access.READ_WRITE, call.request.options)
        return runtime.book.candidates(state, want, runtime.tenant.weights)

    async def catch_up(
        self, runtime: TenantRuntime, call: Call, found: Candidates, state: ClusterState, draw: float
    ) -> None:
        """Wait for what narrow() missed: a newer state, the primary's position, a replica's progress. Not for long.

        draw: a number in [0, 1) for the balancer. AttemptFailed when the primary does not say its position.
        """
        causal = call.causal
        assert causal is not None
        began = self._clock.now()
        call.enter(WaitPhase.REPLAY, began)
        try:
            need = judge(causal.token, state)
            if isinstance(need, Ahead):
                await self._clock.sleep(min(POLL_S, max(0.0, causal.until - began)))
            elif isinstance(need, Need) and need.now:
                await self._ask_primary(runtime, call, causal, state)
            else:
                await self._ask_replica(runtime, causal, found, state, draw)
        finally:
            call.queued_s += self._clock.now() - began

    async def _ask_primary(self, runtime: TenantRuntime, call: Call, causal: Causal, state: ClusterState) -> None:
        route = self._primary(runtime, call, state).otherwise
        assert isinstance(route, Route), "narrow() has seen a primary in this very state"
        try:
            result = await self._positions.ask(
                runtime.tenant, route.endpoint, route.generation, call.request.deadline
            )
        except AttemptFailed as failure:
            call.attempts += 1  # Attempts takes off what no server was asked
            raise at_route(failure, route) from failure
        exact = seen(route.token, result)
        if exact is not None:
            causal.token = replace(causal.token, now=False).merge(exact)
        # From here on a replica is given its time.
        causal.until = min(self._clock.now() + runtime.tenant.policy.token_wait_s, call.request.deadline)

    async def _ask_replica(
        self, runtime: TenantRuntime, causal: Causal, found: Candidates, state: ClusterState, draw: float
    ) -> None:
        preferred = None if causal.asked else pick(found, runtime.balancer, runtime.in_flight, draw)
        causal.asked = True
        if isinstance(preferred, Route) and preferred.role is Role.REPLICA:
            name: EndpointName | None = preferred.endpoint
        else:
            name = nearest(found, state, self._positions.known(state), causal.failed)
        if name is None:
            causal.until = 0.0
            return
        lsn = await self._positions.ask_replica(runtime.tenant, name, state.generation, causal.until)
        need = judge(causal.token, state)
        if lsn is None:
            causal.failed |= {name}
        elif isinstance(need, Need) and not is_past(state.endpoints[name], need, lsn):
            await self._clock.sleep(min(POLL_S, max(0.0, causal.until - self._clock.now())))


def token_of_route(call: Call, after: Token) -> None:
    """The receipt of a read on a known route shows what it was asked to see, too."""
    if call.token:
        known = decode(call.token)
        if known.system_id == after.system_id:
            call.token = known.merge(after).encode()

