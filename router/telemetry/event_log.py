"""Events → log lines: one voice, the level by what it means to an operator, never SQL text or parameters."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from enum import Enum
from typing import Any

from router.model.checkup import Severity
from router.model.events import (
    AlarmChange,
    AttemptRetried,
    CertificatesChanged,
    ConfigChanged,
    ConnectFailed,
    ConnectionClosed,
    ConnectionMisplaced,
    CredentialAlarm,
    CredentialKind,
    FailoverEnded,
    FailoverStep,
    HandlerFailed,
    Health,
    HealthChanged,
    HoldEnded,
    HoldStarted,
    JournalWriteFailed,
    JwtKeysChanged,
    ListenGapped,
    LoginChanged,
    Outcome,
    Phase,
    PhaseChanged,
    ReadHedged,
    RequestFinished,
    SecretCommandEnded,
    SettingFound,
)
from router.model.reasons import CloseReason, RefuseReason

_NEEDS_A_LOOK = frozenset(
    reason.value for reason in (RefuseReason.INTERNAL, RefuseReason.CORRUPTION, RefuseReason.PROTOCOL)
)
_ORDINARY_CLOSES = frozenset(
    {CloseReason.LIFETIME, CloseReason.IDLE, CloseReason.DRAIN, CloseReason.SHUTDOWN, CloseReason.SESSION_END}
    | {CloseReason.RECLAIMED}
)
_PHASE_LEVELS = {
    Phase.STARTING: logging.INFO,
    Phase.STEADY: logging.INFO,
    Phase.DRAINING: logging.INFO,
    Phase.SUSPECT: logging.WARNING,
    Phase.HOLDING: logging.WARNING,
    Phase.PROMOTING: logging.WARNING,
    Phase.STUCK: logging.ERROR,
}

Write = Callable[..., Any]
"""structlog's log(level, event, **fields)."""


