"""The cluster: made, stopped, started again, failed over, rejoined, healed."""

import json
import os
import shutil
import stat
import threading

import psycopg
import pytest

from router.devcluster import (
    DataRootError,
    DevCluster,
    DevClusterError,
    DevEndpoint,
    DevTenant,
    HealReason,
    NoPrimaryError,
    RejoinMethod,
    ServerStartError,
    find_binaries,
    write_dev_json,
)
from router.devcluster.cluster_state import read_state
from router.devcluster.os_user import server_user
from router.devcluster.server import PORTS, free_port
from router.devcluster.waiting import now_s, wait_until
from tests.support.dev_cluster import MAJORS, TENANTS, new_data_root, on_every_major

pytestmark = pytest.mark.pg


@pytest.fixture
def data_root():
    directory = new_data_root()
    yield directory
    shutil.rmtree(directory)


def insert(cluster, name, server=None):
    """Add an account; returns when it is committed, so synchronously replicated."""
    with psycopg.connect(cluster.tenant_dsn("acme", server)) as connection:
        connection.execute("INSERT INTO accounts (external_id, name) VALUES (gen_random_uuid(), %s)", [name])


def names_on(cluster, server):
    with psycopg.connect(cluster.tenant_dsn("acme", server)) as connection:
        return {row[0] for row in connection.execute("SELECT name FROM accounts WHERE name NOT LIKE 'acme%'")}


def wait_for_names(cluster, server, names):
    wait_until(lambda: names_on(cluster, server) == names, what=f"{names} on {server}", timeout_s=20)


def heal_until_done(cluster):
    return wait_until(cluster.heal, what="a repair", timeout_s=20)


def test_the_shared_cluster_is_synchronous_and_as_configured(pg_cluster_each):
    cluster = pg_cluster_each
    assert cluster.primary().name == "n1"
    assert [server.name for server in cluster.standbys()] == ["n2", "n3"]
    with cluster.primary().connect() as connection:
        rows = connection.execute("SELECT application_name, sync_state FROM pg_stat_replication ORDER BY 1").fetchall()
        assert rows == [("n2", "quorum"), ("n3", "quorum")]
        slots = connection.execute("SELECT slot_name, active FROM pg_replication_slots ORDER BY 1").fetchall()
        assert slots == [("n2", True), ("n3", True)]
        shown = {
            name: connection.execute(f"SHOW {name}").fetchone()[0]
            for name in (
                "wal_retrieve_retry_interval",
                "data_checksums",
                "wal_segment_size",
                "synchronous_standby_names",
            )
        }
    assert shown == {
        "wal_retrieve_retry_interval": "100ms",
        "data_checksums": "on",
        "wal_segment_size": "4MB",
        "synchronous_standby_names": "ANY 1 (n2,n3)",
    }


def test_data_belongs_to_the_servers_user_alone(pg_cluster):
    for server in pg_cluster.servers.values():
        found = server.data_dir.stat()
        assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (server_user().uid, 0o700)
    assert stat.S_IMODE((pg_cluster.data_root / "cluster.json").stat().st_mode) == 0o600


def test_ports_lie_outside_the_range_of_outgoing_connections(pg_cluster):
    assert all(server.port in PORTS for server in pg_cluster.servers.values())
    taken = pg_cluster.servers["n1"].port
    assert free_port(taken) != taken


@on_every_major
def test_kill_promote_repoint_rejoin_and_nothing_acknowledged_is_lost(make_cluster, pg_major):
    cluster = make_cluster(major=pg_major)
    insert(cluster, "before")
    old = cluster.primary()
    old.kill()
    began = now_s()
    new = cluster.fail_over()
    insert(cluster, "after")
    assert now_s() - began < 3
    assert new is cluster.primary()
    assert new is not old
    assert cluster.observe()[new.name].timeline == 2

    assert [(done.name, done.reason, done.succeeded) for done in heal_until_done(cluster)] == [
        (old.name, HealReason.SERVER_DIED, True)
    ]
    for server in cluster.servers.values():
        wait_for_names(cluster, server, {"before", "after"})
    assert cluster.observe()[old.name].in_recovery
    assert cluster.heal() == []


