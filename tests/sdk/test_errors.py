"""From a status to an exception."""

from __future__ import annotations

import pickle

import grpc
import pointsman
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from hypothesis import given
from hypothesis import strategies as st
from pointsman import Executed
from pointsman.status import BY_CODE, BY_REASON, BY_SQLSTATE, error_from_rpc, error_from_status
from pointsman.v1 import errors_pb2 as pb

from tests.sdk.fake_router import packed, status

CODE = grpc.StatusCode


@pytest.mark.parametrize(
    ("code", "reason", "sqlstate", "kind"),
    [
        (CODE.INVALID_ARGUMENT, "SEVERAL_STATEMENTS", "", pointsman.InvalidRequest),
        (CODE.FAILED_PRECONDITION, "SESSION_STATE", "", pointsman.InvalidRequest),
        (CODE.INVALID_ARGUMENT, "BAD_SQL", "42601", pointsman.SqlSyntaxError),
        (CODE.INVALID_ARGUMENT, "BAD_SQL", "42P01", pointsman.UndefinedTable),
        (CODE.INVALID_ARGUMENT, "BAD_SQL", "42703", pointsman.UndefinedColumn),
        (CODE.INVALID_ARGUMENT, "BAD_SQL", "42883", pointsman.UndefinedFunction),
        (CODE.INVALID_ARGUMENT, "BAD_SQL", "42804", pointsman.SqlError),
        (CODE.INVALID_ARGUMENT, "BAD_SQL", "54001", pointsman.SqlError),
        (CODE.INVALID_ARGUMENT, "BAD_DATA", "22P02", pointsman.DataError),
        (CODE.INVALID_ARGUMENT, "BAD_DATA", "", pointsman.InvalidRequest),
        (CODE.OUT_OF_RANGE, "NUMERIC_RANGE", "22003", pointsman.NumericOutOfRange),
        (CODE.ALREADY_EXISTS, "UNIQUE_VIOLATION", "23505", pointsman.UniqueViolation),
        (CODE.ALREADY_EXISTS, "EXCLUSION_VIOLATION", "23P01", pointsman.ExclusionViolation),
        (CODE.ALREADY_EXISTS, "DUPLICATE_OBJECT", "42P07", pointsman.DuplicateObject),
        (CODE.FAILED_PRECONDITION, "FOREIGN_KEY_VIOLATION", "23503", pointsman.ForeignKeyViolation),
        (CODE.FAILED_PRECONDITION, "CHECK_VIOLATION", "23514", pointsman.CheckViolation),
        (CODE.FAILED_PRECONDITION, "NOT_NULL_VIOLATION", "23502", pointsman.NotNullViolation),
        (CODE.FAILED_PRECONDITION, "INTEGRITY_VIOLATION", "23000", pointsman.IntegrityError),
        (CODE.FAILED_PRECONDITION, "APP_RAISED", "P0001", pointsman.RaisedException),
        (CODE.FAILED_PRECONDITION, "APP_RAISED", "U0001", pointsman.SqlError),
        (CODE.FAILED_PRECONDITION, "WRITE_ON_READ_METHOD", "25006", pointsman.ReadOnlyViolation),
        (CODE.FAILED_PRECONDITION, "GUARD_FAILED", "", pointsman.GuardFailed),
        (CODE.FAILED_PRECONDITION, "RESULT_TOO_LARGE", "", pointsman.ResultTooLarge),
        (CODE.FAILED_PRECONDITION, "NOT_SUPPORTED", "0A000", pointsman.NotSupported),
        (CODE.FAILED_PRECONDITION, "TOKEN_LOST", "", pointsman.TokenLost),
        (CODE.UNIMPLEMENTED, "", "", pointsman.NotSupported),
        (CODE.PERMISSION_DENIED, "PG_PRIVILEGE", "42501", pointsman.PermissionDenied),
        (CODE.PERMISSION_DENIED, "TENANT_DENIED", "", pointsman.PermissionDenied),
        (CODE.UNAUTHENTICATED, "UNAUTHENTICATED", "", pointsman.Unauthenticated),
        (CODE.UNAVAILABLE, "NO_BACKEND", "57P03", pointsman.Unavailable),
        (CODE.UNAVAILABLE, "POOL_TIMEOUT", "", pointsman.PoolTimeout),
        (CODE.RESOURCE_EXHAUSTED, "QUOTA", "", pointsman.ResourceExhausted),
        (CODE.RESOURCE_EXHAUSTED, "BACKEND_RESOURCE", "53200", pointsman.ResourceExhausted),
        (CODE.ABORTED, "SERIALIZATION", "40001", pointsman.SerializationFailure),
        (CODE.ABORTED, "REPLICA_CONFLICT", "40001", pointsman.Aborted),
        (CODE.ABORTED, "DEADLOCK", "40P01", pointsman.Deadlock),
        (CODE.ABORTED, "LOCK_TIMEOUT", "55P03", pointsman.LockTimeout),
        (CODE.ABORTED, "TRANSACTION_LOST", "57P01", pointsman.TransactionLost),
        (CODE.ABORTED, "TRANSACTION_EXPIRED", "25P03", pointsman.TransactionLost),
        (CODE.DEADLINE_EXCEEDED, "STATEMENT_TIMEOUT", "57014", pointsman.DeadlineExceeded),
        (CODE.DEADLINE_EXCEEDED, "DEADLINE", "", pointsman.DeadlineExceeded),
        (CODE.CANCELLED, "CANCELLED", "57014", pointsman.Cancelled),
        (CODE.UNKNOWN, "OUTCOME_UNKNOWN", "57P01", pointsman.OutcomeUnknown),
        (CODE.UNKNOWN, "", "", pointsman.InternalError),
        (CODE.INTERNAL, "BACKEND_CONFIG", "28P01", pointsman.InternalError),
        (CODE.DATA_LOSS, "CORRUPTION", "XX001", pointsman.DataLoss),
    ],
)
def test_each_failure_has_its_class(code: CODE, reason: str, sqlstate: str, kind: type[pointsman.Error]) -> None:
    error = error_from_status(status(code, "words", reason=reason, sqlstate=sqlstate, executed="no"), writes=True)
    assert type(error) is kind
    assert (error.code, error.reason, error.sqlstate) == (code, reason, sqlstate)


