"""A new connection that is not its tenant's is closed before anything runs on it, and somebody is told."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from router.decisions.retry import Action, Replayability, classify
from router.devcluster import DevCluster
from router.model.events import ConnectionClosed, ConnectionMisplaced
from router.model.identity import ClusterName, EndpointName, Generation, TenantName
from router.model.observation import AttemptFailed
from router.model.policy import PoolPolicy
from router.model.reasons import CloseReason, RefuseReason
from router.model.request import Access
from router.model.topology import Cluster, Endpoint, IsolationMode, Login, Secret, Tenant
from router.postgres.endpoint_pool import PsycopgEndpointPool, PsycopgPoolFactory
from router.system import SystemChance
from tests.support.budgets import roomy
from tests.support.builders import Recorder
from tests.support.eventually import eventually

pytestmark = pytest.mark.pg

ACME = Tenant(TenantName("acme"), ClusterName("main"), "acme", Login("acme", Secret("acme-secret")))
GLOBEX_LOGIN = Login("globex", Secret("globex-secret"))


def make_pool(pg: DevCluster, tenant: Tenant, events: Recorder) -> PsycopgEndpointPool:
    server = pg.primary()
    endpoint = Endpoint(EndpointName(server.name), ClusterName("main"), "127.0.0.1", server.port)
    cluster = Cluster(ClusterName("main"), (endpoint,), Login("pointsman_control", Secret(pg.control_password)))
    factory = PsycopgPoolFactory(SystemChance(), events, roomy)
    return factory.make(tenant, cluster, endpoint, Access.READ_WRITE, Generation(1))


async def refused(pg: DevCluster, tenant: Tenant) -> str:
    """The problem that was told to the operator; fails unless everybody was told, and nothing was lent."""
    events = Recorder()
    others = backends(pg, tenant)  # a router that other tests share may keep its own
    pool = make_pool(pg, tenant, events)
    try:
        with pytest.raises(AttemptFailed) as caught:
            await pool.open_lane(asyncio.get_running_loop().time() + 5)
        verdict = classify(caught.value.fault, Replayability(Access.READ_WRITE))
        assert (verdict.action, verdict.reason) == (Action.FAIL, RefuseReason.BACKEND_CONFIG)
        assert not verdict.primary_evidence
        problems = [event.problem for event in events.events if isinstance(event, ConnectionMisplaced)]
        closed = [event.reason for event in events.events if isinstance(event, ConnectionClosed)]
        assert closed
        assert set(closed) == {CloseReason.MISPLACED}
        assert pool.statistics().size == 0
        await eventually(lambda: backends(pg, tenant) <= others, within_s=10, what="its backends end")
    finally:
        await pool.close(CloseReason.SHUTDOWN)
    return problems[0]


def backends(pg: DevCluster, tenant: Tenant) -> set[int]:
    with pg.primary().connect() as connection:
        rows = connection.execute(
            "SELECT pid FROM pg_stat_activity WHERE application_name = %s", (f"pointsman/{tenant.name}",)
        ).fetchall()
    return {pid for (pid,) in rows}


async def test_a_tenant_in_its_own_place_is_served_on_both_accesses(pg_cluster: DevCluster):
    events = Recorder()
    pool = make_pool(pg_cluster, replace(ACME, pool=PoolPolicy(require_marker=True)), events)
    lane = await pool.open_lane(asyncio.get_running_loop().time() + 5)
    await lane.give_back()
    await pool.close(CloseReason.SHUTDOWN)
    assert not events.of(ConnectionMisplaced)


async def test_a_tenant_mapped_to_anothers_database_and_login_is_refused_by_the_marker(pg_cluster: DevCluster):
    problem = await refused(pg_cluster, replace(ACME, database="globex", login=GLOBEX_LOGIN))
    assert problem == "the marker of database globex for login globex names globex, not acme"


async def test_a_login_that_may_enter_anothers_database_is_no_tenant_of_it(pg_cluster: DevCluster):
    with pg_cluster.primary().connect() as connection:
        connection.execute("GRANT CONNECT ON DATABASE globex TO acme")
        try:
            problem = await refused(pg_cluster, replace(ACME, database="globex"))
        finally:
            connection.execute("REVOKE CONNECT ON DATABASE globex FROM acme")
    assert problem == "database globex is marked, and login acme is none of its tenants'"


async def test_a_database_without_a_marker_is_refused_where_one_is_required(pg_cluster: DevCluster):
    with pg_cluster.primary().connect() as connection:
        connection.execute("CREATE DATABASE unmarked OWNER acme TEMPLATE template0")
        try:
            strict = PoolPolicy(require_marker=True)
            problem = await refused(pg_cluster, replace(ACME, database="unmarked", pool=strict))
        finally:
            connection.execute("DROP DATABASE unmarked WITH (FORCE)")
    assert problem.startswith("database unmarked has no tenant marker")


async def test_a_superuser_is_no_tenant(pg_cluster: DevCluster):
    with pg_cluster.primary().connect() as connection:
        connection.execute("ALTER ROLE acme SUPERUSER")
        try:
            problem = await refused(pg_cluster, ACME)
        finally:
            connection.execute("ALTER ROLE acme NOSUPERUSER")
    assert problem.startswith("acme is a superuser")


async def test_a_role_of_the_logins_own_settings_is_noticed(pg_cluster: DevCluster):
    with pg_cluster.primary().connect() as connection:
        connection.execute("CREATE ROLE stray")
        connection.execute("GRANT stray TO acme")
        connection.execute("ALTER ROLE acme SET role = 'stray'")
        try:
            problem = await refused(pg_cluster, ACME)
        finally:
            connection.execute("ALTER ROLE acme RESET role")
            connection.execute("DROP ROLE stray")
    assert problem == "the connection acts as stray, not as acme"


async def test_a_registered_tenants_connection_has_its_role_and_name_from_birth(pg_cluster: DevCluster):
    statements = {"who": "select 1"}
    tenant = replace(ACME, isolation=IsolationMode.REGISTERED, role="acme rows\\", statements=statements)
    with pg_cluster.primary().connect() as connection:
        connection.execute(r'CREATE ROLE "acme rows\"')
        connection.execute(r'GRANT "acme rows\" TO acme')
    with pg_cluster.primary().connect("acme") as connection:
        connection.execute(r'GRANT USAGE ON SCHEMA pointsman TO "acme rows\"')
        connection.execute(r'GRANT SELECT ON pointsman.tenant_marker TO "acme rows\"')
    pool = make_pool(pg_cluster, tenant, Recorder())
    try:
        lane = await pool.open_lane(asyncio.get_running_loop().time() + 5)
        await lane.give_back()
        connection_of_it = lane.connection
        cursor = await connection_of_it.execute("SELECT current_user, current_setting('pointsman.tenant')")
        assert await cursor.fetchone() == ("acme rows\\", "acme")
        await connection_of_it.execute("RESET ALL")
        await connection_of_it.execute("RESET ROLE")
        cursor = await connection_of_it.execute("SELECT current_user, current_setting('pointsman.tenant')")
        assert await cursor.fetchone() == ("acme rows\\", "acme")
    finally:
        await pool.close(CloseReason.SHUTDOWN)
        with pg_cluster.primary().connect("acme") as connection:
            connection.execute(r'DROP OWNED BY "acme rows\"')
            connection.execute(r'DROP ROLE "acme rows\"')
