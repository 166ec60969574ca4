"""How much runs at each endpoint, and who may begin while it is limited: decisions/concurrency, carried out.

Each tenant has its part of a limit, and keeps it for a moment when it runs nothing: callers that ask again as soon as
they are answered would else find what they had left taken by a crowd.

What is counted are connections at work: lanes with statements on them, and those lent to one caller. Fast reads are
counted, but never kept waiting: how many lanes they use is decisions/lane_growth's matter. Nor is a tenant of which
nothing runs, nor anything on a connection that was lent already: it may hold locks that those wait for who would be let
in before it. What does not run although it holds a connection (a transaction that waits for its caller, a statement
that has been running so much longer than usual that it must wait for a lock) makes room for another one.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from router.decisions.concurrency import ConcurrencyLimit, Due, Slowness, Standing, Usual, next_to_run, parts
from router.decisions.lane_costs import Cost, CostBook
from router.engine.lane_slots import Slot
from router.model.identity import EndpointName, TenantName
from router.model.policy import Concurrency, PoolPolicy
from router.model.request import Statement
from router.model.topology import Cluster
from router.model.views import Allowance
from router.ports import Chance, Clock

TICK_S = 0.05
"""While something runs, the limit is looked at this often."""
STUCK_S = 1.0
"""What has been running for longer than this, and STUCK times as long as usual, waits for something else."""
STUCK = 8.0
KEPT_S = 0.5
"""For so long after it has run something a tenant's part is not divided among the others."""
LAG = 0.2
"""Share of the newest tick in our own lateness."""
_REMEMBERED = 40
"""Ticks whose company is known; what takes longer is taken to have had that of these."""


