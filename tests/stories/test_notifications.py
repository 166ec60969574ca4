"""LISTEN and NOTIFY through the router: what is sent is heard, once, in order, by those who may, and nobody waits."""

from __future__ import annotations

import asyncio

import grpc
import pointsman
import psycopg
import pytest
from pointsman import Gap, GapReason, Notification
from pointsman.v1 import query_service_pb2 as pb
from pointsman.v1 import query_service_pb2_grpc

from router.devcluster import DevCluster
from tests.stories.conftest import undisturbed
from tests.support.eventually import ask, eventually
from tests.support.running_router import RunningRouter

pytestmark = pytest.mark.pg
LISTENERS = "select count(*) from pg_stat_activity where usename = %s and query ~ '^(LISTEN|UNLISTEN|SELECT$)'"

FLOOD = "select count(pg_notify('story flood', lpad(i::text, 1000, '0'))) from generate_series($1::int, $2::int) i"


async def payloads(heard: pointsman.Listening, count: int) -> list[str]:
    found = []
    async with asyncio.timeout(10):
        while len(found) < count:
            item = await heard.next()
            assert isinstance(item, Notification), item
            found.append(item.payload)
    return found


async def test_what_is_notified_is_heard_in_the_order_of_commits(db: pointsman.Client, router: RunningRouter) -> None:
    async with undisturbed(router), db.listen("story jobs") as one, db.listen("story jobs", "Story") as other:
        for number in range(50):
            await db.execute("select pg_notify('story jobs', $1)", str(number))
        await db.batch([("select pg_notify('story jobs', 'a')", []), ("select pg_notify('story jobs', 'b')", [])])
        with pytest.raises(pointsman.Error):
            await db.batch([("select pg_notify('story jobs', 'undone')", []), "select 1/0"])
        await db.execute('notify "Story", \'c\'')
        expected = [*map(str, range(50)), "a", "b"]
        assert await payloads(one, 52) == expected
        assert await payloads(other, 53) == [*expected, "c"]


async def test_many_streams_share_one_connection_which_goes_with_the_last(
    db: pointsman.Client, pg_cluster: DevCluster, router: RunningRouter
) -> None:
    streams = [db.listen("story shared", f"story {number}") for number in range(12)]
    await asyncio.gather(*(one.ready() for one in streams))
    assert await asyncio.to_thread(ask, pg_cluster, LISTENERS, "acme") == 1
    tenant = next(one for one in (await router.operate("ListTenants")).tenants if one.name == "acme")
    assert (tenant.listeners, tenant.channels) == (12, 13)
    assert router.scrape()['pointsman_listeners{tenant="acme"}'] == 12
    await db.execute("notify \"story shared\", 'all'")
    assert [await payloads(one, 1) for one in streams] == [["all"]] * 12
    await asyncio.gather(*(one.aclose() for one in streams))

    async def gone() -> bool:
        return await asyncio.to_thread(ask, pg_cluster, LISTENERS, "acme") == 0

    await eventually(gone, within_s=8, what="the end of the listening connection", pause_s=0.1)


async def test_another_tenant_hears_nothing(db: pointsman.Client, router: RunningRouter) -> None:
    async with router.connect("globex") as globex, globex.listen("story private") as theirs:
        async with db.listen("story private") as mine:
            await db.execute("notify \"story private\", 'x'")
            assert await payloads(mine, 1) == ["x"]
        assert await theirs.next(timeout=0.2) is None


async def test_a_connection_that_is_ended_is_a_gap(db: pointsman.Client, pg_cluster: DevCluster) -> None:
    async with db.listen("story ended") as heard:
        ending = LISTENERS.replace("count(*)", "count(pg_terminate_backend(pid))")
        assert await asyncio.to_thread(ask, pg_cluster, ending, "acme") == 1
        item = await asyncio.wait_for(heard.next(), 5)
        assert isinstance(item, Gap)
        assert item.reason is GapReason.RECONNECT
        await db.execute("notify \"story ended\", 'after'")
        assert await payloads(heard, 1) == ["after"]
    assert await db.query_value("select 1") == 1


async def test_a_reader_that_stands_still_has_a_gap_and_holds_up_nobody(
    db: pointsman.Client, router: RunningRouter, pg_cluster: DevCluster
) -> None:
    """Raw gRPC with the smallest window: what is not read stays in the router, within its bounds."""
    options = [("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0)]
    metadata = (("authorization", f"Bearer {router.tokens['acme']}"),)
    async with grpc.aio.insecure_channel(router.address, options) as channel, db.listen("story flood") as quick:
        slow = query_service_pb2_grpc.QueryServiceStub(channel).Listen(
            pb.ListenRequest(channels=["story flood"]), metadata=metadata
        )
        assert (await slow.read()).WhichOneof("event") == "ready"  # type: ignore[union-attr]
        for first in range(0, 6000, 500):
            await db.execute(FLOOD, first, first + 499)
            assert [int(one) for one in await payloads(quick, 500)] == [*range(first, first + 500)]
        seen: list[int] = []
        missed = 0
        while len(seen) + missed < 6000:
            message = await asyncio.wait_for(slow.read(), 10)
            if message.WhichOneof("event") == "gap":  # type: ignore[union-attr]
                assert message.gap.reason == pb.GAP_REASON_SLOW_CONSUMER  # type: ignore[union-attr]
                missed += message.gap.missed  # type: ignore[union-attr]
            else:
                seen += [int(one.payload) for one in message.notifications.notifications]  # type: ignore[union-attr]
        assert missed > 0
        assert seen == sorted(set(seen))
        slow.cancel()
    with psycopg.connect(pg_cluster.tenant_dsn("acme")) as connection:
        assert connection.execute("select pg_notification_queue_usage() < 0.01").fetchone() == (True,)
