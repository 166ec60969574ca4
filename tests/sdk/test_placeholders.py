"""The hint for who writes parameters as another driver does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pointsman
import pytest
from pointsman.placeholders import hinted
from pointsman.v1 import query_service_pb2 as pb
from pointsman.v1 import transaction_service_pb2 as tx_pb
from pointsman.v1 import types_pb2 as types

from tests.sdk.fake_router import FakeRouter, abort_with, status

HINT = "parameters are $1, $2, ... in the text, not "
REFUSAL = status(grpc.StatusCode.INVALID_ARGUMENT, "syntax error", reason="BAD_SQL", sqlstate="42601", executed="no")


@pytest.mark.parametrize(
    ("sql", "found"),
    [
        ("select %s", "%s"),
        ("select * from t where a = %s and b = 'x'", "%s"),
        ("select * from t where a = %(name)s", "%(name)s"),
        ("insert into t values (?, ?)", "?"),
        ("select ?", "?"),
        ("update t set a=? where b=?;", "?"),
        ("select * from t where a = ? -- why?", "?"),
        ("select '%s', '?', \"a ? b\", 'it''s %s' form", None),
        ("select $$ %s ? $$, $a$ $$ %s $a$ form", None),
        ("select 1 /* %s ? */ -- ? %s\n form", None),
        ("select doc ? $1 form t", None),
        ("select 7 %seven form", None),
        ("select a ?| b, a ?& b, a @? b form", None),
        ("select 1 form", None),
    ],
)
def test_placeholders_of_others_are_found_outside_quotes(sql: str, found: str | None) -> None:
    statement = types.Statement(sql=sql, params=[types.Param(integer=1)])
    error = hinted(pointsman.SqlSyntaxError("syntax error"), [types.Statement(sql="select 1"), statement])
    assert error.message == ("syntax error" if found is None else f"syntax error; {HINT}{found}")
    assert error.args == (error.message,)


def test_no_other_error_and_no_statement_without_parameters_gets_it() -> None:
    statement = types.Statement(sql="select %s", params=[types.Param(integer=1)])
    assert hinted(pointsman.SqlError("no"), [statement]).message == "no"
    bare = types.Statement(sql="select %s")
    assert hinted(pointsman.SqlSyntaxError("no"), [bare]).message == "no"


async def _by_transaction(db: pointsman.Client) -> None:
    async with db.transaction() as tx:
        await tx.query("select %s", 1)


async def _by_stream(db: pointsman.Client) -> None:
    async for _ in db.stream("select %s", 1):
        pass


@pytest.mark.parametrize(
    "call",
    [
        lambda db: db.query("select %s", 1),
        lambda db: db.execute("select %s", 1),
        lambda db: db.execute("select %s", 1, idempotent=True),
        lambda db: db.batch(["select 1", ("select %s", [1])]),
        _by_transaction,
        _by_stream,
    ],
    ids=["query", "execute", "keyed", "batch", "transaction", "stream"],
)
async def test_every_way_of_asking_gets_it(router: FakeRouter, db: pointsman.Client, call: Any) -> None:
    async def refuse(_: pb.MultiplexCall) -> pb.MultiplexReply:
        return pb.MultiplexReply(failure=REFUSAL)

    async def refuse_run(request: tx_pb.TransactRequest) -> tx_pb.TransactResponse:
        return tx_pb.TransactResponse(failed=REFUSAL) if request.HasField("run") else tx_pb.TransactResponse()

    async def refuse_rows(_: pb.StreamQueryRequest, context: Any) -> AsyncIterator[pb.StreamQueryResponse]:
        await abort_with(context, REFUSAL)
        yield pb.StreamQueryResponse()

    router.on_call, router.on_transact, router.on_rows = refuse, refuse_run, refuse_rows
    with pytest.raises(pointsman.SqlSyntaxError, match="not %s") as caught:
        await call(db)
    assert str(caught.value).startswith(f"syntax error; {HINT}%s [BAD_SQL, SQLSTATE 42601")
