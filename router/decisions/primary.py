"""Which claim to be the primary is believed. "Not in recovery" alone is not enough: several servers may say so.

The highest term wins, and none below the highest ever accepted; two writable servers on one timeline are nobody
(fail closed: compared by hand); a server with another system identifier is not one of the cluster's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from router.decisions.health import Standing
from router.model.identity import EndpointName, Term
from router.model.observation import RoleClaim
from router.model.reasons import PhaseReason


@dataclass(frozen=True, slots=True)
class PrimaryVerdict:
    """Who is the primary, by the claims.

    Invariants: primary is set only with term >= the known term; term never falls below the known one; primary is
    never in stale, rivals or foreign.
    """

    primary: EndpointName | None
    term: Term
    """The primary's, else the highest term known or claimed by a writable server."""
    reason: PhaseReason
    stale: tuple[EndpointName, ...] = ()
    """Writable on an older timeline: primaries of the past."""
    rivals: tuple[EndpointName, ...] = ()
    """Writable on the same, highest timeline; more than one, or one that takes no writes."""
    foreign: tuple[EndpointName, ...] = ()
    detail: str = ""
    """In words, when there is no primary."""


def believe(claims: Mapping[EndpointName, RoleClaim], known_term: Term, system_id: int) -> PrimaryVerdict:
    """Judge the claims of the servers that answer. system_id 0: not known yet, then the most common one counts."""
    system_id = system_id or identify(claims)
    foreign = tuple(sorted(name for name, claim in claims.items() if claim.system_id != system_id))
    own = {name: claim for name, claim in claims.items() if claim.system_id == system_id}
    writable = sorted(name for name, claim in own.items() if not claim.in_recovery)
    top = max([known_term, *(own[name].timeline for name in writable)])
    stale = tuple(name for name in writable if own[name].timeline < top)
    highest = tuple(name for name in writable if own[name].timeline == top)
    if system_id == 0 and claims:
        detail = "the servers disagree about the system identifier: they are not one cluster"
        return PrimaryVerdict(None, top, PhaseReason.NO_PRIMARY, foreign=(), detail=detail)
    if len(highest) > 1:
        detail = f"{' and '.join(highest)} are all writable on timeline {top}: stop all but one"
        return PrimaryVerdict(None, top, PhaseReason.TWO_PRIMARIES, stale, highest, foreign, detail)
    if not highest:
        detail = _explain_absence(len(own), stale, top, foreign)
        return PrimaryVerdict(None, top, PhaseReason.NO_PRIMARY, stale, (), foreign, detail)
    if own[highest[0]].read_only:
        detail = f"{highest[0]} takes no writes: default_transaction_read_only is on (ALTER SYSTEM RESET it, reload)"
        return PrimaryVerdict(None, top, PhaseReason.NO_PRIMARY, stale, highest, foreign, detail)
    return PrimaryVerdict(highest[0], top, _why(known_term, top), stale, (), foreign)


def identify(claims: Mapping[EndpointName, RoleClaim]) -> int:
    """The system identifier that most servers carry; 0 when there is no such one."""
    counted = Counter(claim.system_id for claim in claims.values()).most_common(2)
    if not counted or (len(counted) == 2 and counted[0][1] == counted[1][1]):
        return 0
    return counted[0][0]


def standing(name: EndpointName, claim: RoleClaim, verdict: PrimaryVerdict) -> Standing | None:
    """What a server that made this claim is to the cluster; None when the claims do not tell."""
    if name in verdict.foreign:
        return Standing.FOREIGN
    if name in verdict.stale:
        return Standing.STALE_PRIMARY
    if name == verdict.primary:
        return Standing.PRIMARY
    if claim.in_recovery:
        return Standing.STANDBY if claim.timeline >= verdict.term else Standing.BEHIND
    return None


def _why(known_term: Term, term: Term) -> PhaseReason:
    if known_term == 0:
        return PhaseReason.FIRST_PRIMARY
    return PhaseReason.NEW_PRIMARY if term > known_term else PhaseReason.PRIMARY_RETURNED


def _explain_absence(
    answering: int, stale: tuple[EndpointName, ...], top: Term, foreign: tuple[EndpointName, ...]
) -> str:
    if stale:
        return f"{' and '.join(stale)} would take writes, but on an older timeline than {top}"
    if not answering and foreign:
        names, verb = " and ".join(foreign), "belong" if len(foreign) > 1 else "belongs"
        way_out = "if the cluster was made anew, remove its file from the router's state_dir"
        return f"{names} {verb} to another system than the one known by that name: {way_out}"
    if not answering:
        return "no server of the cluster answers"
    return f"{answering} server{'s' if answering > 1 else ''} answer{'' if answering > 1 else 's'}, all in recovery"
