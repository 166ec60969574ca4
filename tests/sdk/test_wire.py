"""Requests written by hand mean what the generated messages say."""

from __future__ import annotations

import enum
import math
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pointsman
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pointsman import wire
from pointsman.parameters import put_statement
from pointsman.v1 import query_service_pb2 as pb
from pointsman.v1 import types_pb2


class Color(enum.Enum):
    RED = "red"


class Words(str):
    __slots__ = ()


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.sampled_from([0, 63, 64, -64, -65, 2**13, 2**20 - 1, 2**62, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1]),
    st.floats(),
    TEXTS,
    st.binary(max_size=300),
    st.binary(max_size=9).map(bytearray),
    st.decimals(),
    st.dates(),
    st.datetimes(),
    st.uuids(),
    st.lists(st.integers() | st.none()),
    st.sampled_from([Color.RED, Words("w"), "x" * 20_000, b"x" * 20_000]),
)


def by_messages(sql: str, args: Any) -> types_pb2.Statement:
    statement = types_pb2.Statement()
    put_statement(statement, sql, args)
    return statement


def by_hand(sql: str, args: Any) -> types_pb2.Statement:
    return pb.QueryRequest.FromString(wire.statement(b"\x0a", sql, args)).statement


@given(TEXTS, st.lists(VALUES, max_size=6))
def test_statements_are_byte_for_byte_what_the_messages_make(sql: str, args: list[Any]) -> None:
    # As bytes: a NaN is not equal to itself.
    assert by_hand(sql, args).SerializeToString() == by_messages(sql, args).SerializeToString()


def test_a_statement_comes_the_same_from_memory() -> None:
    for args in ((), (1,), ("a", None)):
        assert by_hand("select remembered", args) == by_messages("select remembered", args)
    assert by_hand("select " + "x" * 10_000, (1,)) == by_messages("select " + "x" * 10_000, (1,))
    assert by_hand(Words("select words"), ()).sql == "select words"


def test_made_up_statements_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "_heads", {})
    monkeypatch.setattr(wire, "MAX_HEADS", 10)
    for number in range(25):
        assert by_hand(f"select {number}", ()).sql == f"select {number}"
        assert len(wire._heads) <= 10
    wire._heads.clear()
    by_hand("x" * (wire.MAX_KEPT_TEXT + 1), ())
    assert not wire._heads


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.integers(0, 20_000))
def test_frames_are_entries_of_a_request(call_id: int, timeout_ms: int, size: int) -> None:
    body = pb.MultiplexCall(query=pb.QueryRequest(statement=types_pb2.Statement(sql="x" * size)))
    frame = wire.call_frame(call_id, timeout_ms, body.SerializeToString())
    body.id, body.timeout_ms = call_id, timeout_ms
    assert pb.MultiplexRequest.FromString(frame + frame) == pb.MultiplexRequest(calls=[body, body])


@pytest.mark.parametrize(
    ("sql", "args", "kind", "words"),
    [
        (1, (), TypeError, "sql must be a str, not int"),
        ([], (), TypeError, "sql must be a str, not list"),
        ("\ud800", (), ValueError, "sql: .*surrogates"),
        ("s", (1, {1}), TypeError, r"parameter \$2: no PostgreSQL form for builtins.set"),
        ("s", ("a", "a\0b"), pointsman.InvalidRequest, r"parameter \$2: text with a NUL"),
        ("s", ("\ud800",), pointsman.InvalidRequest, r"parameter \$1: .*surrogates"),
        ("s", ([object()],), TypeError, r"parameter \$1: no PostgreSQL form for builtins.object"),
    ],
)
def test_what_cannot_be_sent_is_named(sql: Any, args: Any, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        wire.statement(b"\x0a", sql, args)


def test_common_types_take_the_quick_way() -> None:
    # What is in this table is not made with a message; `_general` would be right too, and five times slower.
    quick = [None, True, 1, 1.5, "a", b"a", Decimal(1), datetime(2026, 1, 1, tzinfo=UTC), date(2026, 1, 1), UUID(int=1)]
    assert all(type(value) in wire._ENCODERS for value in quick)
    assert math.isnan(by_hand("s", [math.nan]).params[0].real)
