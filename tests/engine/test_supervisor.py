"""A cluster's supervisor over fake servers, on virtual time."""

import asyncio
from dataclasses import replace

import pytest

from router.model.errors import RouterError
from router.model.events import FailoverEnded, FailoverStep, Health, HealthChanged, Phase, PhaseChanged
from router.model.identity import ClusterName, EndpointName, Generation
from router.model.observation import Fault, FaultKind, Stage
from router.model.policy import ClusterPolicy, FailoverPolicy
from router.model.reasons import HealthReason, RefuseReason
from router.model.state import ClusterState
from router.model.topology import Endpoint, FailoverMode, Role
from tests.engine.supervising import supervised, until
from tests.support.fake_servers import FakeServers, Mood
from tests.support.virtual_time import settle, virtual

N1, N2, N3 = (EndpointName(name) for name in ("n1", "n2", "n3"))
FOLLOW = FailoverMode.FOLLOW


def fault(kind: FaultKind, endpoint: EndpointName = N1, **told: object) -> Fault:
    return Fault(kind, Stage.EXECUTE, endpoint=endpoint, **told)  # type: ignore[arg-type]


@virtual
async def test_the_roles_are_found():
    async with supervised(FakeServers.of(3)) as (supervisor, _):
        state = supervisor.state
        assert (state.primary, state.term, state.generation) == (N1, 1, 1)
        assert {name: e.role for name, e in state.endpoints.items()} == {
            N1: Role.PRIMARY,
            N2: Role.REPLICA,
            N3: Role.REPLICA,
        }
        assert all(e.health is Health.UP for e in state.endpoints.values())


@virtual
async def test_nothing_is_routed_before_anyone_answered():
    async with supervised(FakeServers.of(3), steady=False) as (supervisor, _):
        assert (supervisor.state.phase, supervisor.state.primary) == (Phase.STARTING, None)


@virtual
async def test_snapshots_are_numbered_and_told_in_order():
    servers = FakeServers.of(3)
    async with supervised(servers) as (supervisor, _):
        told: list[ClusterState] = []
        end = supervisor.subscribe(told.append)
        servers["n1"].mood = Mood.DEAD
        await until(supervisor, lambda state: state.primary == N2)
        end()
        assert [s.number for s in told] == sorted({s.number for s in told})
        assert [s.generation for s in told] == sorted(s.generation for s in told)
        count = len(told)
        await asyncio.sleep(5)
        assert len(told) == count


# --- faults of the data path ----------------------------------------------------------------------------------------


@virtual
async def test_a_lost_connection_is_doubt_before_report_fault_returns():
    async with supervised(FakeServers.of(3)) as (supervisor, _):
        supervisor.report_fault(fault(FaultKind.CONNECTION_LOST))
        assert (supervisor.state.phase, supervisor.state.primary) == (Phase.SUSPECT, None)
        assert await until(supervisor, lambda state: state.phase is Phase.STEADY) < 0.05


@virtual
async def test_ten_thousand_faults_are_one_fact():
    servers = FakeServers.of(3)
    async with supervised(servers) as (supervisor, kept):
        numbers = []
        supervisor.subscribe(lambda state: numbers.append(state.number))
        for _ in range(10_000):
            supervisor.report_fault(fault(FaultKind.CONNECTION_LOST))
            supervisor.report_fault(fault(FaultKind.CONNECT_REFUSED, N2))
        assert len(numbers) == 2
        assert len(kept.of(HealthChanged)) == 3 + 2
        probes = len(servers.probes)
        await asyncio.sleep(0.1)
        assert len(servers.probes) - probes < 15


@virtual
async def test_a_session_that_was_ended_is_no_doubt_about_its_server():
    servers = FakeServers.of(3)
    async with supervised(servers) as (supervisor, kept):
        kept.events.clear()
        for _ in range(500):
            supervisor.report_fault(fault(FaultKind.CONNECTION_LOST, sqlstate="57P01"))
            assert supervisor.state.phase is Phase.STEADY
            await asyncio.sleep(0.002)
        assert kept.events == []


