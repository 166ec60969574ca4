"""The supervisors of this router, found by the name of a cluster or of one of its endpoints."""

from __future__ import annotations

from collections.abc import Iterator

from router.engine.clusters import unknown
from router.engine.supervisor import ClusterSupervisor
from router.model.identity import ClusterName, EndpointName


class Supervisors:
    """Those who watch clusters and move primaries: one per cluster in all processes of a router together."""

    def __init__(self) -> None:
        self._by_name: dict[ClusterName, ClusterSupervisor] = {}

    def add(self, supervisor: ClusterSupervisor) -> None:
        """A cluster begins."""
        self._by_name[supervisor.cluster.name] = supervisor

    def remove(self, name: ClusterName) -> ClusterSupervisor:
        """A cluster ends."""
        return self._by_name.pop(name)

    def __iter__(self) -> Iterator[ClusterSupervisor]:
        return iter(list(self._by_name.values()))

    def __getitem__(self, name: ClusterName) -> ClusterSupervisor:
        """RouterError NOT_FOUND for a name that is not configured."""
        supervisor = self._by_name.get(name)
        if supervisor is None:
            raise unknown("cluster", name, self._by_name)
        return supervisor

    def get(self, name: ClusterName) -> ClusterSupervisor | None:
        """The supervisor, None when the cluster is not configured."""
        return self._by_name.get(name)

    def of_endpoint(self, endpoint: EndpointName) -> ClusterSupervisor:
        """The supervisor of the cluster that an endpoint belongs to. RouterError NOT_FOUND."""
        for supervisor in self._by_name.values():
            if endpoint in supervisor.state.endpoints:
                return supervisor
        raise unknown("endpoint", endpoint, (name for one in self for name in one.state.endpoints))
