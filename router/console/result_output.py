"""Results → text: a table for people, JSON or CSV for programs. What a database holds can never act on the terminal."""

from __future__ import annotations

import datetime
import decimal
import json
import math
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum, unique
from typing import Any, TextIO

import pointsman
from rich.console import Console

from router.console.table_output import write_expanded, write_table


@unique
class OutputFormat(Enum):
    """How rows are written."""

    TABLE = "table"
    """Expanded by itself when many columns do not fit the terminal."""
    EXPANDED = "expanded"
    """One line per column: for wide rows."""
    JSON = "json"
    CSV = "csv"


def write_rows(
    form: OutputFormat, names: Sequence[str], rows: Iterable[Sequence[Any]], console: Console, out: TextIO
) -> None:
    """Write the rows of one result, each as it comes."""
    match form:
        case OutputFormat.TABLE:
            write_table(names, rows, console, _shown)
        case OutputFormat.EXPANDED:
            write_expanded(names, rows, console, _shown)
        case OutputFormat.JSON:
            out.writelines(json_pieces(names, rows))
        case OutputFormat.CSV:
            out.writelines(csv_lines(names, rows))


def csv_lines(names: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterator[str]:
    """RFC 4180 with a header, but plain line ends. NULL is an empty field and an empty text is "", as COPY has them:
    the csv module cannot tell these two apart."""
    yield ",".join(map(_csv_cell, names)) + "\n"
    for row in rows:
        yield ",".join([_csv_cell(None if value is None else as_text(value)) for value in row]) + "\n"


def _csv_cell(cell: str | None) -> str:
    if cell is None:
        return ""
    needs = cell == "" or any(mark in cell for mark in ',"\r\n')
    return '"' + cell.replace('"', '""') + '"' if needs else cell


def unique_names(names: Sequence[str]) -> list[str]:
    """Names for the keys of an object: the second of a name is name_2, or the next that no column has."""
    taken, last = set(names), dict.fromkeys(names, 0)
    fields = []
    for name in names:
        field, last[name] = name, last[name] + 1
        while last[name] > 1 and (field := f"{name}_{last[name]}") in taken:
            last[name] += 1
        taken.add(field)
        fields.append(field)
    return fields


def as_text(value: Any) -> str:
    """A value as PostgreSQL's own tools would print it, near enough for the eye."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, bytes | bytearray | memoryview):
        return "\\x" + bytes(value).hex()
    if isinstance(value, datetime.datetime):
        return value.isoformat(sep=" ")
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, pointsman.Range):
        return _range_text(value)
    if isinstance(value, pointsman.MultiRange):
        return "{" + ",".join(map(_range_text, value)) + "}"
    if isinstance(value, pointsman.Json):
        return json.dumps(value.value, default=as_text, ensure_ascii=False)
    if isinstance(value, pointsman.Interval):
        return _interval_text(value.months, value.days, value.microseconds)
    if isinstance(value, datetime.timedelta):
        return _interval_text(0, value.days, value.seconds * 1_000_000 + value.microseconds)
    if isinstance(value, list):
        return "{" + ",".join(map(_array_item, value)) + "}"
    if isinstance(value, dict):
        return json.dumps(value, default=as_text, ensure_ascii=False)
    return str(value)


def _array_item(item: Any) -> str:
    if item is None:
        return "NULL"
    text = as_text(item)
    if isinstance(item, list):
        return text
    plain = text and text.upper() != "NULL" and not any(mark.isspace() or mark in '{},"\\' for mark in text)
    return text if plain else '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _interval_text(months: int, days: int, microseconds: int) -> str:
    """As PostgreSQL's IntervalStyle postgres writes it: 1 year 2 mons 3 days 04:05:06.7."""
    years, months = abs(months) // 12 * (1 if months > 0 else -1), abs(months) % 12 * (1 if months > 0 else -1)
    parts = []
    negative_before = False
    for number, unit in ((years, "year"), (months, "mon"), (days, "day")):
        if number:
            sign = "+" if negative_before and number > 0 else ""
            parts.append(f"{sign}{number} {unit}{'' if number == 1 else 's'}")
            negative_before = number < 0
    if microseconds or not parts:
        seconds, fraction = divmod(abs(microseconds), 1_000_000)
        sign = "-" if microseconds < 0 else "+" if negative_before else ""
        rest = f".{fraction:06d}".rstrip("0").rstrip(".")
        parts.append(f"{sign}{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}{rest}")
    return " ".join(parts)


def _range_text(value: pointsman.Range[Any]) -> str:
    if value.empty:
        return "empty"
    lower, upper = ("" if bound is None else as_text(bound) for bound in (value.lower, value.upper))
    return f"{value.bounds[0]}{lower},{upper}{value.bounds[1]}"


def json_pieces(names: Sequence[str], rows: Iterable[Sequence[Any]], *, one_line: bool = False) -> Iterator[str]:
    """The rows of one result as an array, piece by piece. one_line: JSON Lines, for output of several."""
    fields = unique_names(names)
    opening, between, closing = ("[", ", ", "]\n") if one_line else ("[\n  ", ",\n  ", "\n]\n")
    lead = opening
    for row in rows:
        yield lead + _json_row(fields, row)
        lead = between
    yield "[]\n" if lead is opening else closing


def _json_row(fields: Sequence[str], row: Sequence[Any]) -> str:
    values = dict(zip(fields, map(_json_value, row), strict=True))
    return json.dumps(values, default=as_text, ensure_ascii=False, allow_nan=False)


def _json_value(value: Any) -> Any:
    if isinstance(value, pointsman.Json):
        return _json_value(value.value)
    if isinstance(value, decimal.Decimal):
        return str(value)  # a JSON number would lose digits in most readers
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no such number
    if isinstance(value, list | tuple):
        return [_json_value(item) for item in value]
    if isinstance(value, dict):
        return {key: _json_value(item) for key, item in value.items()}
    return value


def _shown(value: Any) -> str:
    return visible(as_text(value))


def visible(text: str) -> str:
    """The text with control and direction-changing characters shown as escapes; line ends and tabs stay."""
    if text.isprintable():
        return text
    return "".join(
        mark if mark in "\n\t" or unicodedata.category(mark) not in ("Cc", "Cf", "Cs", "Co", "Cn") else _escape(mark)
        for mark in text
    )


def _escape(mark: str) -> str:
    number = ord(mark)
    return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}" if number < 65536 else f"\\U{number:08x}"