@virtual
async def test_a_shutdown_is_noticed_by_the_first_session_that_it_ends():
    servers = FakeServers.of(3)
    async with supervised(servers) as (supervisor, _):
        for _ in range(2):
            servers["n1"].mood = Mood.STARTING
            supervisor.report_fault(fault(FaultKind.CONNECTION_LOST, sqlstate="57P01"))
            assert await until(supervisor, lambda state: state.phase is Phase.SUSPECT) < 0.015
            servers["n1"].mood = Mood.RUNNING
            await until(supervisor, lambda state: state.phase is Phase.STEADY)
            await asyncio.sleep(0.1)


@virtual
async def test_a_refused_write_is_doubt_about_the_role():
    servers = FakeServers.of(3)
    async with supervised(servers, FOLLOW) as (supervisor, _):
        servers.promote("n2")
        servers.follow("n1", "n2")
        supervisor.report_fault(fault(FaultKind.SERVER_ERROR, sqlstate="25006"))
        assert supervisor.state.phase is Phase.SUSPECT
        assert await until(supervisor, lambda state: state.primary == N2) < 0.05


@virtual
async def test_a_refused_write_elsewhere_is_none():
    async with supervised(FakeServers.of(3)) as (supervisor, _):
        supervisor.report_fault(fault(FaultKind.SERVER_ERROR, N2, sqlstate="25006"))
        assert supervisor.state.phase is Phase.STEADY


@virtual
async def test_faults_of_an_older_generation_or_an_unknown_endpoint_tell_nothing():
    async with supervised(FakeServers.of(3)) as (supervisor, _):
        servers_generation = supervisor.state.generation
        assert servers_generation == 1
        supervisor.report_fault(fault(FaultKind.CONNECTION_LOST, EndpointName("gone")))
        supervisor._machine = replace(supervisor._machine, generation=Generation(2))
        supervisor.report_fault(fault(FaultKind.CONNECTION_LOST, generation=Generation(1)))
        assert supervisor.state.phase is Phase.STEADY


@virtual
async def test_a_silent_statement_only_asks_for_a_probe():
    servers = FakeServers.of(3)
    async with supervised(servers) as (supervisor, _):
        await asyncio.sleep(0.05)
        before = [name for _, name, _ in servers.probes].count(N1)
        supervisor.report_fault(fault(FaultKind.SILENT))
        assert supervisor.state.phase is Phase.STEADY
        await asyncio.sleep(0.02)
        assert [name for _, name, _ in servers.probes].count(N1) == before + 1


# --- follow mode ----------------------------------------------------------------------------------------------------


@virtual
async def test_follow_mode_finds_the_new_primary_within_a_quarter_second():
    servers = FakeServers.of(3)
    async with supervised(servers, FOLLOW) as (supervisor, kept):
        servers["n1"].mood = Mood.DEAD
        supervisor.report_fault(fault(FaultKind.CONNECT_REFUSED))
        assert supervisor.state.phase is Phase.HOLDING
        await asyncio.sleep(20)
        servers.promote("n3")
        assert await until(supervisor, lambda state: state.primary == N3) < 0.25
        assert (supervisor.state.term, supervisor.state.generation) == (2, 2)
        assert servers.journal == []
        [ended] = kept.of(FailoverEnded)
        assert isinstance(ended, FailoverEnded)
        assert ended.took_s == pytest.approx(20, abs=0.3)


@virtual
async def test_the_old_primary_is_quarantined_until_it_returns_as_a_standby():
    servers = FakeServers.of(3)
    async with supervised(servers, FOLLOW) as (supervisor, _):
        servers.promote("n2")
        await until(supervisor, lambda state: state.primary == N2)
        old = supervisor.state.endpoints[N1]
        assert (old.health, old.health_reason, old.role) == (Health.QUARANTINED, HealthReason.OLD_TERM, Role.UNKNOWN)
        await asyncio.sleep(30)
        assert supervisor.state.endpoints[N1].health is Health.QUARANTINED
        servers.follow("n1", "n2")
        await until(supervisor, lambda state: state.endpoints[N1].health is Health.PROBATION)
        assert await until(supervisor, lambda state: state.endpoints[N1].health is Health.UP) == pytest.approx(
            2, abs=0.4
        )
        assert supervisor.state.endpoints[N1].role is Role.REPLICA


