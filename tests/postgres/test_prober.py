"""The prober against real servers: what it reads, and what it makes of a server in trouble."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import psycopg
import pytest

from router.devcluster import DevCluster
from router.model.identity import ClusterName, EndpointName
from router.model.observation import ProbeOutcome, ProbeResult
from router.model.topology import Cluster, Endpoint, Login, Secret
from router.postgres.control_connection import ControlConnection
from router.postgres.control_door import ControlDoor
from router.postgres.prober import PostgresProber
from router.postgres.role_query import ROLE_QUERY, read_claim
from tests.postgres.control_cluster import configured, endpoint
from tests.support.dev_cluster import MakeCluster, make_cluster, pg_cluster_each, pg_clusters

__all__ = ["make_cluster", "pg_cluster_each", "pg_clusters"]
pytestmark = pytest.mark.pg


@asynccontextmanager
async def prober(cluster: Cluster, name: str) -> AsyncIterator[PostgresProber]:
    made = PostgresProber(cluster, endpoint(cluster, name))
    try:
        yield made
    finally:
        await made.close()


async def until(probing: PostgresProber, condition: Callable[[ProbeResult], bool], what: str) -> ProbeResult:
    for _ in range(400):
        result = await probing.probe(fresh=False)
        if condition(result):
            return result
        await asyncio.sleep(0.01)
    raise AssertionError(f"{what} was never seen; last: {result}")


async def test_what_a_primary_says(pg_cluster_each: DevCluster):
    async with prober(configured(pg_cluster_each), "n1") as probing:
        result = await probing.probe(fresh=True)
    claim = result.claim
    assert (result.outcome, result.fresh) == (ProbeOutcome.OK, True)
    assert claim is not None
    assert (claim.in_recovery, claim.timeline, claim.sync_names) == (False, 1, "ANY 1 (n2,n3)")
    assert sorted(claim.standbys) == sorted(claim.sync_standbys) == ["n2", "n3"]
    assert claim.version // 10_000 >= 15
    assert claim.system_id > 0
    assert claim.lsn > 0
    assert not claim.read_only


async def test_what_a_standby_says(pg_cluster_each: DevCluster):
    cluster = configured(pg_cluster_each)
    async with prober(cluster, "n1") as at_primary, prober(cluster, "n2") as at_standby:
        primary = (await at_primary.probe(fresh=False)).claim
        caught_up = await until(at_standby, lambda r: r.claim is not None and r.claim.lag_s == 0, "a caught-up standby")
    claim = caught_up.claim
    assert claim is not None
    assert primary is not None
    assert (claim.in_recovery, claim.timeline, claim.system_id) == (True, 1, primary.system_id)
    assert (claim.receiver_alive, claim.application_name, claim.fenced) == (True, "n2", False)
    assert (claim.retry_interval_ms, claim.receiver_ping_s) == (100, 1.0)
    assert 0 <= claim.receiver_silent_s < 3
    assert claim.received_lsn >= claim.lsn > 0


async def test_asked_while_its_promotion_ends_a_server_is_no_primary_that_takes_no_writes(make_cluster: MakeCluster):
    """The query's own transaction began in recovery, and cannot write; the next one can."""
    dev = make_cluster(tenants=False)
    cluster = configured(dev)
    soon = asyncio.get_running_loop().time() + 20.0
    asking = await ControlDoor(cluster).open(endpoint(cluster, "n2"), soon)
    try:
        await asking.queries(("BEGIN", "SELECT 1"), soon)
        with dev.servers["n2"].connect() as connection:
            assert connection.execute("SELECT pg_promote()").fetchone() == (True,)
        assert await asking.query("SHOW transaction_read_only", soon) == [("on",)]
        claim = read_claim((await asking.query(ROLE_QUERY, soon))[0], asking.server_version)
    finally:
        asking.close()
    assert (claim.in_recovery, claim.timeline, claim.read_only) == (False, 2, False)


async def test_a_role_with_the_rights_of_pg_monitor_is_enough(pg_cluster_each: DevCluster):
    with pg_cluster_each.primary().connect() as connection:
        connection.execute("CREATE ROLE only_monitor LOGIN PASSWORD 'x' IN ROLE pg_monitor")
        connection.execute("GRANT CONNECT ON DATABASE postgres TO only_monitor")
    cluster = replace(configured(pg_cluster_each), control=Login("only_monitor", Secret("x")))
    for name in ("n1", "n2"):
        async with prober(cluster, name) as probing:
            result = await until(probing, lambda r: r.outcome is ProbeOutcome.OK, "a login")
            assert result.claim is not None


