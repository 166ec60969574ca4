"""Python values → Param: one small function a type, found by the value's class.

Everything travels as PostgreSQL's text form and PostgreSQL infers the type from the statement, except bytes,
which say that they are bytea. One consequence: where a statement gives no clue (`select $1`), PostgreSQL takes
text; write `select $1::int`.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Callable, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, Protocol
from uuid import UUID

import grpc

from pointsman.errors import Executed, InvalidRequest
from pointsman.values import Interval, Json, MultiRange, Range

BYTEA_OID = 17


class ParamSink(Protocol):
    """What is written here: the fields of pointsman.v1.Param (named so that this module needs no stubs)."""

    null: bool
    boolean: bool
    integer: int
    real: float
    text: str
    blob: bytes
    type_oid: int


TextForm = Callable[[Any], str]


def _datetime_text(value: datetime) -> str:
    # The decoder gives datetime.max for "infinity"; sending it back must mean the same.
    bare = value.replace(tzinfo=None)
    if bare == datetime.max:
        return "infinity"
    return "-infinity" if bare == datetime.min else value.isoformat()


def _date_text(value: date) -> str:
    if value == date.max:
        return "infinity"
    return "-infinity" if value == date.min else value.isoformat()


def _float_text(value: float) -> str:
    # repr gives "inf" and "nan", which float8in reads as well. Not a subclass's own: numpy's is no number.
    return float.__repr__(value)


def _bytes_text(value: bytes | bytearray | memoryview) -> str:
    return "\\x" + value.hex()


def _json_text(value: Any) -> str:
    if isinstance(value, Json):
        if value.dumps is not None:
            return value.dumps(value.value)
        value = value.value
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _range_text(value: Range[Any]) -> str:
    if value.empty:
        return "empty"
    lower, upper = (
        "" if bound is None else _quoted(element_text(bound), '\\"') for bound in (value.lower, value.upper)
    )
    return f"{value.bounds[0]}{lower},{upper}{value.bounds[1]}"


def _multirange_text(value: MultiRange) -> str:
    return "{" + ",".join(map(_range_text, value)) + "}"


def array_text(value: Sequence[Any]) -> str:
    """A list as PostgreSQL's array literal, at any depth."""
    parts = []
    for item in value:
        if item is None:
            parts.append("NULL")
        elif isinstance(item, (list, tuple)) and not isinstance(item, MultiRange):
            parts.append(array_text(item))
        elif isinstance(item, (bool, int, float, Decimal)) and not isinstance(item, Enum):
            parts.append(element_text(item))
        else:
            parts.append(_quoted(element_text(item), '\\"'))
    return "{" + ",".join(parts) + "}"


def _quoted(text: str, special: str) -> str:
    for character in special:
        text = text.replace(character, "\\" + character)
    return f'"{text}"'


TEXT_FORMS: dict[type, TextForm] = {
    str: str.__str__,
    Decimal: Decimal.__str__,
    datetime: _datetime_text,
    date: _date_text,
    time: time.isoformat,
    timedelta: lambda value: str(Interval.of(value)),
    Interval: Interval.__str__,
    UUID: UUID.__str__,
    dict: _json_text,
    Json: _json_text,
    list: array_text,
    tuple: array_text,
    Range: _range_text,
    MultiRange: _multirange_text,
    ipaddress.IPv4Address: str,
    ipaddress.IPv6Address: str,
    ipaddress.IPv4Interface: str,
    ipaddress.IPv6Interface: str,
    ipaddress.IPv4Network: str,
    ipaddress.IPv6Network: str,
}
"""Types that travel as text, also inside arrays and ranges. A subclass may show itself as it likes: what counts is the
value, so the form is the type's own."""

ELEMENT_FORMS: dict[type, TextForm] = {
    **TEXT_FORMS,
    bool: lambda value: "t" if value else "f",
    int: int.__repr__,
    float: _float_text,
    bytes: _bytes_text,
    bytearray: _bytes_text,
    memoryview: _bytes_text,
}
"""Types that have fields of their own in Param, but are text inside an array or a range."""


