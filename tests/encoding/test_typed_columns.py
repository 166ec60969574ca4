"""The contract of encoders, over fake cells: kinds, NULL, empty results, batch borders, sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pointsman.v1 import types_pb2
from psycopg import pq

from router.encoding import ENCODERS, Encoding, TypedColumns
from router.encoding.typed_columns import KINDS
from router.model.result import Cells

BOOL, BYTEA, INT8, INT2, INT4, TEXT, OID, JSON, FLOAT4, FLOAT8, NUMERIC = (
    16, 17, 20, 21, 23, 25, 26, 114, 700, 701, 1700)


@dataclass
class Column:
    oid: int
    cells: Sequence[bytes | None]
    name: bytes = b"c"
    form: int = 0


@dataclass
class FakeCells:
    """A result table out of lists; fulfils Cells."""

    columns: Sequence[Column]
    ntuples: int = -1
    read: set[tuple[int, int]] = field(default_factory=set)

    def __post_init__(self) -> None:
        if self.ntuples < 0:
            self.ntuples = len(self.columns[0].cells) if self.columns else 0

    @property
    def nfields(self) -> int:
        return len(self.columns)

    def fname(self, column_number: int) -> bytes | None:
        return self.columns[column_number].name

    def ftype(self, column_number: int) -> int:
        return self.columns[column_number].oid

    def fmod(self, column_number: int) -> int:
        return -1

    def ftable(self, column_number: int) -> int:
        return 16384

    def ftablecol(self, column_number: int) -> int:
        return column_number + 1

    def fformat(self, column_number: int) -> int:
        return self.columns[column_number].form

    def get_value(self, row_number: int, column_number: int) -> bytes | None:
        self.read.add((row_number, column_number))
        return self.columns[column_number].cells[row_number]


def encode(cells: Cells, first: int = 0, last: int | None = None) -> types_pb2.RowBatch:
    return TypedColumns().encode_batch(cells, first, cells.ntuples if last is None else last)


def one(oid: int, *cells: bytes | None, form: int = 0) -> types_pb2.ColumnData:
    return encode(FakeCells([Column(oid, cells, form=form)])).columns[0]


GOLDEN: list[tuple[int, bytes, str, Any]] = [
    (INT2, b"-32768", "integers", -32768),
    (INT4, b"2147483647", "integers", 2147483647),
    (INT8, b"-9223372036854775808", "integers", -9223372036854775808),
    (OID, b"4294967295", "integers", 4294967295),
    (FLOAT4, b"0.1", "reals", 0.1),
    (FLOAT8, b"-1.5e+300", "reals", -1.5e300),
    (FLOAT8, b"Infinity", "reals", math.inf),
    (FLOAT8, b"-Infinity", "reals", -math.inf),
    (BOOL, b"t", "booleans", True),
    (BOOL, b"f", "booleans", False),
    (BYTEA, b"\\x00ff10", "blobs", b"\x00\xff\x10"),
    (BYTEA, b"\\x", "blobs", b""),
    (TEXT, "čaj 🍵".encode(), "texts", "čaj 🍵"),
    (TEXT, b"", "texts", ""),
    (NUMERIC, b"12345678901234567890.123", "texts", "12345678901234567890.123"),
    (JSON, b'{"a": 1}', "texts", '{"a": 1}'),
    (99999, b"(1,2)", "texts", "(1,2)"),
]


@pytest.mark.parametrize(("oid", "cell", "array", "value"), GOLDEN)
def test_golden_cell(oid: int, cell: bytes, array: str, value: Any) -> None:
    column = one(oid, cell, None, cell)
    values = list(getattr(column, array))
    assert (values[0], values[2], len(values)) == (value, value, 3)
    assert list(column.null_rows) == [1]
    others = {"integers", "reals", "booleans", "texts", "blobs"} - {array}
    assert not any(getattr(column, other) for other in others)


@pytest.mark.parametrize(("oid", "cell", "array", "value"), GOLDEN)
def test_column_of_nulls(oid: int, cell: bytes, array: str, value: Any) -> None:
    column = one(oid, None, None)
    assert len(getattr(column, array)) == 2
    assert list(column.null_rows) == [0, 1]


def test_not_a_number() -> None:
    assert math.isnan(one(FLOAT8, b"NaN").reals[0])


def test_binary_cells_travel_as_they_are() -> None:
    assert list(one(BYTEA, b"\x00\\x", form=1).blobs) == [b"\x00\\x"]
    assert list(one(INT4, b"\0\0\0\1", form=1).blobs) == [b"\0\0\0\1"]
    schema = TypedColumns().encode_schema(FakeCells([Column(INT4, [], form=1)]))
    assert schema.columns[0].kind == types_pb2.COLUMN_KIND_BLOB


def test_text_that_is_not_utf8_loses_only_its_bad_bytes() -> None:
    assert list(one(TEXT, b"good", b"b\xffd", None).texts) == ["good", "b\ufffdd", ""]


def test_empty_results() -> None:
    no_rows = encode(FakeCells([Column(INT4, []), Column(TEXT, [])]))
    assert (no_rows.row_count, len(no_rows.columns)) == (0, 2)
    no_columns = FakeCells([], ntuples=3)
    assert encode(no_columns).row_count == 3
    assert TypedColumns().encode_schema(no_columns) == types_pb2.ResultSchema(has_columns=True)
    assert TypedColumns().estimate_bytes(no_columns) == 0


def test_batch_borders() -> None:
    cells = FakeCells([Column(INT4, [b"0", None, b"2", None, b"4"])])
    batch = encode(cells, 1, 4)
    assert batch.row_count == 3
    assert list(batch.columns[0].integers) == [0, 2, 0]
    assert list(batch.columns[0].null_rows) == [0, 2]
    assert cells.read == {(1, 0), (2, 0), (3, 0)}
    assert encode(cells, 5, 5).row_count == 0


def test_schema_says_what_the_columns_are() -> None:
    cells = FakeCells([Column(INT8, [], b"id"), Column(JSON, [], "größe".encode()), Column(TEXT, [], b"\xff")])
    schema = TypedColumns().encode_schema(cells)
    assert [(c.name, c.kind, c.type_oid) for c in schema.columns] == [
        ("id", types_pb2.COLUMN_KIND_INTEGER, INT8),
        ("größe", types_pb2.COLUMN_KIND_TEXT, JSON),
        ("\ufffd", types_pb2.COLUMN_KIND_TEXT, TEXT),
    ]
    assert [(c.table_oid, c.attribute, c.type_modifier) for c in schema.columns][1] == (16384, 2, -1)
    assert schema.has_columns


def test_schema_is_kept_and_bounded() -> None:
    encoder = TypedColumns()
    first = encoder.encode_schema(FakeCells([Column(INT8, [], b"id")]))
    assert encoder.encode_schema(FakeCells([Column(INT8, [], b"id")])) is first
    assert encoder.encode_schema(FakeCells([Column(INT4, [], b"id")])) != first
    for number in range(3000):
        encoder.encode_schema(FakeCells([Column(INT8, [], b"c%d" % number)]))
    assert len(encoder._shapes) <= 1024


@pytest.mark.parametrize("encoding", Encoding)
def test_every_encoding_has_an_encoder(encoding: Encoding) -> None:
    batch = ENCODERS[encoding]().encode_batch(FakeCells([Column(INT4, [b"1"])]), 0, 1)
    assert batch.row_count == 1


def escaped(value: bytes) -> bytes:
    """A bytea as PostgreSQL writes it with bytea_output = escape."""
    return b"".join(
        b"\\\\" if one == 0x5C else bytes((one,)) if 0x20 <= one < 0x7F else b"\\%03o" % one for one in value
    )


def byteas(max_size: int) -> st.SearchStrategy[bytes]:
    """Cells in either form."""
    values = st.binary(max_size=max_size) | st.text("abx\\01", max_size=max_size).map(str.encode)
    return values.map(lambda b: b"\\x" + b.hex().encode()) | values.map(escaped)


def read_bytea(cell: bytes) -> bytes:
    """By libpq."""
    return bytes(pq.Escaping().unescape_bytea(cell))


_CELLS = {
    INT8: st.integers(-(2**63), 2**63 - 1).map(lambda n: str(n).encode()),
    FLOAT8: st.floats(allow_nan=False).map(lambda x: repr(x).encode()),
    BOOL: st.sampled_from([b"t", b"f"]),
    BYTEA: byteas(40),
    TEXT: st.text(st.characters(codec="utf-8"), max_size=40).map(str.encode),
}


@st.composite
def tables(draw: st.DrawFn) -> FakeCells:
    count = draw(st.integers(0, 12))
    oids = draw(st.lists(st.sampled_from(sorted(_CELLS)), max_size=5))
    return FakeCells(
        [Column(oid, draw(st.lists(st.none() | _CELLS[oid], min_size=count, max_size=count))) for oid in oids],
        ntuples=count,
    )


@given(tables())
def test_every_cell_comes_back(cells: FakeCells) -> None:
    batch = types_pb2.RowBatch.FromString(encode(cells).SerializeToString())
    arrays = {INT8: "integers", FLOAT8: "reals", BOOL: "booleans", BYTEA: "blobs", TEXT: "texts"}
    for column, data in zip(cells.columns, batch.columns, strict=True):
        values = getattr(data, arrays[column.oid])
        assert len(values) == cells.ntuples
        for row, cell in enumerate(column.cells):
            assert (row in data.null_rows) == (cell is None)
            if cell is not None:
                assert values[row] == _read(column.oid, cell)


def _read(oid: int, cell: bytes) -> Any:
    match oid:
        case 20:
            return int(cell)
        case 701:
            return float(cell)
        case 16:
            return cell == b"t"
        case 17:
            return read_bytea(cell)
    return cell.decode()


@given(tables())
def test_estimate_is_not_far_below_the_truth(cells: FakeCells) -> None:
    real = encode(cells).ByteSize()
    nulls = sum(column.cells.count(None) for column in cells.columns)  # their positions are not estimated
    assert TypedColumns().estimate_bytes(cells) >= (real - nulls) * 0.9 - 16


def test_estimate_is_near_for_large_results() -> None:
    for oid, cell in ((INT4, b"1234567"), (FLOAT8, b"0.5"), (TEXT, b"x" * 100), (BYTEA, b"\\x" + b"00" * 100),
                      (BYTEA, b"x" * 100)):
        cells = FakeCells([Column(oid, [cell] * 1000)])
        real = encode(cells).ByteSize()
        assert real * 0.95 <= TypedColumns().estimate_bytes(cells) <= real * 1.5, KINDS.get(oid)
