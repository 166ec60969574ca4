"""decisions/connection_ledger: the cap is never passed, whatever gets lost or dies; demand is met fairly, and then all
is quiet."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from itertools import groupby

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from router.decisions.connection_ledger import Ledger, WorkerId, divide, fair_shares, gone, hear, join, resize
from router.model.identity import EndpointName, TenantName
from router.model.ledger import CeilingWish, Demand, FloorWish, Grant

PG1 = EndpointName("pg1")
ACME, BETA = TenantName("acme"), TenantName("beta")
CEILING = 3
"""Of BETA, at PG1."""


@dataclass
class Worker:
    """A worker that does what a worker may do."""

    wants: int = 0
    granted: int = 0
    number: int = 0
    in_use: int = 0
    floors: dict[TenantName, FloorWish] = field(default_factory=dict)
    """Of its tenants; their wishes are part of wants."""
    parts: dict[TenantName, int] = field(default_factory=dict)
    bounded_wants: int = 0
    """Connections of BETA, which has a ceiling; beside the others."""
    bounded: int = 0
    """Those it has."""
    limit: int = 0
    """Those it may have."""

    def obey(self, grant: Grant) -> None:
        if grant.number > self.number:
            self.number, self.granted, self.parts = grant.number, grant.connections, dict(grant.floors)
            self.limit = grant.ceilings.get(BETA, 0)

    def kept(self, tenant: TenantName) -> int:
        """Connections that its part of the tenant's floor is good for."""
        return min(self.parts.get(tenant, 0), self.floors[tenant].wish if tenant in self.floors else 0)

    def use(self, tenant: TenantName, floor: int, wish: int) -> None:
        self.floors[tenant] = FloorWish(floor, wish)
        self.wants = max(self.wants, sum(one.wish for one in self.floors.values()))

    def settle(self) -> None:
        """Close what is too much, open what is wanted and allowed."""
        self.in_use = min(self.in_use, max(self.granted, 0))
        self.in_use = max(min(self.wants, self.in_use), min(self.wants, self.granted))
        self.bounded = min(self.bounded_wants, self.limit)

    def say(self) -> Demand:
        waiting, floors = max(0, self.wants - self.in_use), dict(self.floors)
        wish = CeilingWish(CEILING, self.bounded, min(CEILING, self.bounded_wants))
        ceilings = {BETA: wish} if wish.in_use or wish.wish else {}
        return Demand(PG1, self.granted, self.in_use, waiting, self.number, floors, ceilings)


@dataclass
class World:
    """A ledger and workers whose messages all arrive."""

    cap: int
    workers: dict[WorkerId, Worker] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.ledger = Ledger(PG1, self.cap)
        self.now = 0.0

    def add(self, number: int, wants: int, floor: int = 1) -> Worker:
        self.ledger = join(self.ledger, WorkerId(number), floor)
        return self.workers.setdefault(WorkerId(number), Worker(wants))

    def round(self) -> bool:
        """Report, divide, obey; whether anything was sent."""
        for who, worker in self.workers.items():
            worker.settle()
            self.ledger = hear(self.ledger, who, worker.say())
        self.ledger, grants = divide(self.ledger, self.now)
        for who, grant in grants.items():
            self.workers[who].obey(grant)
        assert self.ledger.held <= self.ledger.cap
        assert sum(self.bounded) <= CEILING
        return bool(grants)

    def rounds_until_quiet(self, most: int = 20) -> int:
        for count in range(most):
            if not self.round():
                return count
        raise AssertionError("never quiet")

    @property
    def bounded(self) -> list[int]:
        return [worker.bounded for worker in self.workers.values()]

    @property
    def granted(self) -> list[int]:
        return [worker.granted for worker in self.workers.values()]


# --- tables --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cap", "wishes", "expected"),
    [
        (10, [2, 3], [2, 3]),
        (10, [20, 3], [7, 3]),
        (10, [20, 20], [5, 5]),
        (11, [20, 20], [6, 5]),
        (10, [1, 4, 20], [1, 4, 5]),
        (10, [0, 0, 20], [1, 1, 8]),
        (3, [9, 9, 9], [1, 1, 1]),
        (2, [9, 9, 9], [1, 1, 0]),
        (10, [], []),
    ],
)
def test_shares_are_max_min_fair(cap: int, wishes: list[int], expected: list[int]) -> None:
    ledger = Ledger(PG1, cap)
    for number, wish in enumerate(wishes):
        ledger = hear(join(ledger, WorkerId(number)), WorkerId(number), Demand(PG1, 0, 0, wish))
    assert list(fair_shares(ledger).values()) == expected


