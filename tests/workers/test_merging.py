from __future__ import annotations

import pickle

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.core import Metric as Family

from router.model.events import Phase
from router.model.identity import ClusterName, EndpointName, Generation, TenantName, TopologyNumber
from router.model.request import Access
from router.model.state import ClusterState
from router.model.views import CredentialTrouble, EndpointLoad, Load, PoolView, TenantLoad, WaiterView, WaitPhase
from router.workers.emptying import Emptying
from router.workers.merging import PARENT, counted, ended, merge_families, merge_loads
from router.workers.retired import Retired

ACME, GLOBEX = TenantName("acme"), TenantName("globex")
N1 = EndpointName("n1")
MAIN = ClusterName("main")


def _pool(size: int, generation: int = 1, tenant: TenantName = ACME) -> PoolView:
    return PoolView(tenant, N1, Access.READ_ONLY, Generation(generation), size=size, max_size=8)


def _load(served: int, in_flight: int = 0, held: int = 0) -> Load:
    return Load(
        {ACME: TenantLoad(in_flight=in_flight, served=served)},
        {N1: EndpointLoad(in_flight=in_flight, connections=2)},
        (_pool(2),),
        (WaiterView(ACME, f"r{served}", "query", WaitPhase.EXECUTE, float(served)),),
        {MAIN: held},
    )


def test_loads_add_up_and_a_pool_in_two_processes_is_one() -> None:
    more = Load(pools=(_pool(1, 2), _pool(1, 1, GLOBEX)))
    merged = merge_loads([_load(3, in_flight=1, held=2), _load(4, held=5), more])
    assert merged.tenants[ACME] == TenantLoad(in_flight=1, served=7)
    assert merged.endpoints[N1].connections == 4
    assert [(one.tenant, one.size, one.max_size, one.generation) for one in merged.pools] == [
        (ACME, 5, 24, 2),
        (GLOBEX, 1, 8, 1),
    ]
    assert merged.held == {MAIN: 7}
    assert [one.request_id for one in merged.waiters] == ["r4", "r3"], "the longest wait first"


def test_a_login_that_is_in_trouble_in_two_processes_is_told_once_with_its_longest_time() -> None:
    parts = [Load(credentials=(CredentialTrouble(MAIN, N1, ACME, "refused", for_s),)) for for_s in (3.0, 5.0, 4.0)]
    assert [one.for_s for one in merge_loads(parts).credentials] == [5.0]


def test_nothing_is_nothing() -> None:
    assert merge_loads([]) == Load()


def test_of_a_process_that_ended_stays_how_requests_ended_only() -> None:
    left = ended(_load(9, in_flight=4, held=2), lambda _: False)
    assert left == Load({ACME: TenantLoad(served=9)})


def _counter(value: float, tenant: str = "acme") -> Family:
    family = CounterMetricFamily("pointsman_requests", "", labels=["tenant"])
    family.add_metric([tenant], value)
    return family


def _histogram(count: float, total: float) -> Family:
    family = HistogramMetricFamily("pointsman_request_seconds", "", labels=["phase"])
    family.add_metric(["total"], [("0.1", count), ("+Inf", count)], total)
    return family


def _gauge(name: str, value: float) -> Family:
    return GaugeMetricFamily(name, "", value=value)


def _samples(families: list[Family]) -> dict[tuple[object, ...], float]:
    return {(one.name, *sorted(one.labels.items())): one.value for family in families for one in family.samples}


def test_counters_and_histograms_add_up_series_by_series() -> None:
    merged = merge_families(
        {
            "worker-1": [_counter(3), _histogram(2, 0.5)],
            "worker-2": [_counter(4), _counter(1, "globex"), _histogram(1, 0.25)],
        }
    )
    assert _samples(merged) == {
        ("pointsman_requests_total", ("tenant", "acme")): 7,
        ("pointsman_requests_total", ("tenant", "globex")): 1,
        ("pointsman_request_seconds_bucket", ("le", "0.1"), ("phase", "total")): 3,
        ("pointsman_request_seconds_bucket", ("le", "+Inf"), ("phase", "total")): 3,
        ("pointsman_request_seconds_count", ("phase", "total")): 3,
        ("pointsman_request_seconds_sum", ("phase", "total")): 0.75,
    }
    assert len({one.name for one in merged}) == len(merged), "each family once"


def test_what_a_sum_says_nothing_about_is_labelled_and_the_parents_gauges_stand_for_all() -> None:
    parts = {
        PARENT: [_gauge("pointsman_cluster_term", 3), _gauge("process_resident_memory_bytes", 10)],
        "worker-1": [_gauge("process_resident_memory_bytes", 20), _gauge("pointsman_loop_lag_seconds", 0.1)],
    }
    assert _samples(merge_families(parts)) == {
        ("pointsman_cluster_term",): 3,
        ("process_resident_memory_bytes", ("process", PARENT)): 10,
        ("process_resident_memory_bytes", ("process", "worker-1")): 20,
        ("pointsman_loop_lag_seconds", ("process", "worker-1")): 0.1,
    }


