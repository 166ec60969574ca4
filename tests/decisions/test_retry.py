"""decisions/retry and its table: one named row per condition, then what must hold for every fault there is."""

from __future__ import annotations

import string
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.decisions.retry import Action, Replayability, Verdict, classify, error
from router.decisions.sqlstates import DEFAULT, RULES, rule_of
from router.model.errors import Code, Executed
from router.model.identity import EndpointName
from router.model.observation import Fault, FaultKind, PgError, Stage
from router.model.reasons import RefuseReason, RetryReason
from router.model.request import Access

READ = Replayability(Access.READ_ONLY)
STREAMED = Replayability(Access.READ_ONLY, first_row_sent=True)
WRITE = Replayability(Access.READ_WRITE)
BATCH = Replayability(Access.READ_WRITE, batch=True)
KEYED = Replayability(Access.READ_WRITE, keyed=True)
KEYED_BATCH = Replayability(Access.READ_WRITE, batch=True, keyed=True)
PARTS = Replayability(Access.READ_WRITE, commits_inside=True)
TX = Replayability(Access.READ_WRITE, interactive=True)
READ_TX = Replayability(Access.READ_ONLY, interactive=True)
READ_BATCH = Replayability(Access.READ_ONLY, batch=True)
UNSURE_BATCH = Replayability(Access.READ_ONLY, batch=True, escapes=True)
UNSURE_TX = Replayability(Access.READ_ONLY, interactive=True, escapes=True)

FACTS = {READ: Stage.EXECUTE, WRITE: Stage.COMMIT, BATCH: Stage.EXECUTE, TX: Stage.EXECUTE}
SAME, ELSEWHERE, HOLD, FAIL = Action.RETRY_SAME, Action.RETRY_ELSEWHERE, Action.HOLD, Action.FAIL


def replied(sqlstate: str, stage: Stage = Stage.EXECUTE, **fields: Any) -> Fault:
    fields.setdefault("severity", "ERROR")
    detail = PgError(sqlstate=sqlstate, message="what PostgreSQL said", **fields)
    return Fault(FaultKind.SERVER_ERROR, stage, sqlstate, detail=detail, endpoint=EndpointName("a"))


def stale(sqlstate: str, stage: Stage = Stage.EXECUTE) -> Fault:
    return replace(replied(sqlstate, stage), stale_statement=True)


# name: fault, facts -> action, code, reason, executed, retry reason
Case = tuple[Fault, Replayability, Action, Code, RefuseReason, Executed, RetryReason | None]


def lost(stage: Stage) -> Fault:
    return Fault(FaultKind.CONNECTION_LOST, stage)


def of(kind: FaultKind, stage: Stage, sqlstate: str = "") -> Fault:
    return Fault(kind, stage, sqlstate)