@on_every_major
def test_an_old_primary_with_unreplicated_writes_is_rewound(make_cluster, pg_major):
    cluster = make_cluster(major=pg_major)
    old = cluster.primary()
    for standby in cluster.standbys():
        standby.kill()
    # Committed on the old primary only: the client never got its answer, so it may, and must, go.
    with old.connect("acme") as connection:
        connection.execute("SET synchronous_commit = local")
        connection.execute("INSERT INTO accounts (external_id, name) VALUES (gen_random_uuid(), 'lonely')")
    old.kill()
    for name in ("n2", "n3"):
        cluster.servers[name].start()
    cluster.fail_over("n2")
    insert(cluster, "kept")
    assert cluster.rejoin(old.name).method is RejoinMethod.REWOUND
    for server in cluster.servers.values():
        wait_for_names(cluster, server, {"kept"})
    with cluster.primary().connect() as connection:
        assert connection.execute("SHOW synchronous_standby_names").fetchone()[0] == "ANY 1 (n1,n3)"


def test_a_standby_without_a_follower_acknowledges_nothing(fresh_cluster):
    cluster = fresh_cluster
    cluster.servers["n1"].kill()
    cluster.promote("n2")
    answered = threading.Event()

    def write():
        insert(cluster, "waits", cluster.servers["n2"])
        answered.set()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert not answered.wait(0.4)
    finally:
        cluster.repoint("n3", "n2")
        writer.join(10)
    assert answered.is_set()


def test_a_node_is_copied_anew_when_it_cannot_be_rewound(fresh_cluster):
    cluster = fresh_cluster
    cluster.servers["n1"].kill()
    cluster.fail_over("n2")
    for segment in (cluster.servers["n1"].data_dir / "pg_wal").glob("0*"):
        segment.unlink()
    assert cluster.rejoin("n1").method is RejoinMethod.COPIED
    assert cluster.observe()["n1"].in_recovery
    with pytest.raises(DevClusterError, match="n2 is the primary"):
        cluster.rejoin("n2")


def test_healing_waits_for_a_promotion_and_starts_dead_standbys(make_cluster):
    cluster = make_cluster(tenants=False)
    cluster.servers["n3"].kill()
    assert [(done.name, done.done.split(" in ")[0]) for done in cluster.heal()] == [("n3", "started as it was")]
    cluster.servers["n1"].kill()
    assert cluster.heal() == []
    with pytest.raises(NoPrimaryError):
        cluster.primary()
    cluster.servers["n2"].kill()
    cluster.servers["n3"].kill()
    assert [done.reason for done in cluster.heal()] == [HealReason.ALONE]
    assert cluster.primary().name == "n1"


def test_a_thawed_old_primary_is_taken_out_and_a_forgotten_standby_repointed(make_cluster):
    cluster = make_cluster(tenants=False)
    old = cluster.primary()
    old.freeze()
    cluster.promote("n2")
    assert cluster.heal() == []
    old.thaw()
    assert {name for name, seen in cluster.observe().items() if not seen.in_recovery} == {"n1", "n2"}
    assert cluster.primary().name == "n2"
    reasons = [(done.name, done.reason) for _ in range(4) for done in cluster.heal()]
    assert reasons == [("n1", HealReason.STALE_PRIMARY), ("n3", HealReason.NOT_STREAMING)]
    wait_until(
        lambda: all(seen.streams_from_port for seen in cluster.observe().values() if seen.in_recovery),
        what="both standbys to stream",
        timeout_s=20,
    )


def test_a_stopped_cluster_starts_again_with_its_last_primary(data_root):
    with DevCluster(data_root, fsync=False) as cluster:
        cluster.create_tenant("acme", TENANTS["acme"])
        cluster.load_demo("acme")
        cluster.servers["n1"].kill()
        cluster.fail_over("n3")
        insert(cluster, "kept")
        ports = {server.name: server.port for server in cluster.servers.values()}
    assert not any(server.is_running for server in cluster.servers.values())

    with DevCluster(data_root) as again:
        assert {server.name: server.port for server in again.servers.values()} == ports
        assert again.primary().name == "n3"
        assert [tenant.name for tenant in again.tenants] == ["acme"]
        for server in again.servers.values():
            wait_for_names(again, server, {"kept"})
        insert(again, "more")
        with pytest.raises(DataRootError, match=f"in use by the process {os.getpid()}"):
            DevCluster(data_root).start()
    with pytest.raises(DataRootError, match="holds a cluster already"):
        again.create()


