"""Lanes against real PostgreSQL: order, separation of errors, streams, abandoning, cancelling, giving back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from router.devcluster import DevCluster
from router.model.identity import ClusterName, EndpointName, Generation, TenantName
from router.model.observation import AttemptFailed, FaultKind, Stage
from router.model.policy import PoolPolicy
from router.model.reasons import CloseReason
from router.model.request import Access, Statement
from router.model.topology import Cluster, Endpoint, Login, Secret, Tenant
from router.ports import Unit
from router.postgres.endpoint_pool import PsycopgEndpointPool, PsycopgPoolFactory
from router.system import SystemChance
from tests.support.budgets import roomy
from tests.support.builders import Recorder

pytestmark = pytest.mark.pg

POOL = PoolPolicy(max_size=3, prepared_statements=4)


def make_pool(
    pg: DevCluster, access: Access = Access.READ_WRITE, pool: PoolPolicy = POOL, **tenant: object
) -> PsycopgEndpointPool:
    server = pg.primary()
    endpoint = Endpoint(EndpointName(server.name), ClusterName("main"), "127.0.0.1", server.port)
    cluster = Cluster(ClusterName("main"), (endpoint,), Login("pointsman_control", Secret(pg.control_password)))
    login = Login("acme", Secret("acme-secret"))
    owner = Tenant(TenantName("acme"), ClusterName("main"), "acme", login, pool=pool, **tenant)  # type: ignore[arg-type]
    return PsycopgPoolFactory(SystemChance(), Recorder(), roomy).make(owner, cluster, endpoint, access, Generation(1))


@pytest.fixture
async def pool(pg_cluster_each: DevCluster) -> AsyncIterator[PsycopgEndpointPool]:
    pool = make_pool(pg_cluster_each)
    yield pool
    await pool.close(CloseReason.SHUTDOWN)


def soon(seconds: float = 5.0) -> float:
    return asyncio.get_running_loop().time() + seconds


def unit(*sql: str, params: tuple[bytes | None, ...] = (), **kwargs: object) -> tuple[Unit, asyncio.Future[Unit]]:
    done: asyncio.Future[Unit] = asyncio.get_running_loop().create_future()
    made = Unit([Statement(one.encode(), params) for one in sql], done.set_result, **kwargs)  # type: ignore[arg-type]
    return made, done


def values(made: Unit) -> list[list[bytes | None]]:
    return [
        [one.cells.get_value(row, 0) for row in range(one.cells.ntuples)]
        for one in made.results
        if one.cells is not None
    ]


async def test_answers_come_in_order_and_an_error_stays_with_its_unit(pool: PsycopgEndpointPool) -> None:
    lane = await pool.open_lane(soon())
    made = [unit(f"select {n}" if n != 3 else "select 1/0") for n in range(6)]
    for one, _ in made:
        lane.submit(one)
    finished = await asyncio.gather(*(done for _, done in made))
    assert [values(one) for one in finished] == [[[b"0"]], [[b"1"]], [[b"2"]], [], [[b"4"]], [[b"5"]]]
    fault = finished[3].fault
    assert fault is not None
    assert (fault.kind, fault.sqlstate, fault.stage) == (FaultKind.SERVER_ERROR, "22012", Stage.COMMIT)
    assert fault.detail is not None
    assert fault.detail.message == "division by zero"
    assert lane.in_flight == 0
    await lane.give_back()
    assert pool.statistics().idle == 1


async def test_a_unit_of_several_statements_is_one_transaction(pool: PsycopgEndpointPool) -> None:
    lane = await pool.open_lane(soon())
    setup, done = unit("create table if not exists lane_tx (n int)")
    lane.submit(setup)
    await done
    failing, done = unit("insert into lane_tx values (1)", "select 1/0", "insert into lane_tx values (2)")
    lane.submit(failing)
    await done
    assert failing.fault is not None
    assert failing.fault.step == 1
    count, done = unit("select count(*) from lane_tx")
    lane.submit(count)
    await done
    assert values(count) == [[b"0"]]
    drop, done = unit("drop table lane_tx")
    lane.submit(drop)
    await done
    await lane.give_back()


async def test_statements_are_prepared_from_their_second_use_and_survive_ddl(pool: PsycopgEndpointPool) -> None:
    lane = await pool.open_lane(soon())
    for sql in ("create table lane_ddl (a int)", "insert into lane_ddl values (1)"):
        one, done = unit(sql)
        lane.submit(one)
        await done
    for _ in range(3):
        one, done = unit("select * from lane_ddl")
        lane.submit(one)
        await done
        assert one.fault is None
    prepared, done = unit("select count(*) from pg_prepared_statements where statement = 'select * from lane_ddl'")
    lane.submit(prepared)
    await done
    assert values(prepared) == [[b"1"]]
    change, done = unit("alter table lane_ddl add column b text")
    lane.submit(change)
    await done
    after, done = unit("select * from lane_ddl")
    lane.submit(after)
    await done
    assert after.fault is None
    assert after.results[0].cells is not None
    assert after.results[0].cells.nfields == 2
    drop, done = unit("drop table lane_ddl")
    lane.submit(drop)
    await done
    await lane.give_back()


async def test_the_prepared_statement_cache_is_bounded(pool: PsycopgEndpointPool) -> None:
    lane = await pool.open_lane(soon())
    for _ in range(2):
        for n in range(10):
            for _ in range(2):
                one, done = unit(f"select {n} as bounded")
                lane.submit(one)
                await done
                assert one.fault is None
    count, done = unit("select count(*) from pg_prepared_statements")
    lane.submit(count)
    await done
    assert int(values(count)[0][0] or b"99") <= 4
    await lane.give_back()


async def test_a_parse_error_of_a_prepared_statement_stays_with_it(pool: PsycopgEndpointPool) -> None:
    lane = await pool.open_lane(soon())
    for _ in range(4):
        bad, done = unit("selec 1")
        good, good_done = unit("select 2")
        lane.submit(bad)
        lane.submit(good)
        await done
        await good_done
        assert bad.fault is not None
        assert bad.fault.sqlstate == "42601"
        assert values(good) == [[b"2"]]
    await lane.give_back()


async def test_rows_stream_in_chunks_and_stop_when_the_reader_does(pool: PsycopgEndpointPool) -> None:
    lane = await pool.open_lane(soon())
    seen: list[int] = []
    stopped = asyncio.Event()

    def on_rows(cells: object) -> bool:
        seen.append(cells.ntuples)  # type: ignore[attr-defined]
        if len(seen) == 3:
            stopped.set()
            return False
        return True

    one, done = unit("select g, repeat('x', 100) from generate_series(1, 100000) g", on_rows=on_rows, chunk_rows=500)
    lane.submit(one)
    await stopped.wait()
    await asyncio.sleep(0.1)
    assert len(seen) == 3
    lane.resume_reading()
    await done
    assert one.fault is None
    assert sum(seen) == 100000
    assert max(seen) == 500
    assert one.results[0].cells is not None
    assert one.results[0].cells.nfields == 2
    await lane.give_back()
    assert pool.statistics().idle == 1


async def test_abandoning_a_lane_takes_milliseconds_while_the_server_is_silent(pool: PsycopgEndpointPool) -> None:
    lane = await pool.open_lane(soon())
    running, done = unit("select pg_sleep(30)")
    behind, behind_done = unit("select 1", commits=False)
    lane.submit(running)
    lane.submit(behind)
    await asyncio.sleep(0.05)
    started = time.perf_counter()
    lane.abandon(CloseReason.ABANDONED)
    await asyncio.gather(done, behind_done)
    assert time.perf_counter() - started < 0.1
    assert running.fault is not None
    assert behind.fault is not None
    assert (running.fault.kind, running.fault.stage) == (FaultKind.CLOSED, Stage.COMMIT)
    assert behind.fault.stage is Stage.EXECUTE
    assert not lane.usable
    late, late_done = unit("select 1")
    lane.submit(late)
    await late_done
    assert late.fault is not None
    assert late.fault.stage is Stage.SEND


@pytest.mark.usefixtures("patient_cancels")
async def test_a_cancelled_statement_ends_by_57014_and_the_lane_stays_good(pool: PsycopgEndpointPool) -> None:
    lane = await pool.open_lane(soon())
    running, done = unit("select pg_sleep(30)")
    lane.submit(running)
    await asyncio.sleep(0.05)
    await lane.cancel()
    await asyncio.wait_for(done, 5)
    assert running.fault is not None
    assert running.fault.sqlstate == "57014"
    await lane.give_back()
    assert pool.statistics().idle == 1


@pytest.mark.parametrize("left", ["begin", "tainted", "in flight"])
async def test_what_is_not_proven_idle_is_destroyed(pool: PsycopgEndpointPool, left: str) -> None:
    lane = await pool.open_lane(soon())
    if left == "begin":
        one, done = unit("begin")
        lane.submit(one)
        await done
        assert lane.in_transaction
    elif left == "in flight":
        lane.submit(unit("select pg_sleep(5)")[0])
        await asyncio.sleep(0)
    await lane.give_back(tainted=left == "tainted")
    await asyncio.sleep(0.05)
    assert pool.statistics().leased == 0
    fresh = await pool.open_lane(soon())
    assert fresh is not lane
    assert not fresh.in_transaction
    await fresh.give_back()


async def test_a_killed_backend_fails_every_unit_on_it(pool: PsycopgEndpointPool, pg_cluster_each: DevCluster) -> None:
    lane = await pool.open_lane(soon())
    pid, done = unit("select pg_backend_pid()")
    lane.submit(pid)
    await done
    running, run_done = unit("select pg_sleep(30)")
    behind, behind_done = unit("select 1")
    lane.submit(running)
    lane.submit(behind)
    other = await pool.open_lane(soon())
    kill, killed = unit(f"select pg_terminate_backend({(values(pid)[0][0] or b'').decode()})")
    other.submit(kill)
    await killed
    await asyncio.wait_for(asyncio.gather(run_done, behind_done), 2)
    for one in (running, behind):
        assert one.fault is not None
        assert one.fault.kind is FaultKind.CONNECTION_LOST
    assert running.fault is not None
    assert running.fault.sqlstate == "57P01"
    await other.give_back()


async def test_fencing_destroys_older_connections_and_lends_new_ones(pool: PsycopgEndpointPool) -> None:
    lane = await pool.open_lane(soon())
    running, done = unit("select pg_sleep(30)")
    lane.submit(running)
    await asyncio.sleep(0)
    pool.fence(Generation(2))
    await asyncio.wait_for(done, 1)
    assert running.fault is not None
    assert running.fault.kind is FaultKind.STALE
    fresh = await pool.open_lane(soon())
    assert fresh.generation == 2
    await fresh.give_back()


async def test_read_only_connections_refuse_writes(pg_cluster_each: DevCluster) -> None:
    pool = make_pool(pg_cluster_each, Access.READ_ONLY)
    lane = await pool.open_lane(soon())
    one, done = unit("create table never (n int)")
    lane.submit(one)
    await done
    assert one.fault is not None
    assert one.fault.sqlstate == "25006"
    await lane.give_back()
    await pool.close(CloseReason.SHUTDOWN)


async def test_a_full_pool_says_so_by_the_deadline(pool: PsycopgEndpointPool) -> None:
    lanes = [await pool.open_lane(soon()) for _ in range(3)]
    started = time.perf_counter()
    with pytest.raises(AttemptFailed) as failure:
        await pool.open_lane(soon(0.2))
    assert 0.15 < time.perf_counter() - started < 0.4
    assert failure.value.fault.kind is FaultKind.POOL_TIMEOUT
    for lane in lanes:
        await lane.give_back()


async def test_a_refused_connection_is_told_at_once(pg_cluster_each: DevCluster) -> None:
    from dataclasses import replace

    from router.devcluster.server import free_port

    pool = make_pool(pg_cluster_each)
    pool._opener.parameters["port"] = free_port()
    pool._endpoint = replace(pool._endpoint, port=pool._opener.parameters["port"])
    started = time.perf_counter()
    with pytest.raises(AttemptFailed) as failure:
        await pool.open_lane(soon(10))
    assert time.perf_counter() - started < 1
    assert failure.value.fault.kind is FaultKind.CONNECT_REFUSED
    pool._opener.parameters["port"] = pg_cluster_each.primary().port
    lane = await pool.open_lane(soon(1))  # at once: not after the pool's own growing pauses
    await lane.give_back()
    await pool.close(CloseReason.SHUTDOWN)


async def test_a_connection_that_died_idle_is_not_lent(pool: PsycopgEndpointPool, pg_cluster_each: DevCluster) -> None:
    """A write sent on it would count as sent, and its outcome as open."""
    lane, other = await pool.open_lane(soon()), await pool.open_lane(soon())
    pid, done = unit("select pg_backend_pid()")
    lane.submit(pid)
    await done
    await lane.give_back()
    kill, killed = unit(f"select pg_terminate_backend({(values(pid)[0][0] or b'').decode()}, 1000)")
    other.submit(kill)
    await killed
    fresh = await pool.open_lane(soon())
    write, done = unit("select 1")
    fresh.submit(write)
    await done
    assert write.fault is None
    await fresh.give_back()
    await other.give_back()
