"""Rows → a table for people, row by row: its widths come from the first rows, so that a result of any size needs no
memory, and what has come is seen at once."""

from __future__ import annotations

import datetime
import decimal
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, islice, zip_longest
from typing import Any

from rich.box import HEAVY_HEAD
from rich.cells import cell_len, chop_cells
from rich.console import Console
from rich.text import Text

FIRST_ROWS = 200
"""The widths come from these."""
NULL = "∅"
"""How NULL looks in a table: no text that is likely to be a value."""
_MANY_COLUMNS = 4
_NUMBER_WIDTH, _TIME_WIDTH, _ZONED_WIDTH = 10, 26, 32
"""Cells: what numbers and times of later rows may take."""

CellText = Callable[[Any], str]
"""A value as it is shown; not called for NULL."""


def write_table(names: Sequence[str], rows: Iterable[Sequence[Any]], console: Console, text: CellText) -> None:
    """Write a table; one line per column instead where many columns do not fit the terminal."""
    coming = iter(rows)
    first = list(islice(coming, FIRST_ROWS))
    everything = chain(first, coming)
    titles = [text(name).expandtabs() for name in names]
    widths = [max(map(cell_len, title.split("\n"))) for title in titles]
    for row in first:
        for at, value in enumerate(row):
            widths[at] = max(widths[at], _width(value, text))
    room = console.width - 3 * len(names) - 1
    if len(names) >= _MANY_COLUMNS and sum(widths) > room:
        # Folding many columns into a narrow terminal leaves a letter a line: nobody can read that.
        write_expanded(names, everything, console, text)
        return
    if len(first) == FIRST_ROWS:
        widths = _with_room_for_more(widths, first, room)
    right = [_is_number([row[at] for row in first[:50]]) for at in range(len(names))]
    table = _Table(_fitted(widths, room), right, console, text)
    table.write_head(titles)
    console.file.flush()
    for line in map(table.row, everything):
        console.file.write(line)
    table.write_foot()


class _Table:
    """The lines of a table whose columns have these widths, in cells."""

    def __init__(self, widths: Sequence[int], right: Sequence[bool], console: Console, text: CellText) -> None:
        self._widths = widths
        self._right = right
        self._console = console
        self._text = text
        self._null = _styled(console, NULL, "dim")
        self._box = HEAVY_HEAD.substitute(console.options)
        self._spare = max(0, console.width - sum(widths) - 3 * len(widths) - 1)

    def write_head(self, titles: Sequence[str]) -> None:
        box, console = self._box, self._console
        _write_line(console, Text(box.get_top([width + 2 for width in self._widths])))
        for pieces in zip_longest(*map(_pieces, titles, self._widths), fillvalue=""):
            line = Text(box.head_left)
            for at, piece in enumerate(pieces):
                line.append(box.head_vertical if at else "").append(" ").append(self._padded(at, piece), style="bold")
                line.append(" ")
            _write_line(console, line.append(box.head_right))
        _write_line(console, Text(box.get_row([width + 2 for width in self._widths], "head")))

    def write_foot(self) -> None:
        _write_line(self._console, Text(self._box.get_bottom([width + 2 for width in self._widths])))

    def row(self, row: Sequence[Any]) -> str:
        """The line of a row; several where a cell has several, or where it is wider than the terminal has room for."""
        cells = []
        over = 0
        for at, value in enumerate(row):
            shown = self._null if value is None else self._text(value)
            if value is not None and not shown.isprintable():  # line ends and tabs: all else is shown as escapes
                return self._tall(row)
            spare = self._widths[at] - (1 if value is None else len(shown) if shown.isascii() else cell_len(shown))
            over -= min(spare, 0)
            cells.append(f"{' ' * spare}{shown}" if self._right[at] else f"{shown}{' ' * spare}")
        return self._line(cells) if over <= self._spare else self._tall(row)

    def _tall(self, row: Sequence[Any]) -> str:
        columns = [
            [NULL] if value is None else _pieces(self._text(value), width)
            for value, width in zip(row, self._widths, strict=True)
        ]
        lines = []
        for number, pieces in enumerate(zip_longest(*columns, fillvalue="")):
            cells = [self._padded(at, piece) for at, piece in enumerate(pieces)]
            if not number:
                nulls = (at for at, value in enumerate(row) if value is None)
                for at in nulls:
                    cells[at] = cells[at].replace(NULL, self._null)
            lines.append(self._line(cells))
        return "".join(lines)

    def _line(self, cells: Sequence[str]) -> str:
        box = self._box
        return f"{box.mid_left} {f' {box.mid_vertical} '.join(cells)} {box.mid_right}\n"

    def _padded(self, at: int, shown: str) -> str:
        pad = " " * (self._widths[at] - cell_len(shown))
        return pad + shown if self._right[at] else shown + pad


