"""The servers of one cluster, and the configuration that the router is given of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from router.model.identity import ClusterName, EndpointName, Lsn, Term
from router.model.policy import ClusterPolicy
from router.model.topology import Cluster, Endpoint, FailoverMode, Login
from tests.simulation.backend import ModelServer
from tests.simulation.node import Node
from tests.simulation.wal import RECORD_BYTES, Record
from tests.support.fake_keys import Row
from tests.support.virtual_time import SeededChance

if TYPE_CHECKING:
    from tests.simulation.judge import Judge
    from tests.simulation.network import Network

MAIN = ClusterName("main")


class Servers:
    """Nodes n1 (the primary at first), n2, ..., and what they share."""

    def __init__(self, count: int, k: int, network: Network, chance: SeededChance, judge: Judge) -> None:
        self.network = network
        self.chance = chance
        self.judge = judge
        self._serial = self._stamps = 0
        self.histories: dict[int, tuple[tuple[Term, Lsn], ...]] = {1: ()}
        """By timeline: those before it, and where each was left."""
        names = [f"n{number + 1}" for number in range(count)]
        self.nodes = {name: Node(self, name) for name in names}
        for node in self.nodes.values():
            node.server = ModelServer(node)
            node.sync_names = f"ANY {k} ({', '.join(name for name in names if name != node.name)})"
        first = self.nodes[names[0]]
        first.in_recovery = False
        begin = self.new_record(first, ())
        for node in self.nodes.values():
            node.wal.append(begin)
            node.flushed = node.replayed = 1
            if node is not first:
                node.upstream = first.name
                node.receiver.look()

    def __repr__(self) -> str:
        return " ".join(repr(node) for node in self.nodes.values())

    def new_record(
        self, node: Node, writes: tuple[bytes, ...], keys: tuple[tuple[bytes, Row], ...] = ()
    ) -> Record:
        self._serial += 1
        return Record(self._serial, node.name, node.timeline, writes, keys)

    def new_timeline(self, after: int, position: int) -> int:
        """Begin the timeline that follows another one, which is left there."""
        self.histories[after + 1] = (*self.histories[after], (Term(after), Lsn(position * RECORD_BYTES)))
        return after + 1

    def stamp(self) -> int:
        """A number that no other execution of a statement has."""
        self._stamps += 1
        return self._stamps

    def configured(self, mode: FailoverMode, policy: ClusterPolicy) -> Cluster:
        """What stands in the router's configuration."""
        endpoints = tuple(Endpoint(EndpointName(name), MAIN, name) for name in self.nodes)
        return Cluster(MAIN, endpoints, Login("control"), mode=mode, policy=policy)

    def newest_primary(self) -> Node | None:
        """The writable server of the highest timeline, dead or alive; what an operator would find out by looking."""
        writable = [node for node in self.nodes.values() if not node.in_recovery]
        return max(writable, key=lambda node: node.timeline, default=None)
