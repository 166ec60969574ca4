"""Which claims are believed."""

from hypothesis import given
from hypothesis import strategies as st

from router.decisions.health import Standing
from router.decisions.primary import believe, identify, standing
from router.model.identity import EndpointName, Term
from router.model.observation import RoleClaim
from router.model.reasons import PhaseReason

N1, N2, N3 = (EndpointName(name) for name in ("n1", "n2", "n3"))
OURS, THEIRS = 7, 8


def primary(term: int, *, system_id: int = OURS, read_only: bool = False) -> RoleClaim:
    return RoleClaim(False, system_id, Term(term), read_only=read_only)


def standby(term: int, *, system_id: int = OURS) -> RoleClaim:
    return RoleClaim(True, system_id, Term(term))


def test_the_only_writable_server_is_the_primary():
    verdict = believe({N1: primary(1), N2: standby(1), N3: standby(1)}, Term(0), 0)
    assert (verdict.primary, verdict.term, verdict.reason) == (N1, 1, PhaseReason.FIRST_PRIMARY)


def test_the_highest_term_wins_and_the_other_is_stale():
    verdict = believe({N1: primary(1), N2: primary(2), N3: standby(2)}, Term(1), OURS)
    assert (verdict.primary, verdict.reason, verdict.stale) == (N2, PhaseReason.NEW_PRIMARY, (N1,))


def test_a_timeline_may_jump_by_two():
    assert believe({N1: primary(1), N2: primary(3)}, Term(1), OURS).primary == N2


def test_a_term_below_the_accepted_one_is_never_believed():
    verdict = believe({N1: primary(1), N2: standby(1)}, Term(2), OURS)
    assert (verdict.primary, verdict.term, verdict.stale) == (None, 2, (N1,))
    assert "n1" in verdict.detail


def test_two_writable_servers_on_one_timeline_are_nobody():
    verdict = believe({N1: primary(2), N2: primary(2), N3: primary(1)}, Term(1), OURS)
    assert (verdict.primary, verdict.reason) == (None, PhaseReason.TWO_PRIMARIES)
    assert (verdict.rivals, verdict.stale) == ((N1, N2), (N3,))


def test_a_foreign_server_is_ignored_whatever_it_claims():
    verdict = believe({N1: primary(1), N2: primary(9, system_id=THEIRS)}, Term(1), OURS)
    assert (verdict.primary, verdict.term, verdict.foreign) == (N1, 1, (N2,))


def test_without_a_known_system_the_majority_is_the_cluster():
    claims = {N1: primary(9, system_id=THEIRS), N2: primary(1), N3: standby(1)}
    assert believe(claims, Term(0), 0).primary == N2
    assert identify(claims) == OURS


def test_without_a_majority_nobody_is_believed():
    verdict = believe({N1: primary(1, system_id=THEIRS), N2: primary(1)}, Term(0), 0)
    assert verdict.primary is None
    assert "disagree" in verdict.detail


def test_a_read_only_server_is_not_a_primary_to_write_to():
    verdict = believe({N1: primary(1, read_only=True), N2: standby(1)}, Term(1), OURS)
    assert (verdict.primary, verdict.reason) == (None, PhaseReason.NO_PRIMARY)
    assert "read_only" in verdict.detail


def test_standings():
    claims = {
        N1: primary(1),
        N2: primary(2),
        N3: standby(1),
        EndpointName("n4"): standby(2),
        EndpointName("n5"): primary(5, system_id=THEIRS),
    }
    verdict = believe(claims, Term(1), OURS)
    found = [standing(name, claim, verdict) for name, claim in claims.items()]
    assert found == [Standing.STALE_PRIMARY, Standing.PRIMARY, Standing.BEHIND, Standing.STANDBY, Standing.FOREIGN]


def test_a_rival_has_no_standing():
    claims = {N1: primary(2), N2: primary(2)}
    verdict = believe(claims, Term(1), OURS)
    assert standing(N1, claims[N1], verdict) is None


claims_drawn = st.dictionaries(
    st.sampled_from([EndpointName(f"n{n}") for n in range(1, 6)]),
    st.builds(
        RoleClaim,
        st.booleans(),
        st.sampled_from([OURS, OURS, THEIRS]),
        st.integers(1, 4).map(Term),
        read_only=st.booleans(),
    ),
)


@given(claims_drawn, st.integers(0, 4).map(Term), st.sampled_from([0, OURS]))
def test_the_invariants_hold_for_any_claims(claims: dict[EndpointName, RoleClaim], known: Term, system_id: int):
    verdict = believe(claims, known, system_id)
    assert verdict.term >= known
    if verdict.primary is None:
        assert verdict.reason in (PhaseReason.NO_PRIMARY, PhaseReason.TWO_PRIMARIES)
        return
    chosen = claims[verdict.primary]
    assert chosen.timeline == verdict.term
    assert not chosen.in_recovery
    assert not chosen.read_only
    assert verdict.primary not in (*verdict.stale, *verdict.foreign, *verdict.rivals)
    same = [c for c in claims.values() if c.system_id == chosen.system_id and not c.in_recovery]
    assert max(c.timeline for c in same) == chosen.timeline
    assert sum(c.timeline == chosen.timeline for c in same) == 1
