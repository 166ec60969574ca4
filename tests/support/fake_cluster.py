"""A cluster's supervisor without machines behind it: a test says what the state is, and reads what was reported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from router.model.events import Health, Phase
from router.model.identity import ClusterName, EndpointName, Generation, Term, TopologyNumber
from router.model.observation import Fault
from router.model.policy import ClusterPolicy
from router.model.state import ClusterState, EndpointState
from router.model.topology import Cluster, Endpoint, Login, Role

MAIN = ClusterName("main")


def make_cluster(*names: str, policy: ClusterPolicy | None = None) -> Cluster:
    """A configured cluster with these endpoints."""
    endpoints = tuple(Endpoint(EndpointName(name), MAIN, "192.0.2.1") for name in names)
    return Cluster(MAIN, endpoints, Login("control"), policy=policy or ClusterPolicy())


class FakeSupervisor:
    """What the request path needs of engine.supervisor.ClusterSupervisor."""

    def __init__(self, cluster: Cluster, primary: str | None = "a") -> None:
        self.cluster = cluster
        self.faults: list[Fault] = []
        self.drained = 0
        self.on_fault: Callable[[Fault], None] = lambda _: None
        self._subscribers: list[Callable[[ClusterState], None]] = []
        self.state = ClusterState(
            MAIN,
            Phase.STEADY if primary else Phase.HOLDING,
            EndpointName(primary) if primary else None,
            Term(1),
            Generation(1),
            {one.name: self._endpoint(one.name, primary) for one in cluster.endpoints},
            TopologyNumber(1),
        )

    @staticmethod
    def _endpoint(name: EndpointName, primary: str | None) -> EndpointState:
        role = Role.PRIMARY if name == primary else Role.REPLICA
        return EndpointState(name, role, Health.UP, lag_s=0.0)

    def report_fault(self, fault: Fault) -> None:
        self.faults.append(fault)
        self.on_fault(fault)

    def report_drained(self) -> None:
        """As the real one: the end of a drain is the steady state."""
        self.drained += 1
        if self.state.phase is Phase.DRAINING:
            self.publish(phase=Phase.STEADY)

    def subscribe(self, callback: Callable[[ClusterState], None]) -> Callable[[], None]:
        self._subscribers.append(callback)
        return lambda: self._subscribers.remove(callback)

    def publish(self, **changes: object) -> None:
        """A new state, told to all who subscribed, synchronously."""
        number = TopologyNumber(self.state.number + 1)
        self.state = replace(self.state, number=number, **changes)  # type: ignore[arg-type]
        for callback in list(self._subscribers):
            callback(self.state)

    def lose_primary(self) -> None:
        """A failover begins."""
        self.publish(phase=Phase.HOLDING, primary=None)

    def promote(self, name: str) -> None:
        """It ends: another primary, term and generation."""
        endpoints = {
            one: self._endpoint(one, name) for one in self.state.endpoints
        }
        self.publish(
            phase=Phase.DRAINING,
            primary=EndpointName(name),
            term=Term(self.state.term + 1),
            generation=Generation(self.state.generation + 1),
            endpoints=endpoints,
        )

    def drain(self, name: str, *, draining: bool = True) -> None:
        """An operator's order."""
        endpoints = dict(self.state.endpoints)
        endpoints[EndpointName(name)] = replace(endpoints[EndpointName(name)], draining=draining)
        self.publish(endpoints=endpoints)

    def set_health(self, name: str, health: Health) -> None:
        """One endpoint's health changes."""
        endpoints = dict(self.state.endpoints)
        endpoints[EndpointName(name)] = replace(endpoints[EndpointName(name)], health=health)
        self.publish(endpoints=endpoints)
