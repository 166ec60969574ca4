"""Which standbys follow nobody beside a primary that serves, and when they are made to follow it. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from router.decisions.cluster_facts import Facts
from router.decisions.machine import ClusterMachine, RepointStandbys
from router.decisions.promotion import Standby
from router.model.identity import EndpointName, Term
from router.model.policy import FailoverPolicy
from router.model.topology import FailoverMode

OTHERS_STEPS = 2
"""Another router's fence is taken away once it has stood for so many steps of a promotion: then it has promoted, or
has given up and taken it away itself, or is gone."""
REPOINT_GAP_S = 5.0
"""Shortest time between two attempts to attach stray standbys (seconds)."""


def attach_strays(
    state: ClusterMachine, facts: Facts, now: float, policy: FailoverPolicy
) -> tuple[ClusterMachine, tuple[RepointStandbys, ...]]:
    """Those under another router's fence last: it may be about to promote one of them, and the first that follows
    the primary again lets it acknowledge what that one will not have."""
    primary = state.primary
    if state.mode is not FailoverMode.PROMOTE or primary is None:
        return state, ()
    strays = stray_standbys(facts.standbys, state.term, state.system_id)
    if not strays:
        return (state if state.strays_since is None else replace(state, strays_since=None)), ()
    since = now if state.strays_since is None else state.strays_since
    state = replace(state, strays_since=since)
    if now < state.repoint_at:
        return state, ()
    others_too = now - since >= OTHERS_STEPS * policy.step_timeout_s
    return replace(state, repoint_at=now + REPOINT_GAP_S), (RepointStandbys(primary, strays, others_too),)


def stray_standbys(standbys: Iterable[Standby], term: Term, system_id: int) -> tuple[EndpointName, ...]:
    """Standbys of the cluster that follow nobody and have been left behind: by a fence, or by a change of timeline."""
    return tuple(
        s.name
        for s in standbys
        if s.answers
        and s.claim is not None
        and s.claim.in_recovery
        and not s.claim.receiver_alive
        and s.claim.system_id == system_id
        and (s.claim.fenced or s.claim.timeline < term)
    )
