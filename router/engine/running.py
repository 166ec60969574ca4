"""How much runs at each endpoint, and who may begin while it is limited: decisions/concurrency, carried out.

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

from router.decisions.concurrency import ConcurrencyLimit, Due, Slowness, Standing, Usual, next_to_run
from router.decisions.lane_costs import Cost, CostBook
from router.engine.lane_slots import Slot
from router.engine.tenant_parts import TenantParts
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
PAUSE_S = 0.01
"""A connection that is lent rests when nothing has run on it for so long; less is a moment between two statements."""
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
        self._pools: dict[TenantName, dict[PoolRuns, None]] = {}
        self._waiting: dict[PoolRuns, None] = {}
        self._turn = 0
        self._aside = 0
        """At the last tick: what runs and lets the server rest."""
        self._slowness: Slowness[TenantName] = Slowness(0.0)
        self._company: deque[int] = deque(maxlen=_REMEMBERED)
        self._peak = 0
        self._level = 0.0
        """Both since the last tick."""
        self._parts = TenantParts()
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
            self.limit, self._slowness, self._aside = ConcurrencyLimit(least, cap, now), Slowness(now), 0
            self._parts.clear()
            for tenant, pools in self._pools.items():
                if self._of[tenant]:
                    self._parts.join(tenant, next(iter(pools)).due, self.limit)
        else:
            self.limit.resize(least, cap)
        self._serve_soon()

    def join(self, pool: PoolRuns) -> None:
        """It may run something here."""
        self._pools.setdefault(pool.tenant, {})[pool] = None

    def leave(self, pool: PoolRuns) -> None:
        """It will not any more."""
        pools = self._pools.get(pool.tenant, {})
        pools.pop(pool, None)
        if not pools:
            self._pools.pop(pool.tenant, None)
        self._waiting.pop(pool, None)

    # --- who may begin -----------------------------------------------------------------------------------------

    def lets(self, pool: PoolRuns) -> bool:
        """Whether a pool may begin something now; if not it is served later."""
        if self.limit is None or not self._of[pool.tenant]:
            return True
        if (self._has_room(pool) or self._has_room(pool, self._apart(pool.tenant))) and (
            not self._serving or self._next([pool, *self._with_room()]) is pool  # else nobody waits who has room
        ):
            return True
        self._waiting[pool] = None
        self._tick_soon()
        return False

    def _has_room(self, pool: PoolRuns, apart: int | None = None) -> bool:
        """apart: of what its tenant runs; None: as at the last tick."""
        limit, part = self.limit, self._parts.get(pool.tenant)
        if limit is None or part is None:
            return True
        own = self._of[pool.tenant] - (part.apart if apart is None else apart)
        if own <= 0:
            return True
        room = self.running - self._aside < limit.allowed
        return room and (not limit.divides or own < part.connections)

    def _apart(self, tenant: TenantName) -> int:
        now = self._clock.now()
        return sum(pool.apart(now) for pool in self._pools.get(tenant, ()))

    def _with_room(self) -> list[PoolRuns]:
        return [pool for pool in self._waiting if self._has_room(pool)]

    def _next(self, pools: Iterable[PoolRuns]) -> PoolRuns:
        return next_to_run({one: Standing(self._of[one.tenant], one.due, one.running, one.turn) for one in pools})

    def began(self, pool: PoolRuns) -> None:
        """One connection more is at work."""
        self.running += 1
        self._of[pool.tenant] += 1
        if self.limit is None:
            return
        part = self._parts.get(pool.tenant) or self._parts.join(pool.tenant, pool.due, self.limit)
        part.ran = True
        if self.running > self._peak:
            self._peak = self.running
        if (level := part.level(self._of[pool.tenant], self.limit)) > self._level:
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
        if limit.step(measured, now, self._chance.draw()):
            self._slowness = Slowness(now)
        dues = {tenant: pool.due for tenant, pools in self._pools.items() for pool in pools}
        self._parts.renew(self._of, dues, now)
        self._parts.divide(limit)
        self._peak, self._level = self.running, self._parts.level(self._of, limit)
        self._aside = 0
        if self._waiting:
            self._aside = sum(pool.aside(now) for pools in self._pools.values() for pool in pools if pool.running)
            for tenant in {pool.tenant for pool in self._waiting}:
                self._parts.set_apart(tenant, self._apart(tenant))
            self._serve()
        if self.running or self._waiting or self._parts:
            self._tick_soon()

    def close(self) -> None:
        """The router ends."""
        if self._timer is not None:
            self._timer.cancel()
        self.limit = self._timer = None


class PoolRuns:
    """What one pool of lanes runs at its endpoint."""

    def __init__(self, runs: EndpointRuns, tenant: TenantName, policy: PoolPolicy) -> None:
        self.runs = runs
        self.tenant = tenant
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

    def apart(self, now: float) -> int:
        """The same, and those with fast reads only: nobody keeps these waiting, and they keep nothing of their tenant
        waiting."""
        return sum(slot.running and (not (slot.private or slot.slow) or _rests(slot, now)) for slot in self.slots())


def _rests(slot: Slot, now: float) -> bool:
    head = slot.units[0] if slot.units else None
    if head is None or not head.sent:
        return slot.pinned and now - max(slot.pinned_at, slot.answered_at) > PAUSE_S
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
