"""The connections this process may have open to each endpoint: permits, the line for them, and what makes room.

A permit is taken before a connection is opened and given back when the server has let go of it, so that the server
never sees more than the cap. What each tenant is due of it, and who is next, is decisions/shares; pools of one tenant
are served first come, first served. While somebody waits, room is made in this order: connections idle in other pools,
of tenants that have more than they are due first, least recently used first; lanes nobody has used for a moment; and
then, so that a busy tenant cannot keep everything, the lane lent longest of the tenant that has most beyond its due,
for one who has less than its own. A router of several workers gets its grants, and its parts of tenants' floors and
ceilings, from a ledger (decisions/connection_ledger.py); `Budgets` is the worker's end of it and does no I/O.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping

from router.decisions.shares import Claim
from router.engine.tenant_claims import LanePools, NoLanePools, TenantClaims
from router.model.identity import EndpointName, TenantName
from router.model.ledger import Demand, FloorWish, Grant
from router.model.topology import Endpoint
from router.ports.budgets import BudgetHolder

PRESS_S = 0.02
"""While somebody waits, or more is open than granted, what can be given up is looked for this often."""
TURN_S = 0.25
"""A pool without any connection waits this long, then another pool's lane of its tenant is asked to run dry for it."""
SPARE_S = 0.02
"""A lane unused for this long is given up for others; less is a pause between statements."""
SHARE_S = 0.25
"""The same for a lane of a tenant that has no more than it is due."""
FLOOR_S = 2.0
"""The same for one of a tenant within its floor."""

Beyond = Mapping[TenantName, float]
"""Connections that each tenant has beyond its due; negative: that it lacks."""
_EXACT = 1e-9


