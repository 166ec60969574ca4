"""Replies parsed only in part say what the public messages say."""

from __future__ import annotations

from typing import Any

import pointsman
import pytest
from google.protobuf.descriptor import FieldDescriptor
from hypothesis import given
from hypothesis import strategies as st
from pointsman import replies
from pointsman.replies import AS_BYTES, parse_response, token_of
from pointsman.rows import plan_from, plan_of
from pointsman.single_rows import single_columns, single_row
from pointsman.v1 import query_service_pb2 as pb
from pointsman.v1 import types_pb2 as types

INTEGER, REAL, BOOLEAN, TEXT, BLOB = (
    types.COLUMN_KIND_INTEGER,
    types.COLUMN_KIND_REAL,
    types.COLUMN_KIND_BOOLEAN,
    types.COLUMN_KIND_TEXT,
    types.COLUMN_KIND_BLOB,
)
ARRAYS = {INTEGER: "integers", REAL: "reals", BOOLEAN: "booleans", TEXT: "texts", BLOB: "blobs"}
INT8, FLOAT8, BOOL, NUMERIC, NAME, BYTEA, DATE = 20, 701, 16, 1700, 19, 17, 1082


def test_the_derived_types_differ_from_the_public_ones_in_nothing_but_those_fields() -> None:
    seen: set[str] = set()

    def compare(lazy: Any, public: Any) -> None:
        if public.name in seen:
            return
        seen.add(public.name)
        assert set(lazy.fields_by_name) == set(public.fields_by_name)
        for name, field in public.fields_by_name.items():
            found = lazy.fields_by_name[name]
            assert (found.number, found.is_repeated) == (field.number, field.is_repeated)
            if name in AS_BYTES.get(public.name, ()):
                assert (found.type, field.type) == (FieldDescriptor.TYPE_BYTES, FieldDescriptor.TYPE_MESSAGE)
            else:
                assert found.type == field.type
                if field.message_type is not None:
                    compare(found.message_type, field.message_type)

    compare(replies._lazy_response().DESCRIPTOR, pb.MultiplexResponse.DESCRIPTOR)
    assert seen >= set(AS_BYTES)


def test_a_response_says_the_same_in_part() -> None:
    result = types.ResultSet(
        schema=types.ResultSchema(has_columns=True, columns=[types.ColumnInfo(name="n", kind=INTEGER, type_oid=INT8)]),
        batch=types.RowBatch(row_count=1, columns=[types.ColumnData(integers=[7])]),
        rows_affected=3,
        command_tag="UPDATE 3",
        truncated=True,
        notices=[types.Notice(severity="WARNING", sqlstate="01000", message="hm")],
    )
    receipt = types.Receipt(request_id="r", token=b"t", endpoint="one")
    public = pb.MultiplexResponse(
        replies=[
            pb.MultiplexReply(id=1, query=pb.QueryResponse(result=result, receipt=receipt)),
            pb.MultiplexReply(id=2, execute=pb.ExecuteResponse(result=result, receipt=receipt)),
            pb.MultiplexReply(
                id=3, batch=pb.ExecuteBatchResponse(steps=[pb.StepResult(result=result, skipped=True)], receipt=receipt)
            ),
            pb.MultiplexReply(id=4, failure={"code": 14, "message": "no"}),
        ],
        draining=True,
    )
    lazy = parse_response(public.SerializeToString())
    assert lazy.draining
    query, execute, batch, failure = lazy.replies
    assert [reply.id for reply in lazy.replies] == [1, 2, 3, 4]
    assert [reply.WhichOneof("reply") for reply in lazy.replies] == ["query", "execute", "batch", "failure"]
    for found in (query.query.result, execute.execute.result, batch.batch.steps[0].result):
        assert (found.schema, found.batch) == (result.schema.SerializeToString(), result.batch.SerializeToString())
        assert (found.rows_affected, found.command_tag, found.truncated) == (3, "UPDATE 3", True)
        assert found.notices[0].message == "hm"
    assert batch.batch.steps[0].skipped
    assert {query.query.receipt, execute.execute.receipt, batch.batch.receipt} == {receipt.SerializeToString()}
    assert failure.failure == public.replies[3].failure.SerializeToString()


