"""A standby's walreceiver and the walsender it talks to: streaming, silence, and coming back after a cut.

A receiver that hears nothing for TIMEOUT_S gives up, and tries again every wal_retrieve_retry_interval. It streams only
from a server whose history contains its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.simulation.network import Wire
from tests.simulation.wal import Record, common_length

if TYPE_CHECKING:
    from tests.simulation.node import Node

PING_S = 1.0
"""wal_receiver_timeout / 2: a living upstream is heard at least this often."""
TIMEOUT_S = 2.0


class Receiver:
    """The walreceiver of one node; a new connection each time it streams."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.upstream: Node | None = None
        self.heard_at = 0.0
        self._sent = 0
        """How much of the upstream's log is on its way."""
        self._connection = 0
        self._looking = False
        self._down: Wire | None = None
        self._up: Wire | None = None

    @property
    def alive(self) -> bool:
        return self.upstream is not None

    @property
    def silent_s(self) -> float:
        return self._node.loop.time() - self.heard_at if self.alive else -1.0

    def look(self) -> None:
        """Try to stream, now and until it works."""
        if not self._looking:
            self._looking = True
            self._node.later(0.001, self._try, self._node.epoch)

    def _try(self, epoch: int) -> None:
        self._looking = False
        node = self._node
        if epoch != node.epoch or self.alive or not node.in_recovery or node.fence_mark or node.upstream is None:
            return
        upstream = node.servers.nodes[node.upstream]
        network = node.servers.network
        reachable = network.both(node.name, upstream.name) and upstream.answers and not upstream.postmaster_frozen
        # Also what is received but not yet on disk counts: it is thrown away before asking.
        if reachable and upstream is not node:
            del node.wal[node.flushed :]
            if upstream.timeline >= node.timeline and common_length(node.wal, upstream.wal) == len(node.wal):
                self._stream(upstream)
                return
        self._looking = True
        node.later(node.retry_s, self._try, node.epoch)

    def _stream(self, upstream: Node) -> None:
        node, network = self._node, self._node.servers.network
        self.upstream = upstream
        self._connection += 1
        self._sent = len(node.wal)
        self._down = Wire(network, upstream.name, node.name)
        self._up = Wire(network, node.name, upstream.name)
        upstream.receivers[node.name] = self
        upstream.connections[node.name] = self._connection
        upstream.acknowledged.pop(node.name, None)
        self.heard_at = node.loop.time()
        node.timeline = upstream.timeline
        self.confirm(node.flushed)
        self.pump()
        node.later(PING_S, self._ping, self._connection)

    def pump(self) -> None:
        """The walsender sends what is new and on its disk."""
        upstream = self.upstream
        if upstream is None or self._down is None or upstream.flushed <= self._sent or not upstream.answers:
            return
        records = upstream.wal[self._sent : upstream.flushed]
        self._sent = upstream.flushed
        self._down.send(self._node.soon, self._arrive, self._connection, records, upstream.timeline)

    def _arrive(self, connection: int, records: list[Record], timeline: int) -> None:
        if connection == self._connection and self.alive:
            self.heard_at = self._node.loop.time()
            self._node.receive(records, timeline)

    def confirm(self, position: int) -> None:
        """Tell upstream what is on disk here."""
        upstream, up = self.upstream, self._up
        if upstream is not None and up is not None:
            up.send(upstream.soon, self._confirmed, upstream, self._connection, position)

    def _confirmed(self, upstream: Node, connection: int, position: int) -> None:
        # What was on its way when the receiver ended is read all the same.
        if upstream.connections.get(self._node.name) == connection:
            upstream.acknowledge(self._node.name, position)

    def _ping(self, connection: int) -> None:
        node, upstream = self._node, self.upstream
        if connection != self._connection or upstream is None:
            return
        if node.loop.time() - self.heard_at > TIMEOUT_S:
            self.end()
            self.look()
            return
        if upstream.process is upstream.process.RUNNING and not upstream.host_down and self._up is not None:
            self._up.send(upstream.soon, self._pinged, upstream, connection)
        node.later(PING_S, self._ping, connection)

    def _pinged(self, upstream: Node, connection: int) -> None:
        if connection != self._connection or self._down is None:
            return
        if upstream.connections.get(self._node.name) != connection:  # it has restarted, and knows nothing of us
            self._down.send(self._node.soon, self._closed, connection)
        else:
            self._down.send(self._node.soon, self._heard, connection)

    def _heard(self, connection: int) -> None:
        if connection == self._connection and self.alive:
            self.heard_at = self._node.loop.time()
            self.pump()

    def end(self) -> None:
        """The receiver stops: fenced, repointed, promoted, silent or dead. What it has written is on disk."""
        upstream, self.upstream = self.upstream, None
        if upstream is None or self._up is None:
            return
        node, connection = self._node, self._connection
        self._connection += 1
        if node.process is node.process.RUNNING:
            node.keep(len(node.wal))
        if not node.host_down:
            self._up.send(upstream.soon, upstream.standby_left, node.name, connection)

    def stop(self) -> None:
        """The server is gone, and with it who would have tried again."""
        self.end()
        self._looking = False

    def upstream_closed(self) -> None:
        """The upstream's processes are gone; its kernel says so, where a host and a link are left to say it."""
        upstream, down = self.upstream, self._down
        if upstream is None or down is None or upstream.host_down:
            return
        down.send(self._node.soon, self._closed, self._connection)

    def _closed(self, connection: int) -> None:
        if connection == self._connection and self.alive:
            self.end()
            self.look()
