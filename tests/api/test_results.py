"""Results within limits: what fits, what is refused, what is cut off, and texts that are no valid UTF-8."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pointsman.v1 import types_pb2

from router.api.results import (
    MAX_RESULT_BYTES,
    Limits,
    ResultWriter,
    WhenTooLarge,
    limits_from,
    notices,
    write_receipt,
)
from router.model.errors import Executed, RouterError
from router.model.policy import TenantPolicy
from router.model.reasons import RefuseReason
from router.model.request import Options
from router.model.result import PgNotice, Receipt, StatementResult
from router.model.topology import Role
from tests.api.fake_engine import FakeEncoder, result_of, rows_of


def writer(max_rows: int = 0, max_bytes: int = 1000, when: WhenTooLarge = WhenTooLarge.REFUSE) -> ResultWriter:
    return ResultWriter(FakeEncoder(), Limits(max_rows, max_bytes), when)


@pytest.mark.parametrize(
    ("asked", "tenants", "expected"),
    [(0, 500, 500), (100, 500, 100), (900, 500, 500), (1 << 40, MAX_RESULT_BYTES, MAX_RESULT_BYTES)],
)
def test_a_caller_may_ask_for_less_than_its_tenant_allows(asked: int, tenants: int, expected: int) -> None:
    limits = limits_from(Options(max_bytes=asked), TenantPolicy(max_result_bytes=tenants))
    assert limits.max_bytes == expected


@pytest.mark.parametrize(
    ("when", "executed"),
    [(WhenTooLarge.REFUSE, Executed.ROLLED_BACK), (WhenTooLarge.REFUSE_DONE, Executed.YES)],
)
def test_too_many_bytes_are_refused_with_the_numbers(when: WhenTooLarge, executed: Executed) -> None:
    with pytest.raises(RouterError, match="the limit is 1000") as caught:
        writer(when=when).write(result_of("x" * 2000), types_pb2.ResultSet())
    assert caught.value.reason is RefuseReason.RESULT_TOO_LARGE
    assert caught.value.executed is executed
    assert caught.value.numbers == {"rows": 1, "bytes": 2008, "max_rows": 0, "max_bytes": 1000}


def test_exactly_the_limit_fits() -> None:
    target = types_pb2.ResultSet()
    writer(max_rows=2, max_bytes=FakeEncoder().estimate_bytes(rows_of("a", "b"))).write(result_of("a", "b"), target)
    assert (target.batch.row_count, target.truncated) == (2, False)


@pytest.mark.parametrize("when", WhenTooLarge)
def test_a_long_first_row_says_nothing_about_the_others(when: WhenTooLarge) -> None:
    texts = ["x" * 100_000, *["x" * 10] * 99]
    target = types_pb2.ResultSet()
    writer(max_bytes=1 << 20, when=when).write(result_of(*texts), target)
    assert (list(target.batch.columns[0].texts), target.truncated) == (texts, False)


def test_an_empty_result_behind_a_full_answer_lacks_nothing() -> None:
    one = writer(max_bytes=1, when=WhenTooLarge.TRUNCATE)
    told = []
    for texts in (["x"], []):
        target = types_pb2.ResultSet()
        one.write(result_of(*texts), target)
        told.append((target.batch.row_count, target.truncated))
    assert told == [(0, True), (0, False)]


def test_what_cannot_fit_is_not_encoded_to_find_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeEncoder, "encode_into", None)
    with pytest.raises(RouterError, match="about 10420 bytes"):
        writer().write(result_of(*["x" * 100] * 100), types_pb2.ResultSet())


def test_a_statement_without_rows_has_no_schema() -> None:
    target = types_pb2.ResultSet()
    writer().write(StatementResult(None, "UPDATE 3", 3), target)
    assert target == types_pb2.ResultSet(command_tag="UPDATE 3", rows_affected=3)


@given(st.lists(st.integers(0, 400), max_size=40), st.integers(0, 20), st.integers(0, 2000))
def test_a_write_keeps_its_first_rows_and_its_bounds(sizes: list[int], max_rows: int, max_bytes: int) -> None:
    texts = [f"{number}" * size for number, size in enumerate(sizes)]
    target = types_pb2.ResultSet()
    writer(max_rows, max_bytes, WhenTooLarge.TRUNCATE).write(result_of(*texts, tag="INSERT 0"), target)
    kept = target.batch.row_count
    got = list(target.batch.columns[0].texts) if target.batch.columns else []
    assert got == texts[:kept]
    assert target.truncated == (kept < len(texts))
    assert kept <= (max_rows or len(texts))
    assert target.rows_affected == len(texts)
    assert target.schema.has_columns


def test_the_limits_hold_for_all_results_of_an_answer_together() -> None:
    one = writer(max_rows=5, max_bytes=100_000, when=WhenTooLarge.TRUNCATE)
    kept = []
    for _ in range(3):
        target = types_pb2.ResultSet()
        one.write(result_of("a", "b", "c"), target)
        kept.append((target.batch.row_count, target.truncated))
    assert kept == [(3, False), (2, True), (0, True)]


def test_notices_are_bounded_and_valid() -> None:
    found = notices([PgNotice("NOTICE", "00000", "\udc80" + "x" * 5000)] * 150)
    assert len(found) == 100
    assert len(found[0].message) == 1000


@pytest.mark.parametrize("role", Role)
def test_receipts_know_every_role(role: Role) -> None:
    target = types_pb2.Receipt()
    write_receipt(Receipt(role=role, queued_s=-1.0), target)
    assert types_pb2.EndpointRole.Name(target.role).endswith(role.name if role is not Role.UNKNOWN else "UNSPECIFIED")
    assert target.queued_us == 0
