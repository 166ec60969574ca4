"""A router of its own for what would disturb other tests' routers, in front of the shared cluster."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from router.devcluster import DevCluster
from tests.hardening.residue import SERVING
from tests.support.running_router import Config, RunningRouter, started_router

FUZZED = """
CREATE TABLE IF NOT EXISTS fuzzed (
  id serial PRIMARY KEY, note text CHECK (note <> 'no'), at timestamptz DEFAULT now(), data bytea
);
INSERT INTO fuzzed (id, note, data) VALUES (1, 'one', '\\x00ff') ON CONFLICT DO NOTHING;
"""


def furnish(cluster: DevCluster) -> None:
    """The table that fuzzed statements work on, in acme's database."""
    with psycopg.connect(cluster.tenant_dsn("acme"), autocommit=True) as connection:
        connection.execute(FUZZED)


def fuzzable(config: Config) -> None:
    """No order of an operator may move the shared cluster's roles; and nothing waits longer than a caller here does."""
    config["clusters"]["main"]["mode"] = "follow"
    for tenant in config["tenants"].values():
        tenant["limits"] = {"default_timeout_s": 2.0, "max_timeout_s": 5.0, "idle_in_transaction_s": 1.0}
        tenant["pool"] = {"close_after_s": 1.0}  # soon all must be as it was before anybody came


@pytest.fixture(scope="module")
def fuzzed_router(pg_cluster: DevCluster) -> Iterator[RunningRouter]:
    """To be sent anything."""
    furnish(pg_cluster)
    with started_router(pg_cluster, edit=fuzzable, program=SERVING) as router:
        yield router
