"""One router in front of the shared cluster for the stories that break neither, and a neighbour who notices nothing."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator

import pointsman
import psycopg
import pytest

from router.devcluster import DevCluster
from tests.support.dev_cluster import DEFAULT_MAJOR, MAJORS
from tests.support.running_router import RunningRouter, started_router

SCHEMA = """
CREATE TABLE IF NOT EXISTS shelves (
  id int PRIMARY KEY, label text NOT NULL CONSTRAINT shelves_label_unique UNIQUE,
  room int CONSTRAINT shelves_room_positive CHECK (room > 0)
);
CREATE TABLE IF NOT EXISTS books (
  id int PRIMARY KEY, shelf int NOT NULL CONSTRAINT books_shelf_known REFERENCES shelves,
  during int4range, CONSTRAINT books_no_overlap EXCLUDE USING gist (during WITH &&)
);
CREATE TABLE IF NOT EXISTS counters (id int PRIMARY KEY, n int NOT NULL);
CREATE TABLE IF NOT EXISTS marks (id int PRIMARY KEY, note text);
"""


def furnished(cluster: DevCluster) -> DevCluster:
    """The same cluster, with the stories' tables in acme's database."""
    with psycopg.connect(cluster.tenant_dsn("acme"), autocommit=True) as connection:
        connection.execute(SCHEMA)
    return cluster


@pytest.fixture(scope="session")
def pg_cluster(pg_clusters: Callable[[int], DevCluster]) -> DevCluster:
    """The shared cluster of the newest PostgreSQL here, with the stories' tables."""
    return furnished(pg_clusters(DEFAULT_MAJOR))


@pytest.fixture(scope="session")
def story_routers(pg_clusters: Callable[[int], DevCluster]) -> Iterator[Callable[[int], RunningRouter]]:
    """The shared router in front of the shared cluster of a major version."""
    with contextlib.ExitStack() as stack:
        running: dict[int, RunningRouter] = {}

        def of(major: int) -> RunningRouter:
            if major not in running:
                cluster = furnished(pg_clusters(major))
                running[major] = stack.enter_context(started_router(cluster))
            return running[major]

        yield of


@pytest.fixture(scope="session")
def router(story_routers: Callable[[int], RunningRouter]) -> RunningRouter:
    """The shared router on the newest PostgreSQL here. Not to be stopped, reloaded or drained."""
    return story_routers(DEFAULT_MAJOR)


@pytest.fixture(params=MAJORS, ids=lambda major: f"pg{major}")
def router_each(request: pytest.FixtureRequest, story_routers: Callable[[int], RunningRouter]) -> RunningRouter:
    """Like router; a test that takes it runs once on each PostgreSQL here."""
    return story_routers(request.param)


@pytest.fixture
async def db(router: RunningRouter) -> AsyncIterator[pointsman.Client]:
    """A client of acme on the shared router."""
    async with router.connect() as client:
        yield client


@pytest.fixture
async def eventual_db(router: RunningRouter) -> AsyncIterator[pointsman.Client]:
    """The same, whose reads need not see what it has seen before: they go wherever balancing sends them."""
    async with router.connect(consistency="eventual") as client:
        yield client


class Neighbour:
    """Another tenant that reads and writes all the time. What it sees besides rows is somebody else's fault."""

    def __init__(self, db: pointsman.Client) -> None:
        self.db = db
        self.errors: list[BaseException] = []
        self.calls = 0
        self.slowest_s = 0.0
        self._stopping = False
        self._beat = asyncio.Event()

    async def run(self) -> None:
        """Until stop()."""
        while not self._stopping:
            began = time.monotonic()
            try:
                await self.db.query("select count(*) from accounts", read="any", timeout=5)
                await self.db.execute("update accounts set score = score where id = 1", timeout=5)
            except pointsman.Error as error:
                self.errors.append(error)
            self.calls += 1
            self.slowest_s = max(self.slowest_s, time.monotonic() - began)
            self._beat.set()
            await asyncio.sleep(0.005)

    async def one_more(self) -> None:
        """Until it has made a call that began after now."""
        for _ in range(2):
            self._beat.clear()
            await self._beat.wait()

    def stop(self) -> None:
        """End after the call under way."""
        self._stopping = True


@contextlib.asynccontextmanager
async def undisturbed(router: RunningRouter, tenant: str = "globex") -> AsyncIterator[Neighbour]:
    """Whatever happens inside, a caller of another tenant sees no error; it makes calls before, while and after."""
    async with router.connect(tenant) as client:
        neighbour = Neighbour(client)
        running = asyncio.create_task(neighbour.run())
        try:
            await neighbour.one_more()
            yield neighbour
            await neighbour.one_more()
        finally:
            neighbour.stop()
            await running
        assert not neighbour.errors, neighbour.errors[:3]


@pytest.fixture
async def neighbour(router: RunningRouter) -> AsyncIterator[Neighbour]:
    """The neighbour on the shared router, for the length of a test."""
    async with undisturbed(router) as one:
        yield one
