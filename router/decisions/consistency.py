"""What a consistency token asks of a read, and which endpoints fulfil it. Pure.

A token is a position on a timeline. A timeline ends where its successor begins (the switch point); what lies beyond
was lost with it, unless a synchronous standby had confirmed it: then the successor has it. Its position does not say
where: on a primary the reading was ahead of what was confirmed; a replica may have followed to the successor already,
and cannot be asked on which timeline it replays. What the primary has when it is asked covers both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from router.decisions.refusal import Refuse
from router.decisions.routing import Candidates
from router.model.errors import Code
from router.model.events import Health
from router.model.identity import NO_LSN, EndpointName, Lsn, Term, lsn_to_text
from router.model.reasons import RefuseReason
from router.model.state import ClusterState, EndpointState
from router.model.token import Token
from router.model.topology import Role


@dataclass(frozen=True, slots=True)
class Need:
    """A replica must have replayed so far, on this timeline or one that came of it."""

    lsn: Lsn
    timeline: Term
    now: bool = False
    """And as much as the primary has when it is asked."""


@dataclass(frozen=True, slots=True)
class Ahead:
    """The token is of a timeline that this router has not seen yet, or not seen the end of: its state is the older."""

    timeline: Term
    known: Term


def judge(token: Token, state: ClusterState) -> Need | Ahead | Refuse:
    """What a token asks of a read in this state. Refuse: it can never be fulfilled."""
    if state.system_id and token.system_id != state.system_id:
        return Refuse(
            RefuseReason.TOKEN_FOREIGN,
            Code.FAILED_PRECONDITION,
            f"the consistency token is of another database system than cluster {state.name}: it was restored, "
            f"or the token belongs to another tenant; read without it",
            {"cluster": state.name},
        )
    if not state.system_id or token.timeline > state.term:
        return Ahead(token.timeline, state.term)
    if token.timeline == state.term:
        return Need(token.lsn, token.timeline, token.now)
    end = dict(state.history or ()).get(token.timeline)
    if end is not None and token.lsn <= end:
        return Need(token.lsn, token.timeline, token.now)
    if not token.unconfirmed:
        return Need(token.lsn if end is None else end, token.timeline, now=True)
    if state.history is None:
        return Ahead(token.timeline, state.term)
    return _lost(token, end, state)


def _lost(token: Token, end: Lsn | None, state: ClusterState) -> Refuse:
    numbers: dict[str, object] = {
        "position": lsn_to_text(token.lsn),
        "timeline": int(token.timeline),
        "now_timeline": int(state.term),
    }
    if end is None:
        why = (
            f"timeline {token.timeline} is no ancestor of timeline {state.term}, or where it ended is not known "
            "(pointsman_timeline_history is missing)"
        )
    else:
        numbers["switch_point"] = lsn_to_text(end)
        numbers["lost_bytes"] = token.lsn - end
        why = f"timeline {token.timeline} was left at {lsn_to_text(end)}, {token.lsn - end} bytes before it"
    return Refuse(
        RefuseReason.TOKEN_LOST,
        Code.FAILED_PRECONDITION,
        f"what the consistency token saw at {lsn_to_text(token.lsn)} was lost, or may have been, in a failover: {why}; "
        f"check what you wrote, and read without the token",
        numbers,
    )


def ahead(token: Token, state: ClusterState, waited_s: float) -> Refuse:
    """The refusal when the state did not catch up in time."""
    return Refuse(
        RefuseReason.TOKEN_AHEAD,
        Code.UNAVAILABLE,
        f"the consistency token is of timeline {token.timeline}; this router sees cluster {state.name} on timeline "
        f"{state.term} and did not learn in {waited_s:.3f} s how the two hang together",
        {"timeline": int(token.timeline), "known_timeline": int(state.term), "waited_s": round(waited_s, 3)},
        0.2,
    )


def is_past(endpoint: EndpointState, need: Need, asked: Lsn = NO_LSN) -> bool:
    """Whether a replica has replayed what is needed. asked: a position it told since it was probed.

    One that is not up has said lsn before it was in doubt: it may have crashed, and opens at an earlier position."""
    told = endpoint.lsn if endpoint.health is Health.UP else NO_LSN
    return endpoint.term >= need.timeline and max(told, asked) >= need.lsn


def past(found: Candidates, state: ClusterState, need: Need, asked: Mapping[EndpointName, Lsn]) -> Candidates:
    """Those of the candidates that fulfil the need now; the primary always does."""
    chosen = [
        index
        for index, route in enumerate(found.routes)
        if route.role is Role.PRIMARY
        or is_past(state.endpoints[route.endpoint], need, asked.get(route.endpoint, NO_LSN))
    ]
    if len(chosen) == len(found.routes):
        return found
    return Candidates(
        tuple(found.among[index] for index in chosen),
        tuple(found.routes[index] for index in chosen),
        found.otherwise,
    )


def worth_waiting(found: Candidates, state: ClusterState, wait_s: float) -> bool:
    """Whether any candidate may catch up in time: one that was further behind when last asked will hardly do."""
    return any(0 <= state.endpoints[route.endpoint].lag_s <= wait_s for route in found.routes)


def nearest(
    found: Candidates, state: ClusterState, asked: Mapping[EndpointName, Lsn], skip: frozenset[EndpointName]
) -> EndpointName | None:
    """The replica to ask for its position: the one that has come furthest. None: all are to be skipped."""
    names = [route.endpoint for route in found.routes if route.endpoint not in skip]
    return max(names, key=lambda name: max(state.endpoints[name].lsn, asked.get(name, NO_LSN)), default=None)


def behind(found: Candidates, state: ClusterState, need: Need, waited_s: float) -> Refuse:
    """The refusal of a read that may not go to the primary."""
    best = max((state.endpoints[route.endpoint].lsn for route in found.routes), default=NO_LSN)
    return Refuse(
        RefuseReason.NO_REPLICA,
        Code.UNAVAILABLE,
        f"no replica has replayed {lsn_to_text(need.lsn)}, which the consistency token asks for, in {waited_s:.3f} s; "
        f"the best of {len(found.routes)} was at {lsn_to_text(best)}; the request forbids the primary",
        {
            "replicas": len(found.routes),
            "position": lsn_to_text(need.lsn),
            "best": lsn_to_text(best),
            "waited_s": round(waited_s, 3),
        },
        0.1,
    )
