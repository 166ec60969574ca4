"""The connections this process may have open to each endpoint: permits, the line for them, and what makes room.

A permit is taken before a connection is opened and given back when the server has let go of it, so that the server
never sees more than the cap. What each tenant is due of it, and who is next, is decisions/shares; pools of one tenant
are served first come, first served. While somebody waits, room is made (making_room) in this order: connections idle
in other pools, of tenants that have more than they are due first, least recently used first; lanes nobody has used for
a moment; and then, so that a busy tenant cannot keep everything, the lane lent longest of the tenant that has most
beyond its due, for one who has less than its own. A router of several workers gets its grants, and its parts of
tenants' floors and ceilings, from a ledger (decisions/connection_ledger.py); `Budgets` is the worker's end of it and
does no I/O.

Asking all pools takes the longer the more there are, and after a failover all of them wait at once. So they are asked
once for all who wait, and not again for a rest that grows with their number.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping

from router.decisions.letting_go import still_counts
from router.engine.making_room import close_idle, level_within_ceilings, lower, patience, retire_lanes
from router.engine.permit_line import PermitLine, Place, ServingOrder, Standing
from router.engine.permit_survey import Survey, wanted
from router.engine.tenant_claims import LanePools, NoLanePools, TenantClaims
from router.model.events import Health
from router.model.identity import EndpointName, TenantName
from router.model.ledger import Demand, FloorWish, Grant
from router.model.state import ClusterState
from router.model.topology import Endpoint
from router.ports.budgets import BudgetHolder

PRESS_S = 0.02
"""While somebody waits, or more is open than granted, what can be given up is looked for this often."""
REST_S = 0.00002
"""For each tenant that has or wants a connection: so long, all together, none is asked again after all were."""
LANES_REST_S = 0.000005
"""The same for each pool of the endpoint, when all were asked for lanes."""


class EndpointBudget:
    """ports.ConnectionBudget.

    Invariants: in_use <= granted, save after the grant was lowered, when nothing is opened until it holds again; while
    a permit is free, nobody waits but those at their tenant's ceiling; pools of other tenants than the caller's are
    asked at most twice in each rest: where there is room, and who is next.
    """

    def __init__(self, endpoint: EndpointName, granted: int, changed: Callable[[], None]) -> None:
        self.endpoint = endpoint
        self.granted = granted
        self.in_use = 0
        self.number = 0
        """Of the last Grant obeyed."""
        self.lane_pools: LanePools = NoLanePools()
        self.claims = TenantClaims()
        self.gone = False
        """The server is known to be down or fenced, or has left the configuration."""
        self._lowered = False
        self._above: set[TenantName] = set()
        """Tenants that have more than their ceilings let them have since these were lowered."""
        self._changed = changed
        self._line = PermitLine()
        self._order: ServingOrder | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._later: asyncio.TimerHandle | None = None
        """A look that was asked for during the rest."""
        self._rests_until = float("-inf")

    def __repr__(self) -> str:
        return f"<EndpointBudget {self.endpoint} {self.in_use}/{self.granted} waiting={self.waiting}>"

    @property
    def unused(self) -> bool:
        """No pool is here, nor a connection that the server has not let go of."""
        return not self.claims.pools and not self.in_use

    @property
    def waiting(self) -> int:
        """Connections that are wanted and may not be opened, though their tenants' ceilings would allow them."""
        return sum(wanted(self.claims, self._line).values())

    def shares(self) -> dict[TenantName, int]:
        """Connections that each tenant that has or wants some is due now."""
        return self._survey().targets()

    def _survey(self) -> Survey:
        return Survey(self.claims, self._line, self.in_use, self.granted)

    # --- taking and giving back --------------------------------------------------------------------------------

    def join(self, holder: BudgetHolder) -> None:
        """ports.ConnectionBudget.join."""
        self.claims.join(holder)

    def leave(self, holder: BudgetHolder) -> None:
        """ports.ConnectionBudget.leave."""
        self.claims.leave(holder)
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
        place = self._line.join(holder)
        self._put_in_order(holder.tenant)
        self._changed()
        self.look_again()
        try:
            return await place.future
        except asyncio.CancelledError:
            # Cancelled in the very turn in which it was served: the permit goes to the next in line.
            if place.future.done() and not place.future.cancelled() and place.future.result():
                self.give_back(holder)
            raise
        finally:
            self._line.leave(place)

    def withdraw(self, holder: BudgetHolder) -> None:
        """ports.ConnectionBudget.withdraw."""
        self._line.withdraw(holder)

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
        self._put_in_order(holder.tenant)
        self._serve()

    def still_counts(self, closed_s: float, *, heard: bool) -> bool:
        """ports.ConnectionBudget.still_counts."""
        return still_counts(closed_s, heard=heard, gone=self.gone)

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
            self._order = None
            self._serve()
            self.look_again()

    def demand(self) -> Demand:
        """What the ledger needs to know."""
        wishes = wanted(self.claims, self._line)
        used: Counter[TenantName] = Counter()
        floors = {holder.tenant: holder.policy.floor for holder in self.claims.all() if holder.policy.floor}
        for tenant in floors:
            used[tenant] = sum(max(0, holder.keeps - holder.idle) for holder in self.claims.of(tenant))
        of_floors = {tenant: FloorWish(floor, used[tenant] + wishes.get(tenant, 0)) for tenant, floor in floors.items()}
        ceilings = self.claims.ceiling_wishes(dict.fromkeys(place.holder for place in self._line))
        total = sum(wishes.values())
        return Demand(self.endpoint, self.granted, self.in_use, total, self.number, of_floors, ceilings)

    # --- serving -----------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        while self._line and self.in_use < self.granted:
            place = self._next()
            if place is None:
                return
            self._line.leave(place)
            self._let(place.holder)
            place.future.set_result(True)
            self._put_in_order(place.holder.tenant)

    def _next(self) -> Place | None:
        if len(self._line.of) == 1:
            self._order = None
            return self._first(next(iter(self._line.of)))
        order = self._current_order()
        while (tenant := order.take()) is not None:
            place = self._first(tenant)
            if place is not None:
                order.served(tenant)
                return place
        return None

    def _first(self, tenant: TenantName) -> Place | None:
        """Of a tenant's places, the first that may have a permit."""
        places = self._line.of.get(tenant, ())
        return next((one for one in places if not one.future.done() and self.claims.room(one.holder) > 0), None)

    def _current_order(self) -> ServingOrder:
        now = asyncio.get_running_loop().time()
        if self._order is None or now >= self._order.until:
            survey = self._survey()
            beyond = survey.beyond_targets()
            self._order = self._ordered(survey, beyond)
        return self._order

    def _ordered(self, survey: Survey, beyond: Mapping[TenantName, int]) -> ServingOrder:
        standings = {one: Standing(beyond.get(one, 0), self.claims.time_s(one)) for one in survey.wanted}
        until = asyncio.get_running_loop().time() + REST_S * len(survey.keeps)
        return ServingOrder(self._line, standings, until)

    def _put_in_order(self, tenant: TenantName) -> None:
        """It waits, or may have more than before. One that the order was not computed with lacks only its floor."""
        order = self._order
        if order is not None and tenant in self._line.of and not order.knows(tenant):
            own = self.claims.of(tenant)
            lacks = sum(one.keeps for one in own) - self.claims.floor(tenant, self.claims.policy(tenant)) if own else 0
            order.add(self._line, tenant, Standing(lacks, self.claims.time_s(tenant)))

    # --- making room -------------------------------------------------------------------------------------------

    @property
    def _looks(self) -> bool:
        return len(self._line) > 0 or self.in_use > self.granted or len(self._above) > 0

    def look_again(self) -> None:
        """ports.ConnectionBudget.look_again."""
        if not self._looks:
            return
        loop = asyncio.get_running_loop()
        self._press_soon(loop)
        if self._later is not None:
            return
        if loop.time() >= self._rests_until:
            self._look(self._survey())
        else:
            self._later = loop.call_at(self._rests_until, self._look_later)

    def _press_soon(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is None:
            self._timer = loop.call_at(max(loop.time() + PRESS_S, self._rests_until), self._pressed)

    def _look_later(self) -> None:
        self._later = None
        if self._looks:
            self._look(self._survey())

    def _look(self, survey: Survey) -> None:
        self._rests_until = asyncio.get_running_loop().time() + REST_S * len(survey.keeps)
        if survey.short > 0:
            beyond = survey.beyond_due()
            close_idle(survey, beyond)
            if survey.short > 0:
                self._rests_until += LANES_REST_S * self.claims.pools
                self.lane_pools.free_lanes(self.endpoint, patience(survey, beyond), survey.short)

    def _pressed(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = None
        if self._later is not None:
            self._later.cancel()
            self._later = None
        survey = self._survey()
        times = self.lane_pools.database_times(self.endpoint)
        self.claims.charge(survey.keeps, survey.wanted, times, loop.time())
        self._order = None
        if self._looks:
            self._look(survey)
            self._press_soon(loop)
        if survey.short > 0:
            beyond = survey.beyond_targets()
            retire_lanes(survey, beyond)
            self._order = self._ordered(survey, beyond)
        for tenant in tuple(self._above):
            lower(self.claims, tenant)
        level_within_ceilings(self.claims, self._line)
        self.lane_pools.end_retired(self.endpoint)

    def close(self) -> None:
        """The router ends."""
        for timer in (self._timer, self._later):
            if timer is not None:
                timer.cancel()
        self._timer = self._later = None


class Budgets:
    """Every endpoint's budget. divided: grants come from a ledger by on_grant(), and until the first one nothing may
    be opened; else an endpoint's whole cap is this process's own."""

    def __init__(self, *, divided: bool = False, changed: Callable[[], None] = lambda: None) -> None:
        self.changed = changed
        """Called when a report should be made at once: somebody began to wait, or a lower grant has been met."""
        self._divided = divided
        self._caps: dict[EndpointName, int] = {}
        self._gone: set[EndpointName] = set()
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
            budget.gone = name in self._gone
        return budget

    def serve_lanes(self, lane_pools: LanePools) -> None:
        """Who is asked for lanes that nobody uses, and what tenants have used. Called before the first use."""
        self._lane_pools = lane_pools
        for budget in self:
            budget.lane_pools = lane_pools

    def apply(self, endpoints: Iterable[Endpoint]) -> None:
        """The caps of a configuration. A budget of an endpoint that is gone stays while a pool might use it: beside
        its successor's it would be a grant taken twice."""
        self._caps = {one.name: one.max_connections for one in endpoints}
        for name, budget in list(self._budgets.items()):
            if name not in self._caps and budget.unused:
                budget.close()
                del self._budgets[name]
        self._gone &= self._caps.keys()
        for name, budget in self._budgets.items():
            budget.gone = name in self._gone or name not in self._caps
        for name, cap in self._caps.items():
            if not self._divided:
                self._of(name).regrant(cap)

    def on_state(self, state: ClusterState) -> None:
        """Called after each publication of a cluster's state, synchronously."""
        for name, one in state.endpoints.items():
            gone = one.health in (Health.DOWN, Health.QUARANTINED)
            (self._gone.add if gone else self._gone.discard)(name)
            budget = self._budgets.get(name)
            if budget is not None:
                budget.gone = gone

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
