"""One request's whole way: what is repeated, what never is, and who is told."""

from __future__ import annotations

import asyncio

import pytest

from router.model.errors import Code, Executed
from router.model.events import AttemptRetried
from router.model.observation import FaultKind, Stage
from router.model.policy import RetryPolicy, TenantPolicy
from router.model.reasons import RefuseReason, RetryReason, RouteReason
from router.model.request import Fallback, Guard, GuardNeed, Method, OnFailover, Options, ReadFrom
from tests.support.builders import Engine, now
from tests.support.fake_replies import Lost, Reply
from tests.support.talk import refusal, rest
from tests.support.virtual_time import virtual

ANY = Options(read=ReadFrom.ANY)
REPLICA = Options(read=ReadFrom.REPLICA, fallback=Fallback.FAIL)


# --- what is repeated ----------------------------------------------------------------------------------------------


@virtual
async def test_a_read_that_loses_its_server_is_answered_by_another() -> None:
    engine = Engine("a", "b", "c")
    losses = [Reply(lost=Lost.BEFORE), Reply(lost=Lost.BEFORE)]
    for server in engine.servers.values():
        server.script[b"select 1"] = losses
    answer = await engine.run(Method.QUERY, "select 1", options=ANY)
    assert answer.receipt.attempts == 3
    assert [one.reason for one in engine.events.of(AttemptRetried)] == [RetryReason.READ_LOST] * 2
    told = [fault.endpoint for fault in engine.supervisor.faults]
    assert sorted([*told, answer.receipt.endpoint]) == ["a", "b", "c"], "each is asked once, each loss is told once"
    await rest(engine)


@virtual
async def test_a_write_that_could_not_be_sent_waits_for_the_new_primary() -> None:
    engine = Engine()
    engine.server().connect_error = "refused"
    engine.supervisor.on_fault = lambda _: engine.supervisor.lose_primary()
    asyncio.get_running_loop().call_later(1.0, engine.supervisor.promote, "b")
    answer = await engine.run(Method.EXECUTE, "insert a")
    assert answer.receipt.endpoint == "b"
    assert 0.9 < answer.receipt.held_s < 1.1
    assert engine.server("b").committed == [b"insert a"]
    (fault,) = engine.supervisor.faults
    assert (fault.kind, fault.stage, fault.endpoint) == (FaultKind.CONNECT_REFUSED, Stage.CONNECT, "a")
    await rest(engine)


@virtual
async def test_who_waits_for_a_drained_primary_is_told_so_and_how_long_it_has_waited() -> None:
    engine = Engine()
    engine.supervisor.drain("a")
    error = await refusal(engine.run(Method.EXECUTE, "insert a"))
    assert "the primary is draining, until `pointsman resume a` (waited 5.0 s, until the deadline)" in error.message
    assert error.reason is RefuseReason.HOLD_WINDOW


@pytest.mark.parametrize("lost", Lost)
@virtual
async def test_a_write_caught_in_flight_is_never_sent_twice(lost: Lost) -> None:
    engine = Engine()
    engine.server().script[b"insert a"] = [Reply(lost=lost, effect=True)]
    error = await refusal(engine.run(Method.EXECUTE, "insert a"))
    assert (error.code, error.reason, error.executed) == (Code.UNKNOWN, RefuseReason.OUTCOME_UNKNOWN, Executed.MAYBE)
    assert engine.server().seen.count(b"insert a") + engine.server("b").seen.count(b"insert a") == 1
    (fault,) = engine.supervisor.faults
    assert (fault.kind, fault.stage) == (FaultKind.CONNECTION_LOST, Stage.COMMIT)
    assert error.numbers["endpoint"] == "a"
    await rest(engine)


@virtual
async def test_a_batch_lost_before_its_commit_is_done_once() -> None:
    engine = Engine()
    engine.server().script[b"insert b"] = [Reply(lost=Lost.BEFORE)]
    answer = await engine.run(Method.EXECUTE_BATCH, "insert a", "insert b")
    assert answer.receipt.attempts == 2
    assert engine.server().committed == [b"insert a", b"insert b"]
    (retried,) = engine.events.of(AttemptRetried)
    assert retried.reason is RetryReason.ROLLED_BACK
    await rest(engine)


