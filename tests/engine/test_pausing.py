"""A paused tenant: who waits, for how long, who is refused, and what a resume and a removal do."""

from __future__ import annotations

from dataclasses import replace

import pytest

from router.model.errors import Code, Executed, RouterError
from router.model.policy import HoldPolicy, TenantPolicy
from router.model.reasons import RefuseReason
from router.model.request import Method, OnFailover, Options, TransactionMode
from router.model.topology import TenantChanges
from tests.support.builders import Engine, now
from tests.support.talk import Talk, refusal, rest
from tests.support.virtual_time import settle, virtual

IMPATIENT = Options(on_failover=OnFailover.FAIL_FAST)


def change(engine: Engine, *, paused: bool) -> None:
    """As a data plane does, while callers still come with the tenant that they were admitted as."""
    engine.take(TenantChanges((replace(engine.tenant, paused=paused),)))


@virtual
async def test_new_requests_wait_until_it_is_resumed_and_what_runs_goes_on() -> None:
    engine = Engine(policy=TenantPolicy(max_in_flight=2))
    running = engine.start(engine.run(Method.EXECUTE, "select pg_sleep(1)"))
    await settle()
    change(engine, paused=True)
    waiting = [engine.start(engine.run(method, "select 1")) for method in (Method.QUERY, Method.EXECUTE, Method.QUERY)]
    began = now()
    assert (await running).results
    await settle()
    assert [one.done() for one in waiting] == [False] * 3
    assert engine.runtime.pause.waiting == 3
    change(engine, paused=False)
    for one in waiting:
        assert (await one).receipt.queued_s == pytest.approx(now() - began, abs=0.1)
    assert engine.runtime.admission.in_flight == 0
    await rest(engine)


@virtual
async def test_nobody_waits_longer_than_for_a_failover_or_its_deadline_and_who_will_not_wait_is_refused() -> None:
    engine = Engine()
    await engine.run(Method.EXECUTE, "insert a")
    change(engine, paused=True)
    for timeout, waited in ((0.3, 0.3), (60, HoldPolicy.window_s)):
        began = now()
        error = await refusal(engine.run(Method.EXECUTE, "insert a", timeout=timeout))
        assert (error.code, error.reason, error.executed) == (
            Code.UNAVAILABLE, RefuseReason.TENANT_PAUSED, Executed.NO)
        assert error.retry_after_s
        assert now() - began == pytest.approx(waited)
    began = now()
    error = await refusal(engine.run(Method.QUERY, "select 1", options=IMPATIENT))
    assert (error.reason, now() - began) == (RefuseReason.TENANT_PAUSED, 0)
    assert engine.runtime.pause.waiting == 0
    await rest(engine)


@virtual
async def test_the_queue_of_a_paused_tenant_is_bounded() -> None:
    engine = Engine(policy=TenantPolicy(max_queue=2))
    await engine.run(Method.EXECUTE, "insert a")
    change(engine, paused=True)
    waiting = [engine.start(engine.run(Method.EXECUTE, "insert a")) for _ in range(2)]
    await settle()
    assert (await refusal(engine.run(Method.EXECUTE, "insert a"))).reason is RefuseReason.QUEUE_FULL
    change(engine, paused=False)
    for one in waiting:
        await one
    await rest(engine)


@virtual
async def test_a_removed_tenants_waiters_are_told_at_once() -> None:
    engine = Engine()
    await engine.run(Method.EXECUTE, "insert a")
    change(engine, paused=True)
    waiting = engine.start(engine.run(Method.EXECUTE, "insert a"))
    await settle()
    began = now()
    engine.take(TenantChanges(removed=(engine.tenant.name,)))
    assert (await refusal(waiting)).reason is RefuseReason.TENANT_PAUSED
    assert now() == began
    await rest(engine)


@virtual
async def test_a_transaction_waits_to_begin_and_an_open_one_goes_on() -> None:
    engine = Engine()
    open_one = await Talk.begin(engine)
    change(engine, paused=True)
    began = now()
    waiting = engine.start(Talk.begin(engine))
    await settle()
    assert not waiting.done()
    await open_one.run("insert a")
    await open_one.commit()
    await open_one.session.close()
    change(engine, paused=False)
    late = await waiting
    await late.session.close()
    change(engine, paused=True)
    with pytest.raises(RouterError) as refused:
        await engine.sessions.open(engine.tenant, TransactionMode(), IMPATIENT, began + 5, "r")
    assert refused.value.reason is RefuseReason.TENANT_PAUSED
    await rest(engine)


@virtual
async def test_a_caller_of_before_brings_no_former_tenant_back() -> None:
    """Its limits, and its password, were replaced while the call was on its way."""
    engine = Engine()
    await engine.run(Method.EXECUTE, "insert a")
    fresh = replace(engine.tenant, login=replace(engine.tenant.login, user="other"))
    engine.take(TenantChanges((fresh,)))
    await engine.run(Method.EXECUTE, "insert a")
    assert engine.runtime.tenant is fresh
    assert len(engine.inner_pools()) == 2
    engine.tenant = fresh
    await engine.run(Method.EXECUTE, "insert a")
    assert len(engine.inner_pools()) == 2
    await rest(engine)
