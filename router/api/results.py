"""Model values to messages: results within the caller's limits, receipts, notices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, unique
from typing import Protocol

from pointsman.v1 import types_pb2

from router.model.errors import Code, Executed, RouterError
from router.model.policy import TenantPolicy
from router.model.reasons import RefuseReason
from router.model.request import Options
from router.model.result import Cells, Durability, PgNotice, Receipt, StatementResult
from router.model.stored_cells import StoredCells
from router.model.topology import Role

MAX_RESULT_BYTES = 3 << 20
"""A plain stub takes messages of 4 MiB; the rest is left for the schema, receipt and notices."""
_HOPELESS = 8
"""A result that is so many times too long by its first row, and then by an estimate, is not encoded to find out."""
MAX_NOTICES = 100
_MAX_NOTICE_CHARS = 1000

_ROLES = {
    Role.PRIMARY: types_pb2.ENDPOINT_ROLE_PRIMARY,
    Role.REPLICA: types_pb2.ENDPOINT_ROLE_REPLICA,
    Role.UNKNOWN: types_pb2.ENDPOINT_ROLE_UNSPECIFIED,
}

_DURABILITIES = {
    Durability.UNKNOWN: types_pb2.DURABILITY_UNSPECIFIED,
    Durability.LOCAL: types_pb2.DURABILITY_LOCAL,
    Durability.STANDBY_WRITTEN: types_pb2.DURABILITY_STANDBY_WRITTEN,
    Durability.STANDBY_FLUSHED: types_pb2.DURABILITY_STANDBY_FLUSHED,
    Durability.STANDBY_APPLIED: types_pb2.DURABILITY_STANDBY_APPLIED,
}


class ResultEncoder(Protocol):
    """How cells become typed columns; the encoding edge is one."""

    def encode_schema(self, cells: Cells) -> types_pb2.ResultSchema: ...

    def encode_batch(self, cells: Cells, first_row: int, last_row: int) -> types_pb2.RowBatch:
        """The rows from first_row up to, and without, last_row."""
        ...

    def encode_into(self, batch: types_pb2.RowBatch, cells: Cells, first_row: int, last_row: int) -> None:
        """The same, into an empty message."""
        ...

    def estimate_bytes(self, cells: Cells) -> int:
        """About how many bytes all rows will take."""
        ...

    def result_bytes(self, cells: Cells) -> bytes | None:
        """The fields schema and batch of a ResultSet on the wire, with all rows; None when the result is not small."""
        ...


@unique
class WhenTooLarge(Enum):
    """What happens to a unary answer beyond its limits."""

    REFUSE = "refuse"
    """A read: nothing is lost, it can be asked again as a stream."""
    REFUSE_DONE = "refuse_done"
    """A read inside a transaction that lives on."""
    TRUNCATE = "truncate"
    """A write: it was done, so it must not be answered with an error."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one unary answer; max_rows 0 means none."""

    max_rows: int
    max_bytes: int


def limits_from(options: Options, policy: TenantPolicy) -> Limits:
    """The caller's limits within the tenant's."""
    most = min(policy.max_result_bytes, MAX_RESULT_BYTES)
    return Limits(options.max_rows, min(options.max_bytes or most, most))


