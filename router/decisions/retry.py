"""What to do with a failed attempt: one total function over what happened, how far it had come, and what is at stake.

Here: how a fault and the standing of its request make a verdict, and the error a verdict becomes. What each SQLSTATE
means is the table in sqlstates.py (a new retry rule is a row there). Not here: how often and how long (retry_budget,
backoff), where to (routing).

The rule behind every case: only what provably left no effect is repeated: not sent, rolled back, or a read of which
no row has left. A write whose COMMIT may have been carried out is repeated only when its idempotency key can tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum, unique

from router.decisions.sqlstates import (
    NOT_PRIMARY,
    PROTOCOL,
    REPLICA_CONFLICT,
    STALE_STATEMENT,
    WRITE_ON_READ,
    Action,
    Rule,
    rule_of,
)
from router.model.errors import Code, Executed, RouterError
from router.model.observation import Fault, FaultKind, Stage
from router.model.reasons import RefuseReason, RetryReason
from router.model.request import Access

__all__ = ["Action", "Replayability", "Verdict", "classify", "error"]

_ROUTINE_SETTING_CHECK = "call_bool_check_hook"
_ROUTINE_RAISE = "exec_stmt_raise"


@dataclass(frozen=True, slots=True)
class Replayability:
    """What is at stake when a request is repeated."""

    access: Access
    """READ_ONLY also for a batch or transaction whose mode is read-only."""
    batch: bool = False
    """The router holds the whole transaction, and the lane says COMMIT once its COMMIT may have left."""
    interactive: bool = False
    """The caller drives the transaction; the router cannot repeat what was said in it."""
    keyed: bool = False
    """An idempotency row is written in the same transaction."""
    first_row_sent: bool = False
    """Rows of the answer have left for the caller."""
    commits_inside: bool = False
    """A statement alone that may commit on its way: what it had committed before an error stays."""
    escapes: bool = False
    """Read-only by its mode, but it may have had an effect all the same, which its COMMIT keeps."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do, and the error to answer with when it is not done (budget, attempts or time are used up)."""

    action: Action
    code: Code
    reason: RefuseReason
    executed: Executed
    retry_reason: RetryReason | None = None
    """Set unless the action is FAIL."""
    retry_after_s: float | None = None
    """When the caller may come back (seconds); None when unknown or useless."""
    primary_evidence: bool = False
    """Tell the supervisor: if this endpoint is the primary, it may be gone."""


@unique
class _Standing(Enum):
    """What is known about the effects of the attempt, as long as no answer came."""

    UNSENT = "unsent"
    UNDONE = "undone"
    """Sent, but without a commit: the server undoes it. Repeatable."""
    DELIVERED = "delivered"
    """As UNDONE, but the caller has seen rows."""
    ENDED = "ended"
    """An interactive transaction that the server undoes."""
    OPEN = "open"
    """Its commit may have been carried out."""


_EXECUTED: Mapping[_Standing, Executed] = {
    _Standing.UNSENT: Executed.NO,
    _Standing.UNDONE: Executed.ROLLED_BACK,
    _Standing.DELIVERED: Executed.ROLLED_BACK,
    _Standing.ENDED: Executed.ROLLED_BACK,
    _Standing.OPEN: Executed.MAYBE,
}


def classify(fault: Fault, facts: Replayability) -> Verdict:
    """Judge a failed attempt. Total: every fault gets a verdict."""
    standing = _standing(fault, facts)
    match fault.kind:
        case FaultKind.SERVER_ERROR:
            return _replied(fault, facts, standing)
        case FaultKind.CONNECTION_LOST:
            return _cut_off(fault, facts, standing)
        case FaultKind.CONNECT_REFUSED | FaultKind.CONNECT_FAILED:
            return _unconnected(fault, facts, standing)
        case FaultKind.POOL_TIMEOUT | FaultKind.STALE | FaultKind.CLOSED:
            return _unlent(fault, facts, standing)
        case FaultKind.PROTOCOL:
            return _garbled(facts, standing)
        case FaultKind.TOO_LARGE:
            return Verdict(Action.FAIL, Code.FAILED_PRECONDITION, RefuseReason.RESULT_TOO_LARGE, _EXECUTED[standing])
        case FaultKind.SILENT:
            return Verdict(Action.FAIL, Code.DEADLINE_EXCEEDED, RefuseReason.DEADLINE, _EXECUTED[standing])
        case FaultKind.CANCELLED:
            # 57014 is the server's word that the statement was stopped and undone.
            undone = fault.sqlstate == "57014" and not facts.commits_inside
            executed = Executed.ROLLED_BACK if undone else _EXECUTED[standing]
            return Verdict(Action.FAIL, Code.CANCELLED, RefuseReason.CANCELLED, executed)
        case FaultKind.LOCAL_COMMIT:
            # Done on this server only: a failover may undo it, so neither "done" nor "not done" is true. Its key's
            # row, read again behind the standby's confirmation, tells.
            return _lost(facts, _Standing.OPEN, evidence=False)
        case FaultKind.KEY_BUSY:
            again = facts.keyed and not facts.interactive
            return Verdict(
                Action.RETRY_SAME if again else Action.FAIL,
                Code.UNAVAILABLE,
                RefuseReason.KEY_BUSY,
                Executed.MAYBE,
                RetryReason.KEY_BUSY if again else None,
                1.0,
            )