R, C, X, Y = RefuseReason, Code, Executed, RetryReason
CASES: dict[str, Case] = {
    # the connection cannot be made: nothing was sent
    "refused, read": (
        of(FaultKind.CONNECT_REFUSED, Stage.CONNECT), READ, ELSEWHERE, C.UNAVAILABLE, R.NO_BACKEND, X.NO, Y.NOT_SENT),
    "refused, write": (
        of(FaultKind.CONNECT_REFUSED, Stage.CONNECT), WRITE, HOLD, C.UNAVAILABLE, R.NO_BACKEND, X.NO, Y.NOT_SENT),
    "refused, begin of a transaction": (
        of(FaultKind.CONNECT_REFUSED, Stage.CONNECT), TX, HOLD, C.UNAVAILABLE, R.NO_BACKEND, X.NO, Y.NOT_SENT),
    "connect failed, read": (
        of(FaultKind.CONNECT_FAILED, Stage.CONNECT), READ, ELSEWHERE, C.UNAVAILABLE, R.NO_BACKEND, X.NO, Y.NOT_SENT),
    "connect failed, write": (
        of(FaultKind.CONNECT_FAILED, Stage.CONNECT), WRITE, HOLD, C.UNAVAILABLE, R.NO_BACKEND, X.NO, Y.NOT_SENT),
    "login refused": (
        of(FaultKind.CONNECT_FAILED, Stage.CONNECT, "28P01"), WRITE, FAIL, C.INTERNAL, R.BACKEND_CONFIG, X.NO, None),
    "database missing": (
        of(FaultKind.CONNECT_FAILED, Stage.CONNECT, "3D000"), READ, FAIL, C.INTERNAL, R.BACKEND_CONFIG, X.NO, None),
    "starting up, write": (
        of(FaultKind.CONNECT_FAILED, Stage.CONNECT, "57P03"), WRITE, HOLD, C.UNAVAILABLE, R.NO_BACKEND, X.NO,
        Y.STARTING_UP),
    "full, write": (
        of(FaultKind.CONNECT_FAILED, Stage.CONNECT, "53300"), WRITE, SAME, C.UNAVAILABLE, R.NO_BACKEND, X.NO,
        Y.NOT_SENT),
    "pool timeout, read": (
        of(FaultKind.POOL_TIMEOUT, Stage.ACQUIRE), READ, ELSEWHERE, C.UNAVAILABLE, R.POOL_TIMEOUT, X.NO, Y.NOT_SENT),
    "pool timeout, write": (
        of(FaultKind.POOL_TIMEOUT, Stage.ACQUIRE), WRITE, FAIL, C.UNAVAILABLE, R.POOL_TIMEOUT, X.NO, None),
    "fenced before sending": (
        of(FaultKind.STALE, Stage.SEND), WRITE, SAME, C.UNAVAILABLE, R.BACKEND_LOST, X.NO, Y.NOT_SENT),
    "fenced in a transaction": (
        of(FaultKind.STALE, Stage.SEND), TX, FAIL, C.ABORTED, R.TRANSACTION_LOST, X.ROLLED_BACK, None),
    "pool closed before sending": (
        of(FaultKind.CLOSED, Stage.ACQUIRE), WRITE, SAME, C.UNAVAILABLE, R.DRAINING, X.NO, Y.NOT_SENT),
    # the connection is lost
    "lost unsent, read": (lost(Stage.SEND), READ, ELSEWHERE, C.UNAVAILABLE, R.BACKEND_LOST, X.NO, Y.NOT_SENT),
    "lost unsent, write": (lost(Stage.SEND), WRITE, HOLD, C.UNAVAILABLE, R.BACKEND_LOST, X.NO, Y.NOT_SENT),
    "lost while reading": (
        lost(Stage.EXECUTE), READ, ELSEWHERE, C.UNAVAILABLE, R.BACKEND_LOST, X.ROLLED_BACK, Y.READ_LOST),
    "lost while rows arrive, none has left": (
        lost(Stage.STREAM), READ, ELSEWHERE, C.UNAVAILABLE, R.BACKEND_LOST, X.ROLLED_BACK, Y.READ_LOST),
    "lost after rows have left": (lost(Stage.STREAM), STREAMED, FAIL, C.ABORTED, R.BACKEND_LOST, X.ROLLED_BACK, None),
    "lost, write alone": (lost(Stage.COMMIT), WRITE, FAIL, C.UNKNOWN, R.OUTCOME_UNKNOWN, X.MAYBE, None),
    "lost, write alone, though the lane said execute": (
        lost(Stage.EXECUTE), WRITE, FAIL, C.UNKNOWN, R.OUTCOME_UNKNOWN, X.MAYBE, None),
    "lost, keyed write": (lost(Stage.COMMIT), KEYED, HOLD, C.UNKNOWN, R.OUTCOME_UNKNOWN, X.MAYBE, Y.KEYED),
    "lost, batch before COMMIT": (
        lost(Stage.EXECUTE), BATCH, HOLD, C.UNAVAILABLE, R.BACKEND_LOST, X.ROLLED_BACK, Y.ROLLED_BACK),
    "lost, batch at COMMIT": (lost(Stage.COMMIT), BATCH, FAIL, C.UNKNOWN, R.OUTCOME_UNKNOWN, X.MAYBE, None),
    "lost, keyed batch at COMMIT": (
        lost(Stage.COMMIT), KEYED_BATCH, HOLD, C.UNKNOWN, R.OUTCOME_UNKNOWN, X.MAYBE, Y.KEYED),
    "lost, transaction": (lost(Stage.EXECUTE), TX, FAIL, C.ABORTED, R.TRANSACTION_LOST, X.ROLLED_BACK, None),
    "lost, transaction at COMMIT": (lost(Stage.COMMIT), TX, FAIL, C.UNKNOWN, R.OUTCOME_UNKNOWN, X.MAYBE, None),
    "lost, read-only transaction at COMMIT": (
        lost(Stage.COMMIT), READ_TX, FAIL, C.ABORTED, R.TRANSACTION_LOST, X.ROLLED_BACK, None),
    "lost, read-only transaction that may have acted": (
        lost(Stage.COMMIT), UNSURE_TX, FAIL, C.UNKNOWN, R.OUTCOME_UNKNOWN, X.MAYBE, None),
    "lost, read-only batch at COMMIT": (
        lost(Stage.COMMIT), READ_BATCH, ELSEWHERE, C.UNAVAILABLE, R.BACKEND_LOST, X.ROLLED_BACK, Y.READ_LOST),
    "lost, read-only batch that may have acted, before COMMIT": (
        lost(Stage.EXECUTE), UNSURE_BATCH, ELSEWHERE, C.UNAVAILABLE, R.BACKEND_LOST, X.ROLLED_BACK, Y.READ_LOST),
    "lost, read-only batch that may have acted, at COMMIT": (
        lost(Stage.COMMIT), UNSURE_BATCH, FAIL, C.UNKNOWN, R.OUTCOME_UNKNOWN, X.MAYBE, None),
    "no answer to the COMMIT of a read-only batch that may have acted": (
        of(FaultKind.SILENT, Stage.COMMIT), UNSURE_BATCH, FAIL, C.DEADLINE_EXCEEDED, R.DEADLINE, X.MAYBE, None),
    "a write in a read-only batch that may have acted": (
        replied("25006"), UNSURE_BATCH, FAIL, C.FAILED_PRECONDITION, R.WRITE_ON_READ_METHOD, X.ROLLED_BACK, None),
    "fenced while a write ran": (
        of(FaultKind.STALE, Stage.COMMIT), WRITE, FAIL, C.UNKNOWN, R.OUTCOME_UNKNOWN, X.MAYBE, None),
    "commit is local only": (
        of(FaultKind.LOCAL_COMMIT, Stage.COMMIT, "01000"), WRITE, FAIL, C.UNKNOWN, R.OUTCOME_UNKNOWN, X.MAYBE,
        None),
    "keyed commit is local only": (
        of(FaultKind.LOCAL_COMMIT, Stage.COMMIT, "01000"), KEYED_BATCH, HOLD, C.UNKNOWN, R.OUTCOME_UNKNOWN, X.MAYBE,
        RetryReason.KEYED),
    "its key is in use": (
        of(FaultKind.KEY_BUSY, Stage.EXECUTE, "55P03"), KEYED_BATCH, Action.RETRY_SAME, C.UNAVAILABLE, R.KEY_BUSY,
        X.MAYBE, RetryReason.KEY_BUSY),
    # deadline, cancel
    "silent unsent": (of(FaultKind.SILENT, Stage.ACQUIRE), WRITE, FAIL, C.DEADLINE_EXCEEDED, R.DEADLINE, X.NO, None),
    "silent read": (
        of(FaultKind.SILENT, Stage.EXECUTE), READ, FAIL, C.DEADLINE_EXCEEDED, R.DEADLINE, X.ROLLED_BACK, None),
    "silent write": (of(FaultKind.SILENT, Stage.COMMIT), WRITE, FAIL, C.DEADLINE_EXCEEDED, R.DEADLINE, X.MAYBE, None),
    "silent batch before COMMIT": (
        of(FaultKind.SILENT, Stage.EXECUTE), BATCH, FAIL, C.DEADLINE_EXCEEDED, R.DEADLINE, X.ROLLED_BACK, None),
    "cancelled write, unconfirmed": (
        of(FaultKind.CANCELLED, Stage.COMMIT), WRITE, FAIL, C.CANCELLED, R.CANCELLED, X.MAYBE, None),
    "cancelled write, confirmed": (
        of(FaultKind.CANCELLED, Stage.COMMIT, "57014"), WRITE, FAIL, C.CANCELLED, R.CANCELLED, X.ROLLED_BACK, None),
    # out of step
    "garbled unsent": (of(FaultKind.PROTOCOL, Stage.SEND), WRITE, SAME, C.INTERNAL, R.PROTOCOL, X.NO, Y.NOT_SENT),
    "garbled read": (of(FaultKind.PROTOCOL, Stage.EXECUTE), READ, FAIL, C.INTERNAL, R.PROTOCOL, X.ROLLED_BACK, None),
    "garbled batch": (
        of(FaultKind.PROTOCOL, Stage.EXECUTE), BATCH, SAME, C.INTERNAL, R.PROTOCOL, X.ROLLED_BACK, Y.ROLLED_BACK),
    "garbled write": (of(FaultKind.PROTOCOL, Stage.COMMIT), WRITE, FAIL, C.UNKNOWN, R.OUTCOME_UNKNOWN, X.MAYBE, None),
    # more than an answer can hold
    "too large a read": (
        of(FaultKind.TOO_LARGE, Stage.EXECUTE), READ, FAIL, C.FAILED_PRECONDITION, R.RESULT_TOO_LARGE, X.ROLLED_BACK,
        None),
    "too large a write": (
        of(FaultKind.TOO_LARGE, Stage.COMMIT), WRITE, FAIL, C.FAILED_PRECONDITION, R.RESULT_TOO_LARGE, X.MAYBE, None),
    "too large a batch": (
        of(FaultKind.TOO_LARGE, Stage.EXECUTE), BATCH, FAIL, C.FAILED_PRECONDITION, R.RESULT_TOO_LARGE, X.ROLLED_BACK,
        None),
    # replies that say where the server stands
    "read only, write": (
        replied("25006", Stage.COMMIT), WRITE, HOLD, C.UNAVAILABLE, R.NOT_PRIMARY, X.ROLLED_BACK, Y.NOT_PRIMARY),
    "read only, batch": (
        replied("25006"), BATCH, HOLD, C.UNAVAILABLE, R.NOT_PRIMARY, X.ROLLED_BACK, Y.NOT_PRIMARY),
    "read only, transaction": (replied("25006"), TX, FAIL, C.ABORTED, R.NOT_PRIMARY, X.ROLLED_BACK, None),
    "write on Query": (
        replied("25006"), READ, FAIL, C.FAILED_PRECONDITION, R.WRITE_ON_READ_METHOD, X.ROLLED_BACK, None),
    "begin read write in recovery": (
        replied("0A000", routine="call_bool_check_hook"), BATCH, HOLD, C.UNAVAILABLE, R.NOT_PRIMARY, X.ROLLED_BACK,
        Y.NOT_PRIMARY),
    "57P01 ends the session, write": (
        replied("57P01", Stage.COMMIT, severity="FATAL"), WRITE, FAIL, C.UNKNOWN, R.OUTCOME_UNKNOWN, X.MAYBE, None),
    "57P01 ends the session, read": (
        replied("57P01", severity="FATAL"), READ, ELSEWHERE, C.UNAVAILABLE, R.BACKEND_LOST, X.ROLLED_BACK,
        Y.READ_LOST),
    "57P02, batch before COMMIT": (
        replied("57P02", severity="FATAL"), BATCH, HOLD, C.UNAVAILABLE, R.BACKEND_LOST, X.ROLLED_BACK, Y.ROLLED_BACK),
    "PANIC at COMMIT": (
        replied("58030", Stage.COMMIT, severity="PANIC"), BATCH, FAIL, C.UNKNOWN, R.OUTCOME_UNKNOWN, X.MAYBE, None),
    "another server lost, by dblink": (
        replied("08006", Stage.COMMIT), WRITE, FAIL, C.UNAVAILABLE, R.BACKEND_LOST, X.ROLLED_BACK, None),
    "idle session ended": (
        replied("57P05", Stage.COMMIT, severity="FATAL"), WRITE, SAME, C.UNAVAILABLE, R.BACKEND_LOST, X.ROLLED_BACK,
        Y.ROLLED_BACK),
    # conflicts
    "serialization, write": (
        replied("40001", Stage.COMMIT), WRITE, SAME, C.ABORTED, R.SERIALIZATION, X.ROLLED_BACK, Y.SERIALIZATION),
    "serialization at COMMIT of a batch": (
        replied("40001", Stage.COMMIT), BATCH, SAME, C.ABORTED, R.SERIALIZATION, X.ROLLED_BACK, Y.SERIALIZATION),
    "serialization, transaction": (replied("40001"), TX, FAIL, C.ABORTED, R.SERIALIZATION, X.ROLLED_BACK, None),
    "deadlock, batch": (replied("40P01"), BATCH, SAME, C.ABORTED, R.DEADLOCK, X.ROLLED_BACK, Y.SERIALIZATION),
    "conflict with recovery": (
        replied("40001"), READ, ELSEWHERE, C.ABORTED, R.REPLICA_CONFLICT, X.ROLLED_BACK, Y.REPLICA_CONFLICT),
    "conflict after rows have left": (
        replied("40001", Stage.STREAM), STREAMED, FAIL, C.ABORTED, R.REPLICA_CONFLICT, X.ROLLED_BACK, None),
    "lock timeout": (replied("55P03"), BATCH, FAIL, C.ABORTED, R.LOCK_TIMEOUT, X.ROLLED_BACK, None),
    "statement timeout": (
        replied("57014", Stage.COMMIT), WRITE, FAIL, C.DEADLINE_EXCEEDED, R.STATEMENT_TIMEOUT, X.ROLLED_BACK, None),
    # a statement that may have committed before its error
    "deadlock, in parts": (
        replied("40P01", Stage.COMMIT), PARTS, FAIL, C.UNKNOWN, R.OUTCOME_UNKNOWN, X.MAYBE, None),
    "serialization, in parts": (
        replied("40001", Stage.COMMIT), PARTS, FAIL, C.UNKNOWN, R.OUTCOME_UNKNOWN, X.MAYBE, None),
    "raised, in parts": (
        replied("P0001", Stage.COMMIT), PARTS, FAIL, C.FAILED_PRECONDITION, R.APP_RAISED, X.MAYBE, None),
    "statement timeout, in parts": (
        replied("57014", Stage.COMMIT), PARTS, FAIL, C.DEADLINE_EXCEEDED, R.STATEMENT_TIMEOUT, X.MAYBE, None),
    "cancelled in parts, confirmed": (
        of(FaultKind.CANCELLED, Stage.COMMIT, "57014"), PARTS, FAIL, C.CANCELLED, R.CANCELLED, X.MAYBE, None),
    "raised with the code of a refused connect, in parts": (
        replied("53300", Stage.COMMIT), PARTS, FAIL, C.UNKNOWN, R.OUTCOME_UNKNOWN, X.MAYBE, None),
    # a switchover makes each new transaction read-only, that of a procedure under way too
    "read only, in parts": (
        replied("25006", Stage.COMMIT, context="PL/pgSQL function p() line 4 at SQL statement"), PARTS, FAIL,
        C.UNKNOWN, R.OUTCOME_UNKNOWN, X.MAYBE, None),
    "read only, refused as a whole": (
        replied("25006", Stage.COMMIT), PARTS, HOLD, C.UNAVAILABLE, R.NOT_PRIMARY, X.ROLLED_BACK, Y.NOT_PRIMARY),
    "no such procedure": (
        replied("42883", Stage.COMMIT, position=6), PARTS, FAIL, C.INVALID_ARGUMENT, R.BAD_SQL, X.ROLLED_BACK, None),
    "no such function, in parts": (
        replied("42883", Stage.COMMIT, context="PL/pgSQL function p() line 4 at PERFORM"), PARTS, FAIL,
        C.INVALID_ARGUMENT, R.BAD_SQL, X.MAYBE, None),
    "plan is stale, in parts": (
        stale("0A000", Stage.COMMIT), PARTS, SAME, C.ABORTED, R.SERIALIZATION, X.ROLLED_BACK, Y.STALE_STATEMENT),
    "in parts, unsent": (
        of(FaultKind.CONNECT_FAILED, Stage.CONNECT, "53300"), PARTS, SAME, C.UNAVAILABLE, R.NO_BACKEND, X.NO,
        Y.NOT_SENT),
    # prepared statements
    "plan is stale": (
        stale("0A000", Stage.COMMIT), WRITE, SAME, C.ABORTED, R.SERIALIZATION, X.ROLLED_BACK, Y.STALE_STATEMENT),
    "prepared statement is gone": (
        stale("26000"), READ, SAME, C.ABORTED, R.SERIALIZATION, X.ROLLED_BACK, Y.STALE_STATEMENT),
    "prepared statement exists": (
        stale("42P05"), BATCH, SAME, C.ABORTED, R.SERIALIZATION, X.ROLLED_BACK, Y.STALE_STATEMENT),
    "prepared statement is gone, in a transaction": (
        stale("26000"), TX, FAIL, C.ABORTED, R.SERIALIZATION, X.ROLLED_BACK, None),
    "the caller's own prepared statement is gone": (
        replied("26000"), TX, FAIL, C.INVALID_ARGUMENT, R.BAD_SQL, X.ROLLED_BACK, None),
    "not supported": (
        replied("0A000"), READ, FAIL, C.FAILED_PRECONDITION, R.NOT_SUPPORTED, X.ROLLED_BACK, None),
    # the session's last word
    "57P01 with the connection, batch": (
        of(FaultKind.CONNECTION_LOST, Stage.EXECUTE, "57P01"), BATCH, HOLD, C.UNAVAILABLE, R.BACKEND_LOST,
        X.ROLLED_BACK, Y.ROLLED_BACK),
    "57P01 with the connection, write": (
        of(FaultKind.CONNECTION_LOST, Stage.COMMIT, "57P01"), WRITE, FAIL, C.UNKNOWN, R.OUTCOME_UNKNOWN, X.MAYBE,
        None),
    "transaction stood idle too long": (
        of(FaultKind.CONNECTION_LOST, Stage.EXECUTE, "25P03"), TX, FAIL, C.ABORTED, R.TRANSACTION_EXPIRED,
        X.ROLLED_BACK, None),
    "fatal protocol violation": (
        replied("08P01", severity="FATAL"), READ, FAIL, C.INTERNAL, R.PROTOCOL, X.ROLLED_BACK, None),
    # trouble on the server
    "internal error, read": (
        replied("XX000"), READ, ELSEWHERE, C.INTERNAL, R.BACKEND_FAULT, X.ROLLED_BACK, Y.ROLLED_BACK),
    "internal error, write": (
        replied("XX000", Stage.COMMIT), WRITE, FAIL, C.INTERNAL, R.BACKEND_FAULT, X.ROLLED_BACK, None),
    "corruption, read": (replied("XX001"), READ, FAIL, C.DATA_LOSS, R.CORRUPTION, X.ROLLED_BACK, None),
    "corruption, write": (replied("XX002", Stage.COMMIT), WRITE, FAIL, C.DATA_LOSS, R.CORRUPTION, X.MAYBE, None),
}