@pytest.mark.parametrize("mode", list(FailoverMode))
@virtual
async def test_a_standby_of_a_former_primary_that_still_runs_is_behind_and_in_promote_mode_made_to_follow(
    mode: FailoverMode,
):
    servers = FakeServers.of(3)
    async with supervised(servers, mode) as (supervisor, _):
        servers.promote("n2")
        await until(supervisor, lambda state: state.primary == N2)
        assert 0 <= supervisor.state.endpoints[N3].lag_s <= 1, "it serves while it may be about to follow"
        await asyncio.sleep(4)
        assert 3 <= supervisor.state.endpoints[N3].lag_s <= 6
        assert servers.journal == []
        await asyncio.sleep(4)
        n3 = supervisor.state.endpoints[N3]
        if mode is FOLLOW:
            assert (servers.journal, n3.term) == ([], 1)
            assert n3.lag_s >= 7
        else:
            assert servers.journal == [("repoint", N3)]
            assert (n3.term, n3.lag_s, n3.health) == (2, 0.0, Health.UP)


@virtual
async def test_a_foreign_server_under_a_known_name_is_quarantined():
    servers = FakeServers.of(3)
    async with supervised(servers) as (supervisor, _):
        servers["n3"].system_id = 99
        servers["n3"].in_recovery = False
        servers["n3"].timeline = 9
        await until(supervisor, lambda state: state.endpoints[N3].health is Health.QUARANTINED)
        assert supervisor.state.endpoints[N3].health_reason is HealthReason.FOREIGN_SYSTEM
        assert (supervisor.state.primary, supervisor.state.term) == (N1, 1)


@virtual
async def test_max_connections_reached_is_not_down():
    servers = FakeServers.of(3)
    async with supervised(servers) as (supervisor, kept):
        servers["n1"].mood = Mood.FULL
        await asyncio.sleep(30)
        assert (supervisor.state.phase, supervisor.state.primary) == (Phase.STEADY, N1)
        assert len(kept.of(PhaseChanged)) == 2


# --- promote mode ---------------------------------------------------------------------------------------------------


@virtual
async def test_a_killed_primary_is_replaced_within_half_a_second():
    servers = FakeServers.of(3)
    async with supervised(servers) as (supervisor, kept):
        servers["n1"].mood = Mood.DEAD
        supervisor.report_fault(fault(FaultKind.CONNECTION_LOST))
        assert await until(supervisor, lambda state: state.primary == N2) < 0.5
        assert (supervisor.state.term, supervisor.state.phase) == (2, Phase.STEADY)
        steps = [(e.step, e.endpoint) for e in kept.of(FailoverStep) if isinstance(e, FailoverStep)]
        assert sorted(steps[:2]) == [("fence", N2), ("fence", N3)]
        assert steps[2:6] == [("choose", N2), ("set_synchronous", N2), ("promote", N2), ("commits_wait", N2)]
        assert sorted(steps[6:]) == [("repoint", N3), ("verify_write", N2)]
        assert servers["n2"].sync_names == 'ANY 1 ("n1", "n3")'
        assert servers["n3"].upstream == N2


@virtual
async def test_nobody_follows_a_new_primary_before_its_commits_wait_for_somebody():
    """What comes through while nobody can confirm it was acknowledged by the new primary alone."""
    servers = FakeServers.of(3)
    servers["n2"].sync_in_force = False
    async with supervised(servers) as (supervisor, _):
        servers["n1"].mood = Mood.DEAD
        supervisor.report_fault(fault(FaultKind.CONNECTION_LOST))
        await asyncio.sleep(20.0)
        assert ("promote", N2) in servers.journal
        assert ("repoint", N3) not in servers.journal
        assert supervisor.state.phase is Phase.PROMOTING
        servers["n2"].sync_in_force = True
        await until(supervisor, lambda state: state.primary == N2)
        assert servers["n3"].upstream == N2


