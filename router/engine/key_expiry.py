"""Deletes idempotency keys that are too old: of tenants that use keys here, some at a time, beside their requests.

Period: PERIOD_S; it ends with the data plane. What cannot be done now is left for the next round, without a word: old
keys harm nobody.
"""

from __future__ import annotations

from router.decisions.keys import PURGE_ROWS, purging
from router.engine.clusters import Clusters
from router.engine.endpoints import Pools
from router.engine.tenants import TenantRuntime, Tenants
from router.model.errors import RouterError
from router.model.observation import AttemptFailed
from router.model.request import Access
from router.ports import Chance, Clock

PERIOD_S = 60.0
PAUSE_S = 0.2
"""Between two statements for one tenant."""
TIMEOUT_S = 5.0


class KeyExpiry:
    """run() as a task."""

    def __init__(self, tenants: Tenants, clusters: Clusters, pools: Pools, clock: Clock, chance: Chance) -> None:
        self._tenants = tenants
        self._clusters = clusters
        self._pools = pools
        self._clock = clock
        self._chance = chance

    async def run(self) -> None:
        """For ever."""
        while True:
            # Processes that started together do not ask together.
            await self._clock.sleep(PERIOD_S * (0.5 + self._chance.draw()))
            for runtime in self._tenants.with_keys():
                await self._purge(runtime)

    async def _purge(self, runtime: TenantRuntime) -> None:
        try:
            while await self._purge_some(runtime) >= PURGE_ROWS:
                await self._clock.sleep(PAUSE_S)
        except (AttemptFailed, RouterError):
            return

    async def _purge_some(self, runtime: TenantRuntime) -> int:
        """How many were deleted; none while there is no primary, or requests wait for a connection."""
        tenant = runtime.tenant
        cluster = self._clusters.get(tenant.cluster)
        state = cluster.supervisor.state if cluster is not None else None
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
