"""The catalogue, what the sink counts, and the equations that the counts obey."""

import dataclasses
import re
import tracemalloc
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from router.model import events as ev
from router.model.checkup import Check, Finding, Severity
from router.model.events import Health, Outcome, Phase
from router.model.reasons import (
    CloseReason,
    GapReason,
    HealthReason,
    HoldEndReason,
    PhaseReason,
    RefuseReason,
    RetryReason,
)
from router.model.request import Access, Method
from router.model.state import EndpointState
from router.model.topology import FailoverMode, Role
from router.model.views import CertificateTrouble, ClusterView, CredentialTrouble, EndpointView, PoolView, TenantView
from router.telemetry.event_sink import TelemetrySink
from router.telemetry.metric_catalogue import METRICS, Kind, RequestPhase
from router.telemetry.state_collector import RouterView

Labels = dict[str, str]


def scrape(sink: TelemetrySink) -> dict[str, list[tuple[Labels, float]]]:
    """Every sample by its full name, read as Prometheus reads it."""
    found: dict[str, list[tuple[Labels, float]]] = {}
    for family in text_string_to_metric_families(generate_latest(sink.registry).decode()):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def total(samples: dict[str, list[tuple[Labels, float]]], name: str, **labels: str) -> float:
    return sum(value for has, value in samples.get(f"pointsman_{name}", []) if labels.items() <= has.items())


def finished(tenant: str, outcome: Outcome, reason: str = "", **more: float) -> ev.RequestFinished:
    return ev.RequestFinished(tenant, Method.QUERY, outcome, reason, total_s=0.001, **more)


PG1 = EndpointState("pg1", Role.PRIMARY, Health.UP, lag_s=0.0)
ENDPOINT = EndpointView("main", "h", 1, "a", PG1, 3, 4, cap=80, granted=60, permits=5, wanted=2)
VIEW = RouterView(
    clusters=(
        ClusterView(
            "main", Phase.STEADY, FailoverMode.FOLLOW, "pg1", 7, 2, 5, 1.0, "", (ENDPOINT,),
            credentials=(CredentialTrouble("main", "pg1", None, "refused", 12.0),),
        ),
    ),
    tenants=(TenantView("acme", "main", "acme", in_flight=6, queued=1, listeners=2, channels=1),),
    pools=(PoolView("acme", "pg1", Access.READ_ONLY, 1, 4, 1, 2, 1, 9, 8, 2, 33),),
    certificates=(CertificateTrouble("callers", "file ca.pem holds no certificates", 3.0),),
)
ALL_EVENTS = (
    ev.RequestAdmitted("acme", Method.QUERY),
    finished("acme", Outcome.FAILED, "bad_sql"),
    finished("acme", Outcome.SERVED, copied_bytes=1000),
    ev.AttemptRetried("acme", Method.QUERY, RetryReason.NOT_SENT, 2, "pg1", 0.1),
    ev.ReadHedged("acme", ev.HedgeOutcome.WON, "pg1"),
    ev.NotificationsHeard("acme", 5, 2),
    ev.ListenGapped("acme", GapReason.SLOW_CONSUMER, 0.5),
    ev.HoldStarted("acme", "main"),
    ev.HoldEnded("acme", "main", HoldEndReason.RELEASED, 0.5),
    ev.HealthChanged("main", "pg1", Health.UP, Health.DOWN, HealthReason.PROBE_TIMEOUT),
    ev.PhaseChanged("main", Phase.STEADY, Phase.STUCK, PhaseReason.NO_CANDIDATE, None, 1, 1),
    ev.FailoverStep("main", "promote", "pg2", False, 0.1),
    ev.FailoverEnded("main", "pg2", 2, 1.5, True),
    ev.SettingFound("main", Finding("pg1", Check.RETRY_INTERVAL, Severity.WARNING, "5 s", "ALTER SYSTEM")),
    ev.JournalWriteFailed("main", "/state/main.json cannot be written: no space left on device"),
    ev.ConnectionClosed("acme", "pg1", Access.READ_ONLY, CloseReason.IDLE),
    ev.ConnectFailed("acme", "pg1", "connection refused"),
    ev.ConnectionMisplaced("acme", "pg1", "the connection is to database globex, not acme"),
    ev.ConfigChanged(False, (), ("x",)),
    ev.CertificatesChanged("callers", False, "x"),
    ev.JwtKeysChanged(False, 0, "x"),
    ev.LoginChanged("main", "n1", "acme", "y"),
    ev.SecretCommandEnded("command x", "y"),
    ev.CredentialAlarm(ev.CredentialKind.LOGIN, "main/n1", "acme", ev.AlarmChange.BEGUN, "y"),
    ev.HandlerFailed("/pointsman.v1.QueryService/Query", "KeyError", "x.py:1"),
)