def test_idle_workers_share_the_cap_so_that_they_need_not_ask() -> None:
    world = World(80)
    for number in range(4):
        world.add(number, 0)
    assert world.rounds_until_quiet() <= 2
    assert world.granted == [20, 20, 20, 20]


def test_a_busy_worker_gets_what_the_idle_ones_do_not_use() -> None:
    world = World(80)
    busy = world.add(1, 0)
    idle = world.add(2, 5)
    world.rounds_until_quiet()
    assert world.granted == [40, 40]
    busy.wants = 70
    assert world.rounds_until_quiet() <= 4
    assert (busy.granted, busy.in_use, idle.in_use) == (70, 70, 5)
    assert idle.granted == 10
    idle.wants = 60
    assert world.rounds_until_quiet() <= 4
    assert world.granted == [40, 40]


def test_what_is_not_needed_elsewhere_stays_where_it_is() -> None:
    world = World(20)
    world.add(1, 15)
    world.add(2, 1)
    world.rounds_until_quiet()
    world.workers[WorkerId(1)].wants = 3
    assert world.round() is False


def test_a_shrunk_grant_counts_in_full_until_the_worker_has_closed_down_to_it() -> None:
    world = World(10)
    old = world.add(1, 10)
    world.rounds_until_quiet()
    world.ledger = hear(join(world.ledger, WorkerId(2)), WorkerId(2), Demand(PG1, 0, 0, 10))
    ledger, grants = divide(world.ledger, 0.0)
    assert grants[WorkerId(1)].connections == 5
    assert WorkerId(2) not in grants
    old.obey(grants[WorkerId(1)])
    ledger, grants = divide(hear(ledger, WorkerId(1), old.say()), 0.0)  # obeys, but 10 are still open
    assert WorkerId(2) not in grants
    old.in_use = 8
    ledger, grants = divide(hear(ledger, WorkerId(1), old.say()), 0.0)
    assert grants[WorkerId(2)].connections == 2, "what is closed can be given on at once"
    assert ledger.held == 10


def test_a_dead_worker_counts_until_its_process_is_gone() -> None:
    world = World(10)
    world.add(1, 10)
    world.rounds_until_quiet()
    ledger, grants = divide(hear(join(world.ledger, WorkerId(2)), WorkerId(2), Demand(PG1, 0, 0, 10)), 0.0)
    for _ in range(5):
        assert WorkerId(2) not in grants
        ledger, grants = divide(ledger, 0.0)
    ledger, grants = divide(gone(ledger, WorkerId(1)), 0.0)
    assert grants == {WorkerId(2): Grant(PG1, 10, grants[WorkerId(2)].number)}


def test_a_grant_is_sent_again_until_it_is_obeyed() -> None:
    ledger, first = divide(join(Ledger(PG1, 10), WorkerId(1)), 0.0)
    ledger, again = divide(ledger, 0.0)
    assert first == again == {WorkerId(1): Grant(PG1, 10, 1)}
    assert divide(hear(ledger, WorkerId(1), Demand(PG1, 10, 0, 0, 1)), 0.0)[1] == {}


def test_a_worker_that_has_forgotten_its_grant_gets_it_again_and_counts_in_full_until_it_obeys() -> None:
    ledger, first = divide(join(join(Ledger(PG1, 10), WorkerId(1)), WorkerId(2)), 0.0)
    for worker in first:
        ledger = hear(ledger, worker, Demand(PG1, 5, 0, 0, 1))
    forgetful, other = ledger.accounts.values()
    ledger = hear(ledger, WorkerId(1), Demand(PG1, 0, 0, 1, 0))
    assert ledger.accounts == {WorkerId(1): replace(forgetful, obeyed=0), WorkerId(2): other}, "nothing else"
    ledger, again = divide(ledger, 0.0)
    assert again == {WorkerId(1): first[WorkerId(1)]}
    assert divide(hear(ledger, WorkerId(1), Demand(PG1, 5, 1, 0, 1)), 0.0)[1] == {}


