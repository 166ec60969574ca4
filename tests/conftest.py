"""Fixtures for every floor, and the order of the run: fast floors first, real servers last.

Of two workers one is done before the other, by as much as the last module takes: so the part of `make test` that times
real servers begins with its longest ones.
"""

from __future__ import annotations

import os

# Before grpc is imported: the tests start processes while channels are open, and grpc notes each one on stderr.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")

import pytest
from hypothesis import HealthCheck, settings

from tests.support.dev_cluster import fresh_cluster, make_cluster, pg_cluster, pg_cluster_each, pg_clusters

__all__ = ["fresh_cluster", "make_cluster", "pg_cluster", "pg_cluster_each", "pg_clusters"]

_FLOORS = (
    *("architecture", "protos", "model", "decisions", "sql", "encoding", "config", "engine", "simulation", "mutants"),
    *("contracts", "api"),
    *("sdk", "telemetry", "topology", "cli", "deploy", "bench", "postgres", "devcluster", "isolation", "hardening"),
    *("stories", "chaos", "failover", "workers"),
)

# Hypothesis' own clocks (200 ms an example, so many examples in so long) judge the machine, not the code.
settings.register_profile("pointsman", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("pointsman")

# Floors with real clocks, ports, servers and processes. On a machine of two cores somebody else's second breaks about
# one run of some hundred such tests in five, so what fails there is asked once more, and `make test` names it ("RERUN")
# even when it then passes. Decisions and whatever runs on virtual time get no second chance: there the same code gives
# the same answer.
_REAL_TIME = frozenset((
    *("sql", "contracts", "api", "sdk", "telemetry", "cli", "deploy", "postgres", "devcluster"),
    *("isolation", "hardening", "stories", "workers", "failover", "chaos"),
))


@pytest.fixture
def patient_cancels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lanes learn that a cancel request has arrived, however long it takes, and do not give up after 100 ms: else what
    a test finds after it (the lane is good, or it is not) is the machine's load."""
    monkeypatch.setattr("router.postgres.lane._CANCEL_S", 10.0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def folder(item: pytest.Item) -> str:
        return item.path.relative_to(item.config.rootpath / "tests").parts[0]

    def floor(item: pytest.Item) -> int:
        return _FLOORS.index(folder(item)) if folder(item) in _FLOORS else len(_FLOORS)

    for item in items:
        if folder(item) in _REAL_TIME:
            item.add_marker(pytest.mark.flaky(reruns=1))
    items.sort(key=floor)
