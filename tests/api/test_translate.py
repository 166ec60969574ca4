"""Messages to model values: wire forms of parameters, total enums, and every mistake in words."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pointsman.v1 import query_service_pb2 as pb
from pointsman.v1 import types_pb2

from router.api import translate
from router.model.errors import Code, RouterError
from router.model.identity import Lsn, Term
from router.model.reasons import RefuseReason
from router.model.request import (
    DEFAULT_OPTIONS,
    Access,
    Fallback,
    Guard,
    GuardNeed,
    Isolation,
    Method,
    OnFailover,
    ReadFrom,
    Request,
)
from router.model.token import Token

Param = types_pb2.Param


def statement(sql: str = "s", *params: types_pb2.Param) -> types_pb2.Statement:
    return types_pb2.Statement(sql=sql, params=params)


def batch(*steps: pb.BatchStep, **fields: Any) -> Request:
    return translate.batch_request(pb.ExecuteBatchRequest(steps=steps, **fields), 1.0, "id")


@pytest.mark.parametrize(
    ("param", "value", "format_", "oid"),
    [
        (Param(null=True), None, 0, 0),
        (Param(null=True, type_oid=23), None, 0, 23),
        (Param(boolean=True), b"t", 0, 0),
        (Param(boolean=False), b"f", 0, 0),
        (Param(integer=-(2**63)), b"-9223372036854775808", 0, 0),
        (Param(integer=0), b"0", 0, 0),
        (Param(real=0.1), b"0.1", 0, 0),
        (Param(real=-0.0), b"-0.0", 0, 0),
        (Param(real=1e300), b"1e+300", 0, 0),
        (Param(real=math.inf), b"Infinity", 0, 0),
        (Param(real=-math.inf), b"-Infinity", 0, 0),
        (Param(real=math.nan), b"NaN", 0, 0),
        (Param(text=""), b"", 0, 0),
        (Param(text="é☃", type_oid=25), "é☃".encode(), 0, 25),
        (Param(blob=b""), b"", 1, 17),
        (Param(blob=b"\0\xff"), b"\0\xff", 1, 17),
        (Param(blob=b"\0\0\0\1", type_oid=23), b"\0\0\0\1", 1, 23),
    ],
)
def test_parameters_in_their_wire_form(param: types_pb2.Param, value: bytes | None, format_: int, oid: int) -> None:
    translated = translate.statement_from(statement("select $1", param))
    assert translated.params == (value,)
    assert translated.formats == (format_,)
    assert translated.oids == ((oid,) if oid else ())


@given(st.floats())
def test_reals_keep_their_value(value: float) -> None:
    (raw,) = translate.statement_from(statement("s", Param(real=value))).params
    assert raw is not None
    back = float(raw)
    assert back == value or (math.isnan(back) and math.isnan(value))


@given(st.lists(st.none() | st.text(st.characters(exclude_characters="\0", codec="utf-8")), max_size=5))
def test_several_parameters_keep_their_places(values: list[str | None]) -> None:
    params = [Param(null=True) if value is None else Param(text=value) for value in values]
    translated = translate.statement_from(statement("s", *params))
    assert [None if raw is None else raw.decode() for raw in translated.params] == values
    assert len(translated.formats) == len(values)


def test_a_query_with_all_its_options() -> None:
    options = types_pb2.QueryOptions(
        read=types_pb2.READ_PREFERENCE_ANY,
        max_staleness_ms=1500,
        fallback=types_pb2.REPLICA_FALLBACK_FAIL,
        max_rows=7,
        max_bytes=8,
        on_failover=types_pb2.FAILOVER_POLICY_FAIL_FAST,
        priority=types_pb2.PRIORITY_HIGH,
        request_tag="tag",
    )
    message = pb.QueryRequest(statement=statement("select $1", Param(text="abc")), options=options)
    request = translate.query_request(message, 12.5, "the-id")
    assert (request.method, request.deadline, request.request_id) == (Method.QUERY, 12.5, "the-id")
    assert request.access is Access.READ_ONLY
    assert request.size_bytes == len("select $1") + 3
    given_options = request.options
    assert given_options.read is ReadFrom.ANY
    assert given_options.max_staleness_s == 1.5
    assert given_options.fallback is Fallback.FAIL
    assert given_options.on_failover is OnFailover.FAIL_FAST
    assert (given_options.max_rows, given_options.max_bytes, given_options.request_tag) == (7, 8, "tag")


def test_no_options_and_empty_options_are_the_defaults() -> None:
    without = translate.query_request(pb.QueryRequest(statement=statement()), 1.0, "")
    empty = translate.query_request(pb.QueryRequest(statement=statement(), options=types_pb2.QueryOptions()), 1.0, "")
    assert without.options is DEFAULT_OPTIONS
    assert empty.options == DEFAULT_OPTIONS


def test_guards() -> None:
    request = batch(
        pb.BatchStep(statement=statement()),
        pb.BatchStep(statement=statement(), guard=pb.StepGuard(step=0, rows_affected_equals=3)),
        pb.BatchStep(statement=statement(), guard=pb.StepGuard(step=1, rows_at_least=1, otherwise=2)),
        pb.BatchStep(statement=statement(), guard=pb.StepGuard(step=0, no_rows=True, otherwise=1), want_rows=True),
    )
    assert [step.guard for step in request.steps] == [
        None,
        Guard(0, GuardNeed.ROWS_AFFECTED_EQUALS, 3),
        Guard(1, GuardNeed.ROWS_AT_LEAST, 1, skip=True),
        Guard(0, GuardNeed.NO_ROWS),
    ]
    assert [step.want_rows for step in request.steps] == [False, False, False, True]
    assert request.method is Method.EXECUTE_BATCH
    assert request.mode is not None
    assert request.size_bytes == 4


ENUMS: list[tuple[Any, str, Callable[[int], Any]]] = [
    (types_pb2.ReadPreference, "read", lambda v: types_pb2.QueryOptions(read=v)),
    (types_pb2.ReplicaFallback, "fallback", lambda v: types_pb2.QueryOptions(fallback=v)),
    (types_pb2.FailoverPolicy, "on_failover", lambda v: types_pb2.QueryOptions(on_failover=v)),
    (types_pb2.Priority, "priority", lambda v: types_pb2.QueryOptions(priority=v)),
]


@pytest.mark.parametrize(("enum", "field", "make"), ENUMS)
def test_every_option_value_of_the_proto_is_known_and_no_other(
    enum: Any, field: str, make: Callable[[int], types_pb2.QueryOptions]
) -> None:
    for value in enum.values():
        translate.options_from(make(value))
    with pytest.raises(RouterError, match=rf"options\.{field} has the unknown value 99; known are .*{enum.keys()[1]}"):
        translate.options_from(make(99))


def test_every_isolation_level_is_known() -> None:
    levels = {
        translate.mode_from(pb.TransactionOptions(isolation=value)).isolation for value in pb.IsolationLevel.values()
    }
    assert levels == set(Isolation)
    with pytest.raises(RouterError, match="isolation"):
        translate.mode_from(pb.TransactionOptions(isolation=9))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "reason", "words"),
    [
        (lambda: translate.query_request(pb.QueryRequest(), 1.0, ""), RefuseReason.STATEMENT_MISSING, "no statement"),
        (lambda: translate.statement_from(statement(" \n")), RefuseReason.STATEMENT_MISSING, "empty"),
        (lambda: translate.statement_from(statement("a\0b")), RefuseReason.BAD_REQUEST, "NUL"),
        (
            lambda: translate.statement_from(statement("s", Param(integer=1), Param(text="a\0"))),
            RefuseReason.BAD_REQUEST,
            r"parameter \$2 contains a NUL",
        ),
        (
            lambda: translate.statement_from(statement("s", Param(type_oid=25))),
            RefuseReason.BAD_REQUEST,
            r"parameter \$1 has no value",
        ),
        (
            lambda: translate.statement_from(statement("s", *[Param(null=True)] * 65536)),
            RefuseReason.BAD_REQUEST,
            "65536 parameters",
        ),
        (lambda: batch(), RefuseReason.STATEMENT_MISSING, "no steps"),
        (lambda: batch(pb.BatchStep()), RefuseReason.STATEMENT_MISSING, "step 0: it has no statement"),
        (
            lambda: batch(pb.BatchStep(statement=statement("a\0"))),
            RefuseReason.BAD_REQUEST,
            "step 0: the statement's sql contains",
        ),
        (
            lambda: batch(*[pb.BatchStep(statement=statement())] * 1001),
            RefuseReason.BAD_REQUEST,
            "1001 steps, the limit is 1000",
        ),
        (
            lambda: batch(pb.BatchStep(statement=statement(), guard=pb.StepGuard(no_rows=True))),
            RefuseReason.BAD_REQUEST,
            "only earlier steps",
        ),
        (lambda: guarded(pb.StepGuard()), RefuseReason.BAD_REQUEST, "states no need"),
        (lambda: guarded(pb.StepGuard(no_rows=False)), RefuseReason.BAD_REQUEST, "states no need"),
        (lambda: guarded(pb.StepGuard(rows_at_least=-1)), RefuseReason.BAD_REQUEST, "-1 rows"),
        (lambda: guarded(pb.StepGuard(no_rows=True, otherwise=9)), RefuseReason.BAD_REQUEST, "unknown value 9"),
        (lambda: translate.request_id_from("short"), RefuseReason.BAD_REQUEST, "16 to 64"),
        (lambda: translate.request_id_from("x" * 65), RefuseReason.BAD_REQUEST, "16 to 64"),
        (lambda: translate.request_id_from("é" * 20), RefuseReason.BAD_REQUEST, "ASCII"),
        (lambda: translate.savepoint_name(""), RefuseReason.BAD_REQUEST, "1 to 63"),
        (lambda: translate.savepoint_name("é" * 32), RefuseReason.BAD_REQUEST, "1 to 63"),
        (
            lambda: batch(pb.BatchStep(statement=statement()), idempotency_key="k" * 129),
            RefuseReason.BAD_REQUEST,
            "at most 128",
        ),
        (
            lambda: translate.options_from(types_pb2.QueryOptions(request_tag="a\nb")),
            RefuseReason.BAD_REQUEST,
            "printable",
        ),
    ],
)
def test_mistakes_in_words(make: Callable[[], object], reason: RefuseReason, words: str) -> None:
    with pytest.raises(RouterError, match=words) as caught:
        make()
    assert (caught.value.code, caught.value.reason) == (Code.INVALID_ARGUMENT, reason)


def guarded(guard: pb.StepGuard) -> Request:
    return batch(pb.BatchStep(statement=statement()), pb.BatchStep(statement=statement(), guard=guard))


def test_a_token_is_read_beside_the_options_that_stay_the_same() -> None:
    token = Token(7, Term(2), Lsn(99))
    plain = types_pb2.QueryOptions(read=types_pb2.READ_PREFERENCE_REPLICA)
    with_token = types_pb2.QueryOptions(read=types_pb2.READ_PREFERENCE_REPLICA, after_token=token.encode())
    assert translate.options_from(with_token) is translate.options_from(plain)
    assert with_token.after_token, "the message is as it was"
    assert translate.after_from(with_token) == token
    assert translate.after_from(plain) is None
    text = base64.urlsafe_b64encode(token.encode()).decode()
    assert translate.token_from_text(text) == translate.token_from_text(text.rstrip("=")) == token
    assert translate.token_from_text("") is None


@pytest.mark.parametrize("raw", [b"t", b"\x01" * 21, b"\x02" + bytes(21), b"\x01" + bytes(21), b"\x01" * 21 + b"\xff"])
def test_what_is_no_token_is_refused(raw: bytes) -> None:
    for read in (translate.token_from, lambda one: translate.token_from_text(base64.urlsafe_b64encode(one).decode())):
        with pytest.raises(RouterError) as caught:
            read(raw)
        assert (caught.value.code, caught.value.reason) == (Code.INVALID_ARGUMENT, RefuseReason.BAD_REQUEST)
    with pytest.raises(RouterError):
        translate.token_from_text("ü*")
