"""What an operator does to a running router, and what callers notice of it: drain, reload, weights, switchover."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pointsman
import pytest
from grpc_health.v1 import health_pb2
from pointsman import Executed
from pointsman.v1 import admin_service_pb2 as admin_pb

from router.devcluster import DevCluster
from tests.failover.load import Load, ledger
from tests.stories.conftest import undisturbed
from tests.support.eventually import ask, eventually, running, until_gone, until_running
from tests.support.running_router import Config, RunningRouter, health_of, running_router, tenant

pytestmark = pytest.mark.pg

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def connections(cluster: DevCluster) -> int:
    return sum(
        int(ask(cluster, "select count(*) from pg_stat_activity where application_name ~ '^pointsman/'", server=one))
        for one in cluster.servers.values()
    )


# --- the end of a router -------------------------------------------------------------------------------------------


async def test_sigterm_lets_what_runs_end_and_takes_nothing_new(pg_cluster: DevCluster) -> None:
    before = await asyncio.to_thread(connections, pg_cluster)
    async with running_router(pg_cluster, grace_s=5) as router, router.connect(timeout=10) as db:
        assert await health_of(router.address) == SERVING
        mark = f"draining {time.monotonic_ns()}"
        running = [
            asyncio.create_task(db.query(f"select 'read', pg_sleep(1) /* {mark} */")),
            asyncio.create_task(db.execute(f"select 'write', pg_sleep(1) /* {mark} */")),
            asyncio.create_task(db.batch([f"select pg_sleep(1) /* {mark} */"])),
            asyncio.create_task(db.stream(f"select pg_sleep(1) /* {mark} */").next_chunk()),
        ]
        await eventually(lambda: all_run(pg_cluster, mark, 4), within_s=3, what="four statements under way")
        async with db.transaction() as tx:
            await tx.execute("select 1")
            began = time.monotonic()
            router.signal(signal.SIGTERM)
            await eventually(lambda: says(router, NOT_SERVING), within_s=1, what="health NOT_SERVING")
            # New work on a fresh connection is refused in words; only this router exists, so that is the answer.
            async with router.connect() as other:
                with pytest.raises(pointsman.Unavailable) as caught:
                    await other.execute("select 1", timeout=0.5)
                assert caught.value.executed is Executed.NO
            # What was begun goes on.
            assert await tx.query_value("select 41 + 1") == 42
        answers = await asyncio.gather(*running)
        assert (answers[0][0][0], answers[1].rows[0][0]) == ("read", "write")
        await db.close()
        assert await asyncio.to_thread(router.process.wait, 5) == 0
        print(f"\ndrained in {time.monotonic() - began:.2f} s")
        log = router.log.read_text()
        assert "Traceback" not in log, log[-2000:]
    await eventually(
        lambda: no_more_than(pg_cluster, before), within_s=1, what="the end of the router's connections"
    )


async def all_run(cluster: DevCluster, mark: str, count: int) -> bool:
    totals = [await asyncio.to_thread(running, cluster, mark, one) for one in cluster.servers.values()]
    return sum(totals) == count


async def says(router: RunningRouter, status: int) -> bool:
    return await health_of(router.address) == status


async def no_more_than(cluster: DevCluster, count: int) -> bool:
    return await asyncio.to_thread(connections, cluster) <= count


async def test_what_outlasts_the_grace_is_cut_off_and_told(pg_cluster: DevCluster) -> None:
    async with running_router(pg_cluster, grace_s=0.5) as router, router.connect(timeout=10) as db:
        mark = f"too long {time.monotonic_ns()}"
        running = asyncio.create_task(db.execute(f"select pg_sleep(30) /* {mark} */", timeout=4))
        await until_running(pg_cluster, mark)
        began = time.monotonic()
        router.signal(signal.SIGTERM)
        with pytest.raises(pointsman.Error) as caught:
            await running
        assert caught.value.executed in (Executed.MAYBE, Executed.ROLLED_BACK)
        assert await asyncio.to_thread(router.process.wait, 5) == 0
        assert time.monotonic() - began < 4
        await until_gone(pg_cluster, mark, 2)


async def test_callers_move_on_to_another_router_without_an_error(pg_cluster: DevCluster) -> None:
    """Two routers behind one address, as behind a load balancer: the one that drains hands over."""
    async with running_router(pg_cluster) as one, running_router(pg_cluster) as two, Switch() as switch:
        switch.target = one.address
        async with pointsman.connect(switch.address, tenant="acme", token=one.tokens["acme"], timeout=5) as db:
            outcomes: Counter[str] = Counter()
            errors: list[BaseException] = []
            stopping = asyncio.Event()

            async def loop(name: str, act: Callable[[], Awaitable[Any]]) -> None:
                while not stopping.is_set():
                    try:
                        await act()
                        outcomes[name] += 1
                    except pointsman.Error as error:
                        errors.append(error)
                    await asyncio.sleep(0.005)

            async def transact() -> None:
                async with db.transaction() as tx:
                    await tx.execute("update counters set n = n where id = 2")

            async def stream() -> None:
                async for _ in db.stream("select generate_series(1, 10)"):
                    pass

            callers = [
                asyncio.create_task(loop("query", lambda: db.query("select 1"))),
                asyncio.create_task(loop("execute", lambda: db.execute("update counters set n = n where id = 3"))),
                asyncio.create_task(loop("batch", lambda: db.batch(["select 1"]))),
                asyncio.create_task(loop("transact", transact)),
                asyncio.create_task(loop("stream", stream)),
            ]
            await asyncio.sleep(0.4)
            before = dict(outcomes)
            switch.target = two.address
            one.signal(signal.SIGTERM)
            assert await asyncio.to_thread(one.process.wait, 8) == 0
            await asyncio.sleep(0.4)
            stopping.set()
            await asyncio.gather(*callers)
            assert not errors, errors[:3]
            assert all(outcomes[name] > before[name] + 5 for name in before), (before, outcomes)


class Switch:
    """An address behind which the router can change: new connections go to the target."""

    def __init__(self) -> None:
        self.target = ""
        self.address = ""

    async def __aenter__(self) -> Switch:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        self.address = f"{host}:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = self.target.rsplit(":", 1)
        try:
            back_reader, back_writer = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.close()
            return
        await asyncio.gather(pump(reader, back_writer), pump(back_reader, writer), return_exceptions=True)


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()


# --- reload --------------------------------------------------------------------------------------------------------


def without_globex(config: Config) -> None:
    del config["tenants"]["globex"]


@pytest.mark.parametrize("by", ["signal", "admin"])
async def test_a_reload_adds_a_tenant_and_changes_a_pool(pg_cluster: DevCluster, by: str) -> None:
    async with (
        running_router(pg_cluster, edit=without_globex) as router,
        undisturbed(router, "acme"),
        router.connect("globex", timeout=2) as db,
        router.connect("acme") as acme,
    ):
        with pytest.raises(pointsman.Unauthenticated):
            await db.query("select 1")

        def change(config: Config) -> None:
            config["tenants"]["globex"] = tenant("globex", pool={"max_size": 3})
            config["tenants"]["acme"]["pool"] = {"max_size": 2}

        router.edit_config(change)
        if by == "signal":
            router.signal(signal.SIGHUP)
            await eventually(
                lambda: "configuration applied" in router.log.read_text(), within_s=2, what="a reload"
            )
        else:
            answer = await router.operate("ReloadConfig")
            assert answer.applied
            assert any("globex" in line for line in answer.changes), answer.changes
        assert await db.query_value("select current_database()") == "globex"
        await asyncio.gather(*(acme.query("select pg_sleep(0.1)") for _ in range(6)))
        pools = {one.tenant: one for one in (await router.operate("ListPools")).pools if one.access == "read_only"}
        assert (pools["acme"].max_size, pools["globex"].max_size) == (2, 3)
        assert pools["acme"].size <= 2


async def test_a_removed_tenant_is_shut_out_on_open_connections_too(pg_cluster: DevCluster) -> None:
    async with (
        running_router(pg_cluster) as router,
        undisturbed(router, "acme"),
        router.connect("globex", timeout=2) as db,
    ):
        assert await db.query_value("select 1") == 1
        router.edit_config(without_globex)
        assert (await router.operate("ReloadConfig")).applied
        for call in (db.query, db.execute):
            with pytest.raises(pointsman.Unauthenticated) as caught:
                await call("select 1")
            assert caught.value.executed is Executed.NO


async def test_a_bad_file_changes_nothing_and_the_status_says_why(pg_cluster: DevCluster) -> None:
    def spoil(config: Config) -> None:
        config["tenants"]["acme"]["pool"] = {"max_size": -1}
        config["clusters"]["main"]["modus"] = "promote"

    async with running_router(pg_cluster) as router, undisturbed(router, "acme"):
        good = router.config.read_text()
        router.edit_config(spoil)
        answer = await router.operate("ReloadConfig")
        assert not answer.applied
        assert len(answer.problems) == 2, answer.problems
        assert "pointsman.yaml" in (await router.operate("GetServerInfo")).config_problem
        router.signal(signal.SIGHUP)
        await eventually(
            lambda: router.log.read_text().count("configuration refused") == 2, within_s=2, what="a refused reload"
        )
        router.config.write_text(good)
        assert (await router.operate("ReloadConfig")).applied
        assert (await router.operate("GetServerInfo")).config_problem == ""


async def test_a_watched_file_needs_no_order_and_a_bad_one_is_told_with_its_age(pg_cluster: DevCluster) -> None:
    def watched(config: Config) -> None:
        config["server"]["watch_s"] = 0.1

    def grow(config: Config) -> None:
        config["tenants"]["globex"]["limits"] = {"max_in_flight": 7}

    async with running_router(pg_cluster, edit=watched) as router, undisturbed(router, "acme"):
        router.edit_config(grow)
        await eventually(
            lambda: "tenants.globex.limits.max_in_flight" in router.log.read_text(), within_s=2, what="the new limit"
        )
        router.edit_config(lambda config: config["tenants"]["globex"].update(cluster="elsewhere"))
        await eventually(
            lambda: router.scrape()["pointsman_config_refused_seconds"] > 0, within_s=2, what="a refused configuration"
        )
        info = await router.operate("GetServerInfo")
        assert "tenants.globex.cluster" in info.config_problem
        assert info.config_refused_s > 0
        asked = await router.operate("DiffConfig")
        assert (len(asked.problems), len(asked.changes)) == (1, 0)


# --- routing by order ----------------------------------------------------------------------------------------------


async def served(db: pointsman.Client, count: int = 60) -> Counter[str]:
    answers = [await db.query("select 1", read="any") for _ in range(count)]
    return Counter(answer.receipt.endpoint for answer in answers)


async def test_drain_resume_and_weight_change_the_routes(pg_cluster: DevCluster) -> None:
    async with (
        running_router(pg_cluster) as router,
        undisturbed(router),
        router.connect(consistency="eventual") as db,
    ):
        assert set(await served(db)) == {"n1", "n2", "n3"}
        mark = f"on n2 {time.monotonic_ns()}"
        long = [asyncio.create_task(db.query(f"select pg_sleep(1) /* {mark} */", read="replica")) for _ in range(2)]
        await asyncio.sleep(0.1)
        await router.operate("DrainEndpoint", admin_pb.DrainEndpointRequest(endpoint="n2"))
        assert (await router.endpoint("n2")).draining
        assert set(await served(db)) == {"n1", "n3"}
        await asyncio.gather(*long)  # what ran there ended by itself
        await router.operate("ResumeEndpoint", admin_pb.ResumeEndpointRequest(endpoint="n2"))
        assert set(await served(db)) == {"n1", "n2", "n3"}
        answer = await router.operate(
            "SetEndpointWeight", admin_pb.SetEndpointWeightRequest(endpoint="n3", weight=0)
        )
        assert answer.previous == 100
        assert set(await served(db)) == {"n1", "n2"}
        await router.operate("SetEndpointWeight", admin_pb.SetEndpointWeightRequest(endpoint="n3", weight=400))
        shares = await served(db)
        assert shares["n3"] > shares["n1"] + shares["n2"], shares


async def test_a_listener_stays_where_it_is_while_its_endpoint_is_drained(pg_cluster: DevCluster) -> None:
    """Nothing new goes there, and nothing that is there is cut: no gap."""

    async def notify(payload: str) -> None:
        sql = "select pg_notify('story drained', %s)::text"
        await asyncio.to_thread(ask, pg_cluster, sql, payload, database="acme")

    async with (
        running_router(pg_cluster) as router,
        undisturbed(router),
        router.connect("acme") as db,
        db.listen("story drained") as heard,
    ):
        for number, order in enumerate(("DrainEndpoint", "ResumeEndpoint")):
            message = getattr(admin_pb, f"{order}Request")
            await router.operate(order, message(endpoint="n1"))
            await asyncio.sleep(2.5)
            await notify(str(number))
            item = await asyncio.wait_for(heard.next(), 5)
            assert isinstance(item, pointsman.Notification), item
            assert item.payload == str(number)


async def test_orders_need_an_operators_token_and_names_that_exist(router: RunningRouter) -> None:
    async with grpc.aio.insecure_channel(router.admin) as channel:
        drain = channel.unary_unary("/pointsman.v1.AdminService/DrainEndpoint")
        for token in ("", router.tokens["acme"]):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await drain(b"\x0a\x02n2", metadata=(("authorization", f"Bearer {token}"),), timeout=5)
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    with pytest.raises(Exception, match="n9"):
        await router.operate("DrainEndpoint", admin_pb.DrainEndpointRequest(endpoint="n9"))


# --- switchover ----------------------------------------------------------------------------------------------------


@pytest.mark.chaos
async def test_a_switchover_under_load_costs_latency_and_no_error(fresh_cluster: DevCluster) -> None:
    cluster = fresh_cluster
    async with running_router(cluster) as router, router.connect() as db:
        load = Load(db)
        await load.setup()
        told: list[Any] = []

        async def switch() -> None:
            def run() -> None:
                with router.operator() as operator:
                    request = admin_pb.SwitchoverRequest(cluster="main", to="n2", timeout_ms=10_000)
                    told.extend(operator.stream("Switchover", request, 15))

            await asyncio.to_thread(run)

        await load.run(5, switch)
        assert told[-1].done
        assert told[-1].primary == "n2"
        gap = load.longest_write_gap()
        print(f"\nswitchover: writes paused {told[-1].pause_s * 1000:.0f} ms, gap {gap * 1000:.0f} ms, {load.says()}")
        print(" ".join(f"{one.step} {one.elapsed_s * 1000:.0f}" for one in told))
        assert not load.errors, load.errors[:3]
        assert not load.unknown
        assert gap < 1
        assert set(load.acknowledged) <= ledger(cluster)
        assert cluster.primary().name == "n2"
