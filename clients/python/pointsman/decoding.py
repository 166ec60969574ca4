"""Columns on the wire → Python lists: one decoder a column, chosen by the type's OID.

OIDs are those of PostgreSQL's catalogue (src/include/catalog/pg_type.dat), fixed for built-in types. Types made
by users (enums, composites) have OIDs of their own and stay the text that PostgreSQL prints; a domain comes with the
OID of the type beneath it.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Callable
from datetime import date, datetime
from decimal import Decimal
from functools import partial
from typing import Any
from uuid import UUID

from pointsman.literals import Decoder, parse_array, parse_multirange, parse_range
from pointsman.temporal import parse_date, parse_interval, parse_time, parse_timestamp, parse_timestamptz
from pointsman.v1 import types_pb2 as pb

VOID_OID = 2278


def _bool(text: str) -> bool:
    return text == "t"


def _bytea(text: str) -> bytes:
    if not text.startswith("\\x"):
        raise ValueError("bytea in another form than hex")
    return bytes.fromhex(text[2:])


def _inet(text: str) -> Any:
    return ipaddress.ip_interface(text) if "/" in text else ipaddress.ip_address(text)


def _void(text: str) -> None:
    return None


SCALARS: dict[int, Decoder] = {
    16: _bool,
    17: _bytea,
    20: int,  # int8
    21: int,  # int2
    23: int,  # int4
    26: int,  # oid
    28: int,  # xid
    29: int,  # cid
    5069: int,  # xid8
    114: json.loads,
    3802: json.loads,  # jsonb
    650: ipaddress.ip_network,  # cidr
    869: _inet,
    700: float,
    701: float,
    1700: Decimal,
    1082: parse_date,
    1083: parse_time,
    1266: parse_time,  # timetz
    1114: parse_timestamp,
    1184: parse_timestamptz,
    1186: parse_interval,
    2950: UUID,
    VOID_OID: _void,
}
"""OID of a type → reader of its text form. What is missing stays str."""

# range, its array, its multirange, the multirange's array, the element
_RANGES = (
    (3904, 3905, 4451, 6150, 23),
    (3906, 3907, 4532, 6151, 1700),
    (3908, 3909, 4533, 6152, 1114),
    (3910, 3911, 4534, 6153, 1184),
    (3912, 3913, 4535, 6155, 1082),
    (3926, 3927, 4536, 6157, 20),
)

_ARRAYS = {
    1000: 16, 1001: 17, 1005: 21, 1007: 23, 1016: 20, 1028: 26, 1021: 700, 1022: 701, 1231: 1700, 199: 114, 3807: 3802,
    651: 650, 1041: 869, 1182: 1082, 1183: 1083, 1270: 1266, 1115: 1114, 1185: 1184, 1187: 1186, 2951: 2950, 271: 5069,
    1011: 28, 1012: 29,
    # elements that stay str: text, varchar, bpchar, "char", name, money, macaddr, macaddr8, bit, varbit, xml, point,
    # lseg, path, polygon, line, circle, pg_lsn, tid, regtype, regclass, jsonpath, tsvector, tsquery, regproc,
    # regprocedure, regoper, regoperator, regrole, regnamespace, regconfig, regdictionary, regcollation, refcursor,
    # int2vector, oidvector, cstring, txid_snapshot, pg_snapshot, record
    1009: 0, 1015: 0, 1014: 0, 1002: 0, 1003: 0, 791: 0, 1040: 0, 775: 0, 1561: 0, 1563: 0, 143: 0, 1017: 0,
    1018: 0, 1019: 0, 1027: 0, 629: 0, 719: 0, 3221: 0, 1010: 0, 2211: 0, 2210: 0, 4073: 0, 3643: 0, 3645: 0, 1008: 0,
    2207: 0, 2208: 0, 2209: 0, 4097: 0, 4090: 0, 3735: 0, 3770: 0, 4192: 0, 2201: 0,
    1006: 0, 1013: 0, 1263: 0, 2949: 0, 5039: 0, 2287: 0,
}  # fmt: skip

_UNREADABLE = (ValueError, ArithmeticError, IndexError, RecursionError)
"""What decoders raise for texts that Python has no value for: RecursionError for JSON nested deeper than it goes."""

BOX_ARRAY_OID = 1020
"""The one built-in type whose arrays are separated by semicolons."""


def _all_decoders() -> dict[int, Decoder]:
    found = dict(SCALARS)
    for range_oid, ranges, multirange, multiranges, element in _RANGES:
        found[range_oid] = partial(parse_range, decode=SCALARS[element])
        found[multirange] = partial(parse_multirange, decode=SCALARS[element])
        found[ranges] = partial(parse_array, decode=found[range_oid])
        found[multiranges] = partial(parse_array, decode=found[multirange])
    for array, element in _ARRAYS.items():
        found[array] = partial(parse_array, decode=SCALARS.get(element))
    found[BOX_ARRAY_OID] = partial(parse_array, decode=None, delimiter=";")
    return found


DECODERS = _all_decoders()

_WHOLE_COLUMN: dict[int, Decoder] = {
    1082: date.fromisoformat,
    1114: datetime.fromisoformat,
    1184: datetime.fromisoformat,
}
"""Decoders that run in C, for a column at a time. Where they say ValueError (infinity), those of DECODERS take over."""

ColumnReader = Callable[[pb.ColumnData], list[Any]]


def column_reader(kind: int, type_oid: int) -> ColumnReader:
    """The reader of one column, chosen once for a result's shape."""
    if kind == pb.COLUMN_KIND_INTEGER:
        return _integers
    if kind == pb.COLUMN_KIND_REAL:
        return _reals
    if kind == pb.COLUMN_KIND_BOOLEAN:
        return _booleans
    if kind == pb.COLUMN_KIND_BLOB:
        return _blobs
    decoder = DECODERS.get(type_oid)
    return _texts if decoder is None else partial(_decoded, decoder, _WHOLE_COLUMN.get(type_oid, decoder))


