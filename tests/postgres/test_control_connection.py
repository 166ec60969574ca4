"""The router's own connections: several statements sent at once."""

import asyncio

import pytest

from router.devcluster import DevCluster
from router.model.observation import AttemptFailed, FaultKind
from router.model.topology import Cluster
from router.postgres import conninfo
from router.postgres.control_connection import ControlConnection
from tests.postgres.control_cluster import configured, endpoint
from tests.support.dev_cluster import pg_cluster_each, pg_clusters

__all__ = ["pg_cluster_each", "pg_clusters"]
pytestmark = pytest.mark.pg


async def opened(cluster: Cluster, deadline: float) -> ControlConnection:
    login = cluster.control
    parameters = conninfo.for_control(cluster, endpoint(cluster, "n1"), login)
    return await ControlConnection.open(conninfo.with_password(parameters, login.password), deadline)


async def test_statements_sent_at_once_are_answered_in_order_and_apart(pg_cluster_each: DevCluster):
    cluster = configured(pg_cluster_each)
    deadline = asyncio.get_running_loop().time() + 5
    connection = await opened(cluster, deadline)
    try:
        mark = "SELECT set_config('pointsman.mark', 'set', false)"
        with pytest.raises(AttemptFailed) as failed:
            await connection.queries(("SELECT 1", "SELECT 1/0", mark, "SELECT 1/0"), deadline)
        assert (failed.value.fault.kind, failed.value.fault.sqlstate) == (FaultKind.SERVER_ERROR, "22012")
        assert connection.usable
        told = await connection.queries(("SELECT current_setting('pointsman.mark')", "BEGIN", "SELECT 2, 3"), deadline)
        assert told == [[("set",)], [], [("2", "3")]]
        assert await connection.query("SELECT 4", deadline) == [("4",)]
        with pytest.raises(AttemptFailed) as silent:
            await connection.queries(("SELECT 5", "SELECT pg_sleep(9)"), asyncio.get_running_loop().time() + 0.1)
        assert silent.value.fault.kind is FaultKind.SILENT
        assert not connection.usable
    finally:
        connection.close()


async def test_a_connection_that_ends_between_answers_is_lost(pg_cluster_each: DevCluster):
    cluster = configured(pg_cluster_each)
    deadline = asyncio.get_running_loop().time() + 5
    connection = await opened(cluster, deadline)
    statements = ("SELECT 1", "SELECT pg_terminate_backend(pg_backend_pid())", "SELECT 2")
    with pytest.raises(AttemptFailed) as lost:
        await connection.queries(statements, deadline)
    assert not connection.usable or lost.value.fault.sqlstate == "57P01"
