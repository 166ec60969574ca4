"""The live pools: made on first use, kept apart, fenced, cut, closed when unused."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from router.config.secret_commands import CommandRunner
from router.engine.connection_budget import Budgets
from router.engine.endpoints import Pools
from router.engine.load import LoadMeter
from router.engine.making_room import SPARE_S
from router.engine.passwords import Passwords
from router.model.events import Health, Phase
from router.model.identity import EndpointName, Generation
from router.model.observation import AttemptFailed, FaultKind
from router.model.policy import PoolPolicy
from router.model.reasons import CloseReason, RefuseReason
from router.model.request import Access, Method, Options, ReadFrom
from tests.support.builders import Engine, tenant
from tests.support.talk import Talk, refusal, rest
from tests.support.virtual_time import settle, virtual

A = EndpointName("a")
REPLICA = Options(read=ReadFrom.REPLICA)


@virtual
async def test_tenants_endpoints_and_accesses_never_share_a_connection() -> None:
    engine = Engine()
    await engine.run(Method.QUERY, "select 1")
    await engine.run(Method.EXECUTE, "insert a")
    await engine.run(Method.QUERY, "select 1", options=REPLICA)
    engine.tenant = tenant("globex")
    await engine.run(Method.QUERY, "select 1")
    assert len(engine.pools) == len(engine.inner_pools()) == 4
    assert [(key.tenant, key.endpoint, key.access) for key, _ in engine.pools] == [
        ("acme", "a", Access.READ_ONLY), ("acme", "a", Access.READ_WRITE), ("acme", "b", Access.READ_ONLY),
        ("globex", "a", Access.READ_ONLY)]
    assert engine.pools.connections(EndpointName("a")) == 3
    await rest(engine)


@virtual
async def test_a_reload_that_changes_nothing_keeps_the_connections() -> None:
    engine = Engine()
    await engine.run(Method.EXECUTE, "insert a")
    engine.tenant = replace(engine.tenant)
    await engine.run(Method.EXECUTE, "insert a")
    assert len(engine.inner_pools()) == 1
    engine.tenant = replace(engine.tenant, pool=PoolPolicy(max_size=1))
    running = engine.start(engine.run(Method.EXECUTE, "select pg_sleep(1)"))
    await settle()
    assert len(engine.inner_pools()) == 2
    await running
    await rest(engine)
    assert engine.inner_pools()[0].destroyed == {CloseReason.DRAIN: 1}


@virtual
async def test_a_retired_pool_finishes_what_it_has() -> None:
    engine = Engine()
    running = engine.start(engine.run(Method.EXECUTE, "insert a"))
    engine.server().script[b"insert a"] = [*engine.server().script.get(b"insert a", [])]  # type: ignore[misc]
    await settle()
    engine.pools.forget_tenants({engine.tenant.name})
    assert (await running).results
    await rest(engine)


@virtual
async def test_a_new_primary_fences_the_old_ones_writers_and_leaves_the_replicas_alone() -> None:
    engine = Engine("a", "b", "c")
    writing = engine.start(engine.run(Method.EXECUTE, "select pg_sleep(60)", timeout=70))
    reading = engine.start(
        engine.run(Method.QUERY, "select pg_sleep(1)", options=Options(read=ReadFrom.REPLICA))
    )
    await asyncio.sleep(0.1)
    replica = next(key.endpoint for key, _ in engine.pools if key.access is Access.READ_ONLY)
    engine.supervisor.promote("c" if replica == "b" else "b")
    error = await refusal(writing)
    assert error.executed.value == "maybe"
    assert (await reading).receipt.attempts == 1
    assert engine.supervisor.faults == [], "a fence is no evidence"
    generations = {key.access: pool.generation for key, pool in engine.pools}
    assert generations == {Access.READ_WRITE: Generation(2), Access.READ_ONLY: Generation(1)}
    await rest(engine)


def sizes(engine: Engine) -> dict[tuple[str, Access], int]:
    """Connections open by endpoint and access."""
    return {(key.endpoint, key.access): pool.statistics().size for key, pool in engine.pools}


@virtual
async def test_a_switchover_has_lanes_for_writes_at_the_next_primary_before_it_serves() -> None:
    engine = Engine("a", "b", "c")
    running = [engine.start(engine.run(Method.EXECUTE, "select pg_sleep(0.1)")) for _ in range(3)]
    await asyncio.gather(*running)
    assert sizes(engine) == {("a", Access.READ_WRITE): 3}
    engine.supervisor.publish(successor=EndpointName("b"))
    await asyncio.sleep(0.1)
    engine.supervisor.publish(phase=Phase.HOLDING, primary=None)
    engine.supervisor.publish(successor=None)
    assert sizes(engine) == {("a", Access.READ_WRITE): 3, ("b", Access.READ_WRITE): 3}
    engine.supervisor.promote("b")
    await settle()
    assert sizes(engine) == {("a", Access.READ_WRITE): 0, ("b", Access.READ_WRITE): 3}
    assert (await engine.run(Method.EXECUTE, "insert a")).receipt.endpoint == "b"
    assert [pool.opened for pool in engine.inner_pools()] == [3, 3], "the first write opens none"
    await rest(engine)


@virtual
async def test_lanes_of_a_switchover_that_failed_are_not_those_of_a_later_primary() -> None:
    engine = Engine("a", "b", "c")
    await engine.run(Method.EXECUTE, "insert a")
    engine.supervisor.publish(successor=EndpointName("b"))
    await asyncio.sleep(0.1)
    engine.supervisor.publish(successor=None)
    assert (await engine.run(Method.EXECUTE, "insert a")).receipt.endpoint == "a"
    engine.supervisor.promote("c")
    engine.supervisor.promote("b")
    await settle()
    assert sizes(engine)["b", Access.READ_WRITE] == 0
    assert (await engine.run(Method.EXECUTE, "insert a")).receipt.endpoint == "b"
    await rest(engine)


@virtual
async def test_a_server_that_is_gone_is_cut_once_and_its_reads_go_elsewhere() -> None:
    engine = Engine("a", "b", "c")
    slow = "select pg_sleep(1)"
    reads = [engine.start(engine.run(Method.QUERY, slow, options=REPLICA)) for _ in range(4)]
    await asyncio.sleep(0.1)
    engine.supervisor.set_health("b", Health.DOWN)
    answers = await asyncio.gather(*reads)
    assert {one.receipt.endpoint for one in answers} == {"c"}
    assert sorted(one.receipt.attempts for one in answers) == [1, 1, 2, 2]
    await rest(engine)


@virtual
async def test_an_endpoint_that_left_the_configuration_loses_its_pools() -> None:
    engine = Engine()
    await engine.run(Method.QUERY, "select 1", options=REPLICA)
    endpoints = {name: one for name, one in engine.supervisor.state.endpoints.items() if name != "b"}
    engine.supervisor.publish(endpoints=endpoints)
    assert len(engine.pools) == 0
    await rest(engine)


@virtual
async def test_who_was_routed_to_an_endpoint_that_has_left_the_configuration_is_told_to_look_again() -> None:
    engine = Engine()
    with pytest.raises(AttemptFailed, match="gone has left the configuration") as failed:
        engine.pools.get(engine.tenant, EndpointName("gone"), Access.READ_ONLY, Generation(1))
    assert failed.value.fault.kind is FaultKind.STALE
    await rest(engine)


@virtual
async def test_the_sweep_gives_idle_lanes_back_and_closes_unused_pools() -> None:
    engine = Engine(pool=PoolPolicy(close_after_s=10.0))
    sweeping = engine.start(engine.pools.sweep())
    await engine.run(Method.QUERY, "select 1")
    await engine.quiet(5)
    (inner,) = engine.inner_pools()
    assert (inner.statistics().leased, inner.statistics().idle) == (0, 1)
    await engine.quiet(10)
    assert len(engine.pools) == 0
    assert inner.statistics().size == 0
    sweeping.cancel()
    await asyncio.wait({sweeping})
    await rest(engine)


@virtual
async def test_closing_ends_what_runs_and_what_is_being_closed() -> None:
    engine = Engine()
    running = engine.start(engine.run(Method.QUERY, "select pg_sleep(60)", timeout=70))
    await asyncio.sleep(0.1)
    engine.pools.forget_tenants({engine.tenant.name})
    other = engine.start(engine.run(Method.EXECUTE, "select pg_sleep(60)", timeout=70))
    await asyncio.sleep(0.1)
    engine.supervisor.lose_primary()
    engine.room.close()
    await engine.pools.close()
    await refusal(running)
    await refusal(other)
    for inner in engine.inner_pools():
        inner.check_conserved(leased=0)
    assert isinstance(engine.pools, Pools)


@virtual
async def test_lanes_nobody_uses_are_given_back_when_another_pool_needs_the_room() -> None:
    engine = Engine()
    await engine.run(Method.QUERY, "select 1")
    await asyncio.sleep(SPARE_S / 2)
    await engine.run(Method.EXECUTE, "insert a")
    reading, writing = engine.inner_pools()
    engine.pools.free_lanes(EndpointName("a"))
    await settle()
    assert (reading.statistics().leased, writing.statistics().leased) == (1, 1), "a pause between statements"
    await asyncio.sleep(SPARE_S * 0.6)
    engine.pools.free_lanes(EndpointName("b"))
    engine.pools.free_lanes(EndpointName("a"))
    await settle()
    assert (reading.statistics().leased, writing.statistics().leased) == (0, 1), "the one unused longest"
    await rest(engine)


@virtual
async def test_what_min_size_keeps_stays_a_lane() -> None:
    engine = Engine(pool=PoolPolicy(min_size=1))
    await engine.run(Method.QUERY, "select 1")
    await asyncio.sleep(1)
    engine.pools.free_lanes(EndpointName("a"))
    await settle()
    assert engine.inner_pools()[0].statistics().leased == 1
    await rest(engine)


@virtual
async def test_a_retired_pool_keeps_no_lane_that_it_does_not_use() -> None:
    engine = Engine()
    await asyncio.gather(*(engine.run(Method.EXECUTE, "select pg_sleep(0.1)") for _ in range(3)))
    running = engine.start(engine.run(Method.EXECUTE, "select pg_sleep(2)"))
    await asyncio.sleep(0.1)
    (old,) = engine.inner_pools()
    assert old.statistics().leased == 3
    engine.tenant = replace(engine.tenant, pool=PoolPolicy(max_size=1))
    await engine.run(Method.EXECUTE, "insert a")
    assert (old.statistics().leased, old.statistics().idle) == (1, 2)
    await running
    await rest(engine)
    assert old.destroyed == {CloseReason.DRAIN: 3}


@virtual
async def test_a_new_primary_fences_retired_pools_of_the_old_one_too_and_who_waits_there_goes_to_it() -> None:
    engine = Engine(pool=PoolPolicy(max_size=1))
    writing = engine.start(engine.run(Method.EXECUTE, "select pg_sleep(60)", timeout=70))
    await asyncio.sleep(0.1)
    waiting = engine.start(engine.run(Method.EXECUTE, "insert a"))
    await asyncio.sleep(0.1)
    engine.change(pool=PoolPolicy(max_size=2))
    await asyncio.sleep(0.1)
    assert len(engine.pools) == 0
    assert engine.pools.connections(A) == 1
    assert engine.pools.in_flight(A) == 2, "the write and the question for its position"
    assert engine.pools.database_times(A)[engine.tenant.name] == pytest.approx(0.3, abs=0.02)
    engine.supervisor.promote("b")
    assert (await refusal(writing)).executed.value == "maybe"
    assert (await waiting).receipt.endpoint == "b"
    assert engine.server("b").committed == [b"insert a"]
    assert engine.inner_pools()[0].opened == 1, "no new connection to the former primary"
    assert engine.supervisor.faults == [], "a fence is no evidence"
    await rest(engine)


@pytest.mark.parametrize("retired", [False, True])
@virtual
async def test_who_waits_for_a_lane_when_a_switchover_holds_writes_waits_for_the_next_primary(retired: bool) -> None:
    """In the same generation: the lanes go on, and a batch says READ WRITE, which beats the server's hold."""
    engine = Engine(pool=PoolPolicy(max_size=1))
    engine.supervisor.publish()
    writing = engine.start(engine.run(Method.EXECUTE, "select pg_sleep(0.5)"))
    await asyncio.sleep(0.1)
    batch = engine.start(engine.run(Method.EXECUTE_BATCH, "insert a", "insert b"))
    keyed = engine.start(engine.run(Method.EXECUTE, "insert c", key="k1"))
    talking = engine.start(Talk.begin(engine))
    talk = await talking
    talking = engine.start(talk.run("insert d"))
    await asyncio.sleep(0.1)
    if retired:
        engine.change(pool=PoolPolicy(max_size=2))
    engine.supervisor.publish(phase=Phase.HOLDING, primary=None)
    assert (await writing).receipt.endpoint == "a", "what runs goes on"
    await asyncio.sleep(0.5)
    assert engine.server().committed == []
    assert not any(text.startswith((b"BEGIN", b"insert")) for text in engine.server().seen)
    assert engine.room.held == 3
    engine.supervisor.promote("b")
    await talking
    await talk.commit()
    assert {(await one).receipt.endpoint for one in (batch, keyed)} == {"b"}
    assert engine.server().committed == []
    assert sorted(engine.server("b").committed)[:4] == [b"insert a", b"insert b", b"insert c", b"insert d"]
    await rest(engine)