class EventLog:
    """Writes the events that reach the threshold; building a line that nobody reads costs nothing."""

    def __init__(self, write: Write, threshold: int) -> None:
        self._write = write
        self.threshold = threshold
        """A level of the logging module."""
        self._repeats: dict[tuple[str, str], int] = {}
        """How often the same was told, by whose it is and the endpoint."""

    def forget_tenants(self, names: Collection[str]) -> None:
        """Count no repetitions of tenants that were removed any more."""
        if names and self._repeats:
            gone = {*names, *map(_misplaced, names)}
            self._repeats = {key: times for key, times in self._repeats.items() if key[0] not in gone}

    def _line(self, level: int, name: str, **fields: object) -> None:
        if level >= self.threshold:
            shown = {key: _plain(value) for key, value in fields.items() if value not in ("", None, ())}
            self._write(level, name, **shown)

    @property
    def wants_requests(self) -> bool:
        """Whether each request's end is written."""
        return self.threshold <= logging.DEBUG

    def request_finished(self, event: RequestFinished) -> None:
        """One finishing event per request at debug; what nobody should ever see, at error."""
        bad = event.reason in _NEEDS_A_LOOK
        times = {
            f"{name}_ms": round(seconds * 1000, 3)
            for name, seconds in (
                ("queued", event.queued_s),
                ("held", event.held_s),
                ("acquired", event.acquired_s),
                ("executed", event.executed_s),
                ("streamed", event.streamed_s),
                ("total", event.total_s),
            )
            if seconds
        }
        self._line(
            logging.ERROR if bad else logging.DEBUG,
            "request finished",
            tenant=event.tenant,
            method=event.method,
            outcome=event.outcome,
            reason=event.reason,
            endpoint=event.endpoint,
            role=event.role if event.endpoint else "",
            request_id=event.request_id,
            attempts=event.attempts,
            rows=event.rows if event.outcome is Outcome.SERVED else None,
            **times,
        )

    def wants(self, event: RequestFinished) -> bool:
        """Whether this request's end is written though requests in general are not."""
        return event.reason in _NEEDS_A_LOOK

    def attempt_retried(self, event: AttemptRetried) -> None:
        """At debug."""
        self._line(
            logging.DEBUG,
            "attempt retried",
            tenant=event.tenant,
            method=event.method,
            reason=event.reason,
            attempt=event.attempt,
            endpoint=event.endpoint,
            pause_ms=round(event.pause_s * 1000, 1),
        )

    def read_hedged(self, event: ReadHedged) -> None:
        """At debug."""
        self._line(
            logging.DEBUG, "read hedged", tenant=event.tenant, outcome=event.outcome, endpoint=event.endpoint
        )

    def listen_gapped(self, event: ListenGapped) -> None:
        """At debug: what made the gap is told elsewhere, and louder."""
        self._line(
            logging.DEBUG, "listen gapped", tenant=event.tenant, reason=event.reason, lasted_s=round(event.lasted_s, 3)
        )

    def hold_started(self, event: HoldStarted) -> None:
        """At debug."""
        self._line(logging.DEBUG, "hold started", tenant=event.tenant, cluster=event.cluster)

    def hold_ended(self, event: HoldEnded) -> None:
        """At debug."""
        self._line(
            logging.DEBUG,
            "hold ended",
            tenant=event.tenant,
            cluster=event.cluster,
            reason=event.reason,
            waited_ms=round(event.waited_s * 1000, 1),
        )

    def health_changed(self, event: HealthChanged) -> None:
        """Good news at info, bad at warning."""
        good = event.after in (Health.UP, Health.PROBATION)
        if good:
            self._repeats = {key: times for key, times in self._repeats.items() if key[1] != event.endpoint}
        self._line(
            logging.INFO if good else logging.WARNING,
            "endpoint health changed",
            cluster=event.cluster,
            endpoint=event.endpoint,
            before=event.before,
            after=event.after,
            reason=event.reason,
        )

    def phase_changed(self, event: PhaseChanged) -> None:
        """At the level of the phase entered."""
        self._line(
            _PHASE_LEVELS[event.after],
            "cluster phase changed",
            cluster=event.cluster,
            before=event.before,
            after=event.after,
            reason=event.reason,
            primary=event.primary,
            term=event.term,
            generation=event.generation,
            detail=event.detail,
        )

    def failover_step(self, event: FailoverStep) -> None:
        """A step that failed is an error."""
        self._line(
            logging.INFO if event.ok else logging.ERROR,
            "failover step done" if event.ok else "failover step failed",
            cluster=event.cluster,
            step=event.step,
            endpoint=event.endpoint,
            took_ms=round(event.took_s * 1000, 1),
            detail=event.detail,
        )

    def failover_ended(self, event: FailoverEnded) -> None:
        """At warning: an operator wants to know, also when all went well."""
        self._line(
            logging.WARNING,
            "failover ended",
            cluster=event.cluster,
            primary=event.primary,
            term=event.term,
            took_ms=round(event.took_s * 1000, 1),
            promoted=event.promoted,
        )

    def journal_write_failed(self, event: JournalWriteFailed) -> None:
        """An error: a router that is restarted now may not know what it must not forget."""
        self._line(logging.ERROR, "journal not written", cluster=event.cluster, message=event.message)

    def setting_found(self, event: SettingFound) -> None:
        """What is wrong with a server, and the fix."""
        found = event.finding
        self._line(
            logging.ERROR if found.severity is Severity.ERROR else logging.WARNING,
            "setting found",
            cluster=event.cluster,
            endpoint=found.endpoint,
            check=found.check.value,
            message=found.message,
            fix=found.fix,
        )

    def connection_closed(self, event: ConnectionClosed) -> None:
        """Ordinary ends at debug, others at info."""
        self._line(
            logging.DEBUG if event.reason in _ORDINARY_CLOSES else logging.INFO,
            "connection closed",
            tenant=event.tenant,
            endpoint=event.endpoint,
            access=event.access,
            reason=event.reason,
        )

    def connection_misplaced(self, event: ConnectionMisplaced) -> None:
        """At error: the configuration points a tenant at what is not its own. Repetitions as with connect_failed."""
        key = (_misplaced(event.tenant), event.endpoint)
        times = self._repeats[key] = self._repeats.get(key, 0) + 1
        if times & (times - 1) == 0:
            self._line(
                logging.ERROR,
                "connection is not the tenant's",
                tenant=event.tenant,
                endpoint=event.endpoint,
                problem=event.problem,
            )

    def connect_failed(self, event: ConnectFailed) -> None:
        """The same failure again is written only the 2nd, 4th, 8th ... time: a dead server fails many connects."""
        key = (event.tenant, event.endpoint)
        times = self._repeats[key] = self._repeats.get(key, 0) + 1
        if times & (times - 1) == 0:
            self._line(
                logging.WARNING,
                "connect failed",
                tenant=event.tenant,
                endpoint=event.endpoint,
                error=event.message,
                times=times,
            )

    def config_changed(self, event: ConfigChanged) -> None:
        """A refused configuration is an error: the operator believes that it is in force."""
        self._line(
            logging.INFO if event.applied else logging.ERROR,
            "configuration applied" if event.applied else "configuration refused",
            changes=event.changes,
            problems=event.problems,
        )

    def certificates_changed(self, event: CertificatesChanged) -> None:
        """New ones that are no good are an error: the old ones end some day."""
        self._line(
            logging.INFO if event.applied else logging.ERROR,
            "certificates renewed" if event.applied else "certificates not renewed, the old ones go on",
            port=event.port,
            fingerprint=event.fingerprint,
            problem=event.problem,
        )

    def jwt_keys_changed(self, event: JwtKeysChanged) -> None:
        """Keys that cannot be had are an error: the old ones end some day."""
        self._line(
            logging.INFO if event.applied else logging.ERROR,
            "keys for signed tokens renewed" if event.applied else "keys for signed tokens not renewed",
            keys=event.keys,
            problem=event.problem,
        )

    def login_changed(self, event: LoginChanged) -> None:
        """One that is refused is an error: the former one ends some day."""
        self._line(
            logging.ERROR if event.problem else logging.INFO,
            "new login refused, the former one goes on" if event.problem else "new login in use",
            cluster=event.cluster,
            endpoint=event.endpoint,
            tenant=event.tenant,
            problem=event.problem,
        )

    def secret_command_ended(self, event: SecretCommandEnded) -> None:
        """One that fails is an error: what it printed before, if anything, ends some day."""
        words = "password command failed, what it printed before goes on" if event.kept else "password command failed"
        self._line(
            logging.ERROR if event.problem else logging.DEBUG,
            words if event.problem else "password command run",
            command=event.command,
            problem=event.problem,
        )

    def credential_alarm(self, event: CredentialAlarm) -> None:
        """Of certificates, which a port without new connections would not tell; the others are told with each try."""
        if event.kind is CredentialKind.CERTIFICATES:
            begun = event.change is AlarmChange.BEGUN
            self._line(
                logging.ERROR if begun else logging.INFO,
                "certificate files are of no use" if begun else "certificate files are good again",
                port=event.about,
                problem=event.problem,
                lasted_s=round(event.lasted_s, 3),
            )

    def handler_failed(self, event: HandlerFailed) -> None:
        """Our own mistake: always an error."""
        self._line(logging.ERROR, "handler failed", rpc=event.method, error=event.error, trace=event.trace)


def _misplaced(tenant: str) -> str:
    return f"{tenant} misplaced"


def _plain(value: object) -> object:
    return value.value if isinstance(value, Enum) else value
