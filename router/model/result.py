"""What PostgreSQL answered, still in PostgreSQL's own cells, and the receipt that goes with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from router.model.identity import EndpointName, TopologyNumber
from router.model.reasons import RouteReason
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


@dataclass(slots=True)
class Answer:
    """The results of a request's steps, in their order, and its receipt."""

    results: list[StatementResult | None]
    """None for a step that its guard skipped."""
    receipt: Receipt = field(default_factory=Receipt)