def _standing(fault: Fault, facts: Replayability) -> _Standing:
    writes = facts.access is Access.READ_WRITE or (facts.escapes and fault.stage is Stage.COMMIT)
    if facts.interactive:
        if fault.stage in (Stage.ACQUIRE, Stage.CONNECT):
            return _Standing.UNSENT
        return _Standing.OPEN if writes and fault.stage is Stage.COMMIT else _Standing.ENDED
    if writes and fault.sent and not (facts.batch and fault.stage is not Stage.COMMIT):
        # A statement alone commits by itself: from its first byte on its outcome is open.
        return _Standing.OPEN
    if facts.first_row_sent:
        return _Standing.DELIVERED
    return _Standing.UNDONE if fault.sent else _Standing.UNSENT


def _cut_off(fault: Fault, facts: Replayability, standing: _Standing) -> Verdict:
    """The connection ended, perhaps with PostgreSQL's last word (a FATAL error's SQLSTATE)."""
    if not fault.sqlstate:
        return _lost(facts, standing, evidence=True)
    rule = rule_of(fault.sqlstate)
    # A session that ended for its own reasons (idle, expired) says nothing about the server.
    verdict = _lost(facts, standing, evidence=rule.evidence)
    if rule.reason is RefuseReason.TRANSACTION_EXPIRED and standing is _Standing.ENDED:
        return replace(verdict, reason=rule.reason)
    return verdict


def _lost(facts: Replayability, standing: _Standing, *, evidence: bool) -> Verdict:
    """The connection ended before the answer."""
    read = facts.access is Access.READ_ONLY
    again = Action.RETRY_ELSEWHERE if read else Action.HOLD
    lost, executed = RefuseReason.BACKEND_LOST, _EXECUTED[standing]
    match standing:
        case _Standing.UNSENT:
            return Verdict(again, Code.UNAVAILABLE, lost, executed, RetryReason.NOT_SENT, 1.0, evidence)
        case _Standing.UNDONE:
            why = RetryReason.READ_LOST if read else RetryReason.ROLLED_BACK
            return Verdict(again, Code.UNAVAILABLE, lost, executed, why, 1.0, evidence)
        case _Standing.DELIVERED:
            return Verdict(Action.FAIL, Code.ABORTED, lost, executed, primary_evidence=evidence)
        case _Standing.ENDED:
            return Verdict(
                Action.FAIL, Code.ABORTED, RefuseReason.TRANSACTION_LOST, executed, primary_evidence=evidence
            )
        case _Standing.OPEN:
            keyed = facts.keyed and not facts.interactive
            return Verdict(
                Action.HOLD if keyed else Action.FAIL,
                Code.UNKNOWN,
                RefuseReason.OUTCOME_UNKNOWN,
                executed,
                RetryReason.KEYED if keyed else None,
                primary_evidence=evidence,
            )


def _unconnected(fault: Fault, facts: Replayability, standing: _Standing) -> Verdict:
    if standing is not _Standing.UNSENT:
        return _lost(facts, standing, evidence=True)
    if fault.sqlstate:
        return _replied(fault, facts, standing)
    again = Action.RETRY_ELSEWHERE if facts.access is Access.READ_ONLY else Action.HOLD
    # Only a refusal speaks about the server; other failures may be the tenant's own (password, database), and one
    # tenant's mistake must not put everyone's primary in doubt. The prober finds a server that hangs.
    refused = fault.kind is FaultKind.CONNECT_REFUSED
    no_backend = RefuseReason.NO_BACKEND
    return Verdict(again, Code.UNAVAILABLE, no_backend, Executed.NO, RetryReason.NOT_SENT, 1.0, refused)