def test_names_are_unique_and_follow_prometheus_rules():
    names = [metric.full_name for metric in METRICS]
    assert len(names) == len(set(names))
    for metric in METRICS:
        assert re.fullmatch(r"pointsman_[a-z_]+", metric.full_name)
        assert metric.name.endswith("_total") == (metric.kind is Kind.COUNTER)
        assert metric.meaning.endswith(".")
        assert bool(metric.buckets) == (metric.kind is Kind.HISTOGRAM)
        assert list(metric.buckets) == sorted(set(metric.buckets))
        assert len(set(metric.labels)) == len(metric.labels)


def test_request_buckets_reach_from_a_tenth_of_a_millisecond_to_thirty_seconds():
    (phases,) = (metric for metric in METRICS if metric.name == "request_phase_seconds")
    assert (phases.buckets[0], phases.buckets[-1]) == (0.0001, 30.0)


def test_every_event_is_told_and_every_metric_exposed_with_its_labels():
    assert {type(event) for event in ALL_EVENTS} == set(ev.Event.__args__)
    sink = TelemetrySink(write=lambda *_, **__: None)
    sink.watch(lambda: VIEW, "1.2.3")
    for event in ALL_EVENTS:
        sink.emit(event)
    samples = scrape(sink)
    for metric in METRICS:
        name = metric.full_name + ("_count" if metric.kind is Kind.HISTOGRAM else "")
        if metric.name == "endpoint_lag_bytes":
            assert name not in samples, "unknown is told by absence"
            continue
        assert {frozenset(labels) for labels, _ in samples[name]} == {frozenset(metric.labels)}, metric.name


def test_copied_bytes_are_counted_also_where_the_copy_failed():
    sink = TelemetrySink()
    for outcome in (Outcome.SERVED, Outcome.FAILED):
        sink.emit(ev.RequestFinished("acme", Method.COPY_IN, outcome, rows=2, copied_bytes=500))
    assert total(scrape(sink), "copied_bytes_total", tenant="acme", method="copy_in") == 1000


def test_what_a_view_says_is_what_the_gauges_say():
    sink = TelemetrySink()
    sink.watch(lambda: VIEW, "1.2.3")
    samples = scrape(sink)
    assert total(samples, "build_info", version="1.2.3") == 1
    assert total(samples, "requests_in_flight", tenant="acme") == 6
    assert total(samples, "cluster_phase") == total(samples, "cluster_phase", phase="steady") == 1
    assert total(samples, "endpoint_role") == total(samples, "endpoint_role", endpoint="pg1", role="primary") == 1
    assert total(samples, "endpoint_health") == total(samples, "endpoint_health", health="up") == 1
    assert total(samples, "endpoint_lag_seconds", endpoint="pg1") == 0
    shares = [total(samples, f"endpoint_connections_{name}") for name in ("cap", "granted", "in_use", "wanted")]
    assert shares == [80, 60, 5, 2]
    assert total(samples, "pool_idle", access="read_only") == 1
    assert total(samples, "pool_lanes_in_flight") == 33


def test_labels_of_enums_start_at_zero():
    sink = TelemetrySink()
    sink.know_clusters({"main": ["pg1", "pg2"]})
    samples = scrape(sink)

    def values(name: str, label: str) -> set[str]:
        assert total(samples, name) == 0
        return {labels[label] for labels, _ in samples[f"pointsman_{name}"]}

    assert values("retries_total", "reason") == {reason.value for reason in RetryReason}
    assert values("holds_ended_total", "reason") == {reason.value for reason in HoldEndReason}
    assert values("connections_closed_total", "reason") == {reason.value for reason in CloseReason}
    assert values("endpoint_health_changes_total", "reason") == {reason.value for reason in HealthReason}
    assert values("cluster_phase_changes_total", "reason") == {reason.value for reason in PhaseReason}
    assert values("request_phase_seconds_count", "phase") == {phase.value for phase in RequestPhase}


