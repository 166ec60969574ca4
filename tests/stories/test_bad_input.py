"""Bad input of callers: each mistake gets its documented error, and the neighbour notices nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pointsman
import pytest
from pointsman import Executed
from pointsman.v1 import query_service_pb2 as pb

from router.devcluster import DevCluster
from tests.stories.conftest import Neighbour
from tests.support.eventually import until_gone, until_running
from tests.support.running_router import RunningRouter

pytestmark = [pytest.mark.pg, pytest.mark.usefixtures("neighbour")]

Client = pointsman.Client
Code = grpc.StatusCode


async def failure(answer: Awaitable[object]) -> pointsman.Error:
    with pytest.raises(pointsman.Error) as caught:
        await answer
    return caught.value


async def works(db: Client) -> None:
    """Reads and writes go on, on whatever connections the mistake left behind."""
    for _ in range(3):
        assert await db.query_value("select 40 + $1::int", 2, timeout=5) == 42
        assert (await db.execute("update accounts set score = score where id = $1", 2, timeout=5)).rowcount == 1


# --- who calls ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tenant", "token", "kind", "code"),
    [
        ("nobody", "token-of-acme-in-tests", pointsman.PermissionDenied, Code.PERMISSION_DENIED),
        ("globex", "token-of-acme-in-tests", pointsman.PermissionDenied, Code.PERMISSION_DENIED),
        ("acme", "made-up", pointsman.Unauthenticated, Code.UNAUTHENTICATED),
        ("acme", None, pointsman.Unauthenticated, Code.UNAUTHENTICATED),
        ("acme", "operator-token-of-the-tests", pointsman.Unauthenticated, Code.UNAUTHENTICATED),
    ],
)
async def test_whoever_does_not_prove_a_tenant_is_told_so(
    router: RunningRouter, tenant: str, token: str | None, kind: type, code: Code
) -> None:
    async with router.connect(tenant, token=token, timeout=5) as db:
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: db.query("select 1"),
            lambda: db.execute("select 1"),
            lambda: db.batch(["select 1"]),
            lambda: db.stream("select 1").next_chunk(),
            lambda: db.transaction().execute("select 1"),
            lambda: db.cancel("0123456789abcdef"),
        ]
        for call in calls:
            error = await failure(call())
            assert (type(error), error.code, error.executed) == (kind, code, Executed.NO)
            assert "secret" not in str(error)


async def test_the_same_words_for_a_foreign_and_an_unknown_tenant(router: RunningRouter) -> None:
    """Otherwise a caller could find out the names of the others."""
    words = []
    for tenant in ("globex", "nobody"):
        async with router.connect(tenant, token=router.tokens["acme"], timeout=5) as db:
            words.append((await failure(db.query("select 1"))).message.replace(tenant, "T"))
    assert words[0] == words[1]


@pytest.mark.parametrize("sql", ["select %s", "select id from accounts where id = %s", "select ?"])
async def test_parameters_as_other_drivers_write_them_are_told_so(router: RunningRouter, sql: str) -> None:
    async with router.connect() as db:
        error = await failure(db.query(sql, 1))
        assert isinstance(error, pointsman.SqlSyntaxError)
        assert "parameters are $1, $2, ..." in str(error)


# --- what arrives ------------------------------------------------------------------------------------------------


async def raw_status(router: RunningRouter, method: str, payload: bytes) -> tuple[Code, str]:
    """The answer to bytes that no SDK would send."""
    metadata = (("authorization", f"Bearer {router.tokens['acme']}"),)
    async with grpc.aio.insecure_channel(router.address) as channel:
        try:
            if method.endswith(("Multiplex", "Transact")):
                call = channel.stream_stream(method)(iter([payload]), metadata=metadata, timeout=5)
                async for _ in call:
                    pass
            elif method.endswith("StreamQuery"):
                async for _ in channel.unary_stream(method)(payload, metadata=metadata, timeout=5):
                    pass
            else:
                await channel.unary_unary(method)(payload, metadata=metadata, timeout=5)
        except grpc.aio.AioRpcError as error:
            return error.code(), error.details() or ""
    return Code.OK, ""


RPCS = [
    *(f"/pointsman.v1.QueryService/{name}" for name in ("Query", "Execute", "ExecuteBatch", "StreamQuery")),
    *("/pointsman.v1.QueryService/CancelQuery", "/pointsman.v1.QueryService/Multiplex"),
    "/pointsman.v1.TransactionService/Transact",
]
GARBAGE = {
    "noise": bytes(range(255, 0, -1)),
    "cut off": pb.QueryRequest(statement={"sql": "select 1"}).SerializeToString()[:-2],
    "a number where a message belongs": b"\x08\x96\x01" * 3 + b"\x0a",
    "text that is not UTF-8": b"\x0a\x04\x0a\x02\xff\xfe",
}
NOT_TEXT = {
    "/pointsman.v1.QueryService/Multiplex": b"\x0a\x08\x1a\x06\x0a\x04\x0a\x02\xff\xfe",
    "/pointsman.v1.TransactionService/Transact": b"\x1a\x04\x0a\x02\xff\xfe",
    "/pointsman.v1.QueryService/CancelQuery": b"\x0a\x02\xff\xfe",
}
"""The same where the statement's text lies elsewhere in the message."""