def test_a_cluster_without_replicas_writes_and_heals(make_cluster):
    cluster = make_cluster(replicas=0)
    insert(cluster, "alone")
    cluster.primary().kill()
    assert [done.reason for done in cluster.heal()] == [HealReason.ALONE]
    assert names_on(cluster, cluster.primary()) == {"alone"}


def test_what_a_cut_off_creation_left_is_made_anew(monkeypatch, data_root):
    cluster = DevCluster(data_root, 0, fsync=False)
    with monkeypatch.context() as broken:
        broken.setattr("router.devcluster.lifecycle._create_roles", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            cluster.create()
    assert not read_state(data_root).complete
    with pytest.raises(DataRootError, match="there is no cluster"):
        cluster.start()
    with cluster:
        assert cluster.primary().name == "n1"
        with pytest.raises(DevClusterError, match="runs already"):
            cluster.create()


def test_directories_of_others_are_never_removed(data_root):
    (data_root / "n1").mkdir()
    (data_root / "n1" / "thesis.txt").write_text("years")
    with pytest.raises(DataRootError, match="none of ours"):
        DevCluster(data_root).create_or_start()
    assert (data_root / "n1" / "thesis.txt").read_text() == "years"


def test_damaged_and_foreign_state_files_are_explained(tmp_path):
    for content, message in (("{", "damaged"), ('{"format": 99}', "another version"), ('{"format": 1}', "damaged")):
        (tmp_path / "cluster.json").write_text(content)
        with pytest.raises(DataRootError, match=message):
            read_state(tmp_path)


@pytest.mark.skipif(len(MAJORS) < 2, reason="needs two PostgreSQL versions")
def test_data_of_another_major_version_is_refused_and_found_the_right_programs(data_root):
    oldest, newest = find_binaries(major=MAJORS[-1]), find_binaries(major=MAJORS[0])
    with DevCluster(data_root, 0, oldest, fsync=False):
        pass
    with pytest.raises(DataRootError, match=f"made by PostgreSQL {oldest.major}"):
        DevCluster(data_root, binaries=newest).start()
    with DevCluster(data_root, fsync=False) as again, again.primary().connect() as connection:
        assert connection.info.server_version // 10000 == oldest.major


def test_a_bad_setting_shows_the_servers_own_words():
    with pytest.raises(ServerStartError, match="max_connections"):
        DevCluster(new_data_root(), 0, fsync=False, settings={"max_connections": "many"}, temporary=True).create()


def test_dev_json_has_exactly_the_promised_form(tmp_path):
    endpoint = DevEndpoint("n1", "127.0.0.1", 5432, 17, "/data/n1", "postgresql://x")
    path = write_dev_json(
        tmp_path, router="127.0.0.1:1", admin="127.0.0.1:2", tenants=[DevTenant("acme", "t")], endpoints=[endpoint]
    )
    assert path == tmp_path / "dev.json"
    assert json.loads(path.read_text()) == {
        "router": "127.0.0.1:1",
        "admin": "127.0.0.1:2",
        "tenants": [{"name": "acme", "token": "t"}],
        "endpoints": [
            {
                "name": "n1",
                "host": "127.0.0.1",
                "port": 5432,
                "pid": 17,
                "data_dir": "/data/n1",
                "superuser_dsn": "postgresql://x",
            }
        ],
    }
    assert [entry.name for entry in tmp_path.iterdir()] == ["dev.json"]


def test_endpoints_describe_the_running_servers(pg_cluster):
    for endpoint in pg_cluster.endpoints():
        os.kill(endpoint.pid, 0)
        with psycopg.connect(endpoint.superuser_dsn) as connection:
            assert connection.execute("SHOW data_directory").fetchone()[0] == endpoint.data_dir
            assert connection.info.port == endpoint.port