class EndpointBudget:
    """ports.ConnectionBudget.

    Invariants: in_use <= granted, save after the grant was lowered, when nothing is opened until it holds again; while
    a permit is free, nobody waits but those at their tenant's ceiling.
    """

    def __init__(self, endpoint: EndpointName, granted: int, changed: Callable[[], None]) -> None:
        self.endpoint = endpoint
        self.granted = granted
        self.in_use = 0
        self.number = 0
        """Of the last Grant obeyed."""
        self.lane_pools: LanePools = NoLanePools()
        self.claims = TenantClaims()
        self._lowered = False
        self._above: set[TenantName] = set()
        """Tenants that have more than their ceilings let them have since these were lowered."""
        self._changed = changed
        self._holders: dict[BudgetHolder, None] = {}
        self._line: dict[asyncio.Future[bool], tuple[BudgetHolder, float]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<EndpointBudget {self.endpoint} {self.in_use}/{self.granted} waiting={self.waiting}>"

    @property
    def waiting(self) -> int:
        """Connections that are wanted and may not be opened, though their tenants' ceilings would allow them."""
        return sum(self._wanted().values())

    def _wanted(self) -> dict[TenantName, int]:
        wanted: Counter[TenantName] = Counter()
        for holder in dict.fromkeys(holder for holder, _ in self._line.values()):
            room = self.claims.room(holder) - wanted[holder.tenant]
            wanted[holder.tenant] += max(0, min(max(1, holder.waiting), room))
        return {tenant: count for tenant, count in wanted.items() if count}

    def shares(self) -> dict[TenantName, int]:
        """Connections that each tenant that has or wants some is due now."""
        return self.claims.targets(self.claims.claims(self._holders, self._wanted()), self.granted)

    # --- taking and giving back --------------------------------------------------------------------------------

    def join(self, holder: BudgetHolder) -> None:
        """ports.ConnectionBudget.join."""
        self._holders[holder] = None

    def leave(self, holder: BudgetHolder) -> None:
        """ports.ConnectionBudget.leave."""
        self._holders.pop(holder, None)
        self.withdraw(holder)

    def try_take(self, holder: BudgetHolder) -> bool:
        """ports.ConnectionBudget.try_take."""
        if self.in_use >= self.granted or self.claims.room(holder) <= 0:
            return False
        self._let(holder)
        return True

    def _let(self, holder: BudgetHolder) -> None:
        self.in_use += 1
        self.claims.hold(holder)

    async def take(self, holder: BudgetHolder) -> bool:
        """ports.ConnectionBudget.take."""
        if self.try_take(holder):
            return True
        loop = asyncio.get_running_loop()
        place: asyncio.Future[bool] = loop.create_future()
        self._line[place] = (holder, loop.time())
        self._changed()
        self.look_again()
        try:
            return await place
        except asyncio.CancelledError:
            # Cancelled in the very turn in which it was served: the permit goes to the next in line.
            if place.done() and not place.cancelled() and place.result():
                self.give_back(holder)
            raise
        finally:
            self._line.pop(place, None)

    def withdraw(self, holder: BudgetHolder) -> None:
        """ports.ConnectionBudget.withdraw."""
        for place in [place for place, (who, _) in self._line.items() if who is holder]:
            del self._line[place]
            if not place.done():
                place.set_result(False)

    def give_back(self, holder: BudgetHolder) -> None:
        """ports.ConnectionBudget.give_back."""
        self.in_use -= 1
        self.claims.free(holder)
        if self._lowered and self.in_use <= self.granted:
            self._lowered = False
            self._changed()
        if holder.policy.ceiling and self.claims.ceilings is not None:
            self._above &= self.claims.above()
            self._changed()  # another worker may wait for it
        self._serve()

    def regrant(
        self,
        connections: int,
        floors: Mapping[TenantName, int] | None = None,
        ceilings: Mapping[TenantName, int] | None = None,
    ) -> None:
        """May have so many from now on: fewer than are open now stops opening and closes what can be spared.

        floors, ceilings: see TenantClaims.
        """
        claims = self.claims
        if (connections, floors, ceilings) != (self.granted, claims.floors, claims.ceilings):
            self.granted, claims.floors, claims.ceilings = connections, floors, ceilings
            self._lowered = self.in_use > connections
            self._above = claims.above()
            self._serve()
            self.look_again()

    def demand(self) -> Demand:
        """What the ledger needs to know."""
        wanted = self._wanted()
        used: Counter[TenantName] = Counter()
        floors = {holder.tenant: holder.policy.floor for holder in self._holders if holder.policy.floor}
        for holder in self._holders:
            if holder.tenant in floors:
                used[holder.tenant] += max(0, holder.keeps - holder.idle)
        wishes = {tenant: FloorWish(floor, used[tenant] + wanted.get(tenant, 0)) for tenant, floor in floors.items()}
        in_line = dict.fromkeys(holder for holder, _ in self._line.values())
        ceilings = self.claims.ceiling_wishes(self._holders, in_line)
        return Demand(self.endpoint, self.granted, self.in_use, sum(wanted.values()), self.number, wishes, ceilings)

    def _serve(self) -> None:
        while self._line and self.in_use < self.granted:
            wanted = self._wanted()
            if not wanted:
                return
            tenant = next(iter(wanted))
            if len(wanted) > 1:
                claims = self.claims.claims(self._holders, wanted)
                tenant = self.claims.next_in_line(claims, wanted, self.granted)
            place = next(place for place, (holder, _) in self._line.items() if holder.tenant == tenant)
            holder, _ = self._line.pop(place)
            if not place.done():
                self._let(holder)
                place.set_result(True)

    # --- making room -------------------------------------------------------------------------------------------

    def look_again(self) -> None:
        """ports.ConnectionBudget.look_again."""
        if not self._line and self.in_use <= self.granted and not self._above:
            return
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(PRESS_S, self._pressed)
        if self._short() > 0:
            beyond = self._beyond(self.claims.dues)
            while self._short() > 0 and self._close_idle(beyond):
                pass
            if self._short() > 0:
                self.lane_pools.free_lanes(self.endpoint, self._patience(beyond))

    def _pressed(self) -> None:
        self._timer = None
        wanted = self._wanted()
        claims = self.claims.claims(self._holders, wanted)
        times = self.lane_pools.database_times(self.endpoint)
        self.claims.charge(claims, wanted, times, asyncio.get_running_loop().time())
        self.look_again()
        while self._short() > 0 and self._retire_lane():
            pass
        for tenant in tuple(self._above):
            self._lower(tenant)
        self._level_within_ceilings()
        self.lane_pools.end_retired(self.endpoint)

    def _short(self) -> int:
        """Permits that are missing and not on their way back."""
        wanted = self._wanted()
        places = Counter(holder.tenant for holder, _ in self._line.values())
        wished = sum(min(count, wanted.get(tenant, 0)) for tenant, count in places.items())
        return wished + self.in_use - self.granted - sum(holder.leaving for holder in self._holders)

    def _beyond(self, divide: Callable[[Mapping[TenantName, Claim], int], Mapping[TenantName, float]]) -> Beyond:
        claims = self.claims.claims(self._holders, self._wanted())
        due = divide(claims, self.granted)
        return {tenant: claim.keeps - due[tenant] for tenant, claim in claims.items()}

    def _patience(self, beyond: Beyond) -> dict[TenantName, float]:
        """How long each tenant's lanes may be unused while others wait."""
        keeps: Counter[TenantName] = Counter()
        for holder in self._holders:
            keeps[holder.tenant] += holder.keeps
        wanted = self._wanted()
        patience = dict.fromkeys((one for one, more in beyond.items() if more < _EXACT and one not in wanted), SHARE_S)
        for holder in self._holders:
            if holder.tenant in patience and keeps[holder.tenant] <= self.claims.floor(holder.tenant, holder.policy):
                patience[holder.tenant] = FLOOR_S
        return patience

    def _close_idle(self, beyond: Beyond) -> bool:
        """Of those who wait themselves first, then of those that have more than they are due."""
        below_min = self.in_use > self.granted  # an order, not a wish
        wanted = self._wanted()
        idle = [
            (holder.tenant not in wanted, beyond.get(holder.tenant, 0.0) < _EXACT, since, holder)
            for holder in self._holders
            if not holder.waiting and (since := holder.idle_since(below_min=below_min)) is not None
        ]
        if not idle:
            return False
        min(idle, key=lambda one: one[:3])[3].close_idle()
        return True

    def _retire_lane(self) -> bool:
        """Take from the tenant that has most beyond its due, for one that has less; between pools of one tenant, from
        whoever has most; for a lowered grant, from whoever has most beyond its due."""
        beyond = self._beyond(self.claims.targets)
        richest = sorted(self._holders, key=lambda holder: (-beyond.get(holder.tenant, 0), -holder.keeps))
        if self.in_use > self.granted:
            return any(holder.keeps and holder.retire_lane() for holder in richest)
        for poor, since in self._line.values():
            if beyond.get(poor.tenant, 0) < 0:
                if any(beyond.get(rich.tenant, 0) > 0 and rich.retire_lane() for rich in richest):
                    return True
            elif self._level(poor, since, [one for one in richest if one.tenant == poor.tenant]):
                return True
        return False

    @staticmethod
    def _level(poor: BudgetHolder, since: float, own: Iterable[BudgetHolder]) -> bool:
        """Pools of one tenant: the one with most gives while another has two fewer, or nothing at all for TURN_S."""
        waited_s = asyncio.get_running_loop().time() - since
        enough = 1 if poor.keeps == 0 and waited_s >= TURN_S else 2
        return any(rich.keeps - poor.keeps >= enough and rich.retire_lane() for rich in own)

    def _lower(self, tenant: TenantName) -> None:
        """Down to its ceiling, with what is not used first."""
        own = sorted((one for one in self._holders if one.tenant == tenant), key=lambda one: -one.keeps)
        ceiling = (self.claims.ceilings or {}).get(tenant, 0)
        for _ in range(sum(one.keeps for one in own) - ceiling):
            idle = next((one for one in own if one.idle_since(below_min=True) is not None), None)
            if idle is not None:
                idle.close_idle()
            elif not any(one.retire_lane() for one in own):
                return

    def _level_within_ceilings(self) -> None:
        """Who waits at its tenant's ceiling can only have what the tenant's other pools have."""
        for poor, since in list(self._line.values()):
            if self.claims.room(poor) > 0:
                continue
            own = sorted((one for one in self._holders if one.tenant == poor.tenant), key=lambda one: -one.keeps)
            if sum(one.leaving for one in own):
                continue
            idle = next((one for one in own if not one.waiting and one.idle_since(below_min=False) is not None), None)
            if idle is not None:
                idle.close_idle()
            else:
                self._level(poor, since, own)

    def close(self) -> None:
        """The router ends."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Budgets:
    """Every endpoint's budget. divided: grants come from a ledger by on_grant(), and until the first one nothing may
    be opened; else an endpoint's whole cap is this process's own."""

    def __init__(self, *, divided: bool = False, changed: Callable[[], None] = lambda: None) -> None:
        self.changed = changed
        """Called when a report should be made at once: somebody began to wait, or a lower grant has been met."""
        self._divided = divided
        self._caps: dict[EndpointName, int] = {}
        self._budgets: dict[EndpointName, EndpointBudget] = {}
        self._lane_pools: LanePools = NoLanePools()

    def __iter__(self) -> Iterator[EndpointBudget]:
        return iter(self._budgets.values())

    def of(self, endpoint: Endpoint) -> EndpointBudget:
        """The budget of an endpoint, made when there is none."""
        self._caps.setdefault(endpoint.name, endpoint.max_connections)
        return self._of(endpoint.name)

    def find(self, name: EndpointName) -> EndpointBudget | None:
        """The budget of an endpoint that was used or granted already."""
        return self._budgets.get(name)

    def has_room(self, name: EndpointName) -> bool:
        """Less than half of what may be open is."""
        budget = self._budgets.get(name)
        return budget is not None and 2 * budget.in_use < budget.granted

    def _of(self, name: EndpointName) -> EndpointBudget:
        budget = self._budgets.get(name)
        if budget is None:
            granted = 0 if self._divided else self._caps.get(name, 0)
            budget = self._budgets[name] = EndpointBudget(name, granted, lambda: self.changed())
            budget.claims.floors = budget.claims.ceilings = {} if self._divided else None
            budget.lane_pools = self._lane_pools
        return budget

    def serve_lanes(self, lane_pools: LanePools) -> None:
        """Who is asked for lanes that nobody uses, and what tenants have used. Called before the first use."""
        self._lane_pools = lane_pools
        for budget in self:
            budget.lane_pools = lane_pools

    def apply(self, endpoints: Iterable[Endpoint]) -> None:
        """The caps of a configuration. A budget of an endpoint that is gone stays until its connections are closed."""
        self._caps = {one.name: one.max_connections for one in endpoints}
        for name, budget in list(self._budgets.items()):
            if name not in self._caps and not budget.in_use:
                budget.close()
                del self._budgets[name]
        for name, cap in self._caps.items():
            if not self._divided:
                self._of(name).regrant(cap)

    def on_grant(self, grant: Grant) -> None:
        """Obey a grant of the ledger. One that comes late, after a newer one, is ignored."""
        budget = self._of(grant.endpoint)
        if grant.number > budget.number:
            budget.number = grant.number
            budget.regrant(grant.connections, grant.floors, grant.ceilings)
        if budget.in_use <= budget.granted:
            self.changed()

    def report(self) -> list[Demand]:
        """What the ledger needs to know, of each endpoint that is used or granted."""
        return [one.demand() for one in self]

    def close(self) -> None:
        """The router ends."""
        for budget in self:
            budget.close()
