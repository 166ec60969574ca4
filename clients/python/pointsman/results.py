"""What calls return: rows, results of writes, and the receipt of how a request went."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import grpc

from pointsman.errors import Executed, NoSingleRow
from pointsman.replies import LazyResult
from pointsman.rows import Column, Record, plan_from, plan_of
from pointsman.v1 import types_pb2 as pb


@dataclass(frozen=True, slots=True)
class Receipt:
    """How an answered request went: where, how often, how long (in microseconds).

    `durability` is where a committed write is safe: "local" (on the primary alone), "standby_written",
    "standby_flushed", "standby_applied" (on as many standbys as the primary waits for), or "" when not known.
    `token` is the opaque consistency token; the client keeps it by itself. `role` is "primary", "replica" or "".
    """

    request_id: str
    token: bytes
    endpoint: str
    role: str
    topology: int
    attempts: int
    replayed: bool
    queued_us: int
    held_us: int
    executed_us: int
    route_reason: str
    hedged: bool = False
    durability: str = ""

    @classmethod
    def from_bytes(cls, data: bytes) -> Receipt:
        """From a serialised pointsman.v1.Receipt."""
        receipt = pb.Receipt.FromString(data)
        return cls(
            receipt.request_id,
            receipt.token,
            receipt.endpoint,
            _ROLES.get(receipt.role, ""),
            receipt.topology,
            receipt.attempts,
            receipt.replayed,
            receipt.queued_us,
            receipt.held_us,
            receipt.executed_us,
            receipt.route_reason,
            receipt.hedged,
            _DURABILITIES.get(receipt.durability, ""),
        )


_ROLES: dict[int, str] = {pb.ENDPOINT_ROLE_PRIMARY: "primary", pb.ENDPOINT_ROLE_REPLICA: "replica"}

_DURABILITIES: dict[int, str] = {
    pb.DURABILITY_LOCAL: "local",
    pb.DURABILITY_STANDBY_WRITTEN: "standby_written",
    pb.DURABILITY_STANDBY_FLUSHED: "standby_flushed",
    pb.DURABILITY_STANDBY_APPLIED: "standby_applied",
}


class Notice(NamedTuple):
    """A notice or warning that PostgreSQL raised."""

    severity: str
    sqlstate: str
    message: str


class Rows(list[Record]):
    """The rows of a read: a list of records that also knows its columns and its receipt."""

    __slots__ = ("_receipt", "columns", "notices")

    def __init__(
        self,
        records: Iterable[Record] = (),
        columns: tuple[Column, ...] = (),
        receipt: bytes = b"",
        notices: tuple[Notice, ...] = (),
    ) -> None:
        list.__init__(self, records)
        self.columns = columns
        self.notices = notices
        self._receipt = receipt

    @property
    def rowcount(self) -> int:
        """How many rows there are."""
        return len(self)

    @property
    def receipt(self) -> Receipt:
        """How the request went."""
        return Receipt.from_bytes(self._receipt)


class Result:
    """What a write did.

    rowcount     rows inserted, updated, deleted, or returned
    rows         what RETURNING gave
    command_tag  PostgreSQL's word for it, for example "UPDATE 3"
    truncated    it was done, but not all of its rows fit the answer
    skipped      a batch's step whose guard did not hold
    """

    __slots__ = ("command_tag", "notices", "rowcount", "rows", "skipped", "truncated")

    def __init__(
        self,
        rowcount: int,
        rows: Rows,
        command_tag: str,
        *,
        truncated: bool = False,
        skipped: bool = False,
        notices: tuple[Notice, ...] = (),
    ) -> None:
        self.rowcount = rowcount
        self.rows = rows
        self.command_tag = command_tag
        self.truncated = truncated
        self.skipped = skipped
        self.notices = notices

    @property
    def receipt(self) -> Receipt:
        """How the request went."""
        return self.rows.receipt

    def __repr__(self) -> str:
        cut = ", truncated" if self.truncated else ""
        said = "skipped" if self.skipped else self.command_tag
        return f"<Result {said!r}, rowcount {self.rowcount}, {len(self.rows)} rows{cut}>"


class BatchResults(list[Result]):
    """One result a step, and the receipt of the whole."""

    __slots__ = ("_receipt",)

    def __init__(self, results: Iterable[Result] = (), receipt: bytes = b"") -> None:
        super().__init__(results)
        self._receipt = receipt

    @property
    def receipt(self) -> Receipt:
        """How the request went."""
        return Receipt.from_bytes(self._receipt)


def rows_of(result: pb.ResultSet, receipt: bytes) -> Rows:
    """The rows of a result set."""
    plan = plan_of(result.schema)
    return Rows(plan.records(result.batch), plan.columns, receipt, notices_of(result.notices))


def result_of(result: pb.ResultSet, receipt: bytes) -> Result:
    """What a statement did."""
    return _result(result, rows_of(result, receipt) if result.schema.has_columns else Rows((), (), receipt))


def lazy_rows(result: LazyResult, receipt: bytes) -> Rows:
    """The rows of a result set in a Multiplex reply."""
    plan = plan_from(result.schema)
    return Rows(plan.records_from(result.batch), plan.columns, receipt, notices_of(result.notices))


def lazy_result(result: LazyResult, receipt: bytes, *, skipped: bool = False) -> Result:
    """What a statement did, from a Multiplex reply."""
    return _result(result, lazy_rows(result, receipt) if result.schema else Rows((), (), receipt), skipped=skipped)


def _result(result: pb.ResultSet | LazyResult, rows: Rows, *, skipped: bool = False) -> Result:
    return Result(
        result.rows_affected,
        rows,
        result.command_tag,
        truncated=result.truncated,
        skipped=skipped,
        notices=rows.notices or notices_of(result.notices),
    )


def notices_of(notices: Any) -> tuple[Notice, ...]:
    """Notices out of their messages."""
    if not notices:
        return ()
    return tuple(Notice(notice.severity, notice.sqlstate, notice.message) for notice in notices)


def single_row(rows: Rows) -> Record | None:
    """The only row, or None."""
    if len(rows) > 1:
        raise NoSingleRow(
            f"one row was asked for, the statement returned {len(rows)}",
            code=grpc.StatusCode.FAILED_PRECONDITION,
            executed=Executed.YES,
        )
    return rows[0] if rows else None


def single_value(rows: Rows) -> Any:
    """The first column of the only row."""
    row = single_row(rows)
    if not row:
        raise NoSingleRow(
            "one value was asked for, the statement returned none",
            code=grpc.StatusCode.FAILED_PRECONDITION,
            executed=Executed.YES,
        )
    return row[0]
