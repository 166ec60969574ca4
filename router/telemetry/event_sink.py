"""The one emit(): each event is counted, and logged when its level asks for it. Never raises, never waits."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, ProcessCollector

from router.model import events
from router.model.events import CredentialAlarm, Event, RequestAdmitted, RequestFinished
from router.model.identity import TenantName
from router.telemetry.audit_log import AuditLog, of_alarm
from router.telemetry.event_log import EventLog, Write
from router.telemetry.recorder import Recorder
from router.telemetry.state_collector import RouterView, StateCollector

Handler = Callable[[Any], None]


class TelemetrySink:
    """ports.EventSink. One per router, with a registry of its own: nothing is global."""

    def __init__(
        self,
        *,
        level: str = "info",
        write: Write | None = None,
        audit: AuditLog | None = None,
    ) -> None:
        """level: debug, info, warning or error. write: structlog's log() of the logger to use. audit: None: no audit
        log."""
        self.registry = CollectorRegistry()
        self.recorder = Recorder(self.registry)
        ProcessCollector(registry=self.registry)
        self._complaints = structlog.get_logger("router.telemetry")
        self._log = EventLog(write or structlog.get_logger("router").log, threshold_of(level))
        self._audit = audit
        self._handlers: Mapping[type, tuple[Handler, ...]] = {
            **_handlers(self.recorder, self._log),
            CredentialAlarm: (self._record, self._log.credential_alarm),
        }

    def set_level(self, level: str) -> None:
        """Change the least important level that is written."""
        self._log.threshold = threshold_of(level)

    def know_clusters(self, clusters: Mapping[str, Iterable[str]]) -> None:
        """Start the series of clusters and their endpoints at 0; call again after a reload."""
        for cluster, endpoints in clusters.items():
            self.recorder.know_cluster(cluster, endpoints)

    def know_tenants(self, configured: Callable[[TenantName], bool]) -> None:
        """Count only for tenants that are configured. Call once."""
        self.recorder.know_tenants(configured)

    def forget_tenants(self, names: Collection[TenantName]) -> None:
        """Let go of what was counted for tenants that were removed, once they are configured no more."""
        self.recorder.forget_tenants(names)
        self._log.forget_tenants(names)

    def watch(self, read: Callable[[], RouterView], version: str) -> None:
        """Expose the gauges of what is now; read is called at each scrape, on the event loop's thread. Call once."""
        self.registry.register(StateCollector(read, version))

    def _record(self, alarm: CredentialAlarm) -> None:
        if self._audit is not None:
            self._audit.record(of_alarm(alarm))

    def emit(self, event: Event) -> None:
        """Count and log an event."""
        try:
            # The request path first: no second look-up, no call into the log unless it will write.
            if type(event) is RequestAdmitted:
                self.recorder.request_admitted(event)
                return
            if type(event) is RequestFinished:
                self.recorder.request_finished(event)
                if self._log.threshold <= logging.DEBUG or (event.reason and self._log.wants(event)):
                    self._log.request_finished(event)
                return
            for handle in self._handlers[type(event)]:
                handle(event)
        except Exception as error:
            # A mistake here must not fail the request that is being told about; it is told once more, plainly.
            self._complaints.error("event lost", kind=type(event).__name__, error=type(error).__name__)


def threshold_of(level: str) -> int:
    """The logging module's number of a level's name. ValueError for an unknown one."""
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise ValueError(f"unknown log level {level!r}")
    return number


def _handlers(recorder: Recorder, log: EventLog) -> dict[type, tuple[Handler, ...]]:
    return {
        events.RequestAdmitted: (recorder.request_admitted,),
        events.RequestFinished: (recorder.request_finished, log.request_finished),
        events.AttemptRetried: (recorder.attempt_retried, log.attempt_retried),
        events.ReadHedged: (recorder.read_hedged, log.read_hedged),
        events.NotificationsHeard: (recorder.notifications_heard,),
        events.ListenGapped: (recorder.listen_gapped, log.listen_gapped),
        events.HoldStarted: (recorder.hold_started, log.hold_started),
        events.HoldEnded: (recorder.hold_ended, log.hold_ended),
        events.HealthChanged: (recorder.health_changed, log.health_changed),
        events.PhaseChanged: (recorder.phase_changed, log.phase_changed),
        events.FailoverStep: (recorder.failover_step, log.failover_step),
        events.FailoverEnded: (recorder.failover_ended, log.failover_ended),
        events.JournalWriteFailed: (recorder.journal_write_failed, log.journal_write_failed),
        events.SettingFound: (log.setting_found,),
        events.ConnectionClosed: (recorder.connection_closed, log.connection_closed),
        events.ConnectFailed: (recorder.connect_failed, log.connect_failed),
        events.ConnectionMisplaced: (recorder.connection_misplaced, log.connection_misplaced),
        events.ConfigChanged: (recorder.config_changed, log.config_changed),
        events.CertificatesChanged: (recorder.certificates_changed, log.certificates_changed),
        events.JwtKeysChanged: (recorder.jwt_keys_changed, log.jwt_keys_changed),
        events.LoginChanged: (recorder.login_changed, log.login_changed),
        events.SecretCommandEnded: (recorder.secret_command_ended, log.secret_command_ended),
        events.HandlerFailed: (recorder.handler_failed, log.handler_failed),
    }
