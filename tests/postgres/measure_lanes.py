"""Measure lanes: statements per second, and CPU of this process and of PostgreSQL's backends per statement.

    .venv/bin/python -m tests.postgres.measure_lanes [--lanes 1 4] [--depths 1 8 32] [--seconds 1] [--rounds 3] [--sync]

Brings up a server of its own. Point reads by primary key, prepared, a fixed number in flight on each lane; a unit is
submitted from the answer of the one before. --sync sends each unit by itself, as an older libpq does. Making the unit
is part of the figures (about 1 us). Not collected by pytest.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import resource
import statistics
import sys
import time
import unittest.mock
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

from router.devcluster import DevCluster
from router.model.policy import PoolPolicy
from router.model.reasons import CloseReason
from router.model.request import Access, Statement
from router.ports import Lane, Unit
from router.postgres import pipeline_sync
from tests.contracts.real_pool import make_real_pool
from tests.support.dev_cluster import new_cluster

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_POINT_READ = b"SELECT id, score FROM measured WHERE id = $1"
_ROWS = 1000
_SETUP = (
    b"CREATE TABLE IF NOT EXISTS measured (id int PRIMARY KEY, score int NOT NULL)",
    b"INSERT INTO measured SELECT g, g FROM generate_series(1, %d) g ON CONFLICT DO NOTHING" % _ROWS,
    b"ANALYZE measured",
)


@dataclass(frozen=True)
class Figures:
    """One run's figures; microseconds of CPU a statement."""

    per_s: float
    router_user_us: float
    router_system_us: float
    backend_user_us: float
    backend_system_us: float


def _backend_ticks(pids: list[int]) -> tuple[float, float]:
    user = system = 0.0
    for pid in pids:
        with open(f"/proc/{pid}/stat") as stat:
            fields = stat.read().rpartition(")")[2].split()
        user += int(fields[11]) * _TICK_S
        system += int(fields[12]) * _TICK_S
    return user, system


async def _ask(lane: Lane, sql: bytes) -> Unit:
    done: asyncio.Future[Unit] = asyncio.get_running_loop().create_future()
    lane.submit(Unit((Statement(sql),), done.set_result))
    unit = await done
    if unit.fault is not None:
        raise RuntimeError(unit.fault.message)
    return unit


async def _load(lanes: list[Lane], depth: int, seconds: float) -> int:
    """Keep `depth` units in flight on every lane; how many were answered."""
    answered = 0
    until = time.perf_counter() + seconds
    keys = [(b"%d" % random.randint(1, _ROWS),) for _ in range(4096)]
    left = len(lanes) * depth
    drained = asyncio.get_running_loop().create_future()

    def again(lane: Lane) -> Callable[[Unit], None]:
        def done(unit: Unit) -> None:
            nonlocal answered, left
            if unit.fault is not None:
                raise RuntimeError(unit.fault.message)
            answered += 1
            if time.perf_counter() < until:
                lane.submit(Unit((Statement(_POINT_READ, keys[answered & 4095]),), done, commits=False))
                return
            left -= 1
            if not left:
                drained.set_result(None)

        return done

    for lane in lanes:
        done = again(lane)
        for _ in range(depth):
            lane.submit(Unit((Statement(_POINT_READ, keys[0]),), done, commits=False))
    await drained
    return answered


async def _measure(lanes: list[Lane], pids: list[int], depth: int, seconds: float) -> Figures:
    await _load(lanes, depth, 0.1)
    own, theirs, began = resource.getrusage(resource.RUSAGE_SELF), _backend_ticks(pids), time.perf_counter()
    count = await _load(lanes, depth, seconds)
    took = time.perf_counter() - began
    own_now, theirs_now = resource.getrusage(resource.RUSAGE_SELF), _backend_ticks(pids)
    return Figures(
        count / took,
        (own_now.ru_utime - own.ru_utime) * 1e6 / count,
        (own_now.ru_stime - own.ru_stime) * 1e6 / count,
        (theirs_now[0] - theirs[0]) * 1e6 / count,
        (theirs_now[1] - theirs[1]) * 1e6 / count,
    )


async def _rounds(cluster: DevCluster, arguments: argparse.Namespace) -> None:
    policy = PoolPolicy(max_size=max(arguments.lanes))
    pool = make_real_pool(cluster, Access.READ_WRITE, policy)
    loop = asyncio.get_running_loop()
    lanes: list[Lane] = [await pool.open_lane(loop.time() + 5) for _ in range(policy.max_size)]
    pids: list[int] = []
    for lane in lanes:
        cells = (await _ask(lane, b"SELECT pg_backend_pid()")).results[0].cells
        pids.append(int((cells.get_value(0, 0) if cells else None) or b"0"))
    for sql in _SETUP:
        await _ask(lanes[0], sql)
    print("lanes depth    per s  router user  system  backend user  system   (CPU: us a statement)")
    for count in arguments.lanes:
        for depth in arguments.depths:
            runs = [
                await _measure(lanes[:count], pids[:count], depth, arguments.seconds) for _ in range(arguments.rounds)
            ]
            middle = [statistics.median(getattr(run, name) for run in runs) for name in Figures.__dataclass_fields__]
            print(
                f"{count:>5} {depth:>5} {middle[0]:>8.0f} {middle[1]:>12.1f} {middle[2]:>7.1f} "
                f"{middle[3]:>13.1f} {middle[4]:>7.1f}"
            )
    for lane in lanes:
        await lane.give_back()
    await pool.close(CloseReason.SHUTDOWN)


def main() -> int:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--lanes", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--depths", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--sync", action="store_true", help="without PQsendPipelineSync")
    arguments = parser.parse_args()
    cluster = new_cluster(replicas=0)
    try:
        unknown = unittest.mock.patch.object(pipeline_sync, "_linked_libpq", return_value=None)
        with unknown if arguments.sync else nullcontext():
            asyncio.run(_rounds(cluster, arguments))
    finally:
        cluster.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
