"""When a prepared statement is outdated: which errors say so, and the units that a lane sends once more, unprepared.

A schema changes under a prepared statement, or somebody deallocates it: PostgreSQL answers with an error that the
same statement, unprepared, would not have met. Sent again it must be only if the error came before execution, and in
no transaction that the caller drives. Not here: the sending (lane).
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from enum import Enum, unique

from router.model.observation import PgError
from router.model.result import StatementResult
from router.ports import Unit

_REVALIDATE = "RevalidateCachedQuery"
NAME_ERRORS = ("26000", "42P05")
_ENDS = ("COMMIT", "ROLLBACK", "PREPARE TRANSACTION")
_PARAMETER = re.compile(r"[^\n]*\$\d+[^\n]*\Z")


@unique
class Staleness(Enum):
    """What an error says about the prepared statement that met it."""

    NONE = "none"
    POSSIBLE = "possible"
    """Raised before execution, by the text or by the types that its parameters had when it was prepared. Whether an
    unprepared statement would have met it, only a try can tell."""
    CERTAIN = "certain"
    """Gone (26000), its name taken (42P05), or its result type changed (0A000)."""


def staleness(error: PgError | None, name: bytes, *, preparing: bool) -> Staleness:
    """Judge an error that came for a statement under our name. preparing: it came for its Parse.

    Every case is one that PostgreSQL raises at Parse or Bind: its own words about the name, its revalidation of the
    plan, an analysis error (the only errors that hold a position), or a parameter that cannot be read (whose context
    is one line that names it). What is raised inside a function has that function as its context.
    """
    if error is None:
        return Staleness.NONE
    if error.sqlstate in NAME_ERRORS and name.decode() in error.message:
        return Staleness.CERTAIN
    if preparing:
        return Staleness.NONE
    if not error.context and error.routine == _REVALIDATE:
        return Staleness.CERTAIN
    if error.sqlstate.startswith("42") and not error.context and error.position:
        return Staleness.POSSIBLE
    if error.sqlstate.startswith("22") and _PARAMETER.match(error.context):
        return Staleness.POSSIBLE
    return Staleness.NONE


def is_open_transaction(results: Sequence[StatementResult]) -> bool:
    """Whether a failed unit began a transaction and did not end it: then ROLLBACK undoes all of it."""
    tags = [result.command_tag for result in results]
    return tags[:1] == ["BEGIN"] and not any(tag in _ENDS for tag in tags)


class SecondTries:
    """The units that were sent again, and those behind them whose answers wait: answers stay in order."""

    __slots__ = ("_line", "_trying")

    def __init__(self) -> None:
        self._line: deque[Unit] = deque()
        """From the first that is tried again on, in the order of submission."""
        self._trying: dict[Unit, bytes] = {}
        """And the name that it was prepared under."""

    def __len__(self) -> int:
        return len(self._line)

    def __contains__(self, unit: object) -> bool:
        return unit in self._trying

    @property
    def waiting(self) -> int:
        """Units that are answered, and not told because of one in front of them."""
        return len(self._line) - len(self._trying)

    def begin(self, unit: Unit, name: bytes) -> None:
        """It is sent again: whatever comes in must wait for it."""
        self._line.append(unit)
        self._trying[unit] = name

    def name(self, unit: Unit) -> bytes:
        """Under which a unit was prepared that is tried again."""
        return self._trying[unit]

    def settle(self, unit: Unit) -> list[Unit]:
        """A unit is answered: who may be told now, in order."""
        if self._trying.pop(unit, None) is None:
            self._line.append(unit)
        told = []
        while self._line and self._line[0] not in self._trying:
            told.append(self._line.popleft())
        return told

    def end(self, lost: list[Unit]) -> list[Unit]:
        """The lane ends with these on the wire: all that must be told, in order."""
        told = [*self._line, *(unit for unit in lost if unit not in self._trying)]
        self._line.clear()
        self._trying.clear()
        return told