def test_a_tenants_first_request_brings_all_outcomes_at_zero():
    sink = TelemetrySink()
    sink.emit(finished("acme", Outcome.SERVED))
    has = scrape(sink)["pointsman_requests_total"]
    assert {labels["outcome"]: value for labels, value in has} == {
        outcome.value: float(outcome is Outcome.SERVED) for outcome in Outcome
    }


@pytest.mark.parametrize("reason", [RefuseReason.UNAUTHENTICATED, RefuseReason.TENANT_DENIED])
def test_a_name_that_was_only_claimed_becomes_no_series(reason: RefuseReason):
    sink = TelemetrySink()
    sink.emit(finished("../etc", Outcome.REFUSED, reason.value))
    samples = scrape(sink)
    assert total(samples, "requests_total", tenant="(unknown)", outcome="refused") == 1
    assert "../etc" not in str(samples)


def test_a_removed_tenant_leaves_nothing_and_its_neighbour_keeps_all():
    sink = TelemetrySink(write=lambda *_, **__: None)
    configured = {"acme", "beta"}
    sink.know_tenants(lambda name: name in configured)
    told = [event for event in ALL_EVENTS if getattr(event, "tenant", None) == "acme"]
    for event in told:
        sink.emit(event)
        sink.emit(dataclasses.replace(event, tenant="beta"))
    before = scrape(sink)
    configured.remove("acme")
    sink.forget_tenants(["acme"])
    assert ours(scrape(sink)) == {name: left for name, had in ours(before).items() if (left := without("acme", had))}

    for event in told:  # what still ran, and what comes late
        sink.emit(event)
    sink.emit(finished("", Outcome.REFUSED, "bad_request"))
    late = scrape(sink)
    assert "acme" not in str(late)
    assert total(late, "requests_total", tenant="", outcome="refused") == 1
    served = total(before, "request_phase_seconds_count", phase="total")
    assert total(late, "request_phase_seconds_count", phase="total") == served + 2

    configured.add("acme")
    sink.emit(finished("acme", Outcome.SERVED))
    again = scrape(sink)
    assert total(again, "requests_total", tenant="acme", outcome="served") == 1
    assert total(again, "requests_total", tenant="acme") == 1


def ours(samples: dict[str, list[tuple[Labels, float]]]) -> dict[str, list[tuple[Labels, float]]]:
    return {name: found for name, found in samples.items() if name.startswith("pointsman_")}


def without(tenant: str, samples: list[tuple[Labels, float]]) -> list[tuple[Labels, float]]:
    return [one for one in samples if one[0].get("tenant") != tenant]


def test_tenants_that_come_and_go_leave_no_memory_behind():
    sink = TelemetrySink(write=lambda *_, **__: None)
    configured: set[str] = set()
    sink.know_tenants(configured.__contains__)

    def lives(first: int, last: int) -> None:
        for number in range(first, last):
            name = f"tenant-{number}"
            configured.add(name)
            sink.emit(ev.RequestAdmitted(name, Method.QUERY))
            sink.emit(finished(name, Outcome.FAILED, "bad_sql"))
            sink.emit(ev.ConnectFailed(name, "pg1", "refused"))
            sink.emit(ev.ConnectionMisplaced(name, "pg1", "x"))
            configured.remove(name)
            sink.forget_tenants([name])
            sink.emit(finished(name, Outcome.FAILED, "bad_sql"))

    lives(0, 10)
    tracemalloc.start()
    try:
        lives(10, 2000)
        assert tracemalloc.get_traced_memory()[0] < 20_000
    finally:
        tracemalloc.stop()


def test_two_routers_in_one_process_share_nothing():
    one, other = TelemetrySink(), TelemetrySink()
    one.emit(finished("acme", Outcome.SERVED))
    assert total(scrape(other), "requests_total") == 0