def test_foreign_words_change_nothing() -> None:
    ledger, _ = divide(join(Ledger(PG1, 10), WorkerId(1)), 0.0)
    ledger = hear(ledger, WorkerId(1), Demand(PG1, 10, 4, 0, 1))
    assert hear(ledger, WorkerId(1), Demand(PG1, 0, 0, 9, 2)) is ledger
    assert hear(ledger, WorkerId(7), Demand(PG1, 0, 0, 9, 1)) is ledger
    with pytest.raises(ValueError, match="joined already"):
        join(ledger, WorkerId(1))


def test_a_lowered_cap_takes_effect_as_the_workers_follow() -> None:
    world = World(20)
    one, two = world.add(1, 10), world.add(2, 10)
    world.rounds_until_quiet()
    world.ledger = resize(world.ledger, 6)
    world.ledger, grants = divide(world.ledger, 0.0)
    assert sorted(grant.connections for grant in grants.values()) == [3, 3]
    for who, worker in ((1, one), (2, two)):
        worker.obey(grants[WorkerId(who)])
        worker.settle()
        world.ledger = hear(world.ledger, WorkerId(who), worker.say())
    assert world.ledger.held == 6


# --- floors of tenants ---------------------------------------------------------------------------------------------


def test_a_floor_of_one_is_one_connection_where_it_is_used_and_not_half_of_one_everywhere() -> None:
    world = World(4)
    one, two = world.add(1, 20), world.add(2, 20)
    world.rounds_until_quiet()
    two.use(ACME, 1, 1)
    world.rounds_until_quiet()
    assert (one.parts, two.parts) == ({}, {ACME: 1})
    one.use(ACME, 1, 3)
    two.use(ACME, 1, 3)
    world.rounds_until_quiet()
    assert (one.parts, two.parts) == ({}, {ACME: 1}), "who uses it keeps it"
    two.use(ACME, 1, 0)
    world.rounds_until_quiet()
    assert (one.parts, two.parts) == ({ACME: 1}, {})
    one.use(ACME, 1, 0)
    assert world.round() is False, "what nobody lacks stays"


def test_a_floor_of_three_is_divided_by_use() -> None:
    world = World(10)
    one, two = world.add(1, 0), world.add(2, 0)
    one.use(ACME, 3, 5)
    world.rounds_until_quiet()
    assert one.parts == {ACME: 3}
    two.use(ACME, 3, 1)
    world.rounds_until_quiet()
    assert (one.parts, two.parts) == ({ACME: 2}, {ACME: 1})


def test_floors_go_before_what_a_worker_is_due_and_before_wishes() -> None:
    world = World(4)
    one, two = world.add(1, 30), world.add(2, 0)
    world.rounds_until_quiet()
    assert world.granted == [3, 1]
    two.use(ACME, 2, 2)
    two.use(BETA, 2, 2)
    world.rounds_until_quiet()
    assert (world.granted, one.in_use) == ([0, 4], 0), "all of the cap is promised to others"


# --- ceilings of tenants -------------------------------------------------------------------------------------------


def test_a_ceiling_is_one_over_all_workers_whatever_their_parts_of_the_cap() -> None:
    world = World(80)
    one, two = world.add(1, 79), world.add(2, 1)
    two.bounded_wants = 9
    world.rounds_until_quiet()
    assert world.bounded == [0, 3], "all of it where it is used"
    one.bounded_wants = 1
    world.rounds_until_quiet()
    assert world.bounded == [1, 2]
    one.bounded_wants = 9
    world.rounds_until_quiet()
    assert world.bounded == [1, 2], "who has it keeps what cannot be divided"
    one.bounded_wants = two.bounded_wants = 0
    world.rounds_until_quiet()
    assert all(not account.ceilings for account in world.ledger.accounts.values()), "nobody remembers it"


def test_what_is_not_wanted_elsewhere_may_be_opened_without_asking() -> None:
    world = World(10)
    one, two = world.add(1, 0), world.add(2, 0)
    one.bounded_wants = 1
    world.rounds_until_quiet()
    assert (one.limit, two.limit) == (3, 0)
    two.bounded_wants = 1
    world.rounds_until_quiet()
    assert (one.limit, two.limit) == (2, 1)


