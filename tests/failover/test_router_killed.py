"""A router process killed, or stopped for a while, in the middle of a move on real servers: the next one goes on.

All steps are tried on virtual time (tests/engine/test_router_killed.py); here a few of them, with real processes, files
and signals. How it happens at a certain step is planted into the process when it starts.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import psycopg
import pytest
from pointsman.v1 import admin_service_pb2 as admin_pb

from router.console.trouble import Trouble
from router.devcluster import DevCluster
from tests.failover.load import ledger
from tests.support import running_router as running
from tests.support.eventually import eventually
from tests.support.running_router import RunningRouter

pytestmark = [pytest.mark.pg, pytest.mark.chaos]

CONVERGED_S = 20.0
"""With the start of a process, on a busy machine; 2 to 5 s on a quiet one."""
EVERY_STEP = "POINTSMAN_TEST_EVERY_STEP"
"""Set in the environment, more steps are tried, for half a minute more."""
_PLANTED = """
import os, sys
from pathlib import Path
from router.postgres.surgeon import PostgresSurgeon

act, when, number = sys.argv[2], sys.argv[3], int(sys.argv[4])
plain = getattr(PostgresSurgeon, act)

async def struck(self, *args):
    if when == "before":
        os.kill(os.getpid(), number)
    done = await plain(self, *args)
    if when == "after":
        os.kill(os.getpid(), number)
    return done

setattr(PostgresSurgeon, act, struck)
from router.app import serve
from router.config import reading
sys.exit(serve(reading.begin(Path(sys.argv[1]))))
"""


def planted(directory: Path, act: str, when: str, number: signal.Signals) -> subprocess.Popen[bytes]:
    """A router that sends itself a signal before or after an act of its surgeon."""
    with (directory / "router.log").open("wb") as sink:
        command = [sys.executable, "-c", _PLANTED, str(directory / "pointsman.yaml"), act, when, str(int(number))]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink)


@contextmanager
def directories(cluster: DevCluster, count: int = 1) -> Iterator[list[tuple[Path, dict[str, str]]]]:
    """Configurations of routers in front of one cluster, each with a state directory of its own."""
    with contextlib.ExitStack() as stack:
        made = []
        for _ in range(count):
            path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pointsman-router-")))
            made.append((path, running.write_config(path, cluster)))
        yield made


@asynccontextmanager
async def serving(
    place: tuple[Path, dict[str, str]], process: subprocess.Popen[bytes]
) -> AsyncIterator[RunningRouter]:
    """That router once it serves and its cluster is steady; ended afterwards, in whatever state it is."""
    try:
        router = await asyncio.to_thread(running._ready, place[0], process, place[1])
        yield router
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGCONT)
        await asyncio.to_thread(running._end, process)


def insert(cluster: DevCluster, server: str, number: int) -> None:
    """One acknowledged row."""
    with psycopg.connect(cluster.tenant_dsn("acme", cluster.servers[server]), autocommit=True) as connection:
        connection.execute("create table if not exists ledger (id int primary key, kind text)")
        connection.execute("insert into ledger values (%s, 'kept')", [number])


async def until_written(router: RunningRouter, number: int) -> str:
    """Write through the router, and who took it."""
    async with router.connect() as db:
        done = await db.execute("insert into ledger values ($1, 'after')", number, timeout=25)
        return str(done.receipt.endpoint)


def writable(cluster: DevCluster) -> dict[str, int | None]:
    """Servers that are not in recovery, and their timelines."""
    return {one.name: one.timeline for one in cluster.observe().values() if not one.in_recovery}


def following(cluster: DevCluster) -> int:
    """So many servers follow another one."""
    return sum(bool(one.streams_from_port) for one in cluster.observe().values())


async def begin(router: RunningRouter, cluster: DevCluster, *, planned: bool) -> None:
    """What moves the primary; the router does not live to see the end."""

    def order() -> None:
        with contextlib.suppress(Trouble), router.operator() as operator:
            list(operator.stream("Switchover", admin_pb.SwitchoverRequest(cluster="main"), 20.0))

    if planned:
        await asyncio.to_thread(order)
    else:
        await asyncio.to_thread(cluster.primary().kill)


async def test_killed_at_a_step_of_a_move_the_next_router_goes_on(fresh_cluster: DevCluster) -> None:
    cluster = fresh_cluster
    steps = [(False, "promote", "after"), (True, "promote", "before")]
    if os.environ.get(EVERY_STEP):
        steps += [(False, "fence", "after"), (False, "promote", "before"), (True, "hold_writes", "after")]
    with directories(cluster) as [place]:
        for number, (planned, act, when) in enumerate(steps):
            former = cluster.primary().name
            insert(cluster, former, number)
            process = planted(place[0], act, when, signal.SIGKILL)
            async with serving(place, process) as router:
                await until_written(router, 1000 + number)
                await begin(router, cluster, planned=planned)
                await eventually(lambda one=process: one.poll() is not None, within_s=15, what=f"killed at {act}")
                assert process.returncode == -signal.SIGKILL
            began = time.monotonic()
            async with serving(place, running.launch(place[0])) as router:
                endpoint = await until_written(router, 2000 + number)
                took = time.monotonic() - began
                print(f"\n{'switchover' if planned else 'promotion'}, killed {when} {act}: served after {took:.1f} s")
                assert took < CONVERGED_S, (planned, act, when, router.log.read_text()[-3000:])
                assert endpoint == (former if act == "hold_writes" else cluster.primary().name)
                assert {*range(number + 1), *range(1000, 1001 + number)} <= ledger(cluster)
                top = max(filter(None, writable(cluster).values()))
                assert sum(timeline == top for timeline in writable(cluster).values()) == 1, writable(cluster)
                if endpoint != former:
                    await asyncio.to_thread(cluster.rejoin, former)
                everybody = len(cluster.servers) - 1
                await eventually(
                    lambda all_of=everybody: following(cluster) == all_of, within_s=15, what="all standbys follow"
                )


async def test_stopped_before_it_promotes_it_finds_that_another_router_has_done_it(fresh_cluster: DevCluster) -> None:
    cluster = fresh_cluster
    insert(cluster, "n1", 1)
    with directories(cluster, 2) as [first, second]:
        process = planted(first[0], "promote", "before", signal.SIGSTOP)
        async with serving(first, process) as stopped, serving(second, running.launch(second[0])) as other:
            await until_written(stopped, 2)
            await until_written(other, 3)
            other.signal(signal.SIGSTOP)
            await begin(stopped, cluster, planned=False)
            await eventually(lambda: " T " in _status(process), within_s=15, what="stopped before the promotion")
            assert not writable(cluster)
            other.signal(signal.SIGCONT)
            endpoint = await until_written(other, 4)
            process.send_signal(signal.SIGCONT)
            assert await until_written(stopped, 5) == endpoint
            await asyncio.sleep(1)
            assert list(writable(cluster).items()) == [(endpoint, 2)]
            assert {1, 2, 3, 4, 5} <= ledger(cluster)


def _status(process: subprocess.Popen[bytes]) -> str:
    """State of a process, as /proc says it."""
    return " " + Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].strip()[:1] + " "
