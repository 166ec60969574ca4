"""Events → counters and histograms. The request path passes here once per request: cells are kept, not looked up."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from prometheus_client import CollectorRegistry

from router.model.events import (
    AttemptRetried,
    CertificatesChanged,
    ConfigChanged,
    ConnectFailed,
    ConnectionClosed,
    ConnectionMisplaced,
    FailoverEnded,
    FailoverStep,
    HandlerFailed,
    HealthChanged,
    HedgeOutcome,
    HoldEnded,
    HoldStarted,
    JournalWriteFailed,
    JwtKeysChanged,
    ListenGapped,
    LoginChanged,
    NotificationsHeard,
    Outcome,
    PhaseChanged,
    ReadHedged,
    RequestAdmitted,
    RequestFinished,
    SecretCommandEnded,
)
from router.model.identity import TenantName
from router.model.reasons import CloseReason, HealthReason, HoldEndReason, PhaseReason, RefuseReason, RetryReason
from router.model.request import Access, Method
from router.telemetry import metric_catalogue as catalogue
from router.telemetry.metric_catalogue import FailoverCause, RequestPhase, Success
from router.telemetry.series import CounterCell, CounterSeries, HistogramCell, HistogramSeries

UNKNOWN_TENANT = TenantName("(unknown)")
NOBODY = frozenset({UNKNOWN_TENANT, TenantName("")})
"""Names that no tenant can have."""
_CLAIMED_ONLY = frozenset({RefuseReason.UNAUTHENTICATED.value, RefuseReason.TENANT_DENIED.value})


class _TenantMethodCells:
    """What a finished request touches, for one tenant and method."""

    __slots__ = ("admitted", "execute", "outcomes", "phases", "rows", "seconds", "total")

    def __init__(self, recorder: Recorder, tenant: TenantName, method: Method) -> None:
        self.admitted = recorder.admitted.cell(tenant, method.value)
        self.outcomes: dict[Outcome, CounterCell] = {
            outcome: recorder.requests.cell(tenant, method.value, outcome.value) for outcome in Outcome
        }
        self.rows = recorder.rows.cell(tenant)
        self.seconds = recorder.database_seconds.cell(tenant)
        self.phases: dict[RequestPhase, HistogramCell] = {
            phase: recorder.phases.cell(phase.value, method.value) for phase in RequestPhase
        }
        self.total = self.phases[RequestPhase.TOTAL]
        self.execute = self.phases[RequestPhase.EXECUTE]


class Recorder:
    """Counts every event; one per router, on a registry of its own."""

    def __init__(self, registry: CollectorRegistry) -> None:
        counter = partial(self._counter, registry)

        def histogram(metric: catalogue.Metric) -> HistogramSeries:
            registry.register(series := HistogramSeries(metric))
            return series

        self._of_tenants: list[CounterSeries] = []
        self._configured: Callable[[TenantName], bool] = lambda _: True
        self.admitted = counter(catalogue.ADMITTED)
        self.requests = counter(catalogue.REQUESTS)
        self.rows = counter(catalogue.ROWS)
        self.database_seconds = counter(catalogue.DATABASE_SECONDS)
        self.copied_bytes = counter(catalogue.COPIED_BYTES)
        self.phases = histogram(catalogue.PHASES)
        self._errors = counter(catalogue.ERRORS)
        self._retries = counter(catalogue.RETRIES)
        self._hedges = counter(catalogue.HEDGES)
        self._notifications = counter(catalogue.NOTIFICATIONS)
        self._notifications_missed = counter(catalogue.NOTIFICATIONS_MISSED)
        self._listen_gaps = counter(catalogue.LISTEN_GAPS)
        self._holds_entered = counter(catalogue.HOLDS_ENTERED)
        self._holds_ended = counter(catalogue.HOLDS_ENDED)
        self._closed = counter(catalogue.CONNECTIONS_CLOSED)
        self._connect_failures = counter(catalogue.CONNECT_FAILURES)
        self._misplaced = counter(catalogue.CONNECTIONS_MISPLACED)
        self._phase_changes = counter(catalogue.PHASE_CHANGES)
        self._failovers = counter(catalogue.FAILOVERS)
        self._journal_failures = counter(catalogue.JOURNAL_FAILURES)
        self._failover_seconds = histogram(catalogue.FAILOVER_SECONDS)
        self._failover_steps = counter(catalogue.FAILOVER_STEPS)
        self._health_changes = counter(catalogue.HEALTH_CHANGES)
        self._reloads = counter(catalogue.RELOADS)
        self._certificate_changes = counter(catalogue.CERTIFICATE_CHANGES)
        self._jwt_key_changes = counter(catalogue.JWT_KEY_CHANGES)
        self._login_changes = counter(catalogue.LOGIN_CHANGES)
        self._secret_commands = counter(catalogue.SECRET_COMMANDS)
        self._handler_failures = counter(catalogue.HANDLER_FAILURES)
        self._cells: dict[TenantName, dict[Method, _TenantMethodCells]] = {}
        self._start_at_0()

    def _counter(self, registry: CollectorRegistry, metric: catalogue.Metric) -> CounterSeries:
        of_tenants = metric.labels[:1] == ("tenant",)
        registry.register(series := CounterSeries(metric, self._counts if of_tenants else None))
        if of_tenants:
            self._of_tenants.append(series)
        return series

    def _start_at_0(self) -> None:
        for method in Method:
            for phase in RequestPhase:
                self.phases.cell(phase.value, method.value)
            for reason in RetryReason:
                self._retries.cell(method.value, reason.value)
        for outcome in HedgeOutcome:
            self._hedges.cell(outcome.value)
        for result in Success:
            self._reloads.cell(result.value)
            self._jwt_key_changes.cell(result.value)
            self._secret_commands.cell(result.value)
            for port in ("callers", "operators"):
                self._certificate_changes.cell(port, result.value)

    def know_cluster(self, cluster: str, endpoints: Iterable[str]) -> None:
        """Start the series of a cluster at 0. May be called again; counters go on."""
        self._holds_entered.cell(cluster)
        self._failover_seconds.cell(cluster)
        self._journal_failures.cell(cluster)
        for hold_end in HoldEndReason:
            self._holds_ended.cell(cluster, hold_end.value)
        for change in PhaseReason:
            self._phase_changes.cell(cluster, change.value)
        for cause in FailoverCause:
            self._failovers.cell(cluster, cause.value)
        for endpoint in endpoints:
            self._connect_failures.cell(endpoint)
            for result in Success:
                self._login_changes.cell(endpoint, result.value)
            self._misplaced.cell(endpoint)
            for health in HealthReason:
                self._health_changes.cell(cluster, endpoint, health.value)
            for access in Access:
                for close in CloseReason:
                    self._closed.cell(endpoint, access.value, close.value)

    def know_tenants(self, configured: Callable[[TenantName], bool]) -> None:
        """Begin no series of tenants that are not configured: what outlasts its tenant would leave one for ever."""
        self._configured = configured

    def forget_tenants(self, names: Iterable[TenantName]) -> None:
        """Let go of the series of tenants that were removed. Should one come back, they begin at 0 again."""
        for name in names:
            self._cells.pop(name, None)
            for series in self._of_tenants:
                series.forget(name)

    def _counts(self, tenant: str) -> bool:
        return tenant in NOBODY or self._configured(TenantName(tenant))

    def _cells_of(self, tenant: TenantName, method: Method) -> _TenantMethodCells:
        cells = _TenantMethodCells(self, tenant, method)
        if self._counts(tenant):
            self._cells.setdefault(tenant, {})[method] = cells
        return cells

    def request_admitted(self, event: RequestAdmitted) -> None:
        """Count it."""
        try:
            cells = self._cells[event.tenant][event.method]
        except KeyError:
            cells = self._cells_of(event.tenant, event.method)
        cells.admitted.value += 1

    def request_finished(self, event: RequestFinished) -> None:
        """Count it: under 2 µs for a served request."""
        tenant, outcome = event.tenant, event.outcome
        if outcome is Outcome.REFUSED and event.reason in _CLAIMED_ONLY:
            tenant = UNKNOWN_TENANT  # a name that only was claimed must not become a series
        try:
            cells = self._cells[tenant][event.method]
        except KeyError:
            cells = self._cells_of(tenant, event.method)
        cells.outcomes[outcome].value += 1
        if outcome is not Outcome.SERVED:
            self._errors.cell(tenant, event.reason or outcome.value).value += 1
            if outcome is Outcome.REFUSED:
                return
        cells.rows.value += event.rows
        if event.copied_bytes:
            self.copied_bytes.cell(tenant, event.method.value).value += event.copied_bytes
        cells.total.observe(event.total_s)
        if event.executed_s:
            cells.execute.observe(event.executed_s)
            cells.seconds.value += event.executed_s
        if event.queued_s:
            cells.phases[RequestPhase.QUEUE].observe(event.queued_s)
        if event.held_s:
            cells.phases[RequestPhase.HOLD].observe(event.held_s)
        if event.acquired_s:
            cells.phases[RequestPhase.ACQUIRE].observe(event.acquired_s)
        if event.streamed_s:
            cells.phases[RequestPhase.STREAM].observe(event.streamed_s)

    def attempt_retried(self, event: AttemptRetried) -> None:
        """Count it."""
        self._retries.cell(event.method.value, event.reason.value).value += 1

    def read_hedged(self, event: ReadHedged) -> None:
        """Count it."""
        self._hedges.cell(event.outcome.value).value += 1

    def notifications_heard(self, event: NotificationsHeard) -> None:
        """Count them."""
        self._notifications.cell(event.tenant).value += event.delivered
        self._notifications_missed.cell(event.tenant).value += event.missed

    def listen_gapped(self, event: ListenGapped) -> None:
        """Count it."""
        self._listen_gaps.cell(event.tenant, event.reason.value).value += 1

    def hold_started(self, event: HoldStarted) -> None:
        """Count it."""
        self._holds_entered.cell(event.cluster).value += 1

    def hold_ended(self, event: HoldEnded) -> None:
        """Count it."""
        self._holds_ended.cell(event.cluster, event.reason.value).value += 1

    def health_changed(self, event: HealthChanged) -> None:
        """Count it."""
        self._health_changes.cell(event.cluster, event.endpoint, event.reason.value).value += 1

    def phase_changed(self, event: PhaseChanged) -> None:
        """Count it."""
        self._phase_changes.cell(event.cluster, event.reason.value).value += 1

    def failover_step(self, event: FailoverStep) -> None:
        """Count it."""
        result = Success.OK if event.ok else Success.FAILED
        self._failover_steps.cell(event.cluster, event.step, result.value).value += 1

    def failover_ended(self, event: FailoverEnded) -> None:
        """Count it, and its duration."""
        cause = FailoverCause.PROMOTED if event.promoted else FailoverCause.FOLLOWED
        self._failovers.cell(event.cluster, cause.value).value += 1
        self._failover_seconds.cell(event.cluster).observe(event.took_s)

    def journal_write_failed(self, event: JournalWriteFailed) -> None:
        """Count it."""
        self._journal_failures.cell(event.cluster).value += 1

    def connection_closed(self, event: ConnectionClosed) -> None:
        """Count it."""
        self._closed.cell(event.endpoint, event.access.value, event.reason.value).value += 1

    def connect_failed(self, event: ConnectFailed) -> None:
        """Count it."""
        self._connect_failures.cell(event.endpoint).value += 1

    def connection_misplaced(self, event: ConnectionMisplaced) -> None:
        """Count it."""
        self._misplaced.cell(event.endpoint).value += 1

    def config_changed(self, event: ConfigChanged) -> None:
        """Count it."""
        self._reloads.cell((Success.OK if event.applied else Success.FAILED).value).value += 1

    def certificates_changed(self, event: CertificatesChanged) -> None:
        """Count it."""
        self._certificate_changes.cell(event.port, (Success.OK if event.applied else Success.FAILED).value).value += 1

    def jwt_keys_changed(self, event: JwtKeysChanged) -> None:
        """Count it."""
        self._jwt_key_changes.cell((Success.OK if event.applied else Success.FAILED).value).value += 1

    def login_changed(self, event: LoginChanged) -> None:
        """Count it."""
        self._login_changes.cell(event.endpoint, (Success.FAILED if event.problem else Success.OK).value).value += 1

    def secret_command_ended(self, event: SecretCommandEnded) -> None:
        """Count it."""
        self._secret_commands.cell((Success.FAILED if event.problem else Success.OK).value).value += 1

    def handler_failed(self, event: HandlerFailed) -> None:
        """Count it."""
        self._handler_failures.cell(event.method).value += 1
