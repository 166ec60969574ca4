"""From a status on the wire to an exception: one total function, whatever the bytes.

The same pointsman.v1.Status comes in-band (Multiplex, Transact) and in the trailer grpc-status-details-bin.
"""

from __future__ import annotations

import grpc
from google.protobuf.message import DecodeError
from grpc import aio

from pointsman import errors
from pointsman.errors import Error, Executed, PgFields
from pointsman.v1 import errors_pb2 as pb

_LOST_WHILE_WRITING = "Internal error from Core"
"""What grpc.aio makes of a write on a connection that has just broken; the true status is lost then."""

_FOREIGN_PORT = "this address does not serve the call: is it the operators' port, or an older router? Callers use 7432"

DETAILS_KEY = "grpc-status-details-bin"

CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}

BY_REASON: dict[str, type[Error]] = {
    "OUTCOME_UNKNOWN": errors.OutcomeUnknown,
    "GUARD_FAILED": errors.GuardFailed,
    "RESULT_TOO_LARGE": errors.ResultTooLarge,
    "POOL_TIMEOUT": errors.PoolTimeout,
    "TRANSACTION_LOST": errors.TransactionLost,
    "TRANSACTION_EXPIRED": errors.TransactionLost,
    "TOKEN_LOST": errors.TokenLost,
    "REPLICA_CONFLICT": errors.Aborted,
    "WRITE_ON_READ_METHOD": errors.ReadOnlyViolation,
    "STATEMENT_TIMEOUT": errors.DeadlineExceeded,
    "SERIALIZATION": errors.SerializationFailure,
    "DEADLOCK": errors.Deadlock,
    "LOCK_TIMEOUT": errors.LockTimeout,
    "NOT_SUPPORTED": errors.NotSupported,
    "CORRUPTION": errors.DataLoss,
    "BACKEND_CONFIG": errors.InternalError,
    "BACKEND_RESOURCE": errors.ResourceExhausted,
}

BY_SQLSTATE: dict[str, type[Error]] = {
    "23505": errors.UniqueViolation,
    "23503": errors.ForeignKeyViolation,
    "23514": errors.CheckViolation,
    "23502": errors.NotNullViolation,
    "23P01": errors.ExclusionViolation,
    "42601": errors.SqlSyntaxError,
    "42P01": errors.UndefinedTable,
    "42703": errors.UndefinedColumn,
    "42883": errors.UndefinedFunction,
    "42704": errors.UndefinedObject,
    "3F000": errors.UndefinedObject,
    "42P07": errors.DuplicateObject,
    "42710": errors.DuplicateObject,
    "42701": errors.DuplicateObject,
    "42723": errors.DuplicateObject,
    "42P06": errors.DuplicateObject,
    "22003": errors.NumericOutOfRange,
    "P0001": errors.RaisedException,
    "25006": errors.ReadOnlyViolation,
    "40001": errors.SerializationFailure,
    "40P01": errors.Deadlock,
    "55P03": errors.LockTimeout,
    "42501": errors.PermissionDenied,
    "0A000": errors.NotSupported,
    "XX001": errors.DataLoss,
    "XX002": errors.DataLoss,
}

BY_SQLSTATE_CLASS: dict[str, type[Error]] = {
    "23": errors.IntegrityError,
    "22": errors.DataError,
    "42": errors.SqlError,
    "P0": errors.SqlError,
}

BY_CODE: dict[grpc.StatusCode, type[Error]] = {
    grpc.StatusCode.CANCELLED: errors.Cancelled,
    grpc.StatusCode.INVALID_ARGUMENT: errors.InvalidRequest,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.DeadlineExceeded,
    grpc.StatusCode.NOT_FOUND: errors.InvalidRequest,
    grpc.StatusCode.ALREADY_EXISTS: errors.IntegrityError,
    grpc.StatusCode.PERMISSION_DENIED: errors.PermissionDenied,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.ResourceExhausted,
    grpc.StatusCode.FAILED_PRECONDITION: errors.InvalidRequest,
    grpc.StatusCode.ABORTED: errors.Aborted,
    grpc.StatusCode.OUT_OF_RANGE: errors.DataError,
    grpc.StatusCode.UNIMPLEMENTED: errors.NotSupported,
    grpc.StatusCode.UNAVAILABLE: errors.Unavailable,
    grpc.StatusCode.DATA_LOSS: errors.DataLoss,
    grpc.StatusCode.UNAUTHENTICATED: errors.Unauthenticated,
}