@virtual
async def test_a_doubt_about_the_primary_leaves_the_lines_as_they_are() -> None:
    engine = Engine(pool=PoolPolicy(max_size=1))
    engine.supervisor.publish()
    writing = engine.start(engine.run(Method.EXECUTE, "select pg_sleep(0.5)"))
    await asyncio.sleep(0.1)
    batch = engine.start(engine.run(Method.EXECUTE_BATCH, "insert a"))
    await asyncio.sleep(0.1)
    engine.supervisor.publish(phase=Phase.SUSPECT, primary=None)
    await writing
    assert (await batch).receipt.endpoint == "a"
    await rest(engine)


@pytest.mark.parametrize("leaves", [False, True])
@virtual
async def test_a_transaction_on_a_retired_pool_is_not_committed_at_a_former_primary(leaves: bool) -> None:
    engine = Engine()
    talk = await Talk.begin(engine)
    await talk.run("insert a")
    engine.change(policy=replace(engine.tenant.policy, idle_in_transaction_s=20.0))
    await engine.quiet(1)
    if leaves:
        endpoints = {name: one for name, one in engine.supervisor.state.endpoints.items() if name != "a"}
        engine.supervisor.publish(endpoints=endpoints, primary=None)
    engine.supervisor.promote("b")
    assert (await refusal(talk.commit())).reason is RefuseReason.TRANSACTION_LOST
    assert engine.server().committed == []
    await rest(engine)