class EndpointRuns:
    """Of one endpoint, in this process. Called from the event loop only.

    Invariant: once the loop has turned, nobody waits while a place is free.
    """

    def __init__(self, endpoint: EndpointName, clock: Clock, chance: Chance) -> None:
        self.endpoint = endpoint
        self.limit: ConcurrencyLimit | None = None
        """None: whatever is open may run."""
        self.running = 0
        self._clock = clock
        self._chance = chance
        self._of: Counter[TenantName] = Counter()
        self._pools: dict[PoolRuns, None] = {}
        self._waiting: dict[PoolRuns, None] = {}
        self._turn = 0
        self._aside: Counter[TenantName] = Counter()
        self._slowness: Slowness[TenantName] = Slowness(0.0)
        self._company: deque[int] = deque(maxlen=_REMEMBERED)
        self._peak = 0
        self._level = 0.0
        """Both since the last tick."""
        self._sharing: dict[TenantName, _Sharer] = {}
        self._lag_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._serving = False

    @property
    def allowance(self) -> Allowance:
        """For an operator."""
        limit = self.limit
        return Allowance() if limit is None else Allowance(limit.allowed, limit.reason, limit.slower)

    def now(self) -> float:
        """Monotonic seconds."""
        return self._clock.now()

    def set_limit(self, mode: Concurrency, least: int, cap: int) -> None:
        """The configuration's word."""
        least = min(least, cap)
        if mode is Concurrency.FIXED:
            self.limit = None
        elif self.limit is None:
            now = self._clock.now()
            self.limit, self._slowness = ConcurrencyLimit(least, cap, now), Slowness(now)
            for pool in self._pools:
                if pool.running:
                    self._share_with(pool)
        else:
            self.limit.resize(least, cap)
        self._serve_soon()

    def join(self, pool: PoolRuns) -> None:
        """It may run something here."""
        self._pools[pool] = None

    def leave(self, pool: PoolRuns) -> None:
        """It will not any more."""
        self._pools.pop(pool, None)
        self._waiting.pop(pool, None)

    # --- who may begin -----------------------------------------------------------------------------------------

    def lets(self, pool: PoolRuns) -> bool:
        """Whether a pool may begin something now; if not it is served later."""
        if self.limit is None or not self._of[pool.tenant]:
            return True
        if self._has_room(pool) and (not self._waiting or self._next([pool, *self._with_room()]) is pool):
            return True
        self._waiting[pool] = None
        self._tick_soon()
        return False

    def _has_room(self, pool: PoolRuns) -> bool:
        limit = self.limit
        if limit is None:
            return True
        if self.running - self._aside.total() >= limit.allowed:
            return False
        tenant = pool.tenant
        sharer = self._sharing.get(tenant)
        return not limit.divides or sharer is None or self._of[tenant] - self._aside[tenant] < sharer.part

    def _with_room(self) -> list[PoolRuns]:
        return [pool for pool in self._waiting if self._has_room(pool)]

    def _next(self, pools: Iterable[PoolRuns]) -> PoolRuns:
        return next_to_run({
            one: Standing(self._of[one.tenant], one.policy.floor, one.policy.weight, one.running, one.turn)
            for one in pools
        })

    def began(self, pool: PoolRuns) -> None:
        """One connection more is at work."""
        self.running += 1
        self._of[pool.tenant] += 1
        if self.limit is None:
            return
        sharer = self._sharing.get(pool.tenant) or self._share_with(pool)
        sharer.ran = True
        if self.running > self._peak:
            self._peak = self.running
        if (level := self._of[pool.tenant] * sharer.scale) > self._level:
            self._level = level
        if self._waiting:
            self._turn += 1
            pool.turn = self._turn
        self._tick_soon()

    def ended(self, tenant: TenantName) -> None:
        """One less."""
        self.running -= 1
        self._of[tenant] -= 1
        if not self._of[tenant]:
            del self._of[tenant]
        if self._waiting:
            self._serve_soon()

    def _serve_soon(self) -> None:
        if self._waiting and not self._serving:
            self._serving = True
            asyncio.get_running_loop().call_soon(self._serve)

    def _serve(self) -> None:
        self._serving = False
        for _ in range(len(self._waiting)):
            pools = self._with_room()
            if not pools:
                return
            pool = self._next(pools)
            del self._waiting[pool]
            pool.serve()

    # --- parts -------------------------------------------------------------------------------------------------

    def _share_with(self, pool: PoolRuns) -> _Sharer:
        """Its tenant runs something and has a part from now on."""
        sharer = self._sharing[pool.tenant] = _Sharer(pool.due)
        self._divide()
        return sharer

    def _divide(self) -> None:
        limit, sharing = self.limit, self._sharing
        if limit is None or not sharing:
            return
        weights = sum(one.due.weight for one in sharing.values())
        limit.share(min(one.due.weight for one in sharing.values()) / weights)
        if limit.divides:
            for name, part in parts(limit.level, {name: one.due for name, one in sharing.items()}).items():
                sharing[name].part = part
        for one in sharing.values():
            one.scale = weights / one.due.weight

    def _renew(self, now: float) -> None:
        """Who has not run anything for a while has no part any more; of its pools the latest knows its weight."""
        for pool in self._pools:
            if (sharer := self._sharing.get(pool.tenant)) is not None:
                sharer.due = pool.due
        for name, one in list(self._sharing.items()):
            if one.ran or self._of[name]:
                one.ran, one.at = False, now
            elif now - one.at > KEPT_S:
                del self._sharing[name]

    # --- measuring ---------------------------------------------------------------------------------------------

    def note(self, tenant: TenantName, cost: Cost, took_s: float) -> None:
        """The server has worked for so long on one answer (as it seemed to us)."""
        if self.limit is None:
            return
        if cost.usual is None:
            cost.usual = Usual()
        recent = list(self._company)[: int(took_s / TICK_S) + 1]
        company = max(self._peak, *recent) if recent else self._peak
        calm = company <= self.limit.least
        told = cost.usual.note(took_s - self._lag_s, self.limit.least if calm else company, self._clock.now())
        self._slowness.note(tenant, told, calm=calm)

    def _tick_soon(self) -> None:
        if self._timer is None:
            due = self._clock.now() + TICK_S
            self._timer = asyncio.get_running_loop().call_at(due, self._tick, due)

    def _tick(self, due: float) -> None:
        self._timer = None
        limit, now = self.limit, self._clock.now()
        if limit is None:
            return
        self._lag_s += LAG * (max(0.0, now - due) - self._lag_s)
        self._company.appendleft(self._peak)
        measured = self._slowness
        measured.saw(self._peak, self._level)
        self._peak, self._level = self.running, max((self._of[name] * one.scale for name, one in self._sharing.items()),
                                                    default=0.0)
        if limit.step(measured, now, self._chance.draw()):
            self._slowness = Slowness(now)
        self._renew(now)
        self._divide()
        self._aside = Counter()
        if self._waiting:
            for pool in self._pools:
                if pool.running:
                    self._aside[pool.tenant] += pool.aside(now)
            self._serve()
        if self.running or self._waiting or self._sharing:
            self._tick_soon()

    def close(self) -> None:
        """The router ends."""
        if self._timer is not None:
            self._timer.cancel()
        self.limit = self._timer = None