_WORDS = {grpc.StatusCode.OK: "the router answered with neither a result nor an error"}


def error_class(code: grpc.StatusCode, reason: str, sqlstate: str) -> type[Error]:
    """The class for a failure: the router's reason first, then PostgreSQL's SQLSTATE, then the gRPC code."""
    found = BY_REASON.get(reason) or BY_SQLSTATE.get(sqlstate) or BY_SQLSTATE_CLASS.get(sqlstate[:2])
    if found is not None:
        return found
    general = BY_CODE.get(code, errors.InternalError)
    if sqlstate and general is errors.InvalidRequest:
        return errors.SqlError  # the request was well formed: PostgreSQL did not like what it says
    return general


def error_from_status(status: pb.Status, *, writes: bool) -> Error:
    """The exception for a status; `writes` decides about `executed` where the router did not state it."""
    code = CODES.get(status.code, grpc.StatusCode.UNKNOWN)
    info, retry, detail = pb.ErrorInfo(), None, None
    for packed in status.details:
        # Only the last part of the type's address names the type; hosts before it may differ.
        name = packed.type_url.rpartition("/")[2]
        try:
            if name == "google.rpc.ErrorInfo":
                info = pb.ErrorInfo.FromString(packed.value)
            elif name == "google.rpc.RetryInfo":
                retry = pb.RetryInfo.FromString(packed.value).retry_delay
            elif name == "pointsman.v1.PgErrorDetail":
                detail = pb.PgErrorDetail.FromString(packed.value)
        except DecodeError:
            continue  # a damaged detail must not hide the error that it belongs to
    metadata = dict(info.metadata)
    sqlstate = metadata.get("sqlstate", "") or (detail.sqlstate if detail is not None else "")
    return error_class(code, info.reason, sqlstate)(
        status.message or _WORDS.get(code, code.name.replace("_", " ").lower()),
        code=code,
        reason=info.reason,
        sqlstate=sqlstate,
        executed=_executed(metadata.get("executed", ""), writes),
        retry_delay=None if retry is None else retry.seconds + retry.nanos / 1e9,
        metadata=metadata,
        pg=None if detail is None else _pg_fields(detail),
    )


def error_from_rpc(failure: aio.AioRpcError, *, writes: bool) -> Error:
    """The exception for an RPC that ended with an error status."""
    return error_from_status(status_of_rpc(failure), writes=writes)


def status_of_rpc(failure: aio.AioRpcError) -> pb.Status:
    """The router's own status from the trailer, or one made of gRPC's code and words."""
    if failure.code() is grpc.StatusCode.INTERNAL and failure.details() == _LOST_WHILE_WRITING:
        return pb.Status(code=grpc.StatusCode.UNAVAILABLE.value[0], message="the connection to the router was lost")
    for key, value in failure.trailing_metadata() or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            try:
                return pb.Status.FromString(value)
            except DecodeError:
                break
    words = failure.details() or ""
    if failure.code() is grpc.StatusCode.UNIMPLEMENTED:
        words = f"{_FOREIGN_PORT} ({words})"
    return pb.Status(code=failure.code().value[0], message=words)


def drained(error: Error) -> bool:
    """True when a router that goes away says that it has not begun with it."""
    return error.reason == "DRAINING" and error.executed is Executed.NO


def worth_another_try(error: Error) -> bool:
    """The router was not reached, or is going away and has not begun: a drain says so, a connection that broke says
    nothing at all. For what changes nothing until it is answered."""
    return drained(error) or (not error.reason and error.code is grpc.StatusCode.UNAVAILABLE)


def _executed(stated: str, writes: bool) -> Executed:
    try:
        return Executed(stated)
    except ValueError:
        return Executed.MAYBE if writes else Executed.NO


def _pg_fields(detail: pb.PgErrorDetail) -> PgFields:
    return PgFields(
        severity=detail.severity,
        sqlstate=detail.sqlstate,
        message=detail.message,
        detail=detail.detail,
        hint=detail.hint,
        position=detail.position,
        context=detail.context,
        schema_name=detail.schema_name,
        table_name=detail.table_name,
        column_name=detail.column_name,
        data_type_name=detail.data_type_name,
        constraint_name=detail.constraint_name,
    )
