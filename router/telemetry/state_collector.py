"""Gauges of what is now: read from the engine's views when Prometheus asks, on the event loop's thread."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from prometheus_client.core import Metric as Family
from prometheus_client.registry import Collector

from router.model.events import Health, Phase
from router.model.topology import Role
from router.model.views import CertificateTrouble, ClusterView, ConfigView, EndpointView, PoolView, TenantView
from router.telemetry import metric_catalogue as catalogue
from router.telemetry.series import GaugeReading


@dataclass(frozen=True, slots=True)
class RouterView:
    """What the gauges are read from."""

    clusters: Sequence[ClusterView] = ()
    tenants: Sequence[TenantView] = ()
    pools: Sequence[PoolView] = ()
    config: ConfigView = field(default_factory=ConfigView)
    certificates: Sequence[CertificateTrouble] = ()


class StateCollector(Collector):
    """Reads a view at each scrape."""

    def __init__(self, read: Callable[[], RouterView], version: str) -> None:
        self._read = read
        self._version = version

    def describe(self) -> Iterable[Family]:
        """Nothing to check at registration: the view may not be readable yet."""
        return ()

    def collect(self) -> Iterator[Family]:
        """For the registry."""
        view = self._read()
        build = GaugeReading(catalogue.BUILD)
        build.set(1, self._version)
        yield build.family
        yield from _config(view.config)
        yield _certificates(view.certificates)
        yield from _tenants(view.tenants)
        yield from _clusters(view.clusters)
        yield from _endpoints([(cluster.name, end) for cluster in view.clusters for end in cluster.endpoints])
        yield from _pools(view.pools)


def _config(config: ConfigView) -> Iterator[Family]:
    for metric, seconds in ((catalogue.CONFIG_AGE, config.age_s), (catalogue.CONFIG_REFUSED, config.refused_s)):
        reading = GaugeReading(metric)
        reading.set(seconds)
        yield reading.family


def _certificates(troubles: Sequence[CertificateTrouble]) -> Family:
    reading = GaugeReading(catalogue.CERTIFICATE_TROUBLE)
    for one in troubles:
        reading.set(one.for_s, one.port)
    return reading.family


def _tenants(tenants: Sequence[TenantView]) -> Iterator[Family]:
    in_flight, queued = GaugeReading(catalogue.IN_FLIGHT), GaugeReading(catalogue.QUEUED)
    listeners, channels = GaugeReading(catalogue.LISTENERS), GaugeReading(catalogue.CHANNELS)
    for tenant in tenants:
        in_flight.set(tenant.in_flight, tenant.name)
        queued.set(tenant.queued, tenant.name)
        if tenant.listeners or tenant.channels:  # most tenants never listen: no series for each of ten thousand
            listeners.set(tenant.listeners, tenant.name)
            channels.set(tenant.channels, tenant.name)
    yield from (reading.family for reading in (in_flight, queued, listeners, channels))


def _clusters(clusters: Sequence[ClusterView]) -> Iterator[Family]:
    held, phases = GaugeReading(catalogue.HELD), GaugeReading(catalogue.PHASE)
    terms, generations = GaugeReading(catalogue.TERM), GaugeReading(catalogue.GENERATION)
    findings, credentials = GaugeReading(catalogue.FINDINGS), GaugeReading(catalogue.CREDENTIAL_TROUBLE)
    for cluster in clusters:
        for one in cluster.credentials:
            credentials.set(one.for_s, cluster.name, one.endpoint, one.tenant or "")
        findings.set(len(cluster.findings), cluster.name)
        held.set(cluster.held, cluster.name)
        terms.set(cluster.term, cluster.name)
        generations.set(cluster.generation, cluster.name)
        for phase in Phase:
            phases.set(cluster.phase is phase, cluster.name, phase.value)
    yield from (reading.family for reading in (held, phases, terms, generations, findings, credentials))


def _endpoints(endpoints: Sequence[tuple[str, EndpointView]]) -> Iterator[Family]:
    plain: tuple[tuple[GaugeReading, Callable[[EndpointView], float]], ...] = (
        (GaugeReading(catalogue.LAG_SECONDS), lambda end: end.state.lag_s),
        (GaugeReading(catalogue.LAG_BYTES), lambda end: end.state.lag_bytes),
        (GaugeReading(catalogue.ENDPOINT_TERM), lambda end: end.state.term),
        (GaugeReading(catalogue.PROBE_SECONDS), lambda end: end.state.probe_s),
        (GaugeReading(catalogue.WEIGHT), lambda end: end.state.weight),
        (GaugeReading(catalogue.DRAINING), lambda end: end.state.draining),
        (GaugeReading(catalogue.ENDPOINT_IN_FLIGHT), lambda end: end.in_flight),
        (GaugeReading(catalogue.ENDPOINT_CONNECTIONS), lambda end: end.connections),
        (GaugeReading(catalogue.CONNECTIONS_CAP), lambda end: end.cap),
        (GaugeReading(catalogue.CONNECTIONS_GRANTED), lambda end: end.granted),
        (GaugeReading(catalogue.CONNECTIONS_IN_USE), lambda end: end.permits),
        (GaugeReading(catalogue.CONNECTIONS_WANTED), lambda end: end.wanted),
        (GaugeReading(catalogue.CONNECTIONS_RUNNING), lambda end: end.running),
        (GaugeReading(catalogue.CONCURRENCY_LIMIT), lambda end: end.concurrency.limit),
        (GaugeReading(catalogue.SLOWER_THAN_USUAL), lambda end: end.concurrency.slower),
    )
    roles, healths = GaugeReading(catalogue.ROLE), GaugeReading(catalogue.HEALTH)
    for cluster, end in endpoints:
        for role in Role:
            roles.set(end.state.role is role, cluster, end.state.name, role.value)
        for health in Health:
            healths.set(end.state.health is health, cluster, end.state.name, health.value)
        for reading, value_of in plain:
            value = value_of(end)
            if value >= 0:  # -1 means unknown, and unknown is no lag of -1
                reading.set(value, cluster, end.state.name)
    yield roles.family
    yield healths.family
    yield from (reading.family for reading, _ in plain)


def _pools(pools: Sequence[PoolView]) -> Iterator[Family]:
    plain: tuple[tuple[GaugeReading, Callable[[PoolView], float]], ...] = (
        (GaugeReading(catalogue.POOL_SIZE), lambda pool: pool.size),
        (GaugeReading(catalogue.POOL_MAX_SIZE), lambda pool: pool.max_size),
        (GaugeReading(catalogue.POOL_IDLE), lambda pool: pool.idle),
        (GaugeReading(catalogue.POOL_LEASED), lambda pool: pool.leased),
        (GaugeReading(catalogue.POOL_OPENING), lambda pool: pool.opening),
        (GaugeReading(catalogue.POOL_WAITING), lambda pool: pool.waiting),
        (GaugeReading(catalogue.POOL_LANES), lambda pool: pool.lanes),
        (GaugeReading(catalogue.LANES_IN_FLIGHT), lambda pool: pool.in_flight),
    )
    for pool in pools:
        for reading, value_of in plain:
            reading.set(value_of(pool), pool.tenant, pool.endpoint, pool.access.value)
    yield from (reading.family for reading, _ in plain)
