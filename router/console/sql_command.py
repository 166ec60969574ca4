"""`pointsman sql`: a statement from the command line, several from standard input, or the prompt."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass

import pointsman
from pointsman.options import ReadPreference
from rich.console import Console

from router.console.admin_client import reach
from router.console.describing import DESCRIBING, describe
from router.console.result_output import OutputFormat, json_pieces, write_rows
from router.console.sql_prompt import SqlPrompt, person, show_outcome
from router.console.sql_session import Outcome, SqlSession, interrupted_words, trouble_of
from router.console.statement_reader import backslash_command, split
from router.console.targets import Target
from router.console.trouble import ExitCode, Trouble

_PREFERENCES: tuple[ReadPreference, ...] = ("primary", "replica", "any")


@dataclass(frozen=True)
class Tokens:
    """Consistency tokens: the one to begin with, and whether to tell the last one."""

    after: str = ""
    show: bool = False


def run(
    query: str | None,
    target: Target,
    read: ReadPreference,
    output: OutputFormat,
    timeout_s: float,
    console: Console,
    tokens: Tokens,
    key: str = "",
) -> None:
    """Run what was asked; the prompt when nothing was, and a person sits at the terminal. key: an idempotency
    key, for one write."""
    reach(target)
    with SqlSession(target, read, timeout_s) as session:
        session.observe(tokens.after)
        try:
            if query is None and not key and sys.stdin.isatty():
                SqlPrompt(session, console, person()).run()
            else:
                text = sys.stdin.read() if query in (None, "-") else query or ""
                _run_statements(session, text, output, console, key)
        finally:
            if tokens.show:
                print(f"token: {session.token}", file=sys.stderr)


def _run_statements(session: SqlSession, text: str, output: OutputFormat, console: Console, key: str) -> None:
    command = backslash_command(text)
    if command is not None:
        found = _described(session, text.strip().rstrip(";"), *command)
        for outcome in found:
            _write(outcome, output, console, several=len(found) > 1)
        return
    statements = [statement.strip() for statement in split(text) if statement.strip()]
    if not statements:
        raise Trouble("there is no statement to run", 'such as: pointsman sql "select 1"', ExitCode.USAGE)
    several = len(statements) > 1
    if key and several:
        raise Trouble("an idempotency key is for one write", "give each of them its own", ExitCode.USAGE)
    outcomes = [_run_one(session, statement, output, console, key, several=several) for statement in statements]
    if session.in_transaction:
        raise Trouble("the transaction was not ended, and is rolled back", "end it with COMMIT: BEGIN; ... COMMIT;")
    if output is OutputFormat.JSON and not any(outcome.names for outcome in outcomes):
        print(_done_json(outcomes[-1]))  # no rows at all: what was done is all there is to tell


def _run_one(
    session: SqlSession, statement: str, output: OutputFormat, console: Console, key: str, *, several: bool
) -> Outcome:
    outcome = None
    try:
        outcome = session.run_once(statement, key) if key else session.run(statement)
        _write(outcome, output, console, several=several)
    except pointsman.Error as error:
        raise trouble_of(error, session.target.address, statement) from None
    except KeyboardInterrupt:
        raise Trouble(interrupted_words(outcome), code=ExitCode.INTERRUPTED) from None
    finally:
        if outcome is not None:
            outcome.close()
    return outcome


def _write(outcome: Outcome, output: OutputFormat, console: Console, *, several: bool) -> None:
    if output not in (OutputFormat.JSON, OutputFormat.CSV):
        show_outcome(outcome, output, console)
    elif outcome.names and output is OutputFormat.JSON and several:
        sys.stdout.writelines(json_pieces(outcome.names, outcome.rows, one_line=True))
    elif outcome.names:
        write_rows(output, outcome.names, outcome.rows, console, sys.stdout)


def _done_json(outcome: Outcome) -> str:
    receipt = outcome.receipt
    done = {
        "command": outcome.command_tag,
        "rows": outcome.rowcount,
        "endpoint": receipt.endpoint if receipt is not None else "",
        "attempts": receipt.attempts if receipt is not None else 0,
    }
    return json.dumps(done, ensure_ascii=False)


def _described(session: SqlSession, text: str, line: int, word: str) -> list[Outcome]:
    name, _, argument = text.partition(" ")
    if name not in DESCRIBING or "\n" in text:
        raise Trouble(
            f"line {line}: {word} works at the prompt only, like all backslash commands",
            "here there are \\d and \\d NAME, alone; for a prompt: pointsman sql",
            ExitCode.USAGE,
        )
    try:
        return describe(session, argument.strip())
    except pointsman.Error as error:
        raise trouble_of(error, session.target.address) from None


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