def decoder_of(type_oid: int) -> Decoder | None:
    """The decoder of a type's text form; it gives the text where it cannot read it. None for what stays str."""
    decoder = DECODERS.get(type_oid)
    return None if decoder is None else partial(_value, decoder)


# A slice makes a list in one call; list() asks protobuf for each entry by itself, which takes half as long again.


def _integers(column: pb.ColumnData) -> list[Any]:
    return _with_nulls(column.integers[:], column)


def _reals(column: pb.ColumnData) -> list[Any]:
    return _with_nulls(column.reals[:], column)


def _booleans(column: pb.ColumnData) -> list[Any]:
    return _with_nulls(column.booleans[:], column)


def _texts(column: pb.ColumnData) -> list[Any]:
    return _with_nulls(column.texts[:], column)


def _blobs(column: pb.ColumnData) -> list[Any]:
    return _with_nulls(column.blobs[:], column)


def _with_nulls(values: list[Any], column: pb.ColumnData) -> list[Any]:
    for row in column.null_rows[:]:
        values[row] = None
    return values


def _decoded(decoder: Decoder, quick: Decoder, column: pb.ColumnData) -> list[Any]:
    texts: list[str] = column.texts[:]
    nulls = column.null_rows[:]
    try:
        if len(nulls) < len(texts):
            if nulls:
                # The placeholders have no value of the type: a neighbour's text stands in for them.
                among = frozenset(nulls)
                stand_in = next(text for row, text in enumerate(texts) if row not in among)
                for row in nulls:
                    texts[row] = stand_in
            return _with_nulls(list(map(quick, texts)), column)
    except _UNREADABLE:
        pass  # one value that Python cannot hold: go through them one by one
    among = frozenset(nulls)
    return [None if row in among else _value(decoder, text) for row, text in enumerate(column.texts)]


def _value(decoder: Decoder, text: str) -> Any:
    """The decoded value, or PostgreSQL's text where Python has no such value (dates before Christ, 24:00:00,
    JSON nested a thousand deep).

    An exception would make the whole row unreadable, and would come after a write was already done.
    """
    try:
        return decoder(text)
    except _UNREADABLE:
        return text
