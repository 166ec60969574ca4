"""What a supervisor remembers of its endpoints."""

from router.decisions.machine import ClusterMachine
from router.engine.observing import Observations
from router.model.events import Health
from router.model.identity import EndpointName, Term
from router.model.observation import Fault, FaultKind, ProbeOutcome, ProbeResult, RoleClaim, Stage
from tests.support.fake_servers import FakeServers

N1, N2 = EndpointName("n1"), EndpointName("n2")
CLUSTER = FakeServers.of(2).cluster()


def answer(name: EndpointName, at: float, took_s: float, term: int = 1, *, in_recovery: bool = False) -> ProbeResult:
    return ProbeResult(name, ProbeOutcome.OK, at, took_s, RoleClaim(in_recovery, 7, Term(term)))


def test_an_answer_that_a_newer_one_overtook_tells_nothing():
    observed = Observations(CLUSTER)
    assert observed.take_probe(answer(N1, at=10.2, took_s=0.01, term=2), 10.2)
    assert not observed.take_probe(answer(N1, at=10.3, took_s=0.4, term=1), 10.3)
    claim = observed.seen[N1].claim
    assert claim is not None
    assert claim.timeline == 2


def test_endpoints_that_are_not_configured_tell_nothing():
    assert not Observations(CLUSTER).take_probe(answer(EndpointName("n9"), 1.0, 0.1), 1.0)


def test_only_news_are_news():
    observed = Observations(CLUSTER)
    observed.take_probe(answer(N1, 10.0, 0.1), 10.0)
    for kind in (FaultKind.CONNECTION_LOST, FaultKind.CONNECT_REFUSED):
        fault = Fault(kind, Stage.EXECUTE, endpoint=N1)
        assert observed.is_news(fault)
        observed.take_fault(fault, 10.1)
        assert not observed.is_news(fault)
    assert not observed.is_news(Fault(FaultKind.SERVER_ERROR, Stage.EXECUTE, sqlstate="23505", endpoint=N2))


def test_changes_are_told_once():
    observed = Observations(CLUSTER)
    observed.take_probe(answer(N1, 10.0, 0.1), 10.0)
    observed.judge(ClusterMachine(CLUSTER.name), 10.0)
    [change] = observed.changes()
    assert (change.endpoint, change.before, change.after) == (N1, Health.UNKNOWN, Health.UP)
    assert observed.changes() == []
