"""Those who wait for a permit of an endpoint, and the order in which their tenants are served."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from heapq import heapify, heappop, heappush
from typing import NamedTuple

from router.decisions.shares import turn
from router.model.identity import TenantName
from router.ports.budgets import BudgetHolder


class Place:
    """Of one who waits."""

    __slots__ = ("future", "holder", "number", "since")

    def __init__(self, holder: BudgetHolder, number: int, since: float, future: asyncio.Future[bool]) -> None:
        self.holder = holder
        self.number = number
        self.since = since
        """Since when it waits (monotonic seconds)."""
        self.future = future
        """True: it has its permit; False: it does not need one any more."""


class PermitLine:
    """The places by tenant; within a tenant, first come, first served."""

    def __init__(self) -> None:
        self.of: dict[TenantName, dict[Place, None]] = {}
        """Of each tenant that waits."""
        self._places: dict[Place, None] = {}
        self._number = 0

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Place]:
        """In the order in which they came."""
        return iter(self._places)

    def join(self, holder: BudgetHolder) -> Place:
        """Behind all others."""
        loop = asyncio.get_running_loop()
        self._number += 1
        place = Place(holder, self._number, loop.time(), loop.create_future())
        self._places[place] = None
        self.of.setdefault(holder.tenant, {})[place] = None
        return place

    def leave(self, place: Place) -> None:
        """It waits no longer."""
        if place not in self._places:
            return
        del self._places[place]
        tenant = place.holder.tenant
        own = self.of[tenant]
        del own[place]
        if not own:
            del self.of[tenant]

    def withdraw(self, holder: BudgetHolder) -> None:
        """All places of a pool end without a permit."""
        for place in [one for one in self.of.get(holder.tenant, ()) if one.holder is holder]:
            self.leave(place)
            if not place.future.done():
                place.future.set_result(False)


class Standing(NamedTuple):
    """Of one tenant that waits."""

    beyond: int
    """Connections that it has beyond its due; negative: that it lacks."""
    time_s: float
    """Its weighted database time."""


class ServingOrder:
    """Which tenant is next, as it was computed at one moment, and kept in order while permits are given out.

    Whoever comes later stands where add() puts it. A tenant that waits no longer, or may have no more, is found in its
    turn, and skipped by the caller.
    """

    def __init__(self, line: PermitLine, standings: Mapping[TenantName, Standing], until: float) -> None:
        self.until = until
        """It is computed anew from then on."""
        self._standings = dict(standings)
        self._heap = [(*turn(one.beyond, one.time_s), _first(line, name), name) for name, one in standings.items()]
        self._queued = set(standings)
        heapify(self._heap)

    def knows(self, tenant: TenantName) -> bool:
        """It has a place in this order."""
        return tenant in self._queued

    def add(self, line: PermitLine, tenant: TenantName, standing: Standing) -> None:
        """It waits now, or again. What was computed of it, if anything, holds."""
        known = self._standings.setdefault(tenant, standing)
        self._queued.add(tenant)
        heappush(self._heap, (*turn(known.beyond, known.time_s), _first(line, tenant), tenant))

    def take(self) -> TenantName | None:
        """Who is next; it has no place in the order until it is added again."""
        if not self._heap:
            return None
        tenant = heappop(self._heap)[-1]
        self._queued.discard(tenant)
        return tenant

    def served(self, tenant: TenantName) -> None:
        """It has one connection more."""
        standing = self._standings[tenant]
        self._standings[tenant] = standing._replace(beyond=standing.beyond + 1)


def _first(line: PermitLine, tenant: TenantName) -> int:
    return next(iter(line.of[tenant])).number