def _unlent(fault: Fault, facts: Replayability, standing: _Standing) -> Verdict:
    """The pool lent no connection, or took it back. The supervisor knows why: that is no evidence."""
    if standing is not _Standing.UNSENT:
        return _lost(facts, standing, evidence=False)
    if fault.kind is FaultKind.POOL_TIMEOUT:
        read = facts.access is Access.READ_ONLY
        action, why = (Action.RETRY_ELSEWHERE, RetryReason.NOT_SENT) if read else (Action.FAIL, None)
        return Verdict(action, Code.UNAVAILABLE, RefuseReason.POOL_TIMEOUT, Executed.NO, why, 0.5)
    reason = RefuseReason.DRAINING if fault.kind is FaultKind.CLOSED else RefuseReason.BACKEND_LOST
    return Verdict(Action.RETRY_SAME, Code.UNAVAILABLE, reason, Executed.NO, RetryReason.NOT_SENT, 0.5)


def _garbled(facts: Replayability, standing: _Standing) -> Verdict:
    """The stream is out of step; the connection is gone, the server may be well."""
    if standing in (_Standing.OPEN, _Standing.ENDED):
        return _lost(facts, standing, evidence=False)
    action, why = Action.FAIL, None
    if standing is _Standing.UNSENT:
        action, why = Action.RETRY_SAME, RetryReason.NOT_SENT
    elif standing is _Standing.UNDONE and facts.access is Access.READ_WRITE:
        action, why = Action.RETRY_SAME, RetryReason.ROLLED_BACK
    # A read that garbles the stream would do so again: its own rows are the likely cause.
    return Verdict(action, Code.INTERNAL, RefuseReason.PROTOCOL, _EXECUTED[standing], why)


def _replied(fault: Fault, facts: Replayability, standing: _Standing) -> Verdict:
    """PostgreSQL answered with an error: undone for certain, unless the session died with it."""
    severity = fault.detail.severity if fault.detail else ""
    rule = _rule(fault, facts, severity)
    # A PANIC may follow the commit record; a session that is ended while it waits for a standby has committed.
    if severity == "PANIC" or (rule.lost and severity != "ERROR"):
        return _lost(facts, standing, evidence=True)
    if rule.lost:
        # As an ERROR it is another server's lost connection (foreign data wrapper, dblink), or raised by a function.
        rule = rule_of("08")
    read = facts.access is Access.READ_ONLY
    action = rule.read if read else rule.write
    if (facts.interactive and standing is not _Standing.UNSENT) or facts.first_row_sent:
        action = Action.FAIL
    code = Code.ABORTED if facts.interactive and rule.code is Code.UNAVAILABLE and fault.sent else rule.code
    executed = rule.executed or (Executed.ROLLED_BACK if fault.sent else Executed.NO)
    if rule.code is Code.DATA_LOSS:
        executed = _EXECUTED[standing]
    evidence = rule.evidence and _routine(fault) != _ROUTINE_RAISE
    if facts.commits_inside and fault.sent and not _before_execution(fault):
        return _in_parts(rule, evidence=evidence)
    why = rule.retry if action is not Action.FAIL else None
    return Verdict(action, code, rule.reason, executed, why, rule.after_s, evidence)


def _in_parts(rule: Rule, *, evidence: bool) -> Verdict:
    """Whether it had committed anything before the error, the error does not tell."""
    code, reason = rule.code, rule.reason
    if code in (Code.ABORTED, Code.UNAVAILABLE):  # callers take these for "again"
        code, reason = Code.UNKNOWN, RefuseReason.OUTCOME_UNKNOWN
    return Verdict(Action.FAIL, code, reason, Executed.MAYBE, primary_evidence=evidence)


def _before_execution(fault: Fault) -> bool:
    """Whether it was refused as a whole: by its analysis, or as a write where none are taken. What is raised within a
    procedure has that procedure as its context, and loses its position."""
    if fault.stale_statement:
        return True
    error = fault.detail
    return error is not None and not error.context and (error.position > 0 or error.sqlstate == "25006")


