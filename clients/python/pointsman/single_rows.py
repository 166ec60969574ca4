"""A batch of one row, read straight from its bytes: the commonest result, and five times quicker than by its messages.

It reads only what is as plain as can be: one row, no NULL, no value longer than a byte can say. Anything else is left
to the generated messages, which read everything; tests compare the two.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any

from pointsman.decoding import decoder_of
from pointsman.v1 import types_pb2 as pb

_double = struct.Struct("<d").unpack

Read = Callable[[bytes], Any]
Columns = tuple[tuple[int, Read], ...]
"""For each column the tag of its array in ColumnData, and what makes a value of the array's only entry."""


def single_columns(columns: Sequence[pb.ColumnInfo]) -> Columns:
    """How to read the columns of a schema."""
    return tuple(_READERS.get(column.kind) or (0x22, _text(column.type_oid)) for column in columns)


def single_row(columns: Columns, batch: bytes) -> list[Any] | None:
    """The values of the only row in a serialised RowBatch, or None when it is not that plain."""
    if batch[:2] != b"\x08\x01":
        return None
    at, values = 2, []
    try:
        for tag, read in columns:
            # 0x12, length of the column; its tag, length of the entry; the entry
            size = batch[at + 1]
            if batch[at] != 0x12 or batch[at + 2] != tag or batch[at + 3] != size - 2 or size >= 0x80:
                return None
            end = at + 2 + size
            values.append(read(batch[at + 4 : end]))
            at = end
    except (IndexError, ValueError, struct.error):
        return None
    return values if at == len(batch) else None


def _integer(entry: bytes) -> int:
    """From a sint64. ValueError when the bytes are not one number."""
    number = shift = 0
    for byte in entry[:-1]:
        if byte < 0x80:
            raise ValueError("several numbers")
        number |= (byte & 0x7F) << shift
        shift += 7
    if entry[-1] >= 0x80 or shift > 56:  # the largest numbers are left to the general way
        raise ValueError("no number")
    number |= entry[-1] << shift
    return number >> 1 ^ -(number & 1)


def _boolean(entry: bytes) -> bool:
    if entry == b"\x01":
        return True
    if entry == b"\x00":
        return False
    raise ValueError("no boolean")


def _text(type_oid: int) -> Read:
    decoder = decoder_of(type_oid)
    if decoder is None:
        return bytes.decode
    return lambda entry: decoder(entry.decode())


_READERS: dict[int, tuple[int, Read]] = {
    pb.COLUMN_KIND_INTEGER: (0x0A, _integer),
    pb.COLUMN_KIND_REAL: (0x12, lambda entry: _double(entry)[0]),
    pb.COLUMN_KIND_BOOLEAN: (0x1A, _boolean),
    pb.COLUMN_KIND_BLOB: (0x2A, bytes),
}
