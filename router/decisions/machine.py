"""State, events and effects of a cluster's failover machine; its transitions are in failover.py."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, unique
from typing import NamedTuple

from router.decisions.cluster_facts import Facts
from router.decisions.health import NEVER
from router.decisions.promotion import PromotionPlan
from router.model.events import Event as ModelEvent
from router.model.events import Phase
from router.model.identity import NO_LSN, NO_TERM, ClusterName, EndpointName, Generation, Lsn, Term
from router.model.journal import Switch
from router.model.observation import RoleClaim
from router.model.reasons import PhaseReason
from router.model.topology import FailoverMode

ROUTED = frozenset({Phase.STEADY, Phase.DRAINING})
"""Phases in which writes have somewhere to go."""
AWAITING = frozenset({Phase.STARTING, Phase.SUSPECT, Phase.HOLDING, Phase.PROMOTING})
"""Phases that are expected to end by themselves: endpoints are asked more often, and time matters."""
FIRST_GENERATION = Generation(0)


@unique
class Operation(Enum):
    """What the engine is carrying out; while it does, facts are noted but decide nothing."""

    NONE = "none"
    PROMOTION = "promotion"
    SWITCHOVER = "switchover"


@dataclass(frozen=True, slots=True)
class FactsSeen:
    """Something was observed; these are all the facts now."""

    facts: Facts


@dataclass(frozen=True, slots=True)
class RoleDoubted:
    """The primary refused a write as read-only (25006): perhaps it is none any more."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True, slots=True)
class HoldDrained:
    """All held requests have left."""


@dataclass(frozen=True, slots=True)
class SwitchoverOrdered:
    """An operator moves the primary; the engine has checked that it may."""

    to: EndpointName


@dataclass(frozen=True, slots=True)
class MoveFinished:
    """The promotion or switchover is done: this is the primary, proven by a write."""

    primary: EndpointName
    term: Term
    switch_lsn: Lsn = NO_LSN
    """Where the new timeline began."""
    claim: RoleClaim | None = None
    """What it said of itself as primary."""


@dataclass(frozen=True, slots=True)
class MoveFailed:
    """The promotion or switchover ended otherwise."""

    reason: PhaseReason
    detail: str
    promoted: bool
    """Whether pg_promote may have been asked for."""
    pledged: EndpointName | None = None
    """Of whom; set with promoted."""
    muted: bool = False
    """The hold on the primary's writes could not be taken back."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """The journal holds this term, or was given up on: it may be acted on."""

    term: Term


Event = FactsSeen | RoleDoubted | Tick | HoldDrained | SwitchoverOrdered | MoveFinished | MoveFailed | Recorded


@dataclass(frozen=True, slots=True)
class ProbeNow:
    """Ask endpoints again at once; empty means all."""

    endpoints: tuple[EndpointName, ...] = ()


@dataclass(frozen=True, slots=True)
class StartPromotion:
    """Carry the plan out and report MoveFinished or MoveFailed, whatever happens."""

    plan: PromotionPlan


@dataclass(frozen=True, slots=True)
class RepointStandbys:
    """Attach standbys that follow nobody, or a former primary, to the primary; nothing waits for it."""

    to: EndpointName
    standbys: tuple[EndpointName, ...]
    others_too: bool = False
    """Also those under the fence of another router."""


@dataclass(frozen=True, slots=True)
class Emit:
    """Tell the event sink."""

    event: ModelEvent


@dataclass(frozen=True, slots=True)
class AllowWrites:
    """Take back the hold on a primary's writes that a switchover left, as soon as it can be reached."""

    primary: EndpointName


Effect = ProbeNow | StartPromotion | RepointStandbys | AllowWrites | Emit


class Wanted(NamedTuple):
    """A primary that others made, on its way into the journal."""

    primary: EndpointName
    term: Term
    claim: RoleClaim | None = None
    """What it said of itself."""