@pytest.mark.parametrize("lost", Lost)
@virtual
async def test_a_batch_lost_at_its_commit_is_answered_honestly(lost: Lost) -> None:
    engine = Engine()
    engine.server().script[b"COMMIT"] = [Reply(lost=lost)]
    error = await refusal(engine.run(Method.EXECUTE_BATCH, "insert a"))
    assert (error.reason, error.executed) == (RefuseReason.OUTCOME_UNKNOWN, Executed.MAYBE)
    assert engine.server().seen.count(b"insert a") == 1
    assert engine.server().committed == ([b"insert a"] if lost is Lost.AFTER else [])
    await rest(engine)


@virtual
async def test_a_commit_that_the_standby_did_not_confirm_is_not_called_done() -> None:
    engine = Engine()
    engine.server().script[b"COMMIT"] = [Reply(local_commit=True)]
    error = await refusal(engine.run(Method.EXECUTE_BATCH, "insert a"))
    assert (error.reason, error.executed) == (RefuseReason.OUTCOME_UNKNOWN, Executed.MAYBE)
    engine.server().script[b"insert b"] = [Reply(local_commit=True, effect=True)]
    error = await refusal(engine.run(Method.EXECUTE, "insert b"))
    assert (error.reason, error.executed) == (RefuseReason.OUTCOME_UNKNOWN, Executed.MAYBE)
    await rest(engine)


@virtual
async def test_a_batch_that_met_another_transaction_is_repeated_up_to_max_attempts() -> None:
    engine = Engine(policy=TenantPolicy(max_attempts=3))
    engine.server().script[b"insert a"] = [Reply(error="40001"), Reply(error="40P01")]
    answer = await engine.run(Method.EXECUTE_BATCH, "insert a")
    assert answer.receipt.attempts == 3
    engine.server().script[b"insert a"] = Reply(error="40001")
    error = await refusal(engine.run(Method.EXECUTE_BATCH, "insert a"))
    assert (error.reason, error.executed) == (RefuseReason.SERIALIZATION, Executed.ROLLED_BACK)
    assert error.numbers["attempts"] == 3
    assert engine.server().committed == [b"insert a"]
    assert engine.supervisor.faults == []
    await rest(engine)


@pytest.mark.parametrize("method", [Method.QUERY, Method.EXECUTE, Method.EXECUTE_BATCH])
@virtual
async def test_a_stale_prepared_statement_is_not_the_callers_problem(method: Method) -> None:
    engine = Engine()
    engine.server().script[b"select 1"] = [Reply(error="0A000", stale=True)]
    answer = await engine.run(method, "select 1")
    assert answer.receipt.attempts == 2
    await rest(engine)


@virtual
async def test_an_error_of_the_statement_is_the_callers_at_once() -> None:
    engine = Engine()
    for method in (Method.QUERY, Method.EXECUTE, Method.EXECUTE_BATCH):
        error = await refusal(engine.run(method, "select 1/0"))
        assert (error.reason, error.executed) == (RefuseReason.BAD_DATA, Executed.ROLLED_BACK)
        assert error.pg is not None
        assert error.pg.sqlstate == "22012"
    assert engine.server().seen.count(b"select 1/0") == 3
    await rest(engine)


@virtual
async def test_what_may_have_committed_on_its_way_is_not_repeated_unless_it_is_framed() -> None:
    engine = Engine()
    engine.server().script[b"call p()"] = Reply(error="40P01")
    error = await refusal(engine.run(Method.EXECUTE, "call p()"))
    assert (error.code, error.reason, error.executed) == (Code.UNKNOWN, RefuseReason.OUTCOME_UNKNOWN, Executed.MAYBE)
    assert engine.server().seen.count(b"call p()") == 1
    assert error.numbers["sqlstate"] == "40P01"
    error = await refusal(engine.run(Method.EXECUTE_BATCH, "call p()"))
    assert (error.reason, error.executed) == (RefuseReason.DEADLOCK, Executed.ROLLED_BACK), "COMMIT fails in there"
    assert engine.server().seen.count(b"call p()") > 2
    await rest(engine)


@virtual
async def test_the_budget_bounds_repeats_in_an_outage() -> None:
    engine = Engine("a", retry=RetryPolicy(budget_least=5, budget_ratio=0.1))
    engine.server().script[b"insert a"] = Reply(error="40001")
    for _ in range(100):
        await refusal(engine.run(Method.EXECUTE_BATCH, "insert a"))
    assert engine.server().seen.count(b"insert a") <= 100 + 10
    await rest(engine)