def test_merging_changes_none_of_its_parts() -> None:
    part = _counter(3)
    merge_families({"worker-1": [part], "worker-2": [_counter(4)]})
    assert part.samples[0].value == 3


def test_of_a_process_that_ended_our_counts_stay() -> None:
    families = [_counter(3), _gauge("process_resident_memory_bytes", 20), _gauge("pointsman_x", 1)]
    kept = counted(families, lambda _: False)
    assert [one.name for one in kept] == ["pointsman_requests"]


def _per_tenant(**values: float) -> Family:
    family = CounterMetricFamily("pointsman_requests", "", labels=["tenant"])
    for tenant, value in values.items():
        family.add_metric([tenant.replace("nobody", "")], value)
    return family


def test_what_a_process_counted_of_removed_tenants_goes_with_them() -> None:
    retired = Retired()
    load = Load({name: TenantLoad(served=4) for name in (ACME, GLOBEX)})
    parts = [_per_tenant(acme=4, globex=4, nobody=1), _histogram(8, 0.5)]
    retired.add(load, parts, lambda _: False)
    retired.add(load, parts, lambda name: name == GLOBEX)  # it had not heard yet
    assert retired.load.tenants == {ACME: TenantLoad(served=8), GLOBEX: TenantLoad(served=4)}
    retired.forget([GLOBEX])
    assert retired.load.tenants == {ACME: TenantLoad(served=8)}
    kept = _samples(retired.families)
    per_tenant = {key[1]: value for key, value in kept.items() if key[0] == "pointsman_requests_total"}
    assert per_tenant == {("tenant", "acme"): 8, ("tenant", ""): 2}
    assert kept["pointsman_request_seconds_count", ("phase", "total")] == 16
    retired.add(load, parts, lambda _: False)  # it came back
    assert retired.load.tenants == {ACME: TenantLoad(served=12), GLOBEX: TenantLoad(served=4)}
    assert parts[0].samples == _per_tenant(acme=4, globex=4, nobody=1).samples


def test_removals_that_nobody_looks_at_are_not_remembered_for_ever() -> None:
    retired = Retired()
    retired.add(Load({ACME: TenantLoad(served=4)}), [_per_tenant(acme=4)], lambda _: False)
    for number in range(10_000):
        retired.forget([TenantName(f"tenant-{number}")])
    assert len(pickle.dumps(retired)) < 20_000
    assert retired.load.tenants == {ACME: TenantLoad(served=4)}


# --- rooms that empty ------------------------------------------------------------------------------------------


def _state(number: int, phase: Phase = Phase.DRAINING) -> ClusterState:
    return ClusterState(MAIN, phase, number=TopologyNumber(number))


def test_a_release_is_over_when_the_last_room_is_empty() -> None:
    rooms = Emptying()
    assert rooms.on_state(_state(5), [1, 2]) is False
    assert rooms.emptied(MAIN, 1, TopologyNumber(5)) is False
    assert rooms.emptied(MAIN, 1, TopologyNumber(5)) is False, "said twice"
    assert rooms.emptied(MAIN, 2, TopologyNumber(6)) is True


def test_without_workers_there_is_nothing_to_wait_for() -> None:
    assert Emptying().on_state(_state(5), []) is True


def test_what_was_said_before_this_release_began_does_not_count() -> None:
    rooms = Emptying()
    rooms.on_state(_state(5), [1])
    assert rooms.emptied(MAIN, 1, TopologyNumber(4)) is False
    rooms.on_state(_state(6, Phase.HOLDING), [1])
    assert rooms.emptied(MAIN, 1, TopologyNumber(5)) is False, "it holds again"
    rooms.on_state(_state(7), [1])
    assert rooms.emptied(MAIN, 1, TopologyNumber(6)) is False
    assert rooms.emptied(MAIN, 1, TopologyNumber(7)) is True


def test_a_dead_worker_holds_nothing() -> None:
    rooms = Emptying()
    rooms.on_state(_state(5), [1, 2])
    rooms.emptied(MAIN, 1, TopologyNumber(5))
    assert list(rooms.left(2)) == [MAIN]
    assert list(rooms.left(2)) == []


def test_who_joins_during_a_release_has_nothing_to_release() -> None:
    rooms = Emptying()
    rooms.on_state(_state(5), [1])
    rooms.on_state(_state(6), [1, 2])
    assert rooms.emptied(MAIN, 1, TopologyNumber(6)) is True
