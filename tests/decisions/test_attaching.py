"""Standbys that stream, and not from the primary: when they are told to follow it, and since when they lag behind."""

from dataclasses import replace

import pytest

from router.decisions.attaching import FOLLOWS_S, MISLED_GAP_S, misled_standbys, stray_standbys
from router.decisions.cluster_facts import Facts, Sign
from router.decisions.health import NEVER
from router.decisions.machine import ClusterMachine, MoveFinished, Recorded, RepointStandbys
from router.model.events import Phase
from router.model.identity import ClusterName, Term
from router.model.observation import RoleClaim
from router.model.topology import FailoverMode
from tests.decisions.failover_builders import (
    N1,
    N2,
    N3,
    SYSTEM,
    T0,
    Run,
    facts,
    headless,
    healthy,
    primary_claim,
    standby_claim,
    steady,
)

FOLLOW, PROMOTE = FailoverMode.FOLLOW, FailoverMode.PROMOTE
STREAMS = standby_claim(1, receiver_alive=True, receiver_silent_s=0.01)
FOLLOWS = replace(STREAMS, timeline=Term(2))


def moved(n3: RoleClaim, at: float = 0.0) -> Facts:
    """n2 is the primary of timeline 2, n1 still writes on timeline 1, n3 says this."""
    claims = {N1: primary_claim(1), N2: primary_claim(2), N3: n3}
    return facts(Sign.SERVES, claims, known=2, now=T0 + at, accepted=N2)


def led_by_n2(mode: FailoverMode = PROMOTE) -> Run:
    machine = replace(steady(mode), primary=N2, term=Term(2), last_claim=primary_claim(2), term_at=T0 - 100)
    return Run(replace(machine, facts=moved(FOLLOWS, -0.1)))


def feed(run: Run, n3: RoleClaim, at: float) -> list[object]:
    """The repoints so far."""
    run.feed(moved(n3, at), T0 + at)
    return run.of(RepointStandbys)


def test_a_standby_that_streams_from_a_former_primary_is_made_to_follow():
    run = led_by_n2()
    for at in (0.0, 1.0, FOLLOWS_S - 0.1):
        assert feed(run, STREAMS, at) == [], "it may be about to follow"
    assert feed(run, STREAMS, FOLLOWS_S) == [RepointStandbys(N2, (N3,))]
    assert len(feed(run, STREAMS, FOLLOWS_S + MISLED_GAP_S - 0.1)) == 1, "it may have much to catch up on"
    assert len(feed(run, STREAMS, FOLLOWS_S + MISLED_GAP_S)) == 2


def test_a_standby_that_follows_by_itself_is_left_alone():
    run = led_by_n2()
    for at in (0.0, 3.0):
        assert feed(run, STREAMS, at) == []
    assert feed(run, FOLLOWS, 3.5) == []
    for at in (4.0, FOLLOWS_S + 3.0):
        assert feed(run, STREAMS, at) == [], "counted from the beginning"


def test_a_standby_that_has_not_been_asked_since_is_left_alone():
    run = led_by_n2()
    for at in (0.0, FOLLOWS_S, FOLLOWS_S + 10):
        seen = moved(STREAMS, at)
        run.feed(replace(seen, standbys=tuple(replace(s, probed_at=T0) for s in seen.standbys)), T0 + at)
    assert run.of(RepointStandbys) == []


def test_after_a_move_of_our_own_nobody_is_repointed_twice():
    run = Run(steady(PROMOTE))
    run.feed(headless(), T0)
    run.feed(headless(now=T0 + 0.31), T0 + 0.31)
    run.feed(MoveFinished(N2, Term(2)), T0 + 1)
    for at in (1.0, 1.1, 3.0, 5.9):
        assert feed(run, STREAMS, at) == []
    assert feed(run, FOLLOWS, 6.1) == []


def test_one_that_follows_nobody_does_not_wait_for_that():
    run = led_by_n2()
    assert feed(run, standby_claim(1), 0.0) == [RepointStandbys(N2, (N3,))]


def test_in_follow_mode_nobody_is_repointed():
    run = led_by_n2(FOLLOW)
    for at in (0.0, FOLLOWS_S, 2 * FOLLOWS_S):
        assert feed(run, STREAMS, at) == []


@pytest.mark.parametrize(
    ("claim", "stray", "misled"),
    [
        (STREAMS, False, True),
        (FOLLOWS, False, False),
        (standby_claim(1), True, False),
        (standby_claim(2), False, False),
        (standby_claim(2, fenced=True), True, False),
        (replace(STREAMS, system_id=SYSTEM + 1), False, False),
        (primary_claim(1), False, False),
    ],
)
def test_who_is_what(claim: RoleClaim, stray: bool, misled: bool):
    standbys = [s for s in moved(claim).standbys if s.name == N3]
    assert bool(stray_standbys(standbys, Term(2), SYSTEM)) is stray
    assert bool(misled_standbys(standbys, Term(2), SYSTEM)) is misled
    gone = [replace(s, answers=False) for s in standbys]
    assert not (*stray_standbys(gone, Term(2), SYSTEM), *misled_standbys(gone, Term(2), SYSTEM))


# --- since when a term has had writes -----------------------------------------------------------------------------


def risen(at: float) -> Facts:
    """Somebody has promoted n2 beside n1, which goes on."""
    claims = {N1: primary_claim(1), N2: primary_claim(2), N3: STREAMS}
    return facts(Sign.SERVES, claims, now=T0 + at)


@pytest.mark.parametrize("journal", [False, True])
def test_a_term_of_others_begins_when_its_primary_was_last_known_as_a_standby(journal: bool):
    run = Run(replace(steady(), recorded=Term(1) if journal else None))
    run.feed(healthy(T0 + 0.5), T0 + 0.5)
    run.feed(risen(1.5), T0 + 1.5)
    if journal:
        assert run.machine.term == 1
        run.feed(risen(2.0), T0 + 2.0)
        run.feed(Recorded(Term(2)), T0 + 2.1)
    assert (run.machine.primary, run.machine.term, run.machine.term_at) == (N2, 2, T0 + 0.5)


def test_a_term_of_our_own_begins_when_it_is_accepted():
    run = Run(steady(PROMOTE))
    run.feed(headless(), T0)
    run.feed(headless(now=T0 + 0.31), T0 + 0.31)
    run.feed(MoveFinished(N2, Term(2)), T0 + 1)
    assert run.machine.term_at == T0 + 1


def test_when_a_term_began_that_nobody_saw_begin_is_not_known():
    run = Run(ClusterMachine(ClusterName("c"), since=T0))
    run.feed(moved(STREAMS), T0)
    assert (run.machine.phase, run.machine.term, run.machine.term_at) == (Phase.DRAINING, 2, NEVER)
