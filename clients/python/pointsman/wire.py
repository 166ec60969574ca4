"""Requests in protobuf's wire form, written by hand: much of what a point read costs its caller is making messages.

Only what every call has is written here (a statement and its parameters, lengths, frames); what is rare (options,
guards, unusual types) is made with the generated messages and appended as bytes. That is sound because protobuf
concatenates: https://protobuf.dev/programming-guides/encoding/. Tests parse all of it with the generated messages.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any

from pointsman.parameters import TEXT_FORMS, put, refuse_nul, unknown_parameter, unsendable
from pointsman.v1 import types_pb2 as pb

MAX_HEADS = 1024
"""Statement texts kept encoded; all are dropped beyond, for a program that makes up statements without end."""
MAX_KEPT_TEXT = 4 * 1024
"""Longer texts are encoded anew each time."""

_double = struct.Struct("<d").pack
_SHORT = tuple(bytes((number,)) for number in range(128))
_heads: dict[str, bytes] = {}


def varint(number: int) -> bytes:
    """Protobuf's form of an unsigned integer."""
    if number < 0x80:
        return _SHORT[number]
    if number < 0x4000:
        return bytes((number & 0x7F | 0x80, number >> 7))
    if number < 0x200000:
        return bytes((number & 0x7F | 0x80, number >> 7 & 0x7F | 0x80, number >> 14))
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def field(tag: bytes, body: bytes) -> bytes:
    """A field that has a length: text, bytes or a message. `tag` is its number and wire type, encoded."""
    return tag + varint(len(body)) + body


def text_field(tag: bytes, text: str) -> bytes:
    """A text that is not sent when it is empty."""
    return field(tag, text.encode()) if text else b""


def call_frame(call_id: int, timeout_ms: int, body: bytes) -> bytes:
    """One entry of MultiplexRequest.calls: id and timeout in front of an already serialised MultiplexCall.

    So a call is serialised once, when it is made, and can be sent again as it is.
    """
    head = b"\x08" + varint(call_id) + b"\x10" + varint(timeout_ms)
    return b"\x0a" + varint(len(head) + len(body)) + head + body


def statement(tag: bytes, sql: str, args: Sequence[Any]) -> bytes:
    """A field that holds a Statement. TypeError, ValueError and InvalidRequest say which parameter is wrong."""
    head = _heads.get(sql) if type(sql) is str else None
    if head is None:
        head = _statement_head(sql)
    if args:
        head += params(args)
    return tag + varint(len(head)) + head


def params(values: Sequence[Any]) -> bytes:
    """The entries of Statement.params."""
    entries = []
    for value in values:
        try:
            entries.append(_ENCODERS.get(type(value), _general)(value))
        except TypeError as error:
            raise unknown_parameter(len(entries) + 1, error) from error
        except ValueError as error:  # NUL, lone surrogates, circular JSON
            raise unsendable(len(entries) + 1, str(error)) from error
    return entries[0] if len(entries) == 1 else b"".join(entries)


def _statement_head(sql: str) -> bytes:
    if not isinstance(sql, str):
        raise TypeError(f"sql must be a str, not {type(sql).__name__}")
    try:
        head = field(b"\x0a", str.encode(sql))
    except UnicodeEncodeError as error:
        raise ValueError(f"sql: {error}") from None
    if type(sql) is str and len(sql) <= MAX_KEPT_TEXT:
        if len(_heads) >= MAX_HEADS:
            _heads.clear()
        _heads[sql] = head
    return head


# Each gives one entry of Statement.params: tag, length, Param.


def _null(value: None) -> bytes:
    return b"\x12\x02\x08\x01"


def _boolean(value: bool) -> bytes:
    return b"\x12\x02\x10\x01" if value else b"\x12\x02\x10\x00"


def _integer(value: int) -> bytes:
    if 0 <= value < 0x8000000000000000:
        number = varint(value << 1)
    elif -0x8000000000000000 <= value < 0:
        number = varint((-value << 1) - 1)
    else:
        return _text(int.__repr__(value))
    return _INTEGER_HEADS[len(number)] + number


_INTEGER_HEADS = tuple(bytes((0x12, 1 + length, 0x18)) for length in range(11))


def _real(value: float) -> bytes:
    return b"\x12\x09\x21" + _double(value)


def _text(value: str) -> bytes:
    refuse_nul(value)
    return field(b"\x12", field(b"\x2a", value.encode()))


def _blob(value: bytes) -> bytes:
    return field(b"\x12", field(b"\x32", value) + b"\x38\x11")  # type_oid = bytea


def _form(form: Callable[[Any], str]) -> Callable[[Any], bytes]:
    return lambda value: _text(form(value))


def _general(value: Any) -> bytes:
    """Subclasses, enums and what is rare."""
    param = pb.Param()
    put(param, value)
    return field(b"\x12", param.SerializeToString())


_ENCODERS: dict[type, Callable[[Any], bytes]] = {
    **{kind: _form(form) for kind, form in TEXT_FORMS.items()},
    type(None): _null,
    bool: _boolean,
    int: _integer,
    float: _real,
    str: _text,
    bytes: _blob,
}
