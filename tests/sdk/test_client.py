"""What the client sends and returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import pointsman
import pytest
from pointsman import Step, no_rows, rows_affected, rows_at_least
from pointsman.tokens import TokenKeeper
from pointsman.v1 import query_service_pb2 as pb
from pointsman.v1 import types_pb2 as types

from tests.sdk.fake_router import FakeRouter, one_row, result_set, status


def answering(**fields: Any) -> Any:
    """A handler that gives the same reply to everything."""

    async def answer(call: pb.MultiplexCall) -> pb.MultiplexReply:
        return pb.MultiplexReply(**fields)

    return answer


def query_answer(rows: list[list[int]], token: bytes = b"") -> Any:
    columns = [f"c{position}" for position in range(len(rows[0]))] if rows else ["c0"]
    return answering(query=pb.QueryResponse(result=result_set(columns, rows), receipt=types.Receipt(token=token)))


async def test_a_query_carries_statement_parameters_and_options(router: FakeRouter, db: pointsman.Client) -> None:
    rows = await db.query(
        "select $1, $2", 1, None, read="replica", max_staleness=0.25, fallback="fail", on_failover="fail", max_rows=10,
        max_bytes=1000, priority="high", tag="report", request_id="0123456789abcdef", timeout=2.5,
    )  # fmt: skip
    assert rows == [(1,)]
    (call,) = router.calls
    assert call.query.statement == types.Statement(
        sql="select $1, $2", params=[types.Param(integer=1), types.Param(null=True)]
    )
    assert call.query.options == types.QueryOptions(
        read=types.READ_PREFERENCE_REPLICA, max_staleness_ms=250, fallback=types.REPLICA_FALLBACK_FAIL,
        on_failover=types.FAILOVER_POLICY_FAIL_FAST, max_rows=10, max_bytes=1000, priority=types.PRIORITY_HIGH,
        request_tag="report",
    )  # fmt: skip
    assert call.query.request_id == "0123456789abcdef"
    assert 2000 < call.timeout_ms <= 2500


async def test_a_plain_query_carries_no_options_and_the_default_timeout(
    router: FakeRouter, db: pointsman.Client
) -> None:
    await db.query("select 1", read=None, timeout=None)
    assert router.calls[0].query.options == types.QueryOptions()
    assert 4000 < router.calls[0].timeout_ms <= 5000


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"read": "master"}, ValueError, "'primary', 'replica', 'any'"),
        ({"fallback": "x"}, ValueError, "fallback must be one of"),
        ({"retries": 3}, TypeError, "query.. got an unexpected keyword argument 'retries'"),
        ({"idempotency_key": "k"}, TypeError, "unexpected keyword argument 'idempotency_key'"),
        ({"timeout": 0}, ValueError, "timeout must be a positive number"),
        ({"timeout": float("nan")}, ValueError, "timeout must be a positive number"),
        ({"timeout": "1"}, TypeError, "timeout must be a number of seconds"),
        ({"max_staleness": -1}, ValueError, "max_staleness must be a positive number"),
        ({"max_rows": "many"}, TypeError, "max_rows"),
    ],
)
async def test_mistakes_in_options_are_told_here(
    router: FakeRouter, db: pointsman.Client, options: dict[str, Any], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        await db.query("select 1", **options)
    assert router.calls == []


async def test_reading_options_on_a_write_are_told_here(db: pointsman.Client) -> None:
    with pytest.raises(TypeError, match=r"execute.. got an unexpected keyword argument 'read'"):
        await db.execute("insert", read="replica")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="sql must be a str"):
        await db.query(b"select 1")  # type: ignore[arg-type]


@pytest.mark.parametrize("option", ["max_rows", "max_bytes"])
@pytest.mark.parametrize(
    "start",
    [
        lambda db, **options: db.stream("select 1", **options),
        lambda db, **options: db.copy_out("t", **options),
        lambda db, **options: db.copy_in("t", b"", **options),
        lambda db, **options: db.copy_rows("t", [], **options),
    ],
    ids=["stream", "copy_out", "copy_in", "copy_rows"],
)
async def test_bounds_of_an_answer_where_there_is_none_are_told_here(
    db: pointsman.Client, start: Callable[..., Any], option: str
) -> None:
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{option}'"):
        await start(db, **{option: 1})


async def test_query_one_and_query_value(router: FakeRouter, db: pointsman.Client) -> None:
    router.on_call = query_answer([[7, 8]])
    assert await db.query_one("select") == (7, 8)
    assert await db.query_value("select") == 7
    router.on_call = query_answer([])
    assert await db.query_one("select") is None
    with pytest.raises(pointsman.NoSingleRow, match="returned none"):
        await db.query_value("select")
    router.on_call = query_answer([[1], [2]])
    with pytest.raises(pointsman.NoSingleRow, match="returned 2"):
        await db.query_one("select")
    with pytest.raises(pointsman.NoSingleRow):
        await db.query_value("select")


async def test_execute_returns_what_was_done(router: FakeRouter, db: pointsman.Client) -> None:
    result_message = result_set(("id",), ((5,),), rows_affected=3, command_tag="UPDATE 3", truncated=True)
    result_message.notices.add(severity="NOTICE", sqlstate="00000", message="hello")
    receipt = types.Receipt(endpoint="pg-a", role=types.ENDPOINT_ROLE_PRIMARY)
    router.on_call = answering(execute=pb.ExecuteResponse(result=result_message, receipt=receipt))
    result = await db.execute("update t set x = $1 returning id", 1, idempotency_key="key-1", timeout=1)
    assert (result.rowcount, result.rows, result.command_tag, result.truncated) == (3, [(5,)], "UPDATE 3", True)
    assert result.receipt.endpoint == "pg-a"
    assert result.notices[0].message == "hello"
    assert repr(result) == "<Result 'UPDATE 3', rowcount 3, 1 rows, truncated>"
    assert router.calls[0].execute.idempotency_key == "key-1"


@pytest.mark.parametrize(
    ("method", "executed"),
    [("query", pointsman.Executed.NO), ("execute", pointsman.Executed.MAYBE), ("batch", pointsman.Executed.MAYBE)],
)
async def test_failures_in_band_are_exceptions(
    router: FakeRouter, db: pointsman.Client, method: str, executed: pointsman.Executed
) -> None:
    router.on_call = answering(failure=status(grpc.StatusCode.UNAVAILABLE, "gone", reason="NO_BACKEND"))
    with pytest.raises(pointsman.Unavailable, match="gone") as caught:
        await getattr(db, method)("select 1" if method != "batch" else ["select 1"])
    assert caught.value.executed is executed


async def test_an_answer_of_the_wrong_kind_is_an_error_and_no_result(router: FakeRouter, db: pointsman.Client) -> None:
    router.on_call = answering()
    with pytest.raises(pointsman.InternalError, match="neither a result nor an error"):
        await db.query("select 1")


async def test_a_batch_carries_steps_guards_and_isolation(router: FakeRouter, db: pointsman.Client) -> None:
    results = await db.batch(
        [
            ("update a set x = $1", [1]),
            Step("update b", guard=rows_affected(0)),
            Step("insert c", [2], guard=rows_at_least(1, 2, otherwise="skip"), want_rows=True),
            Step("insert d", guard=no_rows(0)),
            "delete from e",
        ],
        isolation="serializable",
        idempotency_key="k",
    )
    assert [result.rowcount for result in results] == [1] * 5
    assert results.receipt.endpoint == "one"
    batch = router.calls[0].batch
    assert batch.transaction.isolation == pb.ISOLATION_LEVEL_SERIALIZABLE
    assert batch.idempotency_key == "k"
    assert [step.statement.sql for step in batch.steps] == [
        "update a set x = $1", "update b", "insert c", "insert d", "delete from e",
    ]  # fmt: skip
    assert batch.steps[0].statement.params[0].integer == 1
    assert not batch.steps[0].HasField("guard")
    assert batch.steps[1].guard == pb.StepGuard(step=0, rows_affected_equals=1, otherwise=pb.GUARD_ACTION_ROLLBACK_ALL)
    assert batch.steps[2].guard == pb.StepGuard(step=1, rows_at_least=2, otherwise=pb.GUARD_ACTION_SKIP)
    assert batch.steps[2].want_rows
    assert batch.steps[3].guard == pb.StepGuard(step=0, no_rows=True, otherwise=pb.GUARD_ACTION_ROLLBACK_ALL)


async def test_a_skipped_step_says_so(router: FakeRouter, db: pointsman.Client) -> None:
    router.on_call = answering(batch=pb.ExecuteBatchResponse(steps=[pb.StepResult(skipped=True)]))
    (result,) = await db.batch(["delete"])
    assert result.skipped
    assert result.rows == []


@pytest.mark.parametrize(
    ("steps", "kind", "words"),
    [
        ([("a", 1)], TypeError, "a step of a batch is"),
        (["a", Step("b", guard=rows_affected(1))], ValueError, "step 1: a guard looks at an earlier step"),
        (["a", Step("b", guard=rows_affected(0, otherwise="x"))], ValueError, "otherwise must be"),  # type: ignore[arg-type]
        ([Step("a", [object()])], TypeError, r"step 0: parameter \$1"),
        ([("a", ["\0"])], pointsman.InvalidRequest, "NUL"),
    ],
)
async def test_mistakes_in_a_batch_are_told_here(
    db: pointsman.Client, steps: list[Any], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        await db.batch(steps)


async def test_cancel_asks_the_router(router: FakeRouter, db: pointsman.Client) -> None:
    assert await db.cancel("a-known-request-id") is True
    assert await db.cancel("an-unknown-request-id") is False
    assert router.cancel_requests == ["a-known-request-id", "an-unknown-request-id"]


async def test_the_newest_token_goes_with_every_read_that_may_use_a_replica(
    router: FakeRouter, db: pointsman.Client
) -> None:
    assert db.token == ""
    router.on_call = answering(execute=pb.ExecuteResponse(receipt=types.Receipt(token=b"t1")))
    await db.execute("insert")
    assert db.token == "dDE="
    router.on_call = query_answer([[1]], b"t2")
    await db.query("select", read="replica")
    router.on_call = query_answer([[1]])
    await db.query("select", read="any")
    await db.query("select")
    await db.query("select", read="primary")
    sent = [call.query.options.after_token for call in router.calls[1:]]
    assert sent == [b"t1", b"t2", b"", b""], "the primary, which is also the default, sees everything"


async def test_a_token_can_be_handed_over_and_forgotten(router: FakeRouter, db: pointsman.Client) -> None:
    db.token = "dDE="
    await db.query("select", read="replica")
    db.token = ""
    await db.query("select", read="replica")
    assert [call.query.options.after_token for call in router.calls] == [b"t1", b""]
    with pytest.raises(ValueError, match="not a consistency token"):
        db.token = "ü"


async def test_a_client_of_its_own_memory_shares_the_connections(router: FakeRouter, db: pointsman.Client) -> None:
    db.token = "dDE="
    async with db.with_token("dDI=") as other:
        await other.query("select", read="replica")
        other.observe("dDM=")
        await other.query("select", read="replica")
    await db.query("select", read="replica")
    assert [call.query.options.after_token for call in router.calls] == [b"t2", b"t3", b"t1"]
    assert (other.token, db.with_token().token) == ("dDM=", "")


async def test_a_lost_token_is_told_once(router: FakeRouter, db: pointsman.Client) -> None:
    db.token = "dDE="
    router.on_call = answering(failure=status(grpc.StatusCode.FAILED_PRECONDITION, reason="TOKEN_LOST"))
    with pytest.raises(pointsman.TokenLost):
        await db.query("select", read="replica")
    router.on_call = query_answer([[1]])
    assert await db.query("select", read="replica") == [(1,)]
    assert [call.query.options.after_token for call in router.calls] == [b"t1", b""]


async def test_eventual_consistency_sends_no_token(router: FakeRouter) -> None:
    async with pointsman.connect(router.address, timeout=5, consistency="eventual") as db:
        router.on_call = query_answer([[1]], b"t1")
        await db.query("select", read="replica")
        await db.query("select", read="replica")
        assert db.token == "dDE="
    assert [call.query.options.after_token for call in router.calls] == [b"", b""]


def test_answers_that_overtake_one_another_keep_the_greater_token() -> None:
    keeper = TokenKeeper(enabled=True)
    early, late = keeper.version, keeper.version
    keeper.keep(b"\x09", late)
    keeper.keep(b"\x07", early)
    assert keeper.value == b"\x09"
    keeper.keep(b"\x01", keeper.version)
    assert keeper.value == b"\x01", "an answer to a request that knew the newest token replaces it"
    keeper.keep(b"", keeper.version)
    assert keeper.value == b"\x01"


async def test_a_client_works_without_async_with(router: FakeRouter) -> None:
    db = pointsman.connect(router.address, timeout=5)
    assert await db.query("select 1") == [(1,)]
    await db.close()
    assert repr(db).endswith("closed>")


async def test_a_client_that_was_never_used_closes() -> None:
    async with pointsman.connect("127.0.0.1:1"):
        pass
    await pointsman.connect("127.0.0.1:1").close()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"address": ""}, "host:port"),
        ({"address": "a b"}, "host:port"),
        ({"address": "a:1", "timeout": -1}, "timeout"),
        ({"address": "a:1", "consistency": "strong"}, "session"),
        ({"address": "a:1", "tls": pointsman.TLS(cert_file="x")}, "together"),
        ({"address": "a:1", "cert": "x"}, "together"),
        ({"address": "a:1", "tls": pointsman.TLS(), "ca": "x"}, "not in both"),
        ({"address": "a:1", "tls": False, "ca": "x"}, "plain text"),
    ],
)
def test_mistakes_in_connect_are_told_at_once(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        pointsman.connect(**arguments)


def test_a_missing_file_of_tls_is_told_at_once() -> None:
    with pytest.raises(FileNotFoundError, match="no-such-ca"):
        pointsman.connect("a:1", tls=pointsman.TLS(ca_file="/no-such-ca.pem"))


async def test_tls_to_a_router_without_it_says_what_to_check(router: FakeRouter) -> None:
    async with pointsman.connect(router.address, tls=True) as db:
        with pytest.raises(pointsman.Unavailable, match="both sides agree about TLS"):
            await db.query("select 1", timeout=0.3)


async def test_a_default_answer_helper_answers_batches(router: FakeRouter, db: pointsman.Client) -> None:
    router.on_call = one_row
    assert len(await db.batch(["a", "b"], read_only=True)) == 2
    assert router.calls[0].batch.transaction.read_only
