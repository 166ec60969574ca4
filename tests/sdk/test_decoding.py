"""PostgreSQL's text forms as Python values: goldens copied from PostgreSQL with the router's settings."""

from __future__ import annotations

import ipaddress
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pointsman import Interval, MultiRange, Range
from pointsman.decoding import DECODERS, column_reader, decoder_of
from pointsman.parameters import array_text
from pointsman.v1 import types_pb2 as pb


def decoded(oid: int, *texts: str | None) -> list[Any]:
    column = pb.ColumnData(
        texts=[text or "" for text in texts], null_rows=[row for row, text in enumerate(texts) if text is None]
    )
    return column_reader(pb.COLUMN_KIND_TEXT, oid)(column)


U = UTC
JAN = datetime(2026, 1, 1, tzinfo=U)
GOLDENS: list[tuple[str, int, str, Any]] = [
    ("numeric", 1700, "1.50", Decimal("1.50")),
    ("numeric", 1700, "Infinity", Decimal("Infinity")),
    ("timestamptz", 1184, "2026-01-02 01:04:05.000678+00", datetime(2026, 1, 2, 1, 4, 5, 678, tzinfo=U)),
    ("timestamptz", 1184, "infinity", datetime.max.replace(tzinfo=U)),
    ("timestamptz", 1184, "-infinity", datetime.min.replace(tzinfo=U)),
    ("timestamp", 1114, "2026-01-02 03:04:05.1", datetime(2026, 1, 2, 3, 4, 5, 100000)),
    ("timestamp", 1114, "infinity", datetime.max),
    ("timestamp BC", 1114, "0044-03-15 00:00:00 BC", "0044-03-15 00:00:00 BC"),
    ("date", 1082, "2026-01-02", date(2026, 1, 2)),
    ("date", 1082, "-infinity", date.min),
    ("date", 1082, "10000-01-01", "10000-01-01"),
    ("time", 1083, "01:02:03.000004", time(1, 2, 3, 4)),
    ("time", 1083, "24:00:00", "24:00:00"),
    ("timetz", 1266, "12:00:00.5+02", time(12, 0, 0, 500000, timezone(timedelta(hours=2)))),
    ("timetz", 1266, "01:02:03-05:30", time(1, 2, 3, 0, timezone(-timedelta(hours=5, minutes=30)))),
    ("interval", 1186, "PT0S", timedelta(0)),
    ("interval", 1186, "P401DT1H", timedelta(days=401, hours=1)),
    ("interval", 1186, "P-1DT5.000007S", timedelta(days=-1, seconds=5, microseconds=7)),
    ("interval", 1186, "PT-0.5S", timedelta(seconds=-0.5)),
    ("interval", 1186, "PT-3H-2M-1S", -timedelta(hours=3, minutes=2, seconds=1)),
    ("interval", 1186, "P1Y2M-3DT4H5M6.789S", Interval(14, -3, 14_706_789_000)),
    ("interval", 1186, "P178000000Y", Interval(178_000_000 * 12, 0, 0)),
    ("interval", 1186, "infinity", "infinity"),
    ("uuid", 2950, "00000000-0000-0000-0000-000000000007", UUID(int=7)),
    ("json", 114, '{"a": [1, 2.5, null, "é"]}', {"a": [1, 2.5, None, "é"]}),
    ("jsonb", 3802, '["a"]', ["a"]),
    ("inet", 869, "10.0.0.1", ipaddress.ip_address("10.0.0.1")),
    ("inet", 869, "10.0.0.1/24", ipaddress.ip_interface("10.0.0.1/24")),
    ("cidr", 650, "10.0.0.0/8", ipaddress.ip_network("10.0.0.0/8")),
    ("xid8", 5069, "725", 725),
    ("xid", 28, "1", 1),
    ("void", 2278, "", None),
    ("int4[]", 1007, "{1,NULL,3}", [1, None, 3]),
    ("int4[]", 1007, "{{1,2},{3,NULL}}", [[1, 2], [3, None]]),
    ("int4[]", 1007, "[0:1]={1,2}", [1, 2]),
    ("int8[]", 1016, "{}", []),
    ("text[]", 1009, '{a,"","NULL",NULL,"q\\"x\\\\y{,}"," sp "}', ["a", "", "NULL", None, 'q"x\\y{,}', " sp "]),
    ("text[]", 1009, "{{{a,b}},{{c,d}}}", [[["a", "b"]], [["c", "d"]]]),
    ("bool[]", 1000, "{t,f}", [True, False]),
    ("bytea[]", 1001, '{"\\\\x6100","\\\\x"}', [b"a\0", b""]),
    ("float8[]", 1022, "{1.5,Infinity}", [1.5, float("inf")]),
    ("numeric[]", 1231, "{1.5,NULL}", [Decimal("1.5"), None]),
    ("jsonb[]", 3807, '{"{\\"a\\": \\"x\\\\\\"y\\\\\\\\\\"}"}', [{"a": 'x"y\\'}]),
    ("timestamptz[]", 1185, '{"2026-01-01 00:00:00+00"}', [JAN]),
    ("date[]", 1182, "{2026-01-01}", [date(2026, 1, 1)]),
    ("interval[]", 1187, "{P1D}", [timedelta(1)]),
    ("uuid[]", 2951, "{00000000-0000-0000-0000-000000000001}", [UUID(int=1)]),
    ("inet[]", 1041, "{10.0.0.1}", [ipaddress.ip_address("10.0.0.1")]),
    ("name[]", 1003, '{a,"b c"}', ["a", "b c"]),
    ("box[]", 1020, "{(3,4),(1,2);(7,8),(5,6)}", ["(3,4),(1,2)", "(7,8),(5,6)"]),
    ("point[]", 1017, '{"(1,2)"}', ["(1,2)"]),
    ("record[]", 2287, '{"(1,\\"a b\\")"}', ['(1,"a b")']),
    ("int4range", 3904, "[1,10)", Range(1, 10)),
    ("int4range", 3904, "empty", Range(empty=True)),
    ("int8range", 3926, "(,)", Range(None, None, "()")),
    ("numrange", 3906, "[1.5,2]", Range(Decimal("1.5"), Decimal(2), "[]")),
    ("daterange", 3912, "(,2026-01-01)", Range(None, date(2026, 1, 1), "()")),
    ("tstzrange", 3910, '("2026-01-01 00:00:00+00",)', Range(JAN, None, "()")),
    ("tsrange", 3908, '["2026-01-01 00:00:00",infinity)', Range(datetime(2026, 1, 1), datetime.max)),
    ("int4multirange", 4451, "{[1,2),[5,7)}", MultiRange([Range(1, 2), Range(5, 7)])),
    ("nummultirange", 4532, "{}", MultiRange()),
    ("int4multirange[]", 6150, '{"{[1,2),[5,7)}"}', [MultiRange([Range(1, 2), Range(5, 7)])]),
    ("tstzrange[]", 3911, '{"[\\"2026-01-01 00:00:00+00\\",)",empty,NULL}', [Range(JAN), Range(empty=True), None]),
    ("macaddr", 829, "08:00:2b:01:02:03", "08:00:2b:01:02:03"),
    ("money", 790, "$12.34", "$12.34"),
    ("point", 600, "(1,2)", "(1,2)"),
    ("bit", 1560, "101", "101"),
    ("xml", 142, "<a/>", "<a/>"),
    ("name", 19, "a", "a"),
    ("bpchar", 1042, "x  ", "x  "),
    ("record", 2249, "(1,x)", "(1,x)"),
    ("an enum", 16999, "red", "red"),
]


