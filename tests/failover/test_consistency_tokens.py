"""Consistency tokens on real replicas that lag: own writes are read, nothing once seen is unseen, what is lost is told.

POINTSMAN_TOKEN_READS sets how many reads each of the first two tests makes (default 2000).
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pointsman
import pytest
from pointsman.v1 import query_service_pb2 as pb
from pointsman.v1 import query_service_pb2_grpc as stubs
from pointsman.v1 import types_pb2

from router.devcluster import DevCluster
from router.devcluster.server import Server
from tests.support.eventually import ask, eventually
from tests.support.running_router import Config, RunningRouter, running_router

pytestmark = [pytest.mark.pg, pytest.mark.chaos]

READS = int(os.environ.get("POINTSMAN_TOKEN_READS", "2000"))
CALLERS = 16


def order(server: Server, *statements: str) -> None:
    """Run statements as the superuser, each on its own."""
    with server.connect("postgres") as connection:
        for one in statements:
            connection.execute(one)


RELOAD = "select pg_reload_conf()"


def quick_to_give_up(config: Config) -> None:
    """Replicas that are late on purpose are not worth the usual wait."""
    config["tenants"]["acme"]["limits"] = {"token_wait_s": 0.03, "lag_limit_s": 60}


@asynccontextmanager
async def late_replicas(cluster: DevCluster) -> AsyncIterator[None]:
    """n2 replays each commit 0 to 300 ms late, n3 stops and goes on at random."""
    second, third = cluster.servers["n2"], cluster.servers["n3"]
    drawn = random.Random(7)

    async def torment() -> None:
        while True:
            delay = drawn.choice((0, 20, 300))
            await asyncio.to_thread(order, second, f"alter system set recovery_min_apply_delay = {delay}", RELOAD)
            await asyncio.to_thread(order, third, "select pg_wal_replay_pause()")
            await asyncio.sleep(drawn.uniform(0.05, 0.4))
            await asyncio.to_thread(order, third, "select pg_wal_replay_resume()")
            await asyncio.sleep(drawn.uniform(0.05, 0.4))

    task = asyncio.create_task(torment())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})
        await asyncio.to_thread(order, third, "select pg_wal_replay_resume()")
        await asyncio.to_thread(order, second, "alter system reset recovery_min_apply_delay", RELOAD)


async def make_counters(db: pointsman.Client) -> None:
    await db.execute("create table if not exists counters (id int primary key, n int not null)")
    await db.execute("truncate counters")
    await db.execute("insert into counters select g, 0 from generate_series(1, $1::int) g", CALLERS)


async def visible(cluster: DevCluster, servers: list[Server]) -> None:
    """Wait until the replicas have the table: without a token, a reader may not see it yet."""

    async def there() -> bool:
        sql = "select count(*) from pg_class where relname = 'counters'"
        found = [await asyncio.to_thread(ask, cluster, sql, server=one, database="acme") for one in servers]
        return all(found)

    await eventually(there, within_s=5, what="the table on all replicas")


async def test_own_writes_are_read_from_replicas_that_lag(pg_cluster: DevCluster) -> None:
    """Writes by every method, then at once a read that prefers replicas: never an older value. The same without
    tokens shows that the replicas do lag."""
    where: Counter[tuple[str, bool]] = Counter()

    async def caller(db: pointsman.Client, number: int, stale: list[str]) -> None:
        for wrote in range(1, READS // CALLERS // 2 + 1):
            sql = "update counters set n = $2 where id = $1"
            if wrote % 3 == 0:
                await db.execute(sql, number, wrote)
            elif wrote % 3 == 1:
                await db.batch([(sql, [number, wrote])])
            else:
                async with db.transaction() as tx:
                    await tx.execute(sql, number, wrote)
            for _ in range(2):
                rows = await db.query("select n from counters where id = $1", number, read="replica", timeout=10)
                where[rows.receipt.role, bool(stale)] += 1
                if rows[0].n < wrote:
                    stale.append(f"{number} wrote {wrote}, read {rows[0].n} from {rows.receipt}")

    async with running_router(pg_cluster, edit=quick_to_give_up) as router, router.connect() as db:
        await make_counters(db)
        stale: list[str] = []
        careless: list[str] = []
        async with late_replicas(pg_cluster):
            await asyncio.gather(*(caller(db.with_token(db.token), n + 1, stale) for n in range(CALLERS)))
            async with router.connect(consistency="eventual") as eventual:
                await asyncio.gather(*(caller(eventual, n + 1, careless) for n in range(CALLERS // 4)))
        print(f"\n0 stale of {where['replica', False] + where['primary', False]}: {dict(where)}; "
              f"without tokens {len(careless)} stale")
        assert stale == []
        assert careless, "the replicas did not lag: nothing was tested"
        assert where["replica", False] > 0


async def test_what_was_seen_once_is_never_unseen(pg_cluster: DevCluster) -> None:
    """Readers that go from the primary to replicas, from one replica to the other, and pass their token on, see a
    counter that only grows; each hands over by text, as a service does to the next.

    A commit that waits for its synchronous standby is visible on that standby first: so the primary is held only to
    what the primary has shown.
    """
    fell: list[str] = []
    steps: Counter[str] = Counter()

    async def writer(db: pointsman.Client, done: asyncio.Event) -> None:
        n = 0
        while not done.is_set():
            n += 1
            await db.execute("update counters set n = $1 where id = 1", n)
            await asyncio.sleep(0.002)

    async def reader(router_db: pointsman.Client, seed: int) -> None:
        drawn = random.Random(seed)
        db, last, shown_by_primary = router_db.with_token(router_db.token), 0, 0
        for _ in range(READS // CALLERS):
            how = drawn.choice(("primary", "replica", "replica", "any", "stream"))
            steps[how] += 1
            if how == "stream":
                stream = db.stream("select n from counters where id = 1", read="replica")
                (found,) = [row.n async for row in stream]
                role = stream.receipt.role
            else:
                rows = await db.query("select n from counters where id = 1", read=how, timeout=10)
                found, role = rows[0].n, rows.receipt.role
            if found < (shown_by_primary if role == "primary" else last):
                fell.append(f"{how} from the {role}: {found} after {last}")
            last = max(last, found)
            if role == "primary":
                shown_by_primary = max(shown_by_primary, found)
            if drawn.random() < 0.2:
                db = router_db.with_token(db.token)

    async with running_router(pg_cluster, edit=quick_to_give_up) as router, router.connect() as db:
        await make_counters(db)
        done = asyncio.Event()
        writing = asyncio.create_task(writer(db.with_token(), done))
        try:
            async with late_replicas(pg_cluster):
                await asyncio.gather(*(reader(db, seed) for seed in range(CALLERS)))
        finally:
            done.set()
            await writing
        print(f"\n{len(fell)} of {sum(steps.values())} went back: {dict(steps)}")
        assert fell == []


async def test_a_write_lost_in_an_asynchronous_failover_is_told(fresh_cluster: DevCluster) -> None:
    cluster = fresh_cluster
    primary = cluster.servers["n1"]
    await asyncio.to_thread(order, primary, "alter system set synchronous_standby_names = ''", RELOAD)
    async with running_router(cluster, mode="follow") as router, router.connect() as db:
        await make_counters(db)
        await eventually(lambda: asynchronous(db), within_s=5, what="tokens without confirmation")
        await db.execute("update counters set n = 1 where id = 1")
        kept = db.token
        assert await db.query_value("select n from counters where id = 1", read="replica") == 1
        await visible(cluster, [cluster.servers["n2"], cluster.servers["n3"]])
        await cut_off_and_write(cluster, db)
        lost = db.token
        await asyncio.to_thread(primary.kill)
        await asyncio.to_thread(order, cluster.servers["n2"], "select pg_promote()")
        fresh = db.with_token(kept)
        assert await fresh.query_value("select n from counters where id = 1", read="any", timeout=15) == 1
        with pytest.raises(pointsman.TokenLost) as caught:
            await db.query("select n from counters where id = 1", read="replica", timeout=10)
        print(f"\n{caught.value}")
        assert caught.value.metadata["timeline"] == "1"
        assert int(caught.value.metadata["lost_bytes"]) > 0
        assert await db.query_value("select n from counters where id = 1", read="replica", timeout=10) == 1
        await plain_stub(router, kept, lost)


async def asynchronous(db: pointsman.Client) -> bool:
    await db.execute("update counters set n = 0 where id = 1")
    return db.token.endswith("AQ==")


async def cut_off_and_write(cluster: DevCluster, db: pointsman.Client) -> None:
    """A write that no standby has received: their upstream is a host that does not exist."""
    for name in ("n2", "n3"):
        cut = "alter system set primary_conninfo = 'host=/nowhere'"
        await asyncio.to_thread(order, cluster.servers[name], cut, RELOAD)

    async def nobody() -> bool:
        sql = "select count(*) from pg_stat_replication"
        return await asyncio.to_thread(ask, cluster, sql, server=cluster.servers["n1"]) == 0

    await eventually(nobody, within_s=5, what="no standby attached")
    await db.execute("update counters set n = 2 where id = 1")


async def plain_stub(router: RunningRouter, kept: str, lost: str) -> None:
    """Another language: the token comes and goes as metadata."""
    async with grpc.aio.insecure_channel(router.address) as channel:
        stub = stubs.QueryServiceStub(channel)  # type: ignore[no-untyped-call]
        request = pb.QueryRequest(
            statement=types_pb2.Statement(sql="select n from counters where id = 1"),
            options=types_pb2.QueryOptions(read=types_pb2.READ_PREFERENCE_ANY),
        )
        who = (("authorization", f"Bearer {router.tokens['acme']}"), ("pointsman-tenant", "acme"))
        call = stub.Query(request, metadata=(*who, ("pointsman-token", kept)), timeout=10)
        answer = await call
        given = dict(await call.trailing_metadata())["pointsman-token"]
        assert answer.result.batch.columns[0].integers[0] == 1
        assert given >= kept
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Query(request, metadata=(*who, ("pointsman-token", lost)), timeout=10)
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        silent = stub.Query(request, metadata=who, timeout=10)
        await silent
        assert "pointsman-token" not in dict(await silent.trailing_metadata())
