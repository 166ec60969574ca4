"""What callers of copies ask for, as messages, and what they get."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import grpc

from pointsman.connection import Link
from pointsman.errors import DeadlineExceeded, Executed
from pointsman.options import ANSWERS_ONLY, WRITE_ONLY, KeyedOptions, StreamOptions, put_options, seconds
from pointsman.results import Notice, Receipt
from pointsman.v1 import query_service_pb2 as pb

Format = Literal["text", "csv", "binary"]
TableName = str | tuple[str, ...]
"""A name, "schema.name", or the same as a tuple (for names that hold a dot). Written as the catalogue has them."""
Progress = Callable[[int, int | None], Any]
"""Called with the bytes so far and, at the end, the rows."""

_FORMATS: dict[str, pb.CopyFormat.ValueType] = {
    "text": pb.COPY_FORMAT_TEXT,
    "csv": pb.COPY_FORMAT_CSV,
    "binary": pb.COPY_FORMAT_BINARY,
}


class CopyOutOptions(StreamOptions, total=False):
    """What copy_out takes besides: the data's format. None means PostgreSQL's default for the format.

    columns    all of the table's, in its order, unless given
    format     "text" (default), "csv" or "binary"
    header     the first line holds the columns' names
    delimiter  one character
    null       the text that stands for NULL
    quote      one character, for "csv"
    """

    columns: Sequence[str] | None
    format: Format
    header: bool
    delimiter: str | None
    null: str | None
    quote: str | None


class CopyInOptions(KeyedOptions, total=False):
    """What copy_in takes besides; see CopyOutOptions."""

    columns: Sequence[str] | None
    format: Format
    header: bool
    delimiter: str | None
    null: str | None
    quote: str | None


class CopyRowsOptions(KeyedOptions, total=False):
    """What copy_rows takes."""


_ENCODING = frozenset({"columns", "format", "header", "delimiter", "null", "quote"})


@dataclass(frozen=True, slots=True)
class CopyResult:
    """What a copy has done."""

    rows: int
    bytes: int
    """Of data."""
    command_tag: str
    receipt: Receipt
    notices: tuple[Notice, ...] = ()


def put_table(message: pb.CopyTable, table: TableName, columns: Sequence[str] | None) -> None:
    """Writes a table's name and columns. The router quotes them."""
    parts = tuple(table.split(".")) if isinstance(table, str) else tuple(table)
    if not 1 <= len(parts) <= 2 or not all(isinstance(part, str) and part for part in parts):
        raise ValueError(
            f'a table is "name", "schema.name" or ("schema", "name"), not {table!r}; '
            "the name of the database is the tenant's"
        )
    message.name = parts[-1]
    message.schema = parts[0] if len(parts) == 2 else ""
    if isinstance(columns, str):
        raise TypeError(f"columns must be a list of names, not {columns!r}")
    message.columns.extend(columns or ())


def put_encoding(message: pb.CopyEncoding, options: Any) -> None:
    """Writes the data's format."""
    form = options.get("format", "text")
    if form not in _FORMATS:
        known = ", ".join(repr(name) for name in _FORMATS)
        raise ValueError(f"format must be one of {known}, not {form!r}")
    message.format = _FORMATS[form]
    message.header = bool(options.get("header"))
    message.delimiter = options.get("delimiter") or ""
    message.quote = options.get("quote") or ""
    null = options.get("null")
    if null is not None:
        message.null_text = null


def out_request(
    table: TableName | None, query: str | None, options: Mapping[str, Any]
) -> tuple[pb.CopyOutRequest, StreamOptions]:
    """The request, and the options that every read takes. ValueError, TypeError for what makes no sense."""
    if (table is None) == (query is None):
        raise ValueError("copy_out() takes a table or query=, one of them")
    request = pb.CopyOutRequest()
    if query is not None:
        if options.get("columns"):
            raise ValueError("columns are for a table: name them in the query")
        request.query = query
    elif table is not None:
        put_table(request.table, table, options.get("columns"))
    put_encoding(request.encoding, options)
    read_options = {name: value for name, value in options.items() if name not in _ENCODING}
    return request, cast("StreamOptions", read_options)


def in_start(table: TableName, options: Mapping[str, Any]) -> pb.CopyInStart:
    """The first message of a copy into a table."""
    start = pb.CopyInStart()
    put_table(start.table, table, options.get("columns"))
    put_encoding(start.encoding, options)
    rest = {name: value for name, value in options.items() if name not in _ENCODING}
    put_options(start.options, rest, "copy_in", WRITE_ONLY, without=ANSWERS_ONLY)
    start.request_id = options.get("request_id") or ""
    start.idempotency_key = options.get("idempotency_key") or ""
    return start


def copy_result(end: pb.CopyOutEnd | pb.CopyInResponse) -> CopyResult:
    """From the router's last message."""
    notices = tuple(Notice(one.severity, one.sqlstate, one.message) for one in end.notices)
    return CopyResult(
        end.rows, end.bytes, end.command_tag, Receipt.from_bytes(end.receipt.SerializeToString()), notices
    )


def total_timeout(options: Any) -> float | None:
    """The caller's timeout, if it gave one: copies have none by default but the router's longest."""
    timeout = options.get("timeout")
    return None if timeout is None else seconds("timeout", timeout)


def late(timeout_s: float, executed: Executed) -> DeadlineExceeded:
    """The error of a copy that took too long."""
    return DeadlineExceeded(
        f"the copy had not ended, or no data came, within {timeout_s:g} s",
        code=grpc.StatusCode.DEADLINE_EXCEEDED,
        reason="DEADLINE",
        executed=executed,
    )


def abandon(rpc: Any, link: Link | None) -> None:
    """The call is over for us."""
    if rpc is not None:
        rpc.cancel()
    if link is not None:
        link.release()
