"""Messages between the ledgers and simulated workers: whatever is lost to a death, the cap holds."""

from __future__ import annotations

import random
from collections.abc import Sequence

from router.decisions.connection_ledger import WorkerId
from router.model.identity import ClusterName, EndpointName
from router.model.ledger import Demand, Grant
from router.model.topology import Cluster, Endpoint, Login, Topology
from router.workers.sharing import Sharing

MAIN, N1, N2 = ClusterName("main"), EndpointName("n1"), EndpointName("n2")


def _topology(**caps: int) -> Topology:
    endpoints = tuple(
        Endpoint(EndpointName(name), MAIN, "127.0.0.1", max_connections=cap) for name, cap in caps.items()
    )
    return Topology({MAIN: Cluster(MAIN, endpoints, Login("control"))}, {})


class Workers:
    """Their ends: who obeys at once, opens what it may, and says so."""

    def __init__(self) -> None:
        self.granted: dict[tuple[WorkerId, EndpointName], Grant] = {}
        self.wants: dict[WorkerId, int] = {}
        self.sharing = Sharing(self.take)

    def take(self, worker: WorkerId, grants: Sequence[Grant]) -> None:
        for grant in grants:
            self.granted[worker, grant.endpoint] = grant

    def report(self, worker: WorkerId) -> None:
        want = self.wants.get(worker, 0)
        self.sharing.hear(
            worker,
            [
                Demand(name, one.connections, min(want, one.connections), max(0, want - one.connections), one.number)
                for (who, name), one in list(self.granted.items())
                if who == worker
            ],
        )

    def total(self, endpoint: EndpointName) -> int:
        return sum(one.connections for (_, name), one in self.granted.items() if name == endpoint)


def test_two_workers_divide_every_cap_and_one_that_wants_gets_from_one_that_does_not() -> None:
    world = Workers()
    world.sharing.apply(_topology(n1=10, n2=4))
    one, two = WorkerId(1), WorkerId(2)
    for worker in (one, two):
        world.sharing.join(worker)
        world.report(worker)
    world.wants = {one: 9, two: 1}
    for _ in range(4):
        world.report(one)
        world.report(two)
    assert world.total(N1) == 10
    assert world.total(N2) == 4
    assert world.granted[one, N1].connections == 9


def test_a_dead_workers_part_comes_back_only_when_it_is_gone() -> None:
    world = Workers()
    world.sharing.apply(_topology(n1=6))
    one, two = WorkerId(1), WorkerId(2)
    for worker in (one, two):
        world.sharing.join(worker)
    world.wants = {one: 6, two: 6}
    for _ in range(4):
        world.report(one)
        world.report(two)
    assert [world.granted[worker, N1].connections for worker in (one, two)] == [3, 3]
    for _ in range(3):
        world.report(one)  # two is silent: what it has may still be open
    assert world.granted[one, N1].connections == 3
    del world.granted[two, N1]
    world.sharing.gone(two)
    world.report(one)
    assert world.granted[one, N1].connections == 6


def test_a_new_cap_and_a_new_endpoint_reach_everybody() -> None:
    world = Workers()
    world.sharing.apply(_topology(n1=4))
    world.sharing.join(WorkerId(1))
    world.report(WorkerId(1))
    world.sharing.apply(_topology(n1=8, n2=5))
    world.report(WorkerId(1))
    assert world.total(N1) == 8
    assert world.total(N2) == 5


def test_the_cap_holds_whoever_comes_and_goes() -> None:
    chance = random.Random(7)
    for _ in range(30):
        world, living, next_one = Workers(), set[WorkerId](), 1
        world.sharing.apply(_topology(n1=7))
        for _ in range(60):
            match chance.choice(("join", "die", "report", "report", "report", "want")):
                case "join" if len(living) < 4:
                    living.add(WorkerId(next_one))
                    world.sharing.join(WorkerId(next_one))
                    next_one += 1
                case "die" if living:
                    dead = chance.choice(sorted(living))
                    living.discard(dead)
                    world.granted.pop((dead, N1), None)
                    world.sharing.gone(dead)
                case "want" if living:
                    world.wants[chance.choice(sorted(living))] = chance.randrange(9)
                case "report" if living:
                    world.report(chance.choice(sorted(living)))
            assert world.total(N1) <= 7, world.granted
