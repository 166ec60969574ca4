"""`pointsman sql`: a statement from the command line, several from standard input, or the prompt."""

from __future__ import annotations

import sys

import pointsman
from pointsman.options import ReadPreference
from rich.console import Console

from router.console.admin_client import reach
from router.console.result_output import OutputFormat, write_rows
from router.console.sql_prompt import SqlPrompt, person, show_outcome
from router.console.sql_session import SqlSession, trouble_of
from router.console.statement_reader import split
from router.console.targets import Target
from router.console.trouble import ExitCode, Trouble

_PREFERENCES: tuple[ReadPreference, ...] = ("primary", "replica", "any")


def run(
    query: str | None, target: Target, read: ReadPreference, output: OutputFormat, timeout_s: float, console: Console
) -> None:
    """Run what was asked; the prompt when nothing was, and a person sits at the terminal."""
    reach(target.address)
    with SqlSession(target, read, timeout_s) as session:
        if query is None and sys.stdin.isatty():
            SqlPrompt(session, console, person()).run()
        else:
            _run_statements(session, sys.stdin.read() if query in (None, "-") else query or "", output, console)


def _run_statements(session: SqlSession, text: str, output: OutputFormat, console: Console) -> None:
    statements = [statement.strip() for statement in split(text) if statement.strip()]
    if not statements:
        raise Trouble("there is no statement to run", 'such as: pointsman sql "select 1"', ExitCode.USAGE)
    for statement in statements:
        try:
            outcome = session.run(statement)
        except pointsman.Error as error:
            raise trouble_of(error, session.target.address) from None
        if output in (OutputFormat.JSON, OutputFormat.CSV):
            if outcome.names:
                write_rows(output, outcome.names, outcome.rows, console, sys.stdout)
        else:
            show_outcome(outcome, output, console)


def output_form(text: str) -> OutputFormat:
    """The format of that name. Trouble when there is none."""
    try:
        return OutputFormat(text)
    except ValueError:
        known = ", ".join(form.value for form in OutputFormat)
        raise Trouble(f"there is no output format {text!r}", f"use one of {known}", ExitCode.USAGE) from None


def read_preference(text: str) -> ReadPreference:
    """The read preference of that name. Trouble when there is none."""
    for known in _PREFERENCES:
        if text == known:
            return known
    raise Trouble(f"reads cannot go to {text!r}", "use --read primary, replica or any", ExitCode.USAGE)