def test_more_workers_than_connections_of_a_ceiling_take_turns() -> None:
    world = World(80)
    workers = [world.add(number, 0) for number in range(5)]
    for worker in workers:
        worker.bounded_wants = 4
    served: list[list[int]] = []
    for _ in range(60):
        world.now += 0.1
        world.round()
        served.append(world.bounded)
    times = [sum(column) for column in zip(*served, strict=True)]
    assert max(times) <= 2 * min(times), times
    assert sum(times) >= 60 * CEILING * 0.7, "little is lost to changing hands"
    longest = max(len(list(run)) for column in zip(*served, strict=True) for has, run in groupby(column) if not has)
    assert longest <= 8, "nobody waits for long"


def test_a_ceiling_that_is_new_waits_for_what_was_open_before() -> None:
    ledger = join(join(Ledger(PG1, 20), WorkerId(1)), WorkerId(2))
    ledger = hear(ledger, WorkerId(1), Demand(PG1, 0, 0, 0, 0, {}, {BETA: CeilingWish(3, 5, 3)}))
    ledger, grants = divide(hear(ledger, WorkerId(2), Demand(PG1, 0, 0, 0, 0, {}, {BETA: CeilingWish(3, 0, 1)})), 0.0)
    assert (grants[WorkerId(1)].ceilings, grants[WorkerId(2)].ceilings) == ({BETA: 2}, {})
    for in_use, theirs in ((4, {}), (3, {}), (2, {BETA: 1})):
        word = Demand(PG1, 10, 0, 0, ledger.accounts[WorkerId(1)].number, {}, {BETA: CeilingWish(3, in_use, 3)})
        ledger, _ = divide(hear(ledger, WorkerId(1), word), 0.0)
        assert ledger.accounts[WorkerId(2)].limits == theirs


# --- properties ----------------------------------------------------------------------------------------------------

wishes_ = st.lists(st.integers(0, 120), min_size=1, max_size=9)


@given(st.integers(1, 100), wishes_, st.data())
def test_constant_demand_is_met_fairly_within_a_few_rounds_and_then_all_is_quiet(
    cap: int, wishes: list[int], data: st.DataObject
) -> None:
    world = World(cap)
    for number, wish in enumerate(wishes):
        world.add(number, wish, data.draw(st.integers(0, 5)))
    world.rounds_until_quiet()
    for worker in world.workers.values():
        worker.wants = data.draw(st.integers(0, 120))
    assert world.rounds_until_quiet() <= 6
    due = fair_shares(world.ledger)
    accounts = world.ledger.accounts
    assert sum(world.granted) == cap, "nothing lies idle"
    assert all(accounts[one].granted >= share for one, share in due.items())
    if cap >= len(wishes):
        assert all(account.granted >= min(1, account.floor) for account in accounts.values())
    for cut in accounts.values():
        if cut.granted < cut.wish:
            assert all(
                other.granted <= max(cut.granted + 1, other.floor) for other in accounts.values() if other is not cut
            ), "a wish is cut while somebody has more"


@st.composite
def floored_worlds(draw: st.DrawFn) -> World:
    """Workers whose tenants' floors fit into the cap, as every configuration is held to."""
    cap = draw(st.integers(1, 20))
    world, left = World(cap), cap
    for number in range(draw(st.integers(1, 4))):
        world.add(number, draw(st.integers(0, 30)))
    for name in ("acme", "beta", "gamma"):
        floor = draw(st.integers(0, left))
        left -= floor
        for worker in world.workers.values():
            if floor and draw(st.booleans()):
                worker.use(TenantName(name), floor, draw(st.integers(0, 8)))
    return world


