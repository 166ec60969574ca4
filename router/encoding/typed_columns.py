"""Typed columns: one array a column, its kind chosen once from the type's OID, so that no cell is judged by itself.

PostgreSQL's text form is read as int2/4/8 and oid → integers, float4/8 → reals, bool → booleans, bytea (hex) → blobs;
every other type travels as the text it is. A NULL has a placeholder in its array and its row in null_rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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

from router.model.result import Cells

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


def _write_hex(column: ColumnData, values: _Values) -> None:
    column.blobs.extend([bytes.fromhex(value[2:].decode("ascii")) for value in values])


def _write_blobs(column: ColumnData, values: _Values) -> None:
    column.blobs.extend(values)


_WRITERS: Mapping[ColumnKind.ValueType, tuple[_Writer, bytes]] = {
    COLUMN_KIND_INTEGER: (_write_integers, b"0"),
    COLUMN_KIND_REAL: (_write_reals, b"0"),
    COLUMN_KIND_BOOLEAN: (_write_booleans, b"f"),
    COLUMN_KIND_TEXT: (_write_texts, b""),
    COLUMN_KIND_BLOB: (_write_hex, b"\\x"),
}
"""How a column of text cells is written, and the cell that stands for NULL."""
_RAW: tuple[_Writer, bytes] = (_write_blobs, b"")
_TEXT = _WRITERS[COLUMN_KIND_TEXT]
_BY_OID: Mapping[int, tuple[_Writer, bytes]] = {oid: _WRITERS[kind] for oid, kind in KINDS.items()}

_WIDTHS: Mapping[int, int] = {_BOOL: 1, _INT2: 3, _INT4: 5, _OID: 6, _FLOAT4: 8, _FLOAT8: 8}
"""Most bytes of a cell in its message, where that says enough; other cells are measured."""

_SchemaKey = tuple[tuple[bytes | None, int, int, int, int, int], ...]


class TypedColumns:
    """The encoder. Keeps the schemas it has made, since the same statement brings the same schema again."""

    __slots__ = ("_schemas",)

    _LIMIT = 1024

    def __init__(self) -> None:
        self._schemas: dict[_SchemaKey, ResultSchema] = {}

    def encode_schema(self, cells: Cells) -> ResultSchema:
        """The columns of a result. The message is shared: copy it, do not change it."""
        key = tuple(
            [
                (
                    cells.fname(column),
                    cells.ftype(column),
                    cells.fmod(column),
                    cells.ftable(column),
                    cells.ftablecol(column),
                    cells.fformat(column),
                )
                for column in range(cells.nfields)
            ]
        )
        schema = self._schemas.get(key)
        if schema is None:
            if len(self._schemas) >= self._LIMIT:
                self._schemas.clear()
            schema = self._schemas[key] = _schema(key)
        return schema

    def encode_batch(self, cells: Cells, first_row: int, last_row: int) -> RowBatch:
        """The rows from first_row up to, and without, last_row."""
        batch = RowBatch(row_count=last_row - first_row)
        add = batch.columns.add
        get = cells.get_value
        rows = range(first_row, last_row)
        for column in range(cells.nfields):
            values = [get(row, column) for row in rows]
            write, placeholder = _writer(cells, column)
            target = add()
            if None in values:
                target.null_rows.extend([index for index, value in enumerate(values) if value is None])
                write(target, [placeholder if value is None else value for value in values])
            else:
                write(target, values)  # type: ignore[arg-type]  # no None is left, which the checker cannot see
        return batch

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
            size = sum([len(get(row, column) or b"") for row in rows])
            if oid == _BYTEA and cells.fformat(column) != _BINARY:
                size //= 2  # two hexadecimal digits a byte
            total += size + 3 * len(rows)  # a tag and a length before each
        return total + 8 * cells.nfields


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
            for name, oid, modifier, table, attribute, form in key
        ],
    )
