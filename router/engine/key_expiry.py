"""Deletes idempotency keys that are too old, some at a time, beside the tenants' requests.

Two periods, which end with the data plane. Tenants that use keys here are seen to every PERIOD_S. All the others of the
configuration are visited in turn, once in ROUND_S: keys may be left of a time before this process. A visit is one
connection, one statement, and closed; one at a time, never to an endpoint that has little room, and never again where
there is no table for keys. What cannot be done now is left for the next time, without a word: old keys harm nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from router.decisions.keys import PURGE_ROWS, KeyTrouble, purging, trouble
from router.engine.clusters import Clusters
from router.engine.endpoints import Pools
from router.engine.tenants import Tenants
from router.model.errors import RouterError
from router.model.identity import EndpointName, TenantName
from router.model.observation import AttemptFailed
from router.model.request import Access
from router.model.state import ClusterState
from router.model.topology import Tenant
from router.ports import Chance, Clock

PERIOD_S = 60.0
PAUSE_S = 0.2
"""Between two statements for one tenant."""
TIMEOUT_S = 5.0
ROUND_S = 86_400.0
"""Of the visits: with 10,000 tenants one in 9 s."""
MOST_BETWEEN_S = 60.0
"""Between two visits: a few tenants are seen to soon after the start."""


class KeyExpiry:
    """run() and visit() as tasks."""

    def __init__(
        self,
        tenants: Tenants,
        configured: Callable[[], Mapping[TenantName, Tenant]],
        clusters: Clusters,
        pools: Pools,
        has_room: Callable[[EndpointName], bool],
        clock: Clock,
        chance: Chance,
    ) -> None:
        self._tenants = tenants
        self._configured = configured
        self._clusters = clusters
        self._pools = pools
        self._has_room = has_room
        self._clock = clock
        self._chance = chance
        self._without: set[TenantName] = set()
        """No table for keys was found there."""

    async def run(self) -> None:
        """For ever: the tenants that use keys here."""
        while True:
            # Processes that started together do not ask together.
            await self._clock.sleep(PERIOD_S * (0.5 + self._chance.draw()))
            for runtime in self._tenants.with_keys():
                await self._purge(runtime.tenant)

    async def visit(self) -> None:
        """For ever: the others."""
        while True:
            ends = self._clock.now() + ROUND_S
            # Another order each time: a process that never gets to the end of a round leaves nobody out for ever.
            order = [name for _, name in sorted((self._chance.draw(), name) for name in self._configured())]
            self._without.intersection_update(order)
            between_s = min(MOST_BETWEEN_S, ROUND_S / max(1, len(order)))
            for name in order:
                await self._clock.sleep(between_s * (0.5 + self._chance.draw()))
                await self._visit(name)
            await self._clock.sleep(max(between_s, ends - self._clock.now()))

    async def _visit(self, name: TenantName) -> None:
        tenant, runtime = self._configured().get(name), self._tenants.find(name)
        if tenant is None or name in self._without or (runtime is not None and runtime.uses_keys):
            return
        state = self._state(tenant)
        if state is None or state.primary is None or not self._has_room(state.primary):
            return
        in_use = self._pools.find(name, state.primary, Access.READ_WRITE) is not None
        try:
            await self._purge(tenant)
        finally:
            if not in_use:
                self._pools.close_unused(name, state.primary, Access.READ_WRITE)

    async def _purge(self, tenant: Tenant) -> None:
        try:
            while await self._purge_some(tenant) >= PURGE_ROWS:
                await self._clock.sleep(PAUSE_S)
        except AttemptFailed as failure:
            if trouble(failure.fault, at_row=True) is KeyTrouble.NOT_CONFIGURED:
                self._without.add(tenant.name)
        except RouterError:
            return

    async def _purge_some(self, tenant: Tenant) -> int:
        """How many were deleted; none while there is no primary, or requests wait for a connection."""
        state = self._state(tenant)
        if state is None or state.primary is None:
            return 0
        pool = self._pools.get(tenant, state.primary, Access.READ_WRITE, state.generation)
        if pool.waiting:
            return 0
        deadline = self._clock.now() + TIMEOUT_S
        slot = await pool.pin(deadline)
        try:
            statements = (purging(tenant.name, tenant.policy.key_age_s),)
            unit = await pool.run_pinned(slot, statements, deadline, commits=True, tells_executed=True)
            return unit.results[0].rows_affected
        finally:
            pool.release(slot)

    def _state(self, tenant: Tenant) -> ClusterState | None:
        cluster = self._clusters.get(tenant.cluster)
        return cluster.supervisor.state if cluster is not None else None