def element_text(value: Any) -> str:
    """The text form of a value inside an array or a range."""
    if isinstance(value, Enum):
        return element_text(value.value)
    form = ELEMENT_FORMS.get(type(value)) or _by_ancestor(ELEMENT_FORMS, value)
    if form is None:
        raise TypeError(_unknown(value))
    return form(value)


def _put_null(param: ParamSink, value: Any) -> None:
    param.null = True


def _put_bool(param: ParamSink, value: bool) -> None:
    param.boolean = value


def _put_int(param: ParamSink, value: int) -> None:
    if -(2**63) <= value < 2**63:
        param.integer = value
    else:
        param.text = int.__repr__(value)


def _put_float(param: ParamSink, value: float) -> None:
    param.real = value


def refuse_nul(text: str) -> None:
    """ValueError for a text that libpq would end early without a word."""
    if "\0" in text:
        raise ValueError("text with a NUL character, which PostgreSQL cannot store")


def _put_text(param: ParamSink, value: str) -> None:
    refuse_nul(value)
    param.text = value


def _put_bytes(param: ParamSink, value: bytes | bytearray | memoryview) -> None:
    param.blob = bytes(value)
    param.type_oid = BYTEA_OID


def _put_enum(param: ParamSink, value: Enum) -> None:
    put(param, value.value)


def _put_form(form: TextForm) -> Callable[[ParamSink, Any], None]:
    def put_form(param: ParamSink, value: Any) -> None:
        _put_text(param, form(value))

    return put_form


PUTTERS: dict[type, Callable[[Any, Any], None]] = {
    **{kind: _put_form(form) for kind, form in TEXT_FORMS.items()},
    type(None): _put_null,
    bool: _put_bool,
    int: _put_int,
    float: _put_float,
    str: _put_text,
    bytes: _put_bytes,
    bytearray: _put_bytes,
    memoryview: _put_bytes,
    Enum: _put_enum,
}


def put(param: ParamSink, value: Any) -> None:
    """Writes a value into a Param. TypeError for a type that has no PostgreSQL form."""
    putter = PUTTERS.get(type(value))
    if putter is None:
        # An IntEnum is an int and a StrEnum a str, but what is meant is always the value.
        putter = _put_enum if isinstance(value, Enum) else _by_ancestor(PUTTERS, value)
        if putter is None:
            raise TypeError(_unknown(value))
    putter(param, value)


def put_all(params: Any, values: Sequence[Any]) -> None:
    """Appends one Param a value to a repeated field, and says which one is wrong."""
    for position, value in enumerate(values, 1):
        param = params.add()
        try:
            put(param, value)
        except TypeError as error:
            raise unknown_parameter(position, error) from error
        except ValueError as error:  # NUL, lone surrogates, circular JSON
            raise unsendable(position, str(error)) from error


def put_statement(statement: Any, sql: str, args: Sequence[Any]) -> None:
    """Writes a statement and its parameters."""
    if not isinstance(sql, str):
        raise TypeError(f"sql must be a str, not {type(sql).__name__}")
    statement.sql = sql
    if args:
        put_all(statement.params, args)


def _by_ancestor(table: dict[type, Callable[..., Any]], value: Any) -> Callable[..., Any] | None:
    return next((table[kind] for kind in type(value).__mro__ if kind in table), None)


def unknown_parameter(position: int, error: TypeError) -> TypeError:
    """The error of a parameter whose type has no PostgreSQL form."""
    return TypeError(f"parameter ${position}: {error}")


def unsendable(position: int, words: str) -> InvalidRequest:
    """The error of a parameter whose value PostgreSQL could not store."""
    return InvalidRequest(
        f"parameter ${position}: {words}",
        code=grpc.StatusCode.INVALID_ARGUMENT,
        reason="BAD_DATA",
        executed=Executed.NO,
    )


def _unknown(value: Any) -> str:
    kind = type(value)
    return (
        f"no PostgreSQL form for {kind.__module__}.{kind.__qualname__}; convert it to a str, a number, a datetime, "
        "or wrap it in pointsman.Json"
    )