def write_expanded(names: Sequence[str], rows: Iterable[Sequence[Any]], console: Console, text: CellText) -> None:
    """Write one line per column: for wide rows."""
    titles = [text(name).replace("\n", " ").expandtabs() for name in names]
    width = max(map(cell_len, titles))
    bold = [_styled(console, title + " " * (width - cell_len(title)), "bold") + "  " for title in titles]
    null = _styled(console, NULL, "dim")
    before, _, after = _styled(console, "─ row \0 ", "dim").partition("\0")
    room = max(1, console.width - width - 2)
    indent = "\n" + " " * (width + 2)
    for number, row in enumerate(rows, 1):
        lines = [f"{before}{number}{after}\n"]
        for title, value in zip(bold, row, strict=True):
            lines.append(f"{title}{null if value is None else indent.join(_pieces(text(value), room))}\n")
        console.file.write("".join(lines))


def _pieces(shown: str, width: int) -> list[str]:
    """The lines that a cell takes at a width."""
    lines = shown.expandtabs().split("\n") if not shown.isprintable() else [shown]
    return [piece for line in lines for piece in (chop_cells(line, width) if cell_len(line) > width else [line])]


def _width(value: Any, text: CellText) -> int:
    if value is None:
        return 1
    shown = text(value)
    return cell_len(shown) if shown.isprintable() else max(map(cell_len, shown.expandtabs().split("\n")))


def _is_number(values: Sequence[Any]) -> bool:
    known = [value for value in values if value is not None]
    numbers = any(isinstance(value, int | float | decimal.Decimal) for value in known)
    return numbers and not any(isinstance(value, bool) for value in known)


def _with_room_for_more(widths: list[int], first: Sequence[Sequence[Any]], room: int) -> list[int]:
    """Widths for rows that are not known yet, by type: serial numbers grow. Unchanged where there is no room."""
    wider = list(widths)
    for at in range(len(widths)):
        values = [row[at] for row in first[:50] if row[at] is not None]
        if _is_number(values):
            wider[at] = max(widths[at], _NUMBER_WIDTH)
        elif values and isinstance(values[0], datetime.datetime):
            wider[at] = max(widths[at], _TIME_WIDTH if values[0].tzinfo is None else _ZONED_WIDTH)
    return wider if sum(wider) <= room else widths


def _fitted(widths: list[int], room: int) -> list[int]:
    """Widths that fit: the widest columns give way."""
    if sum(widths) <= room:
        return widths
    low, high = 1, max(widths)
    while low < high:
        middle = (low + high + 1) // 2
        fits = sum(min(width, middle) for width in widths) <= room
        low, high = (middle, high) if fits else (low, middle - 1)
    return [min(width, low) for width in widths]


def _styled(console: Console, shown: str, style: str) -> str:
    """The text with what the terminal needs to show it in that style."""
    with console.capture() as captured:
        console.print(Text(shown, style=style, end=""), soft_wrap=True, end="")
    return captured.get()


def _write_line(console: Console, line: Text) -> None:
    console.print(line, soft_wrap=True)
