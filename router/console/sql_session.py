"""Runs statements through the SDK for `pointsman sql`: reads, writes, transactions; errors in words."""

from __future__ import annotations

import contextlib
import shlex
import time
import uuid
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import pointsman
from pointsman.options import Isolation, ReadPreference
from pointsman.sync import SyncRowStream
from rich.cells import cell_len

from router.console import interrupting
from router.console.reaching import unreachable
from router.console.statement_reader import first_word, looks_like_a_read
from router.console.targets import Target
from router.console.trouble import ExitCode, Trouble

TIMEOUT_S = 30.0
_LEVELS: tuple[Isolation, ...] = ("serializable", "repeatable read", "read committed")
_JSON_OIDS = frozenset({114, 3802})
"""json and jsonb."""
_IN_PROGRAMS = ": send metadata "
"""What follows in a message is no matter of the command line."""
_BEGIN = frozenset({"begin", "start"})
_COMMIT = frozenset({"commit", "end"})
_ROLLBACK = frozenset({"rollback", "abort"})
_NO_TRANSACTION = "there is no transaction: BEGIN starts one"
_INSIDE_ONLY: Mapping[str, str] = {
    **dict.fromkeys((*_COMMIT, *_ROLLBACK, "savepoint", "release"), _NO_TRANSACTION),
    "set": "SET works inside BEGIN … COMMIT only: connections are shared, so a setting ends with its transaction",
}


@dataclass
class Outcome:
    """What one statement gave. Of a large result the rows come while they are read: what follows them in here is true
    when they have ended."""

    names: tuple[str, ...]
    """Column names; empty when the statement returns no rows."""
    rows: Iterable[Any]
    command_tag: str
    rowcount: int
    receipt: pointsman.Receipt | None
    notices: tuple[pointsman.Notice, ...]
    took_s: float

    def close(self) -> None:
        """End the statement, where its rows still come."""
        if isinstance(self.rows, Generator):
            self.rows.close()


def interrupted_words(outcome: Outcome | None) -> str:
    """After Ctrl-C in a read, which may have shown some of its rows."""
    return f"interrupted after {outcome.rowcount} rows" if outcome is not None else "interrupted"