@pytest.mark.parametrize("name", CASES)
def test_verdict(name: str) -> None:
    fault, facts, *expected = CASES[name]
    got = classify(fault, facts)
    assert [got.action, got.code, got.reason, got.executed, got.retry_reason] == expected


# Replies that are the same for everybody and never repeated.
PLAIN: dict[str, tuple[Code, RefuseReason]] = {
    "08000": (C.UNAVAILABLE, R.BACKEND_LOST),
    "08P01": (C.INVALID_ARGUMENT, R.BAD_REQUEST),
    "09000": (C.FAILED_PRECONDITION, R.OBJECT_STATE),
    "0A001": (C.FAILED_PRECONDITION, R.NOT_SUPPORTED),
    "0B000": (C.FAILED_PRECONDITION, R.TRANSACTION_MISUSE),
    "20000": (C.INVALID_ARGUMENT, R.BAD_DATA),
    "21000": (C.INVALID_ARGUMENT, R.BAD_DATA),
    "22003": (C.OUT_OF_RANGE, R.NUMERIC_RANGE),
    "22012": (C.INVALID_ARGUMENT, R.BAD_DATA),
    "22P02": (C.INVALID_ARGUMENT, R.BAD_DATA),
    "23000": (C.FAILED_PRECONDITION, R.INTEGRITY_VIOLATION),
    "23001": (C.FAILED_PRECONDITION, R.FOREIGN_KEY_VIOLATION),
    "23502": (C.FAILED_PRECONDITION, R.NOT_NULL_VIOLATION),
    "23503": (C.FAILED_PRECONDITION, R.FOREIGN_KEY_VIOLATION),
    "23505": (C.ALREADY_EXISTS, R.UNIQUE_VIOLATION),
    "23514": (C.FAILED_PRECONDITION, R.CHECK_VIOLATION),
    "23P01": (C.ALREADY_EXISTS, R.EXCLUSION_VIOLATION),
    "24000": (C.FAILED_PRECONDITION, R.OBJECT_STATE),
    "25001": (C.FAILED_PRECONDITION, R.TRANSACTION_MISUSE),
    "25P02": (C.FAILED_PRECONDITION, R.TRANSACTION_MISUSE),
    "25P03": (C.ABORTED, R.TRANSACTION_EXPIRED),
    "25P04": (C.ABORTED, R.TRANSACTION_EXPIRED),
    "27000": (C.FAILED_PRECONDITION, R.OBJECT_STATE),
    "28000": (C.INTERNAL, R.BACKEND_CONFIG),
    "2BP01": (C.FAILED_PRECONDITION, R.OBJECT_STATE),
    "2D000": (C.FAILED_PRECONDITION, R.TRANSACTION_MISUSE),
    "2F005": (C.FAILED_PRECONDITION, R.APP_RAISED),
    "26000": (C.INVALID_ARGUMENT, R.BAD_SQL),
    "34000": (C.INVALID_ARGUMENT, R.BAD_SQL),
    "38000": (C.FAILED_PRECONDITION, R.APP_RAISED),
    "39000": (C.FAILED_PRECONDITION, R.APP_RAISED),
    "3B001": (C.FAILED_PRECONDITION, R.TRANSACTION_MISUSE),
    "3D000": (C.INTERNAL, R.BACKEND_CONFIG),
    "3F000": (C.INVALID_ARGUMENT, R.BAD_SQL),
    "40002": (C.FAILED_PRECONDITION, R.INTEGRITY_VIOLATION),
    "42501": (C.PERMISSION_DENIED, R.PG_PRIVILEGE),
    "42601": (C.INVALID_ARGUMENT, R.BAD_SQL),
    "42701": (C.ALREADY_EXISTS, R.DUPLICATE_OBJECT),
    "42703": (C.INVALID_ARGUMENT, R.BAD_SQL),
    "42710": (C.ALREADY_EXISTS, R.DUPLICATE_OBJECT),
    "42723": (C.ALREADY_EXISTS, R.DUPLICATE_OBJECT),
    "42883": (C.INVALID_ARGUMENT, R.BAD_SQL),
    "42P01": (C.INVALID_ARGUMENT, R.BAD_SQL),
    "42P04": (C.ALREADY_EXISTS, R.DUPLICATE_OBJECT),
    "42P06": (C.ALREADY_EXISTS, R.DUPLICATE_OBJECT),
    "42P07": (C.ALREADY_EXISTS, R.DUPLICATE_OBJECT),
    "44000": (C.FAILED_PRECONDITION, R.CHECK_VIOLATION),
    "53100": (C.RESOURCE_EXHAUSTED, R.BACKEND_RESOURCE),
    "53200": (C.RESOURCE_EXHAUSTED, R.BACKEND_RESOURCE),
    "53400": (C.RESOURCE_EXHAUSTED, R.BACKEND_RESOURCE),
    "54001": (C.INVALID_ARGUMENT, R.BAD_SQL),
    "55000": (C.FAILED_PRECONDITION, R.OBJECT_STATE),
    "55006": (C.FAILED_PRECONDITION, R.OBJECT_STATE),
    "55P03": (C.ABORTED, R.LOCK_TIMEOUT),
    "57014": (C.DEADLINE_EXCEEDED, R.STATEMENT_TIMEOUT),
    "57P04": (C.INTERNAL, R.BACKEND_CONFIG),
    "HV000": (C.INTERNAL, R.BACKEND_FAULT),
    "P0001": (C.FAILED_PRECONDITION, R.APP_RAISED),
    "P0004": (C.FAILED_PRECONDITION, R.APP_RAISED),
    "MY123": (C.FAILED_PRECONDITION, R.APP_RAISED),
}


