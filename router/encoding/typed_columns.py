"""Typed columns: one array a column, its kind chosen once from the type's OID, so that no cell is judged by itself.

PostgreSQL's text form is read as int2/4/8 and oid → integers, float4/8 → reals, bool → booleans, bytea → blobs;
every other type travels as the text it is. A NULL has a placeholder in its array and its row in null_rows.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any

from pointsman.v1.types_pb2 import (
    COLUMN_KIND_BLOB,
    COLUMN_KIND_BOOLEAN,
    COLUMN_KIND_INTEGER,
    COLUMN_KIND_REAL,
    COLUMN_KIND_TEXT,
    ColumnData,
    ColumnInfo,
    ColumnKind,
    ResultSchema,
    RowBatch,
)

from router.encoding import framing
from router.encoding.framing import CellFramer
from router.model.result import Cells, Row, RowLoader, RowRun
from router.model.stored_cells import StoredCells

MAX_SMALL_ROWS = 100
MAX_SMALL_BYTES = 64 << 10
"""What result_bytes takes on."""

_BOOL, _BYTEA, _INT8, _INT2, _INT4, _OID, _FLOAT4, _FLOAT8 = 16, 17, 20, 21, 23, 26, 700, 701
"""OIDs of built-in types, fixed for ever (src/include/catalog/pg_type.dat)."""

_BINARY = 1

KINDS: Mapping[int, ColumnKind.ValueType] = {
    _BOOL: COLUMN_KIND_BOOLEAN,
    _BYTEA: COLUMN_KIND_BLOB,
    _INT8: COLUMN_KIND_INTEGER,
    _INT2: COLUMN_KIND_INTEGER,
    _INT4: COLUMN_KIND_INTEGER,
    _OID: COLUMN_KIND_INTEGER,
    _FLOAT4: COLUMN_KIND_REAL,
    _FLOAT8: COLUMN_KIND_REAL,
}
"""By type OID; every other type is text."""

_Values = Sequence[bytes]
_Writer = Callable[[ColumnData, _Values], None]


def _write_integers(column: ColumnData, values: _Values) -> None:
    column.integers.extend(map(int, values))


def _write_reals(column: ColumnData, values: _Values) -> None:
    column.reals.extend(map(float, values))


def _write_booleans(column: ColumnData, values: _Values) -> None:
    column.booleans.extend([value == b"t" for value in values])


def _write_texts(column: ColumnData, values: _Values) -> None:
    texts: Any = column.texts
    try:
        texts.extend(values)  # protobuf takes UTF-8 as bytes: no str in between
    except (UnicodeDecodeError, ValueError):
        # A database in SQL_ASCII may hold anything; the bad bytes are replaced, the rest arrives.
        del texts[:]
        texts.extend([value.decode("utf-8", "replace") for value in values])


def _write_bytea(column: ColumnData, values: _Values) -> None:
    hexadecimal, unescaped = framing.HEX, framing.unescaped
    column.blobs.extend([
        bytes.fromhex(value[2:].decode("ascii")) if value.startswith(hexadecimal) else unescaped(value)
        for value in values
    ])


def _write_blobs(column: ColumnData, values: _Values) -> None:
    column.blobs.extend(values)


_WRITERS: Mapping[ColumnKind.ValueType, tuple[_Writer, bytes]] = {
    COLUMN_KIND_INTEGER: (_write_integers, b"0"),
    COLUMN_KIND_REAL: (_write_reals, b"0"),
    COLUMN_KIND_BOOLEAN: (_write_booleans, b"f"),
    COLUMN_KIND_TEXT: (_write_texts, b""),
    COLUMN_KIND_BLOB: (_write_bytea, framing.HEX),
}
"""How a column of text cells is written, and the cell that stands for NULL."""
_RAW: tuple[_Writer, bytes] = (_write_blobs, b"")
_TEXT = _WRITERS[COLUMN_KIND_TEXT]
_BY_OID: Mapping[int, tuple[_Writer, bytes]] = {oid: _WRITERS[kind] for oid, kind in KINDS.items()}

_ARRAYS: Mapping[ColumnKind.ValueType, tuple[Callable[[ColumnData], Any], Any]] = {
    COLUMN_KIND_INTEGER: (attrgetter("integers"), 0),
    COLUMN_KIND_REAL: (attrgetter("reals"), 0.0),
    COLUMN_KIND_BOOLEAN: (attrgetter("booleans"), False),
    COLUMN_KIND_TEXT: (attrgetter("texts"), ""),
    COLUMN_KIND_BLOB: (attrgetter("blobs"), b""),
}
"""Where loaded values of a kind go, and the value that stands for NULL."""
_FEW_ROWS = 2

_WIDTHS: Mapping[int, int] = {_BOOL: 1, _INT2: 3, _INT4: 5, _OID: 6, _FLOAT4: 8, _FLOAT8: 8}
"""Most bytes of a cell in its message, where that says enough; other cells are measured."""

_FRAMERS: Mapping[ColumnKind.ValueType, CellFramer] = {
    COLUMN_KIND_INTEGER: framing.integer,
    COLUMN_KIND_REAL: framing.real,
    COLUMN_KIND_BOOLEAN: framing.boolean,
    COLUMN_KIND_TEXT: framing.text,
    COLUMN_KIND_BLOB: framing.bytea,
}
"""The same for one row's cell, straight to wire bytes."""