class ResultWriter:
    """Makes ResultSet messages; one for each answer, since its limits hold for all results together."""

    def __init__(self, encoder: ResultEncoder, limits: Limits, when_too_large: WhenTooLarge) -> None:
        self._encoder = encoder
        self._limits = limits
        self._when_too_large = when_too_large
        self._rows_left = limits.max_rows or (1 << 62)
        self._bytes_left = limits.max_bytes

    def write(self, result: StatementResult, target: types_pb2.ResultSet, *, rows: bool = True) -> None:
        """Fill a ResultSet; rows=False leaves the rows out. RouterError RESULT_TOO_LARGE."""
        target.command_tag = result.command_tag
        target.rows_affected = result.rows_affected
        if result.notices:
            target.notices.extend(notices(result.notices))
        cells = result.cells
        if cells is None or not rows:
            return
        if isinstance(cells, StoredCells):
            target.truncated = cells.left_out
        count = cells.ntuples
        size = self._write_whole(cells, target)
        if size is not None:
            if self._when_too_large is not WhenTooLarge.TRUNCATE:
                raise self._too_large(count, size)
            count = self._cut_off(cells, size, target)
            target.truncated = target.truncated or count < cells.ntuples
        self._rows_left -= count
        target.schema.CopyFrom(self._encoder.encode_schema(cells))

    def _write_whole(self, cells: Cells, target: types_pb2.ResultSet) -> int | None:
        """Encode all rows, if they fit: None, else about how many bytes they are. Their message says it best: to look
        at every cell before costs half as much as to encode it."""
        count = cells.ntuples
        if count > self._rows_left:
            return self._encoder.estimate_bytes(cells)
        if _row_bytes(cells) * count > _HOPELESS * self._bytes_left:
            estimated = self._encoder.estimate_bytes(cells)
            if estimated > _HOPELESS * self._bytes_left:  # the first row is not the only long one
                return estimated
        self._encoder.encode_into(target.batch, cells, 0, count)
        target.batch.SetInParent()
        size = target.batch.ByteSize()
        if count and size > self._bytes_left:
            target.ClearField("batch")
            return size
        self._bytes_left = max(0, self._bytes_left - size)
        return None

    def _cut_off(self, cells: Cells, size: int, target: types_pb2.ResultSet) -> int:
        """Encode as many of the first rows as fit; how many."""
        count = min(cells.ntuples, self._rows_left)
        if size > self._bytes_left:
            count = min(count, cells.ntuples * max(0, self._bytes_left) // size)
        while True:
            batch = self._encoder.encode_batch(cells, 0, count)
            encoded = batch.ByteSize()
            if encoded <= self._bytes_left or count == 0:
                target.batch.CopyFrom(batch)
                self._bytes_left -= encoded
                return count
            count = count * 3 // 4

    def _too_large(self, rows: int, size: int) -> RouterError:
        executed = Executed.YES if self._when_too_large is WhenTooLarge.REFUSE_DONE else Executed.ROLLED_BACK
        advice = (
            "read it in parts with a cursor (DECLARE, FETCH)"
            if self._when_too_large is WhenTooLarge.REFUSE_DONE
            else "use StreamQuery, or LIMIT"
        )
        limits = self._limits
        if limits.max_rows and rows > limits.max_rows:
            bound = f"{rows} rows, the limit is {limits.max_rows} (options.max_rows)"
        else:
            most = f"options.max_bytes, at most {MAX_RESULT_BYTES}"
            bound = f"about {size} bytes, the limit is {limits.max_bytes} ({most})"
        return RouterError(
            Code.FAILED_PRECONDITION,
            RefuseReason.RESULT_TOO_LARGE,
            f"the result has {bound}: {advice}",
            executed=executed,
            numbers={"rows": rows, "bytes": size, "max_rows": limits.max_rows, "max_bytes": limits.max_bytes},
        )


def _row_bytes(cells: Cells) -> int:
    """Bytes of the first row's cells."""
    if not cells.ntuples:
        return 0
    return sum([len(cells.get_value(0, column) or b"") for column in range(cells.nfields)])


def notices(found: Sequence[PgNotice]) -> list[types_pb2.Notice]:
    """The first hundred notices, each cut to a thousand characters."""
    return [
        types_pb2.Notice(
            severity=notice.severity, sqlstate=notice.sqlstate, message=_valid(notice.message[:_MAX_NOTICE_CHARS])
        )
        for notice in found[:MAX_NOTICES]
    ]


def write_receipt(receipt: Receipt, target: types_pb2.Receipt) -> None:
    """Fill a Receipt message."""
    target.request_id = receipt.request_id
    target.endpoint = receipt.endpoint
    target.role = _ROLES[receipt.role]
    target.topology = receipt.topology
    target.attempts = receipt.attempts
    target.queued_us = _microseconds(receipt.queued_s)
    target.held_us = _microseconds(receipt.held_s)
    target.executed_us = _microseconds(receipt.executed_s)
    target.route_reason = receipt.route_reason.value
    if receipt.token:
        target.token = receipt.token
    target.replayed = receipt.replayed
    target.hedged = receipt.hedged
    target.durability = _DURABILITIES[receipt.durability]


def _microseconds(seconds: float) -> int:
    return int(seconds * 1e6) if seconds > 0 else 0


def _valid(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")
