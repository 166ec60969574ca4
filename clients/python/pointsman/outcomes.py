"""What became of a write whose answer did not arrive."""

from __future__ import annotations

import datetime
import enum
from dataclasses import dataclass

from pointsman.connection import Connections
from pointsman.options import milliseconds
from pointsman.results import Receipt
from pointsman.unary import ask_until
from pointsman.v1 import query_service_pb2 as pb

METHOD = "/pointsman.v1.QueryService/GetOutcome"


class WriteOutcome(enum.Enum):
    """What became of a write."""

    COMMITTED = "committed"
    """It was done, and is as durable as the receipt of an answer would say."""
    NOT_FOUND = "not_found"
    """The present primary knows no such key, and the router is not at work on it: the write was rolled back, has not
    come (yet), was lost with a former primary that replicated asynchronously, or is older than keys are kept. Unless it
    is that old, to send it again with its key is safe."""
    RUNNING = "running"
    """It is under way, or waits for its standby."""
    UNKNOWN = "unknown"
    """This router cannot tell. With a key: ask again, or send it again. Without one nothing is kept of the write, and
    another router may be at work on it: look at the data."""


_OUTCOMES: dict[int, WriteOutcome] = {
    pb.WRITE_OUTCOME_COMMITTED: WriteOutcome.COMMITTED,
    pb.WRITE_OUTCOME_NOT_FOUND: WriteOutcome.NOT_FOUND,
    pb.WRITE_OUTCOME_RUNNING: WriteOutcome.RUNNING,
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a write, and where that was found.

    began         COMMITTED: when it began, by the primary's clock
    command_tags  COMMITTED: of its steps, "" for one that was skipped
    """

    outcome: WriteOutcome
    began: datetime.datetime | None
    command_tags: tuple[str, ...]
    receipt: Receipt


async def ask(connections: Connections, key: str, request_id: str, timeout_s: float) -> Outcome:
    """One look. Error when the router, or the primary behind it, cannot be asked."""
    if bool(key) == bool(request_id):
        raise ValueError("outcome() takes an idempotency key or request_id=, one of them")

    def question(left_s: float) -> pb.GetOutcomeRequest:
        asked = pb.GetOutcomeRequest(timeout_ms=milliseconds("timeout", left_s))
        if key:
            asked.idempotency_key = key
        else:
            asked.request_id = request_id
        return asked

    return _outcome(await ask_until(connections, METHOD, question, pb.GetOutcomeResponse, timeout_s))


def _outcome(answer: pb.GetOutcomeResponse) -> Outcome:
    began = None
    if answer.created_at_us:
        epoch = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
        began = epoch + datetime.timedelta(microseconds=answer.created_at_us)
    return Outcome(
        _OUTCOMES.get(answer.outcome, WriteOutcome.UNKNOWN),
        began,
        tuple(answer.command_tags),
        Receipt.from_bytes(answer.receipt.SerializeToString()),
    )