@virtual
async def test_no_repeat_starts_within_the_reserve_of_the_deadline() -> None:
    engine = Engine("a", retry=RetryPolicy(reserve_s=0.1, backoff_s=1.0))
    starts: list[float] = []

    def conflict(_: object) -> Reply:
        starts.append(now())  # that is: after connecting and BEGIN
        return Reply(takes=0.03, error="40001")

    engine.server().script[b"insert a"] = conflict
    for timeout in (0.11, 0.15, 0.2, 0.3, 0.5):
        starts.clear()
        deadline = now() + timeout
        await refusal(engine.run(Method.EXECUTE_BATCH, "insert a", timeout=timeout))
        assert now() <= deadline + 0.1
        assert all(one <= deadline - 0.1 + 0.007 for one in starts[1:]), (timeout, starts)
    await rest(engine)


@virtual
async def test_what_was_never_sent_is_repeated_until_the_deadline_and_costs_no_budget() -> None:
    engine = Engine("a", retry=RetryPolicy(budget_least=1, budget_ratio=0))
    engine.server().connect_error = "refused"
    asyncio.get_running_loop().call_later(1.0, setattr, engine.server(), "connect_error", None)
    answer = await engine.run(Method.EXECUTE, "insert a")
    assert answer.receipt.attempts > 5
    assert engine.runtime.budget.take(now())
    await rest(engine)


# --- routes and batches --------------------------------------------------------------------------------------------


@virtual
async def test_reads_go_where_they_ask_to_go() -> None:
    engine = Engine("a", "b")
    assert (await engine.run(Method.QUERY, "select 1")).receipt.endpoint == "a"
    replica = await engine.run(Method.QUERY, "select 1", options=REPLICA)
    assert (replica.receipt.endpoint, replica.receipt.route_reason) == ("b", RouteReason.ONLY_ONE)
    assert {(await engine.run(Method.QUERY, "select 1", options=ANY)).receipt.endpoint for _ in range(4)} == {"a", "b"}
    await rest(engine)


@virtual
async def test_fail_fast_neither_waits_for_a_primary_nor_behind_those_who_do() -> None:
    engine = Engine()
    fast = Options(on_failover=OnFailover.FAIL_FAST)
    engine.supervisor.lose_primary()
    before = now()
    error = await refusal(engine.run(Method.EXECUTE, "insert a", options=fast))
    assert (error.reason, now() - before) == (RefuseReason.NO_BACKEND, 0)
    held = [engine.start(engine.run(Method.EXECUTE, "insert held")) for _ in range(30)]
    await asyncio.sleep(0.1)
    engine.supervisor.promote("b")
    assert (await engine.run(Method.EXECUTE, "insert a", options=fast)).receipt.held_s == 0
    assert engine.room.held > 0
    await asyncio.gather(*held)
    await rest(engine)


@virtual
async def test_guards_skip_steps_or_undo_the_batch_and_steps_keep_their_numbers() -> None:
    engine = Engine()
    engine.server().script[b"update none"] = Reply(affected=0, effect=True, tag="UPDATE 0")
    skip = Guard(0, GuardNeed.ROWS_AT_LEAST, 1, skip=True)
    answer = await engine.run(Method.EXECUTE_BATCH, "update none", "insert b", "insert c", guards={1: skip})
    assert [one is None for one in answer.results] == [False, True, False]
    assert engine.server().committed == [b"update none", b"insert c"]
    error = await refusal(
        engine.run(Method.EXECUTE_BATCH, "update none", "insert b", "select 1/0", guards={1: skip})
    )
    assert error.numbers["step"] == 2
    must = Guard(0, GuardNeed.ROWS_AFFECTED_EQUALS, 1)
    error = await refusal(engine.run(Method.EXECUTE_BATCH, "update none", "insert b", guards={1: must}))
    assert (error.reason, error.executed) == (RefuseReason.GUARD_FAILED, Executed.ROLLED_BACK)
    assert engine.server().committed == [b"update none", b"insert c"]
    await rest(engine)


@pytest.mark.parametrize("looks_at", [-1, 1, 2, 9])
@virtual
async def test_a_guard_that_looks_at_no_earlier_step_is_refused(looks_at: int) -> None:
    engine = Engine()
    guard = Guard(looks_at, GuardNeed.NO_ROWS)
    error = await refusal(engine.run(Method.EXECUTE_BATCH, "insert a", "insert b", guards={1: guard}))
    assert error.reason is RefuseReason.BAD_REQUEST
    assert engine.server().seen == []
    await rest(engine)
