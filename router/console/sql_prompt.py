"""The interactive prompt of `pointsman sql`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path

import pointsman
from rich.console import Console
from rich.text import Text

from router.console.describing import DESCRIBING, describe
from router.console.result_output import OutputFormat, visible, write_rows
from router.console.sql_session import Outcome, SqlSession, interrupted_words, trouble_of
from router.console.statement_reader import StatementReader
from router.console.trouble import Trouble

HELP = """\
Type SQL and end it with ;  A statement that begins with SELECT, WITH, TABLE, VALUES, SHOW or EXPLAIN is a read,
everything else goes to the primary. BEGIN ... COMMIT runs a transaction on one connection.

  \\d            tables and views           \\x            one line per column, on or off
  \\d NAME       columns and indexes        \\timing       times under each result, on or off
  \\read WHERE   reads go to primary, replica or any
  \\r            drop what was begun        \\q            leave (also exit, quit, Ctrl-D)
  \\?            this help
"""
Ask = Callable[[str], str]


class SqlPrompt:
    """Reads statements from a person and shows what they give. Errors are shown; what HELP tells ends it."""

    def __init__(self, session: SqlSession, console: Console, ask: Ask) -> None:
        self._session = session
        self._console = console
        self._ask = ask
        self._reader = StatementReader()
        self._form = OutputFormat.TABLE
        self._timing = True
        self._explained = False
        """Whether it was told how to get out of a statement that has not ended."""

    def run(self) -> None:
        """Until the person leaves."""
        self._say(f"connected to {self._session.target.address}; \\? for help, \\q to leave", "dim")
        while True:
            try:
                line = self._ask(self._prompt())
            except EOFError:
                self._console.print()
                return
            except KeyboardInterrupt:
                self._reader.clear()
                self._console.print()
                continue
            if not self._take(line):
                return

    def _take(self, line: str) -> bool:
        """Take a line that was typed; False to leave."""
        if not self._reader.pending and line.strip().rstrip(";").rstrip().lower() in ("exit", "quit"):
            return False
        if line.strip().startswith("\\") and not (self._reader.pending and self._reader.quoted):
            return self._command(line.strip())
        self._statements(self._reader.feed(line))
        if self._reader.pending and not self._explained:
            self._explained = True
            self._say("a statement ends with ;  (\\r or Ctrl-C drops what was begun, \\q leaves)", "dim")
        return True

    def _prompt(self) -> str:
        session = self._session
        mark = "*" if session.in_transaction and not session.failed else ""
        more = "-" if self._reader.pending else "="
        return f"{session.target.tenant or 'pointsman'}{mark}{more}{'!' if session.failed else ''}> "

    def _statements(self, statements: list[str]) -> None:
        for statement in statements:
            if not self._run_one(statement):
                return

    def _run_one(self, statement: str) -> bool:
        """Run a statement; False when it failed, and what was typed behind it is not to run."""
        outcome = None
        try:
            outcome = self._session.run(statement)
            self._show(outcome)
        except pointsman.Error as error:
            show_trouble(trouble_of(error, self._session.target.address, statement), self._console)
        except Trouble as trouble:
            show_trouble(trouble, self._console)
        except KeyboardInterrupt:
            self._say(interrupted_words(outcome), "yellow")
        else:
            return True
        finally:
            if outcome is not None:
                outcome.close()
        return False

    def _command(self, line: str) -> bool:
        """Obey a backslash command; False to leave."""
        name, _, argument = line.rstrip(";").partition(" ")
        match name, argument.strip():
            case ("\\q", _):
                return False
            case ("\\?" | "\\h" | "\\help", _):
                self._console.print(Text(HELP))
            case ("\\r", _):
                self._reader.clear()
                self._say("what was begun is dropped", "dim")
            case ("\\timing", _):
                self._timing = not self._timing
                self._say(f"timing is {'on' if self._timing else 'off'}", "dim")
            case ("\\x", _):
                expanded = self._form is OutputFormat.EXPANDED
                self._form = OutputFormat.TABLE if expanded else OutputFormat.EXPANDED
                self._say(f"expanded output is {'off' if expanded else 'on'}", "dim")
            case ("\\read", "primary" | "replica" | "any" as where):
                self._session.read = where
                self._say(f"reads go to {where}", "dim")
            case (name, relation) if name in DESCRIBING:
                self._describe(relation)
            case _:
                self._say(f"unknown command {name}: \\? shows what there is", "yellow")
        return True

    def _describe(self, relation: str) -> None:
        try:
            for outcome in describe(self._session, relation):
                self._show(outcome)
        except pointsman.Error as error:
            show_trouble(trouble_of(error, self._session.target.address), self._console)
        except Trouble as trouble:
            show_trouble(trouble, self._console)

    def _show(self, outcome: Outcome) -> None:
        show_outcome(outcome, self._form, self._console, timing=self._timing)

    def _say(self, text: str, style: str) -> None:
        self._console.print(Text(text, style=style))


def show_outcome(outcome: Outcome, form: OutputFormat, console: Console, *, timing: bool = True) -> None:
    """Rows, notices, and the receipt line."""
    for notice in outcome.notices:
        console.print(Text(f"{notice.severity}: {visible(notice.message)}", style="yellow"))
    if outcome.names:
        write_rows(form, outcome.names, outcome.rows, console, sys.stdout)
    console.print(Text(receipt_line(outcome, timing=timing), style="dim"))


def receipt_line(outcome: Outcome, *, timing: bool = True) -> str:
    """Where the statement ran, and how long it took: "3 rows · pg2 (replica) · 0.4 ms in PostgreSQL, 1.9 ms in all"."""
    counted = f"{outcome.rowcount} row{'' if outcome.rowcount == 1 else 's'}"
    parts = [counted if outcome.names else outcome.command_tag or "done"]
    receipt = outcome.receipt
    if receipt is not None and receipt.endpoint:
        parts.append(f"{receipt.endpoint} ({receipt.role})" if receipt.role else receipt.endpoint)
    if timing:
        inside = f"{receipt.executed_us / 1000:.1f} ms in PostgreSQL, " if receipt is not None else ""
        parts.append(f"{inside}{outcome.took_s * 1000:.1f} ms in all")
    if receipt is not None:
        parts += [f"{receipt.attempts} attempts"] if receipt.attempts > 1 else []
        parts += [f"held {receipt.held_us / 1000:.0f} ms by a failover"] if receipt.held_us else []
    return " · ".join(parts)


def show_trouble(trouble: Trouble, console: Console) -> None:
    """The line and the way out."""
    console.print(Text(visible(trouble.message), style="bold red"))
    if trouble.way_out:
        console.print(Text(visible(trouble.way_out), style="yellow"))


def person(history: Path | None = None) -> Ask:
    """Asks the person at the terminal, with line editing and a history where readline exists."""
    with contextlib.suppress(ImportError, OSError):
        import atexit
        import readline

        path = history or Path.home() / ".pointsman_history"
        with contextlib.suppress(OSError):
            readline.read_history_file(path)
        readline.set_history_length(2000)

        def keep() -> None:
            with contextlib.suppress(OSError):
                readline.write_history_file(path)
                path.chmod(0o600)  # statements may hold what is nobody else's business

        atexit.register(keep)
    return input
