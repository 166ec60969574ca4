"""Messages to model values: what a caller asked for, checked, in words the caller can act on. No decisions."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

from pointsman.v1 import query_service_pb2 as query_pb
from pointsman.v1 import types_pb2

from router.model.errors import RouterError, bad_request
from router.model.reasons import RefuseReason
from router.model.request import (
    DEFAULT_OPTIONS,
    BatchStep,
    Fallback,
    Guard,
    GuardNeed,
    Isolation,
    Method,
    OnFailover,
    Options,
    Priority,
    ReadFrom,
    Request,
    Statement,
    TransactionMode,
)
from router.model.token import Token, decode

MAX_PARAMS = 65535
"""PostgreSQL counts parameters in 16 bits."""
MAX_STEPS = 1000
MAX_KEY_CHARS = 128
BYTEA_OID = 17

_READ = {0: ReadFrom.PRIMARY, 1: ReadFrom.PRIMARY, 2: ReadFrom.REPLICA, 3: ReadFrom.ANY}
_FALLBACK = {0: Fallback.TO_PRIMARY, 1: Fallback.TO_PRIMARY, 2: Fallback.FAIL}
_ON_FAILOVER = {0: OnFailover.WAIT, 1: OnFailover.WAIT, 2: OnFailover.FAIL_FAST}
_ISOLATION = {
    0: Isolation.DEFAULT,
    1: Isolation.READ_COMMITTED,
    2: Isolation.REPEATABLE_READ,
    3: Isolation.SERIALIZABLE,
}
_SKIP = {0: False, 1: False, 2: True}
_PRIORITIES: Mapping[int, Priority] = {
    types_pb2.PRIORITY_UNSPECIFIED: Priority.MEDIUM,
    types_pb2.PRIORITY_LOW: Priority.LOW,
    types_pb2.PRIORITY_MEDIUM: Priority.MEDIUM,
    types_pb2.PRIORITY_HIGH: Priority.HIGH,
}


def query_request(message: query_pb.QueryRequest, deadline: float, request_id: str) -> Request:
    """A Query as the engine takes it; RouterError INVALID_ARGUMENT when it makes no sense."""
    return _single(Method.QUERY, message, deadline, request_id)


def stream_request(message: query_pb.StreamQueryRequest, deadline: float, request_id: str) -> Request:
    """The same of a StreamQuery."""
    return _single(Method.STREAM_QUERY, message, deadline, request_id)


def execute_request(message: query_pb.ExecuteRequest, deadline: float, request_id: str) -> Request:
    """The same of an Execute."""
    request = _single(Method.EXECUTE, message, deadline, request_id)
    request.idempotency_key = idempotency_key(message.idempotency_key)
    return request


def batch_request(message: query_pb.ExecuteBatchRequest, deadline: float, request_id: str) -> Request:
    """The same of an ExecuteBatch."""
    if not message.steps:
        raise bad_request(RefuseReason.STATEMENT_MISSING, "the batch has no steps")
    if len(message.steps) > MAX_STEPS:
        raise bad_request(
            RefuseReason.BAD_REQUEST,
            f"the batch has {len(message.steps)} steps, the limit is {MAX_STEPS}: use several batches",
            limit=MAX_STEPS,
        )
    steps = tuple(_batch_step(step, number) for number, step in enumerate(message.steps))
    return Request(
        method=Method.EXECUTE_BATCH,
        steps=steps,
        deadline=deadline,
        options=options_from(message.options) if message.HasField("options") else DEFAULT_OPTIONS,
        request_id=request_id,
        mode=mode_from(message.transaction),
        idempotency_key=idempotency_key(message.idempotency_key),
        size_bytes=sum(_size_bytes(step.statement) for step in steps),
        after=after_from(message.options),
    )


def _single(
    method: Method,
    message: query_pb.QueryRequest | query_pb.StreamQueryRequest | query_pb.ExecuteRequest,
    deadline: float,
    request_id: str,
) -> Request:
    if not message.HasField("statement"):
        raise bad_request(RefuseReason.STATEMENT_MISSING, "the request has no statement")
    statement = statement_from(message.statement)
    step = BatchStep(statement, None, True)
    size = _size_bytes(statement)
    if not message.HasField("options"):
        return Request(method, (step,), deadline, DEFAULT_OPTIONS, request_id, None, "", size)
    wished = message.options
    options, after = options_from(wished), after_from(wished)
    return Request(method, (step,), deadline, options, request_id, None, "", size, after=after)


def _batch_step(message: query_pb.BatchStep, number: int) -> BatchStep:
    where = f"step {number}: "
    if not message.HasField("statement"):
        raise bad_request(RefuseReason.STATEMENT_MISSING, f"{where}it has no statement", step=number)
    guard = _guard(message.guard, number) if message.HasField("guard") else None
    return BatchStep(statement_from(message.statement, where), guard, message.want_rows)


def _guard(message: query_pb.StepGuard, number: int) -> Guard:
    where = f"step {number}: its guard "
    if message.step >= number:
        raise bad_request(
            RefuseReason.BAD_REQUEST,
            f"{where}looks at step {message.step}; only earlier steps have a result",
            step=number,
        )
    need = message.WhichOneof("need")
    if need is None or (need == "no_rows" and not message.no_rows):
        raise bad_request(
            RefuseReason.BAD_REQUEST,
            f"{where}states no need: set rows_affected_equals, rows_at_least or no_rows (true)",
            step=number,
        )
    count = 0 if need == "no_rows" else int(getattr(message, need))
    if count < 0:
        raise bad_request(RefuseReason.BAD_REQUEST, f"{where}needs {count} rows, which cannot be", step=number)
    skip = _known(_SKIP, message.otherwise, query_pb.GuardAction, f"step {number}: guard.otherwise")
    return Guard(message.step, GuardNeed(need), count, skip)


def statement_from(message: types_pb2.Statement, where: str = "") -> Statement:
    """SQL and parameters in PostgreSQL's wire form. `where` opens the error's text."""
    text = message.sql
    sql = _texts.get(text)
    if sql is None:
        sql = _checked_text(text, where)
    params = message.params
    return _with_params(sql, params, where) if params else Statement(sql)


_texts: dict[str, bytes] = {}
"""Texts that were found good, as bytes: the same few come back, and as the same object, whose hash is known."""
_KEPT_TEXTS = 2048
_LONGEST_KEPT = 4096


def _checked_text(text: str, where: str) -> bytes:
    if not text or text.isspace():
        raise bad_request(RefuseReason.STATEMENT_MISSING, f"{where}the statement's sql is empty")
    if "\0" in text:
        raise bad_request(RefuseReason.BAD_REQUEST, f"{where}the statement's sql contains a NUL character")
    sql = text.encode()
    if len(sql) <= _LONGEST_KEPT:
        if len(_texts) >= _KEPT_TEXTS:
            _texts.clear()
        _texts[text] = sql
    return sql


_ALL_TEXT = tuple((0,) * count for count in range(17))
"""Formats of so many parameters in text form."""


def _with_params(sql: bytes, messages: Sequence[types_pb2.Param], where: str) -> Statement:
    count = len(messages)
    if count > MAX_PARAMS:
        raise bad_request(
            RefuseReason.BAD_REQUEST,
            f"{where}the statement has {count} parameters, PostgreSQL takes {MAX_PARAMS}: pass an array",
            limit=MAX_PARAMS,
        )
    values: list[bytes | None] = []
    oids: list[int] = []
    plain = True
    """All in text form, and all of types that PostgreSQL infers."""
    for message in messages:
        kind = message.WhichOneof("value")
        oid = message.type_oid
        if oid or kind == "blob":
            plain = False
            oid = oid or BYTEA_OID
        values.append(b"%d" % message.integer if kind == "integer" else _param(message, kind, len(values) + 1, where))
        oids.append(oid)
    if plain:
        return Statement(sql, tuple(values), _ALL_TEXT[count] if count < len(_ALL_TEXT) else (0,) * count)
    formats = tuple(1 if message.WhichOneof("value") == "blob" else 0 for message in messages)
    return Statement(sql, tuple(values), formats, tuple(oids))


def _param(message: types_pb2.Param, kind: str | None, number: int, where: str) -> bytes | None:
    """A parameter's wire form, a blob's being the binary one."""
    match kind:
        case "text":
            text = message.text
            if "\0" in text:
                raise bad_request(
                    RefuseReason.BAD_REQUEST, f"{where}parameter ${number} contains a NUL character", param=number
                )
            return text.encode()
        case "null":
            return None
        case "boolean":
            return b"t" if message.boolean else b"f"
        case "real":
            return _real(message.real)
        case "blob":
            return message.blob
        case _:
            raise bad_request(
                RefuseReason.BAD_REQUEST, f"{where}parameter ${number} has no value (for NULL, set null)", param=number
            )


def _real(value: float) -> bytes:
    """PostgreSQL's text form (https://www.postgresql.org/docs/current/datatype-numeric.html#DATATYPE-FLOAT)."""
    if math.isnan(value):
        return b"NaN"
    if math.isinf(value):
        return b"Infinity" if value > 0 else b"-Infinity"
    return repr(value).encode()


