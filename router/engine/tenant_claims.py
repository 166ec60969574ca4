"""Each tenant's pools at one endpoint, and what decisions/shares needs to know of them: what they have, want and have
used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Protocol

from router.decisions.shares import KEPT, UNBOUNDED, Claim, Turns
from router.model.identity import EndpointName, TenantName
from router.model.ledger import CeilingWish
from router.model.policy import PoolPolicy
from router.ports.budgets import BudgetHolder

BUSY_PERIOD_S = 0.2
"""Nobody has waited for so long: what was used before is forgotten."""


class LanePools(Protocol):
    """What an endpoint's budget asks of the lane pools on it (endpoints.Pools)."""

    def free_lanes(self, endpoint: EndpointName, patience: Mapping[TenantName, float], most: int) -> None:
        """Give lanes back that nobody has used for a moment, of so many pools at most; patience: of tenants whose lanes
        may be unused for longer (seconds)."""

    def end_retired(self, endpoint: EndpointName) -> None:
        """End the lanes that were asked to run dry and have nothing to do: no answer is going to end them."""

    def database_times(self, endpoint: EndpointName) -> Mapping[TenantName, float]:
        """Connection seconds that each tenant's statements and transactions have taken so far; a tenant whose number
        falls has begun anew."""


class NoLanePools:
    """Nobody uses the budgets but pools of connections."""

    def free_lanes(self, endpoint: EndpointName, patience: Mapping[TenantName, float], most: int) -> None:
        """Nothing is there."""

    def end_retired(self, endpoint: EndpointName) -> None:
        """Nothing is there."""

    def database_times(self, endpoint: EndpointName) -> Mapping[TenantName, float]:
        """Nothing is known."""
        return {}