class _Sharer:
    """A tenant that runs something, or did a moment ago."""

    __slots__ = ("at", "due", "part", "ran", "scale")

    def __init__(self, due: Due) -> None:
        self.due = due
        self.part = 1
        """Connections it may have at work while the limit divides."""
        self.scale = 1.0
        """Of the level, for each of its connections."""
        self.ran = True
        """Since the last tick."""
        self.at = 0.0
        """Of the last tick at which it had (monotonic seconds)."""


class PoolRuns:
    """What one pool of lanes runs at its endpoint."""

    def __init__(self, runs: EndpointRuns, tenant: TenantName, policy: PoolPolicy) -> None:
        self.runs = runs
        self.tenant = tenant
        self.policy = policy
        self.due = Due(policy.floor, policy.weight)
        self.running = 0
        """Connections at work."""
        self.turn = 0
        """When it was last let in before others."""
        self.serve: Callable[[], None] = lambda: None
        """Called when it was kept waiting and may begin."""
        self.slots: Callable[[], Iterable[Slot]] = tuple
        runs.join(self)

    def may_begin(self) -> bool:
        """Whether a connection more may begin to work; if not, serve is called when one may."""
        return self.runs.limit is None or self.runs.lets(self)

    def began(self, slot: Slot) -> None:
        """A connection works; told once until it has ended."""
        slot.running = True
        self.running += 1
        self.runs.began(self)

    def ended(self, slot: Slot) -> None:
        """It does not any more, if it did."""
        if not slot.running:
            return
        slot.running = False
        self.running -= 1
        self.runs.ended(self.tenant)

    def cost_of(self, book: CostBook, statements: Sequence[Statement]) -> Cost | None:
        """What is known of a unit on a lane of its own; None where nobody wants to know."""
        if self.runs.limit is None:
            return None
        cost = book.of(tuple(one.sql for one in statements))
        book.touch(cost, self.runs.now())
        return cost

    def note(self, cost: Cost, took_s: float) -> None:
        """Such a unit was answered. Not for what waits for a standby: that is not the server's work."""
        self.runs.note(self.tenant, cost, took_s)

    def note_turn(self, answers: Mapping[Cost, int], took_s: float) -> None:
        """Answers of shared reads that came in one turn. Those that came together tell nothing of each."""
        if self.runs.limit is not None and len(answers) == 1:
            ((cost, count),) = answers.items()
            if count == 1:
                self.runs.note(self.tenant, cost, took_s)

    def aside(self, now: float) -> int:
        """Connections of it that are lent, or have a statement, and let the server rest."""
        return sum(slot.running and _rests(slot, now) for slot in self.slots())


def _rests(slot: Slot, now: float) -> bool:
    head = slot.units[0] if slot.units else None
    if head is None or not head.sent:
        return slot.pinned
    cost: Cost | None = getattr(head, "cost", None)  # of a COPY or a stream nothing is usual
    usual_s = cost.usual.usual_s(now) if cost is not None and cost.usual is not None else 0.0
    return now - max(head.sent_at, slot.answered_at) > max(STUCK_S, STUCK * usual_s)


class Runs:
    """Every endpoint's."""

    def __init__(self, clock: Clock, chance: Chance) -> None:
        self._clock = clock
        self._chance = chance
        self._runs: dict[EndpointName, EndpointRuns] = {}

    def of(self, endpoint: EndpointName) -> EndpointRuns:
        """An endpoint's, made when there is none; whatever is open may run until apply() says otherwise."""
        runs = self._runs.get(endpoint)
        if runs is None:
            runs = self._runs[endpoint] = EndpointRuns(endpoint, self._clock, self._chance)
        return runs

    def apply(self, clusters: Iterable[Cluster]) -> None:
        """The limits of a configuration. What of an endpoint that is gone still runs stays counted."""
        kept: set[EndpointName] = set()
        for cluster in clusters:
            policy = cluster.policy
            for one in cluster.endpoints:
                kept.add(one.name)
                self.of(one.name).set_limit(policy.concurrency, policy.least_concurrency, one.max_connections)
        for name in [name for name, runs in self._runs.items() if name not in kept and not runs.running]:
            self._runs.pop(name).close()

    def __iter__(self) -> Iterator[EndpointRuns]:
        return iter(self._runs.values())

    def close(self) -> None:
        """The router ends."""
        for runs in self._runs.values():
            runs.close()
