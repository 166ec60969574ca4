"""The probe loops of one cluster: started, replaced and ended as its configuration changes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from router.engine.probing import Pace, ProbeLoop
from router.model.identity import EndpointName
from router.model.observation import ProbeResult
from router.model.policy import ProbePolicy
from router.model.topology import Cluster, Endpoint, Login
from router.ports import Chance, Clock, EdgeFactory, Prober


@dataclass(slots=True)
class _Watch:
    """One endpoint's loop, and what it was made for."""

    made_for: tuple[Endpoint, Login, str, ProbePolicy]
    prober: Prober
    loop: ProbeLoop
    task: asyncio.Task[None]


class Watching:
    """Owns the probers and their loops."""

    def __init__(
        self,
        edges: EdgeFactory,
        clock: Clock,
        chance: Chance,
        report: Callable[[ProbeResult], None],
        pace: Callable[[EndpointName], Pace],
    ) -> None:
        self._edges = edges
        self._clock = clock
        self._chance = chance
        self._report = report
        self._pace = pace
        self._watches: dict[EndpointName, _Watch] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def probe_now(self, name: EndpointName, *, fresh: bool = False) -> None:
        """Wake one loop; nothing if it is not watched. fresh: it must open a connection."""
        watch = self._watches.get(name)
        if watch is not None:
            watch.loop.probe_now(fresh=fresh)

    def apply(self, cluster: Cluster) -> None:
        """Watch exactly the endpoints of this configuration; loops whose parameters did not change go on."""
        wanted = {
            e.name: (e, cluster.control, cluster.control_database, cluster.policy.probe) for e in cluster.endpoints
        }
        for name in [name for name, watch in self._watches.items() if wanted.get(name) != watch.made_for]:
            ending = asyncio.create_task(self._end(self._watches.pop(name)))
            self._closing.add(ending)
            ending.add_done_callback(self._closing.discard)
        for name, made_for in wanted.items():
            if name not in self._watches:
                prober = self._edges.prober(cluster, made_for[0])
                loop = ProbeLoop(
                    prober, cluster.policy.probe, self._clock, self._chance, self._report, partial(self._pace, name)
                )
                task = asyncio.create_task(loop.run(), name=f"probe {cluster.name}/{name}")
                self._watches[name] = _Watch(made_for, prober, loop, task)

    async def close(self) -> None:
        """End all loops and close their connections."""
        await asyncio.gather(*(self._end(watch) for watch in self._watches.values()), *self._closing)
        self._watches.clear()

    async def _end(self, watch: _Watch) -> None:
        watch.task.cancel()
        await asyncio.gather(watch.task, return_exceptions=True)
        await watch.prober.close()
