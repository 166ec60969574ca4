"""Query, Execute, ExecuteBatch, CancelQuery and StreamQuery over a real server and a scripted engine."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from pointsman.v1 import query_service_pb2 as pb
from pointsman.v1 import types_pb2

from router.model.errors import Code, Executed, RouterError
from router.model.events import HandlerFailed
from router.model.reasons import RefuseReason
from router.model.request import CancelOutcome, Method, Request
from router.model.result import Answer, PgNotice, StatementResult
from router.model.topology import Tenant
from tests.api.conftest import AUTH, World, eventually
from tests.api.fake_engine import RECEIPT, answer_of, result_of, rows_of
from tests.api.reading import reason_of


def statement(sql: str) -> types_pb2.Statement:
    return types_pb2.Statement(sql=sql)


async def test_a_query_returns_rows_and_receipt(world: World) -> None:
    answer = Answer([StatementResult(rows_of("a", "b"), "SELECT 2", 2, (PgNotice("NOTICE", "00000", "hm"),))], RECEIPT)

    async def run(tenant: Tenant, request: Request) -> Answer:
        return answer

    world.executor.run_with = run
    response = await world.query.Query(pb.QueryRequest(statement=statement("select 1")), metadata=AUTH)
    assert list(response.result.batch.columns[0].texts) == ["a", "b"]
    assert response.result.schema.columns[0].name == "name"
    assert response.result.notices[0].message == "hm"
    receipt = response.receipt
    assert (receipt.endpoint, receipt.role, receipt.topology) == ("pg1", types_pb2.ENDPOINT_ROLE_REPLICA, 7)
    assert (receipt.attempts, receipt.queued_us, receipt.held_us, receipt.executed_us) == (2, 1000, 500000, 250000)
    assert (receipt.route_reason, receipt.token) == ("balanced", b"token")
    request = world.executor.requests[0]
    assert (request.method, request.steps[0].statement.sql) == (Method.QUERY, b"select 1")
    assert len(request.request_id) == 22
    assert world.executor.tenants == ["acme"]
    assert not world.executor.refusals


async def test_execute_passes_the_callers_ids(world: World) -> None:
    message = pb.ExecuteRequest(statement=statement("insert"), request_id="x" * 16, idempotency_key="key")
    await world.query.Execute(message, metadata=AUTH)
    request = world.executor.requests[0]
    assert (request.method, request.request_id, request.idempotency_key) == (Method.EXECUTE, "x" * 16, "key")


async def test_a_batch_returns_a_result_for_each_step(world: World) -> None:
    async def run(tenant: Tenant, request: Request) -> Answer:
        return Answer([result_of("a"), None, result_of("c")], RECEIPT)

    world.executor.run_with = run
    steps = [
        pb.BatchStep(statement=statement("one"), want_rows=True),
        pb.BatchStep(statement=statement("two"), guard=pb.StepGuard(step=0, no_rows=True, otherwise=2)),
        pb.BatchStep(statement=statement("three")),
    ]
    options = pb.TransactionOptions(isolation=pb.ISOLATION_LEVEL_SERIALIZABLE)
    message = pb.ExecuteBatchRequest(steps=steps, transaction=options)
    response = await world.query.ExecuteBatch(message, metadata=AUTH)
    assert [step.skipped for step in response.steps] == [False, True, False]
    assert list(response.steps[0].result.batch.columns[0].texts) == ["a"]
    assert not response.steps[2].result.HasField("batch")
    assert response.steps[2].result.rows_affected == 1
    request = world.executor.requests[0]
    assert request.mode is not None
    assert request.mode.begin_sql() == b"BEGIN ISOLATION LEVEL SERIALIZABLE READ WRITE"
    assert request.steps[1].guard is not None
    assert request.steps[1].guard.skip


@pytest.mark.parametrize("outcome", CancelOutcome)
async def test_cancel_query_tells_the_outcome(world: World, outcome: CancelOutcome) -> None:
    world.executor.cancel_outcome = outcome
    response = await world.query.CancelQuery(pb.CancelQueryRequest(request_id="abc"), metadata=AUTH)
    assert pb.CancelResult.Name(response.result) == f"CANCEL_RESULT_{outcome.name}"
    assert world.executor.cancels == [("acme", "abc")]


@pytest.mark.parametrize(
    ("rpc_s", "timeout_ms", "expected_s"),
    [(None, 0, 7.0), (None, 2000, 2.0), (None, 60_000, 20.0), (3.0, 0, 2.95), (3.0, 1000, 1.0), (0.2, 0, 0.18)],
)
async def test_the_deadline_is_the_shortest_of_all_wishes(
    world: World, rpc_s: float | None, timeout_ms: int, expected_s: float
) -> None:
    options = types_pb2.QueryOptions(timeout_ms=timeout_ms)
    before = asyncio.get_running_loop().time()
    await world.query.Query(pb.QueryRequest(statement=statement("s"), options=options), metadata=AUTH, timeout=rpc_s)
    took = asyncio.get_running_loop().time() - before
    given = world.executor.requests[0].deadline - before
    assert expected_s - 0.1 <= given <= expected_s + took + 0.01


async def test_a_caller_that_leaves_cancels_its_request(world: World) -> None:
    world.executor.run_with = world.executor.wait_for_gate
    call = world.query.Query(pb.QueryRequest(statement=statement("slow")), metadata=AUTH)
    await eventually(lambda: world.executor.running == 1)
    call.cancel()
    await eventually(lambda: world.executor.running == 0)
    await eventually(lambda: world.server.running == 0)
    assert not world.events.events


async def test_the_rpc_deadline_ends_a_request_that_ignores_its_own(world: World) -> None:
    world.executor.run_with = world.executor.wait_for_gate
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.query.Query(pb.QueryRequest(statement=statement("slow")), metadata=AUTH, timeout=0.2)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await eventually(lambda: world.executor.running == 0)


async def test_a_mistake_of_ours_is_internal_and_tells_nothing(world: World) -> None:
    async def run(tenant: Tenant, request: Request) -> Answer:
        raise KeyError("secret text")

    world.executor.run_with = run
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.query.Execute(pb.ExecuteRequest(statement=statement("s")), metadata=AUTH)
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in str(caught.value)
    assert reason_of(caught.value) == ("INTERNAL", "maybe")
    (event,) = world.events.of(HandlerFailed)
    assert isinstance(event, HandlerFailed)
    assert (event.method, event.error) == ("pointsman.v1.QueryService.Execute", "KeyError")
    assert "test_unary.py" in event.trace
    assert "secret" not in repr(event)


async def test_a_cancellation_from_inside_does_not_leave_the_caller_waiting(world: World) -> None:
    async def run(tenant: Tenant, request: Request) -> Answer:
        raise asyncio.CancelledError

    world.executor.run_with = run
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.query.Execute(pb.ExecuteRequest(statement=statement("s")), metadata=AUTH, timeout=3)
    assert caught.value.code() is grpc.StatusCode.CANCELLED
    assert reason_of(caught.value) == ("CANCELLED", "maybe")


async def test_a_read_too_large_is_refused_and_named_stream(world: World) -> None:
    async def run(tenant: Tenant, request: Request) -> Answer:
        return answer_of("x", "y", "z")

    world.executor.run_with = run
    options = types_pb2.QueryOptions(max_rows=2)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.query.Query(pb.QueryRequest(statement=statement("s"), options=options), metadata=AUTH)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert reason_of(caught.value) == ("RESULT_TOO_LARGE", "rolled_back")
    assert "StreamQuery" in str(caught.value.details())
    assert "3 rows, the limit is 2" in str(caught.value.details())


async def test_a_write_too_large_is_done_and_cut_off(world: World) -> None:
    async def run(tenant: Tenant, request: Request) -> Answer:
        return answer_of(*("x" * 100 for _ in range(1000)), tag="INSERT 0")

    world.executor.run_with = run
    for options in (types_pb2.QueryOptions(max_bytes=5000), types_pb2.QueryOptions(max_rows=40)):
        message = pb.ExecuteRequest(statement=statement("s"), options=options)
        response = await world.query.Execute(message, metadata=AUTH)
        assert response.result.truncated
        assert response.result.rows_affected == 1000
        rows = response.result.batch.row_count
        assert rows == len(response.result.batch.columns[0].texts)
        assert 30 <= rows <= 50
        assert response.result.batch.ByteSize() <= 5000


async def test_a_stream_sends_schema_rows_and_end(world: World) -> None:
    end = Answer([StatementResult(None, "SELECT 3", 3)], RECEIPT)
    world.executor.stream_items = [rows_of("a", "b"), rows_of("c"), end]
    message = pb.StreamQueryRequest(statement=statement("s"))
    got = [response async for response in world.query.StreamQuery(message, metadata=AUTH)]
    assert [list(response.batch.columns[0].texts) for response in got[:-1]] == [["a", "b"], ["c"]]
    assert [response.HasField("schema") for response in got] == [True, False, False]
    assert [response.HasField("end") for response in got] == [False, False, True]
    assert (got[-1].end.command_tag, got[-1].end.rows, got[-1].end.receipt.endpoint) == ("SELECT 3", 3, "pg1")
    assert world.executor.requests[0].method is Method.STREAM_QUERY


async def test_a_stream_without_rows_still_has_columns(world: World) -> None:
    world.executor.stream_items = [Answer([StatementResult(rows_of(), "SELECT 0", 0)], RECEIPT)]
    message = pb.StreamQueryRequest(statement=statement("s"))
    (only,) = [response async for response in world.query.StreamQuery(message, metadata=AUTH)]
    assert only.schema.columns[0].name == "name"
    assert only.end.rows == 0


async def test_a_large_chunk_is_split_into_messages_of_64_kib(world: World) -> None:
    texts = [f"{number:05}" + "x" * 995 for number in range(500)]
    world.executor.stream_items = [rows_of(*texts), Answer([StatementResult(None, "SELECT 500", 500)], RECEIPT)]
    message = pb.StreamQueryRequest(statement=statement("s"))
    got = [response async for response in world.query.StreamQuery(message, metadata=AUTH)]
    assert [text for response in got[:-1] for text in response.batch.columns[0].texts] == texts
    assert all(response.ByteSize() < 100_000 for response in got)


async def test_a_stream_that_fails_midway_ends_with_the_error(world: World) -> None:
    error = RouterError(Code.UNAVAILABLE, RefuseReason.BACKEND_LOST, "lost", executed=Executed.ROLLED_BACK)
    world.executor.stream_items = [rows_of("a"), error]
    call = world.query.StreamQuery(pb.StreamQueryRequest(statement=statement("s")), metadata=AUTH)
    first = await call.read()
    assert list(first.batch.columns[0].texts) == ["a"]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert reason_of(caught.value) == ("BACKEND_LOST", "rolled_back")


async def test_a_reader_that_leaves_closes_the_stream(world: World) -> None:
    world.executor.stream_items = [rows_of(*("x" * 1000 for _ in range(200))) for _ in range(200)]
    call = world.query.StreamQuery(pb.StreamQueryRequest(statement=statement("s")), metadata=AUTH)
    await call.read()
    call.cancel()
    await eventually(lambda: world.executor.streams_closed == 1)
    await eventually(lambda: world.server.running == 0)
    assert not world.events.events
