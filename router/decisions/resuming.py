"""What a router that starts makes of its journal, and what belongs there now. Pure.

A router may die at any point of a move. What the next one does follows from the last stage written and the facts:

| written last | the primary before | what follows |
|---|---|---|
| nothing under way | answers | it is accepted, never a lower timeline |
| nothing under way | is gone | a promotion, if every other server can be fenced: who must confirm may have changed |
| HOLD, FENCE | answers | undone: its writes are allowed, cut standbys are attached to it again |
| HOLD, FENCE | is gone | a promotion from the beginning; what is fenced already stays so |
| PROMOTE | whatever it is | finished with the chosen standby; the primary before is not returned to |
| any | somebody is primary of a higher timeline | that one is accepted: the move had succeeded, or another one did |
"""

from __future__ import annotations

from dataclasses import replace

from router.decisions.machine import ClusterMachine, Operation
from router.model.identity import NO_LSN, NO_TERM, ClusterName, EndpointName, Generation, Lsn, Term
from router.model.journal import MOST_SWITCHES, ClusterRecord, MoveKind, MoveNote, MoveStage, Switch
from router.model.observation import RoleClaim
from router.model.topology import FailoverMode


def restore(record: ClusterRecord | None, name: ClusterName, mode: FailoverMode, now: float) -> ClusterMachine:
    """The machine of a router that starts now and keeps a journal."""
    if record is None:
        return ClusterMachine(name, mode, since=now, recorded=NO_TERM)
    move = record.move
    known = RoleClaim(False, record.system_id, record.term, sync_names=record.sync_names)
    promoting = move is not None and move.stage is MoveStage.PROMOTE
    return ClusterMachine(
        name,
        mode,
        since=now,
        primary=record.primary,
        term=record.term,
        generation=Generation(1),
        system_id=record.system_id,
        last_claim=known if record.primary is not None else None,
        hearsay=move is None,
        pledged=move.chosen if move is not None and promoting else None,
        muted=record.primary if move is not None and move.kind is MoveKind.SWITCHOVER else None,
        recorded=record.term,
        switches=record.switches,
    )


def page(state: ClusterMachine) -> ClusterRecord | None:
    """What the journal has to hold about a machine that carries nothing out; None when nothing is known.

    Includes the primary that is wanted: it is accepted once this is written.
    """
    assert state.operation is Operation.NONE, "a move writes for itself"
    primary, term, claim, switches = state.primary, state.term, state.last_claim, state.switches
    if state.wanted is not None:
        primary, term = state.wanted.primary, state.wanted.term
        claim = state.wanted.claim or claim
        switches = with_switch(state, primary, term)
    if primary is None or (claim is None and state.wanted is None):
        return None  # of a primary that was just accepted not all is known yet
    return ClusterRecord(
        state.name,
        state.system_id,
        term,
        primary,
        claim.sync_names if claim is not None else "",
        switches,
        _open_move(state) if state.wanted is None else None,
    )


def page_of_move(state: ClusterMachine, note: MoveNote) -> ClusterRecord:
    """What it has to hold before a stage of a move begins."""
    sync_names = state.last_claim.sync_names if state.last_claim is not None else ""
    return ClusterRecord(
        state.name, state.system_id, state.term, state.primary, sync_names, state.switches, note
    )


def may_note(state: ClusterMachine, note: MoveNote) -> bool:
    """Whether a stage may be written now: HOLD comes before its operation, so not while another one is under way, which
    has the page, nor when another primary is to get there."""
    return note.stage is not MoveStage.HOLD or (state.operation is Operation.NONE and state.wanted is None)


def with_switch(
    state: ClusterMachine, primary: EndpointName, term: Term, lsn: Lsn = NO_LSN
) -> tuple[Switch, ...]:
    """The switches once this primary is accepted; unchanged on the term that is known already."""
    if term <= state.term:
        return state.switches
    return (*state.switches, Switch(term, primary, lsn))[-MOST_SWITCHES:]


def confirmed_before(state: ClusterMachine, term: Term) -> Term:
    """ClusterMachine.confirmed_before once this term is accepted."""
    if term <= state.term:
        return state.confirmed_before
    return state.term if state.last_claim is not None and state.last_claim.sync_names else NO_TERM


def _open_move(state: ClusterMachine) -> MoveNote | None:
    if state.pledged is not None:
        kind = MoveKind.PROMOTION if state.muted is None else MoveKind.SWITCHOVER
        return MoveNote(kind, MoveStage.PROMOTE, state.pledged)
    if state.muted is not None:
        return MoveNote(MoveKind.SWITCHOVER, MoveStage.HOLD)
    return None


def recorded(state: ClusterMachine, term: Term) -> ClusterMachine:
    """The machine once the journal holds a term."""
    return replace(state, recorded=Term(max(term, state.recorded if state.recorded is not None else NO_TERM)))


def missed(state: ClusterMachine, now: float) -> ClusterMachine | None:
    """The machine when the primary that was wanted is in the journal, and has gone while it was noted: as if it had
    been accepted, and lost right after; a router that started now would take the same from its journal. None when it
    is not in the journal yet, or nobody is wanted."""
    wanted = state.wanted
    if wanted is None or state.recorded is None or wanted.term > state.recorded:
        return None
    system_id = state.system_id or (wanted.claim.system_id if wanted.claim is not None else 0)
    return replace(accepted(state, *wanted), system_id=system_id, doubted_at=now)


def accepted(
    state: ClusterMachine, primary: EndpointName, term: Term, claim: RoleClaim | None
) -> ClusterMachine:
    """The machine with this primary in place of the one before."""
    return replace(
        state,
        primary=primary,
        term=term,
        term_at=state.term_at if term == state.term else state.risen_at,
        generation=Generation(state.generation + 1),
        misled_since=None,
        last_claim=claim,
        confirmed_before=confirmed_before(state, term),
        hearsay=False,
        pledged=None,
        muted=None,
        wanted=None,
        switches=with_switch(state, primary, term),
        facts=None,  # those at hand are about the primary before
    )
