"""psycopg exceptions and libpq results → facts (model.observation.Fault). No judgement: that is decisions/retry."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
from psycopg.pq import DiagnosticField, ExecStatus

from router.model.observation import Fault, FaultKind, PgError, ProbeOutcome, Stage
from router.model.result import PgNotice

if TYPE_CHECKING:
    from psycopg.pq.abc import PGresult

_FIELDS = {
    "sqlstate": DiagnosticField.SQLSTATE,
    "message": DiagnosticField.MESSAGE_PRIMARY,
    "detail": DiagnosticField.MESSAGE_DETAIL,
    "hint": DiagnosticField.MESSAGE_HINT,
    "context": DiagnosticField.CONTEXT,
    "schema": DiagnosticField.SCHEMA_NAME,
    "table": DiagnosticField.TABLE_NAME,
    "column": DiagnosticField.COLUMN_NAME,
    "data_type": DiagnosticField.DATATYPE_NAME,
    "constraint": DiagnosticField.CONSTRAINT_NAME,
    "routine": DiagnosticField.SOURCE_FUNCTION,
}
_FATAL = (b"FATAL", b"PANIC")
COPYING = (ExecStatus.COPY_IN, ExecStatus.COPY_OUT, ExecStatus.COPY_BOTH)
"""Statuses that PQgetResult gives again and again, and never None, until the COPY is ended."""
_MOST_DIGITS = 10
"""Of a place in a statement."""
_SYNC_WAIT = b"SyncRepWaitForLSN"


def _text(value: bytes | None) -> str:
    return value.decode("utf-8", "replace") if value else ""


def severity(result: PGresult) -> bytes:
    """The severity, never localized (PostgreSQL 9.6 and later)."""
    return result.error_field(DiagnosticField.SEVERITY_NONLOCALIZED) or b""


def pg_error(result: PGresult) -> PgError:
    """All fields of an ErrorResponse."""
    position = _text(result.error_field(DiagnosticField.STATEMENT_POSITION))
    return PgError(
        severity=_text(severity(result)),
        position=int(position) if position.isdecimal() and len(position) <= _MOST_DIGITS else 0,
        **{name: _text(result.error_field(field)) for name, field in _FIELDS.items()},
    )


def from_result(result: PGresult, stage: Stage, step: int) -> Fault:
    """An error that PostgreSQL answered. FATAL and PANIC end the connection: what ran may or may not be done."""
    error = pg_error(result)
    lost = severity(result) in _FATAL or not error.sqlstate
    return Fault(
        kind=FaultKind.CONNECTION_LOST if lost else FaultKind.SERVER_ERROR,
        stage=stage,
        sqlstate=error.sqlstate,
        message=error.message or _text(result.error_message),
        detail=None if lost else error,
        step=step,
    )


def notice(result: PGresult) -> PgNotice:
    """A notice in model form."""
    return PgNotice(
        _text(severity(result)),
        _text(result.error_field(DiagnosticField.SQLSTATE)),
        _text(result.error_field(DiagnosticField.MESSAGE_PRIMARY)),
    )


def says_local_commit(result: PGresult) -> bool:
    """Whether a warning says that COMMIT returned before the synchronous standby confirmed it.

    SQLSTATE 01000 alone is also what RAISE WARNING uses, so the raising function is asked for, which no locale changes.
    """
    return result.error_field(DiagnosticField.SOURCE_FUNCTION) == _SYNC_WAIT


LOGIN_FAILED = "28000"
"""invalid_authorization_specification: stands for every way in which a server refuses a login."""


_CUT_OFF = (
    "server closed the connection unexpectedly",
    "could not receive data from server",
    "could not send data to server",
    "SSL SYSCALL error",
)
"""libpq's own words for a connection that broke, untranslated in psycopg's wheels. A refusing server uses others."""


def from_connect(error: BaseException, door: ProbeOutcome, *, proven: bool) -> Fault:
    """A failure to connect. psycopg gives no SQLSTATE there, so the phase tells the kind.

    door: what the server said when asked right afterwards. proven: the same login holds connections there. Without
    them, an open server that had come to the password refuses the login itself: its password, database or grant.
    Not so where the connection broke at that moment: then the network failed, and another try may succeed.
    """
    refused = door is ProbeOutcome.REFUSED
    login = asked_for_password(error) and not proven and door is ProbeOutcome.LOGIN_REFUSED
    return Fault(
        kind=FaultKind.CONNECT_REFUSED if refused else FaultKind.CONNECT_FAILED,
        stage=Stage.CONNECT,
        sqlstate=getattr(error, "sqlstate", None) or (LOGIN_FAILED if login else ""),
        message=first_line(error),
    )


def asked_for_password(error: BaseException) -> bool:
    """Whether a connect failed that had come to the password, and not because the connection broke."""
    asked = bool(getattr(getattr(error, "pgconn", None), "used_password", False))
    return asked and not any(words in str(error) for words in _CUT_OFF)


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, for a log line."""
    return (str(error) or type(error).__name__).strip().split("\n", 1)[0]


SENSELESS = (ValueError, LookupError, TypeError, AssertionError)
"""What reading an answer raises that no sound server gives: no row, other columns, no number, broken text."""
CLIENT_ERRORS = (psycopg.Error, OSError, TimeoutError)
"""What psycopg's connect and wait functions raise."""
