"""The rows of an answer that was kept, as a table like libpq's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class StoredColumn(NamedTuple):
    """What PostgreSQL says of a column."""

    name: bytes | None
    type_oid: int
    modifier: int
    table_oid: int
    attribute: int
    form: int
    """0 text, 1 binary."""


@dataclass(frozen=True, slots=True)
class StoredCells:
    """model.result.Cells of an answer that was kept."""

    columns: tuple[StoredColumn, ...]
    rows: tuple[tuple[bytes | None, ...], ...]
    left_out: bool = False
    """There were rows, but too many to keep."""

    @property
    def ntuples(self) -> int:
        return len(self.rows)

    @property
    def nfields(self) -> int:
        return len(self.columns)

    def fname(self, column_number: int) -> bytes | None:
        return self.columns[column_number].name

    def ftype(self, column_number: int) -> int:
        return self.columns[column_number].type_oid

    def fmod(self, column_number: int) -> int:
        return self.columns[column_number].modifier

    def ftable(self, column_number: int) -> int:
        return self.columns[column_number].table_oid

    def ftablecol(self, column_number: int) -> int:
        return self.columns[column_number].attribute

    def fformat(self, column_number: int) -> int:
        return self.columns[column_number].form

    def get_value(self, row_number: int, column_number: int) -> bytes | None:
        return self.rows[row_number][column_number]
