"""Who is admitted, who waits, who is refused; and that each request is counted once as what it became."""

from __future__ import annotations

import asyncio

import pytest

from router.model.errors import Code, Executed, RouterError
from router.model.events import Outcome, RequestAdmitted, RequestFinished
from router.model.policy import TenantPolicy
from router.model.reasons import RefuseReason
from router.model.request import Method
from router.model.result import Answer
from tests.support.builders import Engine, now
from tests.support.talk import refusal, rest
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
