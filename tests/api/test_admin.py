"""AdminService: every view reaches the operator, orders reach the engine, mistakes are told."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import grpc.aio
import pytest
from pointsman.v1 import admin_service_pb2 as pb
from pointsman.v1 import query_service_pb2 as query_pb
from pointsman.v1 import types_pb2

from router.api.admin_messages import HEALTHS, PHASES, ROLES, version_text
from router.model.events import Health, Phase
from router.model.request import CancelOutcome
from router.model.topology import Role
from tests.api.conftest import ADMIN_AUTH, AUTH, World, eventually
from tests.api.reading import reason_of


async def test_server_info(world: World) -> None:
    info = await world.admin.GetServerInfo(pb.GetServerInfoRequest(), metadata=ADMIN_AUTH)
    assert (info.version, info.uptime_s, info.topology, info.libpq_version) == ("1.2.3", 12.5, 7, 180000)
    assert (info.config_path, info.config_problem, list(info.config_problems)) == ("router.yaml", "a", ["a", "b"])
    assert info.config_refused_s == 2.5
    (trouble,) = info.certificate_troubles
    assert (trouble.port, trouble.problem, trouble.for_s) == ("operators", "file ca.pem holds no certificates", 7.5)
    assert not info.draining
    await world.server.drain(0.1)
    assert (await world.admin.GetServerInfo(pb.GetServerInfoRequest(), metadata=ADMIN_AUTH)).draining


async def test_tenants_come_in_pages_by_name(world: World) -> None:
    world.overview.tenant_names = ["é", "c", "a", "d", "b"]
    names: list[str] = []
    token = ""
    for expected in (2, 2, 1):
        request = pb.ListTenantsRequest(page_size=2, page_token=token)
        page = await world.admin.ListTenants(request, metadata=ADMIN_AUTH)
        assert len(page.tenants) == expected
        names += [tenant.name for tenant in page.tenants]
        token = page.next_page_token
    assert names == ["a", "b", "c", "d", "é"]
    assert token == ""


async def test_lists_pass_their_filters_and_show_what_is_there(world: World) -> None:
    endpoints = await world.admin.ListEndpoints(pb.ListEndpointsRequest(cluster="main"), metadata=ADMIN_AUTH)
    (endpoint,) = endpoints.endpoints
    assert endpoint == pb.EndpointState(
        name="pg1",
        cluster="main",
        host="db1",
        port=5432,
        zone="a",
        role=types_pb2.ENDPOINT_ROLE_PRIMARY,
        health=pb.ENDPOINT_HEALTH_UP,
        health_reason="probe_ok",
        timeline=3,
        lsn="0/3000148",
        weight=50,
        in_flight=4,
        connections=5,
        connections_cap=80,
        connections_granted=60,
        connections_in_use=6,
        connections_wanted=2,
        connections_running=3,
        concurrency_limit=5,
        concurrency_reason="slow",
        slower_than_usual=2.5,
        probe_ms=2.0,
        server_version="18.6",
    )
    pools = await world.admin.ListPools(pb.ListPoolsRequest(), metadata=ADMIN_AUTH)
    assert (pools.pools[0].access, pools.pools[0].size, pools.pools[0].max_size) == ("read_only", 3, 8)
    waiters = await world.admin.ListWaiters(pb.ListWaitersRequest(tenant="acme"), metadata=ADMIN_AUTH)
    assert [(waiter.phase, waiter.waited_s) for waiter in waiters.waiters] == [("hold", 2.5), ("execute", 0.5)]
    assert world.overview.asked == ["main", None, "acme"]


async def test_watching_shows_the_state_now_and_after_each_change(world: World) -> None:
    call = world.admin.WatchTopology(pb.WatchTopologyRequest(), metadata=ADMIN_AUTH)
    first = await call.read()
    assert (first.topology, first.clusters[0].phase) == (7, pb.CLUSTER_PHASE_STEADY)
    assert first.clusters[0].endpoints[0].name == "pg1"
    await eventually(lambda: world.overview.watchers)
    world.overview.change(Phase.HOLDING)
    assert (await call.read()).clusters[0].phase == pb.CLUSTER_PHASE_HOLDING
    call.cancel()
    await eventually(lambda: not world.overview.watchers)


async def test_orders_reach_the_engine(world: World) -> None:
    drained = await world.admin.DrainEndpoint(pb.DrainEndpointRequest(endpoint="pg1"), metadata=ADMIN_AUTH)
    assert drained.in_flight == 3
    await world.admin.ResumeEndpoint(pb.ResumeEndpointRequest(endpoint="pg1"), metadata=ADMIN_AUTH)
    request = pb.SetEndpointWeightRequest(endpoint="pg1", weight=0)
    assert (await world.admin.SetEndpointWeight(request, metadata=ADMIN_AUTH)).previous == 100
    switchover = world.admin.Switchover(pb.SwitchoverRequest(cluster="main"), metadata=ADMIN_AUTH)
    steps = [step async for step in switchover]
    assert [(step.step, step.done, step.primary) for step in steps] == [("hold", False, ""), ("serve", True, "pg2")]
    request_to = pb.SwitchoverRequest(cluster="main", to="pg3", timeout_ms=2500)
    assert [step async for step in world.admin.Switchover(request_to, metadata=ADMIN_AUTH)]
    assert world.operator.log == [
        ("drain", "pg1"),
        ("resume", "pg1"),
        ("weight", 0),
        ("switchover", ("main", None, 10.0)),
        ("switchover", ("main", "pg3", 2.5)),
    ]
    reloaded = await world.admin.ReloadConfig(pb.ReloadConfigRequest(), metadata=ADMIN_AUTH)
    assert (reloaded.applied, list(reloaded.problems)) == (False, ["line 3: no such cluster"])


async def test_tenants_are_made_changed_paused_and_removed(world: World) -> None:
    shown = await world.admin.GetTenant(pb.GetTenantRequest(tenant="acme"), metadata=ADMIN_AUTH)
    assert (shown.document, shown.version, list(shown.problems)) == ("cluster: main\n", "v1", ["acme.yaml:1: wrong"])
    orders = {
        "CreateTenant": pb.CreateTenantRequest(tenant="acme", document="d"),
        "ChangeTenant": pb.ChangeTenantRequest(tenant="acme", document="d", version="v1"),
        "PauseTenant": pb.PauseTenantRequest(tenant="acme"),
        "ResumeTenant": pb.ResumeTenantRequest(tenant="acme", version="v1"),
        "RemoveTenant": pb.RemoveTenantRequest(tenant="acme"),
    }
    for method, order in orders.items():
        done = await getattr(world.admin, method)(order, metadata=ADMIN_AUTH)
        assert (len(done.changes), len(done.behind)) == (1, 1), "a worker is silent, and that is told"
        assert method == "RemoveTenant" or done.version == "v2"
    assert world.tenants.log == [
        ("create", "acme", "d"),
        ("change", "acme", "d", "v1"),
        ("pause", "acme", ""),
        ("resume", "acme", "v1"),
        ("remove", "acme", ""),
    ]


async def test_what_a_configuration_would_change_is_told(world: World) -> None:
    told = await world.admin.DiffConfig(pb.DiffConfigRequest(document="removed"), metadata=ADMIN_AUTH)
    assert list(told.changes) == [
        pb.ConfigChange(place="tenants.acme", change="removed", effect=pb.CONFIG_EFFECT_DRAINS)
    ]
    own = await world.admin.DiffConfig(pb.DiffConfigRequest(), metadata=ADMIN_AUTH)
    assert list(own.problems) == ["line 3: no such cluster"]


@pytest.mark.parametrize(
    ("method", "request_", "reason"),
    [
        ("DrainEndpoint", pb.DrainEndpointRequest(endpoint="pg9"), "UNKNOWN_NAME"),
        ("DrainEndpoint", pb.DrainEndpointRequest(), "BAD_REQUEST"),
        ("ResumeEndpoint", pb.ResumeEndpointRequest(), "BAD_REQUEST"),
        ("SetEndpointWeight", pb.SetEndpointWeightRequest(endpoint="pg1", weight=2**32 - 1), "BAD_REQUEST"),
        ("ListTenants", pb.ListTenantsRequest(page_token="é"), "BAD_REQUEST"),
        ("ListTenants", pb.ListTenantsRequest(page_token="a"), "BAD_REQUEST"),
        ("ListTenants", pb.ListTenantsRequest(page_token="////"), "BAD_REQUEST"),
    ],
)
async def test_mistakes_are_told(world: World, method: str, request_: Any, reason: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await getattr(world.admin, method)(request_, metadata=ADMIN_AUTH)
    assert reason_of(caught.value) == (reason, "no")
    assert not world.operator.log


async def test_a_switchover_names_its_cluster(world: World) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.admin.Switchover(pb.SwitchoverRequest(), metadata=ADMIN_AUTH).read()
    assert reason_of(caught.value) == ("BAD_REQUEST", "no")


async def test_watchers_do_not_hold_up_the_end(world: World) -> None:
    call = world.admin.WatchTopology(pb.WatchTopologyRequest(), metadata=ADMIN_AUTH)
    await call.read()
    began = asyncio.get_running_loop().time()
    assert await world.server.drain(5.0)
    await world.server.stop()
    assert asyncio.get_running_loop().time() - began < 2.0
    assert not world.overview.watchers


def test_every_state_has_its_message_value() -> None:
    assert set(ROLES) == set(Role)
    assert set(HEALTHS) == set(Health)
    assert set(PHASES) == set(Phase)
    assert len(set(HEALTHS.values())) == len(Health)
    assert len(set(PHASES.values())) == len(Phase)
    assert 0 not in HEALTHS.values()
    assert 0 not in PHASES.values()


@pytest.mark.parametrize(("number", "text"), [(180006, "18.6"), (150000, "15.0"), (0, "")])
def test_versions_read_as_people_write_them(number: int, text: str) -> None:
    assert version_text(number) == text


async def test_workers_are_listed_as_they_are_known_after_a_look(world: World):
    answer = await world.admin.ListWorkers(pb.ListWorkersRequest(), metadata=ADMIN_AUTH)
    assert [(one.number, one.pid, one.state, one.restarts) for one in answer.workers] == [
        (1, 101, pb.WORKER_STATE_SERVING, 0),
        (2, 102, pb.WORKER_STATE_SILENT, 2),
    ]
    assert (answer.workers[0].in_flight, answer.workers[0].connections, answer.workers[0].version) == (3, 8, "1.2.3")
    assert world.workers.refreshed == 1


async def test_what_is_shown_is_fresh_in_every_list(world: World):
    await world.admin.ListTenants(pb.ListTenantsRequest(), metadata=ADMIN_AUTH)
    await world.admin.ListEndpoints(pb.ListEndpointsRequest(), metadata=ADMIN_AUTH)
    await world.admin.ListPools(pb.ListPoolsRequest(), metadata=ADMIN_AUTH)
    await world.admin.ListWaiters(pb.ListWaitersRequest(), metadata=ADMIN_AUTH)
    assert world.workers.refreshed == 4


async def test_an_order_names_the_workers_that_have_not_confirmed_it(world: World):
    drained = await world.admin.DrainEndpoint(pb.DrainEndpointRequest(endpoint="pg1"), metadata=ADMIN_AUTH)
    resumed = await world.admin.ResumeEndpoint(pb.ResumeEndpointRequest(endpoint="pg1"), metadata=ADMIN_AUTH)
    weighted = await world.admin.SetEndpointWeight(
        pb.SetEndpointWeightRequest(endpoint="pg1", weight=5), metadata=ADMIN_AUTH
    )
    for answer in (drained, resumed, weighted):
        assert list(answer.behind) == ["worker 2 (pid 102) has not confirmed"]
    refused = await world.admin.ReloadConfig(pb.ReloadConfigRequest(), metadata=ADMIN_AUTH)
    assert not refused.behind, "nothing was ordered"


async def test_a_restart_of_the_workers_is_told_step_by_step(world: World):
    steps = [step async for step in world.admin.RestartWorkers(pb.RestartWorkersRequest(), metadata=ADMIN_AUTH)]
    assert [(step.worker, step.step, step.detail, step.done) for step in steps] == [
        (1, "started", "pid 201", False),
        (0, "done", "", True),
    ]


async def test_a_cancel_that_finds_nothing_here_asks_the_other_workers(world: World):
    world.workers.cancel_outcome = CancelOutcome.CANCELLING
    message = query_pb.CancelQueryRequest(request_id="elsewhere-in-a-worker")
    answer = await world.query.CancelQuery(message, metadata=AUTH)
    assert answer.result == query_pb.CANCEL_RESULT_CANCELLING
    assert world.workers.cancels == [("acme", "elsewhere-in-a-worker")]
    world.executor.cancel_outcome = CancelOutcome.NOT_CANCELLABLE
    answer = await world.query.CancelQuery(message, metadata=AUTH)
    assert answer.result == query_pb.CANCEL_RESULT_NOT_CANCELLABLE
    assert len(world.workers.cancels) == 1, "who runs here is nobody else's business"