class TenantClaims:
    """Claims of the tenants at one endpoint. Called from the event loop only."""

    def __init__(self) -> None:
        self.pools = 0
        """How many there are, of all tenants."""
        self._of: dict[TenantName, dict[BudgetHolder, None]] = {}
        self._held: Counter[TenantName] = Counter()
        self._turns: Turns[TenantName] = Turns()
        self._seen: dict[TenantName, float] = {}
        self._stepped_at = float("-inf")
        self.floors: Mapping[TenantName, int] | None = None
        """Connections of each tenant's floor that are this process's; None: all, as there is no other one."""
        self.ceilings: Mapping[TenantName, int] | None = None
        """Most connections here of each tenant with a ceiling, of others none; None: as configured, as above."""
        self._bounded: dict[TenantName, int] = {}
        """Ceilings of tenants that have a permit, as configured."""

    # --- pools -------------------------------------------------------------------------------------------------

    def join(self, holder: BudgetHolder) -> None:
        """A pool of a tenant from now on."""
        own = self._of.setdefault(holder.tenant, {})
        self.pools += holder not in own
        own[holder] = None

    def leave(self, holder: BudgetHolder) -> None:
        """It is no longer asked for anything."""
        own = self._of.get(holder.tenant, {})
        if holder in own:
            self.pools -= 1
            del own[holder]
            if not own:
                del self._of[holder.tenant]

    def all(self) -> Iterator[BudgetHolder]:
        """Pools of all tenants."""
        for own in self._of.values():
            yield from own

    def of(self, tenant: TenantName) -> Collection[BudgetHolder]:
        """A tenant's pools."""
        return self._of.get(tenant, ())

    def policy(self, tenant: TenantName) -> PoolPolicy:
        """Of a tenant that has pools: of the newest one."""
        return next(reversed(self._of[tenant])).policy

    def count(self, waiting: Iterable[TenantName]) -> tuple[dict[TenantName, int], int]:
        """Connections that each tenant keeps that has or wants some, and how many are on their way back. Pools of those
        without a permit are not asked."""
        found: dict[TenantName, int] = dict.fromkeys((one for one in waiting if one in self._of), 0)
        leaving = 0
        for tenant in self._held:
            keeps = 0
            for holder in self._of.get(tenant, ()):
                keeps += holder.keeps
                leaving += holder.leaving
            if keeps or tenant in found:
                found[tenant] = keeps
        return found, leaving

    # --- ceilings ----------------------------------------------------------------------------------------------

    def hold(self, holder: BudgetHolder) -> None:
        """It has one permit more."""
        self._held[holder.tenant] += 1
        if holder.policy.ceiling:
            self._bounded[holder.tenant] = holder.policy.ceiling
        else:
            self._bounded.pop(holder.tenant, None)

    def free(self, holder: BudgetHolder) -> None:
        """It has one less."""
        self._held[holder.tenant] -= 1
        if not self._held[holder.tenant]:
            del self._held[holder.tenant]
            self._bounded.pop(holder.tenant, None)

    def room(self, holder: BudgetHolder) -> int:
        """How many more its ceiling lets it have; negative: it has too many."""
        return self.ceiling(holder.tenant, holder.policy) - self._held[holder.tenant]

    def ceiling(self, tenant: TenantName, policy: PoolPolicy) -> int:
        """Most connections here."""
        if not policy.ceiling:
            return UNBOUNDED
        return policy.ceiling if self.ceilings is None else min(policy.ceiling, self.ceilings.get(tenant, 0))

    def above(self) -> set[TenantName]:
        """Tenants that have more than their ceilings let them have by now."""
        if self.ceilings is None:
            return set()
        return {one for one in self._bounded if self._held[one] > self.ceilings.get(one, 0)}

    def ceiling_wishes(self, in_line: Iterable[BudgetHolder]) -> dict[TenantName, CeilingWish]:
        """What the ledger needs to know of those with a ceiling. in_line: holders that wait."""
        wishes: Counter[TenantName] = Counter()
        ceilings = dict(self._bounded)
        for holder in self.all():
            if holder.policy.ceiling:
                wishes[holder.tenant] += max(0, holder.keeps - holder.idle)
        for holder in in_line:
            if holder.policy.ceiling:
                ceilings[holder.tenant] = holder.policy.ceiling
                wishes[holder.tenant] += max(1, holder.waiting)
        return {
            tenant: CeilingWish(ceiling, self._held[tenant], min(wishes[tenant], ceiling))
            for tenant, ceiling in ceilings.items()
        }

    def floor(self, tenant: TenantName, policy: PoolPolicy) -> int:
        """Connections that stay a tenant's own here."""
        return policy.floor if self.floors is None else min(policy.floor, self.floors.get(tenant, 0))

    # --- shares ------------------------------------------------------------------------------------------------

    def claims(self, keeps: Mapping[TenantName, int], waiting: Mapping[TenantName, int]) -> list[Claim]:
        """Of every tenant that has or wants a connection, in the order of keeps."""
        claims = []
        for tenant, count in keeps.items():
            policy, wants, time_s = self.policy(tenant), waiting.get(tenant, 0), self._turns.of(tenant)
            floor, ceiling = self.floor(tenant, policy), self.ceiling(tenant, policy)
            claims.append(Claim(count, wants, floor, float(policy.weight), ceiling, time_s))
        return claims

    def time_s(self, tenant: TenantName) -> float:
        """Its weighted database time."""
        return self._turns.of(tenant)

    def charge(
        self,
        keeps: Mapping[TenantName, int],
        waiting: Iterable[TenantName],
        times: Mapping[TenantName, float],
        now: float,
    ) -> None:
        """Called every now and then while somebody waits: count what was used since the last time."""
        since = now - self._stepped_at
        self._stepped_at = now
        seen, self._seen = self._seen, dict(times)
        if since > BUSY_PERIOD_S:
            self._turns.begin()
            since = 0.0
        used = {
            tenant: max(KEPT * count * since, times.get(tenant, 0.0) - seen.get(tenant, 0.0) if since else 0.0)
            for tenant, count in keeps.items()
        }
        self._turns.step(used, {tenant: float(self.policy(tenant).weight) for tenant in keeps}, [*waiting])
