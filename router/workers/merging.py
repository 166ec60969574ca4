"""One view of many processes: loads added up, metrics' samples added up where a sum means something. Pure.

What a process counted stays counted after its end (`retired.py`): a sum that falls would look to Prometheus like a
restart of the whole router, and its next rate() would count everything again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, replace
from typing import Any, TypeVar

from prometheus_client.core import Metric as Family
from prometheus_client.samples import Sample

from router.model.identity import ClusterName, EndpointName, TenantName
from router.model.views import Allowance, CredentialTrouble, EndpointLoad, Load, PoolView, TenantLoad, WaiterView

SUMMED = frozenset({"counter", "histogram"})
"""Types whose samples are added up; those of any other say something about one process, and get its label."""
PROCESS = "process"
"""Label of what is not added up: control, or worker-1, worker-2 and so on."""
PARENT = "control"
_OWN_PREFIX = "pointsman_"
_TENANT = "tenant"

Gone = Callable[[str], bool]
"""Whether a tenant was removed; asked also of names that no tenant has (telemetry.recorder.NOBODY)."""


def merge_loads(loads: Iterable[Load]) -> Load:
    """The load of all processes together; pools of the same tenant, endpoint and access are one pool."""
    tenants: dict[TenantName, TenantLoad] = {}
    endpoints: dict[EndpointName, EndpointLoad] = {}
    pools: dict[tuple[TenantName, EndpointName, object], PoolView] = {}
    held: dict[ClusterName, int] = {}
    waiters: list[WaiterView] = []
    credentials: dict[tuple[TenantName | None, EndpointName], CredentialTrouble] = {}
    for load in loads:
        for tenant, one in load.tenants.items():
            tenants[tenant] = _added(tenants[tenant], one) if tenant in tenants else one
        for endpoint, busy in load.endpoints.items():
            endpoints[endpoint] = _added(endpoints[endpoint], busy) if endpoint in endpoints else busy
        for pool in load.pools:
            key = (pool.tenant, pool.endpoint, pool.access)
            pools[key] = _added(pools[key], pool) if key in pools else pool
        for cluster, count in load.held.items():
            held[cluster] = held.get(cluster, 0) + count
        waiters += load.waiters
        for trouble in load.credentials:
            longest = credentials.setdefault((trouble.tenant, trouble.endpoint), trouble)
            if trouble.for_s > longest.for_s:
                credentials[trouble.tenant, trouble.endpoint] = trouble
    waiters.sort(key=lambda one: -one.waited_s)
    return Load(tenants, endpoints, tuple(pools.values()), tuple(waiters), held, tuple(credentials.values()))


_KEPT = frozenset({"generation"})
_Numbers = TypeVar("_Numbers", TenantLoad, EndpointLoad, PoolView)


def _added(one: _Numbers, other: _Numbers) -> _Numbers:
    """Field by field; names are those of the first, and a pool's generation is the newer one."""
    sums: dict[str, Any] = {}
    for part in fields(one):
        mine, theirs = getattr(one, part.name), getattr(other, part.name)
        if part.name in _KEPT:
            sums[part.name] = max(mine, theirs)
        elif isinstance(mine, Allowance):
            sums[part.name] = mine.together_with(theirs)
        elif isinstance(mine, int | float):
            sums[part.name] = mine + theirs
    return replace(one, **sums)


def ended(load: Load, gone: Gone) -> Load:
    """What stays of a process that has ended: how its requests ended, and nothing of what it had open, nor of tenants
    that were removed."""
    zero = {"in_flight": 0, "held": 0, "queued": 0, "listeners": 0, "channels": 0}
    return Load({name: replace(one, **zero) for name, one in load.tenants.items() if not gone(name)})


def merge_families(parts: Mapping[str, Iterable[Family]]) -> list[Family]:
    """Families of several processes, by the processes' names: our counters and histograms added up, the rest labelled.

    Our gauges of the control process stay as they are: they tell of all processes already.
    """
    merged: dict[str, Family] = {}
    for process, families in parts.items():
        for family in families:
            known = merged.get(family.name)
            if known is None:
                known = merged[family.name] = Family(family.name, family.documentation, family.type, family.unit)
            own = family.name.startswith(_OWN_PREFIX)
            if family.type in SUMMED and own:
                _add_samples(known, family.samples)
            elif own and process == PARENT:
                known.samples += family.samples
            else:
                known.samples += [one._replace(labels={**one.labels, PROCESS: process}) for one in family.samples]
    return list(merged.values())


def counted(families: Iterable[Family], gone: Gone) -> list[Family]:
    """Of the families of a process that has ended, those that stay, without samples of tenants that were removed."""
    kept: list[Family] = []
    for one in families:
        if one.type in SUMMED and one.name.startswith(_OWN_PREFIX):
            family = Family(one.name, one.documentation, one.type, one.unit)
            family.samples = [sample for sample in one.samples if not gone(sample.labels.get(_TENANT, ""))]
            kept.append(family)
    return kept


def _add_samples(total: Family, samples: Iterable[Sample]) -> None:
    index = {(one.name, *sorted(one.labels.items())): place for place, one in enumerate(total.samples)}
    for sample in samples:
        key = (sample.name, *sorted(sample.labels.items()))
        place = index.get(key)
        if place is None:
            index[key] = len(total.samples)
            total.samples.append(sample)
        else:
            before = total.samples[place]
            total.samples[place] = before._replace(value=before.value + sample.value)
