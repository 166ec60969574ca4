"""A table that fits its terminal: without room for all, whole columns go, in a given order, before a cell is cut."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

_WRAPPED_WIDTH = 12
"""A column that wraps is not made narrower than this."""


@dataclass(frozen=True)
class Column:
    """One column. spare: 0 stays always, 1 goes first, then 2, and so on."""

    name: str
    right: bool = False
    spare: int = 0
    wraps: bool = False
    """Its cells may take several lines; all others keep to one."""


class FittingTable:
    """Chooses its columns each time it is shown, so that it also follows a terminal that changes its size."""

    def __init__(self, *columns: Column) -> None:
        self._columns = columns
        self._rows: list[tuple[Text | str, ...]] = []

    def add(self, *cells: Text | str) -> None:
        """Add a row, with a cell for every column."""
        self._rows.append(cells)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """What rich shows."""
        kept = list(range(len(self._columns)))
        leaving = sorted((index for index in kept if self._columns[index].spare), key=lambda i: self._columns[i].spare)
        table = self._table(kept)
        boundless = options.update(max_width=1_000_000)
        while leaving and Measurement.get(console, boundless, table).maximum > options.max_width:
            kept.remove(leaving.pop(0))
            table = self._table(kept)
        yield table

    def _table(self, kept: list[int]) -> Table:
        table = Table(box=None, pad_edge=False, header_style="dim")
        for index in kept:
            column = self._columns[index]
            table.add_column(
                column.name,
                justify="right" if column.right else "left",
                no_wrap=not column.wraps,
                min_width=_WRAPPED_WIDTH if column.wraps else None,
            )
        for row in self._rows:
            table.add_row(*(row[index] for index in kept))
        return table