@pytest.mark.parametrize("sqlstate", PLAIN)
@pytest.mark.parametrize("facts", FACTS, ids=["read", "write", "batch", "transaction"])
def test_plain_reply(sqlstate: str, facts: Replayability) -> None:
    got = classify(replied(sqlstate, FACTS[facts]), facts)
    code, reason = PLAIN[sqlstate]
    assert (got.action, got.reason, got.executed) == (FAIL, reason, X.ROLLED_BACK)
    assert got.code is (C.ABORTED if facts is TX and code is C.UNAVAILABLE else code)
    assert not got.primary_evidence


def test_every_row_of_the_table_is_named_here() -> None:
    named = {case[0].sqlstate for case in CASES.values()} | set(PLAIN)
    classes = {sqlstate[:2] for sqlstate in named}
    elsewhere = {"03", "08001", "08003", "08004", "08007", "40", "40003", "57", "42P03", "F0"}
    missing = {row for row in RULES if row not in named and (len(row) == 5 or row not in classes)}
    assert missing <= elsewhere, missing - elsewhere
    for row in elsewhere:
        assert rule_of(row.ljust(5, "0")).code in (C.UNAVAILABLE, C.ABORTED, C.INVALID_ARGUMENT, C.ALREADY_EXISTS,
                                                   C.INTERNAL)
    assert rule_of("ZZZZZ") is DEFAULT
    assert rule_of("") is DEFAULT


