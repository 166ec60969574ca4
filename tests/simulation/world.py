"""One run of the simulation: a cluster, a router, callers and faults, all drawn from one seed, on virtual time.

    result = simulate(7)      # the same seed gives the same trace; result.broken says what did not hold

Faults for a while, then everything heals, then writes must flow again within a bound and nothing may be lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from dataclasses import dataclass, field

from router.model.errors import RouterError
from router.model.events import Phase
from router.model.policy import ClusterPolicy, FailoverPolicy, HoldPolicy
from router.model.topology import FailoverMode
from tests.simulation.callers import Callers
from tests.simulation.faults import HARMLESS, Faults, Kind
from tests.simulation.judge import Judge
from tests.simulation.keyed_callers import KeyedCallers
from tests.simulation.network import ROUTER, SECOND_ROUTER, Network
from tests.simulation.operators import Operators
from tests.simulation.router_life import RouterLife, note_births
from tests.simulation.scenarios import Scenario, drawn
from tests.simulation.servers import Servers
from tests.simulation.session_callers import SessionCallers
from tests.simulation.trace import Trace
from tests.simulation.workload import Workload
from tests.support.fake_journal import FakeJournal
from tests.support.virtual_time import SeededChance, run_virtual, settle

LIVELY_S = 90.0
"""After everything has healed, writes must flow by then."""
FLOWS_S = 2.0
"""... and for this long."""
CHECK_S = 0.05


@dataclass(frozen=True)
class Result:
    """What became of one seed."""

    seed: int
    broken: str | None
    trace: str
    events: int
    virtual_s: float
    real_s: float
    """Processor time."""
    recovered_s: float
    """From the end of all faults until writes flowed."""
    promotions: int
    faults: int
    kinds: tuple[str, ...]
    counts: Counter[str]
    last_lines: tuple[str, ...] = field(repr=False, default=())


@dataclass
class Router:
    """A place where a router runs, one life after the other."""

    host: str
    journal: FakeJournal = field(default_factory=FakeJournal)
    """All that its next life knows of the last."""
    life: RouterLife | None = None


class World:
    """Everything of one run."""

    def __init__(
        self, seed: int, *, verbose: bool = False, kinds: list[Kind] | None = None,
        scenarios: frozenset[Scenario] | None = None,
    ) -> None:
        self.seed = seed
        self.scenarios = drawn(seed) if scenarios is None else scenarios
        self.chance = SeededChance(seed)
        self._loop = asyncio.get_running_loop()
        self.trace = Trace(verbose=verbose)
        self.judge = Judge(self.trace)
        self.network = Network(SeededChance(seed + 1_000_003))
        count = (3, 3, 4, 5)[int(self.chance.draw() * 4)]
        k = 1 if count < 4 or self.chance.draw() < 0.5 else 2
        self.servers = Servers(count, k, self.network, SeededChance(seed + 2_000_003), self.judge)
        self.judge.servers = self.servers
        if self.chance.draw() < 0.25:
            for node in self.servers.nodes.values():
                node.retry_s = 5.0
        promotes = self.chance.draw() < 0.75 or Scenario.ROUTERS in self.scenarios
        self.mode = FailoverMode.PROMOTE if promotes else FailoverMode.FOLLOW
        hold = HoldPolicy(window_s=3.0 + 7.0 * self.chance.draw())
        failover = FailoverPolicy(min_gap_s=1.0 + 4.0 * self.chance.draw())
        self.cluster = self.servers.configured(self.mode, ClusterPolicy(hold=hold, failover=failover))
        self.faults = Faults(self, kinds if kinds is not None else self._draw_kinds())
        hosts = (ROUTER, SECOND_ROUTER) if Scenario.ROUTERS in self.scenarios else (ROUTER,)
        self.routers = {host: Router(host) for host in hosts}
        self._which = SeededChance(seed + 5_000_003)
        self._lives = 0
        self._switches: set[asyncio.Task[None]] = set()
        self.judge.note(f"seed {seed}: {count} servers, k={k}, {self.mode.value}, "
                        f"faults: {', '.join(kind.name for kind in self.faults.kinds) or 'none'}"
                        f"{''.join(f', {one.value}' for one in Scenario if one in self.scenarios)}")

    def _draw_kinds(self) -> list[Kind]:
        share = 0.1 + 0.5 * self.chance.draw()
        drawn = [kind for kind in Kind if self.chance.draw() < share]
        if self.chance.draw() < 0.2:
            drawn = [kind for kind in Kind if kind in HARMLESS[int(self.chance.draw() * 2)]]
        return drawn

    # --- the router ---------------------------------------------------------------------------------------------

    def a_router(self) -> str:
        """One of them."""
        hosts = tuple(self.routers)
        return hosts[0] if len(hosts) == 1 else hosts[int(self._which.draw() * len(hosts))]

    def _to_ask(self) -> RouterLife | None:
        return self.routers[self.a_router()].life

    def start_router(self, router: Router) -> None:
        self._lives += 1
        router.life = RouterLife(self._lives, self.servers, self.cluster, self.judge, self.seed, router.journal,
                                 router.host)
        self.judge.note(f"the {router.host} starts, life {self._lives}")

    def kill_router(self, seconds: float) -> None:
        """kill -9, and a new one after a while."""
        router = self.routers[self.a_router()]
        if router.life is not None and not router.life.dead:
            router.life.kill()
            self._loop.call_later(seconds, self.start_router, router)

    def switchover(self) -> None:
        """An operator orders one; refused or failed, it may be."""
        life = self._to_ask()
        if life is None or life.dead or life.switching:
            return
        life.switching = True

        async def order() -> None:
            try:
                primary = await life.supervisor.switchover(None, 5.0)
                self.judge.note(f"switchover: the primary is {primary}")
            except RouterError as error:
                self.judge.note(f"switchover: {error.reason.value} {error.message}")
            finally:
                life.switching = False

        self._switches.add(life.spawn(order()))

    async def _check(self, callers: list[Callers]) -> None:
        while True:
            await asyncio.sleep(CHECK_S)
            living = [one.life for one in self.routers.values() if one.life is not None and not one.life.dead]
            for life in living:
                life.check()
            if living:
                for one in callers:
                    one.check()

    # --- the run ------------------------------------------------------------------------------------------------

    async def run(self, fault_s: float = 40.0) -> float:
        """Everything; returns how long it took after the faults until writes flowed."""
        note_births(self._loop)
        for router in self.routers.values():
            self.start_router(router)
        workload = Workload(self.judge, self._to_ask, self.chance, cancels=self.chance.draw() < 0.5)
        callers = [workload, *self._further_callers()]
        beside = [self._loop.create_task(one) for one in (self._check(callers), Operators(self).run())]
        try:
            faults = self._loop.create_task(self.faults.run(fault_s, 1.0 + 4.0 * self.chance.draw()))
            await asyncio.wait({faults, self.judge.failed}, return_when=asyncio.FIRST_COMPLETED)
            faults.cancel()
            self.faults.heal()
            recovered_s = await self._recover(workload)
            if self.judge.broken is None:
                await asyncio.gather(*(one.stop() for one in callers))
                await asyncio.sleep(35.0)  # what lingers after its caller has gone
                await self._end()
        finally:
            for task in beside:
                task.cancel()
        return recovered_s

    def _further_callers(self) -> list[Callers]:
        kinds = {Scenario.KEYED: KeyedCallers, Scenario.TOKENS: SessionCallers}
        return [
            kind(self.judge, self._to_ask, SeededChance(self.seed + 4_000_003), cancels=True)
            for scenario, kind in kinds.items() if scenario in self.scenarios
        ]

    async def _recover(self, workload: Workload) -> float:
        """Wait until writes flow and the cluster is steady."""
        began = self._loop.time()
        steady_since = began
        while self.judge.broken is None:
            await asyncio.sleep(0.1)
            now, lives = self._loop.time(), [one.life for one in self.routers.values()]
            lively = all(life is not None and not life.dead and life.supervisor.state.phase is Phase.STEADY
                         for life in lives)
            if not lively or now - workload.committed_at > 1.5:
                steady_since = now
            elif now - steady_since >= FLOWS_S:
                return steady_since - began
            if now - began > LIVELY_S:
                states = [life.supervisor.state if life is not None else None for life in lives]
                told = [f"{state.phase.name} {state.detail}" if state else "no router" for state in states]
                self.judge.fail(f"writes do not flow {LIVELY_S:g} s after everything healed: {', '.join(told)}; "
                                f"{self.servers!r}")
        return -1.0

    async def _end(self) -> None:
        lives = [one.life for one in self.routers.values() if one.life is not None]
        for life in lives:
            life.check_at_rest()
            primary = life.supervisor.state.primary
            self.judge.final(self.servers.nodes[primary] if primary is not None else None)
        if self.judge.promotions and any(harmless.issuperset(self.faults.kinds) for harmless in HARMLESS):
            self.judge.fail(f"{self.judge.promotions} promotions, though nothing happened that needs one")
        for life in lives:
            await life.shut_down()
            life.check()


def simulate(
    seed: int, *, verbose: bool = False, kinds: list[Kind] | None = None, fault_s: float = 40.0,
    scenarios: frozenset[Scenario] | None = None,
) -> Result:
    """Run one seed. kinds: of faults, scenarios: what is there beside the usual callers; None: drawn from the seed."""

    async def main() -> Result:
        loop = asyncio.get_running_loop()
        began, real = loop.time(), time.process_time()
        world = World(seed, verbose=verbose, kinds=kinds, scenarios=scenarios)
        loop.set_exception_handler(lambda _, context: world.judge.fail(f"an exception that nobody caught: {context}"))
        recovered_s = await world.run(fault_s)
        result = Result(
            seed,
            world.judge.broken,
            world.trace.digest(),
            world.trace.count,
            loop.time() - began,
            time.process_time() - real,
            recovered_s,
            world.judge.promotions,
            world.faults.made,
            tuple(kind.name for kind in world.faults.kinds),
            world.judge.counts,
            tuple(world.trace.lines),
        )
        await _end_what_is_left()
        return result

    with contextlib.suppress(asyncio.CancelledError):
        return run_virtual(main())
    raise AssertionError("the run was cancelled")


async def _end_what_is_left() -> None:
    """A run that was broken off leaves tasks, and those make others when they are cancelled."""
    for _ in range(5):
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await settle()
