"""When no worker holds a request of a cluster any more: what ends the release after a failover."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from router.model.events import Phase
from router.model.identity import ClusterName, TopologyNumber
from router.model.state import ClusterState


class Emptying:
    """Per cluster in DRAINING, the workers whose rooms are not known to be empty; told apart by their identity."""

    def __init__(self) -> None:
        self._since: dict[ClusterName, TopologyNumber] = {}
        self._full: dict[ClusterName, set[int]] = {}

    def on_state(self, state: ClusterState, workers: Iterable[int]) -> bool:
        """A state was published; whether no room has to be waited for. workers: those it was published to."""
        if state.phase is not Phase.DRAINING:
            self._since.pop(state.name, None)
            self._full.pop(state.name, None)
            return False
        if state.name not in self._since:
            self._since[state.name] = state.number
            self._full[state.name] = set(workers)
        return not self._full[state.name]

    def emptied(self, cluster: ClusterName, worker: int, number: TopologyNumber) -> bool:
        """A worker's room is empty as of a state; whether it was the last one.

        What it said before the release began says nothing: requests may have entered since.
        """
        if cluster not in self._since or number < self._since[cluster]:
            return False
        self._full[cluster].discard(worker)
        return not self._full[cluster]

    def left(self, worker: int) -> Iterator[ClusterName]:
        """A worker has gone; the clusters of which it was the last one."""
        for cluster, full in self._full.items():
            if worker in full:
                full.discard(worker)
                if not full:
                    yield cluster
