"""Python values as parameters. The text forms were checked against PostgreSQL 15 and 18."""

from __future__ import annotations

import enum
import ipaddress
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import pointsman
import pytest
from pointsman import Interval, Json, MultiRange, Range
from pointsman.copy_data import row_line
from pointsman.parameters import put_all
from pointsman.v1 import types_pb2 as pb


class Color(enum.Enum):
    RED = "red"


class Number(enum.IntEnum):
    TWO = 2


class Words(str):
    """Shows itself as something else, as enums and lazy translations do."""

    __slots__ = ()

    def __str__(self) -> str:
        return f"<{super().__str__()}>"

    __repr__ = __str__


class Float(float):
    """Shows itself as numpy's does."""

    def __str__(self) -> str:
        return f"np.float64({super().__repr__()})"

    __repr__ = __str__


class Price(Decimal):
    def __str__(self) -> str:
        return f"{super().__str__()} EUR"


class Name(UUID):
    def __str__(self) -> str:
        return f"id-{super().__str__()}"


def param(value: Any) -> pb.Param:
    statement = pb.Statement()
    put_all(statement.params, [value])
    return statement.params[0]


@pytest.mark.parametrize(
    ("value", "field", "sent"),
    [
        (None, "null", True),
        (True, "boolean", True),
        (False, "boolean", False),
        (5, "integer", 5),
        (-(2**63), "integer", -(2**63)),
        (2**63 - 1, "integer", 2**63 - 1),
        (2**63, "text", "9223372036854775808"),
        (1.5, "real", 1.5),
        ("é", "text", "é"),
        (Words("w"), "text", "w"),
        ([Words("w")], "text", '{"w"}'),
        (Range(Words("a"), Words("b")), "text", '["a","b")'),
        (Float(1.5), "real", 1.5),
        ([Float(1.5), Float("inf")], "text", "{1.5,inf}"),
        (Range(Float(1.5), None), "text", '["1.5",)'),
        (Price("1.50"), "text", "1.50"),
        ([Price("1.50")], "text", "{1.50}"),
        (Name(int=7), "text", "00000000-0000-0000-0000-000000000007"),
        (Color.RED, "text", "red"),
        (Number.TWO, "integer", 2),
        (Decimal("1.50"), "text", "1.50"),
        (Decimal("NaN"), "text", "NaN"),
        (datetime(2026, 1, 2, 3, 4, 5, 6), "text", "2026-01-02T03:04:05.000006"),
        (datetime(2026, 1, 2, tzinfo=timezone(timedelta(hours=2))), "text", "2026-01-02T00:00:00+02:00"),
        (datetime.max, "text", "infinity"),
        (datetime.min.replace(tzinfo=UTC), "text", "-infinity"),
        (date(2026, 1, 2), "text", "2026-01-02"),
        (date.max, "text", "infinity"),
        (date.min, "text", "-infinity"),
        (time(1, 2, 3, tzinfo=UTC), "text", "01:02:03+00:00"),
        (timedelta(days=-1, seconds=5, microseconds=7), "text", "P0M-1DT5.000007S"),
        (Interval(14, -3, -3_500_000), "text", "P14M-3DT-3.500000S"),
        (UUID(int=7), "text", "00000000-0000-0000-0000-000000000007"),
        ({"a": [1, None, "é"]}, "text", '{"a":[1,null,"é"]}'),
        (Json([1, 2]), "text", "[1,2]"),
        (Json(1, dumps=lambda value: f"<{value}>"), "text", "<1>"),
        ([], "text", "{}"),
        ([1, None, True, 1.5, Decimal(2)], "text", "{1,NULL,t,1.5,2}"),
        ([[1, 2], (3, None)], "text", "{{1,2},{3,NULL}}"),
        (["", "NULL", 'q"x\\y{,}', None], "text", '{"","NULL","q\\"x\\\\y{,}",NULL}'),
        ([b"a\0"], "text", '{"\\\\x6100"}'),
        ([{"a": 'x"'}], "text", '{"{\\"a\\":\\"x\\\\\\"\\"}"}'),
        ([Color.RED, Number.TWO], "text", '{"red","2"}'),
        ([date(2026, 1, 1)], "text", '{"2026-01-01"}'),
        (Range(1, 10), "text", '["1","10")'),
        (Range(None, None, "()"), "text", "(,)"),
        (Range('a"\\', None, "(]"), "text", '("a\\"\\\\",]'),
        (Range(empty=True), "text", "empty"),
        ([Range(1, 2)], "text", '{"[\\"1\\",\\"2\\")"}'),
        (MultiRange([Range(1, 2), Range(5, 7)]), "text", '{["1","2"),["5","7")}'),
        ([MultiRange()], "text", '{"{}"}'),
        (ipaddress.ip_address("::1"), "text", "::1"),
        (ipaddress.ip_interface("10.0.0.1/24"), "text", "10.0.0.1/24"),
        (ipaddress.ip_network("10.0.0.0/8"), "text", "10.0.0.0/8"),
    ],
)
def test_each_type_has_its_form_and_leaves_the_type_to_postgresql(value: Any, field: str, sent: Any) -> None:
    found = param(value)
    assert found.WhichOneof("value") == field
    assert getattr(found, field) == sent
    assert found.type_oid == 0


def test_subclasses_in_rows_to_copy() -> None:
    assert row_line([Words("w\t"), Float(1.5), Price("1.50"), True, 2]) == b"w\\t\t1.5\t1.50\tt\t2\n"


@pytest.mark.parametrize("value", [b"\0\xff", bytearray(b"\0\xff"), memoryview(b"\0\xff")])
def test_bytes_say_that_they_are_bytea(value: Any) -> None:
    assert param(value) == pb.Param(blob=b"\0\xff", type_oid=17)


def test_an_unknown_type_is_named_with_its_position() -> None:
    with pytest.raises(TypeError, match=r"parameter \$2: no PostgreSQL form for builtins.set"):
        put_all(pb.Statement().params, [1, {1}])
    with pytest.raises(TypeError, match=r"parameter \$1: no PostgreSQL form for builtins.object"):
        put_all(pb.Statement().params, [[object()]])


@pytest.mark.parametrize(
    ("value", "words"), [("a\0b", "NUL"), (["a\0b"], "NUL"), ("\ud800", "surrogates"), (Json("\ud800"), "surrogates")]
)
def test_text_that_postgresql_cannot_store_is_refused_here(value: Any, words: str) -> None:
    with pytest.raises(pointsman.InvalidRequest, match=words) as caught:
        put_all(pb.Statement().params, [value])
    assert caught.value.executed is pointsman.Executed.NO


def test_a_range_checks_its_bounds_and_contains_values() -> None:
    with pytest.raises(ValueError, match="bounds"):
        Range(1, 2, "[[")
    assert 1 in Range(1, 3)
    assert 3 not in Range(1, 3)
    assert 3 in Range(1, 3, "(]")
    assert 1 not in Range(1, 3, "(]")
    assert 10**9 in Range(1, None)
    assert 1 not in Range(empty=True)
    assert not Range(empty=True)
