"""What a router must not forget when it dies: the highest timeline it has accepted, and the move under way.

Written before anything is done about it (ports.Journal), read when the router starts.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, unique

from router.model.identity import NO_LSN, NO_TERM, ClusterName, EndpointName, Lsn, Term

MOST_SWITCHES = 64
"""So many of the newest changes of timeline are kept; tokens older than that are of no use to anyone."""


class JournalFailed(Exception):
    """The journal could not be read or written. str() says which file, why, and what to do."""


@unique
class MoveKind(Enum):
    """Why the primary moves."""

    PROMOTION = "promotion"
    SWITCHOVER = "switchover"


@unique
class MoveStage(Enum):
    """How far a move may have come. Each is written before its first act."""

    HOLD = "hold"
    """Switchover: the primary may have been made read-only."""
    FENCE = "fence"
    """Standbys may have been cut from the primary. All of it can still be undone."""
    PROMOTE = "promote"
    """The chosen standby may have been promoted: the primary before is never returned to."""


@dataclass(frozen=True, slots=True)
class MoveNote:
    """A move of the primary that has begun and not ended."""

    kind: MoveKind
    stage: MoveStage
    chosen: EndpointName | None = None
    """Set from PROMOTE on, and in a switchover from the start."""


@dataclass(frozen=True, slots=True)
class Switch:
    """Where a timeline began: what lies behind lsn on the one before is not part of it."""

    term: Term
    primary: EndpointName
    lsn: Lsn = NO_LSN
    """Exact for promotions of our own; NO_LSN when somebody else promoted: then it is not known."""


@dataclass(frozen=True, slots=True)
class ClusterRecord:
    """One cluster's page of the journal."""

    cluster: ClusterName
    system_id: int = 0
    term: Term = NO_TERM
    """The highest ever accepted: nothing is routed to a lower one."""
    primary: EndpointName | None = None
    """Of that term."""
    sync_names: str = ""
    """Its synchronous_standby_names when it last served: who had to confirm its commits."""
    switches: tuple[Switch, ...] = ()
    """Oldest first, at most MOST_SWITCHES."""
    move: MoveNote | None = None
