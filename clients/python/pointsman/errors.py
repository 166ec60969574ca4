"""The exceptions of the SDK: one tree, told apart by what a caller can do about them.

Every one of them says what is known about the effects of the failed request (`Error.executed`), so a caller
decides about repeating by looking at a value, not by reading a message. They are built in status.py.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import grpc


class Executed(enum.Enum):
    """What is known about the effects of a failed request."""

    NO = "no"
    """Nothing was done: repeating is safe."""
    ROLLED_BACK = "rolled_back"
    """It ran and was undone: repeating is safe."""
    MAYBE = "maybe"
    """The outcome is unknown: repeating may double the effect."""
    YES = "yes"
    """It was done; only the answer could not be delivered."""


@dataclass(frozen=True, slots=True)
class PgFields:
    """The fields of PostgreSQL's error report; an empty string (position: 0) where it gave none."""

    severity: str = ""
    sqlstate: str = ""
    message: str = ""
    detail: str = ""
    hint: str = ""
    position: int = 0
    context: str = ""
    schema_name: str = ""
    table_name: str = ""
    column_name: str = ""
    data_type_name: str = ""
    constraint_name: str = ""


class Error(Exception):
    """Root of all errors of this SDK.

    message      what happened, in words
    code         the gRPC status code
    reason       the name for it in upper case, for example "POOL_TIMEOUT"; "" when neither router nor SDK named it
    sqlstate     PostgreSQL's five characters; "" when PostgreSQL did not raise it
    executed     what is known about the effects
    retry_delay  seconds after which repeating makes sense, or None
    metadata     the router's facts: endpoint, attempts, held_ms, the numbers of a refusal
    pg           PostgreSQL's own fields, or None
    """

    def __init__(
        self,
        message: str,
        *,
        code: grpc.StatusCode = grpc.StatusCode.UNKNOWN,
        reason: str = "",
        sqlstate: str = "",
        executed: Executed = Executed.MAYBE,
        retry_delay: float | None = None,
        metadata: Mapping[str, str] | None = None,
        pg: PgFields | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.reason = reason
        self.sqlstate = sqlstate
        self.executed = executed
        self.retry_delay = retry_delay
        self.metadata: dict[str, str] = dict(metadata or {})
        self.pg = pg

    @property
    def safe_to_repeat(self) -> bool:
        """True when the failed request provably left no effect."""
        return self.executed in (Executed.NO, Executed.ROLLED_BACK)

    def __str__(self) -> str:
        facts = [self.reason] if self.reason else []
        if self.sqlstate:
            facts.append(f"SQLSTATE {self.sqlstate}")
        facts.append(f"executed: {self.executed.value}")
        lines = [f"{self.message} [{', '.join(facts)}]"]
        if self.pg is not None:
            lines += [f"DETAIL: {self.pg.detail}"] if self.pg.detail else []
            lines += [f"HINT: {self.pg.hint}"] if self.pg.hint else []
        return "\n".join(lines)

    def __reduce__(self) -> tuple[Any, ...]:
        # The default would call the class without its keywords and so lose every field.
        return _rebuild, (type(self), self.message, {k: v for k, v in vars(self).items() if k != "message"})


def _rebuild(kind: type[Error], message: str, fields: dict[str, Any]) -> Error:
    error = kind(message)
    vars(error).update(fields)
    return error


class InvalidRequest(Error):
    """The request itself is wrong, whatever the data: fix the call."""


class SqlError(Error):
    """PostgreSQL refused the statement or its data."""


class IntegrityError(SqlError):
    """A constraint does not hold (SQLSTATE class 23)."""


class UniqueViolation(IntegrityError):
    """23505."""


class ForeignKeyViolation(IntegrityError):
    """23503."""


class CheckViolation(IntegrityError):
    """23514."""


class NotNullViolation(IntegrityError):
    """23502."""


class ExclusionViolation(IntegrityError):
    """23P01."""


class SqlSyntaxError(SqlError):
    """42601."""


class UndefinedObject(SqlError):
    """The statement names something that does not exist."""


class UndefinedTable(UndefinedObject):
    """42P01."""


class UndefinedColumn(UndefinedObject):
    """42703."""


class UndefinedFunction(UndefinedObject):
    """42883; often a parameter whose type was inferred otherwise than meant."""


class DuplicateObject(SqlError):
    """The statement makes something that exists already."""


class DataError(SqlError):
    """A value does not fit its type (SQLSTATE class 22)."""


class NumericOutOfRange(DataError):
    """22003."""


class RaisedException(SqlError):
    """RAISE in a function of the database (P0001)."""


class ReadOnlyViolation(SqlError):
    """A write through query() or in a read-only transaction (25006): use execute()."""


class PermissionDenied(Error):
    """The tenant is not this token's, or the database role lacks the privilege."""


class Unauthenticated(Error):
    """No token, or one that is not valid."""


class Unavailable(Error):
    """The router cannot be reached, or has no server that can do it now."""


class PoolTimeout(Unavailable):
    """No connection became free in time."""


class ResourceExhausted(Error):
    """A quota of the tenant, or a resource of the server, is used up."""


class Aborted(Error):
    """The transaction was undone for a reason that need not come again: repeat the whole transaction."""


class SerializationFailure(Aborted):
    """40001."""


class Deadlock(Aborted):
    """40P01."""


class LockTimeout(Aborted):
    """55P03."""


class TransactionLost(Aborted):
    """The transaction ended with its connection, by a failover, a drain, or by being idle too long."""


class DeadlineExceeded(Error):
    """The timeout passed first."""


class Cancelled(Error):
    """Cancelled on request, or with the task that it depended on."""


class OutcomeUnknown(Error):
    """A write without an idempotency key was caught in flight: it may or may not have been done."""


class GuardFailed(Error):
    """The guard of a batch's step did not hold, and the whole batch was rolled back."""


class ResultTooLarge(Error):
    """The rows do not fit one answer: use stream()."""


class NotSupported(Error):
    """The router or PostgreSQL does not offer this."""


class TokenLost(Error):
    """What the consistency token names was lost in a failover. A client is told once, and goes on without it."""


class DataLoss(Error):
    """PostgreSQL reports damaged data."""


class InternalError(Error):
    """A mistake of the router or of this SDK, or a server that breaks the protocol."""


class ClientClosed(Error):
    """The client was closed, before this call or while it ran."""


class NoSingleRow(Error):
    """query_one() or query_value() met more than one row, or query_value() none."""