@pytest.mark.parametrize(
    ("fault", "facts", "expected"),
    [
        (lost(Stage.EXECUTE), READ, True),
        (lost(Stage.SEND), WRITE, True),
        (of(FaultKind.CONNECT_REFUSED, Stage.CONNECT), READ, True),
        (replied("25006", Stage.COMMIT), WRITE, True),
        (replied("57P01", severity="FATAL"), READ, True),
        (replied("57P02", severity="FATAL"), TX, True),
        (of(FaultKind.CONNECT_FAILED, Stage.CONNECT, "57P03"), WRITE, True),
        (of(FaultKind.CONNECTION_LOST, Stage.EXECUTE, "57P01"), READ, True),
        (of(FaultKind.CONNECTION_LOST, Stage.SEND, "57P05"), READ, False),
        (of(FaultKind.CONNECTION_LOST, Stage.EXECUTE, "25P03"), TX, False),
        # one tenant's doing must not put everyone's primary in doubt
        (of(FaultKind.CONNECT_FAILED, Stage.CONNECT), WRITE, False),
        (of(FaultKind.SILENT, Stage.EXECUTE), READ, False),
        (replied("25006"), READ, False),
        (replied("57P01"), WRITE, False),
        (replied("25006", Stage.COMMIT, routine="exec_stmt_raise"), WRITE, False),
        (replied("42601"), READ, False),
        (of(FaultKind.STALE, Stage.SEND), WRITE, False),
        (of(FaultKind.CLOSED, Stage.EXECUTE), READ, False),
    ],
)
def test_evidence_about_the_primary(fault: Fault, facts: Replayability, expected: bool) -> None:
    assert classify(fault, facts).primary_evidence is expected


