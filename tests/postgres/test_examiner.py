"""The examiner on real servers: their settings as they are, missing rights, and the traces of Patroni."""

from __future__ import annotations

import asyncio

import psycopg
import pytest

from router.decisions.checkup import examine, manager_of
from router.devcluster import CONTROL_ROLE, DevCluster
from router.model.checkup import Check
from router.model.identity import EndpointName
from router.model.observation import AttemptFailed
from router.postgres.examiner import PATRONI_OPTIONS, PATRONI_QUERY, PostgresExaminer
from router.postgres.surgeon import PostgresSurgeon
from tests.postgres.control_cluster import configured, endpoint
from tests.support.dev_cluster import MakeCluster, make_cluster, pg_cluster_each, pg_clusters

__all__ = ["make_cluster", "pg_cluster_each", "pg_clusters"]
pytestmark = pytest.mark.pg


async def test_the_development_cluster_is_as_it_should_be(pg_cluster_each: DevCluster):
    cluster = configured(pg_cluster_each)
    examiner = PostgresExaminer(cluster)
    seen = {one.name: await examiner.examine(one) for one in cluster.endpoints}
    found = examine(cluster, seen, EndpointName("n1"))
    assert [one for one in found if one.check not in (Check.MINOR_VERSION, Check.MIXED_VERSIONS)] == []
    assert [one.application_name for one in seen.values()] == ["", "n2", "n3"]
    assert (seen[EndpointName("n1")].sync_names, seen[EndpointName("n2")].in_recovery) == ("ANY 1 (n2,n3)", True)


async def test_what_is_wrong_is_found_and_the_fix_mends_it(make_cluster: MakeCluster):
    dev = make_cluster(tenants=False, settings={"wal_receiver_timeout": "60s"})
    cluster = configured(dev)
    examiner, n1 = PostgresExaminer(cluster), EndpointName("n1")
    with dev.servers["n1"].connect() as connection:
        connection.execute("ALTER SYSTEM SET synchronous_standby_names = ''")
        connection.execute("ALTER SYSTEM SET wal_retrieve_retry_interval = '5s'")
        connection.execute(f"REVOKE EXECUTE ON FUNCTION pg_promote(boolean, integer) FROM {CONTROL_ROLE}")
        connection.execute(f"REVOKE ALTER SYSTEM ON PARAMETER primary_conninfo FROM {CONTROL_ROLE}")
        connection.execute("SELECT pg_reload_conf()")
        await asyncio.sleep(0.2)
        found = examine(cluster, {n1: await examiner.examine(endpoint(cluster, "n1"))}, n1)
        expected = {Check.SYNC_NAMES_EMPTY, Check.RETRY_INTERVAL, Check.RECEIVER_TIMEOUT, Check.RIGHTS}
        assert {one.check for one in found} - {Check.MINOR_VERSION} == expected
        for one in found:
            for statement in one.fix.split(";"):
                if statement.strip() and not statement.strip().startswith("--"):
                    connection.execute(statement)
    await asyncio.sleep(0.2)
    found = examine(cluster, {n1: await examiner.examine(endpoint(cluster, "n1"))}, n1)
    assert {one.check for one in found} <= {Check.MINOR_VERSION}


async def test_patroni_is_seen_by_its_sessions_and_a_tenant_cannot_pretend(make_cluster: MakeCluster):
    dev = make_cluster()
    cluster = configured(dev)
    examiner, surgeon = PostgresExaminer(cluster), PostgresSurgeon(cluster, "tests")
    n1, n2 = endpoint(cluster, "n1"), endpoint(cluster, "n2")
    name = {"application_name": "Patroni heartbeat"}
    soon = asyncio.get_running_loop().time() + 5
    try:
        with psycopg.connect(dev.tenant_dsn("acme"), **name):
            assert not (await examiner.examine(n1)).manager
        with psycopg.connect(dev.servers["n2"].superuser_dsn, **name):
            seen = {n2.name: await examiner.examine(n2)}
            assert "Patroni is connected" in manager_of(seen)
            with pytest.raises(AttemptFailed, match="Patroni is connected"):
                await surgeon.fence(n2, soon)
        assert not (await surgeon.look(n2, soon)).claim.fenced  # type: ignore[union-attr]
    finally:
        await surgeon.close()


def test_patroni_is_seen_by_its_command_line(pg_cluster_each: DevCluster):
    server = pg_cluster_each.servers["n1"]
    with server.connect() as connection:
        row = connection.execute("SELECT ARRAY(SELECT name FROM pg_settings WHERE name = ANY(%s))", [
            list(PATRONI_OPTIONS)]).fetchone()  # fmt: skip
        assert row is not None
        assert set(row[0]) == set(PATRONI_OPTIONS), "an option that this version does not know"
        asked = PATRONI_QUERY.replace("'command line'", "source")  # as if all of them had been given there
        assert "Patroni has started" in connection.execute(asked).fetchone()[0]  # type: ignore[arg-type,index]
        assert connection.execute(PATRONI_QUERY).fetchone()[0] == ""  # type: ignore[arg-type,index]