@virtual
async def test_what_runs_on_a_retired_pool_is_cut_once_its_server_is_gone() -> None:
    engine = Engine("a", "b", "c")
    reads = [engine.start(engine.run(Method.QUERY, "select pg_sleep(1)", options=REPLICA)) for _ in range(4)]
    await asyncio.sleep(0.1)
    engine.change(pool=PoolPolicy(max_size=2))
    engine.supervisor.set_health("b", Health.DOWN)
    answers = await asyncio.gather(*reads)
    assert {one.receipt.endpoint for one in answers} == {"c"}
    await rest(engine)


@virtual
async def test_another_server_under_the_same_name_says_nothing_of_the_one_before_it() -> None:
    engine = Engine()
    running = engine.start(engine.run(Method.EXECUTE, "select pg_sleep(1)"))
    await asyncio.sleep(0.1)
    engine.pools.forget_servers({A})
    engine.supervisor.set_health("a", Health.DOWN)
    assert (await running).results
    engine.supervisor.set_health("a", Health.UP)
    running = engine.start(engine.run(Method.EXECUTE, "select pg_sleep(60)", timeout=70))
    await asyncio.sleep(0.1)
    engine.pools.forget_servers({A})
    engine.supervisor.promote("a")
    assert (await refusal(running)).executed.value == "maybe"
    await rest(engine)


@virtual
async def test_the_load_counts_what_still_runs_on_a_retired_pool_with_its_successor() -> None:
    engine = Engine()
    passwords = Passwords(CommandRunner(), engine.clock, engine.events)
    counted = (engine.clusters, engine.pools, engine.tenants, engine.register, Budgets(), engine.listeners)
    meter = LoadMeter(*counted, passwords, engine.runs)
    writes = [engine.start(engine.run(Method.EXECUTE, "select pg_sleep(2)"))]
    await asyncio.sleep(0.1)
    engine.change(pool=PoolPolicy(max_size=2))
    assert (meter.read().endpoints[A].in_flight, meter.read().endpoints[A].connections) == (2, 1)
    writes.append(engine.start(engine.run(Method.EXECUTE, "select pg_sleep(2)")))
    await asyncio.sleep(0.1)
    (view,) = meter.read().pools
    assert (view.size, view.leased, view.lanes, view.in_flight, view.max_size) == (2, 2, 2, 4, 2)
    assert view.database_s == pytest.approx(0.3, abs=0.02)
    assert meter.read().endpoints[A].in_flight == 4
    await asyncio.gather(*writes)
    await rest(engine)
