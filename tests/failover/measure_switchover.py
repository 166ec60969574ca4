"""Measure planned switchovers: the pause of writes as the router tells it and as a caller sees it, and each step.

    .venv/bin/python -m tests.failover.measure_switchover [--count 20] [--rate 50]

Brings up a cluster and a router of its own, writes lightly through the SDK, and moves the primary back and forth; the
former primary is brought back as a standby in between. Prints a JSON line at the end. Not collected by pytest.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import statistics
import time
from collections import defaultdict

import pointsman
from pointsman.v1 import admin_service_pb2 as admin_pb

from router.devcluster import DevCluster
from tests.support.dev_cluster import new_cluster
from tests.support.running_router import RunningRouter, running_router


class Writer:
    """One caller that writes at a rate, and remembers when each answer came."""

    def __init__(self, db: pointsman.Client, rate: float) -> None:
        self._db = db
        self._pause_s = 1 / rate
        self.answered: list[float] = []
        self.errors: list[str] = []
        self.stopping = False

    async def run(self) -> None:
        """Until stopping."""
        while not self.stopping:
            try:
                await self._db.execute("insert into measured values (1)", timeout=10)
                self.answered.append(time.monotonic())
            except Exception as error:
                self.errors.append(repr(error))
            await asyncio.sleep(self._pause_s)

    def longest_gap(self, since: float) -> float:
        """Longest time without an answer from then on."""
        times = [at for at in self.answered if at >= since - 0.2]
        return max((after - before for before, after in itertools.pairwise(times)), default=0.0)


async def move(router: RunningRouter, writer: Writer) -> tuple[float, float]:
    """One switchover: the pause that the router tells, and the writer's."""
    began = time.monotonic()

    def order() -> float:
        with router.operator() as operator:
            steps = list(operator.stream("Switchover", admin_pb.SwitchoverRequest(cluster="main"), 30.0))
        return float(steps[-1].pause_s)

    told = await asyncio.to_thread(order)
    await asyncio.sleep(1.0)
    return told, writer.longest_gap(began)


def steps_of(router: RunningRouter) -> dict[str, list[float]]:
    """Milliseconds of each step, from the router's log."""
    found: dict[str, list[float]] = defaultdict(list)
    for line in router.log.read_text().splitlines():
        if '"failover step done"' in line:
            event = json.loads(line)
            found[event["step"]].append(event["took_ms"])
    return found


def spread(values: list[float], unit: str = "") -> str:
    """Median, 99th percentile and extremes."""
    ordered = sorted(values)
    high = ordered[min(len(ordered) - 1, round(0.99 * len(ordered)))]
    return f"p50 {statistics.median(ordered):.0f} p99 {high:.0f} min {ordered[0]:.0f} max {ordered[-1]:.0f}{unit}"


async def measure(cluster: DevCluster, count: int, rate: float) -> None:
    """Count switchovers."""
    told, seen = [], []
    async with running_router(cluster) as router, router.connect() as db:
        await db.execute("create table measured (id int)")
        writers = [Writer(db, rate / 4) for _ in range(4)]
        tasks = [asyncio.create_task(one.run()) for one in writers]
        merged = Writer(db, rate)
        await asyncio.sleep(2)
        for number in range(count):
            former = cluster.primary()
            merged.answered = []
            pause, _ = await move(router, merged)
            merged.answered = sorted(at for one in writers for at in one.answered[-int(rate * 3) :])
            gap = merged.longest_gap(time.monotonic() - 2.5)
            told.append(pause * 1000)
            seen.append(gap * 1000)
            print(f"{number + 1:3} pause {pause * 1000:4.0f} ms, longest gap {gap * 1000:4.0f} ms", flush=True)
            await asyncio.to_thread(cluster.rejoin, former.name)
            await asyncio.sleep(3.5)  # probation of the former primary
        for one in writers:
            one.stopping = True
        await asyncio.gather(*tasks)
        errors = [error for one in writers for error in one.errors]
        steps = steps_of(router)
    print(f"pause of writes, told by the router: {spread(told, ' ms')} of {count}")
    print(f"longest time without an answered write: {spread(seen, ' ms')}")
    for step, took in steps.items():
        print(f"  {step:16} {spread(took)} ({len(took)})")
    print(json.dumps({"count": count, "pause_ms": told, "gap_ms": seen, "errors": errors, "steps_ms": steps}))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--rate", type=float, default=50.0)
    options = parser.parse_args()
    cluster = new_cluster()
    try:
        asyncio.run(measure(cluster, options.count, options.rate))
    finally:
        cluster.stop()


if __name__ == "__main__":
    main()
