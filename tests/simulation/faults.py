"""What goes wrong, drawn from a seed: each run has a random subset of the kinds, so that rare combinations come up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from enum import Enum, unique
from typing import TYPE_CHECKING

from tests.simulation.node import Node

if TYPE_CHECKING:
    from tests.simulation.world import World

Undo = Callable[[], None]


@unique
class Kind(Enum):
    """Kinds of faults."""

    KILL_PRIMARY = "kill -9 of the primary"
    KILL_STANDBY = "kill -9 of a standby"
    POWER_OFF = "power off"
    FREEZE_PRIMARY = "the primary stops (SIGSTOP)"
    FREEZE_ANY = "a server stops (SIGSTOP)"
    STALL = "a server stops for a quarter of a second"
    POSTMASTER = "a postmaster stops"
    CRASH_BACKEND = "a backend of the primary crashes"
    TERMINATE = "sessions of the primary are ended"
    CUT_ROUTER_PRIMARY = "the router is cut off from the primary"
    CUT_ROUTER_ANY = "the router is cut off from a server"
    CUT_ROUTER_ALL = "the router is cut off from all"
    CUT_STANDBYS = "the primary is cut off from its standbys"
    ISOLATE = "a server is cut off from all"
    ONE_WAY = "a link is cut in one direction"
    LOST_PROBE = "the router is cut off from a server for a moment"
    SWIZZLE = "all links of a server are cut and healed one by one"
    SLOW_LINKS = "links are slow"
    SLOW_DISK = "a disk is slow"
    REPLAY_LAG = "a standby replays late"
    KILL_ROUTER = "kill -9 of the router"
    SWITCHOVER = "an operator moves the primary"


_MILD = frozenset({Kind.LOST_PROBE, Kind.TERMINATE, Kind.SLOW_DISK, Kind.REPLAY_LAG})
HARMLESS = (
    _MILD | {Kind.KILL_STANDBY, Kind.STALL, Kind.POSTMASTER, Kind.CRASH_BACKEND},
    _MILD | {Kind.CUT_ROUTER_PRIMARY, Kind.CUT_ROUTER_ANY, Kind.CUT_ROUTER_ALL},
)
"""A promotion is needless when only faults of one of these sets occurred. (Of both together: a router that is cut off
from a primary whose standbys lose it for a moment cannot know better.)"""


class Faults:
    """Draws and makes them."""

    def __init__(self, world: World, kinds: list[Kind]) -> None:
        self._world = world
        self._chance = world.chance
        self._loop = asyncio.get_running_loop()
        self.kinds = kinds
        self._undoes: list[Undo] = []
        self.made = 0

    async def run(self, seconds: float, pause_s: float) -> None:
        """Make faults for so long."""
        end = self._loop.time() + seconds
        while self._loop.time() < end:
            await asyncio.sleep(2 * pause_s * self._chance.draw())
            if self.kinds:
                self.make(self._one_of(self.kinds))

    def make(self, kind: Kind, seconds: float | None = None) -> None:
        """One fault, and its end after a while."""
        node = self._target(kind)
        lasts = seconds if seconds is not None else 0.2 + 6.0 * self._chance.draw() ** 2
        self._world.judge.note(f"FAULT {kind.value} [{node!r}] for {lasts:.2f} s")
        self.made += 1
        undo = _MAKE[kind](self, node, lasts)
        if undo is not None:
            self._undoes.append(undo)
            self._loop.call_later(lasts, self._end, kind, undo)

    def _end(self, kind: Kind, undo: Undo) -> None:
        if undo in self._undoes:
            self._undoes.remove(undo)
            self._world.judge.note(f"END {kind.value}")
            undo()

    def heal(self) -> None:
        """End everything at once."""
        self._world.judge.note("HEAL")
        undoes, self._undoes = self._undoes, []
        for undo in undoes:
            undo()
        for node in self._world.servers.nodes.values():
            node.thaw()
            node.start()

    def _one_of(self, choices: list[Kind]) -> Kind:
        return choices[int(self._chance.draw() * len(choices))]

    def _target(self, kind: Kind) -> Node:
        nodes = list(self._world.servers.nodes.values())
        primary = self._world.servers.newest_primary()
        if kind in _ON_PRIMARY and primary is not None:
            return primary
        if kind is Kind.KILL_STANDBY:
            nodes = [node for node in nodes if node is not primary]
        return nodes[int(self._chance.draw() * len(nodes))]

    # --- the kinds ----------------------------------------------------------------------------------------------

    def kill(self, node: Node, _: float) -> Undo:
        node.stop()
        return node.start

    def power_off(self, node: Node, _: float) -> Undo:
        node.host_down = True
        node.stop()
        return node.start

    def freeze(self, node: Node, _: float) -> Undo:
        node.freeze()
        return node.thaw

    def stall(self, node: Node, _: float) -> None:
        node.freeze()
        self._loop.call_later(0.25, node.thaw)

    def postmaster(self, node: Node, _: float) -> Undo:
        node.postmaster_frozen = True

        def undo() -> None:
            node.postmaster_frozen = False

        return undo

    def crash_backend(self, node: Node, _: float) -> None:
        node.crash_backend()

    def terminate(self, node: Node, _: float) -> None:
        for backend in list(node.server.backends):
            if self._chance.draw() < 0.5:
                backend.terminate()

    def cut(self, *links: tuple[str, str]) -> Undo:
        network = self._world.network
        for link in links:
            network.cut(*link)

        def undo() -> None:
            for link in links:
                network.heal(*link)

        return undo

    def cut_router(self, node: Node, _: float) -> Undo:
        host = self._world.a_router()
        return self.cut((host, node.name), (node.name, host))

    def cut_router_all(self, _: Node, __: float) -> Undo:
        names, host = self._world.servers.nodes, self._world.a_router()
        return self.cut(*((host, name) for name in names), *((name, host) for name in names))

    def cut_standbys(self, node: Node, _: float) -> Undo:
        others = [name for name in self._world.servers.nodes if name != node.name]
        return self.cut(*((node.name, name) for name in others), *((name, node.name) for name in others))

    def _links(self, node: Node) -> list[tuple[str, str]]:
        others = [*self._world.routers, *(name for name in self._world.servers.nodes if name != node.name)]
        return [link for name in others for link in ((node.name, name), (name, node.name))]

    def isolate(self, node: Node, _: float) -> Undo:
        return self.cut(*self._links(node))

    def one_way(self, node: Node, _: float) -> Undo:
        links = self._links(node)
        return self.cut(links[int(self._chance.draw() * len(links))])

    def lost_probe(self, node: Node, _: float) -> None:
        undo = self.cut((self._world.a_router(), node.name))
        self._loop.call_later(0.3, undo)

    def swizzle(self, node: Node, seconds: float) -> None:
        """Cut one after the other, healed in another order; at the latest with everything else."""
        links = self._links(node)
        for at, link in enumerate(links):
            begin = seconds / 3 * at / len(links)
            self._loop.call_later(begin, self._clog, link, seconds * (0.4 + 0.6 * self._chance.draw()) - begin)

    def _clog(self, link: tuple[str, str], seconds: float) -> None:
        undo = self.cut(link)
        self._undoes.append(undo)
        self._loop.call_later(max(0.01, seconds), self._end, Kind.SWIZZLE, undo)

    def slow_links(self, node: Node, _: float) -> Undo:
        links, network = self._links(node), self._world.network
        for link in links:
            network.slow(*link, 0.05 + 0.3 * self._chance.draw())

        def undo() -> None:
            for link in links:
                network.slow(*link, 0.0)

        return undo

    def slow_disk(self, node: Node, _: float) -> Undo:
        node.disk_s = 0.02 + 0.5 * self._chance.draw()

        def undo() -> None:
            node.disk_s = 0.0003

        return undo

    def replay_lag(self, node: Node, _: float) -> Undo:
        node.replay_lag_s = 0.5 + 2 * self._chance.draw()

        def undo() -> None:
            node.replay_lag_s = 0.0

        return undo

    def kill_router(self, _: Node, seconds: float) -> None:
        self._world.kill_router(min(seconds, 2.0))

    def switchover(self, _: Node, __: float) -> None:
        self._world.switchover()


_MAKE: Mapping[Kind, Callable[[Faults, Node, float], Undo | None]] = {
    Kind.KILL_PRIMARY: Faults.kill,
    Kind.KILL_STANDBY: Faults.kill,
    Kind.POWER_OFF: Faults.power_off,
    Kind.FREEZE_PRIMARY: Faults.freeze,
    Kind.FREEZE_ANY: Faults.freeze,
    Kind.STALL: Faults.stall,
    Kind.POSTMASTER: Faults.postmaster,
    Kind.CRASH_BACKEND: Faults.crash_backend,
    Kind.TERMINATE: Faults.terminate,
    Kind.CUT_ROUTER_PRIMARY: Faults.cut_router,
    Kind.CUT_ROUTER_ANY: Faults.cut_router,
    Kind.CUT_ROUTER_ALL: Faults.cut_router_all,
    Kind.CUT_STANDBYS: Faults.cut_standbys,
    Kind.ISOLATE: Faults.isolate,
    Kind.ONE_WAY: Faults.one_way,
    Kind.LOST_PROBE: Faults.lost_probe,
    Kind.SWIZZLE: Faults.swizzle,
    Kind.SLOW_LINKS: Faults.slow_links,
    Kind.SLOW_DISK: Faults.slow_disk,
    Kind.REPLAY_LAG: Faults.replay_lag,
    Kind.KILL_ROUTER: Faults.kill_router,
    Kind.SWITCHOVER: Faults.switchover,
}
_ON_PRIMARY = frozenset({
    Kind.KILL_PRIMARY, Kind.FREEZE_PRIMARY, Kind.CRASH_BACKEND, Kind.TERMINATE, Kind.CUT_ROUTER_PRIMARY,
    Kind.CUT_STANDBYS,
})
