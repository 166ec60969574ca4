"""ports.EdgeFactory: the watchers and surgeons of real servers."""

from __future__ import annotations

from router.model.topology import Cluster, Endpoint
from router.ports import Prober, Surgeon
from router.postgres.examiner import PostgresExaminer
from router.postgres.prober import PostgresProber
from router.postgres.surgeon import PostgresSurgeon


class PostgresEdges:
    """Makes them; opens no connection yet."""

    def __init__(self, owner: str) -> None:
        """owner: this router's mark, see PostgresSurgeon."""
        self._owner = owner

    def prober(self, cluster: Cluster, endpoint: Endpoint) -> Prober:
        """A watcher of one endpoint."""
        return PostgresProber(cluster, endpoint)

    def surgeon(self, cluster: Cluster) -> Surgeon:
        """A surgeon for a cluster."""
        return PostgresSurgeon(cluster, self._owner)

    def examiner(self, cluster: Cluster) -> PostgresExaminer:
        """Who asks the servers of a cluster for their settings."""
        return PostgresExaminer(cluster)