@given(floored_worlds(), st.data())
def test_all_workers_together_hold_each_floor_and_never_pass_the_cap(world: World, data: st.DataObject) -> None:
    for _ in range(data.draw(st.integers(1, 3))):
        world.rounds_until_quiet()
        workers = world.workers.values()
        for tenant in {tenant for worker in workers for tenant in worker.floors}:
            words = [worker.floors[tenant] for worker in workers if tenant in worker.floors]
            floor, used = words[0].floor, sum(word.wish for word in words)
            assert sum(worker.kept(tenant) for worker in workers) == min(floor, used), "held, wherever it is used"
            assert sum(worker.parts.get(tenant, 0) for worker in workers) <= floor
        for worker in workers:
            assert worker.granted >= sum(map(worker.kept, worker.floors)), "what is promised can be opened"
        assert sum(world.granted) == world.cap
        for worker in workers:
            for tenant, word in list(worker.floors.items()):
                worker.use(tenant, word.floor, data.draw(st.integers(0, 8)))


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6), st.data())
def test_a_ceiling_is_used_up_where_it_is_wanted(wishes: list[int], data: st.DataObject) -> None:
    world = World(80)
    for number, wish in enumerate(wishes):
        world.add(number, 0).bounded_wants = wish
    for _ in range(3):
        world.now += 10.0
        assert world.rounds_until_quiet() <= 6
        wanted = [min(CEILING, worker.bounded_wants) for worker in world.workers.values()]
        assert sum(world.bounded) == min(CEILING, sum(wanted)), "nothing lies idle"
        for has, wants in zip(world.bounded, wanted, strict=True):
            assert has == wants or all(other <= has + 1 for other in world.bounded), "cut while somebody has more"
        for worker in world.workers.values():
            worker.bounded_wants = data.draw(st.integers(0, 5))


