"""Which standbys follow nobody beside a primary that serves, or a former one, and when they are made to follow it.
Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from router.decisions.cluster_facts import Facts
from router.decisions.machine import ClusterMachine, RepointStandbys
from router.decisions.promotion import Standby
from router.model.identity import Term
from router.model.observation import RoleClaim
from router.model.policy import FailoverPolicy
from router.model.topology import FailoverMode

OTHERS_STEPS = 2
"""Another router's fence is taken away once it has stood for so many steps of a promotion: then it has promoted, or
has given up and taken it away itself, or is gone."""
REPOINT_GAP_S = 5.0
"""Shortest time between two attempts to attach stray standbys (seconds)."""
FOLLOWS_S = 5.0
"""A standby that streams on an older timeline for so long is not just about to follow: its upstream is a former primary
(seconds). Or it has much to catch up on before the switch; then it is told what it does already."""
MISLED_GAP_S = 30.0
"""Shortest time between two attempts to attach such a one (seconds)."""


def attach_strays(
    state: ClusterMachine, facts: Facts, now: float, policy: FailoverPolicy
) -> tuple[ClusterMachine, tuple[RepointStandbys, ...]]:
    """Those under another router's fence last: it may be about to promote one of them, and the first that follows
    the primary again lets it acknowledge what that one will not have."""
    primary = state.primary
    if state.mode is not FailoverMode.PROMOTE or primary is None:
        return state, ()
    strays = stray_standbys(facts.standbys, state.term, state.system_id)
    misled = misled_standbys(facts.standbys, state.term, state.system_id)
    since, misled_since = _since(state.strays_since, strays, now), _since(state.misled_since, misled, now)
    if (since, misled_since) != (state.strays_since, state.misled_since):
        state = replace(state, strays_since=since, misled_since=misled_since)
    if now < state.repoint_at:
        return state, ()
    late = tuple(s.name for s in misled if misled_since is not None and s.probed_at - misled_since >= FOLLOWS_S)
    names = (*(s.name for s in strays), *late)
    if not names:
        return state, ()
    others_too = since is not None and now - since >= OTHERS_STEPS * policy.step_timeout_s
    if late:
        state = replace(state, misled_since=now + MISLED_GAP_S - FOLLOWS_S)
    return replace(state, repoint_at=now + REPOINT_GAP_S), (RepointStandbys(primary, names, others_too),)


def _since(before: float | None, which: Sequence[Standby], now: float) -> float | None:
    """Since when there have been such standbys."""
    if not which:
        return None
    return now if before is None else before


def stray_standbys(standbys: Iterable[Standby], term: Term, system_id: int) -> tuple[Standby, ...]:
    """Standbys of the cluster that follow nobody and have been left behind: by a fence, or by a change of timeline."""
    return tuple(
        s
        for s in standbys
        if (claim := _claim(s, system_id)) is not None
        and not claim.receiver_alive
        and (claim.fenced or claim.timeline < term)
    )


def misled_standbys(standbys: Iterable[Standby], term: Term, system_id: int) -> tuple[Standby, ...]:
    """Standbys of the cluster that stream, and on an older timeline: from a former primary, or just before they follow
    to the new one."""
    return tuple(
        s
        for s in standbys
        if (claim := _claim(s, system_id)) is not None and claim.receiver_alive and claim.timeline < term
    )


def _claim(server: Standby, system_id: int) -> RoleClaim | None:
    """Of a standby of the cluster that answers."""
    claim = server.claim
    is_ours = server.answers and claim is not None and claim.in_recovery and claim.system_id == system_id
    return claim if is_ours else None
