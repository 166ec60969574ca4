"""A cluster as a worker sees it: the snapshots that its supervisor, in the control process, publishes.

The supervisor stays the only writer; this end repeats what it wrote, in its order, and passes on what requests saw.
"""

from __future__ import annotations

from collections.abc import Callable

from router.model.identity import EndpointName, Generation
from router.model.observation import Fault, FaultKind
from router.model.state import ClusterState
from router.model.topology import Cluster
from router.ports import Clock

REPEAT_S = 0.05
"""The same fault is told again after this long: a dead server fails thousands of requests at once, and the supervisor
learns nothing from the second one."""

_Key = tuple[EndpointName, Generation, FaultKind, str]


class MirroredCluster:
    """engine/clusters.ClusterSource over messages. The state is never older than the last one applied."""

    def __init__(
        self,
        cluster: Cluster,
        state: ClusterState,
        clock: Clock,
        tell_fault: Callable[[Fault], None],
        tell_drained: Callable[[], None],
    ) -> None:
        self._cluster = cluster
        self._state = state
        self._clock = clock
        self._tell_fault = tell_fault
        self._tell_drained = tell_drained
        self._told: dict[_Key, float] = {}
        self._subscribers: list[Callable[[ClusterState], None]] = []

    @property
    def cluster(self) -> Cluster:
        """The configuration in force."""
        return self._cluster

    @property
    def state(self) -> ClusterState:
        """The newest snapshot that has arrived."""
        return self._state

    def subscribe(self, callback: Callable[[ClusterState], None]) -> Callable[[], None]:
        """Be called, synchronously, with each new snapshot. Returns what ends the subscription."""
        self._subscribers.append(callback)
        return lambda: self._subscribers.remove(callback)

    def publish(self, state: ClusterState) -> None:
        """Take a snapshot; one that is older than what is here changes nothing."""
        if state.number <= self._state.number:
            return
        self._state = state
        for callback in tuple(self._subscribers):
            callback(state)

    def apply(self, cluster: Cluster) -> None:
        """Take a changed configuration of the same cluster."""
        self._cluster = cluster

    def report_fault(self, fault: Fault) -> None:
        """Pass on what the data path saw, the first time and then at most every REPEAT_S."""
        now = self._clock.now()
        key = (fault.endpoint, fault.generation, fault.kind, fault.sqlstate)
        if now - self._told.get(key, -REPEAT_S) < REPEAT_S:
            return
        if len(self._told) > 100:
            self._told.clear()
        self._told[key] = now
        self._tell_fault(fault)

    def report_drained(self) -> None:
        """Pass on that no request is held in this process."""
        self._tell_drained()
