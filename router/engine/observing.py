"""What a supervisor has observed of its cluster's endpoints: their health, their last claims, their lag.

Holds the state and applies the pure steps of decisions/ to it; does not decide about the cluster, and tells nobody.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from router.decisions import health
from router.decisions.cluster_facts import Facts, Seen, after_claim, gather, may_claim
from router.decisions.health import EndpointHealth
from router.decisions.machine import ClusterMachine
from router.decisions.primary import standing
from router.decisions.snapshot import replica_lag
from router.model.events import HealthChanged
from router.model.identity import EndpointName
from router.model.observation import Fault, FaultKind, ProbeResult
from router.model.topology import Cluster


class Observations:
    """Everything seen of one cluster's endpoints. Only its supervisor changes it."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._seen = {endpoint.name: Seen() for endpoint in cluster.endpoints}
        self._told = self._healths()

    @property
    def seen(self) -> Mapping[EndpointName, Seen]:
        """Each endpoint as last observed."""
        return self._seen

    def apply(self, cluster: Cluster) -> None:
        """Forget endpoints that are gone or have moved; know the new ones."""
        before = {endpoint.name: (endpoint.host, endpoint.port) for endpoint in self._cluster.endpoints}
        self._seen = {
            e.name: self._seen[e.name] if before.get(e.name) == (e.host, e.port) else Seen() for e in cluster.endpoints
        }
        self._cluster = cluster

    def is_news(self, fault: Fault) -> bool:
        """Whether a fault of the data path changes anything: most of a storm repeat what is known."""
        seen = self._seen[fault.endpoint]
        if fault.kind is FaultKind.CONNECT_REFUSED and seen.health.refused_since is not None:
            return False
        return health.step(seen.health, fault, 0.0, self._cluster.policy.probe) != seen.health

    def take_fault(self, fault: Fault, now: float) -> None:
        """Note what the data path saw."""
        seen = self._seen.get(fault.endpoint)
        if seen is not None:
            after = health.step(seen.health, fault, now, self._cluster.policy.probe)
            self._seen[fault.endpoint] = replace(seen, health=after)

    def take_probe(self, probe: ProbeResult, now: float) -> bool:
        """Note a probe; False when it tells nothing: the endpoint is gone, or a newer answer overtook it."""
        seen = self._seen.get(probe.endpoint)
        asked_at = probe.at - probe.took_s
        if seen is None or (probe.claim is not None and asked_at < seen.probed_at):
            return False
        after = replace(
            seen, health=health.step(seen.health, probe, now, self._cluster.policy.probe), took_s=probe.took_s
        )
        if probe.claim is not None:
            for name, lost_since in after_claim(self._seen, probe.endpoint, probe.claim, asked_at).items():
                self._seen[name] = replace(self._seen[name], lost_since=lost_since)
            after = replace(after, lost_since=self._seen[probe.endpoint].lost_since)
            caught_up_at = asked_at if probe.claim.lag_s == 0 else seen.caught_up_at
            lag_s = replica_lag(probe.claim, asked_at, caught_up_at)
            after = replace(after, claim=probe.claim, probed_at=asked_at, lag_s=lag_s, caught_up_at=caught_up_at)
        self._seen[probe.endpoint] = after
        return True

    def judge(self, machine: ClusterMachine, now: float) -> Facts:
        """Compare all claims; what that says about each server changes its health. Returns the facts then."""
        verdict = gather(self._seen, machine.primary, machine.known_term, machine.system_id).verdict
        for name, seen in self._seen.items():
            if seen.claim is None or not may_claim(seen.health):
                continue
            place = standing(name, seen.claim, verdict)
            if place is not None:
                after = health.step(seen.health, place, now, self._cluster.policy.probe)
                self._seen[name] = replace(seen, health=after)
        return gather(self._seen, machine.primary, machine.known_term, machine.system_id)

    def changes(self) -> list[HealthChanged]:
        """The changes of health since the last call."""
        before, self._told = self._told, self._healths()
        return [
            HealthChanged(self._cluster.name, name, before[name].state, after.state, after.reason)
            for name, after in self._told.items()
            if name in before and before[name].state is not after.state
        ]

    def _healths(self) -> dict[EndpointName, EndpointHealth]:
        return {name: seen.health for name, seen in self._seen.items()}
