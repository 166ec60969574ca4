"""Two workers on one port: killed, replaced and ended under load, on real servers."""

from __future__ import annotations

import asyncio
import os
import signal
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress

import grpc
import pointsman
import psycopg
import pytest
from pointsman.v1 import admin_service_pb2 as admin_pb
from pointsman.v1 import query_service_pb2 as pb
from pointsman.v1 import query_service_pb2_grpc

from router.devcluster import DevCluster
from tests.support.dev_cluster import DEFAULT_MAJOR
from tests.support.eventually import eventually
from tests.support.running_router import Config, RunningRouter, started_router
from tests.workers.callers import Callers, all_serve, clients, two_workers, with_two_workers, workers

pytestmark = [pytest.mark.pg]
SERVED = 'pointsman_requests_total{method="query",outcome="served",tenant="acme"}'


@pytest.fixture(scope="module")
def shared(pg_clusters: Callable[[int], DevCluster]) -> Iterator[RunningRouter]:
    """One router for the stories after which it goes on."""
    with started_router(pg_clusters(DEFAULT_MAJOR), edit=with_two_workers) as router:
        yield router


def _alive(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


def _kept(cluster: DevCluster) -> set[int]:
    with psycopg.connect(cluster.tenant_dsn("acme", cluster.primary())) as connection:
        return {row[0] for row in connection.execute("select id from kept")}


async def _gone(pids: list[int], seconds: float) -> list[int]:
    """Those that still live after so many seconds."""
    end = asyncio.get_running_loop().time() + seconds
    while True:
        left = [pid for pid in pids if _alive(pid)]
        if not left or asyncio.get_running_loop().time() >= end:
            return left
        await asyncio.sleep(0.02)


async def _served(router: RunningRouter) -> tuple[int, float]:
    """Reads of acme, as the admin port tells, and as the metrics do."""
    tenant = next(one for one in (await router.operate("ListTenants")).tenants if one.name == "acme")
    return tenant.served, router.scrape().get(SERVED, 0.0)


async def test_both_serve_one_port_and_are_one_router_to_operators(shared: RunningRouter) -> None:
    router = shared
    shown, scraped = await _served(router)
    async with clients(router, 16):
        found = await all_serve(router)
        assert [one.number for one in found] == [1, 2]
        assert all(one.connections > 0 for one in found), found
        assert len({one.pid for one in found} | {router.process.pid}) == 3
        assert await _served(router) == (shown + 16, scraped + 16)
        samples = router.scrape()
        assert sum(name.startswith("process_resident_memory_bytes") for name in samples) == 3
        assert sum(name.startswith("pointsman_cluster_phase{") for name in samples) == 7, "told by one process only"
        pools = (await router.operate("ListPools")).pools
        keys = [(pool.tenant, pool.endpoint, pool.access) for pool in pools]
        assert len(set(keys)) == len(keys), "one pool, however many processes it is in"


async def test_each_worker_stays_on_its_processor_also_a_new_one(pg_cluster: DevCluster) -> None:
    allowed = sorted(os.sched_getaffinity(0))
    cpus = [allowed[-1], allowed[0]]
    async with two_workers(pg_cluster, edit=lambda config: config["server"].update(cpus=cpus)) as router:
        assert os.sched_getaffinity(router.process.pid) == set(allowed), "it serves nobody"
        first, second = await all_serve(router)
        assert [os.sched_getaffinity(one.pid) for one in (first, second)] == [{allowed[-1]}, {allowed[0]}]
        os.kill(first.pid, signal.SIGKILL)
        fresh, _ = await all_serve(router, restarts=1)
        assert os.sched_getaffinity(fresh.pid) == {allowed[-1]}


async def test_a_killed_worker_is_replaced_and_only_its_unkeyed_writes_are_in_doubt(
    shared: RunningRouter, pg_cluster: DevCluster
) -> None:
    router = shared
    async with clients(router, 8) as ones:
        callers = Callers(ones)
        await callers.setup()
        served_before = 0.0
        async with callers.at_work():
            before = await all_serve(router)
            victim, restarts = before[0], sum(one.restarts for one in before)
            served_before = sum(value for name, value in router.scrape().items() if "requests_total{" in name)
            os.kill(victim.pid, signal.SIGKILL)
            found = await all_serve(router, restarts=restarts + 1)
        assert not callers.errors, callers.says(router)
        assert len(callers.unknown) <= 8, callers.says(router)
        assert callers.acknowledged <= _kept(pg_cluster)
        assert victim.pid not in {one.pid for one in found}
        assert [one.restarts - was.restarts for one, was in zip(found, before, strict=True)] == [1, 0]
        after = sum(value for name, value in router.scrape().items() if "requests_total{" in name)
        assert after >= served_before, "what a dead worker counted stays counted"


async def test_what_one_worker_is_at_work_on_is_running_whichever_is_asked(
    shared: RunningRouter, pg_cluster: DevCluster
) -> None:
    await all_serve(shared)
    name = f"a-write-that-waits-{uuid.uuid4()}"
    with psycopg.connect(pg_cluster.tenant_dsn("acme")) as holder:
        holder.execute("create table if not exists waited_for (id int)")
        holder.commit()
        holder.execute("lock table waited_for")
        async with clients(shared, 12) as ones:
            writing = asyncio.create_task(
                ones[0].execute("insert into waited_for values (1)", idempotency_key=name, request_id=name, timeout=25)
            )

            async def runs() -> bool:
                return (await ones[0].outcome(request_id=name)).outcome is pointsman.WriteOutcome.RUNNING

            await eventually(runs, within_s=10, what="the write is under way")
            found = await asyncio.gather(
                *(one.outcome(request_id=name) for one in ones), *(one.outcome(name) for one in ones)
            )
            assert not writing.done()
            assert {one.outcome for one in found} == {pointsman.WriteOutcome.RUNNING}
            holder.rollback()
            await writing
            found = await asyncio.gather(*(one.outcome(name) for one in ones))
            assert {one.outcome for one in found} == {pointsman.WriteOutcome.COMMITTED}
            never = await asyncio.gather(*(one.outcome("never-sent") for one in ones))
            assert {one.outcome for one in never} == {pointsman.WriteOutcome.NOT_FOUND}


async def test_a_rolling_restart_fails_no_request(shared: RunningRouter, pg_cluster: DevCluster) -> None:
    router = shared
    async with clients(router, 8) as ones:
        callers = Callers(ones)
        await callers.setup()
        async with callers.at_work(transactions=True):
            before = await all_serve(router)

            def restart() -> list[str]:
                with router.operator() as operator:
                    asked = admin_pb.RestartWorkersRequest()
                    return [step.step for step in operator.stream("RestartWorkers", asked, 40)]

            steps = await asyncio.to_thread(restart)
            after = await all_serve(router)
        assert steps == ["serves", "ended", "serves", "ended", "done"]
        assert not {one.pid for one in before} & {one.pid for one in after}
        assert not callers.errors, callers.says(router)
        assert not callers.unknown, callers.says(router)
        assert callers.acknowledged == _kept(pg_cluster)
        assert [one.restarts for one in after] == [one.restarts for one in before], "it is no death"
    assert "accept4" not in router.logged(), "gRPC takes an orderly end for a fault"


async def test_sigusr1_restarts_the_workers_and_not_the_control_process(shared: RunningRouter) -> None:
    before = {one.pid for one in await all_serve(shared)}
    shared.signal(signal.SIGUSR1)
    end = asyncio.get_running_loop().time() + 15
    while before & {one.pid for one in await workers(shared)}:
        assert asyncio.get_running_loop().time() < end
        await asyncio.sleep(0.1)
    await all_serve(shared)
    assert shared.process.poll() is None


@pytest.mark.chaos
async def test_a_failover_is_one_promotion_and_no_worker_answers_wrongly(fresh_cluster: DevCluster) -> None:
    async with two_workers(fresh_cluster) as router, clients(router, 6) as ones:
        callers = Callers(ones)
        await callers.setup()
        old = fresh_cluster.primary()
        async with callers.at_work():
            await asyncio.to_thread(old.kill)
            await asyncio.sleep(3)
        assert not callers.errors, callers.says(router)
        lost = callers.acknowledged - _kept(fresh_cluster)
        assert not lost, f"{len(lost)} acknowledged writes lost\n{callers.says(router)}"
        assert fresh_cluster.primary().name != old.name
        assert router.log.read_text().count('"after": "promoting"') == 1
        assert router.scrape()['pointsman_failovers_total{cause="promoted",cluster="main"}'] == 1
        assert callers.outcomes["write"] > 40, callers.says(router)


async def test_the_cap_holds_while_a_worker_dies_and_returns(pg_cluster: DevCluster) -> None:
    cap, most, counted = 6, 0, 0
    seen: list[tuple[object, ...]] = []
    # acme is the shared router's; and a statement that another test left behind may still run as globex.
    query = "select state, wait_event, left(query, 40), clock_timestamp() - backend_start from pg_stat_activity " \
            "where usename = 'globex' and backend_start >= %s"

    def edit(config: Config) -> None:
        for one in config["clusters"]["main"]["endpoints"].values():
            one["max_connections"] = cap
        for one in config["tenants"].values():
            one["pool"] = {"max_size": cap}

    server = pg_cluster.primary()
    with psycopg.connect(server.superuser_dsn) as connection:
        (began,) = connection.execute("select now()").fetchone() or (None,)
    async with two_workers(pg_cluster, edit) as router, clients(router, 12, "globex") as ones:
        callers = Callers(ones, rate=50, loses_transactions=True)
        await callers.setup()
        watching = True

        def watch() -> None:
            nonlocal most, counted, seen
            with psycopg.connect(server.superuser_dsn, autocommit=True) as connection:
                while watching:
                    rows = connection.execute(query, [began]).fetchall()
                    counted += 1
                    if len(rows) > most:
                        most, seen = len(rows), rows

        async with callers.at_work(transactions=True):
            watcher = asyncio.create_task(asyncio.to_thread(watch))
            os.kill((await all_serve(router))[1].pid, signal.SIGKILL)
            await all_serve(router, restarts=1)
            await asyncio.sleep(0.5)
        watching = False
        await watcher
        assert counted > 50
        assert 2 <= most <= cap, f"{most} connections: {seen}, {callers.says(router)}"
        assert not callers.errors, callers.says(router)


async def test_a_cancel_reaches_the_worker_that_runs_the_request(shared: RunningRouter) -> None:
    router = shared
    metadata = (("authorization", f"Bearer {router.tokens['acme']}"),)
    for number in range(6):
        name = f"a-slow-request-{number}"
        async with _stub(router) as (slow, _), _stub(router) as (other, _):
            message = pb.QueryRequest(statement={"sql": "select pg_sleep(20)"}, request_id=name)
            running = slow.Query(message, metadata=metadata, timeout=15)
            await _under_way(router, name)
            answer = await other.CancelQuery(
                pb.CancelQueryRequest(request_id=name), metadata=metadata, timeout=5
            )
            assert answer.result == pb.CANCEL_RESULT_CANCELLING
            assert await running.code() is grpc.StatusCode.CANCELLED
        none = pb.CancelQueryRequest(request_id="known-to-nobody-at-all")
        async with _stub(router) as (other, _):
            answer = await other.CancelQuery(none, metadata=metadata, timeout=5)
            assert answer.result == pb.CANCEL_RESULT_NOT_FOUND


class _stub:
    """A stub on a connection of its own: another worker may be behind it."""

    def __init__(self, router: RunningRouter) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        self._channel = grpc.aio.insecure_channel(router.address, options=options)

    async def __aenter__(self):  # type: ignore[no-untyped-def]
        return query_service_pb2_grpc.QueryServiceStub(self._channel), self._channel

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close()


async def _under_way(router: RunningRouter, request_id: str) -> None:
    for _ in range(200):
        waiting = (await router.operate("ListWaiters")).waiters
        if any(one.request_id == request_id and one.phase == "execute" for one in waiting):
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"{request_id} never ran")