async def test_a_wrong_password_is_no_failure_of_the_server(pg_cluster_each: DevCluster):
    cluster = replace(configured(pg_cluster_each), control=Login("pointsman_control", Secret("wrong")))
    async with prober(cluster, "n1") as probing:
        result = await probing.probe(fresh=True)
    assert (result.outcome, result.claim) == (ProbeOutcome.LOGIN_REFUSED, None)
    assert "wrong" not in result.message


async def test_a_refused_login_is_not_tried_twice_again_and_a_stranger_learns_that_the_server_is_there(
    pg_cluster_each: DevCluster,
):
    door = CountingDoor(replace(configured(pg_cluster_each), control=Login("pointsman_control", Secret("wrong"))))
    cluster = configured(pg_cluster_each)
    probing = PostgresProber(cluster, endpoint(cluster, "n1"), door)
    outcomes, logins = [], []
    for log_in in (True, True, False):
        result = await probing.probe(fresh=True, log_in=log_in)
        outcomes.append(result.outcome)
        logins.append(door.opened)
    assert outcomes == [ProbeOutcome.LOGIN_REFUSED] * 3
    assert logins == [2, 3, 3]
    assert "password" in result.message, "what it said to the login"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = replace(endpoint(cluster, "n1"), host="127.0.0.1", port=free.getsockname()[1])
        result = await PostgresProber(cluster, nobody, door).probe(fresh=True, log_in=False)
    assert (result.outcome, result.fresh, door.opened) == (ProbeOutcome.REFUSED, False, 3)
    await probing.close()


class CountingDoor(ControlDoor):
    """Counts logins."""

    opened = 0

    async def open(self, endpoint: Endpoint, deadline: float) -> ControlConnection:
        self.opened += 1
        return await super().open(endpoint, deadline)


async def test_a_role_that_may_not_ask_is_no_failure_of_the_server(pg_cluster_each: DevCluster):
    cluster = replace(
        configured(pg_cluster_each), control=Login("acme", Secret("acme-secret")), control_database="acme"
    )
    async with prober(cluster, "n2") as probing:
        outcomes = {(await probing.probe(fresh=fresh)).outcome for fresh in (True, False, True)}
    assert outcomes <= {ProbeOutcome.OK, ProbeOutcome.LOGIN_REFUSED}


async def test_nobody_listens():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    cluster = _nowhere("127.0.0.1", port)
    async with prober(cluster, "n1") as probing:
        assert (await probing.probe(fresh=True)).outcome is ProbeOutcome.REFUSED


async def test_a_name_without_an_address():
    async with prober(_nowhere("no-such-host.invalid", 5432), "n1") as probing:
        result = await probing.probe(fresh=False)
    assert result.outcome in (ProbeOutcome.UNRESOLVED, ProbeOutcome.TIMEOUT)


@pytest.mark.parametrize("reply", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"E\xff\xff\xff\xff", b"E\0\0\0\x08"])
async def test_something_that_is_no_postgresql(reply: bytes):
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(reply)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        async with prober(_nowhere("127.0.0.1", port), "n1") as probing:
            result = await probing.probe(fresh=True)
    assert result.outcome in (ProbeOutcome.FAILED, ProbeOutcome.LOGIN_REFUSED)


def _nowhere(host: str, port: int) -> Cluster:
    name = ClusterName("dev")
    return Cluster(name, (Endpoint(EndpointName("n1"), name, host, port),), Login("control", Secret("x")))


async def test_too_many_clients_is_alive(make_cluster: MakeCluster):
    dev = make_cluster(
        replicas=1, tenants=False, settings={"max_connections": "12", "superuser_reserved_connections": "2"}
    )
    server = dev.primary()
    async with prober(configured(dev), "n1") as probing, prober(configured(dev), "n1") as newcomer:
        assert (await probing.probe(fresh=False)).outcome is ProbeOutcome.OK
        hogs: list[psycopg.Connection[tuple[object, ...]]] = []
        try:
            while len(hogs) < 20:
                hogs.append(server.connect())
        except psycopg.OperationalError:
            pass
        with_kept = await probing.probe(fresh=True)
        without = await newcomer.probe(fresh=True)
        for hog in hogs:
            hog.close()
        assert (with_kept.outcome, with_kept.claim is not None) == (ProbeOutcome.FULL, True)
        assert without.outcome is ProbeOutcome.FULL


