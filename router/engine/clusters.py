"""The clusters of this router: each one's supervisor and waiting room, found by name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from router.engine.holding import HoldingRoom
from router.engine.supervisor import ClusterSupervisor
from router.model.errors import Code, RouterError
from router.model.identity import ClusterName, EndpointName
from router.model.reasons import RefuseReason


@dataclass(slots=True)
class ClusterRuntime:
    """One cluster at work."""

    supervisor: ClusterSupervisor
    room: HoldingRoom


class Clusters:
    """All clusters. RouterError NOT_FOUND for a name that is not configured."""

    def __init__(self) -> None:
        self._runtimes: dict[ClusterName, ClusterRuntime] = {}

    def add(self, name: ClusterName, runtime: ClusterRuntime) -> None:
        """A cluster begins."""
        self._runtimes[name] = runtime

    def remove(self, name: ClusterName) -> ClusterRuntime:
        """A cluster ends."""
        return self._runtimes.pop(name)

    def __iter__(self) -> Iterator[ClusterRuntime]:
        return iter(list(self._runtimes.values()))

    def __getitem__(self, name: ClusterName) -> ClusterRuntime:
        runtime = self._runtimes.get(name)
        if runtime is None:
            known = ", ".join(sorted(self._runtimes)) or "none"
            raise RouterError(
                Code.NOT_FOUND, RefuseReason.UNKNOWN_NAME, f"no cluster named {name!r}; configured: {known}"
            )
        return runtime

    def get(self, name: ClusterName) -> ClusterRuntime | None:
        """The cluster, None when it is not configured."""
        return self._runtimes.get(name)

    def of_endpoint(self, endpoint: EndpointName) -> ClusterRuntime:
        """The cluster that an endpoint belongs to."""
        for runtime in self._runtimes.values():
            if endpoint in runtime.supervisor.state.endpoints:
                return runtime
        known = ", ".join(sorted(name for one in self for name in one.supervisor.state.endpoints)) or "none"
        raise RouterError(
            Code.NOT_FOUND, RefuseReason.UNKNOWN_NAME, f"no endpoint named {endpoint!r}; configured: {known}"
        )
