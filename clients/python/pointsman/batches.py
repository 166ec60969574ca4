"""Batches: steps, guards, and the message they make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from pointsman.options import BATCH_ONLY, WRITE_ONLY, put_options, put_transaction
from pointsman.v1 import query_service_pb2 as pb
from pointsman.wire import field, statement, varint

Otherwise = Literal["rollback", "skip"]

_ACTIONS: dict[str, pb.GuardAction.ValueType] = {
    "rollback": pb.GUARD_ACTION_ROLLBACK_ALL,
    "skip": pb.GUARD_ACTION_SKIP,
}


@dataclass(frozen=True, slots=True)
class Guard:
    """A condition on an earlier step (from 0); make it with rows_affected, rows_at_least or no_rows."""

    step: int
    need: Literal["rows_affected_equals", "rows_at_least", "no_rows"]
    number: int
    otherwise: Otherwise = "rollback"

    def put(self, message: pb.StepGuard) -> None:
        """Writes the guard into its message."""
        if self.otherwise not in _ACTIONS:
            raise ValueError(f"otherwise must be 'rollback' or 'skip', not {self.otherwise!r}")
        message.step = self.step
        setattr(message, self.need, True if self.need == "no_rows" else self.number)
        message.otherwise = _ACTIONS[self.otherwise]


def rows_affected(step: int, equals: int = 1, otherwise: Otherwise = "rollback") -> Guard:
    """The earlier step must have affected exactly so many rows."""
    return Guard(step, "rows_affected_equals", equals, otherwise)


def rows_at_least(step: int, number: int = 1, otherwise: Otherwise = "rollback") -> Guard:
    """The earlier step must have affected or returned at least so many rows."""
    return Guard(step, "rows_at_least", number, otherwise)


def no_rows(step: int, otherwise: Otherwise = "rollback") -> Guard:
    """The earlier step must have affected and returned none."""
    return Guard(step, "no_rows", 0, otherwise)


@dataclass(frozen=True, slots=True)
class Step:
    """One statement of a batch. Its rows are returned only with want_rows; its count always is."""

    sql: str
    args: Sequence[Any] = ()
    guard: Guard | None = None
    want_rows: bool = False


StepLike: TypeAlias = "Step | str | tuple[str, Sequence[Any]]"


def as_step(step: StepLike) -> Step:
    """A step, a bare statement, or a pair of statement and parameters."""
    if isinstance(step, Step):
        return step
    if isinstance(step, str):
        return Step(step)
    if isinstance(step, tuple) and len(step) == 2 and isinstance(step[1], (list, tuple)):
        return Step(step[0], step[1])
    raise TypeError(f"a step of a batch is a Step, a str, or (sql, [parameters]), not {step!r}")


def batch_bytes(steps: Sequence[StepLike], options: Mapping[str, Any]) -> bytes:
    """A serialised ExecuteBatchRequest."""
    parts = []
    for position, step_like in enumerate(steps):
        step = as_step(step_like)
        try:
            body = _step_bytes(step, position)
        except (TypeError, ValueError) as error:
            raise type(error)(f"step {position}: {error}") from error
        parts.append(b"\x0a" + varint(len(body)) + body)
    if options:
        rest = pb.ExecuteBatchRequest()
        if BATCH_ONLY & options.keys():
            put_transaction(rest.transaction, options)
        put_options(rest.options, options, "batch", WRITE_ONLY | BATCH_ONLY)
        rest.request_id = options.get("request_id") or ""
        rest.idempotency_key = options.get("idempotency_key") or ""
        parts.append(rest.SerializeToString())
    return b"".join(parts)


def _step_bytes(step: Step, position: int) -> bytes:
    body = statement(b"\x0a", step.sql, step.args)
    if step.guard is not None:
        if not 0 <= step.guard.step < position:
            raise ValueError(f"a guard looks at an earlier step; {step.guard.step} is none")
        guard = pb.StepGuard()
        step.guard.put(guard)
        body += field(b"\x12", guard.SerializeToString())
    return body + b"\x18\x01" if step.want_rows else body