async def test_a_reload_reaches_all_workers_or_none(shared: RunningRouter) -> None:
    router = shared
    router.tokens["acme"] = "another-token"
    (router.config.parent / "acme.token").write_text(router.tokens["acme"])
    answer = await router.operate("ReloadConfig")
    assert answer.applied
    assert not answer.behind
    async with clients(router, 12):
        pass
    router.edit_config(lambda config: config["tenants"]["acme"].update(cluster="nowhere"))
    answer = await router.operate("ReloadConfig")
    router.edit_config(lambda config: config["tenants"]["acme"].update(cluster="main"))
    assert not answer.applied
    async with clients(router, 6):
        pass


async def test_an_order_says_which_worker_has_not_taken_it(shared: RunningRouter) -> None:
    router = shared
    frozen = (await all_serve(router))[1]
    os.kill(frozen.pid, signal.SIGSTOP)
    try:
        answer = await router.operate("DrainEndpoint", admin_pb.DrainEndpointRequest(endpoint="n3"))
        assert len(answer.behind) == 1
        assert f"pid {frozen.pid}" in answer.behind[0]
        states = {one.pid: one.state for one in await workers(router)}
        assert states[frozen.pid] == admin_pb.WORKER_STATE_SILENT
    finally:
        os.kill(frozen.pid, signal.SIGCONT)
    await all_serve(router)
    answer = await router.operate("ResumeEndpoint", admin_pb.ResumeEndpointRequest(endpoint="n3"))
    assert not answer.behind


async def test_sigterm_ends_every_process(pg_cluster: DevCluster) -> None:
    async with two_workers(pg_cluster) as router:
        pids = [one.pid for one in await all_serve(router)]
        async with clients(router, 4):
            assert await router.terminate() == 0
        assert not await _gone(pids, 0.0)


async def test_workers_never_outlive_the_control_process(pg_cluster: DevCluster) -> None:
    async with two_workers(pg_cluster, grace_s=1.0) as router:
        pids = [one.pid for one in await all_serve(router)]
        router.process.kill()
        assert not await _gone(pids, 8.0)


async def test_a_port_is_not_shared_with_another_router(shared: RunningRouter, pg_cluster: DevCluster) -> None:
    router = shared
    def same(config: Config) -> None:
        config["server"]["listen"] = router.address

    with pytest.raises(AssertionError, match="in use by another process"):
        async with two_workers(pg_cluster, same):
            pass