class Losses(RuleBasedStateMachine):
    """Messages get lost, repeated and overtaken; workers die, are reaped late, and return as others."""

    @initialize(cap=st.integers(1, 12))
    def begin(self, cap: int) -> None:
        self.ledger = Ledger(PG1, cap)
        self.alive: dict[WorkerId, Worker] = {}
        self.dead: dict[WorkerId, Worker] = {}
        self.down: list[tuple[WorkerId, Grant]] = []
        self.up: list[tuple[WorkerId, Demand]] = []
        self.numbers = 0
        self.now = 0.0

    def pick(self, draw: random.Random, among: dict[WorkerId, Worker]) -> WorkerId:
        return draw.choice(sorted(among))

    @rule()
    def starts(self) -> None:
        if len(self.alive) < 4:
            self.numbers += 1
            self.alive[WorkerId(self.numbers)] = Worker()
            self.ledger = join(self.ledger, WorkerId(self.numbers))

    @rule()
    def divides(self) -> None:
        self.now += 0.1
        self.ledger, grants = divide(self.ledger, self.now)
        self.down += grants.items()

    @precondition(lambda self: self.alive)
    @rule(draw=st.randoms(use_true_random=False), wants=st.integers(0, 15))
    def works(self, draw: random.Random, wants: int) -> None:
        worker = self.alive[self.pick(draw, self.alive)]
        worker.wants = wants
        if worker.in_use < min(wants, worker.granted):
            worker.in_use = draw.randint(worker.in_use, min(wants, worker.granted))
        elif worker.in_use > min(wants, worker.granted):
            worker.in_use = draw.randint(min(wants, worker.granted), worker.in_use)

    @precondition(lambda self: self.alive)
    @rule(draw=st.randoms(use_true_random=False), wish=st.integers(0, 3))
    def a_tenant_with_a_floor_works(self, draw: random.Random, wish: int) -> None:
        self.alive[self.pick(draw, self.alive)].use(ACME, 1, wish)

    @precondition(lambda self: self.alive)
    @rule(draw=st.randoms(use_true_random=False), wants=st.integers(0, 4))
    def a_tenant_with_a_ceiling_works(self, draw: random.Random, wants: int) -> None:
        worker = self.alive[self.pick(draw, self.alive)]
        worker.bounded_wants = wants
        goal = min(wants, worker.limit)
        worker.bounded = draw.randint(min(worker.bounded, goal), max(worker.bounded, goal))

    @precondition(lambda self: self.alive)
    @rule(draw=st.randoms(use_true_random=False))
    def reports(self, draw: random.Random) -> None:
        who = self.pick(draw, self.alive)
        self.up.append((who, self.alive[who].say()))

    @precondition(lambda self: self.down)
    @rule(draw=st.randoms(use_true_random=False), repeat=st.booleans())
    def grant_arrives(self, draw: random.Random, repeat: bool) -> None:
        at = draw.randrange(len(self.down))
        who, grant = self.down[at] if repeat else self.down.pop(at)
        if who in self.alive:
            self.alive[who].obey(grant)

    @precondition(lambda self: self.up)
    @rule(draw=st.randoms(use_true_random=False), repeat=st.booleans())
    def report_arrives(self, draw: random.Random, repeat: bool) -> None:
        at = draw.randrange(len(self.up))
        who, demand = self.up[at] if repeat else self.up.pop(at)
        self.ledger = hear(self.ledger, who, demand)

    @precondition(lambda self: self.alive)
    @rule()
    def all_talk(self) -> None:
        """Nothing is lost for a while: single messages alone seldom come to a grant that is obeyed and heard of."""
        for _ in range(2):
            self.divides()
            while self.down:
                who, grant = self.down.pop(0)
                if who in self.alive:
                    self.alive[who].obey(grant)
            for who, worker in self.alive.items():
                worker.settle()
                self.ledger = hear(self.ledger, who, worker.say())

    @precondition(lambda self: self.up or self.down)
    @rule()
    def all_is_lost(self) -> None:
        self.up.clear()
        self.down.clear()

    @precondition(lambda self: self.alive)
    @rule(draw=st.randoms(use_true_random=False))
    def dies(self, draw: random.Random) -> None:
        who = self.pick(draw, self.alive)
        self.dead[who] = self.alive.pop(who)  # its connections are still open

    @precondition(lambda self: self.dead)
    @rule(draw=st.randoms(use_true_random=False))
    def is_reaped(self, draw: random.Random) -> None:
        who = self.pick(draw, self.dead)
        del self.dead[who]
        self.ledger = gone(self.ledger, who)

    @invariant()
    def the_cap_holds(self) -> None:
        everyone = [*self.alive.values(), *self.dead.values()]
        assert sum(worker.in_use for worker in everyone) <= self.ledger.cap
        assert sum(max(worker.granted, worker.in_use) for worker in everyone) <= self.ledger.held <= self.ledger.cap
        assert sum(account.parts.get(ACME, 0) for account in self.ledger.accounts.values()) <= 1
        assert sum(max(worker.limit, worker.bounded) for worker in everyone) <= CEILING

    def teardown(self) -> None:
        """Once messages arrive again, everybody gets its due."""
        if not hasattr(self, "ledger"):
            return
        for who in self.dead:
            self.ledger = gone(self.ledger, who)
        for _ in range(8):
            self.ledger, grants = divide(self.ledger, self.now)
            for who, grant in grants.items():
                self.alive[who].obey(grant)
            for who, worker in self.alive.items():
                worker.settle()
                self.ledger = hear(self.ledger, who, worker.say())
        assert divide(self.ledger, self.now)[1] == {}
        wanted = sum(min(CEILING, worker.bounded_wants) for worker in self.alive.values())
        assert sum(worker.bounded for worker in self.alive.values()) == min(CEILING, wanted)
        due = fair_shares(self.ledger)
        assert all(self.alive[who].granted >= share for who, share in due.items())
        asked = any(worker.floors[ACME].wish for worker in self.alive.values() if ACME in worker.floors)
        assert sum(worker.kept(ACME) for worker in self.alive.values()) == asked


class Forgetting(Losses):
    """Workers forget what they were granted while they have nothing open, as when an endpoint leaves the configuration
    and comes back. That needs a way on which grants keep their order: an older, larger one would be taken for new."""

    @precondition(lambda self: self.down)
    @rule(draw=st.randoms(use_true_random=False))
    def grant_arrives(self, draw: random.Random) -> None:
        who = draw.choice(sorted({who for who, _ in self.down}))
        at = next(at for at, (whose, _) in enumerate(self.down) if whose == who)
        _, grant = self.down.pop(at)
        if who in self.alive:
            self.alive[who].obey(grant)

    @precondition(lambda self: self.idle())
    @rule(draw=st.randoms(use_true_random=False))
    def forgets(self, draw: random.Random) -> None:
        who = self.pick(draw, self.idle())
        was = self.alive[who]
        self.alive[who] = Worker(was.wants, floors=was.floors, bounded_wants=was.bounded_wants)

    def idle(self) -> dict[WorkerId, Worker]:
        return {who: one for who, one in self.alive.items() if not one.in_use and not one.bounded}


_RUNS = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestLosses, TestForgetting = Losses.TestCase, Forgetting.TestCase
TestLosses.settings = TestForgetting.settings = _RUNS
