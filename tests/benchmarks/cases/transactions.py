"""pgbench's TPC-B-like transaction: BEGIN, five statements, END, or one ExecuteBatch."""

from __future__ import annotations

from tests.benchmarks.judging import at_least
from tests.benchmarks.rounds import Comparison, compare
from tests.benchmarks.stage import Setting

TRANSFERS = {"work": "transfers"}
UNIT = "transactions/s"
POOLED = ("router", "psycopg_pgbouncer", "psycopg_pipeline_pgbouncer", "asyncpg_pgbouncer")
ALL = (*POOLED, "psycopg_straight", "asyncpg_straight")


def _case(name: str, title: str, setting: Setting, asked: float, contenders: tuple[str, ...]) -> Comparison:
    return compare(name, title, UNIT, contenders, setting, TRANSFERS, at_least(asked, what="throughput"))


CASES = (
    _case("tpcb_1", "TPC-B transaction, 1 caller", Setting(1), 1.4, ALL),
    _case("tpcb_16", "TPC-B transaction, 16 callers", Setting(16), 1.8, ALL),
    _case(
        "tpcb_1_network", "TPC-B transaction, 1 caller, 1 ms of network to the pooler", Setting(1, network_ms=1.0), 4,
        POOLED,
    ),
)