_options: dict[bytes, Options] = {}
_tokens: dict[bytes, Token] = {}
_KEPT_OPTIONS = 1024


def options_from(message: types_pb2.QueryOptions) -> Options:
    """Options, with every enum known; the same object for the same message, as callers have few kinds of them. Without
    the token, which is new all the time: see after_from."""
    if message.after_token:
        plain = types_pb2.QueryOptions()
        plain.CopyFrom(message)
        plain.ClearField("after_token")
        message = plain
    key = message.SerializeToString()
    options = _options.get(key)
    if options is None:
        if len(_options) >= _KEPT_OPTIONS:
            _options.clear()
        options = _checked_options(message)
        if options == DEFAULT_OPTIONS:
            options = DEFAULT_OPTIONS
        _options[key] = options
    return options


def _checked_options(message: types_pb2.QueryOptions) -> Options:
    if message.priority not in _PRIORITIES:
        raise _unknown("options.priority", message.priority, types_pb2.Priority)
    tag = message.request_tag
    if tag and (len(tag) > 64 or not tag.isprintable()):
        raise bad_request(
            RefuseReason.BAD_REQUEST, "options.request_tag must be at most 64 printable characters", limit=64
        )
    return Options(
        read=_known(_READ, message.read, types_pb2.ReadPreference, "options.read"),
        max_staleness_s=message.max_staleness_ms / 1000,
        fallback=_known(_FALLBACK, message.fallback, types_pb2.ReplicaFallback, "options.fallback"),
        on_failover=_known(_ON_FAILOVER, message.on_failover, types_pb2.FailoverPolicy, "options.on_failover"),
        max_rows=message.max_rows,
        max_bytes=message.max_bytes,
        request_tag=tag,
        priority=_PRIORITIES[message.priority],
        hedge=message.hedge,
    )


