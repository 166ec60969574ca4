"""Small results as wire bytes: the same message as by way of protobuf's objects."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pointsman.v1 import types_pb2

from router.devcluster import DevCluster
from router.encoding import TypedColumns
from router.encoding.typed_columns import MAX_SMALL_BYTES, MAX_SMALL_ROWS
from router.model.result import Cells
from tests.encoding.test_real_cells import EXPRESSIONS, run
from tests.encoding.test_typed_columns import (
    BOOL,
    BYTEA,
    FLOAT8,
    GOLDEN,
    INT8,
    TEXT,
    Column,
    FakeCells,
    byteas,
    tables,
)


def by_messages(cells: Cells) -> types_pb2.ResultSet:
    encoder = TypedColumns()
    return types_pb2.ResultSet(schema=encoder.encode_schema(cells), batch=encoder.encode_batch(cells, 0, cells.ntuples))


def by_bytes(cells: Cells) -> types_pb2.ResultSet:
    found = TypedColumns().result_bytes(cells)
    assert found is not None
    return types_pb2.ResultSet.FromString(found)


@given(tables())
def test_tables(cells: FakeCells) -> None:
    assert by_bytes(cells).SerializeToString() == by_messages(cells).SerializeToString()


CELLS = {
    INT8: st.integers(-(2**63), 2**63 - 1).map(lambda n: str(n).encode()),
    FLOAT8: st.floats().map(lambda x: repr(x).encode()),
    BOOL: st.sampled_from([b"t", b"f"]),
    BYTEA: byteas(9000),
    TEXT: st.text(st.characters(codec="utf-8"), max_size=200).map(str.encode) | st.binary(max_size=200),
}


@st.composite
def one_row(draw: st.DrawFn) -> FakeCells:
    oids = draw(st.lists(st.sampled_from(sorted(CELLS)), max_size=6))
    raw = st.builds(Column, oid=st.just(INT8), cells=st.tuples(st.none() | st.binary(max_size=300)), form=st.just(1))
    columns = [Column(oid, [draw(st.none() | CELLS[oid])], name=draw(st.binary(max_size=5))) for oid in oids]
    return FakeCells(columns + draw(st.lists(raw, max_size=2)), ntuples=1)


@given(one_row())
def test_one_row(cells: FakeCells) -> None:
    # Bytes, not messages, since NaN is not equal to itself.
    assert by_bytes(cells).SerializeToString() == by_messages(cells).SerializeToString()


@given(st.integers(0, 63), st.integers(-2, 2), st.sampled_from([1, -1]))
def test_integers_at_the_borders_of_a_varint(bits: int, off: int, sign: int) -> None:
    number = max(-(2**63), min(2**63 - 1, sign * (2**bits + off)))
    assert by_bytes(FakeCells([Column(INT8, [str(number).encode()])])).batch.columns[0].integers == [number]


@pytest.mark.parametrize("size", [0, 1, 120, 124, 125, 126, 127, 128, 4090, 4095, 4096, 16380, 16384, 60000])
@pytest.mark.parametrize("form", [0, 1])
def test_lengths_at_the_borders_of_a_varint(size: int, form: int) -> None:
    cells = FakeCells([Column(TEXT, [b"x" * size], form=form), Column(TEXT, [None])])
    assert by_bytes(cells) == by_messages(cells)


@pytest.mark.parametrize("form", [0, 1])
@pytest.mark.parametrize("oid", sorted({oid for oid, *_ in GOLDEN}))
def test_null(oid: int, form: int) -> None:
    found = by_bytes(FakeCells([Column(oid, [None], form=form)]))
    assert found == by_messages(FakeCells([Column(oid, [None], form=form)]))
    assert list(found.batch.columns[0].null_rows) == [0]


def test_text_that_is_not_utf8_loses_only_its_bad_bytes() -> None:
    assert list(by_bytes(FakeCells([Column(TEXT, [b"b\xffd"])])).batch.columns[0].texts) == ["b\ufffdd"]


def test_large_results_are_left_to_messages() -> None:
    encoder = TypedColumns()
    assert encoder.result_bytes(FakeCells([Column(INT8, [b"1"] * MAX_SMALL_ROWS)])) is not None
    assert encoder.result_bytes(FakeCells([Column(INT8, [b"1"] * (MAX_SMALL_ROWS + 1))])) is None
    assert encoder.result_bytes(FakeCells([Column(TEXT, [b"x" * MAX_SMALL_BYTES])])) is None
    assert encoder.result_bytes(FakeCells([Column(TEXT, [b"x" * (MAX_SMALL_BYTES // 9)] * 10)])) is None


@pytest.mark.parametrize("change", ["name", "type", "modifier", "table", "attribute", "format"])
def test_every_change_of_a_column_is_seen(change: str) -> None:
    """A prepared statement keeps its name while a table is altered under it."""
    methods = dict(zip(("name", "type", "modifier", "table", "attribute", "format"),
                       ("fname", "ftype", "fmod", "ftable", "ftablecol", "fformat"), strict=True))  # fmt: skip
    values = {"name": b"other", "type": 23, "modifier": 7, "table": 1, "attribute": 9, "format": 1}
    for width in (1, 3):
        before, after = (FakeCells([Column(TEXT, [b"1"], name=b"a")] * width) for _ in range(2))
        setattr(after, methods[change], lambda column: values[change])
        encoder = TypedColumns()
        assert encoder.result_bytes(before) != encoder.result_bytes(after)
        assert encoder.encode_schema(after) == by_messages(after).schema != encoder.encode_schema(before)


@pytest.mark.pg
def test_every_type_of_a_real_server(pg_cluster: DevCluster) -> None:
    expressions = ", ".join(EXPRESSIONS)
    for rows in (0, 1, 2):
        cells = run(pg_cluster, f"select {expressions} from generate_series(1, {rows})")
        assert by_bytes(cells) == by_messages(cells)