def test_every_code_has_a_class() -> None:
    plain = {CODE.OK, CODE.UNKNOWN, CODE.INTERNAL}
    assert set(BY_CODE) | plain == set(CODE)


def test_all_that_the_router_says_is_carried() -> None:
    detail = pb.PgErrorDetail(
        severity="ERROR", sqlstate="23505", message="duplicate key", detail="Key (id)=(1) exists.", hint="Use 2.",
        position=7, schema_name="public", table_name="t", column_name="id", constraint_name="t_pkey",
    )  # fmt: skip
    failure = status(
        CODE.ALREADY_EXISTS, "duplicate key", reason="UNIQUE_VIOLATION", retry_s=1.5, pg=detail,
        executed="rolled_back", sqlstate="23505", endpoint="pg-a",
    )  # fmt: skip
    error = error_from_status(failure, writes=True)
    assert isinstance(error, pointsman.UniqueViolation)
    assert error.executed is Executed.ROLLED_BACK
    assert error.safe_to_repeat
    assert error.retry_delay == 1.5
    assert error.metadata["endpoint"] == "pg-a"
    assert error.pg is not None
    assert (error.pg.table_name, error.pg.constraint_name, error.pg.position) == ("t", "t_pkey", 7)
    assert str(error) == (
        "duplicate key [UNIQUE_VIOLATION, SQLSTATE 23505, executed: rolled_back]\n"
        "DETAIL: Key (id)=(1) exists.\nHINT: Use 2."
    )


@pytest.mark.parametrize(("stated", "found"), [(member.value, member) for member in Executed])
def test_what_was_executed_is_as_stated(stated: str, found: Executed) -> None:
    for writes in (True, False):
        assert error_from_status(status(CODE.INTERNAL, executed=stated), writes=writes).executed is found


@pytest.mark.parametrize("stated", [{}, {"executed": "perhaps"}])
def test_an_error_that_does_not_say_counts_as_maybe_for_writes_and_no_for_reads(stated: dict[str, str]) -> None:
    failure = status(CODE.UNAVAILABLE, "Socket closed", **stated)
    assert error_from_status(failure, writes=True).executed is Executed.MAYBE
    assert error_from_status(failure, writes=False).executed is Executed.NO


def test_details_are_known_by_the_last_part_of_their_address() -> None:
    failure = pb.Status(code=9)
    detail = packed("google.rpc.ErrorInfo", pb.ErrorInfo(reason="GUARD_FAILED", metadata={"executed": "rolled_back"}))
    detail.type_url = "other.example/google.rpc.ErrorInfo"
    failure.details.append(detail)
    assert type(error_from_status(failure, writes=True)) is pointsman.GuardFailed


@given(st.integers(-(2**31), 2**31 - 1), st.text(), st.sampled_from(["google.rpc.ErrorInfo", "x"]), st.binary())
def test_no_status_breaks_the_function(code: int, message: str, name: str, value: bytes) -> None:
    failure = pb.Status(code=code, message=message)
    failure.details.append(AnyMessage(type_url=f"type.googleapis.com/{name}", value=value))
    assert isinstance(error_from_status(failure, writes=True), pointsman.Error)


def test_sqlstate_comes_from_the_detail_when_the_info_has_none() -> None:
    failure = status(CODE.INVALID_ARGUMENT, pg=pb.PgErrorDetail(sqlstate="42P01"))
    assert type(error_from_status(failure, writes=False)) is pointsman.UndefinedTable


def test_errors_survive_pickle() -> None:
    error = error_from_status(status(CODE.ABORTED, "lost", reason="DEADLOCK", retry_s=1, executed="no"), writes=True)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is pointsman.Deadlock
    assert vars(again) == vars(error)
    assert str(again) == str(error)


def test_a_port_that_does_not_serve_callers_is_told() -> None:
    failure = grpc.aio.AioRpcError(CODE.UNIMPLEMENTED, grpc.aio.Metadata(), grpc.aio.Metadata(), "Method not found!")
    error = error_from_rpc(failure, writes=True)
    assert type(error) is pointsman.NotSupported
    assert "is it the operators' port" in error.message


def test_every_class_of_the_tables_is_public() -> None:
    for kind in {*BY_REASON.values(), *BY_SQLSTATE.values(), *BY_CODE.values()}:
        assert getattr(pointsman, kind.__name__) is kind