def test_phases_are_counted_where_the_request_was_and_not_elsewhere():
    sink = TelemetrySink()
    sink.emit(finished("acme", Outcome.SERVED, executed_s=0.004, held_s=2.0, rows=3))
    samples = scrape(sink)
    counts = {
        labels["phase"]: n
        for labels, n in samples["pointsman_request_phase_seconds_count"]
        if labels["method"] == "query"
    }
    assert counts == {"queue": 0, "hold": 1, "acquire": 0, "execute": 1, "stream": 0, "total": 1}
    at = total(samples, "request_phase_seconds_bucket", phase="execute", le="0.005")
    below = total(samples, "request_phase_seconds_bucket", phase="execute", le="0.0025")
    assert (at, below) == (1, 0)
    assert total(samples, "rows_total", tenant="acme") == 3
    assert total(samples, "database_seconds_total", tenant="acme") == pytest.approx(0.004)


def test_a_mistake_in_telemetry_fails_no_request():
    complaints = []
    sink = TelemetrySink(level="debug", write=lambda *_, **__: 1 / 0)
    sink._complaints = type("Fake", (), {"error": lambda _self, event, **fields: complaints.append((event, fields))})()
    sink.emit(finished("acme", Outcome.SERVED))
    sink.emit(object())
    assert [fields["error"] for _, fields in complaints] == ["ZeroDivisionError", "KeyError"]


@dataclasses.dataclass
class World:
    """A small model of a router that emits what a real one would."""

    sink: TelemetrySink
    running: list[str] = dataclasses.field(default_factory=list)
    held: Counter[str] = dataclasses.field(default_factory=Counter)

    def view(self) -> RouterView:
        flights = Counter(self.running)
        return RouterView(
            clusters=[ClusterView("main", Phase.STEADY, FailoverMode.FOLLOW, held=sum(self.held.values()))],
            tenants=[TenantView(name, "main", name, in_flight=count) for name, count in flights.items()],
        )

    def step(self, tenant: str, act: str, outcome: Outcome, reason: str, end: HoldEndReason) -> None:
        if act == "admit":
            self.running.append(tenant)
            self.sink.emit(ev.RequestAdmitted(tenant, Method.QUERY))
        elif act == "refuse":
            self.sink.emit(finished(tenant, Outcome.REFUSED, reason))
        elif act == "finish" and tenant in self.running:
            self.running.remove(tenant)
            why = "" if outcome is Outcome.SERVED else reason
            self.sink.emit(finished(tenant, Outcome.FAILED if outcome is Outcome.REFUSED else outcome, why))
        elif act == "hold":
            self.held[tenant] += 1
            self.sink.emit(ev.HoldStarted(tenant, "main"))
        elif act == "unhold" and self.held[tenant]:
            self.held[tenant] -= 1
            self.sink.emit(ev.HoldEnded(tenant, "main", end, 0.1))


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["acme", "beta"]),
        st.sampled_from(["admit", "finish", "refuse", "hold", "unhold"]),
        st.sampled_from(Outcome),
        st.sampled_from(["", "bad_sql", "deadline", "queue_full"]),
        st.sampled_from(HoldEndReason),
    ),
    max_size=60,
)


@given(STEPS)
@settings(max_examples=60, deadline=None)
def test_the_equations_hold_after_any_sequence(steps):
    world = World(TelemetrySink())
    world.sink.watch(world.view, "x")
    for step in steps:
        world.step(*step)
    samples = scrape(world.sink)
    for tenant in ("acme", "beta"):
        ended = {outcome: total(samples, "requests_total", tenant=tenant, outcome=outcome.value) for outcome in Outcome}
        admitted = total(samples, "requests_admitted_total", tenant=tenant)
        in_flight = total(samples, "requests_in_flight", tenant=tenant)
        refused = ended.pop(Outcome.REFUSED)
        assert admitted == sum(ended.values()) + in_flight
        errors = total(samples, "request_errors_total", tenant=tenant)
        assert errors == ended[Outcome.FAILED] + ended[Outcome.CANCELLED] + refused
    counted = total(samples, "request_phase_seconds_count", phase="total")
    assert counted == total(samples, "requests_total") - total(samples, "requests_total", outcome="refused")
    assert total(samples, "holds_entered_total") == total(samples, "holds_ended_total") + total(samples, "holds_held")
