"""Hedged reads: what has not answered within its statement's usual time is asked of a second endpoint, too.

The first answer counts. The other one is given up as any read that nobody waits for: it leaves its line, or is stopped
where that harms no neighbour, and its connection is not lent before it is clean. A budget keeps hedges at hedge_ratio
of the reads that may have one. Only for reads: they run on connections that PostgreSQL keeps from writing.
"""

from __future__ import annotations

import asyncio

from router.decisions.routing import Route
from router.engine.calls import Call
from router.engine.endpoints import Pools
from router.engine.lane_pool import LanePool
from router.engine.placement import Placement, take
from router.engine.positions import position_wanted
from router.engine.shared_read import SharedRead
from router.engine.tenants import HedgeBook, TenantRuntime
from router.model.errors import RouterError
from router.model.events import HedgeOutcome, ReadHedged
from router.model.observation import AttemptFailed, FaultKind
from router.model.policy import TenantPolicy
from router.model.reasons import RouteReason
from router.model.request import Access, Request
from router.ports import Clock, EventSink


def is_hedged(request: Request, policy: TenantPolicy) -> bool:
    """Whether a read may be asked of two endpoints."""
    return policy.hedge_ratio > 0 and (policy.hedge_reads or request.options.hedge)


class _Asked(SharedRead):
    """One of the two."""

    __slots__ = ("pool", "race", "route")

    def __init__(self, call: Call, pool: LanePool, race: _Race, route: Route | None) -> None:
        request = call.request
        super().__init__(request.steps[0].statement, request.deadline, _answered, position_wanted(request))
        self.pool = pool
        self.race = race
        self.route = route
        """Of the second; None: the first, whose route is on the call."""

    @property
    def is_answer(self) -> bool:
        """PostgreSQL's word, also when it is an error that another server would give as well."""
        fault = self.fault
        return fault is None or (fault.kind is FaultKind.SERVER_ERROR and not fault.sqlstate.startswith(("40", "57")))


def _answered(read: SharedRead) -> None:
    assert isinstance(read, _Asked)
    read.race.wake()


class _Race:
    """The reads that run, and a waker."""

    __slots__ = ("_woken", "reads")

    def __init__(self) -> None:
        self.reads: list[_Asked] = []
        self._woken = asyncio.Event()

    def wake(self) -> None:
        self._woken.set()

    def winner(self) -> _Asked | None:
        """The answer; when all have failed, the first failure."""
        for read in self.reads:
            if read.over and read.is_answer:
                return read
        return self.reads[0] if all(read.over for read in self.reads) else None

    async def next(self, timeout_s: float | None) -> None:
        """Until one has ended, or the time is over."""
        if timeout_s is None:
            await self._woken.wait()
        else:
            timer = asyncio.get_running_loop().call_later(timeout_s, self._woken.set)
            try:
                await self._woken.wait()
            finally:
                timer.cancel()
        self._woken.clear()


class Hedging:
    """Runs reads that may be hedged."""

    def __init__(self, placement: Placement, pools: Pools, clock: Clock, events: EventSink) -> None:
        self._placement = placement
        self._pools = pools
        self._clock = clock
        self._events = events

    async def run(self, runtime: TenantRuntime, call: Call, pool: LanePool) -> SharedRead:
        """The answer of whichever endpoint was first; the call's endpoint, role and token are that one's. AttemptFailed
        when none answered."""
        book, sql, began = self._book(runtime), call.request.steps[0].statement.sql, self._clock.now()
        book.budget.earn(began)
        usual_s = book.latencies.usual_s(sql)
        race = _Race()
        self._start(race, _Asked(call, pool, race, None))
        try:
            winner = race.winner()
            while winner is None:
                may_hedge = usual_s is not None and len(race.reads) == 1
                await race.next(usual_s if may_hedge else None)
                winner = race.winner()
                if winner is None and may_hedge:
                    usual_s = None
                    self._hedge(runtime, call, race, book)
        finally:
            for read in race.reads:
                if not read.over:
                    read.pool.give_up(read)
                if read.route is not None:
                    runtime.in_flight[read.route.endpoint] -= 1
        book.latencies.learn(sql, self._clock.now() - began)
        return self._end(call, race, winner)

    def _end(self, call: Call, race: _Race, winner: _Asked) -> SharedRead:
        if len(race.reads) > 1:
            outcome = HedgeOutcome.LOST if winner.route is None else HedgeOutcome.WON
            endpoint = call.endpoint if winner.route is None else winner.route.endpoint
            self._events.emit(ReadHedged(call.tenant.name, outcome, endpoint))
        if winner.fault is not None:
            raise AttemptFailed(winner.fault)
        if winner.route is not None:
            take(call, winner.route)
        return winner

    def _hedge(self, runtime: TenantRuntime, call: Call, race: _Race, book: HedgeBook) -> None:
        """Ask another endpoint, if there is one that may be asked at once and a hedge is left."""
        first = call.endpoint
        route = self._placement.route_now(runtime, call.request, (first, *call.tried))
        # A replica's slowness is not the primary's to make up for.
        if route is None or route.reason is RouteReason.FALLBACK_PRIMARY or route.endpoint in (first, *call.tried):
            return
        try:
            pool = self._pools.get(runtime.tenant, route.endpoint, Access.READ_ONLY, route.generation)
        except (AttemptFailed, RouterError):
            return  # the endpoint or the tenant has changed: the first answer must do
        if not book.budget.take(self._clock.now()):
            return
        call.hedged = True
        call.attempts += 1
        runtime.in_flight[route.endpoint] += 1
        self._start(race, _Asked(call, pool, race, route))

    @staticmethod
    def _start(race: _Race, read: _Asked) -> None:
        race.reads.append(read)
        read.pool.start_shared(read)

    def _book(self, runtime: TenantRuntime) -> HedgeBook:
        book = runtime.hedges
        if book is None:
            book = runtime.hedges = HedgeBook(runtime.tenant.policy.hedge_ratio, self._clock.now())
        return book
