"""The connections this process may have open to each endpoint: permits, the line for them, and what makes room.

A permit is taken before a connection is opened and given back when the server has let go of it, so that the server
never sees more than the cap. Who waits is served first come, first served. While somebody waits, room is made in this
order: connections idle in other pools, least recently used first; lanes nobody has used for a moment; and then, so
that a busy pool cannot keep everything, the lane lent longest of the pool that has most, as long as the one who waits
has at least two fewer (or nothing at all, for TURN_S). A router of several workers gets its grants from a ledger
(decisions/connection_ledger.py); `Budgets` is the worker's end of it and does no I/O.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator

from router.model.identity import EndpointName
from router.model.ledger import Demand, Grant
from router.model.topology import Endpoint
from router.ports import BudgetHolder

PRESS_S = 0.02
"""While somebody waits, or more is open than granted, what can be given up is looked for this often."""
TURN_S = 0.25
"""A pool without any connection waits this long, then another pool's lane is asked to run dry for it."""

FreeLanes = Callable[[EndpointName], None]


class EndpointBudget:
    """ports.ConnectionBudget.

    Invariants: in_use <= granted, save after the grant was lowered, when nothing is opened until it holds again; while
    a permit is free, nobody waits.
    """

    def __init__(self, endpoint: EndpointName, granted: int, changed: Callable[[], None]) -> None:
        self.endpoint = endpoint
        self.granted = granted
        self.in_use = 0
        self.number = 0
        """Of the last Grant obeyed."""
        self.free_lanes: FreeLanes = lambda _: None
        """Has the lane pools of the endpoint give lanes back that nobody uses."""
        self._lowered = False
        self._changed = changed
        self._holders: dict[BudgetHolder, None] = {}
        self._line: dict[asyncio.Future[bool], tuple[BudgetHolder, float]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<EndpointBudget {self.endpoint} {self.in_use}/{self.granted} waiting={self.waiting}>"

    @property
    def waiting(self) -> int:
        """Connections that are wanted and may not be opened."""
        return sum(max(1, holder.waiting) for holder in dict.fromkeys(holder for holder, _ in self._line.values()))

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
        if self._line or self.in_use >= self.granted:
            return False
        self.in_use += 1
        return True

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
        if self._lowered and self.in_use <= self.granted:
            self._lowered = False
            self._changed()
        self._serve()

    def regrant(self, connections: int) -> None:
        """May have so many from now on: fewer than are open now stops opening and closes what can be spared."""
        if connections != self.granted:
            self.granted = connections
            self._lowered = self.in_use > connections
            self._serve()
            self.look_again()

    def _serve(self) -> None:
        while self._line and self.in_use < self.granted:
            place = next(iter(self._line))
            del self._line[place]
            if not place.done():
                self.in_use += 1
                place.set_result(True)

    # --- making room -------------------------------------------------------------------------------------------

    def look_again(self) -> None:
        """ports.ConnectionBudget.look_again."""
        if not self._line and self.in_use <= self.granted:
            return
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(PRESS_S, self._pressed)
        while self._short() > 0 and self._close_idle():
            pass
        if self._short() > 0:
            self.free_lanes(self.endpoint)

    def _pressed(self) -> None:
        self._timer = None
        self.look_again()
        while self._short() > 0 and self._retire_lane():
            pass

    def _short(self) -> int:
        """Permits that are missing and not on their way back."""
        return len(self._line) + self.in_use - self.granted - sum(holder.leaving for holder in self._holders)

    def _close_idle(self) -> bool:
        below_min = self.in_use > self.granted  # an order, not a wish
        idle = [
            (since, holder)
            for holder in self._holders
            if not holder.waiting and (since := holder.idle_since(below_min=below_min)) is not None
        ]
        if not idle:
            return False
        min(idle, key=lambda one: one[0])[1].close_idle()
        return True

    def _retire_lane(self) -> bool:
        """Take from whoever has most, for whoever has fewer; for a lowered grant, from whoever has most."""
        richest = sorted(self._holders, key=lambda holder: -holder.keeps)
        if self.in_use > self.granted:
            return any(holder.keeps and holder.retire_lane() for holder in richest)
        now = asyncio.get_running_loop().time()
        for poor, since in self._line.values():
            enough = 1 if poor.keeps == 0 and now - since >= TURN_S else 2
            for rich in richest:
                if rich.keeps - poor.keeps >= enough and rich.retire_lane():
                    return True
        return False

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
        self._free_lanes: FreeLanes = lambda _: None

    def __iter__(self) -> Iterator[EndpointBudget]:
        return iter(self._budgets.values())

    def of(self, endpoint: Endpoint) -> EndpointBudget:
        """The budget of an endpoint, made when there is none."""
        self._caps.setdefault(endpoint.name, endpoint.max_connections)
        return self._of(endpoint.name)

    def find(self, name: EndpointName) -> EndpointBudget | None:
        """The budget of an endpoint that was used or granted already."""
        return self._budgets.get(name)

    def _of(self, name: EndpointName) -> EndpointBudget:
        budget = self._budgets.get(name)
        if budget is None:
            granted = 0 if self._divided else self._caps.get(name, 0)
            budget = self._budgets[name] = EndpointBudget(name, granted, lambda: self.changed())
            budget.free_lanes = lambda one: self._free_lanes(one)
        return budget

    def serve_lanes(self, free_lanes: FreeLanes) -> None:
        """How the lane pools of an endpoint are asked for lanes that nobody uses."""
        self._free_lanes = free_lanes

    def apply(self, endpoints: Iterable[Endpoint]) -> None:
        """The caps of a configuration. A budget of an endpoint that is gone stays until its connections are closed."""
        self._caps = {one.name: one.max_connections for one in endpoints}
        for name, budget in list(self._budgets.items()):
            if name not in self._caps and not budget.in_use:
                budget.close()
                del self._budgets[name]
        if not self._divided:
            for name, cap in self._caps.items():
                self._of(name).regrant(cap)

    def on_grant(self, grant: Grant) -> None:
        """Obey a grant of the ledger. One that comes late, after a newer one, is ignored."""
        budget = self._of(grant.endpoint)
        if grant.number > budget.number:
            budget.number = grant.number
            budget.regrant(grant.connections)
        if budget.in_use <= budget.granted:
            self.changed()

    def report(self) -> list[Demand]:
        """What the ledger needs to know, of each endpoint that is used or granted."""
        return [Demand(one.endpoint, one.granted, one.in_use, one.waiting, one.number) for one in self]

    def close(self) -> None:
        """The router ends."""
        for budget in self:
            budget.close()