class SqlSession:
    """One tenant's connection to the router; use it as a context manager."""

    def __init__(self, target: Target, read: ReadPreference = "primary", timeout_s: float = TIMEOUT_S) -> None:
        self.target = target
        self.read: ReadPreference = read
        self._timeout_s = timeout_s
        self._db = pointsman.sync.connect(
            target.address, tenant=target.tenant, token=target.token, tls=target.tls, timeout=timeout_s
        )
        self._transaction: Any = None
        self._failed = False

    def __enter__(self) -> SqlSession:
        return self

    def __exit__(self, *_: object) -> None:
        if self._transaction is not None:
            self._end_quietly()
        self._db.close()

    @property
    def token(self) -> str:
        """What was seen and written here, as a consistency token."""
        return self._db.token

    def observe(self, token: str) -> None:
        """Reads see at least what this token names. Trouble when it is none."""
        try:
            self._db.observe(token)
        except ValueError:
            raise Trouble(
                f"--after-token: {token!r} is no consistency token",
                "one is told by: pointsman sql --show-token, by db.token in programs, and in receipts",
                ExitCode.USAGE,
            ) from None

    @property
    def in_transaction(self) -> bool:
        """Whether BEGIN was said, and neither COMMIT nor ROLLBACK."""
        return self._transaction is not None

    @property
    def failed(self) -> bool:
        """Whether a statement of the open transaction has failed, so that it can only be rolled back."""
        return self._transaction is not None and self._failed

    def run_once(self, sql: str, key: str) -> Outcome:
        """Run one write under an idempotency key: done once, however often it is sent. pointsman.Error when it fails,
        Trouble when it has no place here."""
        started, word = time.perf_counter(), first_word(sql)
        if word in _BEGIN or word in _INSIDE_ONLY:
            raise Trouble("an idempotency key is for one write, not for a transaction's begin or end")
        return _outcome(self._write(sql, key), word, time.perf_counter() - started)

    def run(self, sql: str) -> Outcome:
        """Run one statement, in the open transaction if there is one. pointsman.Error when it fails, Trouble when it
        has no place here."""
        started = time.perf_counter()
        word = first_word(sql)
        if self._transaction is not None:
            try:
                answer = self._in_transaction(sql, word)
            except KeyboardInterrupt:
                raise self._interrupted(word) from None
        elif word in _BEGIN:
            self._begin(sql)
            answer = None
        elif word in _INSIDE_ONLY:
            raise Trouble(_INSIDE_ONLY[word], "such as: BEGIN; ... COMMIT;")
        elif looks_like_a_read(sql):
            try:
                answer = self._read(sql)
            except pointsman.ResultTooLarge:
                return self._streamed(sql, started)
        else:
            answer = self._write(sql)
        return _outcome(answer, word, time.perf_counter() - started)

    def run_with(self, sql: str, *args: Any) -> Outcome:
        """Run one read with parameters, outside any transaction."""
        started = time.perf_counter()
        return _outcome(self._db.query(sql, *args, read=self.read), "select", time.perf_counter() - started)

    def _read(self, sql: str) -> Any:
        try:
            return self._db.query(sql, read=self.read)
        except pointsman.ReadOnlyViolation:
            # It writes after all (WITH ... INSERT, nextval): PostgreSQL has undone it, so it can go the other way.
            return self._write(sql)

    def _write(self, sql: str, key: str = "") -> pointsman.Result:
        request_id = f"sql-{uuid.uuid4()}"
        return interrupting.run(
            lambda: self._db.execute(sql, request_id=request_id, idempotency_key=key or None),
            lambda wait_s: self._db.cancel(request_id, timeout=wait_s),
            key,
        )

    def _streamed(self, sql: str, started: float) -> Outcome:
        stream = self._db.stream(sql, read=self.read)
        chunks = stream.chunks()
        try:
            first = next(chunks, [])
        except BaseException:
            stream.close()
            raise
        outcome = Outcome(tuple(column.name for column in stream.columns), (), "", 0, None, (), 0.0)
        outcome.rows = _counted(stream, chain([first], chunks), outcome, started)
        return outcome

    def _begin(self, sql: str) -> None:
        words = " ".join(sql.lower().split())
        self._failed = False
        self._transaction = self._db.transaction(
            isolation=next((level for level in _LEVELS if level in words), None),
            read_only="read only" in words,
            deferrable="deferrable" in words and "not deferrable" not in words,
        ).__enter__()

    def _in_transaction(self, sql: str, word: str) -> Any:
        transaction = self._transaction
        if word in _BEGIN:
            raise Trouble("already in a transaction", "end it with COMMIT or ROLLBACK")
        to_savepoint = word in _ROLLBACK and " to " in f" {' '.join(sql.lower().split())} "
        if to_savepoint or word in ("savepoint", "release"):
            raise Trouble("there are no savepoints here", "programs have them: db.transaction(), then tx.savepoint()")
        if word in _COMMIT or word in _ROLLBACK:
            self._transaction = None
            return transaction.commit() if word in _COMMIT else transaction.rollback()
        try:
            return transaction.execute(sql)
        except (pointsman.TransactionLost, pointsman.Unavailable, pointsman.ClientClosed):
            self._transaction = None
            raise
        except pointsman.Error as error:
            # PostgreSQL refuses everything but ROLLBACK now; what the router itself refused has not reached it.
            self._failed = self._failed or bool(error.sqlstate)
            raise

    def _interrupted(self, word: str) -> interrupting.Interrupted:
        """Ends the transaction. Its COMMIT may have been done; all else is undone, also when nobody answers."""
        if word in _COMMIT:
            return interrupting.Interrupted(pointsman.Executed.MAYBE)
        transaction, self._transaction = self._transaction, None
        if transaction is not None:
            with contextlib.suppress(pointsman.Error):
                transaction.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
        return interrupting.Interrupted(pointsman.Executed.ROLLED_BACK)

    def _end_quietly(self) -> None:
        with contextlib.suppress(pointsman.Error):  # the router rolls back by itself when the stream ends
            self._transaction.rollback()
        self._transaction = None


def _counted(stream: SyncRowStream, chunks: Iterable[list[Any]], outcome: Outcome, started: float) -> Iterator[Any]:
    """The rows of a stream, which tell the outcome how far they are. Whoever leaves early ends the statement."""
    with stream:
        for chunk in chunks:
            for row in _rows(chunk, stream.columns):
                outcome.rowcount += 1
                yield row
    outcome.command_tag = f"SELECT {outcome.rowcount}"
    outcome.receipt = stream.receipt
    outcome.took_s = time.perf_counter() - started


