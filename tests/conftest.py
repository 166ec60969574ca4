"""Fixtures for every floor, and the order of the run: fast floors first, real servers last."""

from __future__ import annotations

import os

# Before grpc is imported: the tests start processes while channels are open, and grpc notes each one on stderr.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")

import pytest

from tests.support.dev_cluster import fresh_cluster, make_cluster, pg_cluster, pg_cluster_each, pg_clusters

__all__ = ["fresh_cluster", "make_cluster", "pg_cluster", "pg_cluster_each", "pg_clusters"]

_FLOORS = (
    *("architecture", "protos", "model", "decisions", "sql", "encoding", "config", "engine", "simulation", "mutants"),
    *("contracts", "api"),
    *("sdk", "telemetry", "topology", "cli", "deploy", "bench", "postgres", "devcluster", "isolation", "stories"),
    *("workers", "failover", "chaos"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def floor(item: pytest.Item) -> int:
        folder = item.path.relative_to(item.config.rootpath / "tests").parts[0]
        return _FLOORS.index(folder) if folder in _FLOORS else len(_FLOORS)

    items.sort(key=floor)
