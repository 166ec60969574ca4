"""What the lane scheduler is for, simulated: point reads beside slow statements, and many callers on few connections.

Callers in a closed loop on virtual time; a round trip of 1 ms lies between an answer and the next call. Each goal is
also shown to fail when the part of the policy that reaches it is taken out: a simulation that always passes proves
nothing.
"""

from __future__ import annotations

import asyncio
import functools
import random
import statistics
from dataclasses import dataclass, field
from typing import Any

import pytest

from router.decisions import lanes
from router.engine import lane_places
from router.engine.lane_pool import LanePool
from router.engine.shared_read import SharedRead
from router.model.policy import PoolPolicy
from router.model.reasons import CloseReason
from router.model.request import Statement
from tests.support.builders import now
from tests.support.lane_world import free_runs
from tests.support.timed_lanes import TimedPool
from tests.support.virtual_time import VirtualClock, run_virtual

POINT = Statement(b"200 point")
POINT_S = 200e-6
SLOW = Statement(b"100000 sleep")


@dataclass
class Crowd:
    """Callers, each with one read under way at a time."""

    callers: int
    max_size: int
    slow_share: float = 0.0
    cores: int = 1 << 30
    seconds: float = 1.4
    warm_s: float = 0.8
    """Not counted: the pool opens its lanes, and learns."""
    round_trip_s: float = 0.001
    policy: dict[str, Any] = field(default_factory=dict)

    def run(self) -> Crowd:
        run_virtual(self._run())
        return self

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        self.inner = TimedPool(self.max_size, self.cores)
        limits = PoolPolicy(max_size=self.max_size, **self.policy)
        pool = LanePool(self.inner, limits, VirtualClock(), free_runs(limits))
        self.point_s: list[float] = []
        self.slow_s: list[float] = []
        self.faults: list[SharedRead] = []
        draw = random.Random(1)
        until, count_from = now() + self.seconds, now() + self.warm_s
        began: dict[SharedRead, float] = {}

        def call() -> None:
            if now() < until:
                read = SharedRead(SLOW if draw.random() < self.slow_share else POINT, now() + 30.0, answered)
                began[read] = now()
                pool.start_shared(read)

        def answered(read: SharedRead) -> None:
            took = now() - began.pop(read)
            if read.fault is not None:
                self.faults.append(read)
            elif now() > count_from:
                (self.slow_s if read.statement is SLOW else self.point_s).append(took + self.round_trip_s)
            loop.call_later(self.round_trip_s, call)

        for _ in range(self.callers):
            loop.call_later(draw.random() * 0.01, call)
        await asyncio.sleep(self.seconds + 2)
        assert not began, "not answered"
        self.lanes = self.inner.most_lanes
        await pool.close(CloseReason.SHUTDOWN)

    @property
    def p50(self) -> float:
        return statistics.median(self.point_s)

    @property
    def p99(self) -> float:
        return statistics.quantiles(self.point_s, n=100)[98]

    def __str__(self) -> str:
        return (
            f"{len(self.point_s)} point reads p50 {self.p50 * 1e3:.2f} p99 {self.p99 * 1e3:.2f} ms, "
            f"{len(self.slow_s)} slow at {statistics.mean(self.slow_s or [0]) * 1e3:.1f} ms, {self.lanes} lanes"
        )


@functools.cache
def without_slow() -> Crowd:
    crowd = Crowd(64, 20).run()
    assert not crowd.faults
    return crowd


def mixed_ratio(slow_share: float, **more: Any) -> float:
    """p99 of point reads beside slow statements, to the p99 without them."""
    mixed = Crowd(64, 20, slow_share=slow_share, **more).run()
    print(without_slow(), mixed, sep="\n")
    assert not mixed.faults
    return mixed.p99 / without_slow().p99


@pytest.mark.parametrize("slow_share", [0.01, 0.05])
def test_point_reads_hardly_notice_slow_statements(slow_share: float) -> None:
    assert mixed_ratio(slow_share) <= 2.0


def test_slow_statements_do_not_wait_for_each_other_while_there_is_room() -> None:
    crowd = Crowd(64, 60, slow_share=0.01).run()
    assert statistics.mean(crowd.slow_s) < 0.115


@pytest.mark.parametrize("callers", [100, 500])
def test_many_callers_on_few_connections_wait_alike(callers: int) -> None:
    crowd = Crowd(callers, 40, cores=2).run()
    print(crowd)
    assert not crowd.faults
    assert crowd.p99 / crowd.p50 <= 1.5


def test_lanes_that_do_not_help_are_not_used() -> None:
    """Two cores are busy with two lanes; forty lanes would only be forty backends that wait for them."""
    crowd = Crowd(256, 40, cores=2).run()
    print(crowd)
    assert crowd.lanes <= 8
    assert len(crowd.point_s) / 0.6 > 0.95 * 2 / POINT_S


def test_lanes_that_help_are_opened() -> None:
    """Each lane adds what one connection can do: the pool grows until the wait is short."""
    crowd = Crowd(128, 40).run()
    print(crowd)
    assert crowd.lanes > 4
    assert crowd.p99 < 0.008


def test_one_lane_serves_a_few_fast_callers() -> None:
    assert Crowd(8, 40).run().lanes <= 2


# --- taken out: then the goals are missed -------------------------------------------------------------------------


@pytest.fixture(params=["nothing is slow", "slow ones take every lane", "no window"])
def broken(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    policy: dict[str, Any] = {}
    match request.param:
        case "nothing is slow":
            policy = {"slow_s": 10.0, "lane_window_s": 10.0}
        case "slow ones take every lane":
            def any_lane(loads: Any, limits: Any, *, opening: int, **_: Any) -> Any:
                return lanes.place_alone(loads, limits, opening)

            monkeypatch.setattr(lane_places, "place_slow", any_lane)
        case "no window":
            def anywhere(loads: Any, cost_s: float, limits: Any, spread: int = 0) -> int:
                return min(range(len(loads)), key=lambda index: loads[index].in_flight, default=-1)

            monkeypatch.setattr(lane_places, "place_fast", anywhere)
    return policy


def test_without_the_policy_point_reads_suffer(broken: dict[str, Any]) -> None:
    assert mixed_ratio(0.05, policy=broken) > 3.0
