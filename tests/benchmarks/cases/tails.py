"""Slow answers: many callers on few connections, and slow statements among quick ones."""

from __future__ import annotations

from tests.benchmarks.figures import Metric
from tests.benchmarks.judging import below, grows, stated
from tests.benchmarks.rounds import Entry, compare
from tests.benchmarks.stage import Setting

READS = {"work": "point_reads"}
MIXED = {"slow_share": 0.01}


def _both(contender: str, title: str) -> tuple[Entry, Entry]:
    """The same caller without and with slow statements, in turn."""
    return Entry(contender, title=title), Entry(contender, f"{contender}_mixed", MIXED, f"{title}, mixed")


CASES = (
    compare(
        "callers_500", "500 callers on 40 connections, point reads", "reads/s",
        ("router", "psycopg_pgbouncer", "asyncpg_pgbouncer", "psycopg_straight"), Setting(500, connections=40), READS,
        below(1.5, Metric.TAIL, "p99 / p50 of the router"),
        stated(Metric.TAIL, "p99 / p50 of psycopg → PgBouncer", of="psycopg_pgbouncer"),
    ),
    compare(
        "mixed", "1 % statements of 100 ms among point reads, 64 callers", "reads/s",
        (
            *_both("router", "Pointsman SDK"),
            *_both("psycopg_pgbouncer", "psycopg → PgBouncer"),
            *_both("psycopg_straight", "psycopg, straight"),
        ),
        Setting(64), READS,
        grows(
            Metric.P99_MS, "p99 of point reads, mixed / pure", of="router_mixed", without="router", at_most=3
        ),
        grows(
            Metric.P99_MS, "the same of psycopg → PgBouncer", of="psycopg_pgbouncer_mixed",
            without="psycopg_pgbouncer",
        ),
    ),
)
