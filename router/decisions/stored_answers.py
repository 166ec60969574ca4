"""The answer of a keyed write as bytes for its key's row, and back.

The bytes lie in the tenant's own table, where it may write whatever it likes: reading them trusts nothing, takes no
more memory than they have bytes, and raises ValueError for all that was not written here.

Layout: a version byte, then fields, each a length in 4 bytes (big endian; -1: NULL) and its bytes; numbers are fields
of decimal digits. An answer is a count of results; a result is b"" when it was skipped, else b"r" and tag, rows
affected, notices, and its table: b"" when it has none, else columns and rows.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from router.model.result import Cells, PgNotice, StatementResult
from router.model.stored_cells import StoredCells, StoredColumn

MAX_ROWS_BYTES = 64 << 10
"""Rows of one answer that are kept; of a longer one, columns and counts are (bytes)."""
_MAX_TAG_BYTES = 256
_MAX_NOTICE_BYTES = 1024
_VERSION = b"\x01"
_LENGTH = struct.Struct(">i")
_COLUMN = struct.Struct(">IiIiB")
_WITH_ROWS, _ROWS_LEFT_OUT = b"t", b"l"


def store(results: Sequence[StatementResult | None], wanted: Sequence[bool] = ()) -> bytes:
    """The bytes of an answer. wanted: by result, whether its rows are asked for; empty: all are."""
    fields: list[bytes | None] = [_number(len(results))]
    left = MAX_ROWS_BYTES
    for place, result in enumerate(results):
        if result is None:
            fields.append(b"")
            continue
        fields += (b"r", result.command_tag.encode()[:_MAX_TAG_BYTES], _number(result.rows_affected))
        fields.append(_number(len(result.notices)))
        for notice in result.notices:
            fields += (notice.severity.encode(), notice.sqlstate.encode(), _cut(notice.message))
        if result.cells is None or (wanted and not wanted[place]):
            fields.append(b"")
        else:
            left -= _store_cells(result.cells, fields, left)
    return _VERSION + b"".join([_LENGTH.pack(-1) if one is None else _LENGTH.pack(len(one)) + one for one in fields])


def _store_cells(cells: Cells, fields: list[bytes | None], room: int) -> int:
    """How many bytes of rows were kept."""
    columns = range(cells.nfields)
    rows: list[bytes | None] = []
    size = 0
    for row in range(cells.ntuples):
        for column in columns:
            value = cells.get_value(row, column)
            size += 4 + len(value or b"")
            rows.append(value)
        size += 1
        if size > room:
            break
    left_out = size > room
    fields += (_ROWS_LEFT_OUT if left_out else _WITH_ROWS, _number(cells.nfields))
    for column in columns:
        fields.append(cells.fname(column))
        fields.append(
            _COLUMN.pack(
                cells.ftype(column), cells.fmod(column), cells.ftable(column), cells.ftablecol(column),
                cells.fformat(column),
            )
        )  # fmt: skip
    fields.append(_number(0 if left_out else cells.ntuples))
    if not left_out:
        fields += rows
    return 0 if left_out else size


def _number(value: int) -> bytes:
    return b"%d" % value


def _cut(text: str) -> bytes:
    return text.encode("utf-8", "replace")[:_MAX_NOTICE_BYTES]


def restore(data: bytes) -> list[StatementResult | None]:
    """The answer that store() made bytes of. ValueError for other bytes."""
    if data[:1] != _VERSION:
        raise ValueError("an answer of another version")
    fields = _Fields(data)
    results = [_result(fields) for _ in range(fields.count())]
    fields.end()
    return results


class _Fields:
    """Reads one field after the other."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 1

    def take(self) -> bytes | None:
        data, at = self._data, self._at
        if at + 4 > len(data):
            raise ValueError("cut off")
        (length,) = _LENGTH.unpack_from(data, at)
        if length == -1:
            self._at = at + 4
            return None
        if length < 0 or at + 4 + length > len(data):
            raise ValueError("cut off")
        self._at = at + 4 + length
        return data[at + 4 : self._at]

    def bytes(self) -> bytes:
        found = self.take()
        if found is None:
            raise ValueError("a field is NULL")
        return found

    def text(self) -> str:
        return self.bytes().decode("utf-8", "replace")

    def number(self) -> int:
        digits = self.bytes()
        if not 0 < len(digits) <= 20 or not digits.removeprefix(b"-").isdigit():
            raise ValueError("no number")
        return int(digits)

    def count(self) -> int:
        """Of things that each take a field at least."""
        number = self.number()
        if not 0 <= number <= (len(self._data) - self._at) // 4:
            raise ValueError("more than there can be")
        return number

    def end(self) -> None:
        if self._at != len(self._data):
            raise ValueError("bytes are left")


def _result(fields: _Fields) -> StatementResult | None:
    if not _one_of(fields, b"r"):
        return None
    tag, affected = fields.text(), fields.number()
    notices = tuple(PgNotice(fields.text(), fields.text(), fields.text()) for _ in range(fields.count()))
    return StatementResult(_table(fields), tag, affected, notices)


def _table(fields: _Fields) -> StoredCells | None:
    mark = _one_of(fields, _WITH_ROWS, _ROWS_LEFT_OUT)
    if not mark:
        return None
    columns = tuple(_column(fields) for _ in range(fields.count()))
    # Rows without columns take no field: so many are written as are in the text of their number.
    count = fields.count() if columns else min(fields.number(), MAX_ROWS_BYTES)
    rows = tuple(tuple(fields.take() for _ in columns) for _ in range(count))
    return StoredCells(columns, rows, left_out=mark == _ROWS_LEFT_OUT)


def _column(fields: _Fields) -> StoredColumn:
    name, facts = fields.take(), fields.bytes()
    if len(facts) != _COLUMN.size:
        raise ValueError("no column")
    return StoredColumn(name, *_COLUMN.unpack(facts))


def _one_of(fields: _Fields, *marks: bytes) -> bytes:
    mark = fields.bytes()
    if mark and mark not in marks:
        raise ValueError("no mark")
    return mark