_SchemaKey = tuple[Any, ...]
"""Six entries a column: flat, since that is the cheapest to make and to compare."""


class _Shape:
    """What is made once for all results with the same columns."""

    __slots__ = ("framed", "framers", "nothing", "schema")

    def __init__(self, schema: ResultSchema, forms: Sequence[int]) -> None:
        self.schema = schema
        self.framed = framing.schema_field(schema.SerializeToString())
        """ResultSet.schema on the wire."""
        framers = [
            framing.blob if form == _BINARY else _FRAMERS[column.kind]
            for column, form in zip(schema.columns, forms, strict=True)
        ]
        placeholders = [
            _RAW[1] if form == _BINARY else _WRITERS[column.kind][1]
            for column, form in zip(schema.columns, forms, strict=True)
        ]
        self.framers = tuple(
            (frame, framing.null(frame(placeholder))) for frame, placeholder in zip(framers, placeholders, strict=True)
        )
        """By column: how a cell is framed, and the field that says NULL."""
        self.nothing = self.framed + framing.batch_field(framing.EMPTY_COLUMN * len(schema.columns))
        """The whole of a result without rows."""


class TypedColumns:
    """The encoder. Keeps the schemas it has made, since the same statement brings the same schema again."""

    __slots__ = ("_loader", "_shapes")

    _LIMIT = 1024

    def __init__(self, loader: RowLoader | None = None) -> None:
        """loader: reads many cells at once; without one they are read one by one."""
        self._loader = loader
        self._shapes: dict[_SchemaKey, _Shape] = {}

    def _shape(self, cells: Cells) -> _Shape:
        # All that the schema says is compared: a prepared statement's columns may change between two results.
        if cells.nfields == 1:
            key: _SchemaKey = (
                cells.fname(0), cells.ftype(0), cells.fmod(0), cells.ftable(0), cells.ftablecol(0), cells.fformat(0)
            )  # fmt: skip
        else:
            key = _key(cells)
        shape = self._shapes.get(key)
        if shape is None:
            if len(self._shapes) >= self._LIMIT:
                self._shapes.clear()
            shape = self._shapes[key] = _Shape(_schema(key), key[5::6])
        return shape

    def encode_schema(self, cells: Cells) -> ResultSchema:
        """The columns of a result. The message is shared: copy it, do not change it."""
        return self._shape(cells).schema

    def result_bytes(self, cells: Cells) -> bytes | None:
        """The fields schema and batch of a ResultSet on the wire, with all rows; None when the result is not small.

        Equal to what encode_schema and encode_batch give, without their messages. Small: 100 rows, 64 KiB.
        """
        count = cells.ntuples
        if count == 1:
            get = cells.get_value
            shape = self._shape(cells)
            batch = framing.ONE_ROW
            for column, (frame, null) in enumerate(shape.framers):
                cell = get(0, column)
                batch += null if cell is None else frame(cell)
        elif count == 0:
            return self._shape(cells).nothing
        elif count > MAX_SMALL_ROWS:
            return None
        else:
            shape = self._shape(cells)
            batch = self.encode_batch(cells, 0, count).SerializeToString()
        if len(batch) > MAX_SMALL_BYTES:
            return None
        return shape.framed + framing.batch_field(batch)

    def encode_batch(self, cells: Cells, first_row: int, last_row: int) -> RowBatch:
        """The rows from first_row up to, and without, last_row."""
        batch = RowBatch()
        self.encode_into(batch, cells, first_row, last_row)
        return batch

    def encode_into(self, batch: RowBatch, cells: Cells, first_row: int, last_row: int) -> None:
        """The same, into a message that is empty: it may be a part of another, and need not be copied."""
        batch.row_count = last_row - first_row
        part = first_row or last_row != cells.ntuples
        if self._loader is None or part or last_row < _FEW_ROWS or isinstance(cells, StoredCells):
            _encode_cells(batch, cells, range(first_row, last_row))
            return
        try:
            columns = _load(self._loader, cells)
        except UnicodeDecodeError:
            _encode_cells(batch, cells, range(first_row, last_row))
            return
        add = batch.columns.add
        for column, values in enumerate(columns):
            _write_loaded(add(), _kind(cells, column), values)

    def estimate_bytes(self, cells: Cells) -> int:
        """About how many bytes all rows will take, a little too many rather than too few."""
        get = cells.get_value
        rows = range(cells.ntuples)
        total = 0
        for column in range(cells.nfields):
            oid = cells.ftype(column)
            width = _WIDTHS.get(oid)
            if width is not None:
                total += width * len(rows)
                continue
            values = [get(row, column) or b"" for row in rows]
            size = sum(map(len, values))
            if oid == _BYTEA and cells.fformat(column) != _BINARY:
                # Two hexadecimal digits a byte; an escaped one may stand for itself.
                size -= sum([len(value) // 2 for value in values if value.startswith(framing.HEX)])
            total += size + 3 * len(rows)  # a tag and a length before each
        return total + 8 * cells.nfields


def _key(cells: Cells) -> _SchemaKey:
    name, oid, modifier = cells.fname, cells.ftype, cells.fmod
    table, attribute, form = cells.ftable, cells.ftablecol, cells.fformat
    parts: list[Any] = []
    for column in range(cells.nfields):
        parts += (name(column), oid(column), modifier(column), table(column), attribute(column), form(column))
    return tuple(parts)


def _load(loader: RowLoader, cells: Cells) -> list[tuple[Any, ...]]:
    """The cells' columns; no column where there are no rows."""
    collecting = gc.isenabled()
    # A tuple a row, all of them dead in a moment: the collector would look at each of them for nothing.
    gc.disable()
    try:
        if isinstance(cells, RowRun):
            rows: list[Row] = []
            for part in cells.parts:
                rows += loader.load(part)
        else:
            rows = loader.load(cells)
        return list(zip(*rows, strict=True))
    finally:
        if collecting:
            gc.enable()


def _encode_cells(batch: RowBatch, cells: Cells, rows: range) -> None:
    add = batch.columns.add
    get = cells.get_value
    for column in range(cells.nfields):
        values = [get(row, column) for row in rows]
        write, placeholder = _writer(cells, column)
        target = add()
        if None in values:
            target.null_rows.extend([index for index, value in enumerate(values) if value is None])
            write(target, [placeholder if value is None else value for value in values])
        else:
            write(target, values)  # type: ignore[arg-type]  # no None is left, which the checker cannot see


def _write_loaded(column: ColumnData, kind: ColumnKind.ValueType, values: Sequence[Any]) -> None:
    read, placeholder = _ARRAYS[kind]
    target = read(column)
    try:
        target.extend(values)  # most columns have no NULL: cheaper to be told than to look
    except TypeError:
        del target[:]
        column.null_rows.extend([row for row, value in enumerate(values) if value is None])
        target.extend([placeholder if value is None else value for value in values])


def _kind(cells: Cells, column: int) -> ColumnKind.ValueType:
    return COLUMN_KIND_BLOB if cells.fformat(column) == _BINARY else KINDS.get(cells.ftype(column), COLUMN_KIND_TEXT)


def _writer(cells: Cells, column: int) -> tuple[_Writer, bytes]:
    if cells.fformat(column) == _BINARY:
        return _RAW
    return _BY_OID.get(cells.ftype(column), _TEXT)


def _schema(key: _SchemaKey) -> ResultSchema:
    return ResultSchema(
        has_columns=True,
        columns=[
            ColumnInfo(
                name=(name or b"").decode("utf-8", "replace"),
                kind=COLUMN_KIND_BLOB if form == _BINARY else KINDS.get(oid, COLUMN_KIND_TEXT),
                type_oid=oid,
                type_modifier=modifier,
                table_oid=table,
                attribute=attribute,
            )
            for name, oid, modifier, table, attribute, form in zip(*[iter(key)] * 6, strict=True)
        ],
    )
