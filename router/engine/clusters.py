"""The clusters that requests run on: each one's published state and waiting room, found by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from router.engine.holding import HoldingRoom
from router.model.errors import Code, RouterError
from router.model.identity import ClusterName
from router.model.observation import Fault
from router.model.reasons import RefuseReason
from router.model.state import ClusterState
from router.model.topology import Cluster


class ClusterSource(Protocol):
    """Where a cluster's state comes from: its supervisor, or in a worker the mirror of one in another process."""

    @property
    def cluster(self) -> Cluster:
        """The configuration in force."""
        ...

    @property
    def state(self) -> ClusterState:
        """The newest snapshot."""
        ...

    def subscribe(self, callback: Callable[[ClusterState], None]) -> Callable[[], None]:
        """Be called, synchronously and in the order of subscription, with each new snapshot."""
        ...

    def report_fault(self, fault: Fault) -> None:
        """Tell what the data path saw."""
        ...

    def report_drained(self) -> None:
        """Tell that no request is held here any more."""
        ...


@dataclass(slots=True)
class ClusterRuntime:
    """One cluster at work."""

    supervisor: ClusterSource
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
            # Without the names of others: callers are told this.
            message = f"cluster {name!r} has left the configuration"
            raise RouterError(Code.NOT_FOUND, RefuseReason.UNKNOWN_NAME, message)
        return runtime

    def get(self, name: ClusterName) -> ClusterRuntime | None:
        """The cluster, None when it is not configured."""
        return self._runtimes.get(name)


def unknown(kind: str, name: str, known: Iterable[str]) -> RouterError:
    """For a name that is not configured; for operators, as it tells all that are."""
    configured = ", ".join(sorted(known)) or "none"
    return RouterError(
        Code.NOT_FOUND, RefuseReason.UNKNOWN_NAME, f"no {kind} named {name!r}; configured: {configured}"
    )
