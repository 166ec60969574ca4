"""The health machine: every state under every kind of evidence, and what each row means."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.decisions.health import EndpointHealth, Evidence, Standing, step
from router.model.events import Health
from router.model.identity import EndpointName
from router.model.observation import Fault, FaultKind, ProbeOutcome, ProbeResult, Stage
from router.model.policy import ProbePolicy
from router.model.reasons import HealthReason

POLICY = ProbePolicy(misses=3, probation_s=2.0)
U, P, S, D, B, Q = Health.UNKNOWN, Health.UP, Health.SUSPECT, Health.DOWN, Health.PROBATION, Health.QUARANTINED
STATES = (U, P, S, D, B, Q)


def probe(outcome: ProbeOutcome) -> ProbeResult:
    return ProbeResult(EndpointName("n1"), outcome, at=0.0)


def fault(kind: FaultKind, sqlstate: str = "") -> Fault:
    return Fault(kind, Stage.EXECUTE, sqlstate=sqlstate, endpoint=EndpointName("n1"))


def at(state: Health) -> EndpointHealth:
    """A freshly entered state."""
    return EndpointHealth(state, HealthReason.NOT_PROBED, since=100.0, misses=1 if state is S else 0)


# One row a kind of evidence, one column a state it may meet: the state after it. Freshly entered states, one
# failed probe behind SUSPECT.
TABLE = [
    # evidence                                  U  P  S  D  B  Q
    (probe(ProbeOutcome.OK), (P, P, P, B, B, Q)),
    (probe(ProbeOutcome.FULL), (P, P, P, B, B, Q)),
    (probe(ProbeOutcome.FRESH_HANGS), (U, P, S, D, B, Q)),
    (probe(ProbeOutcome.REFUSED), (D, D, D, D, D, Q)),
    (probe(ProbeOutcome.LOST), (D, S, S, D, D, Q)),
    (probe(ProbeOutcome.STARTING), (D, S, S, D, D, Q)),
    (probe(ProbeOutcome.TIMEOUT), (D, S, S, D, D, Q)),
    (probe(ProbeOutcome.UNRESOLVED), (D, S, S, D, D, Q)),
    (probe(ProbeOutcome.FAILED), (D, S, S, D, D, Q)),
    (probe(ProbeOutcome.LOGIN_REFUSED), (S, S, S, S, S, Q)),
    (fault(FaultKind.CONNECT_REFUSED), (D, D, D, D, D, Q)),
    (fault(FaultKind.CONNECTION_LOST), (U, S, S, D, B, Q)),
    (fault(FaultKind.SERVER_ERROR, "57P01"), STATES),
    (fault(FaultKind.CONNECTION_LOST, "57P01"), STATES),
    (fault(FaultKind.CONNECTION_LOST, "57P02"), (U, S, S, D, B, Q)),
    (fault(FaultKind.SERVER_ERROR, "57P02"), (U, S, S, D, B, Q)),
    (fault(FaultKind.SERVER_ERROR, "57P03"), (U, S, S, D, B, Q)),
    (fault(FaultKind.SERVER_ERROR, "23505"), STATES),
    (fault(FaultKind.SERVER_ERROR, "25006"), STATES),
    (fault(FaultKind.SILENT), STATES),
    (fault(FaultKind.CONNECT_FAILED), STATES),
    (fault(FaultKind.POOL_TIMEOUT), STATES),
    (fault(FaultKind.CANCELLED), STATES),
    (fault(FaultKind.STALE), STATES),
    (fault(FaultKind.LOCAL_COMMIT), STATES),
    (fault(FaultKind.KEY_BUSY), STATES),
    (fault(FaultKind.PROTOCOL), STATES),
    (fault(FaultKind.TOO_LARGE), STATES),
    (fault(FaultKind.CLOSED), STATES),
    (Standing.PRIMARY, (U, P, S, D, P, P)),
    (Standing.STANDBY, (U, P, S, D, B, B)),
    (Standing.BEHIND, STATES),
    (Standing.STALE_PRIMARY, (Q, Q, Q, Q, Q, Q)),
    (Standing.FOREIGN, (Q, Q, Q, Q, Q, Q)),
]


@pytest.mark.parametrize(("evidence", "expected"), TABLE, ids=lambda value: getattr(value, "name", None))
def test_every_state_under_every_evidence(evidence: Evidence, expected: tuple[Health, ...]):
    found = tuple(step(at(state), evidence, 101.0, POLICY).state for state in STATES)
    assert found == expected


def test_the_table_names_every_outcome_fault_and_standing():
    evidence = [row[0] for row in TABLE]
    assert {e.outcome for e in evidence if isinstance(e, ProbeResult)} == set(ProbeOutcome)
    assert {e.kind for e in evidence if isinstance(e, Fault)} == set(FaultKind)
    assert {e for e in evidence if isinstance(e, Standing)} == set(Standing)


def test_silence_must_accumulate_before_a_server_is_down():
    state = at(P)
    seen = []
    for _ in range(POLICY.misses):
        state = step(state, probe(ProbeOutcome.TIMEOUT), 101.0, POLICY)
        seen.append(state.state)
    assert seen == [S, S, D]


def test_one_answer_forgets_all_misses():
    state = at(P)
    for outcome in (ProbeOutcome.TIMEOUT, ProbeOutcome.TIMEOUT, ProbeOutcome.OK, ProbeOutcome.TIMEOUT):
        state = step(state, probe(outcome), 101.0, POLICY)
    assert (state.state, state.misses) == (S, 1)


def test_a_crash_restart_comes_back_without_probation():
    state = at(P)
    for outcome in (ProbeOutcome.LOST, ProbeOutcome.STARTING, ProbeOutcome.STARTING, ProbeOutcome.OK):
        state = step(state, probe(outcome), 101.0, POLICY)
    assert state.state is P


def test_a_returned_server_passes_through_probation_before_it_takes_work():
    state = step(at(P), probe(ProbeOutcome.REFUSED), 110.0, POLICY)
    state = step(state, probe(ProbeOutcome.STARTING), 111.0, POLICY)
    state = step(state, probe(ProbeOutcome.OK), 112.0, POLICY)
    assert state.state is B
    assert step(state, probe(ProbeOutcome.OK), 113.9, POLICY).state is B
    assert step(state, probe(ProbeOutcome.OK), 114.0, POLICY).state is P


def test_probation_begins_anew_after_a_miss():
    state = step(at(B), probe(ProbeOutcome.TIMEOUT), 101.0, POLICY)
    assert step(state, probe(ProbeOutcome.OK), 102.5, POLICY).state is B


def test_no_probation_when_it_is_turned_off():
    assert step(at(D), probe(ProbeOutcome.OK), 101.0, replace(POLICY, probation_s=0)).state is P


def test_a_stuck_postmaster_is_suspect_but_serves():
    state = at(P)
    for _ in range(10):
        state = step(state, probe(ProbeOutcome.FRESH_HANGS), 101.0, POLICY)
    assert (state.state, state.reason, state.answers) == (S, HealthReason.CONNECT_HANGS, True)


def test_full_and_refused_logins_are_signs_of_life():
    for outcome in (ProbeOutcome.FULL, ProbeOutcome.LOGIN_REFUSED, ProbeOutcome.STARTING, ProbeOutcome.FRESH_HANGS):
        assert step(at(P), probe(outcome), 105.0, POLICY).answered_at == 105.0


def test_refused_since_is_the_beginning_of_an_unbroken_refusal():
    state = step(at(P), probe(ProbeOutcome.REFUSED), 101.0, POLICY)
    state = step(state, fault(FaultKind.CONNECT_REFUSED), 101.5, POLICY)
    assert state.refused_since == 101.0
    state = step(state, probe(ProbeOutcome.STARTING), 102.0, POLICY)
    assert state.refused_since is None


def test_quarantine_ends_only_by_standing():
    state = step(at(P), Standing.STALE_PRIMARY, 101.0, POLICY)
    for outcome in ProbeOutcome:
        state = step(state, probe(outcome), 102.0, POLICY)
        assert state.state is Q
    assert step(state, Standing.BEHIND, 103.0, POLICY).state is Q
    assert step(state, Standing.STANDBY, 103.0, POLICY).state is B


evidence_drawn = st.one_of(
    st.sampled_from(list(ProbeOutcome)).map(probe),
    st.builds(fault, st.sampled_from(list(FaultKind)), st.sampled_from(["", "57P01", "25006"])),
    st.sampled_from(list(Standing)),
)


@given(st.lists(evidence_drawn, max_size=40))
def test_the_invariants_hold_in_any_order(evidence: list[Evidence]):
    state = EndpointHealth()
    now = 0.0
    for one in evidence:
        now += 0.3
        before, state = state, step(state, one, now, POLICY)
        assert state.since <= now
        assert (state.since == before.since) == (state.state is before.state)
        assert state.answered_at <= now
        if state.state is P:
            assert state.misses < POLICY.misses
        if isinstance(one, ProbeResult) and one.outcome is ProbeOutcome.REFUSED:
            assert state.refused_since is not None
            assert not state.answers
        if before.state is D and state.state not in (D, Q):
            assert isinstance(one, ProbeResult)