CODES = st.text(string.digits + string.ascii_uppercase, min_size=5, max_size=5)
faults = st.builds(
    lambda kind, stage, sqlstate, severity, routine: Fault(
        kind, stage, sqlstate, detail=PgError(severity=severity, sqlstate=sqlstate, routine=routine)
        if kind is FaultKind.SERVER_ERROR else None),
    st.sampled_from(FaultKind),
    st.sampled_from(Stage),
    st.one_of(CODES, st.sampled_from([row.ljust(5, "0") for row in RULES]), st.just("")),
    st.sampled_from(["", "ERROR", "FATAL", "PANIC"]),
    st.sampled_from(["", "RevalidateCachedQuery", "call_bool_check_hook", "exec_stmt_raise"]),
)
standings = st.builds(Replayability, st.sampled_from(Access), st.booleans(), st.booleans(), st.booleans(),
                      st.booleans(), st.booleans(), st.booleans())


@given(faults, standings)
def test_total_and_never_repeats_what_may_have_happened(fault: Fault, facts: Replayability) -> None:
    got = classify(fault, facts)
    assert (got.action is Action.FAIL) == (got.retry_reason is None)
    if got.action is not Action.FAIL:
        assert got.executed in (X.NO, X.ROLLED_BACK) or (
            facts.keyed and got.retry_reason in (RetryReason.KEYED, RetryReason.KEY_BUSY)
        )
        key_told = fault.kind in (FaultKind.KEY_BUSY, FaultKind.LOCAL_COMMIT)
        only_reads = facts.access is Access.READ_ONLY and not (facts.escapes and fault.stage is Stage.COMMIT)
        assert key_told or not (facts.first_row_sent and only_reads and fault.sent)
        assert not (facts.interactive and fault.sent)
    definite = fault.kind is FaultKind.SERVER_ERROR and fault.detail is not None and fault.detail.severity == "ERROR"
    open_write = facts.access is Access.READ_WRITE and fault.sent and (not facts.batch or fault.stage is Stage.COMMIT)
    if facts.commits_inside and fault.sent and facts.access is Access.READ_WRITE and got.action is not Action.FAIL:
        assert not definite or fault.sqlstate == "25006" or facts.keyed
    if facts.escapes and fault.stage is Stage.COMMIT and fault.kind is FaultKind.CONNECTION_LOST:
        assert got.executed is X.MAYBE
        assert got.action is FAIL or facts.keyed
    if open_write and not definite and fault.kind is FaultKind.CONNECTION_LOST and not facts.interactive:
        assert got.executed is X.MAYBE
        assert got.action is (HOLD if facts.keyed else FAIL)
    if not fault.sent and not facts.interactive and fault.kind not in (
        FaultKind.SERVER_ERROR, FaultKind.LOCAL_COMMIT, FaultKind.KEY_BUSY
    ):
        assert got.executed in (X.NO, X.ROLLED_BACK)


