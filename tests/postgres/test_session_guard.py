"""What a statement changes in its session unseen ends its lane, by PostgreSQL's own report."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest

from router.devcluster import DevCluster
from router.model.observation import FaultKind
from router.model.reasons import CloseReason
from router.model.request import Access
from router.postgres.endpoint_pool import PsycopgEndpointPool
from router.postgres.lane import PipelineLane
from tests.postgres.test_lane import make_pool, soon, unit, values

pytestmark = pytest.mark.pg

MakePool = Callable[[Access], PsycopgEndpointPool]
UNLOCK = "do $$ begin set default_transaction_read_only = off; end $$"
LEAD_ASTRAY = "do $$ begin set search_path to pg_temp; end $$"
TURN_THE_CLOCK = "do $$ begin set time zone 'Asia/Tokyo'; end $$"


@pytest.fixture
async def pools(pg_cluster_each: DevCluster) -> AsyncIterator[MakePool]:
    made: list[PsycopgEndpointPool] = []

    def make(access: Access) -> PsycopgEndpointPool:
        made.append(make_pool(pg_cluster_each, access))
        return made[-1]

    yield make
    for pool in made:
        await pool.close(CloseReason.SHUTDOWN)


async def done(lane: PipelineLane, *sql: str) -> list[list[bytes | None]]:
    made, ended = unit(*sql)
    lane.submit(made)
    await ended
    assert made.fault is None, made.fault
    return values(made)


async def test_a_lane_of_reads_ends_with_the_answer_after_which_it_could_write(pools: MakePool) -> None:
    pool = pools(Access.READ_ONLY)
    lane = await pool.open_lane(soon())
    (first, told), (behind, ended) = unit(UNLOCK), unit("select pg_sleep(0.3)")
    lane.submit(first)
    lane.submit(behind)
    assert (await told).fault is None
    fault = (await ended).fault
    assert fault is not None
    assert fault.kind is FaultKind.CLOSED, "no evidence against the server"
    assert not lane.usable
    assert pool.statistics().leased == 0


async def test_a_lane_of_reads_takes_nothing_more_once_names_mean_something_else(pools: MakePool) -> None:
    pool = pools(Access.READ_ONLY)
    lane = await pool.open_lane(soon())
    (major,) = (await done(lane, "select current_setting('server_version_num')::int / 10000"))[0]
    (first, told), (behind, ended) = unit(LEAD_ASTRAY), unit("select pg_sleep(0.1)::text || 'there'")
    lane.submit(first)
    lane.submit(behind)
    await told
    assert (await ended).fault is None, "what is under way is answered"
    reported = int(major or 0) >= 18
    assert lane.usable is not reported
    await lane.give_back()
    assert pool.statistics().idle == (0 if reported else 1)


@pytest.mark.parametrize("setting", ["default_transaction_read_only = off", "search_path to pg_temp"])
@pytest.mark.parametrize("end", ["commit", "rollback"])
async def test_what_a_transaction_sets_is_its_own_until_its_end(pools: MakePool, setting: str, end: str) -> None:
    lane = await pools(Access.READ_ONLY).open_lane(soon())
    (path,) = (await done(lane, "select current_setting('search_path')"))[0]
    await done(lane, "begin read only", f"set {setting}")
    assert await done(lane, "select 1") == [[b"1"]]
    assert lane.usable
    assert lane.in_transaction
    await done(lane, end)
    if end == "rollback":
        assert lane.usable
        assert not lane.altered
        assert await done(lane, "select current_setting('search_path')") == [[path]]
    elif setting.startswith("default"):
        assert not lane.usable


async def test_a_lane_that_was_used_alone_tells_what_has_changed(pools: MakePool) -> None:
    pool = pools(Access.READ_WRITE)
    lane = await pool.open_lane(soon())
    assert not lane.altered
    await done(lane, TURN_THE_CLOCK)
    assert lane.usable
    assert lane.altered
    await done(lane, "discard all")
    assert not lane.altered
    await done(lane, TURN_THE_CLOCK)
    await lane.give_back()
    assert not lane.altered
    assert pool.statistics().idle == 0


async def test_that_a_primary_is_read_only_for_a_moment_ends_no_lane_of_writes(pools: MakePool) -> None:
    lane = await pools(Access.READ_WRITE).open_lane(soon())
    await done(lane, "do $$ begin set default_transaction_read_only = on; end $$")
    assert lane.usable
    assert not lane.altered