def _outcome(answer: Any, word: str, took_s: float) -> Outcome:
    if answer is None:
        return Outcome((), [], word.upper(), 0, None, (), took_s)
    if isinstance(answer, pointsman.Result):
        names = tuple(column.name for column in answer.rows.columns)
        return Outcome(
            names,
            _rows(answer.rows, answer.rows.columns),
            answer.command_tag,
            answer.rowcount,
            answer.receipt,
            answer.notices,
            took_s,
        )
    rows = _rows(answer, answer.columns)
    names = tuple(column.name for column in answer.columns)
    return Outcome(names, rows, f"SELECT {len(rows)}", len(rows), answer.receipt, answer.notices, took_s)


def _rows(rows: Iterable[Any], columns: Sequence[Any]) -> list[Any]:
    """The rows, JSON values marked as such: a JSON array and an array of PostgreSQL are both lists otherwise."""
    marked = [column.type_oid in _JSON_OIDS for column in columns]
    if not any(marked):
        return list(rows)
    return [
        tuple(
            pointsman.Json(value) if is_json and value is not None else value
            for value, is_json in zip(row, marked, strict=True)
        )
        for row in rows
    ]


def trouble_of(error: pointsman.Error, address: str, sql: str = "") -> Trouble:
    """An SDK error as what ends a command: one line, and the way out that PostgreSQL or the router knows. With the
    statement also the line of it that PostgreSQL stumbled over, and a mark below the place."""
    if isinstance(error, pointsman.Unavailable) and error.reason in ("", "NOT_CONNECTED"):
        return unreachable(address)
    if isinstance(error, pointsman.NotSupported) and not error.reason:
        return Trouble(
            f"{address} does not serve QueryService",
            "is this the operators' port? Callers use server.listen (7432 by default)",
        )
    if not error.sqlstate and (elsewhere := _command_for(error, sql)) is not None:
        return elsewhere
    facts = [error.sqlstate or error.reason.lower()]
    if error.executed in (pointsman.Executed.MAYBE, pointsman.Executed.YES):
        facts.append(f"executed: {error.executed.value}")
    told = ", ".join(fact for fact in facts if fact)
    message = error.message.partition(_IN_PROGRAMS)[0]
    line = f"{message} ({told})" if told else message
    return Trouble(line, _way_out(error, sql), ExitCode.PROBLEM)


def _command_for(error: pointsman.Error, sql: str) -> Trouble | None:
    """The command that does what the router refuses as a statement."""
    if error.reason == "COPY_NOT_HERE":
        return Trouble(
            "COPY FROM STDIN and COPY TO STDOUT have commands of their own",
            "pointsman copy out TABLE FILE, pointsman copy out --query QUERY FILE, pointsman copy in TABLE FILE",
        )
    if first_word(sql) == "listen":
        channel = (sql.split(None, 1)[1:] or ["CHANNEL"])[0].strip().strip('"')
        return Trouble("LISTEN has a command of its own", f"pointsman listen {shlex.quote(channel)}")
    return None


def _way_out(error: pointsman.Error, sql: str) -> str:
    if isinstance(error, pointsman.Unauthenticated | pointsman.PermissionDenied) and not error.sqlstate:
        programs = error.message.partition(_IN_PROGRAMS)[2]
        return "check --token (POINTSMAN_TOKEN) and --tenant (POINTSMAN_TENANT)" + (
            f"; programs send metadata {programs}" if programs else ""
        )
    if isinstance(error, pointsman.DeadlineExceeded):
        return "give it more time with --timeout SECONDS; what requests wait for is told by: pointsman waiters"
    if error.pg is None:
        return ""
    lines = _marked(sql, error.pg.position)
    lines += [f"DETAIL: {error.pg.detail}"] if error.pg.detail else []
    lines += [f"HINT: {error.pg.hint}"] if error.pg.hint else []
    return "\n".join(lines)


def _marked(sql: str, position: int) -> list[str]:
    """The line of the statement that holds a position (from 1), and a caret below it; none for a position outside."""
    if not 0 < position <= len(sql) + 1:
        return []
    before = sql[: position - 1]
    number = before.count("\n") + 1
    line = sql.splitlines()[number - 1] if number <= len(sql.splitlines()) else ""
    start = f"LINE {number}: "
    column = len(before) - (before.rfind("\n") + 1)
    # Wide characters take two cells, tabs up to eight: the same white space, and two spaces for a wide one.
    lead = "".join(mark if mark == "\t" else " " * cell_len(mark) for mark in line[:column])
    return [f"{start}{line}", f"{' ' * len(start)}{lead}^"]