@pytest.mark.parametrize("payload", GARBAGE.values(), ids=GARBAGE.keys())
@pytest.mark.parametrize("method", RPCS, ids=lambda name: name.rpartition("/")[2])
async def test_bytes_that_are_no_message(router: RunningRouter, db: Client, method: str, payload: bytes) -> None:
    if payload == GARBAGE["text that is not UTF-8"]:
        payload = NOT_TEXT.get(method, payload)
    code, words = await raw_status(router, method, payload)
    assert code is Code.INVALID_ARGUMENT, words
    assert words
    await works(db)


async def test_fields_of_another_type_and_fields_of_tomorrow(router: RunningRouter) -> None:
    query = RPCS[0]
    statement = b"\x0a\x0a\x0a\x08select 1"
    # Field 900, of a newer caller: ignored, as protobuf promises.
    assert await raw_status(router, query, statement + b"\xa2\x38\x03new") == (Code.OK, "")
    # timeout_ms (7) of options (2) as text: on the wire that is another, unknown field; so it is no wish either.
    assert await raw_status(router, query, statement + b"\x12\x04\x3a\x02hi") == (Code.OK, "")
    code, words = await raw_status(router, query, statement + b"\x12\x02\x08\x63")
    assert code is Code.INVALID_ARGUMENT  # a read preference that there is not
    assert "read" in words
    assert (await raw_status(router, query, b""))[0] is Code.INVALID_ARGUMENT
    assert (await raw_status(router, "/pointsman.v1.QueryService/Explode", b""))[0] is Code.UNIMPLEMENTED


async def test_a_message_that_is_too_large(router: RunningRouter, db: Client) -> None:
    error = await failure(db.query("select length($1)", "x" * (5 << 20)))
    assert error.executed is Executed.NO
    assert error.code in (Code.INVALID_ARGUMENT, Code.RESOURCE_EXHAUSTED)
    assert any(number in str(error) for number in ("4194304", "4193280")), error
    await works(db)
    payload = pb.QueryRequest(statement={"sql": "select length($1)", "params": [{"text": "x" * (9 << 20)}]})
    code, words = await raw_status(router, RPCS[0], payload.SerializeToString())
    assert code in (Code.RESOURCE_EXHAUSTED, Code.INVALID_ARGUMENT), words
    await works(db)
    async with db.transaction() as tx:
        assert await tx.query_value("select 1") == 1


# --- statements that PostgreSQL refuses ----------------------------------------------------------------------------

REFUSED: list[tuple[str, type, str, str]] = [
    ("selct 1", pointsman.SqlSyntaxError, "42601", ""),
    ("select * from nowhere", pointsman.UndefinedTable, "42P01", ""),
    ("select nothing from shelves", pointsman.UndefinedColumn, "42703", ""),
    ("select nothing()", pointsman.UndefinedFunction, "42883", ""),
    ("select 1 / 0", pointsman.DataError, "22012", ""),
    ("select 99999999999::int", pointsman.NumericOutOfRange, "22003", ""),
    ("select 'x'::int", pointsman.DataError, "22P02", ""),
    ("insert into shelves values (1, 'a', 1)", pointsman.UniqueViolation, "23505", "shelves_pkey"),
    ("insert into shelves values (2, 'a', 1)", pointsman.UniqueViolation, "23505", "shelves_label_unique"),
    ("insert into shelves values (2, 'b', 0)", pointsman.CheckViolation, "23514", "shelves_room_positive"),
    ("insert into shelves values (2, null, 1)", pointsman.NotNullViolation, "23502", ""),
    ("insert into books values (9, 77)", pointsman.ForeignKeyViolation, "23503", "books_shelf_known"),
    ("insert into books values (9, 1, '[3,4)')", pointsman.ExclusionViolation, "23P01", "books_no_overlap"),
    ("delete from shelves where id = 1", pointsman.ForeignKeyViolation, "23503", "books_shelf_known"),
    ("create table shelves (id int)", pointsman.DuplicateObject, "42P07", ""),
    ("select pg_read_file('/etc/passwd')", pointsman.PermissionDenied, "42501", ""),
    ("do $$ begin raise exception 'no more'; end $$", pointsman.RaisedException, "P0001", ""),
]


