"""Who gives up a connection when somebody waits for one, or more are open than granted: see connection_budget.

Each of these goes through the pools or the line once, whatever number of connections is missing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from heapq import heapify, heappop, heapreplace

from router.engine.permit_line import Place
from router.engine.permit_survey import Beyond, Survey
from router.engine.tenant_claims import TenantClaims
from router.model.identity import TenantName
from router.ports.budgets import BudgetHolder

TURN_S = 0.25
"""A pool without any connection waits this long, then another pool's lane of its tenant is asked to run dry for it."""
SPARE_S = 0.02
"""A lane unused for this long is given up for others; less is a pause between statements."""
SHARE_S = 0.25
"""The same for a lane of a tenant that has no more than it is due."""
FLOOR_S = 2.0
"""The same for one of a tenant within its floor."""
_EXACT = 1e-9


def close_idle(survey: Survey, beyond: Beyond) -> None:
    """Of those who wait themselves first, then of those that have more than they are due."""
    below_min = survey.lowered
    idle = [
        ((tenant not in survey.wanted, beyond.get(tenant, 0.0) < _EXACT, since), number, holder)
        for number, (tenant, holder) in enumerate(survey.holders())
        if not holder.waiting and (since := holder.idle_since(below_min=below_min)) is not None
    ]
    heapify(idle)
    while survey.short > 0 and idle:
        (waits, within, _), number, holder = idle[0]
        holder.close_idle()
        survey.lets_go(holder.tenant)
        since = holder.idle_since(below_min=below_min)
        if since is None:
            heappop(idle)
        else:
            heapreplace(idle, ((waits, within, since), number, holder))


def patience(survey: Survey, beyond: Beyond) -> dict[TenantName, float]:
    """How long each tenant's lanes may be unused while others wait."""
    found: dict[TenantName, float] = {}
    for tenant, more in beyond.items():
        if more < _EXACT and tenant not in survey.wanted:
            floor = survey.claims.floor(tenant, survey.claims.policy(tenant))
            found[tenant] = FLOOR_S if survey.keeps[tenant] <= floor else SHARE_S
    return found


def retire_lanes(survey: Survey, beyond: dict[TenantName, int]) -> None:
    """Take from the tenant that has most beyond its due, for one that has less; between pools of one tenant, from
    whoever has most; for a lowered grant, from whoever has most beyond its due. beyond follows what was taken."""
    givers = _Givers(survey, beyond)
    if survey.lowered:
        while survey.short > 0 and givers.give():
            pass
        return
    for place in tuple(survey.line):
        poor = place.holder.tenant
        while survey.short > 0:
            if beyond.get(poor, 0) < 0:
                if not givers.give():
                    break
            elif _level(place, survey.claims.of(poor)):
                survey.lets_go(poor)
                beyond[poor] = beyond.get(poor, 0) - 1
            else:
                break
        if survey.short <= 0:
            return


class _Givers:
    """Pools that may be asked for a lane: those of the tenant with most beyond its due first, of these the one that
    keeps most. What one gave is no reason to divide anew: whoever has more than its due is not due less for it."""

    def __init__(self, survey: Survey, beyond: dict[TenantName, int]) -> None:
        self._survey = survey
        self._beyond = beyond
        self._heap = [
            (self._place(holder), number, holder)
            for number, (tenant, holder) in enumerate(survey.holders())
            if survey.lowered or beyond.get(tenant, 0) > 0
        ]
        heapify(self._heap)

    def _place(self, holder: BudgetHolder) -> tuple[int, int]:
        return -self._beyond.get(holder.tenant, 0), -holder.keeps

    def give(self) -> bool:
        """One lane; False when nobody has one to give."""
        heap, beyond = self._heap, self._beyond
        while heap:
            was, number, holder = heap[0]
            now = self._place(holder)
            if now > was:
                heapreplace(heap, (now, number, holder))  # another pool of its tenant gave
            elif (self._survey.lowered or now[0] < 0) and now[1] and holder.retire_lane():
                self._survey.lets_go(holder.tenant)
                beyond[holder.tenant] = beyond.get(holder.tenant, 0) - 1
                return True
            else:
                heappop(heap)
        return False


def _level(place: Place, own: Iterable[BudgetHolder]) -> bool:
    """Pools of one tenant: the one with most gives while another has two fewer, or nothing at all for TURN_S."""
    poor = place.holder
    others = [one for one in own if one is not poor]
    if not others:
        return False
    keeps = poor.keeps
    waited_s = asyncio.get_running_loop().time() - place.since
    enough = 1 if keeps == 0 and waited_s >= TURN_S else 2
    return any(one.keeps - keeps >= enough and one.retire_lane() for one in _by_size(others))


def _by_size(pools: Iterable[BudgetHolder]) -> list[BudgetHolder]:
    return sorted(pools, key=lambda one: -one.keeps)


def lower(claims: TenantClaims, tenant: TenantName) -> None:
    """Down to its ceiling, with what is not used first."""
    own = _by_size(claims.of(tenant))
    ceiling = (claims.ceilings or {}).get(tenant, 0)
    for _ in range(sum(one.keeps for one in own) - ceiling):
        idle = next((one for one in own if one.idle_since(below_min=True) is not None), None)
        if idle is not None:
            idle.close_idle()
        elif not any(one.retire_lane() for one in own):
            return


def level_within_ceilings(claims: TenantClaims, line: Iterable[Place]) -> None:
    """Who waits at its tenant's ceiling can only have what the tenant's other pools have."""
    for place in list(line):
        poor = place.holder
        if claims.room(poor) > 0:
            continue
        own = _by_size(claims.of(poor.tenant))
        if sum(one.leaving for one in own):
            continue
        idle = next((one for one in own if not one.waiting and one.idle_since(below_min=False) is not None), None)
        if idle is not None:
            idle.close_idle()
        else:
            _level(place, own)
