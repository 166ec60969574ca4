"""What a failed connect is taken for: a login that the server refuses is the operator's matter, a cut is not."""

from __future__ import annotations

from types import SimpleNamespace

import psycopg
import pytest

from router.model.observation import ProbeOutcome
from router.postgres import faults

CONNECTING = 'connection failed: connection to server at "127.0.0.1", port 5432 failed: '


class ConnectFailed(psycopg.OperationalError):
    """With what libpq knows of the attempt."""

    pgconn = SimpleNamespace(used_password=True)  # type: ignore[assignment]


class NotAsked(psycopg.OperationalError):
    """The server had not come to the password."""

    pgconn = SimpleNamespace(used_password=False)  # type: ignore[assignment]


def failed(words: str, *, asked: bool = True) -> psycopg.OperationalError:
    return (ConnectFailed if asked else NotAsked)(CONNECTING + words)


@pytest.mark.parametrize("words", [
    'FATAL:  password authentication failed for user "acme"',
    'FATAL:  database "acme" does not exist',
    "FATALE:  autenticazione con password fallita",
])
def test_a_server_that_refuses_the_login_says_so(words: str) -> None:
    fault = faults.from_connect(failed(words), ProbeOutcome.LOGIN_REFUSED, proven=False)
    assert fault.sqlstate == faults.LOGIN_FAILED


@pytest.mark.parametrize("words", [
    "server closed the connection unexpectedly\n\tThis probably means the server terminated abnormally",
    "could not receive data from server: Connection reset by peer",
    "could not send data to server: Broken pipe",
    "SSL SYSCALL error: EOF detected",
])
def test_a_connection_that_breaks_at_the_password_is_no_refusal(words: str) -> None:
    fault = faults.from_connect(failed(words), ProbeOutcome.LOGIN_REFUSED, proven=False)
    assert fault.sqlstate == ""


def test_a_login_that_holds_connections_or_was_not_asked_for_is_not_refused() -> None:
    words = "FATAL:  something else"
    assert faults.from_connect(failed(words), ProbeOutcome.LOGIN_REFUSED, proven=True).sqlstate == ""
    assert faults.from_connect(failed(words, asked=False), ProbeOutcome.LOGIN_REFUSED, proven=False).sqlstate == ""
