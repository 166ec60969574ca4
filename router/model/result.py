"""What PostgreSQL answered, still in PostgreSQL's own cells, and the receipt that goes with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, unique
from typing import Protocol

from router.model.identity import EndpointName, TopologyNumber
from router.model.reasons import RouteReason
from router.model.request import WriteOutcome
from router.model.topology import Role


class Cells(Protocol):
    """The table of one result, as libpq holds it; text format unless fformat says 1. No copy is made."""

    @property
    def ntuples(self) -> int: ...

    @property
    def nfields(self) -> int: ...

    def fname(self, column_number: int) -> bytes | None: ...

    def ftype(self, column_number: int) -> int: ...

    def fmod(self, column_number: int) -> int: ...

    def ftable(self, column_number: int) -> int: ...

    def ftablecol(self, column_number: int) -> int: ...

    def fformat(self, column_number: int) -> int: ...

    def get_value(self, row_number: int, column_number: int) -> bytes | None: ...


@dataclass(frozen=True, slots=True)
class PgNotice:
    """A notice or warning that PostgreSQL raised."""

    severity: str
    sqlstate: str
    message: str


@dataclass(slots=True)
class StatementResult:
    """One statement's result."""

    cells: Cells | None
    """The rows; None for a statement that returns none."""
    command_tag: str = ""
    rows_affected: int = 0
    """Rows affected, or returned by a SELECT."""
    notices: tuple[PgNotice, ...] = ()


@unique
class Durability(Enum):
    """Where a confirmed write is safe."""

    UNKNOWN = "unknown"
    LOCAL = "local"
    """On the primary alone."""
    STANDBY_WRITTEN = "standby_written"
    """Also in the memory of as many standbys as the primary waits for."""
    STANDBY_FLUSHED = "standby_flushed"
    """Also on their disks."""
    STANDBY_APPLIED = "standby_applied"
    """And visible to their readers."""


@dataclass(slots=True)
class Receipt:
    """How an answered request went."""

    request_id: str = ""
    endpoint: EndpointName = EndpointName("")
    role: Role = Role.UNKNOWN
    topology: TopologyNumber = TopologyNumber(0)
    attempts: int = 1
    queued_s: float = 0.0
    held_s: float = 0.0
    executed_s: float = 0.0
    route_reason: RouteReason = RouteReason.PRIMARY
    token: bytes = b""
    replayed: bool = False
    """The stored answer of an earlier request with the same idempotency key."""
    hedged: bool = False
    durability: Durability = Durability.UNKNOWN
    """Of a committed write."""


@dataclass(slots=True)
class Answer:
    """The results of a request's steps, in their order, and its receipt."""

    results: list[StatementResult | None]
    """None for a step that its guard skipped."""
    receipt: Receipt = field(default_factory=Receipt)


@dataclass(slots=True)
class OutcomeFound:
    """What became of a write, and where that was found."""

    outcome: WriteOutcome
    created_at_us: int = 0
    """COMMITTED: when the write began, by the primary's clock (microseconds since 1970)."""
    command_tags: tuple[str, ...] = ()
    """COMMITTED: of its steps; "" for one that was skipped."""
    receipt: Receipt = field(default_factory=Receipt)


class RowRun:
    """Neighbouring chunks of one result, read as one table. Fulfils Cells; parts is for who can read them in bulk."""

    __slots__ = ("_first", "nfields", "ntuples", "parts")

    def __init__(self, parts: Sequence[Cells]) -> None:
        """parts: at least one."""
        self.parts = parts
        self._first = parts[0]
        self.nfields = self._first.nfields
        self.ntuples = sum([part.ntuples for part in parts])

    def fname(self, column_number: int) -> bytes | None:
        return self._first.fname(column_number)

    def ftype(self, column_number: int) -> int:
        return self._first.ftype(column_number)

    def fmod(self, column_number: int) -> int:
        return self._first.fmod(column_number)

    def ftable(self, column_number: int) -> int:
        return self._first.ftable(column_number)

    def ftablecol(self, column_number: int) -> int:
        return self._first.ftablecol(column_number)

    def fformat(self, column_number: int) -> int:
        return self._first.fformat(column_number)

    def get_value(self, row_number: int, column_number: int) -> bytes | None:
        for part in self.parts:
            if row_number < part.ntuples:
                return part.get_value(row_number, column_number)
            row_number -= part.ntuples
        raise IndexError(row_number)


Row = tuple[int | float | bool | str | bytes | None, ...]


class RowLoader(Protocol):
    """Reads many cells at once, where the driver can do it faster than cell by cell."""

    def load(self, cells: Cells) -> list[Row]:
        """All rows: int2/4/8 and oid as int, float4/8 as float, bool as bool, bytea and binary cells as bytes, the
        rest as str. UnicodeDecodeError when a text is not UTF-8."""
        ...
