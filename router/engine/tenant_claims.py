"""Who is due what of one endpoint's connections, computed from its pools when somebody waits.

decisions/shares says how; here its facts are gathered: what each tenant's pools have, want and have used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Protocol

from router.decisions.shares import KEPT, UNBOUNDED, Claim, Turns, dues, next_in_line, targets
from router.model.identity import EndpointName, TenantName
from router.model.ledger import CeilingWish
from router.model.policy import PoolPolicy
from router.ports.budgets import BudgetHolder

BUSY_PERIOD_S = 0.2
"""Nobody has waited for so long: what was used before is forgotten."""


class LanePools(Protocol):
    """What an endpoint's budget asks of the lane pools on it (endpoints.Pools)."""

    def free_lanes(self, endpoint: EndpointName, patience: Mapping[TenantName, float]) -> None:
        """Give lanes back that nobody has used for a moment; patience: of tenants whose lanes may be unused for longer
        (seconds)."""

    def end_retired(self, endpoint: EndpointName) -> None:
        """End the lanes that were asked to run dry and have nothing to do: no answer is going to end them."""

    def database_times(self, endpoint: EndpointName) -> Mapping[TenantName, float]:
        """Connection seconds that each tenant's statements and transactions have taken so far; a tenant whose number
        falls has begun anew."""


class NoLanePools:
    """Nobody uses the budgets but pools of connections."""

    def free_lanes(self, endpoint: EndpointName, patience: Mapping[TenantName, float]) -> None:
        """Nothing is there."""

    def end_retired(self, endpoint: EndpointName) -> None:
        """Nothing is there."""

    def database_times(self, endpoint: EndpointName) -> Mapping[TenantName, float]:
        """Nothing is known."""
        return {}


class TenantClaims:
    """Claims of the tenants at one endpoint. Called from the event loop only."""

    def __init__(self) -> None:
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

    def ceiling_wishes(
        self, holders: Iterable[BudgetHolder], in_line: Iterable[BudgetHolder]
    ) -> dict[TenantName, CeilingWish]:
        """What the ledger needs to know of those with a ceiling. in_line: holders that wait."""
        wishes: Counter[TenantName] = Counter()
        ceilings = dict(self._bounded)
        for holder in holders:
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

    def claims(
        self, holders: Iterable[BudgetHolder], waiting: Mapping[TenantName, int]
    ) -> dict[TenantName, Claim]:
        """Of every tenant that has or wants a connection."""
        keeps: Counter[TenantName] = Counter()
        policies: dict[TenantName, PoolPolicy] = {}
        for holder in holders:
            keeps[holder.tenant] += holder.keeps
            policies[holder.tenant] = holder.policy
        return {
            tenant: Claim(
                count,
                waiting.get(tenant, 0),
                self.floor(tenant, policy),
                float(policy.weight),
                self.ceiling(tenant, policy),
                self._turns.of(tenant),
            )
            for tenant, policy in policies.items()
            if (count := keeps[tenant]) or tenant in waiting
        }

    @staticmethod
    def dues(claims: Mapping[TenantName, Claim], cap: int) -> dict[TenantName, float]:
        """Connections that each is due, with fractions."""
        return dict(zip(claims, dues([*claims.values()], cap), strict=True))

    @staticmethod
    def targets(claims: Mapping[TenantName, Claim], cap: int) -> dict[TenantName, int]:
        """Whole connections that each is due now."""
        return dict(zip(claims, targets([*claims.values()], cap), strict=True))

    @staticmethod
    def next_in_line(claims: Mapping[TenantName, Claim], waiting: Iterable[TenantName], cap: int) -> TenantName:
        """Which of those that wait gets what has just become free."""
        order = [*claims]
        places = {tenant: index for index, tenant in enumerate(order)}
        return order[next_in_line([*claims.values()], [places[one] for one in waiting], cap)]

    def charge(
        self,
        claims: Mapping[TenantName, Claim],
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
            tenant: max(KEPT * claim.keeps * since, times.get(tenant, 0.0) - seen.get(tenant, 0.0) if since else 0.0)
            for tenant, claim in claims.items()
        }
        self._turns.step(used, {tenant: claim.weight for tenant, claim in claims.items()}, [*waiting])
