"""One row's cells as wire bytes of pointsman.v1.ColumnData, written by hand.

For one row, making protobuf's objects costs several times what the bytes cost: a result of one row is the most
frequent one, so its bytes are put together here. Field numbers are those of protos/pointsman/v1/types.proto; the
encoding is https://protobuf.dev/programming-guides/encoding/. Every function returns a RowBatch.columns field.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from struct import Struct

from pointsman.wire import field, varint

CellFramer = Callable[[bytes], bytes]

_COLUMN = b"\x12"
"""RowBatch.columns; ResultSet.batch has the same number."""
_SCHEMA = b"\x0a"
"""ResultSet.schema."""
ONE_ROW = b"\x08\x01"
"""RowBatch.row_count: 1."""
EMPTY_COLUMN = _COLUMN + b"\x00"
_TEXT, _BLOB = b"\x22", b"\x2a"
_INTEGERS, _REALS = b"\x0a", b"\x12"
_ROW_0_IS_NULL = b"\x32\x01\x00"

_real = Struct("<d").pack
_REAL_PREFIX = _COLUMN + b"\x0a" + _REALS + b"\x08"


_CACHED = 4096
"""Cells up to this many bytes find their prefix ready."""


def schema_field(schema: bytes) -> bytes:
    """ResultSet.schema around a serialised ResultSchema."""
    return field(_SCHEMA, schema)


def batch_field(batch: bytes) -> bytes:
    """ResultSet.batch around a serialised RowBatch."""
    return field(_COLUMN, batch)


def _prefixes(tag: bytes) -> tuple[bytes, ...]:
    """By the cell's length: everything of the column's field before the cell."""
    return tuple(_prefix(tag, size) for size in range(_CACHED))


def _prefix(tag: bytes, size: int) -> bytes:
    inner = tag + varint(size)
    return _COLUMN + varint(len(inner) + size) + inner


_TEXT_PREFIXES = _prefixes(_TEXT)


def text(cell: bytes) -> bytes:
    """A text; bytes that are not UTF-8 are replaced, as on the message's way."""
    if not cell.isascii():
        try:
            cell.decode()
        except UnicodeDecodeError:
            cell = cell.decode("utf-8", "replace").encode()
    size = len(cell)
    return (_TEXT_PREFIXES[size] if size < _CACHED else _prefix(_TEXT, size)) + cell


def blob(cell: bytes) -> bytes:
    """Raw bytes."""
    return _prefix(_BLOB, len(cell)) + cell


HEX = b"\\x"
"""How a bytea begins in hex form, and none in escape form, where a backslash stands twice or before three digits."""
_ESCAPED = re.compile(rb"\\(\\|[0-3][0-7]{2})")


def bytea(cell: bytes) -> bytes:
    """A bytea in PostgreSQL's hex form, or escaped, where its statement or transaction has set bytea_output."""
    value = bytes.fromhex(cell[2:].decode("ascii")) if cell[:2] == HEX else unescaped(cell)
    return _prefix(_BLOB, len(value)) + value


def unescaped(cell: bytes) -> bytes:
    """What a bytea in escape form stands for."""
    return _ESCAPED.sub(lambda found: HEX[:1] if found[1] == HEX[:1] else bytes((int(found[1], 8),)), cell)


def _integer(number: int) -> bytes:
    return field(_COLUMN, field(_INTEGERS, varint((number << 1) ^ (number >> 63))))


_SMALL_INTEGERS = {str(number).encode(): _integer(number) for number in range(-256, 1024)}


def integer(cell: bytes) -> bytes:
    """An integer of at most 64 bits, zigzag."""
    found = _SMALL_INTEGERS.get(cell)
    if found is not None:
        return found
    number = int(cell)
    zigzag = (number << 1) ^ (number >> 63)
    # Unrolled for what fits 32 bits: three times as fast as the loop.
    low = zigzag & 0x7F | 0x80
    second = zigzag >> 7 & 0x7F | 0x80
    if zigzag < 0x4000:
        return bytes((0x12, 4, 0x0A, 2, low, zigzag >> 7))
    if zigzag < 0x200000:
        return bytes((0x12, 5, 0x0A, 3, low, second, zigzag >> 14))
    third = zigzag >> 14 & 0x7F | 0x80
    if zigzag < 0x10000000:
        return bytes((0x12, 6, 0x0A, 4, low, second, third, zigzag >> 21))
    if zigzag < 0x800000000:
        return bytes((0x12, 7, 0x0A, 5, low, second, third, zigzag >> 21 & 0x7F | 0x80, zigzag >> 28))
    return _integer(number)


def real(cell: bytes) -> bytes:
    """A float4 or float8."""
    return _REAL_PREFIX + _real(float(cell))


_TRUE = b"\x12\x03\x1a\x01\x01"
_FALSE = b"\x12\x03\x1a\x01\x00"


def boolean(cell: bytes) -> bytes:
    """A bool."""
    return _TRUE if cell == b"t" else _FALSE


def null(placeholder: bytes) -> bytes:
    """The field that says NULL, made of the field of the placeholder cell."""
    return field(_COLUMN, placeholder[2:] + _ROW_0_IS_NULL)