@virtual
async def test_a_frozen_primary_is_replaced_and_never_used_again():
    servers = FakeServers.of(3)
    async with supervised(servers) as (supervisor, _):
        servers.freeze("n1")
        assert await until(supervisor, lambda state: state.primary == N2) < 3.0
        servers["n1"].mood = Mood.RUNNING
        await until(supervisor, lambda state: state.endpoints[N1].health is Health.QUARANTINED)
        await asyncio.sleep(10)
        assert supervisor.state.primary == N2


@virtual
async def test_the_most_advanced_standby_is_chosen():
    servers = FakeServers.of(3)
    async with supervised(servers) as (supervisor, _):
        servers["n1"].mood = Mood.DEAD
        servers["n3"].lsn += 1
        await until(supervisor, lambda state: state.primary == N3)


@virtual
async def test_a_crash_restart_is_no_reason_to_promote():
    servers = FakeServers.of(3)
    async with supervised(servers) as (supervisor, _):
        servers["n1"].mood = Mood.STARTING
        supervisor.report_fault(fault(FaultKind.CONNECTION_LOST))
        await asyncio.sleep(1.5)
        assert supervisor.state.phase is Phase.SUSPECT
        servers["n1"].mood = Mood.RUNNING
        assert await until(supervisor, lambda state: state.primary == N1) < 0.2
        assert servers.journal == []


@virtual
async def test_a_router_that_alone_is_cut_off_promotes_nobody():
    servers = FakeServers.of(3)
    async with supervised(servers) as (supervisor, _):
        servers["n1"].mood = Mood.UNREACHABLE
        await asyncio.sleep(20)
        assert supervisor.state.phase is Phase.HOLDING
        assert "only this router" in supervisor.state.detail
        servers["n1"].mood = Mood.RUNNING
        await until(supervisor, lambda state: state.primary == N1)
        assert servers.journal == []


@pytest.mark.parametrize("mood", [Mood.UNREACHABLE, Mood.REJECTED], ids=["silent", "refused"])
@virtual
async def test_a_crash_restart_behind_a_cut_is_no_reason_to_promote(mood: Mood):
    """Only the router is cut off; what standbys say for a moment while the primary restarts is no evidence."""
    servers = FakeServers.of(3)
    async with supervised(servers) as (supervisor, _):
        servers["n1"].mood = mood
        for number in range(6):
            await asyncio.sleep(2)
            servers["n1"].restarting = True
            await asyncio.sleep(0.25 + 0.1 * number)
            servers["n1"].restarting = False
        await asyncio.sleep(1)
        assert (servers.journal, supervisor.state.phase) == ([], Phase.HOLDING)
        servers["n1"].mood = Mood.DEAD
        assert 3.0 < await until(supervisor, lambda state: state.primary in (N2, N3)) < 4.0


@virtual
async def test_a_router_that_sees_nobody_does_nothing():
    servers = FakeServers.of(3)
    async with supervised(servers) as (supervisor, _):
        for server in servers.servers.values():
            server.mood = Mood.UNREACHABLE
        await asyncio.sleep(20)
        assert supervisor.state.phase is Phase.STUCK
        for server in servers.servers.values():
            server.mood = Mood.RUNNING
        await until(supervisor, lambda state: state.phase is Phase.STEADY)
        assert (supervisor.state.primary, supervisor.state.generation, servers.journal) == (N1, 1, [])


@virtual
async def test_with_one_standby_gone_too_it_is_stuck_in_words_until_the_standby_is_back():
    servers = FakeServers.of(3)
    async with supervised(servers) as (supervisor, _):
        servers["n3"].mood = Mood.DEAD
        servers["n1"].mood = Mood.DEAD
        await until(supervisor, lambda state: state.phase is Phase.STUCK)
        assert "1 of 2 synchronous standbys answer, 2 must be fenced" in supervisor.state.detail
        servers["n3"].mood = Mood.RUNNING
        await until(supervisor, lambda state: state.primary == N2)