@pytest.mark.parametrize(("sql", "kind", "sqlstate", "constraint"), REFUSED, ids=lambda value: str(value)[:40])
async def test_each_refusal_carries_its_sqlstate_and_constraint(
    db: Client, sql: str, kind: type, sqlstate: str, constraint: str
) -> None:
    await db.batch(
        [
            "insert into shelves values (1, 'a', 1) on conflict do nothing",
            "insert into books values (1, 1, '[1,9)') on conflict do nothing",
        ]
    )
    answers = [db.execute(sql), db.batch(["select 1", sql])]
    if sql.startswith("sel"):
        answers.append(db.query(sql))
        answers.append(db.stream(sql).next_chunk())
    for answer in answers:
        error = await failure(answer)
        assert type(error) is kind
        assert error.sqlstate == sqlstate
        assert error.executed is Executed.ROLLED_BACK
        assert error.pg is not None
        assert error.pg.constraint_name == constraint
        assert error.pg.message
    await works(db)


async def test_the_place_of_the_mistake_is_told(db: Client) -> None:
    error = await failure(db.query("select id, nothing from shelves"))
    assert error.pg is not None
    assert error.pg.position == 12
    error = await failure(db.batch(["select 1", "select 1 / 0"]))
    assert error.metadata.get("step") == "1", error.metadata


# --- statements that the router refuses ----------------------------------------------------------------------------

OUT_OF_PLACE = [
    ("select 1; select 2", "SEVERAL_STATEMENTS", "ExecuteBatch"),
    ("", "STATEMENT_MISSING", "empty"),
    ("-- only words", "STATEMENT_MISSING", "no statement"),
    ("begin", "TRANSACTION_CONTROL", "Transact"),
    ("commit", "TRANSACTION_CONTROL", "Transact"),
    ("rollback", "TRANSACTION_CONTROL", "Transact"),
    ("savepoint a", "TRANSACTION_CONTROL", "Transact"),
    ("prepare transaction 'x'", "TRANSACTION_CONTROL", "Transact"),
    ("set search_path = elsewhere", "SESSION_STATE", "Transact"),
    ("reset all", "SESSION_STATE", "Transact"),
    ("discard all", "SESSION_STATE", "Transact"),
    ("listen news", "SESSION_STATE", "use the RPC Listen"),
    ("prepare p as select 1", "SESSION_STATE", "Transact"),
    ("declare c cursor for select 1", "SESSION_STATE", "StreamQuery"),
    ("create temp table t (id int)", "SESSION_STATE", "Transact"),
    ("select pg_advisory_lock(1)", "SESSION_STATE", "Transact"),
    ("select set_config('work_mem', '1MB', false)", "SESSION_STATE", "Transact"),
    ("copy shelves from stdin", "COPY_NOT_HERE", "CopyIn"),
    ("copy shelves to stdout", "COPY_NOT_HERE", "CopyOut"),
]


@pytest.mark.parametrize(("sql", "reason", "names"), OUT_OF_PLACE, ids=lambda value: str(value)[:30])
async def test_what_does_not_belong_here_is_refused_by_the_name_of_the_right_rpc(
    db: Client, sql: str, reason: str, names: str
) -> None:
    for answer in (
        db.query(sql),
        db.execute(sql),
        db.batch(["select 1", sql]),
        db.stream(sql).next_chunk(),
    ):
        error = await failure(answer)
        assert type(error) is pointsman.InvalidRequest
        assert (error.reason, error.code, error.executed) == (reason, Code.INVALID_ARGUMENT, Executed.NO)
        assert names in error.message
    await works(db)


async def test_transaction_control_is_no_statement_inside_transact_either(db: Client) -> None:
    for sql in ("commit", "begin", "rollback to a", "select 1; select 2", "copy shelves to stdout"):
        async with db.transaction() as tx:
            await tx.execute("insert into marks values (71, 'x')")
            error = await failure(tx.execute(sql))
            assert (error.code, error.executed) == (Code.INVALID_ARGUMENT, Executed.NO)
            assert type(await failure(tx.commit())) is pointsman.TransactionLost
    assert await db.query_value("select count(*) from marks where id = 71") == 0
    await works(db)


async def test_a_write_through_query_names_execute(db: Client) -> None:
    for sql in (
        "insert into marks values (70, 'x')",
        "delete from marks",
        "create table no (id int)",
        "with gone as (delete from marks returning 1) select * from gone",
        "select nextval('accounts_id_seq')",
        "select * from marks for update",
        "truncate marks",
    ):
        for answer in (db.query(sql), db.stream(sql).next_chunk()):
            error = await failure(answer)
            assert type(error) is pointsman.ReadOnlyViolation, sql
            assert (error.reason, error.code) == ("WRITE_ON_READ_METHOD", Code.FAILED_PRECONDITION)
            assert error.executed is Executed.ROLLED_BACK
            assert error.sqlstate == "25006"
            assert "execute" in error.message.lower()
    assert await db.query_value("select count(*) from marks where id = 70") == 0
    await works(db)


