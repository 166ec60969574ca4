"""Microseconds of CPU that a call costs the router's own Python: from a Multiplex message to its reply's bytes.

    python -m tests.api.measure_request_path [--profile] [--calls 64] [--batch]

Everything between gRPC and libpq is real (parsing, admission, routing, lanes, encoding, framing, telemetry); the lane
answers in the next turn of the loop with a row that libpq could have read. Compare before and after in one run each,
several times: the machine's speed drifts. --batch: transactions of five steps, as pgbench's TPC-B has, not point reads.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import math
import pstats
import time
from collections import deque
from typing import Any, cast

from pointsman.v1 import query_service_pb2 as pb
from pointsman.v1 import types_pb2

from router.api.answering import Answering
from router.api.calls import Call
from router.api.drain import Drain
from router.api.multiplex import Multiplexing
from router.decisions.keys import COMMIT
from router.encoding import TypedColumns
from router.engine.attempts import Attempts
from router.engine.calls import Register
from router.engine.clusters import ClusterRuntime, Clusters
from router.engine.directory import Directory
from router.engine.endpoints import Pools
from router.engine.executor import Executor
from router.engine.holding import HoldingRoom
from router.engine.placement import Placement
from router.engine.positions import POSITION, Positions
from router.engine.running import Runs
from router.engine.tenants import Tenants
from router.model.callers import Admission, CallerId, CallerRole
from router.model.identity import Generation
from router.model.policy import RetryPolicy
from router.model.request import Statement
from router.model.result import StatementResult
from router.model.topology import Tenant, Topology
from router.ports import PoolStatistics, Unit
from router.sql.inspector import PostgastInspector
from router.system import SystemChance, SystemClock
from router.telemetry.event_sink import TelemetrySink
from tests.api.fake_engine import FakeCells
from tests.support.builders import tenant
from tests.support.fake_cluster import MAIN, FakeSupervisor, make_cluster

_SELECT = "select name from accounts where id=$1"
_STEPS = (
    ("update accounts set balance = balance + $1 where id = $2", 5, 7),
    (_SELECT, 7),
    ("update tellers set balance = balance + $1 where id = $2", 5, 7),
    ("update branches set balance = balance + $1 where id = $2", 5, 7),
    ("insert into history (teller, branch, account, delta, at) values ($1, $2, $3, $4, now())", 7, 7, 7, 5),
)


def _statement(sql: str, *values: int) -> types_pb2.Statement:
    return types_pb2.Statement(sql=sql, params=[types_pb2.Param(integer=value) for value in values])


def _batch() -> pb.ExecuteBatchRequest:
    request = pb.ExecuteBatchRequest()
    for sql, *values in _STEPS:
        request.steps.add(statement=_statement(sql, *values), want_rows=sql is _SELECT)
    return request


class InstantLane:
    """ports.Lane that answers everything in the next turn of the loop."""

    generation = Generation(1)
    usable = True
    in_transaction = False
    in_failed_transaction = altered = False

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._units: deque[Unit] = deque()
        self._row = StatementResult(FakeCells(["name"], [[b"account 7"]]), "SELECT 1", 1)
        position = [b"0/16B3748", b"000000010000000000000001", b"t"]
        self._position = StatementResult(FakeCells(["lsn", "file", "confirms"], [position]), "SELECT 1", 1)

    @property
    def in_flight(self) -> int:
        return len(self._units)

    def submit(self, unit: Unit) -> None:
        self.submit_now(unit)

    def submit_now(self, *units: Unit) -> None:
        if not self._units:
            self._loop.call_soon(self._answer)
        for unit in units:
            unit.sent = True
            unit.sent_at = self._loop.time()
            self._units.append(unit)

    def _answer(self) -> None:
        now = self._loop.time()
        for _ in range(len(self._units)):
            unit = self._units.popleft()
            unit.results.extend([self._result(statement) for statement in unit.statements])
            unit.done_at = now
            unit.done(unit)
        if self._units:
            self._loop.call_soon(self._answer)

    def _result(self, statement: Statement) -> StatementResult:
        if statement is POSITION:
            return self._position
        if statement.sql[:6] == b"select":
            return self._row
        return StatementResult(None, "COMMIT" if statement is COMMIT else "UPDATE 1", 1)

    def forget_prepared(self) -> None: ...

    async def give_back(self, *, tainted: bool = False) -> None: ...

    def abandon(self, reason: object) -> None: ...


class InstantPool:
    """ports.EndpointPool of such lanes."""

    generation = Generation(1)

    async def open_lane(self, deadline: float) -> InstantLane:
        return InstantLane()

    def fence(self, generation: Generation) -> None: ...

    async def close(self, reason: object) -> None: ...

    def statistics(self) -> PoolStatistics:
        return PoolStatistics(max_size=8)


class Factory:
    """ports.PoolFactory of such pools."""

    def make(self, *_: object) -> Any:
        return InstantPool()


class Caller:
    """api.message_stream.MessageStream whose other end keeps a number of calls in flight."""

    max_bytes = 4 << 20
    last_bytes = 0

    def __init__(self, at_once: int, total: int, *, batch: bool) -> None:
        self._call = {"batch": _batch()} if batch else {"query": pb.QueryRequest(statement=_statement(_SELECT, 7))}
        self._id = 0
        self._due: asyncio.Queue[int] = asyncio.Queue()
        self._due.put_nowait(at_once)
        self._left = total - at_once
        self.messages = 0

    def time_remaining(self) -> float | None:
        return None

    async def let_in(self, processes: int) -> None: ...

    async def read(self) -> Any:
        count = await self._due.get()
        if count == 0:
            return None
        calls = [pb.MultiplexCall(id=self._id + n, timeout_ms=5000, **self._call) for n in range(count)]
        self._id += count
        return pb.MultiplexRequest.FromString(pb.MultiplexRequest(calls=calls).SerializeToString())

    async def write(self, raw: bytes) -> None:
        self.messages += 1
        done = len(pb.MultiplexResponse.FromString(raw).replies)
        again = min(done, self._left)
        self._left -= again
        if again or not self._left:
            self._due.put_nowait(again)


def engine(owner: Tenant, clock: SystemClock, chance: SystemChance, events: TelemetrySink) -> Executor:
    supervisor = FakeSupervisor(make_cluster("a", "b"), "a")
    room = HoldingRoom(
        supervisor.state, supervisor.cluster.policy.hold, clock, events, supervisor.report_drained
    )
    clusters = Clusters()
    clusters.add(MAIN, ClusterRuntime(supervisor, room))  # type: ignore[arg-type]
    directory = Directory(Topology({MAIN: supervisor.cluster}, {owner.name: owner}))
    ways = (events, Runs(clock, chance), directory)
    pools = Pools(Factory(), clock, lambda name: clusters[name].supervisor.cluster, *ways)
    retry = RetryPolicy()
    return Executor(
        Tenants(retry, clock, directory),
        Register(clock, events, directory),
        Placement(clusters, clock, chance, Positions(pools, clock)),
        pools,
        Attempts(clusters, retry, clock, chance, events),
        PostgastInspector(),
        clock,
    )


class Proved:
    """A proof without an end."""

    def __init__(self, owner: Tenant) -> None:
        self._admission = Admission(owner, CallerRole.WRITER, CallerId("token:"))

    def __call__(self) -> Admission[Tenant]:
        return self._admission

    def remaining_s(self) -> float:
        return math.inf


async def measure(at_once: int, total: int, *, batch: bool) -> tuple[float, float]:
    """CPU µs a call, and calls a message."""
    clock, chance, events = SystemClock(), SystemChance(), TelemetrySink()
    owner = tenant()
    answering = Answering(engine(owner, clock, chance, events), TypedColumns(), chance)
    shared = Multiplexing(answering, Drain(clock), clock, events, 4096)
    for rounds in (at_once * 4, total):
        caller = Caller(at_once, rounds, batch=batch)
        call = Call(Proved(owner), "Multiplex", clock.now(), None)
        before = time.process_time()
        await shared.serve(cast("Any", call), cast("Any", caller))
        took = time.process_time() - before
    return took / total * 1e6, total / caller.messages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--calls", type=int, default=64, help="in flight")
    parser.add_argument("--batch", action="store_true", help="transactions of five steps")
    parser.add_argument("--total", type=int, default=20_000)
    options = parser.parse_args()
    if options.profile:
        profile = cProfile.Profile()
        profile.enable()
        asyncio.run(measure(options.calls, options.total, batch=options.batch))
        profile.disable()
        pstats.Stats(profile).sort_stats("tottime").print_stats(45)
        return
    for _ in range(5):
        cost, together = asyncio.run(measure(options.calls, options.total, batch=options.batch))
        print(f"{cost:.1f} µs a call, {together:.1f} calls a message")


if __name__ == "__main__":
    main()
