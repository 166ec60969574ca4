"""What an error reply of PostgreSQL means to the caller and to the router: one row per SQLSTATE or class.

Codes: https://www.postgresql.org/docs/current/errcodes-appendix.html. A five-character row wins over its
two-character class; a code that neither names was made up by the application (RAISE ... USING ERRCODE).
An ERROR reply is a definite answer: the statement's transaction is undone, also when COMMIT raised it. So a row
says what may be repeated without asking how far the attempt had come. `lost` marks the rows that PostgreSQL also
uses when it ends a session, where that does not hold; decisions/retry judges those like a lost connection.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, unique

from router.model.errors import Code, Executed
from router.model.reasons import RefuseReason as Reason
from router.model.reasons import RetryReason as Retry


@unique
class Action(Enum):
    """What to do with a failed attempt."""

    RETRY_SAME = "retry_same"
    """Again; the same endpoint is as good as any other."""
    RETRY_ELSEWHERE = "retry_elsewhere"
    """Again, on another endpoint where there is one."""
    HOLD = "hold"
    """Again on the primary, once the cluster has one that is not in doubt."""
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Rule:
    """One row: the error if the attempt is the last one, and what may be done before giving up."""

    code: Code
    reason: Reason
    read: Action = Action.FAIL
    """A read-only request of which no row has left."""
    write: Action = Action.FAIL
    """A write that the router holds as a whole: one statement alone, or a batch."""
    retry: Retry | None = None
    """Set where read or write is not FAIL."""
    after_s: float | None = None
    """When the caller may come back (seconds)."""
    evidence: bool = False
    """Tells the supervisor that the primary may be gone."""
    lost: bool = False
    """The session ended with it."""
    executed: Executed | None = None
    """None: rolled back, or not executed when nothing was sent."""


_SAME, _ELSEWHERE, _HOLD = Action.RETRY_SAME, Action.RETRY_ELSEWHERE, Action.HOLD

_BAD_DATA = Rule(Code.INVALID_ARGUMENT, Reason.BAD_DATA)
_BAD_SQL = Rule(Code.INVALID_ARGUMENT, Reason.BAD_SQL)
_EXISTS = Rule(Code.ALREADY_EXISTS, Reason.DUPLICATE_OBJECT)
_MISUSE = Rule(Code.FAILED_PRECONDITION, Reason.TRANSACTION_MISUSE)
_STATE = Rule(Code.FAILED_PRECONDITION, Reason.OBJECT_STATE)
_RAISED = Rule(Code.FAILED_PRECONDITION, Reason.APP_RAISED)
_LOGIN = Rule(Code.INTERNAL, Reason.BACKEND_CONFIG)
_LOST = Rule(Code.UNAVAILABLE, Reason.BACKEND_LOST, _ELSEWHERE, _HOLD, Retry.ROLLED_BACK, 1.0, True, lost=True)
_NO_ANSWER = Rule(Code.UNAVAILABLE, Reason.NO_BACKEND, after_s=1.0, executed=Executed.NO)
_RESOURCE = Rule(Code.RESOURCE_EXHAUSTED, Reason.BACKEND_RESOURCE, after_s=1.0)
_FAULT = Rule(Code.INTERNAL, Reason.BACKEND_FAULT, read=_ELSEWHERE, retry=Retry.ROLLED_BACK)
_EXPIRED = Rule(Code.ABORTED, Reason.TRANSACTION_EXPIRED)
_CORRUPT = Rule(Code.DATA_LOSS, Reason.CORRUPTION)

NOT_PRIMARY = Rule(Code.UNAVAILABLE, Reason.NOT_PRIMARY, Action.FAIL, _HOLD, Retry.NOT_PRIMARY, 1.0, True)
"""A write that met read-only: the server is a standby by now, so our map is old."""

WRITE_ON_READ = Rule(Code.FAILED_PRECONDITION, Reason.WRITE_ON_READ_METHOD)
"""The same code where the caller promised to read only."""

REPLICA_CONFLICT = Rule(
    Code.ABORTED, Reason.REPLICA_CONFLICT, _ELSEWHERE, Action.FAIL, Retry.REPLICA_CONFLICT, after_s=0.0
)
"""A read that stood in the way of replay on its replica."""

PROTOCOL = Rule(Code.INTERNAL, Reason.PROTOCOL)

STALE_STATEMENT = Rule(Code.ABORTED, Reason.SERIALIZATION, _SAME, _SAME, Retry.STALE_STATEMENT, after_s=0.0)
"""Whatever its code: our prepared statement was gone, or its plan outdated by a change of the schema. Raised before
execution; the lane has forgotten it, so that the next try prepares it again."""

DEFAULT = _RAISED

RULES: Mapping[str, Rule] = {
    # connections; as ERROR only from foreign data wrappers and dblink, whose failure undid the statement
    "08": Rule(Code.UNAVAILABLE, Reason.BACKEND_LOST, after_s=1.0),
    "08001": _NO_ANSWER,
    "08003": _LOST,
    "08004": _NO_ANSWER,
    "08006": _LOST,
    "08007": _LOST,
    "08P01": Rule(Code.INVALID_ARGUMENT, Reason.BAD_REQUEST),  # mostly a wrong number of parameters
    "40003": _LOST,
    # the server stops, starts or is full
    "53300": Rule(Code.UNAVAILABLE, Reason.NO_BACKEND, _ELSEWHERE, _SAME, Retry.NOT_SENT, 1.0, executed=Executed.NO),
    "57": Rule(Code.UNAVAILABLE, Reason.BACKEND_FAULT, after_s=1.0),
    "57P01": _LOST,
    "57P02": _LOST,
    "57P03": Rule(
        Code.UNAVAILABLE, Reason.NO_BACKEND, _ELSEWHERE, _HOLD, Retry.STARTING_UP, 1.0, True, executed=Executed.NO
    ),
    "57P04": _LOGIN,
    "57P05": Rule(Code.UNAVAILABLE, Reason.BACKEND_LOST, _SAME, _SAME, Retry.ROLLED_BACK, 0.0),
    "57014": Rule(Code.DEADLINE_EXCEEDED, Reason.STATEMENT_TIMEOUT),
    # conflicts between transactions
    "40": Rule(Code.ABORTED, Reason.SERIALIZATION, _SAME, _SAME, Retry.SERIALIZATION, 0.0),
    "40001": Rule(Code.ABORTED, Reason.SERIALIZATION, _ELSEWHERE, _SAME, Retry.SERIALIZATION, 0.0),
    "40002": Rule(Code.FAILED_PRECONDITION, Reason.INTEGRITY_VIOLATION),
    "40P01": Rule(Code.ABORTED, Reason.DEADLOCK, _ELSEWHERE, _SAME, Retry.SERIALIZATION, 0.0),
    "55P03": Rule(Code.ABORTED, Reason.LOCK_TIMEOUT),
    # where a transaction stands
    "0B": _MISUSE,
    "25": _MISUSE,
    "25006": NOT_PRIMARY,
    "25P03": _EXPIRED,
    "25P04": _EXPIRED,
    "2D": _MISUSE,
    "3B": _MISUSE,
    # what PostgreSQL does not offer
    "0A": Rule(Code.FAILED_PRECONDITION, Reason.NOT_SUPPORTED),
    # constraints
    "23": Rule(Code.FAILED_PRECONDITION, Reason.INTEGRITY_VIOLATION),
    "23001": Rule(Code.FAILED_PRECONDITION, Reason.FOREIGN_KEY_VIOLATION),
    "23502": Rule(Code.FAILED_PRECONDITION, Reason.NOT_NULL_VIOLATION),
    "23503": Rule(Code.FAILED_PRECONDITION, Reason.FOREIGN_KEY_VIOLATION),
    "23505": Rule(Code.ALREADY_EXISTS, Reason.UNIQUE_VIOLATION),
    "23514": Rule(Code.FAILED_PRECONDITION, Reason.CHECK_VIOLATION),
    "23P01": Rule(Code.ALREADY_EXISTS, Reason.EXCLUSION_VIOLATION),
    "44000": Rule(Code.FAILED_PRECONDITION, Reason.CHECK_VIOLATION),
    # data and statements
    "03": _BAD_SQL,
    "20": _BAD_DATA,
    "21": _BAD_DATA,
    "22": _BAD_DATA,
    "22003": Rule(Code.OUT_OF_RANGE, Reason.NUMERIC_RANGE),
    "26": _BAD_SQL,
    "34": _BAD_SQL,
    "3F": _BAD_SQL,
    "42": _BAD_SQL,
    "42501": Rule(Code.PERMISSION_DENIED, Reason.PG_PRIVILEGE),
    "42701": _EXISTS,
    "42710": _EXISTS,
    "42723": _EXISTS,
    "42P03": _EXISTS,
    "42P04": _EXISTS,
    "42P06": _EXISTS,
    "42P07": _EXISTS,
    "54": _BAD_SQL,
    # objects in the wrong state
    "09": _STATE,
    "24": _STATE,
    "27": _STATE,
    "2B": _STATE,
    "55": _STATE,
    # raised by the application's own functions
    "2F": _RAISED,
    "38": _RAISED,
    "39": _RAISED,
    "P0": _RAISED,
    # the router's login, not the caller's
    "28": _LOGIN,
    "3D": _LOGIN,
    # the server is in trouble
    "53": _RESOURCE,
    "58": _FAULT,
    "F0": _FAULT,
    "HV": Rule(Code.INTERNAL, Reason.BACKEND_FAULT),
    "XX": _FAULT,
    "XX001": _CORRUPT,
    "XX002": _CORRUPT,
}


def rule_of(sqlstate: str) -> Rule:
    """The row of a SQLSTATE: its own, else its class's, else DEFAULT. Total."""
    return RULES.get(sqlstate) or RULES.get(sqlstate[:2]) or DEFAULT