async def test_too_few_and_too_many_parameters_are_the_callers_mistake(
    router: RunningRouter, db: Client, pg_cluster: DevCluster
) -> None:
    for _ in range(3):  # also once the statement is prepared
        for sql, args in (("select $1::int + $2::int", (1,)), ("select $1::int", (1, 2)), ("select 1", (7,))):
            for answer in (db.query(sql, *args), db.execute(sql, *args), db.batch([(sql, list(args))])):
                error = await failure(answer)
                assert isinstance(error, pointsman.InvalidRequest | pointsman.SqlError), error
                assert (error.code, error.executed) == (Code.INVALID_ARGUMENT, Executed.ROLLED_BACK), error
                assert "parameter" in error.message, error
        await works(db)
        assert await db.query_value("select $1::int + $2::int", 1, 2) == 3
    async with db.transaction() as tx:
        async with tx.savepoint():
            pass
        error = await failure(tx.execute("select $1::int", 1, 2))
        assert error.code is Code.INVALID_ARGUMENT
        await tx.rollback()
    await works(db)


async def test_parameters_that_postgresql_cannot_take(db: Client) -> None:
    for args, what in (([b"\x00"], "bytes for a date"), (["a\x00b"], "a NUL character"), ([object()], "no type")):
        with pytest.raises((pointsman.Error, TypeError, ValueError)) as caught:
            await db.query("select $1::date", *args)
        if isinstance(caught.value, pointsman.Error):
            assert caught.value.code is Code.INVALID_ARGUMENT, what
        await works(db)


async def test_a_result_that_is_too_large(db: Client) -> None:
    big = "select repeat('x', 1000) from generate_series(1, $1::int)"
    error = await failure(db.query(big, 20_000))
    assert (type(error), error.code) == (pointsman.ResultTooLarge, Code.FAILED_PRECONDITION)
    assert "StreamQuery" in error.message
    assert error.executed is not Executed.MAYBE
    assert type(await failure(db.query(big, 20, max_rows=10))) is pointsman.ResultTooLarge
    assert type(await failure(db.query(big, 20, max_bytes=5000))) is pointsman.ResultTooLarge
    assert len(await db.query(big, 20)) == 20
    # A write has been done, so its answer is cut and says so.
    await db.execute("delete from marks where id > 1000")
    many = "insert into marks select 1000 + i, '' from generate_series(1, 50) i returning id"
    result = await db.execute(many, max_rows=10)
    assert (result.rowcount, len(result.rows), result.truncated) == (50, 10, True)
    await db.execute("delete from marks where id > 1000")


# --- time ----------------------------------------------------------------------------------------------------------


SLOW: dict[str, Callable[[Client, str], Awaitable[Any]]] = {
    "query": lambda db, sql: db.query(sql, timeout=0.4),
    "execute": lambda db, sql: db.execute(sql, timeout=0.4),
    "batch": lambda db, sql: db.batch(["select 1", sql], timeout=0.4),
    "stream": lambda db, sql: db.stream(sql, timeout=0.4).next_chunk(),
    "transact": lambda db, sql: db.transaction(timeout=0.4).execute(sql),
}


@pytest.mark.parametrize("call", SLOW.values(), ids=SLOW.keys())
async def test_a_statement_longer_than_its_deadline(
    db: Client, pg_cluster: DevCluster, call: Callable[[Client, str], Awaitable[Any]], neighbour: Neighbour
) -> None:
    await db.query("select 1")
    await db.execute("select 1")
    mark = f"deadline {time.monotonic_ns()}"
    began = time.monotonic()
    error = await failure(call(db, f"select pg_sleep(20) /* {mark} */"))
    took = time.monotonic() - began
    assert type(error) is pointsman.DeadlineExceeded
    assert error.code is Code.DEADLINE_EXCEEDED
    assert error.executed is not Executed.YES
    assert 0.3 < took < 0.5, f"{took:.3f} s"
    gone = await until_gone(pg_cluster, mark, 1.5)
    print(f"\nanswered {took * 1000:.0f} ms after a timeout of 400 ms, backend free {gone * 1000:.0f} ms later")
    await works(db)
    assert neighbour.slowest_s < 1


async def test_a_cancelled_task_stops_its_statement(db: Client, pg_cluster: DevCluster) -> None:
    for number, start in enumerate((db.query, db.execute)):
        mark = f"cancelled {number} {time.monotonic_ns()}"
        task = asyncio.create_task(start(f"select pg_sleep(20) /* {mark} */"))
        await until_running(pg_cluster, mark)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until_gone(pg_cluster, mark, 1.5)
    await works(db)