@virtual
async def test_a_fence_that_reaches_one_of_two_promotes_nobody_and_tries_again():
    servers = FakeServers.of(3)
    servers.failing.add(("fence", N3))
    async with supervised(servers) as (supervisor, kept):
        servers["n1"].mood = Mood.DEAD
        await asyncio.sleep(5)
        assert "promote" not in {step for step, _ in servers.journal}
        servers.failing.clear()
        await until(supervisor, lambda state: state.primary == N2)
        assert any(not e.ok for e in kept.of(FailoverStep) if isinstance(e, FailoverStep))


@virtual
async def test_nobody_is_promoted_beside_one_that_somebody_else_has_just_promoted():
    """Its own fences are gone by then, and the others could be had: enough of them, where two must confirm."""
    servers = FakeServers.of(4)
    for name in servers.servers:
        servers[name].sync_names = f"ANY 2 ({', '.join(other for other in servers.servers if other != name)})"
    async with supervised(servers) as (supervisor, _):
        servers["n1"].mood = Mood.DEAD
        await until(supervisor, lambda _: any(step == "fence" for step, _ in servers.journal))
        servers.promote("n2")
        await until(supervisor, lambda state: state.primary == N2)
        assert not any(step == "promote" for step, _ in servers.journal)
        await until(supervisor, lambda _: servers["n3"].upstream == servers["n4"].upstream == N2)
        assert not servers["n3"].fenced
        assert not servers["n4"].fenced


@virtual
async def test_standbys_cut_in_vain_are_attached_to_the_old_primary_again():
    servers = FakeServers.of(3)
    servers.failing.add(("fence", N3))
    async with supervised(servers) as (supervisor, _):
        servers["n1"].mood = Mood.DEAD
        await asyncio.sleep(0.6)
        assert servers["n2"].fenced
        servers["n1"].mood = Mood.RUNNING
        await until(supervisor, lambda state: state.primary == N1)
        await until(supervisor, lambda _: not servers["n2"].fenced)
        assert servers["n2"].upstream == N1


@virtual
async def test_a_candidate_that_dies_while_it_is_promoted_leads_to_no_second_promotion():
    servers = FakeServers.of(3)
    servers.hanging.add(("promote", N2))
    async with supervised(servers) as (supervisor, _):
        servers["n1"].mood = Mood.DEAD
        await until(supervisor, lambda _: ("promote", N2) in servers.journal)
        servers["n2"].mood = Mood.DEAD
        await asyncio.sleep(30)
        assert supervisor.state.phase is Phase.STUCK
        assert "n2 may have been promoted" in supervisor.state.detail
        assert [step for step, _ in servers.journal].count("promote") == 1


@virtual
async def test_a_promotion_without_proof_of_service_still_ends_at_the_promoted_server():
    servers = FakeServers.of(3)
    servers.failing |= {("repoint", N3)}
    async with supervised(servers) as (supervisor, _):
        servers["n1"].mood = Mood.DEAD
        await until(supervisor, lambda state: state.primary == N2)
        assert servers["n3"].fenced
        servers.failing.clear()
        await until(supervisor, lambda _: servers["n3"].upstream == N2, within_s=20)


@virtual
async def test_flapping_promotes_once_per_gap():
    servers = FakeServers.of(3)
    policy = ClusterPolicy(failover=FailoverPolicy(min_gap_s=60))
    async with supervised(servers, policy=policy) as (supervisor, _):
        servers["n1"].mood = Mood.DEAD
        await until(supervisor, lambda state: state.primary == N2)
        servers.follow("n1", "n2")
        await until(supervisor, lambda state: state.endpoints[N1].health is Health.UP)
        servers["n2"].mood = Mood.DEAD
        await until(supervisor, lambda state: state.phase is Phase.STUCK)
        assert "too recent" in supervisor.state.detail
        took = await until(supervisor, lambda state: state.primary not in (None, N2))
        assert 50 < took < 60


