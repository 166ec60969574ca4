"""ports.EdgeFactory: the watchers and surgeons of real servers."""

from __future__ import annotations

from router.model.topology import Cluster, Endpoint
from router.ports import Prober, Surgeon
from router.postgres.control_door import ControlDoor, ControlLogins
from router.postgres.examiner import PostgresExaminer
from router.postgres.passwords import Passwords
from router.postgres.prober import PostgresProber
from router.postgres.surgeon import PostgresSurgeon


class PostgresEdges:
    """Makes them; opens no connection yet."""

    def __init__(
        self, owner: str, passwords: Passwords | None = None, logins: ControlLogins | None = None
    ) -> None:
        """owner: this process's mark, see PostgresSurgeon. passwords and logins: see ControlDoor."""
        self._owner = owner
        self._passwords = passwords
        self._logins = logins

    def _door(self, cluster: Cluster) -> ControlDoor:
        return ControlDoor(cluster, self._passwords, self._logins)

    def prober(self, cluster: Cluster, endpoint: Endpoint) -> Prober:
        """A watcher of one endpoint."""
        return PostgresProber(cluster, endpoint, self._door(cluster))

    def surgeon(self, cluster: Cluster) -> Surgeon:
        """A surgeon for a cluster."""
        return PostgresSurgeon(cluster, self._owner, self._door(cluster))

    def examiner(self, cluster: Cluster) -> PostgresExaminer:
        """Who asks the servers of a cluster for their settings."""
        return PostgresExaminer(cluster, self._door(cluster))
