"""Fixtures that bring up real PostgreSQL for tests: shared and untouched, or fresh and to be broken.

Import the fixtures in a conftest:

    from tests.support.dev_cluster import fresh_cluster, make_cluster, pg_cluster, pg_cluster_each, pg_clusters

Whatever happens to a test, or to pytest itself, the servers end and their directories go: in order by the
fixtures' teardown, otherwise by the cluster's own warden process.
"""

from collections.abc import Callable, Iterator

import pytest

from router.devcluster import DevCluster, available_binaries
from tests.support.cluster_templates import TENANTS, Kind, Templates, new_data_root

__all__ = [
    "DEFAULT_MAJOR",
    "MAJORS",
    "TENANTS",
    "MakeCluster",
    "fresh_cluster",
    "make_cluster",
    "new_cluster",
    "new_data_root",
    "on_every_major",
    "pg_cluster",
    "pg_cluster_each",
    "pg_clusters",
]

MAJORS = [binaries.major for binaries in available_binaries()]
"""Major versions of PostgreSQL on this machine, newest first."""

DEFAULT_MAJOR = MAJORS[0] if MAJORS else 18

on_every_major = pytest.mark.parametrize("pg_major", MAJORS, ids=lambda major: f"pg{major}")
"""Runs a test once for each PostgreSQL here; the test takes `pg_major` and gives it to make_cluster."""

MakeCluster = Callable[..., DevCluster]

_templates = Templates()


def new_cluster(
    *, replicas: int = 2, major: int = DEFAULT_MAJOR, tenants: bool = True, settings: dict[str, str] | None = None
) -> DevCluster:
    """A running cluster without fsync, with TENANTS unless told otherwise; stop() removes its directory too."""
    return _templates.start(Kind(major, replicas, tenants), settings)


@pytest.fixture(scope="session")
def pg_clusters() -> Iterator[Callable[[int], DevCluster]]:
    """The shared cluster of a major version, brought up when first asked for. Read and write, but move no roles."""
    running: dict[int, DevCluster] = {}

    def of(major: int) -> DevCluster:
        if major not in running:
            running[major] = new_cluster(major=major)
        return running[major]

    yield of
    for cluster in running.values():
        cluster.stop()


@pytest.fixture(scope="session")
def pg_cluster(pg_clusters: Callable[[int], DevCluster]) -> DevCluster:
    """The shared cluster of the newest PostgreSQL here: n1 primary, n2 and n3 standbys, TENANTS."""
    return pg_clusters(DEFAULT_MAJOR)


@pytest.fixture(params=MAJORS, ids=lambda major: f"pg{major}")
def pg_cluster_each(request: pytest.FixtureRequest, pg_clusters: Callable[[int], DevCluster]) -> DevCluster:
    """Like pg_cluster; a test that takes it runs once on each PostgreSQL here."""
    return pg_clusters(request.param)


@pytest.fixture
def make_cluster() -> Iterator[MakeCluster]:
    """Makes clusters for one test; takes the arguments of new_cluster."""
    made: list[DevCluster] = []

    def make(**arguments: object) -> DevCluster:
        made.append(new_cluster(**arguments))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for cluster in made:
        cluster.stop()


@pytest.fixture
def fresh_cluster(make_cluster: MakeCluster) -> DevCluster:
    """A cluster of its own for one test, like pg_cluster, to be killed, frozen and promoted at will."""
    return make_cluster()