@given(st.text(max_size=200), st.binary(max_size=200), st.text(max_size=9), st.integers(0, 99))
def test_the_token_is_found_wherever_it_is(request_id: str, token: bytes, endpoint: str, attempts: int) -> None:
    receipt = types.Receipt(request_id=request_id, token=token, endpoint=endpoint, attempts=attempts)
    assert token_of(receipt.SerializeToString()) == token


VALUES = st.one_of(
    st.tuples(st.just((INTEGER, INT8)), st.integers(-(2**63), 2**63 - 1) | st.integers(-300, 300)),
    st.tuples(st.just((REAL, FLOAT8)), st.floats(allow_nan=False)),
    st.tuples(st.just((BOOLEAN, BOOL)), st.booleans()),
    st.tuples(st.just((TEXT, NAME)), st.text(max_size=200)),
    st.tuples(st.just((TEXT, NUMERIC)), st.decimals(allow_nan=False).map(str)),
    st.tuples(st.just((TEXT, DATE)), st.sampled_from(["2026-01-02", "0044-03-15 BC", "infinity"])),
    st.tuples(st.just((BLOB, BYTEA)), st.binary(max_size=200)),
)


def column_of(kind: int, value: Any) -> types.ColumnData:
    return types.ColumnData(**{ARRAYS[kind]: [value]})


@given(st.lists(st.tuples(VALUES, st.booleans()), max_size=5))
def test_a_single_row_is_read_as_the_messages_read_it(row: list[tuple[tuple[tuple[int, int], Any], bool]]) -> None:
    schema = types.ResultSchema(has_columns=True)
    batch = types.RowBatch(row_count=1)
    for position, (((kind, oid), value), null) in enumerate(row):
        schema.columns.add(name=f"c{position}", kind=kind, type_oid=oid)
        column = column_of(kind, value)
        if null:
            column.null_rows.append(0)
        batch.columns.append(column)
    data = batch.SerializeToString()
    plan = plan_from(schema.SerializeToString())
    assert plan is plan_of(schema)
    assert plan.records_from(data) == plan.records(batch)


@pytest.mark.parametrize(
    ("kind", "value"), [(INTEGER, -4711), (REAL, 0.5), (BOOLEAN, True), (TEXT, ""), (TEXT, "é"), (BLOB, b"\0")]
)
def test_plain_values_take_the_quick_way(kind: int, value: Any) -> None:
    columns = single_columns([types.ColumnInfo(kind=kind, type_oid=NAME)])
    batch = types.RowBatch(row_count=1, columns=[column_of(kind, value)])
    assert single_row(columns, batch.SerializeToString()) == [value]


@pytest.mark.parametrize(
    "batch",
    [
        types.RowBatch(),
        types.RowBatch(row_count=1),
        types.RowBatch(row_count=2, columns=[types.ColumnData(integers=[1, 2])]),
        types.RowBatch(row_count=1, columns=[types.ColumnData(integers=[1, 2])]),
        types.RowBatch(row_count=1, columns=[types.ColumnData(integers=[1], null_rows=[0])]),
        types.RowBatch(row_count=1, columns=[types.ColumnData(texts=["1"])]),
        types.RowBatch(row_count=1, columns=[types.ColumnData(integers=[1])] * 2),
    ],
)
def test_what_is_not_plain_is_left_to_the_messages(batch: types.RowBatch) -> None:
    columns = single_columns([types.ColumnInfo(kind=INTEGER, type_oid=INT8)])
    assert single_row(columns, batch.SerializeToString()) is None


@given(st.binary(max_size=30))
def test_any_bytes_at_all_give_rows_or_the_error_for_them(rest: bytes) -> None:
    for kind in ARRAYS:
        schema = types.ResultSchema(has_columns=True, columns=[types.ColumnInfo(name="a", kind=kind, type_oid=NAME)])
        plan = plan_of(schema)
        data = b"\x08\x01" + rest
        try:
            found = plan.records_from(data)
        except pointsman.InternalError:
            continue
        expected = plan.records(types.RowBatch.FromString(data))
        assert repr(found) == repr(expected)  # NaN is not equal to itself