@given(faults, standings)
def test_every_verdict_makes_an_error_with_words(fault: Fault, facts: Replayability) -> None:
    made = error(classify(fault, facts), fault)
    assert made.message
    assert "\n" not in made.message
    assert made.fault is fault


def test_error_carries_what_postgresql_said() -> None:
    detail = PgError("ERROR", "23505", "duplicate key\nsecond line", constraint="accounts_pkey")
    fault = Fault(FaultKind.SERVER_ERROR, Stage.EXECUTE, "23505", detail=detail, endpoint=EndpointName("a"), step=2)
    made = error(classify(fault, BATCH), fault)
    assert made.message == "duplicate key"
    assert made.numbers == {"sqlstate": "23505", "endpoint": "a", "step": 2}
    assert made.pg is detail
    assert made.executed is X.ROLLED_BACK


def test_error_hides_the_routers_login() -> None:
    detail = PgError("FATAL", "28P01", 'password authentication failed for user "tenant_a"')
    fault = Fault(FaultKind.CONNECT_FAILED, Stage.CONNECT, "28P01", "secret words", detail)
    made = error(classify(fault, WRITE), fault)
    assert "tenant_a" not in made.message
    assert made.pg is None


def test_error_says_what_to_do() -> None:
    assert "use Execute" in error(classify(replied("25006"), READ), replied("25006")).message
    unknown = error(classify(lost(Stage.COMMIT), WRITE), lost(Stage.COMMIT))
    assert "may have been committed" in unknown.message
    local = of(FaultKind.LOCAL_COMMIT, Stage.COMMIT, "01000")
    assert "synchronous standby" in error(classify(local, WRITE), local).message
    in_parts = replied("40P01", Stage.COMMIT)
    assert error(classify(in_parts, PARTS), in_parts).message == (
        "what PostgreSQL said; what it had committed by itself before stays: look before repeating it"
    )
    assert classify(replied("53200", Stage.COMMIT), PARTS).retry_after_s is None, "nobody is told to come again"


def test_verdict_is_a_value() -> None:
    assert classify(lost(Stage.COMMIT), WRITE) == Verdict(
        FAIL, C.UNKNOWN, R.OUTCOME_UNKNOWN, X.MAYBE, primary_evidence=True
    )
