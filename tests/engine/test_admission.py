"""Who is admitted, who waits, who is refused; and that each request is counted once as what it became."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from router.model.errors import Code, Executed, RouterError
from router.model.events import Outcome, RequestAdmitted, RequestFinished
from router.model.policy import TenantPolicy
from router.model.reasons import RefuseReason
from router.model.request import Method, Options, Priority
from router.model.result import Answer
from tests.support.builders import Engine, now, request
from tests.support.sweeping import Sweep, sweep
from tests.support.talk import Talk, refusal, rest
from tests.support.virtual_time import settle, virtual

# --- admission -----------------------------------------------------------------------------------------------------


@virtual
async def test_admission_bounds_what_runs_and_what_waits() -> None:
    engine = Engine(policy=TenantPolicy(max_in_flight=2, max_queue=3))
    running = [engine.start(engine.run(Method.EXECUTE, "select pg_sleep(1)")) for _ in range(5)]
    await settle()
    error = await refusal(engine.run(Method.EXECUTE, "insert a"))
    assert (error.code, error.reason) == (Code.RESOURCE_EXHAUSTED, RefuseReason.QUEUE_FULL)
    assert (error.numbers["limit"], error.numbers["in_use"], error.numbers["waiting"]) == (2, 2, 3)
    answers = await asyncio.gather(*running)
    assert [round(one.receipt.queued_s, 1) for one in answers] == [0, 0, 1, 1, 2]
    await rest(engine)


@virtual
async def test_who_waits_for_admission_is_told_by_the_deadline() -> None:
    engine = Engine(policy=TenantPolicy(max_in_flight=1))
    running = engine.start(engine.run(Method.EXECUTE, "select pg_sleep(1)"))
    await settle()
    before = now()
    error = await refusal(engine.run(Method.EXECUTE, "insert a", timeout=0.3))
    assert (error.reason, now() - before) == (RefuseReason.QUOTA, pytest.approx(0.3))
    await running
    await rest(engine)


@virtual
async def test_a_changed_configuration_keeps_the_counts() -> None:
    engine = Engine(policy=TenantPolicy(max_in_flight=1))
    running = engine.start(engine.run(Method.EXECUTE, "select pg_sleep(1)"))
    await settle()
    from dataclasses import replace

    engine.tenant = replace(engine.tenant, policy=TenantPolicy(max_in_flight=2))
    await engine.run(Method.EXECUTE, "insert a")
    assert engine.runtime.admission.in_flight == 1
    await running
    await rest(engine)


@virtual
async def test_draining_refuses_what_is_new_and_finishes_what_runs() -> None:
    engine = Engine()
    running = engine.start(engine.run(Method.EXECUTE, "select pg_sleep(1)"))
    await settle()
    engine.executor.drain()
    error = await refusal(engine.run(Method.QUERY, "select 1"))
    assert (error.code, error.reason, error.executed) == (Code.UNAVAILABLE, RefuseReason.DRAINING, Executed.NO)
    assert (await refusal(engine.stream("select 1"))).reason is RefuseReason.DRAINING
    assert engine.executor.under_way == 1
    assert isinstance(await running, Answer)
    await rest(engine)


@virtual
async def test_statements_of_another_kind_are_refused_before_anything_happens() -> None:
    engine = Engine()
    assert (await refusal(engine.run(Method.EXECUTE, "begin"))).reason is RefuseReason.TRANSACTION_CONTROL
    assert engine.inner_pools() == []
    await rest(engine)


@virtual
async def test_every_request_is_counted_once_as_what_it_became() -> None:
    engine = Engine(policy=TenantPolicy(max_in_flight=1, max_queue=1))
    await engine.run(Method.QUERY, "select 1")
    await refusal(engine.run(Method.QUERY, "select 1/0"))
    one = engine.start(engine.run(Method.EXECUTE, "select pg_sleep(1)"))
    two = engine.start(engine.stream("select pg_sleep(1)"))
    await settle()
    await refusal(engine.run(Method.QUERY, "select 1"))
    one.cancel()
    await asyncio.wait({one})
    await two
    engine.executor.refused(engine.tenant.name, Method.QUERY, RouterError(Code.INTERNAL, RefuseReason.INTERNAL, ""))
    counts = engine.register.counts(engine.tenant.name)
    assert counts == {Outcome.SERVED: 2, Outcome.FAILED: 1, Outcome.CANCELLED: 1, Outcome.REFUSED: 2}
    finished = [event for event in engine.events.of(RequestFinished) if event.outcome is not Outcome.REFUSED]
    assert len(engine.events.of(RequestAdmitted)) == len(finished) == 4
    await rest(engine)


# --- overload ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("times", [2, 10])
@virtual
async def test_an_overloaded_tenant_is_served_at_capacity_and_the_rest_is_refused_at_once(times: int) -> None:
    """Two at a time of a tenth of a second each are 20 a second; each caller can wait for one second."""
    engine = Engine(policy=TenantPolicy(max_in_flight=2))
    offered = 20 * times
    served: list[float] = []
    late: list[float] = []
    codes: set[Code] = set()
    refused: dict[float, RouterError] = {}

    async def call() -> None:
        began = now()
        try:
            await engine.run(Method.EXECUTE, "select pg_sleep(0.1)", timeout=1.0)
            served.append(now())
        except RouterError as error:
            codes.add(error.code)
            if now() == began:
                refused[began] = error
            else:
                late.append(began)

    begins = now()
    async with asyncio.TaskGroup() as group:
        for _ in range(10 * offered):
            group.create_task(call())
            await asyncio.sleep(1 / offered)
    goodput = sum(1 for at in served if begins + 2.0 <= at < begins + 10.0) / 8.0
    assert goodput >= 0.9 * 20, (goodput, len(served), len(late), len(refused))
    assert all(began < begins + 2.0 for began in late), "only before the pace is known is anybody refused later"
    assert codes == {Code.RESOURCE_EXHAUSTED}, "nothing is begun that is not finished"
    last = refused[max(refused)]
    assert last.reason is RefuseReason.HOPELESS_DEADLINE
    assert last.retry_after_s == pytest.approx(1.0, abs=0.4), "when those who wait have been served"
    assert "limit" in last.numbers
    await rest(engine)


@virtual
async def test_a_queue_that_was_empty_for_a_while_did_not_stand_still() -> None:
    """Its pace is known from before; the time without anybody in it says nothing about those who come now."""
    engine = Engine(policy=TenantPolicy(max_in_flight=2))
    await asyncio.gather(*(engine.run(Method.EXECUTE, "select pg_sleep(0.1)", timeout=9.0) for _ in range(40)))
    for pause_s in (2.0, 60.0):
        await asyncio.sleep(pause_s)
        await asyncio.gather(*(engine.run(Method.EXECUTE, "select pg_sleep(0.1)", timeout=5.0) for _ in range(4)))
    await rest(engine)


@virtual
async def test_a_pace_of_bad_times_is_forgotten_though_nobody_is_let_into_the_queue_by_it() -> None:
    engine = Engine(policy=TenantPolicy(max_in_flight=2))
    await asyncio.gather(*(engine.run(Method.EXECUTE, "select pg_sleep(2)", timeout=90.0) for _ in range(40)))
    running = [engine.start(engine.run(Method.EXECUTE, "select pg_sleep(30)", timeout=90.0)) for _ in range(2)]
    refused = 0
    for _ in range(12):
        await asyncio.sleep(1.0)
        try:
            await engine.run(Method.EXECUTE, "select pg_sleep(0.1)", timeout=2.0)
        except RouterError as error:
            refused += error.reason is RefuseReason.HOPELESS_DEADLINE
    assert 5 <= refused < 12
    await asyncio.gather(*running)
    await rest(engine)


def nothing() -> None:
    """It has ended."""


async def _listens(engine: Engine) -> Callable[[], object]:
    return (await engine.listeners.open(engine.tenant, request(Method.LISTEN), ("jobs",))).close


async def _transacts(engine: Engine) -> Callable[[], object]:
    return (await Talk.begin(engine)).session.close


async def _copies_out(engine: Engine) -> Callable[[], object]:
    await engine.copy_out("copy t to stdout")
    return nothing


async def _copies_in(engine: Engine) -> Callable[[], object]:
    async def data() -> AsyncIterator[bytes]:
        yield b"1\n"

    await engine.copy_in("copy t from stdin", data())
    return nothing


def _ends(call: Callable[[Engine], Awaitable[object]]) -> Callable[[Engine], Awaitable[Callable[[], object]]]:
    async def begin(engine: Engine) -> Callable[[], object]:
        await call(engine)
        return nothing

    return begin


RATED: dict[str, Callable[[Engine], Awaitable[Callable[[], object]]]] = {
    "query": _ends(lambda engine: engine.run(Method.QUERY, "select 1")),
    "quick read": _ends(lambda engine: engine.quick_read("select 1")),
    "stream": _ends(lambda engine: engine.stream("select 1")),
    "execute": _ends(lambda engine: engine.run(Method.EXECUTE, "insert a")),
    "batch": _ends(lambda engine: engine.run(Method.EXECUTE_BATCH, "insert a", "insert b", "insert c")),
    "copy out": _copies_out,
    "copy in": _copies_in,
    "outcome of a key": _ends(lambda engine: engine.outcomes.of_key(engine.tenant, "k", now() + 5, "")),
    "outcome of a request": _ends(lambda engine: engine.outcomes.of_request(engine.tenant, "an-id", now() + 5)),
    "transact": _transacts,
    "listen": _listens,
}


@virtual
async def test_more_requests_a_second_than_a_tenant_may_send_are_refused_at_once() -> None:
    engine = Engine(policy=TenantPolicy(rate_per_s=10.0, rate_burst=3))
    for _ in range(3):
        await engine.run(Method.QUERY, "select 1")
    error = await refusal(engine.run(Method.QUERY, "select 1"))
    assert (error.code, error.reason) == (Code.RESOURCE_EXHAUSTED, RefuseReason.QUOTA)
    assert "10 requests a second (limits.rate_per_s) and 3 at once (limits.rate_burst)" in error.message
    assert error.retry_after_s is not None
    await asyncio.sleep(error.retry_after_s)
    await engine.run(Method.QUERY, "select 1")
    await rest(engine)


@pytest.mark.parametrize("kind", RATED)
@virtual
async def test_whatever_a_tenant_starts_counts_once_against_its_rate(kind: str) -> None:
    engine = Engine(policy=TenantPolicy(rate_per_s=2.0, rate_burst=3, max_transactions=9, max_listeners=9))
    ends: list[Callable[[], object]] = []
    for _ in range(3):
        ends.append(await RATED[kind](engine))
    error = await refusal(RATED[kind](engine))
    assert (error.code, error.reason) == (Code.RESOURCE_EXHAUSTED, RefuseReason.QUOTA)
    assert "limits.rate_per_s" in error.message
    assert error.retry_after_s == pytest.approx(0.5, abs=0.05), "when there is one more"
    assert (await refusal(RATED["execute"](engine))).message == error.message, "all of one rate"
    assert engine.runtime.under_way == sum(one is not nothing for one in ends), "the refused one is not there"
    await asyncio.sleep(error.retry_after_s)
    ends.append(await RATED[kind](engine))
    for end in ends:
        if (ending := end()) is not None:
            await ending  # type: ignore[misc]
    await asyncio.sleep(5)
    await rest(engine)


@virtual
async def test_what_is_refused_for_another_reason_does_not_count_against_the_rate() -> None:
    policy = TenantPolicy(rate_per_s=1.0, rate_burst=3, max_transactions=1, max_listeners=1, max_channels=1)
    engine = Engine(policy=policy)
    ends = [await RATED["transact"](engine), await RATED["listen"](engine)]
    for _ in range(3):
        assert "max_transactions" in (await refusal(RATED["transact"](engine))).message
        assert "max_listeners" in (await refusal(RATED["listen"](engine))).message
        assert (await refusal(engine.run(Method.EXECUTE, "begin"))).reason is RefuseReason.TRANSACTION_CONTROL
    await engine.run(Method.EXECUTE, "insert a")
    for end in ends:
        if (ending := end()) is not None:
            await ending  # type: ignore[misc]
    await asyncio.sleep(5)
    await rest(engine)


# --- priorities ----------------------------------------------------------------------------------------------------


def of(priority: Priority) -> Options:
    return Options(priority=priority)


@virtual
async def test_the_more_important_go_first_and_among_equals_who_came_first() -> None:
    engine = Engine(policy=TenantPolicy(max_in_flight=1))
    order: list[str] = []

    async def call(name: str, priority: Priority) -> None:
        await engine.run(Method.EXECUTE, "select pg_sleep(0.1)", options=of(priority))
        order.append(name)

    names = {"first": Priority.MEDIUM, "low 1": Priority.LOW, "medium 1": Priority.MEDIUM, "high 1": Priority.HIGH,
             "low 2": Priority.LOW, "medium 2": Priority.MEDIUM, "high 2": Priority.HIGH}
    await asyncio.gather(*(call(name, priority) for name, priority in names.items()))
    assert order == ["first", "high 1", "high 2", "medium 1", "medium 2", "low 1", "low 2"]
    await rest(engine)


@virtual
async def test_in_a_full_queue_the_least_important_that_came_last_makes_room() -> None:
    engine = Engine(policy=TenantPolicy(max_in_flight=1, max_queue=3))
    names = [Priority.MEDIUM, Priority.LOW, Priority.LOW, Priority.MEDIUM]
    calls = [
        engine.start(engine.run(Method.EXECUTE, "select pg_sleep(0.1)", options=of(priority))) for priority in names
    ]
    await settle()
    assert (await refusal(engine.run(Method.EXECUTE, "insert a", options=of(Priority.LOW)))).reason is (
        RefuseReason.QUEUE_FULL
    )
    high = engine.start(engine.run(Method.EXECUTE, "insert a", options=of(Priority.HIGH)))
    await settle()
    assert engine.runtime.admission.queued == 3
    answers = await asyncio.gather(*calls, high, return_exceptions=True)
    assert [isinstance(one, RouterError) for one in answers] == [False, False, True, False, False]
    assert isinstance(answers[2], RouterError)
    assert answers[2].reason is RefuseReason.QUEUE_FULL
    assert (engine.runtime.admission.queued, engine.runtime.admission.in_flight) == (0, 0)
    await rest(engine)


def test_leaving_while_waiting_loses_no_place() -> None:
    async def story(cancel: Sweep) -> None:
        engine = Engine(policy=TenantPolicy(max_in_flight=1))
        first = engine.start(engine.run(Method.EXECUTE, "select pg_sleep(0.1)"))
        await settle()
        behind = engine.start(engine.run(Method.EXECUTE, "insert a", options=of(Priority.LOW)))
        await cancel.act(engine.run(Method.EXECUTE, "insert a", options=of(Priority.HIGH)))
        await asyncio.gather(first, behind)
        await rest(engine)
        assert (engine.runtime.admission.queued, engine.runtime.admission.in_flight) == (0, 0)

    assert sweep(story) > 2