@pytest.mark.parametrize(("name", "oid", "text", "value"), GOLDENS)
def test_each_type_decodes_to_its_python_type(name: str, oid: int, text: str, value: Any) -> None:
    (found,) = decoded(oid, text)
    assert found == value
    assert type(found) is type(value)
    if isinstance(value, (datetime, time)):
        assert found.utcoffset() == value.utcoffset()


@pytest.mark.parametrize(("name", "oid", "text", "value"), GOLDENS)
def test_nulls_and_neighbours_of_each_type(name: str, oid: int, text: str, value: Any) -> None:
    assert decoded(oid, None, text, None, text) == [None, value, None, value]


def test_native_columns_are_lists_with_none_for_null() -> None:
    column = pb.ColumnData(integers=[1, 0], reals=[1.5, 0], booleans=[True, False], blobs=[b"x", b""], null_rows=[1])
    assert column_reader(pb.COLUMN_KIND_INTEGER, 23)(column) == [1, None]
    assert column_reader(pb.COLUMN_KIND_REAL, 701)(column) == [1.5, None]
    assert column_reader(pb.COLUMN_KIND_BOOLEAN, 16)(column) == [True, None]
    assert column_reader(pb.COLUMN_KIND_BLOB, 17)(column) == [b"x", None]


def test_one_value_beyond_python_leaves_its_neighbours_alone() -> None:
    assert decoded(1082, "2026-01-01", "0044-03-15 BC", None) == [date(2026, 1, 1), "0044-03-15 BC", None]