def _rule(fault: Fault, facts: Replayability, severity: str) -> Rule:
    """The row of a reply, where one code has several meanings: told apart by access and by PostgreSQL's routine."""
    read = facts.access is Access.READ_ONLY
    if fault.stale_statement:
        return STALE_STATEMENT
    match fault.sqlstate:
        case "25006" if read:
            return WRITE_ON_READ
        case "40001" if read and not facts.interactive:
            return REPLICA_CONFLICT
        case "08P01" if severity == "FATAL":
            return PROTOCOL
        case "0A000":
            if _routine(fault) == _ROUTINE_SETTING_CHECK and not read:
                return NOT_PRIMARY  # BEGIN READ WRITE on a server in recovery
    return rule_of(fault.sqlstate)


def _routine(fault: Fault) -> str:
    return fault.detail.routine if fault.detail else ""


_MESSAGES: Mapping[RefuseReason, str] = {
    RefuseReason.NO_BACKEND: "no connection to the server could be opened; nothing was sent",
    RefuseReason.BACKEND_LOST: "the connection to the server was lost before the answer was complete",
    RefuseReason.BACKEND_CONFIG: "the server refused the router's login for this tenant; ask the router's operator",
    RefuseReason.OUTCOME_UNKNOWN: "the connection was lost while the write was in flight: it may have been committed "
    "or not; look before repeating it, or send an idempotency key",
    RefuseReason.TRANSACTION_LOST: "the transaction's connection was lost, and with it the transaction; run it again",
    RefuseReason.POOL_TIMEOUT: "no connection became free in time; nothing was sent",
    RefuseReason.DRAINING: "the pool of this endpoint was closed while the request waited; nothing was sent",
    RefuseReason.KEY_BUSY: "another request with this idempotency key is under way, or waits for its standby: whether "
    "it will be done is not known yet; send it again with the same key",
    RefuseReason.PROTOCOL: "the server's answer could not be understood; the connection was closed",
    RefuseReason.RESULT_TOO_LARGE: "the result is far larger than an answer can be, and was not read to its end: use "
    "StreamQuery, or LIMIT",
    RefuseReason.DEADLINE: "the deadline passed before the server answered",
    RefuseReason.CANCELLED: "the request was cancelled",
}
_LOCAL_COMMIT = (
    "committed on the primary, but its wait for the synchronous standby was ended: a failover may still lose the write"
)
_UNCONFIRMED = (
    "the deadline passed before the commit was confirmed: the write may be done or not; look before repeating it, or "
    "send an idempotency key"
)
PARTS_STAY = "; what it had committed by itself before stays: look before repeating it"
_HINTS: Mapping[RefuseReason, str] = {
    RefuseReason.WRITE_ON_READ_METHOD: "; Query is read-only: use Execute",
}


def error(verdict: Verdict, fault: Fault) -> RouterError:
    """The error that answers the caller when a failed attempt was the last one."""
    pg = fault.detail
    answered = fault.kind is FaultKind.SERVER_ERROR and pg is not None and pg.severity == "ERROR"
    in_parts = answered and verdict.executed is Executed.MAYBE and verdict.code is not Code.DATA_LOSS
    message = _MESSAGES.get(verdict.reason, "")
    if fault.kind is FaultKind.LOCAL_COMMIT:
        message = _LOCAL_COMMIT
    elif verdict.reason is RefuseReason.DEADLINE and verdict.executed is Executed.MAYBE:
        message = _UNCONFIRMED
    if verdict.reason is RefuseReason.BACKEND_CONFIG:
        pg = None  # names the router's login
    elif pg is not None and (verdict.reason is not RefuseReason.OUTCOME_UNKNOWN or in_parts):
        message = (pg.message.partition("\n")[0] or message) + (PARTS_STAY if in_parts else "")
    numbers: dict[str, object] = {}
    if fault.sqlstate:
        numbers["sqlstate"] = fault.sqlstate
    if fault.endpoint:
        numbers["endpoint"] = fault.endpoint
    if fault.step:
        numbers["step"] = fault.step
    return RouterError(
        verdict.code,
        verdict.reason,
        (message or f"PostgreSQL raised {fault.sqlstate or 'an error'}") + _HINTS.get(verdict.reason, ""),
        executed=verdict.executed,
        retry_after_s=verdict.retry_after_s,
        numbers=numbers,
        pg=pg,
        fault=fault,
    )
