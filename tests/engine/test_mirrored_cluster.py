"""A worker's mirror of a cluster: the supervisor's order, nothing older, and faults told once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from router.engine.mirrored_cluster import REPEAT_S, MirroredCluster
from router.model.events import Phase
from router.model.identity import ClusterName, EndpointName, Generation, TopologyNumber
from router.model.observation import Fault, FaultKind, Stage
from router.model.state import ClusterState
from router.model.topology import Cluster, Login
from router.system import SystemClock

MAIN = ClusterName("main")


def _state(number: int, phase: Phase = Phase.STEADY) -> ClusterState:
    return ClusterState(MAIN, phase, number=TopologyNumber(number))


def _mirror(
    faults: list[Fault] | None = None, drained: Callable[[], None] = lambda: None, number: int = 5
) -> MirroredCluster:
    told = faults if faults is not None else []
    return MirroredCluster(Cluster(MAIN, (), Login("control")), _state(number), SystemClock(), told.append, drained)


def _fault(endpoint: str = "n1", kind: FaultKind = FaultKind.CONNECTION_LOST, generation: int = 1) -> Fault:
    return Fault(kind, Stage.EXECUTE, endpoint=EndpointName(endpoint), generation=Generation(generation))


async def test_readers_are_told_in_the_order_of_their_subscription_with_the_state_in_place() -> None:
    mirror, seen = _mirror(), list[tuple[str, int, int]]()
    for name in ("pools", "room"):
        mirror.subscribe(lambda state, name=name: seen.append((name, state.number, mirror.state.number)))  # type: ignore[misc]
    mirror.publish(_state(6))
    assert seen == [("pools", 6, 6), ("room", 6, 6)]


async def test_an_older_state_changes_nothing() -> None:
    mirror, seen = _mirror(), list[ClusterState]()
    end = mirror.subscribe(seen.append)
    mirror.publish(_state(4))
    mirror.publish(_state(5))
    assert not seen
    assert mirror.state.number == 5
    mirror.publish(_state(7))
    end()
    mirror.publish(_state(8))
    assert [state.number for state in seen] == [7]


async def test_the_same_fault_is_told_once_and_again_after_a_moment() -> None:
    faults: list[Fault] = []
    mirror = _mirror(faults)
    for _ in range(1000):
        mirror.report_fault(_fault())
    assert len(faults) == 1
    for other in (_fault("n2"), _fault(kind=FaultKind.SILENT), _fault(generation=2)):
        mirror.report_fault(other)
    assert len(faults) == 4, "another server, kind or generation is news"
    await asyncio.sleep(REPEAT_S * 1.5)
    mirror.report_fault(_fault())
    assert len(faults) == 5, "the first may have come while it proved nothing"


async def test_an_empty_room_is_told() -> None:
    told: list[bool] = []
    _mirror(drained=lambda: told.append(True)).report_drained()
    assert told == [True]
