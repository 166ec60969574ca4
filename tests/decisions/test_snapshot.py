"""What is published: roles, lag, orders."""

from dataclasses import replace

import pytest

from router.decisions.cluster_facts import Seen
from router.decisions.health import NEVER, EndpointHealth
from router.decisions.machine import ClusterMachine
from router.decisions.snapshot import Orders, present, replica_lag
from router.model.events import Health, Phase
from router.model.identity import ClusterName, EndpointName, Generation, Lsn, Term, TopologyNumber
from router.model.observation import RoleClaim
from router.model.reasons import HealthReason
from router.model.topology import Endpoint, Role

N1, N2, N3 = (EndpointName(name) for name in ("n1", "n2", "n3"))
CLUSTER = ClusterName("c")
ENDPOINTS = tuple(Endpoint(name, CLUSTER, "h") for name in (N1, N2, N3))
WRITES = RoleClaim(False, 7, Term(2), lsn=Lsn(1000))
STANDBY = RoleClaim(True, 7, Term(2), lsn=Lsn(900), received_lsn=Lsn(950), receiver_alive=True, receiver_ping_s=2.5)
UP = EndpointHealth(Health.UP, HealthReason.PROBE_OK)


def machine(phase: Phase = Phase.STEADY) -> ClusterMachine:
    return ClusterMachine(
        CLUSTER, phase=phase, primary=N1, term=Term(2), generation=Generation(3), last_claim=WRITES, since=5.0
    )


def test_roles_lag_and_orders():
    stale = EndpointHealth(Health.QUARANTINED, HealthReason.OLD_TERM)
    seen = {N1: Seen(UP, WRITES), N2: Seen(UP, STANDBY, lag_s=0.2), N3: Seen(stale, replace(WRITES, timeline=Term(1)))}
    orders = {N2: Orders(draining=True, weight=7)}
    state = present(machine(), ENDPOINTS, seen, orders, TopologyNumber(9))
    assert (state.primary, state.term, state.generation, state.number, state.since) == (N1, 2, 3, 9, 5.0)
    assert [e.role for e in state.endpoints.values()] == [Role.PRIMARY, Role.REPLICA, Role.UNKNOWN]
    n2 = state.endpoints[N2]
    assert (n2.lag_s, n2.lag_bytes, n2.draining, n2.weight, n2.lsn) == (0.2, 100, True, 7, 900)
    assert (state.endpoints[N1].lag_bytes, state.endpoints[N1].weight) == (0, 100)


@pytest.mark.parametrize(("health_since", "position_at"), [(5.0, 70.0), (80.0, 80.0)], ids=["up all along", "anew"])
def test_a_position_that_was_told_before_the_last_probe_or_a_restart_does_not_count(
    health_since: float, position_at: float
):
    """position_at: from when on what a replica tells counts."""
    seen = {N1: Seen(UP, WRITES), N2: Seen(replace(UP, since=health_since), STANDBY, probed_at=70.0), N3: Seen()}
    state = present(machine(), ENDPOINTS, seen, {}, TopologyNumber(9))
    assert state.endpoints[N2].position_at == position_at


@pytest.mark.parametrize("phase", list(Phase))
def test_a_primary_is_published_only_while_writes_may_go_there(phase: Phase):
    seen = {name: Seen(UP, WRITES if name == N1 else STANDBY) for name in (N1, N2, N3)}
    published = present(machine(phase), ENDPOINTS, seen, {}, TopologyNumber(1)).primary
    assert published == (N1 if phase in (Phase.STEADY, Phase.DRAINING) else None)


OLD = replace(STANDBY, timeline=Term(1), lag_s=0.0)


@pytest.mark.parametrize(
    ("claim", "told_s", "probed_at", "term_at", "lag_s"),
    [
        (OLD, 0.0, 100.0, 40.0, 60.0),
        (OLD, 0.0, 40.02, 40.0, 0.02),
        (OLD, 0.0, 39.9, 40.0, 0.0),
        (OLD, 0.0, 100.0, NEVER, -1.0),
        (replace(OLD, receiver_alive=False), 3600.0, 100.0, 40.0, 3600.0),
        (replace(OLD, receiver_alive=False), -1.0, 100.0, 40.0, -1.0),
        (STANDBY, 0.2, 100.0, 40.0, 0.2),
        (replace(STANDBY, timeline=Term(3)), 0.2, 100.0, 40.0, 0.2),
    ],
    ids=[
        "streams from a former primary", "is about to follow", "asked before", "nobody saw the term begin",
        "reads an archive", "replayed nothing yet", "follows", "has followed to the next one",
    ],
)  # fmt: skip
def test_a_standby_on_an_older_timeline_lacks_all_since_the_term_began(
    claim: RoleClaim, told_s: float, probed_at: float, term_at: float, lag_s: float
):
    seen = {N1: Seen(UP, WRITES), N2: Seen(UP, claim, probed_at, lag_s=told_s), N3: Seen()}
    state = present(replace(machine(), term_at=term_at), ENDPOINTS, seen, {}, TopologyNumber(9))
    assert state.endpoints[N2].lag_s == pytest.approx(lag_s)


def test_a_writable_server_that_is_not_the_primary_has_no_role():
    seen = {N1: Seen(UP, WRITES), N2: Seen(UP, WRITES), N3: Seen()}
    state = present(machine(), ENDPOINTS, seen, {}, TopologyNumber(1))
    assert (state.endpoints[N2].role, state.endpoints[N3].role) == (Role.UNKNOWN, Role.UNKNOWN)


@pytest.mark.parametrize(
    ("claim", "caught_up_at", "lag"),
    [
        (WRITES, 0.0, 0.0),
        (replace(STANDBY, lag_s=0.0), 100.0, 0.0),
        (replace(STANDBY, lag_s=-1.0), 0.0, -1.0),
        (replace(STANDBY, lag_s=3600.0), 99.75, 0.25),
        (replace(STANDBY, lag_s=2.0), 0.0, 2.0),
        (replace(STANDBY, lag_s=5.0, receiver_alive=False), 99.75, 5.0),
        (replace(STANDBY, lag_s=0.0, receiver_silent_s=2.0), 100.0, 0.0),
        (replace(STANDBY, lag_s=0.0, receiver_silent_s=9.0), 100.0, 9.0),
    ],
    ids=["primary", "caught up", "unknown", "first after an idle hour", "behind", "cut off", "quiet", "silent"],
)
def test_lag_is_no_more_than_it_can_be_and_no_less_than_is_known(claim: RoleClaim, caught_up_at: float, lag: float):
    assert replica_lag(claim, asked_at=100.0, caught_up_at=caught_up_at) == lag
