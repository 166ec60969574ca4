"""decisions/routing: who may serve what, state by state, and what must hold for every state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.decisions.balancing.smooth_weighted import SmoothWeighted
from router.decisions.cluster_facts import Seen
from router.decisions.health import EndpointHealth
from router.decisions.machine import ClusterMachine
from router.decisions.refusal import Refuse
from router.decisions.routing import Hold, Route, RouteBook, Want, candidates, choose, pick
from router.decisions.snapshot import present
from router.model.errors import Code, Executed
from router.model.events import Health, Phase
from router.model.identity import ClusterName, EndpointName, Generation, Lsn, Term, TopologyNumber
from router.model.observation import RoleClaim
from router.model.reasons import HealthReason, RefuseReason, RouteReason
from router.model.request import Access, Fallback, OnFailover, ReadFrom
from router.model.state import ClusterState, EndpointState
from router.model.topology import Endpoint, Role

P, R1, R2 = EndpointName("p"), EndpointName("r1"), EndpointName("r2")
UP, DOWN = Health.UP, Health.DOWN

WRITE = Want(Access.READ_WRITE)
STRONG = Want(Access.READ_ONLY)
REPLICA = Want(Access.READ_ONLY, ReadFrom.REPLICA)
REPLICA_ONLY = replace(REPLICA, fallback=Fallback.FAIL)
ANY = Want(Access.READ_ONLY, ReadFrom.ANY)


def replica(name: EndpointName, **fields: Any) -> EndpointState:
    fields.setdefault("health", UP)
    fields.setdefault("lag_s", 0.1)
    return EndpointState(name, Role.REPLICA, **fields)


def cluster(
    *replicas: EndpointState, primary: EndpointName | None = P, phase: Phase = Phase.STEADY, **fields: Any
) -> ClusterState:
    own = EndpointState(P, Role.PRIMARY if primary else Role.UNKNOWN, UP if primary else DOWN, lag_s=0.0, **fields)
    return ClusterState(
        ClusterName("main"),
        phase,
        primary,
        Term(3),
        Generation(7),
        {one.name: one for one in (own, *replicas)},
        TopologyNumber(41),
    )


def route(state: ClusterState, want: Want, *exclude: EndpointName, draw: float = 0.0) -> Route | Hold | Refuse:
    return choose(state, want, SmoothWeighted(), {}, {}, draw, exclude)


def where(state: ClusterState, want: Want, *exclude: EndpointName) -> tuple[EndpointName, RouteReason]:
    got = route(state, want, *exclude)
    assert isinstance(got, Route), got
    return got.endpoint, got.reason


def served(state: ClusterState, want: Want, weights: Mapping[EndpointName, int] | None = None) -> set[EndpointName]:
    return {one.endpoint for one in candidates(state, want, weights or {}).routes}


BOTH = (replica(R1), replica(R2))
LOST = {"primary": None, "phase": Phase.HOLDING}


@pytest.mark.parametrize("max_staleness_s", [0.0, 1.0])
def test_a_replica_of_a_former_primary_serves_nobody(max_staleness_s: float) -> None:
    """R1 streams on timeline 1 from a server that was cut off while P became primary of timeline 2, and has replayed
    all that it receives. R2 has followed."""
    writes = RoleClaim(False, 7, Term(2), lsn=Lsn(900_000))
    follows = RoleClaim(True, 7, Term(2), lsn=Lsn(900_000), lag_s=0.0, receiver_alive=True)
    claims = {P: writes, R1: replace(follows, timeline=Term(1), lsn=Lsn(5_000)), R2: follows}
    up = EndpointHealth(UP, HealthReason.PROBE_OK)
    seen = {name: Seen(up, claim, probed_at=130.0, lag_s=0.0) for name, claim in claims.items()}
    machine = ClusterMachine(
        ClusterName("main"), phase=Phase.STEADY, primary=P, term=Term(2), last_claim=writes, term_at=100.0
    )
    endpoints = [Endpoint(name, ClusterName("main"), "h") for name in claims]
    state = present(machine, endpoints, seen, {}, TopologyNumber(1))
    want = replace(REPLICA, max_staleness_s=max_staleness_s)
    assert served(state, want) == {R2}
    asked_at_once = {**seen, R1: replace(seen[R1], probed_at=100.1)}
    state = present(machine, endpoints, asked_at_once, {}, TopologyNumber(2))
    assert served(state, want) == {R1, R2}, "it may be about to follow, and lacks a tenth of a second"


def test_route_carries_what_the_receipt_and_the_lease_need() -> None:
    assert route(cluster(), WRITE) == Route(P, Role.PRIMARY, RouteReason.PRIMARY, TopologyNumber(41), Generation(7))


@pytest.mark.parametrize("want", [WRITE, STRONG, replace(WRITE, read=ReadFrom.REPLICA)])
def test_writes_and_strong_reads_go_to_the_primary(want: Want) -> None:
    assert where(cluster(*BOTH), want) == (P, RouteReason.PRIMARY)
    assert where(cluster(*BOTH, phase=Phase.DRAINING), want, P) == (P, RouteReason.PRIMARY)


@pytest.mark.parametrize("phase", [Phase.STARTING, Phase.SUSPECT, Phase.HOLDING, Phase.PROMOTING])
@pytest.mark.parametrize("want", [WRITE, STRONG])
def test_without_a_primary_they_are_held(want: Want, phase: Phase) -> None:
    got = route(cluster(*BOTH, primary=None, phase=phase), want)
    assert isinstance(got, Hold)
    assert (got.phase, got.topology) == (phase, 41)
    assert got.message


def test_they_are_refused_when_waiting_cannot_help() -> None:
    got = route(cluster(*BOTH, primary=None, phase=Phase.STUCK), WRITE)
    assert isinstance(got, Refuse)
    assert (got.reason, got.code) == (RefuseReason.NO_BACKEND, Code.UNAVAILABLE)
    assert "operator" in got.message
    error = got.error()
    assert (error.executed, error.numbers["phase"]) == (Executed.NO, "stuck")


def test_they_are_refused_when_the_caller_does_not_wait() -> None:
    got = route(cluster(*BOTH, primary=None, phase=Phase.SUSPECT), replace(WRITE, on_failover=OnFailover.FAIL_FAST))
    assert isinstance(got, Refuse)
    assert got.reason is RefuseReason.NO_BACKEND
    assert got.retry_after_s


def test_a_draining_primary_takes_nothing_new() -> None:
    assert isinstance(route(cluster(*BOTH, draining=True), WRITE), Hold)
    assert served(cluster(*BOTH, draining=True), ANY) == {R1, R2}


def test_replica_reads_are_balanced() -> None:
    state = cluster(*BOTH)
    assert served(state, REPLICA) == {R1, R2}
    balancer = SmoothWeighted()
    found = candidates(state, REPLICA, {})
    picks = [pick(found, balancer, {}, 0.0) for _ in range(4)]
    assert [one.endpoint for one in picks if isinstance(one, Route)] == [R1, R2, R1, R2]
    assert all(isinstance(one, Route) and one.reason is RouteReason.BALANCED for one in picks)


def test_replica_reads_go_on_while_the_primary_is_lost() -> None:
    assert served(cluster(*BOTH, **LOST), REPLICA) == {R1, R2}
    assert served(cluster(*BOTH, **LOST), ANY) == {R1, R2}


@pytest.mark.parametrize(
    "bad",
    [
        replica(R1, health=DOWN),
        replica(R1, health=Health.SUSPECT),
        replica(R1, health=Health.PROBATION),
        replica(R1, health=Health.QUARANTINED),
        replica(R1, draining=True),
        replica(R1, weight=0),
        replica(R1, lag_s=10.5),
        replica(R1, lag_s=-1.0),
        EndpointState(R1, Role.UNKNOWN, UP, lag_s=0.0),
    ],
)
def test_a_replica_that_is_not_eligible(bad: EndpointState) -> None:
    assert where(cluster(bad, replica(R2)), REPLICA) == (R2, RouteReason.ONLY_ONE)
    assert where(cluster(bad), REPLICA) == (P, RouteReason.FALLBACK_PRIMARY)


def test_weights_of_the_tenant_override() -> None:
    state = cluster(*BOTH)
    assert served(state, REPLICA, {R1: 0}) == {R2}
    assert served(cluster(replica(R1, weight=0)), REPLICA, {R1: 5}) == {R1}
    assert [one.weight for one in candidates(state, REPLICA, {R2: 7}).among] == [100, 7]


def test_staleness_narrows_the_lag_limit_and_never_widens_it() -> None:
    state = cluster(replica(R1, lag_s=2.0), replica(R2, lag_s=9.0))
    assert served(state, replace(REPLICA, max_staleness_s=5.0)) == {R1}
    assert served(state, replace(REPLICA, max_staleness_s=60.0)) == {R1, R2}
    assert served(state, replace(REPLICA, lag_limit_s=1.0, max_staleness_s=60.0)) == set()


def test_no_replica_and_no_fallback_is_refused_with_numbers() -> None:
    got = route(cluster(replica(R1, lag_s=60.0), replica(R2, draining=True)), REPLICA_ONLY)
    assert isinstance(got, Refuse)
    assert got.reason is RefuseReason.NO_REPLICA
    assert got.numbers == {"replicas": 2, "not_up": 0, "behind": 1, "draining": 1, "lag_limit_s": 10.0}


def test_no_replica_and_no_primary_is_held() -> None:
    assert isinstance(route(cluster(replica(R1, lag_s=60.0), **LOST), REPLICA), Hold)
    assert isinstance(route(cluster(**LOST), ANY), Hold)


@pytest.mark.parametrize("want", [REPLICA_ONLY, replace(REPLICA_ONLY, on_failover=OnFailover.FAIL_FAST)])
def test_all_excluded_by_health_means_none_is(want: Want) -> None:
    state = cluster(replica(R1, health=DOWN, lag_s=-1.0), replica(R2, health=Health.SUSPECT))
    assert served(state, want) == {R1, R2}
    got = route(state, want)
    assert isinstance(got, Route)
    assert got.reason is RouteReason.ALL_EXCLUDED


def test_all_excluded_yields_to_the_primary_where_that_is_allowed() -> None:
    down = replica(R1, health=DOWN)
    assert where(cluster(down), REPLICA) == (P, RouteReason.FALLBACK_PRIMARY)
    assert where(cluster(down, **LOST), REPLICA) == (R1, RouteReason.ALL_EXCLUDED)
    # and after it has failed, too, the request waits for a primary
    assert isinstance(route(cluster(down, **LOST), REPLICA, R1), Hold)


@pytest.mark.parametrize(
    "excluded",
    [
        replica(R1, health=Health.QUARANTINED),
        replica(R1, health=DOWN, draining=True),
        replica(R1, health=DOWN, lag_s=60.0),
        replica(R1, health=DOWN, weight=0),
        replica(R1, lag_s=60.0),
        replica(R1, health=Health.PROBATION, lag_s=-1.0, term=Term(2)),  # left behind, nobody knows for how long
    ],
)
def test_only_health_is_overruled(excluded: EndpointState) -> None:
    assert isinstance(route(cluster(excluded), REPLICA_ONLY), Refuse)


def test_a_caller_with_a_bound_gets_no_guess() -> None:
    unknown = cluster(replica(R1, health=DOWN, lag_s=-1.0))
    assert isinstance(route(unknown, replace(REPLICA_ONLY, max_staleness_s=5.0)), Refuse)


def test_any_takes_the_primary_in_by_weight() -> None:
    assert served(cluster(*BOTH), ANY) == {P, R1, R2}
    assert served(cluster(*BOTH, weight=0), ANY) == {R1, R2}
    assert where(cluster(weight=0), ANY) == (P, RouteReason.FALLBACK_PRIMARY)
    assert where(cluster(), ANY) == (P, RouteReason.ONLY_ONE)


def test_what_was_tried_is_avoided_while_there_is_another_way() -> None:
    state = cluster(*BOTH)
    assert where(state, REPLICA, R1) == (R2, RouteReason.BALANCED)
    assert where(state, REPLICA, R1, R2) == (P, RouteReason.FALLBACK_PRIMARY)
    assert where(state, REPLICA, R1, R2, P)[0] in (R1, R2)
    assert where(state, REPLICA_ONLY, R1, R2)[0] in (R1, R2)
    assert where(cluster(replica(R1)), REPLICA_ONLY, R1) == (R1, RouteReason.ONLY_ONE)
    assert where(cluster(), ANY, P)[0] == P


def test_book_computes_once_per_state_and_weights() -> None:
    book = RouteBook()
    state, weights = cluster(*BOTH), {R1: 3}
    first = book.candidates(state, REPLICA, weights)
    assert first == candidates(state, REPLICA, weights)
    assert book.candidates(state, replace(REPLICA), weights) is first
    assert book.candidates(state, WRITE, weights) is not first
    newer = cluster(replica(R1))
    assert book.candidates(newer, REPLICA, weights).among != first.among
    assert book.candidates(newer, REPLICA, {R1: 0}).among == ()


def test_book_is_bounded() -> None:
    book, state, weights = RouteBook(), cluster(*BOTH), {}
    for number in range(2000):
        book.candidates(state, replace(REPLICA, max_staleness_s=number + 1.0), weights)
    assert len(book._found) <= 300


names = st.sampled_from([P, R1, R2])
endpoints = st.builds(
    EndpointState, names, st.sampled_from(Role), st.sampled_from(Health), weight=st.integers(0, 3),
    draining=st.booleans(), lag_s=st.sampled_from([-1.0, 0.0, 5.0, 50.0]))


@st.composite
def states(draw: st.DrawFn) -> ClusterState:
    made = {one.name: one for one in draw(st.lists(endpoints, max_size=4))}
    phase = draw(st.sampled_from(Phase))
    primary = draw(names) if phase in (Phase.STEADY, Phase.DRAINING) else None
    if primary is not None:
        made[primary] = EndpointState(primary, Role.PRIMARY, UP, lag_s=0.0, draining=draw(st.booleans()))
    return ClusterState(ClusterName("main"), phase, primary, endpoints=made)


wants = st.builds(
    Want, st.sampled_from(Access), st.sampled_from(ReadFrom), st.sampled_from([0.0, 1.0]), st.just(10.0),
    st.sampled_from(Fallback), st.sampled_from(OnFailover))


@given(states(), wants, st.sets(names), st.floats(0, 1, exclude_max=True))
def test_every_state(state: ClusterState, want: Want, exclude: set[EndpointName], draw: float) -> None:
    got = choose(state, want, SmoothWeighted(), {}, {}, draw, exclude)
    if isinstance(got, Route):
        own = state.endpoints[got.endpoint]
        assert not own.draining
        assert own.health is not Health.QUARANTINED
        if want.access is Access.READ_WRITE or want.read is ReadFrom.PRIMARY:
            assert got.endpoint == state.primary
        if got.endpoint != state.primary:
            assert own.role is Role.REPLICA
            assert own.lag_s <= want.limit_s
        elif want.fallback is Fallback.FAIL:
            assert want.access is Access.READ_WRITE or want.read is not ReadFrom.REPLICA
    elif isinstance(got, Hold):
        assert want.on_failover is OnFailover.WAIT
        assert state.phase is not Phase.STUCK
    else:
        assert got.message
