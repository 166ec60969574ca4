"""From healths and claims to facts."""

import pytest

from router.decisions.cluster_facts import Seen, Sign, after_claim, gather, read_sign
from router.decisions.health import EndpointHealth
from router.model.events import Health
from router.model.identity import EndpointName, Term
from router.model.observation import RoleClaim
from router.model.reasons import HealthReason

N1, N2, N3 = (EndpointName(name) for name in ("n1", "n2", "n3"))
WRITES = RoleClaim(in_recovery=False, system_id=7, timeline=Term(1))
FOLLOWS = RoleClaim(in_recovery=True, system_id=7, timeline=Term(1))


def health(state: Health, reason: HealthReason = HealthReason.PROBE_OK, **told: object) -> EndpointHealth:
    return EndpointHealth(state, reason, **told)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("found", "claim", "sign"),
    [
        (health(Health.UP), WRITES, Sign.SERVES),
        (health(Health.UP), FOLLOWS, Sign.DEMOTED),
        (health(Health.PROBATION), WRITES, Sign.SERVES),
        (health(Health.SUSPECT, HealthReason.CONNECTION_LOST), WRITES, Sign.DOUBTED),
        (health(Health.SUSPECT, HealthReason.PROBE_TIMEOUT), WRITES, Sign.DOUBTED),
        (health(Health.SUSPECT, HealthReason.CONNECT_HANGS), WRITES, Sign.SERVES),
        (health(Health.SUSPECT, HealthReason.LOGIN_REFUSED), WRITES, Sign.SERVES),
        (health(Health.SUSPECT, HealthReason.STARTING_UP), WRITES, Sign.STARTING),
        (health(Health.DOWN, HealthReason.STARTING_UP), WRITES, Sign.STARTING),
        (health(Health.DOWN, HealthReason.CONNECT_REFUSED, refused_since=1.0), WRITES, Sign.REFUSED),
        (health(Health.DOWN, HealthReason.PROBE_TIMEOUT), WRITES, Sign.SILENT),
        (health(Health.QUARANTINED, HealthReason.FOREIGN_SYSTEM), WRITES, Sign.ABSENT),
        (health(Health.UNKNOWN, HealthReason.NOT_PROBED), None, Sign.DOUBTED),
    ],
)
def test_how_an_accepted_primary_looks(found: EndpointHealth, claim: RoleClaim | None, sign: Sign):
    assert read_sign(found, claim) is sign


def test_only_servers_that_answer_make_claims():
    down = health(Health.DOWN, HealthReason.CONNECT_REFUSED, refused_since=1.0)
    seen = {N1: Seen(down, WRITES), N2: Seen(health(Health.UP), FOLLOWS)}
    facts = gather(seen, N1, Term(1), 7)
    assert (facts.verdict.primary, facts.sign, facts.refused_since) == (None, Sign.REFUSED, 1.0)
    assert [(s.name, s.answers) for s in facts.standbys] == [(N2, True)]


def test_a_quarantined_server_is_heard_so_that_it_can_get_out():
    old = health(Health.QUARANTINED, HealthReason.OLD_TERM)
    seen = {N1: Seen(old, WRITES), N2: Seen(health(Health.UP), RoleClaim(False, 7, Term(2)))}
    assert gather(seen, N2, Term(2), 7).verdict.stale == (N1,)


def test_foreign_servers_are_no_standbys():
    seen = {
        N1: Seen(health(Health.UP), WRITES),
        N2: Seen(health(Health.UP), FOLLOWS),
        N3: Seen(health(Health.UP), RoleClaim(True, 8, Term(1))),
    }
    facts = gather(seen, N1, Term(1), 7)
    assert [s.name for s in facts.standbys] == [N2]
    assert facts.all_probed


def test_all_probed_means_every_one():
    assert not gather({N1: Seen(health(Health.UP), WRITES), N2: Seen()}, None, Term(0), 0).all_probed


def test_silence_is_explained_by_what_each_server_did() -> None:
    down = EndpointHealth(Health.DOWN, HealthReason.CONNECT_REFUSED)
    locked = EndpointHealth(Health.DOWN, HealthReason.LOGIN_REFUSED)
    a, b = EndpointName("a"), EndpointName("b")
    mixed = gather({a: Seen(down), b: Seen(locked)}, None, Term(0), 0).verdict.detail
    assert mixed == "no server of the cluster answers (a connect_refused, b login_refused)"
    refused = gather({a: Seen(locked), b: Seen(locked)}, None, Term(0), 0).verdict.detail
    assert "control login" in refused


def test_one_that_streams_again_restarts_the_time_of_all():
    alone = Seen(health(Health.UP), FOLLOWS, probed_at=9.9, lost_since=9.0)
    seen = {N1: Seen(), N2: alone, N3: alone}
    streams = RoleClaim(in_recovery=True, system_id=7, timeline=Term(1), receiver_alive=True, receiver_silent_s=0.1)
    assert after_claim(seen, N2, FOLLOWS, 10.0) == {}, "nothing new"
    assert after_claim(seen, N2, streams, 10.0) == {N2: None, N3: 10.0}
    assert after_claim(seen, N2, WRITES, 10.0) == {N2: None}, "promoted: it hears nobody"
    assert after_claim({**seen, N2: Seen()}, N2, streams, 10.0) == {}, "it was never without"
