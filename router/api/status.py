"""RouterError as a gRPC status: the same google.rpc.Status bytes in the trailer and in-band. Total over all errors.

A client refuses trailers beyond 8 KiB and then shows RESOURCE_EXHAUSTED in place of the real error, so everything
here fits into 4 KiB: texts are cut, keys never.
"""

from __future__ import annotations

import math

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from pointsman.v1 import errors_pb2

from router.model.errors import Executed, RouterError
from router.model.identity import TenantName
from router.model.observation import PgError

DOMAIN = "pointsman"
_TYPE = "type.googleapis.com/"
ERROR_INFO = _TYPE + "google.rpc.ErrorInfo"
RETRY_INFO = _TYPE + "google.rpc.RetryInfo"
PG_ERROR = _TYPE + "pointsman.v1.PgErrorDetail"

TRAILER_BYTES = 4096
"""Bound of all trailers of an error together, as HTTP/2 counts them (name + value + 32)."""
_MESSAGE_BYTES = 900
"""Bound of grpc-message after percent-encoding."""
_STATUS_BYTES = 1920
"""Bound of the Status: base64 makes it 2560."""
_VALUE_BYTES = 128
_TEXT_LIMITS = (1024, 512, 256, 128, 64, 32, 16)
_ELLIPSIS = "…"
_UINT32_MAX = 2**32 - 1
_SAFE_TO_REPEAT = (Executed.NO, Executed.ROLLED_BACK)

GRPC_CODES = {code.value[0]: code for code in grpc.StatusCode}

Trailers = tuple[tuple[str, str | bytes], ...]


def status_of(error: RouterError, tenant: TenantName | None = None) -> errors_pb2.Status:
    """The error as google.rpc.Status with ErrorInfo, and RetryInfo and PgErrorDetail where known."""
    message = _message(error)
    for limit in _TEXT_LIMITS:
        status = errors_pb2.Status(code=error.code.value, message=message)
        _add(status, ERROR_INFO, _error_info(error, tenant, limit))
        delay_s = safe_retry_delay_s(error)
        if delay_s is not None:
            nanos = round(delay_s * 1e9)
            delay = Duration(seconds=nanos // 10**9, nanos=nanos % 10**9)
            _add(status, RETRY_INFO, errors_pb2.RetryInfo(retry_delay=delay))
        if error.pg is not None:
            _add(status, PG_ERROR, _pg_error_detail(error.pg, limit))
        if status.ByteSize() <= _STATUS_BYTES:
            break
    return status


def safe_retry_delay_s(error: RouterError) -> float | None:
    """When to come back; None when unknown, or when repeating may double the effect."""
    delay_s = error.retry_after_s
    if delay_s is None or error.executed not in _SAFE_TO_REPEAT or not math.isfinite(delay_s):
        return None
    return max(0.0, delay_s)


def trailers_of(error: RouterError, status: errors_pb2.Status) -> Trailers:
    """The status for generic clients, and whether gRPC's own retry may repeat the call."""
    trailers: list[tuple[str, str | bytes]] = [("grpc-status-details-bin", status.SerializeToString())]
    if error.executed not in _SAFE_TO_REPEAT:
        trailers.append(("grpc-retry-pushback-ms", "-1"))
    elif (delay_s := safe_retry_delay_s(error)) is not None:
        trailers.append(("grpc-retry-pushback-ms", str(max(1, math.ceil(delay_s * 1000)))))
    return tuple(trailers)


def grpc_code(error: RouterError) -> grpc.StatusCode:
    """The same code in grpc's own Enum."""
    return GRPC_CODES[error.code.value]


def _message(error: RouterError) -> str:
    """The message as it travels in both places; clients check that they are equal."""
    text = _cut(error.message, _MESSAGE_BYTES) or error.reason.value.replace("_", " ")
    while _percent_encoded_bytes(text) > _MESSAGE_BYTES:
        text = _cut(text, len(text.encode()) * 3 // 4)
    return text


def _percent_encoded_bytes(text: str) -> int:
    return sum(1 if 0x20 <= byte <= 0x7E and byte != 0x25 else 3 for byte in text.encode())


def _add(status: errors_pb2.Status, type_url: str, detail: Message) -> None:
    status.details.add(type_url=type_url, value=detail.SerializeToString())


def _error_info(error: RouterError, tenant: TenantName | None, limit: int) -> errors_pb2.ErrorInfo:
    info = errors_pb2.ErrorInfo(reason=error.reason.value.upper(), domain=DOMAIN)
    values: dict[str, object] = dict(error.numbers)
    if error.pg is not None and error.pg.sqlstate:
        values["sqlstate"] = error.pg.sqlstate
    elif error.fault is not None and error.fault.sqlstate:
        values["sqlstate"] = error.fault.sqlstate
    if error.fault is not None and error.fault.endpoint:
        values["endpoint"] = error.fault.endpoint
    if tenant:
        values["tenant"] = tenant
    for key, value in values.items():
        info.metadata[key] = _cut(_in_words(value), min(limit, _VALUE_BYTES))
    info.metadata["executed"] = error.executed.value
    return info


def _in_words(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _pg_error_detail(pg: PgError, limit: int) -> errors_pb2.PgErrorDetail:
    def text(value: str) -> str:
        return _cut(value, limit)

    return errors_pb2.PgErrorDetail(
        severity=text(pg.severity),
        sqlstate=text(pg.sqlstate),
        message=text(pg.message),
        detail=text(pg.detail),
        hint=text(pg.hint),
        position=min(max(0, pg.position), _UINT32_MAX),
        context=text(pg.context),
        schema_name=text(pg.schema),
        table_name=text(pg.table),
        column_name=text(pg.column),
        data_type_name=text(pg.data_type),
        constraint_name=text(pg.constraint),
    )


def _cut(text: str, limit: int) -> str:
    """At most so many bytes of UTF-8. PostgreSQL's texts may hold surrogates where they were not valid UTF-8."""
    raw = text.encode("utf-8", "replace")
    if len(raw) <= limit:
        return raw.decode()
    return raw[: limit - len(_ELLIPSIS.encode())].decode("utf-8", "ignore") + _ELLIPSIS