async def test_a_server_in_trouble(make_cluster: MakeCluster):
    """Frozen in part, frozen, crashed, killed, starting: one server through it all."""
    dev = make_cluster(replicas=1, tenants=False)
    server = dev.primary()
    cluster = configured(dev, timeout_s=0.3)
    async with prober(cluster, "n1") as probing:
        await probing.probe(fresh=True)

        server.freeze_postmaster()
        assert (await probing.probe(fresh=False)).outcome is ProbeOutcome.OK
        half = await probing.probe(fresh=True)
        assert (half.outcome, half.claim is not None) == (ProbeOutcome.FRESH_HANGS, True)
        server.thaw()
        assert (await probing.probe(fresh=True)).outcome is ProbeOutcome.OK

        server.freeze()
        for fresh in (False, True):
            result = await probing.probe(fresh=fresh)
            assert result.outcome is ProbeOutcome.TIMEOUT
            assert result.took_s < 0.35
        server.thaw()
        await until(probing, lambda r: r.outcome is ProbeOutcome.OK, "an answer")

        server.kill()
        assert (await probing.probe(fresh=False)).outcome is ProbeOutcome.REFUSED

        server.launch()
        seen = set()
        async with asyncio.timeout(20):
            while ProbeOutcome.OK not in seen:
                seen.add((await probing.probe(fresh=True)).outcome)
        assert seen <= {ProbeOutcome.REFUSED, ProbeOutcome.STARTING, ProbeOutcome.OK}


async def test_a_crash_restart_says_starting(make_cluster: MakeCluster):
    dev = make_cluster(replicas=0, tenants=False)
    server = dev.primary()

    async def after_restart(crashing: asyncio.Task[int]) -> None:
        await crashing
        await asyncio.sleep(0.2)  # for a moment after the crash the postmaster still takes connections
        await asyncio.to_thread(server.wait_ready)

    with server.connect() as connection:
        # Some log to replay, so that the restart takes long enough to be seen.
        connection.execute("CREATE TABLE filler AS SELECT n, repeat('x', 200) AS t FROM generate_series(1, 200000) n")
    async with prober(configured(dev), "n1") as probing:
        assert (await probing.probe(fresh=True)).outcome is ProbeOutcome.OK
        seen = set()
        async with asyncio.timeout(40):
            # On a busy machine a restart may pass between two probes: then it crashes once more.
            while ProbeOutcome.STARTING not in seen:
                crashing = asyncio.create_task(asyncio.to_thread(server.crash_one_backend))
                over = asyncio.create_task(after_restart(crashing))
                while not over.done():
                    seen.add((await probing.probe(fresh=True)).outcome)
                await over
        # FAILED: a backend that is killed while it greets a fresh connection.
        assert seen <= {
            *(ProbeOutcome.STARTING, ProbeOutcome.OK, ProbeOutcome.LOST, ProbeOutcome.TIMEOUT, ProbeOutcome.FAILED)
        }


async def test_the_timeline_of_a_standby_whose_receiver_is_gone(make_cluster: MakeCluster):
    dev = make_cluster(tenants=False)
    cluster = configured(dev)
    dev.primary().kill()  # or n3 may receive a record more from it than n2 has, and can then follow n2 no further
    dev.fail_over("n2")
    async with prober(cluster, "n3") as probing:
        await until(probing, lambda r: r.claim is not None and r.claim.receiver_alive, "a receiver")
        with dev.servers["n2"].connect() as connection:
            # Confirmed by n3, the only other server: it has a piece of the new timeline's log.
            connection.execute("CREATE TABLE on_the_new_timeline ()")
        dev.servers["n2"].kill()
        result = await until(probing, lambda r: r.claim is not None and not r.claim.receiver_alive, "a lost receiver")
        assert result.claim is not None
        assert (result.claim.timeline, result.claim.in_recovery) == (2, True)
