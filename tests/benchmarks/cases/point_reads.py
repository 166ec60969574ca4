"""Reads of one row by its key: latency alone, throughput in company, what they cost, and C as the measure."""

from __future__ import annotations

from tests.benchmarks.contenders import PYTHON_PEERS, ROUTERS
from tests.benchmarks.figures import Metric
from tests.benchmarks.judging import Judge, at_least, at_most, below, stated, stated_ratio
from tests.benchmarks.rounds import compare
from tests.benchmarks.stage import Setting

READS = {"work": "point_reads"}
UNIT = "reads/s"
FLOOR = "grpc_floor"


def _floor(metric: Metric) -> Judge:
    """What gRPC alone leaves of what is asked."""
    return stated_ratio(metric, "the same of a bare gRPC stream, which asks no database", of=FLOOR)


CASES = (
    compare(
        "point_read_1", "Point read, 1 caller", UNIT, ("router", *PYTHON_PEERS, FLOOR), Setting(1), READS,
        at_most(1.6, metric=Metric.P50_MS, what="p50 latency"),
        _floor(Metric.P50_MS),
    ),
    compare(
        "point_read_16", "Point read, 16 callers", UNIT, (*ROUTERS, *PYTHON_PEERS, FLOOR), Setting(16), READS,
        at_least(1.5, what="throughput"),
        _floor(Metric.RATE),
    ),
    compare(
        "point_read_64", "Point read, 64 callers", UNIT, (*ROUTERS, *PYTHON_PEERS, FLOOR), Setting(64), READS,
        at_least(3, what="throughput"),
        _floor(Metric.RATE),
    ),
    compare(
        "point_read_256", "Point read, 256 callers", UNIT, (*ROUTERS, *PYTHON_PEERS, FLOOR), Setting(256), READS,
        at_least(5, what="throughput"),
        _floor(Metric.RATE),
        below(40, Metric.POOLER_CPU_US, "router CPU per read"),
        stated(Metric.POOLER_CPU_US, "PgBouncer CPU per read", of="psycopg_pgbouncer"),
    ),
    compare(
        "stub_32", "Point read, plain unary stub, 32 callers", UNIT, ("router_stub", "router", "psycopg_pgbouncer"),
        Setting(32), READS,
        stated(Metric.RATE, "reads/s of the plain stub", of="router_stub"),
        stated(Metric.POOLER_CPU_US, "router CPU per call", of="router_stub"),
    ),
    compare(
        "pgbench", "Point reads beside pgbench, in C", UNIT,
        (*ROUTERS, "pgbench_simple", "pgbench_prepared", "pgbench_pgbouncer"), Setting(256), READS,
        at_least(1, to="pgbench_simple", what="256 callers / pgbench -S, 20 clients, straight"),
        at_least(1, of="router_workers", to="pgbench_simple", what="the same with two workers"),
        at_least(1, to="pgbench_prepared", what="256 callers / pgbench -S -M prepared"),
        at_least(1, to="pgbench_pgbouncer", what="256 callers / pgbench -S through PgBouncer"),
        notes=("pgbench runs 20 clients in one thread; its figures have no percentiles",),
    ),
)