@dataclass(frozen=True, slots=True)
class ClusterMachine:
    """One cluster's failover state.

    Invariants (checked in each step): term and generation never fall; whenever the primary or the term changes, the
    generation rises; in a phase that routes writes there is a primary and no operation; PROMOTING goes with a
    promotion; while a primary is wanted nothing is routed and nothing carried out.
    """

    name: ClusterName
    mode: FailoverMode = FailoverMode.FOLLOW
    phase: Phase = Phase.STARTING
    reason: PhaseReason = PhaseReason.NO_PRIMARY
    since: float = 0.0
    detail: str = "no server has answered yet"
    primary: EndpointName | None = None
    """The last accepted one, also while it is in doubt or gone."""
    term: Term = NO_TERM
    """The highest ever accepted."""
    generation: Generation = FIRST_GENERATION
    system_id: int = 0
    """Of the first accepted primary; servers with another one are foreign for ever."""
    operation: Operation = Operation.NONE
    doubted_at: float | None = None
    """When the doubt about the primary began that has not been settled yet."""
    promoted_at: float = NEVER
    retry_at: float = NEVER
    repoint_at: float = NEVER
    term_at: float = NEVER
    """From when on the term's primary may have written what a standby of an older timeline lacks; NEVER: not known."""
    risen_at: float = NEVER
    """The same of a higher term that has been seen and is not accepted yet."""
    misled_since: float | None = None
    """When standbys that stream on an older timeline were seen beside a primary that serves, and ever since; once they
    were told to follow it, from when on that counts again."""
    strays_since: float | None = None
    """When standbys that follow nobody were seen beside a primary that serves, and ever since."""
    last_claim: RoleClaim | None = None
    """The last claim of the accepted primary while it served; after a restart, what the journal knows of it."""
    hearsay: bool = False
    """last_claim is from a journal of unknown age: who must confirm commits may have changed since."""
    confirmed_before: Term = NO_TERM
    """The term before this one, if its commits waited for a standby when its primary was last seen."""
    pledged: EndpointName | None = None
    """May have been promoted beyond term, by a move that did not end. Until it is known, the primary of term is not
    returned to: what it acknowledged then would be lost when this one turns out to be promoted."""
    muted: EndpointName | None = None
    """Its writes may be held back by a switchover of a router that is no more."""
    manager: str = ""
    """Who else moves the primary, in words: then nothing is promoted here."""
    recorded: Term | None = None
    """The highest term in the journal; a higher one is recorded before it is accepted. None: no journal is kept."""
    wanted: Wanted | None = None
    """A primary that is accepted once the journal has it. What was seen stays known, also if it goes again."""
    switches: tuple[Switch, ...] = ()
    facts: Facts | None = None

    @property
    def known_term(self) -> Term:
        """The highest ever seen, accepted or not yet: nobody below it is believed."""
        noted = self.recorded if self.recorded is not None else NO_TERM
        return Term(max(self.term, noted, self.wanted.term if self.wanted is not None else NO_TERM))

    @property
    def routed_primary(self) -> EndpointName | None:
        """Where writes go now."""
        return self.primary if self.phase in ROUTED else None

    def check(self, before: ClusterMachine) -> None:
        """AssertionError when a transition broke an invariant: better no route than a wrong one."""
        assert self.term >= before.term, f"term fell from {before.term} to {self.term}"
        assert self.known_term >= before.known_term, f"{before.known_term} was seen, and is forgotten"
        assert self.generation >= before.generation, "generation fell"
        if (self.primary, self.term) != (before.primary, before.term):
            assert self.generation > before.generation, "primary changed without a new generation"
        if self.phase in ROUTED:
            assert self.primary is not None, f"{self.phase} without a primary"
            assert self.operation is Operation.NONE, f"{self.phase} during a {self.operation}"
        if self.wanted is not None:
            assert self.phase not in ROUTED, f"{self.phase} while {self.wanted.primary} is wanted"
            assert self.operation is Operation.NONE, f"a {self.operation} while {self.wanted.primary} is wanted"
        if self.phase in ROUTED and (self.primary, self.term) == (before.primary, before.term):
            assert self.pledged is None, f"{self.primary} is written to although {self.pledged} may be promoted"
        if self.phase is Phase.PROMOTING:
            assert self.operation is Operation.PROMOTION, "PROMOTING without a promotion"
