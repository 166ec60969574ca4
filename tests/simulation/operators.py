"""The people and agents around the cluster: who brings lost servers back, and in follow mode who moves the primary."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from router.model.topology import FailoverMode
from tests.simulation.node import Node
from tests.simulation.wal import common_length, quorum

if TYPE_CHECKING:
    from tests.simulation.world import World

LOOK_S = 0.5


class Operators:
    """Looks every half second; acts on what has been so for a while."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._loop = asyncio.get_running_loop()
        self._since: dict[str, float] = {}
        self._patience_s = 3.0 + 5.0 * world.chance.draw()
        self._promoting: tuple[Node, int] | None = None
        """Who was told to promote, in which of its lives."""

    async def run(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            primary = self._world.servers.newest_primary()
            if primary is None:
                continue
            if self._world.mode is FailoverMode.FOLLOW and self._lasts("primary", self._lost(primary), 2.0):
                self._move(primary)
                continue
            if not primary.answers:
                continue
            for node in self._world.servers.nodes.values():
                if self._lasts(node.name, node is not primary and self._astray(node, primary), self._patience_s):
                    self._world.judge.note(f"operator: {node!r} is rebuilt from {primary!r}")
                    node.rewind(primary)

    def _lasts(self, what: str, true: bool, seconds: float) -> bool:
        """Whether it has been so for this long."""
        if not true:
            self._since.pop(what, None)
            return False
        if self._loop.time() - self._since.setdefault(what, self._loop.time()) < seconds:
            return False
        del self._since[what]
        return True

    def _lost(self, primary: Node) -> bool:
        others = [name for name in self._world.servers.nodes if name != primary.name]
        cut = not any(self._world.network.both(primary.name, name) for name in others)
        return not primary.answers or cut

    def _astray(self, node: Node, primary: Node) -> bool:
        """A former primary, or a standby that will never stream again by itself."""
        if not node.answers:
            return False
        if not node.in_recovery:
            return node.timeline < primary.timeline
        if node.receiver.alive:
            return False
        diverged = common_length(node.wal, primary.wal) < len(node.wal)
        return diverged or (not node.fence_mark and node.upstream != primary.name)

    def _move(self, primary: Node) -> None:
        """As a careful agent does: cut enough standbys off first, take the most advanced, attach the others."""
        if self._promoting is not None and self._promoting[0].in_recovery:
            told, epoch = self._promoting
            if told.epoch == epoch:
                return  # it may sleep for seconds before it obeys; a second one would be promoted beside it
        k, names = quorum(primary.sync_names)
        alive = [self._world.servers.nodes[name] for name in names]
        alive = [node for node in alive if node.answers and node.in_recovery]
        if len(alive) < max(2, len(names) - k + 1):
            return
        if all(node.timeline < primary.timeline for node in alive):
            return  # whoever has not followed to the primary's timeline would begin that very timeline once more
        for node in alive:
            node.upstream = None
            node.receiver.end()
        chosen = max(alive, key=lambda node: (node.timeline, node.flushed))
        others = [node for node in alive if node is not chosen]
        listed = ", ".join(name for name in self._world.servers.nodes if name != chosen.name)
        chosen.sync_names = f"ANY {min(k, len(others))} ({listed})"
        self._world.judge.note(f"agent: {chosen!r} is promoted in place of {primary!r}")

        def attach() -> None:
            for node in others:
                node.upstream = chosen.name
                node.receiver.look()

        self._promoting = chosen, chosen.epoch
        chosen.promote(attach)