@virtual
async def test_dry_run_touches_nothing():
    servers = FakeServers.of(3)
    policy = ClusterPolicy(failover=FailoverPolicy(dry_run=True))
    async with supervised(servers, policy=policy) as (supervisor, kept):
        servers["n1"].mood = Mood.DEAD
        await asyncio.sleep(10)
        assert servers.journal == []
        assert [e.step for e in kept.of(FailoverStep) if isinstance(e, FailoverStep)] == ["dry_run"]
        assert "dry run" in supervisor.state.detail


@virtual
async def test_a_cluster_that_lost_its_primary_before_the_router_started_is_rescued():
    servers = FakeServers.of(3)
    servers["n1"].mood = Mood.DEAD
    servers["n2"].fenced = servers["n3"].fenced = True
    async with supervised(servers, steady=False) as (supervisor, _):
        took = await until(supervisor, lambda state: state.primary == N2)
        assert 30 <= took < 31
        assert servers["n3"].upstream == N2


# --- orders ---------------------------------------------------------------------------------------------------------


@virtual
async def test_drain_resume_and_weight():
    async with supervised(FakeServers.of(3)) as (supervisor, _):
        supervisor.drain(N2)
        supervisor.set_weight(N3, 7)
        state = supervisor.state
        assert (state.endpoints[N2].draining, state.endpoints[N3].weight) == (True, 7)
        await asyncio.sleep(1)
        assert supervisor.state.endpoints[N2].draining
        supervisor.resume(N2)
        assert not supervisor.state.endpoints[N2].draining
        with pytest.raises(RouterError) as refused:
            supervisor.drain(EndpointName("n9"))
        assert refused.value.reason is RefuseReason.UNKNOWN_NAME


@virtual
async def test_configuration_changes_endpoints_while_running():
    servers = FakeServers.of(3)
    async with supervised(servers) as (supervisor, _):
        supervisor.set_weight(N2, 7)
        cluster = supervisor.cluster
        fewer = replace(cluster, endpoints=cluster.endpoints[:2])
        supervisor.apply(fewer)
        assert set(supervisor.state.endpoints) == {N1, N2}
        assert supervisor.state.endpoints[N2].weight == 7
        supervisor.apply(replace(cluster, endpoints=tuple(replace(e, weight=50) for e in cluster.endpoints)))
        await until(supervisor, lambda state: state.endpoints[N3].health is Health.UP)
        assert supervisor.state.endpoints[N2].weight == 50
        assert (supervisor.state.phase, supervisor.state.generation) == (Phase.STEADY, 1)


@virtual
async def test_taking_the_primary_out_of_the_configuration_stops_writes():
    servers = FakeServers.of(3)
    async with supervised(servers, FOLLOW) as (supervisor, _):
        cluster = supervisor.cluster
        supervisor.apply(replace(cluster, endpoints=cluster.endpoints[1:]))
        assert (supervisor.state.phase, supervisor.state.primary) == (Phase.HOLDING, None)
        new = Endpoint(N1, ClusterName("main"), "127.0.0.1", 6000)
        supervisor.apply(replace(cluster, endpoints=(new, *cluster.endpoints[1:])))
        await until(supervisor, lambda state: state.primary == N1)


@virtual
async def test_a_subscriber_that_fails_does_not_stop_the_writer():
    servers = FakeServers.of(3)
    async with supervised(servers) as (supervisor, _):
        told: list[str] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["message"]))
        supervisor.subscribe(lambda _: 1 / 0)  # type: ignore[arg-type, return-value]
        servers.promote("n2")
        await until(supervisor, lambda state: state.primary == N2)
        assert told


@virtual
async def test_stopping_before_running_and_twice_is_harmless():
    servers = FakeServers.of(3)
    async with supervised(servers) as (supervisor, _):
        await supervisor.stop()
        await supervisor.stop()
    await settle()
