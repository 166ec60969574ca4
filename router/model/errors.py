"""The router's own error tree: a code, a reason, what is known about effects, a retry hint, and the numbers."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, unique

from router.model.observation import Fault, PgError
from router.model.reasons import RefuseReason


@unique
class Code(Enum):
    """The status of an error; names are gRPC's (https://grpc.io/docs/guides/status-codes/)."""

    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


@unique
class Executed(Enum):
    """What is known about a failed request's effects."""

    NO = "no"
    ROLLED_BACK = "rolled_back"
    MAYBE = "maybe"
    YES = "yes"


class RouterError(Exception):
    """An answer that is an error.

    code: gRPC status. reason: machine-readable cause. executed: what is known about effects. retry_after_s: when
    to come back, None when unknown. numbers: the figures behind a refusal, shown to the caller (limit, in_use, ...).
    pg: PostgreSQL's own error, when it raised one. fault: for our log only.
    """

    def __init__(
        self,
        code: Code,
        reason: RefuseReason,
        message: str,
        *,
        executed: Executed = Executed.NO,
        retry_after_s: float | None = None,
        numbers: Mapping[str, object] | None = None,
        pg: PgError | None = None,
        fault: Fault | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.executed = executed
        self.retry_after_s = retry_after_s
        self.numbers: dict[str, object] = dict(numbers or {})
        self.pg = pg
        self.fault = fault


def bad_request(reason: RefuseReason, message: str, **numbers: object) -> RouterError:
    """INVALID_ARGUMENT: the request itself is wrong; nothing was executed."""
    return RouterError(Code.INVALID_ARGUMENT, reason, message, numbers=numbers)
