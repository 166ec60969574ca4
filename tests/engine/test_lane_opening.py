"""Connects to a server that may not be there: how many are made, whoever waits, and who is charged with them."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from router.engine.lane_opening import FIRST_REST_S, LONGEST_REST_S, SLOW_S
from router.model.errors import RouterError
from router.model.identity import Lsn, Term
from router.model.observation import FaultKind
from router.model.policy import TenantPolicy
from router.model.request import Method, Options, ReadFrom
from router.model.token import Token
from tests.support.builders import Engine, now, request
from tests.support.lane_world import World, failure
from tests.support.talk import refusal, rest
from tests.support.virtual_time import settle, virtual


@virtual
async def test_whoever_waits_one_connect_is_made_and_charged_to_one() -> None:
    world = World(max_size=8)
    world.server.connect_error = "refused"
    reads = [failure(world.read()) for _ in range(20)]
    faults = await asyncio.gather(*reads, *(failure(world.pool.pin(now() + 5)) for _ in range(20)))
    assert {fault.kind for fault in faults} == {FaultKind.CONNECT_REFUSED}
    assert world.server.connects == 1
    assert [fault.cost_a_server for fault in faults].count(True) == 1
    await world.end()


@virtual
async def test_reads_that_were_spread_over_many_lanes_find_out_by_one_connect_too() -> None:
    world = World(max_size=8)
    await world.learn()
    world.pool._places.spread.lanes = 6  # as after a time of many reads
    world.server.kill_all()
    await settle()
    world.server.connect_error = "refused"
    before = world.server.connects
    faults = await asyncio.gather(*(failure(world.read()) for _ in range(20)))
    assert world.server.connects - before == 1
    assert [fault.cost_a_server for fault in faults].count(True) == 1
    world.server.connect_error = None
    await asyncio.sleep(FIRST_REST_S)
    await world.read()
    await world.end()


@virtual
async def test_during_the_rest_after_a_failed_connect_newcomers_are_told_without_another_one() -> None:
    world = World(max_size=4)
    world.server.connect_error = "refused"
    began, told = now(), 0
    while now() - began < 5.0:
        await failure(world.pool.pin(now() + 5))
        await failure(world.read())
        told += 2
        await asyncio.sleep(0.005)
    assert told > 500
    assert world.server.connects <= 8 + 5 / LONGEST_REST_S, "20 ms, doubled up to half a second"
    world.server.connect_error = None
    await asyncio.sleep(LONGEST_REST_S)
    await world.read()
    await world.end()


@virtual
async def test_a_server_that_is_well_again_is_asked_at_once_and_by_many_once_one_got_through() -> None:
    world = World(max_size=4)
    world.server.connect_error = "refused"
    for _ in range(8):
        await failure(world.pool.pin(now() + 5))
        await asyncio.sleep(LONGEST_REST_S)
    await failure(world.pool.pin(now() + 5))
    world.server.connect_error = None
    await failure(world.pool.pin(now() + 5))
    world.pool.go_on()
    before = now()
    slots = await asyncio.gather(*(world.pool.pin(now() + 5) for _ in range(4)))
    assert now() - before < 0.02
    for slot in slots:
        world.pool.release(slot)
    await world.end()


@virtual
async def test_attempts_and_failed_connects_together_stay_below_a_tenth_more_than_requests() -> None:
    engine = Engine("a", "b", "c", policy=TenantPolicy(max_in_flight=1000))
    charged: list[int] = []

    async def one(number: int) -> None:
        read = number % 2
        options = Options(read=ReadFrom.ANY) if read else None
        try:
            method, sql = (Method.QUERY, "select 1") if read else (Method.EXECUTE, "insert a")
            answer = await engine.run(method, sql, options=options, timeout=3.0)
            charged.append(answer.receipt.attempts)
        except RouterError as error:
            charged.append(max(1, int(str(error.numbers.get("attempts", 1)))))

    async def flow(seconds: float) -> list[asyncio.Task[None]]:
        tasks = []
        for number in range(int(60 * seconds)):
            tasks.append(engine.start(one(number)))
            await asyncio.sleep(1 / 60)
        return tasks

    began = await flow(1.0)
    for server in engine.servers.values():
        server.connect_error = "53300"
        server.kill_all()
    before = sum(server.connects for server in engine.servers.values())
    began += await flow(5.0)
    failed = sum(server.connects for server in engine.servers.values()) - before
    for server in engine.servers.values():
        server.connect_error = None
    began += await flow(1.0)
    await asyncio.gather(*began)
    print(f"\n{failed} connects failed, {sum(charged)} attempts charged to {len(charged)} requests")
    assert sum(charged) <= 1.10 * len(charged)
    assert failed <= 5 * 4 * 10, "four pools, at most ten a second each"
    await rest(engine)


@virtual
async def test_asking_the_primary_for_its_position_is_an_attempt_like_any_other() -> None:
    engine = Engine(policy=TenantPolicy(max_in_flight=1000))
    engine.supervisor.publish(system_id=7)
    engine.server().connect_error = "refused"
    token = Token(7, Term(1), Lsn(1), now=True)

    async def read() -> int:
        asked = replace(request(Method.QUERY, "select 1", options=Options(read=ReadFrom.ANY), timeout=0.5), after=token)
        error = await refusal(engine.executor.run(engine.tenant, asked))
        return int(str(error.numbers["attempts"]))

    counts = await asyncio.gather(*(read() for _ in range(5)))
    assert min(counts) >= 0
    assert sum(counts) == engine.server().connects
    await rest(engine)


@virtual
async def test_a_connect_that_was_only_shared_spends_nothing_of_the_retry_budget() -> None:
    engine = Engine(policy=TenantPolicy(max_in_flight=1000))
    engine.server().connect_error = "57P03"
    writes = [engine.start(engine.run(Method.EXECUTE, "insert a")) for _ in range(60)]
    await asyncio.sleep(0.3)
    engine.server().connect_error = None
    failed = [one for one in await asyncio.gather(*writes, return_exceptions=True) if isinstance(one, Exception)]
    assert not failed, "a server that is starting is waited for by all, not by ten"
    await rest(engine)


@virtual
async def test_reads_do_not_wait_for_a_connect_that_hangs_where_another_server_answers() -> None:
    """b is well, as far as probes know, but its connect hangs for as long as it may: once the reads that wait for it go
    elsewhere, and newcomers at once. It is not asked a second time meanwhile."""
    engine = Engine("a", "b", "c", policy=TenantPolicy(max_in_flight=1000))
    engine.server("b").connect_hangs = True
    options, began = Options(read=ReadFrom.REPLICA), now()
    first = [engine.start(engine.run(Method.QUERY, "select 1", options=options)) for _ in range(20)]
    answers = await asyncio.gather(*first)
    assert {answer.receipt.endpoint for answer in answers} == {"c"}
    assert now() - began < SLOW_S + 0.05
    began = now()
    later = [await engine.quick_read("select 1", options=options) for _ in range(20)]
    assert {answer.receipt.endpoint for answer in later} == {"c"}
    assert now() - began < 0.1
    assert {answer.receipt.attempts for answer in (*answers, *later)} == {1}, "b was asked for nobody alone"
    assert engine.server("b").connects == 1
    engine.server("b").connect_hangs = False
    await asyncio.sleep(6.0)
    for _ in range(3):
        found = {(await engine.quick_read("select 1", options=options)).receipt.endpoint for _ in range(20)}
    assert "b" in found
    await rest(engine)


@virtual
async def test_writes_wait_for_a_slow_connect_as_they_have_no_other_place() -> None:
    engine = Engine()
    engine.server().connect_takes = 2.0
    began = now()
    answer = await engine.run(Method.EXECUTE, "insert a")
    assert now() - began < 2.1
    assert answer.receipt.attempts == engine.server().connects == 1
    await rest(engine)


@virtual
async def test_reads_of_the_only_server_are_answered_once_its_slow_connect_is_there() -> None:
    engine = Engine("a")
    engine.server().connect_takes = 2.0
    began = now()
    answers = await asyncio.gather(*(engine.run(Method.QUERY, "select 1") for _ in range(20)))
    assert len(answers) == 20
    assert now() - began < 2.5
    assert engine.server().connects <= 2, "one to find out, and perhaps one more for twenty once it was there"
    await rest(engine)


@virtual
async def test_who_waits_under_the_cap_does_not_wait_for_a_slow_connect() -> None:
    world = World(max_size=1)
    slot = await world.pool.pin(now() + 5)
    reads = [world.read() for _ in range(5)]
    await asyncio.sleep(3 * SLOW_S)
    assert not any(read.done() for read in reads), "in turn, not elsewhere"
    world.pool.release(slot)
    await asyncio.gather(*reads)
    await world.end()


@virtual
async def test_a_place_that_nobody_has_is_waited_for_by_each_for_its_own_time() -> None:
    """All waited as long as the first one might: who came in its last moments was told that it had waited too long."""
    world = World(max_size=1)
    elsewhere = await world.inner.open_lane(now() + 5)
    began = now()
    first = asyncio.create_task(failure(world.pool.pin(now() + 30)))
    await asyncio.sleep(4.9)
    second, read = asyncio.create_task(world.pool.pin(now() + 30)), world.read()
    fault = await first
    assert (fault.kind, now() - began) == (FaultKind.POOL_TIMEOUT, pytest.approx(5.0))
    await asyncio.sleep(0.1)
    await elsewhere.give_back()
    world.pool.release(await second)
    await read
    assert now() - began == pytest.approx(5.1, abs=0.05)
    await world.end()


@virtual
async def test_nobody_waits_for_a_place_for_longer_than_its_own_time() -> None:
    world = World(max_size=1)
    elsewhere = await world.inner.open_lane(now() + 5)
    waited: list[float] = []

    async def wait(pause: float) -> None:
        await asyncio.sleep(pause)
        began = now()
        assert (await failure(world.pool.pin(now() + 30))).kind is FaultKind.POOL_TIMEOUT
        waited.append(now() - began)

    await asyncio.gather(*(wait(pause) for pause in (0.0, 2.0, 4.0, 6.0, 9.0, 13.0)))
    assert waited == [pytest.approx(5.0)] * 6
    await elsewhere.give_back()
    await world.end()
