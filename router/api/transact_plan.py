"""One message of Transact, checked and taken apart: what is begun, done and ended by it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, unique

from pointsman.v1 import transaction_service_pb2 as pb

from router.api.translate import after_from, mode_from, options_from, savepoint_name, statement_from
from router.model.errors import Code, RouterError, bad_request
from router.model.reasons import RefuseReason
from router.model.request import Options, Statement, TransactionMode
from router.model.token import Token


@dataclass(frozen=True, slots=True)
class Begin:
    """How the transaction begins; timeout_ms (0: none) bounds all of it."""

    mode: TransactionMode
    options: Options
    timeout_ms: int
    after: Token | None


@dataclass(frozen=True, slots=True)
class Action:
    """A statement, or one of "savepoint", "rollback_to", "release" with its name."""

    kind: str
    statement: Statement | None = None
    name: str = ""


@unique
class End(Enum):
    """How a message ends the transaction."""

    NOT = pb.TRANSACT_END_UNSPECIFIED
    COMMIT = pb.TRANSACT_END_COMMIT
    ROLLBACK = pb.TRANSACT_END_ROLLBACK


@dataclass(frozen=True, slots=True)
class Plan:
    """What a message asks for, in the order in which it is done."""

    begin: Begin | None
    action: Action | None
    end: End
    timeout_ms: int


def plan_from(message: pb.TransactRequest, *, begun: bool) -> Plan:
    """The message's plan; RouterError TRANSACTION_MISUSE when it does not fit, INVALID_ARGUMENT when it is wrong."""
    if begun and message.HasField("begin"):
        raise _misuse("the transaction has already begun: open another stream for another transaction")
    if not begun and not message.HasField("begin"):
        raise _misuse("no transaction has begun: the first message must have begin")
    action = _action(message)
    end = _end(message)
    if begun and action is None and end is End.NOT:
        raise bad_request(RefuseReason.BAD_REQUEST, "the message asks for nothing: set run, an action or end")
    begin = _begin(message.begin) if message.HasField("begin") else None
    return Plan(begin, action, end, message.timeout_ms)


def _begin(message: pb.TransactBegin) -> Begin:
    options = message.options
    return Begin(mode_from(message.transaction), options_from(options), options.timeout_ms, after_from(options))


def _end(message: pb.TransactRequest) -> End:
    try:
        return End(message.end)
    except ValueError:
        names = ", ".join(pb.TransactEnd.keys()[1:])
        raise bad_request(
            RefuseReason.BAD_REQUEST, f"end has the unknown value {message.end}; known are {names}"
        ) from None


def _action(message: pb.TransactRequest) -> Action | None:
    kind = message.WhichOneof("action")
    if kind is None:
        return None
    if kind == "run":
        return Action(kind, statement=statement_from(message.run))
    return Action(kind, name=savepoint_name(getattr(message, kind)))


def _misuse(text: str) -> RouterError:
    return RouterError(Code.FAILED_PRECONDITION, RefuseReason.TRANSACTION_MISUSE, text)