def after_from(message: types_pb2.QueryOptions) -> Token | None:
    """The options' consistency token; None without one."""
    raw = message.after_token
    return token_from(raw) if raw else None


def token_from(raw: bytes) -> Token:
    """A consistency token; RouterError INVALID_ARGUMENT when it is none."""
    token = _tokens.get(raw)
    if token is None:
        try:
            token = decode(raw)
        except ValueError:
            raise _no_token() from None
        if len(_tokens) >= _KEPT_OPTIONS:
            _tokens.clear()
        _tokens[raw] = token
    return token


def token_from_text(text: str) -> Token | None:
    """The token of a header, with or without its padding; None for an empty one. RouterError as token_from."""
    try:
        return decode(base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)) if text else None
    except ValueError:
        raise _no_token() from None


def _no_token() -> RouterError:
    return bad_request(
        RefuseReason.BAD_REQUEST, "this is no consistency token: send one that a receipt held, unchanged, or none"
    )


def mode_from(message: query_pb.TransactionOptions) -> TransactionMode:
    """How a transaction begins."""
    return TransactionMode(
        isolation=_known(_ISOLATION, message.isolation, query_pb.IsolationLevel, "transaction.isolation"),
        read_only=message.read_only,
        deferrable=message.deferrable,
    )


def savepoint_name(name: str) -> str:
    """A savepoint's name that PostgreSQL will keep as it is."""
    if not name or "\0" in name or len(name.encode()) > 63:
        raise bad_request(
            RefuseReason.BAD_REQUEST, "a savepoint's name must have 1 to 63 bytes and no NUL character", limit=63
        )
    return name


def request_id_from(chosen: str) -> str:
    """The caller's own request id, checked; empty when it chose none."""
    if chosen and not (16 <= len(chosen) <= 64 and chosen.isascii() and chosen.isprintable()):
        raise bad_request(RefuseReason.BAD_REQUEST, "request_id must be 16 to 64 printable ASCII characters")
    return chosen


def idempotency_key(key: str) -> str:
    """The caller's idempotency key, checked."""
    if len(key) > MAX_KEY_CHARS or "\0" in key:
        raise bad_request(
            RefuseReason.BAD_REQUEST,
            f"idempotency_key must have at most {MAX_KEY_CHARS} characters and no NUL character",
            limit=MAX_KEY_CHARS,
        )
    return key


def _size_bytes(statement: Statement) -> int:
    size = len(statement.sql)
    for param in statement.params:
        if param is not None:
            size += len(param)
    return size


_Known = TypeVar("_Known")


class _ProtoEnum(Protocol):
    """An enum of the generated stubs."""

    def keys(self) -> list[str]: ...


def _known(table: Mapping[int, _Known], value: int, enum: _ProtoEnum, field: str) -> _Known:
    found = table.get(value)
    if found is None:
        raise _unknown(field, value, enum)
    return found


def _unknown(field: str, value: int, enum: _ProtoEnum) -> RouterError:
    names = ", ".join(enum.keys()[1:])
    return bad_request(RefuseReason.BAD_REQUEST, f"{field} has the unknown value {value}; known are {names}")