DEEP = "[" * 200_000 + "]" * 200_000  # deeper than any Python goes


@pytest.mark.parametrize("oid", [114, 3802])
def test_json_nested_too_deep_for_python_stays_text(oid: int) -> None:
    assert decoded(oid, "[1]", DEEP, None, "[2]") == [[1], DEEP, None, [2]]
    read = decoder_of(oid)
    assert read is not None
    assert read(DEEP) == DEEP


@pytest.mark.parametrize("oid", [199, 3807])
def test_an_array_of_json_nested_too_deep_for_python_stays_text(oid: int) -> None:
    text = '{"' + DEEP + '"}'
    assert decoded(oid, text, '{"[1]"}') == [text, [[1]]]


GARBAGE = ["", "?", "{", "}", "{{1}", "[1", '{"', "[1,2,3)", "P", "\\x1", "{1,2}}", "[x]", "{1}},2}}", "{}1,2},{3}}"]


@pytest.mark.parametrize("text", GARBAGE)
def test_no_text_breaks_any_decoder(text: str) -> None:
    assert [len(decoded(oid, text)) for oid in DECODERS] == [1] * len(DECODERS)


texts = st.text(st.characters(exclude_characters="\0", codec="utf-8")) | st.none()


TIMES: dict[int, list[str]] = {
    1082: ["2026-01-02", "0001-01-01", "9999-12-31", "infinity", "-infinity", "0044-03-15 BC", "10000-01-01"],
    1114: ["2026-01-02 03:04:05", "2026-01-02 03:04:05.1", "infinity", "-infinity", "0044-03-15 00:00:00 BC"],
    1184: ["2026-01-02 03:04:05+00", "2026-01-02 03:04:05.123456+00", "infinity", "12026-01-02 03:04:05+00"],
    1700: ["1.5", "NaN", "-0.00"],
    114: ["1", "{}", "null"],
}


@given(
    st.sampled_from(sorted(TIMES)).flatmap(
        lambda oid: st.tuples(st.just(oid), st.lists(st.none() | st.sampled_from(TIMES[oid]), max_size=6))
    )
)
def test_a_column_decodes_as_its_values_do_one_by_one(drawn: tuple[int, list[str | None]]) -> None:
    oid, texts = drawn
    assert repr(decoded(oid, *texts)) == repr([decoded(oid, text)[0] for text in texts])


@given(st.lists(texts, max_size=5) | st.lists(st.lists(texts, min_size=2, max_size=2), min_size=1, max_size=3))
def test_arrays_of_any_text_come_back_as_they_were_sent(value: list[Any]) -> None:
    assert decoded(1009, array_text(value)) == [value]
