"""Typed events: what happened, for logs and metrics. Emitted by the engine, consumed by the telemetry edge.

Nobody changes an event. The two that each request makes are not frozen: frozen ones take three times as long to make.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, unique

from router.model.checkup import Finding
from router.model.identity import ClusterName, EndpointName, Generation, TenantName, Term
from router.model.reasons import CloseReason, GapReason, HealthReason, HoldEndReason, PhaseReason, RetryReason
from router.model.request import Access, Method
from router.model.topology import Role


@unique
class Outcome(Enum):
    """How a request ended. admitted = served + failed + cancelled; refused ones were never admitted."""

    __hash__ = object.__hash__  # members are single objects; Enum's own hashes the name, in Python, on each look-up

    SERVED = "served"
    FAILED = "failed"
    CANCELLED = "cancelled"
    REFUSED = "refused"


@unique
class Health(Enum):
    """State of an endpoint."""

    UNKNOWN = "unknown"
    UP = "up"
    SUSPECT = "suspect"
    DOWN = "down"
    PROBATION = "probation"
    QUARANTINED = "quarantined"


@unique
class Phase(Enum):
    """State of a cluster."""

    STARTING = "starting"
    """No primary has been seen yet."""
    STEADY = "steady"
    SUSPECT = "suspect"
    """The primary is in doubt: new writes are held while it is asked again."""
    HOLDING = "holding"
    """There is no primary: writes wait."""
    PROMOTING = "promoting"
    DRAINING = "draining"
    """A new primary serves; held requests are released by slow start."""
    STUCK = "stuck"
    """No safe primary can be found: reads go on, writes are refused until someone helps."""


@dataclass(slots=True)
class RequestAdmitted:
    """A request passed admission; exactly one RequestFinished follows, with another outcome than REFUSED."""

    tenant: TenantName
    method: Method


@dataclass(slots=True)
class RequestFinished:
    """One request ended. Durations in seconds."""

    tenant: TenantName
    method: Method
    outcome: Outcome
    reason: str = ""
    """RefuseReason value of an error, empty when served."""
    endpoint: EndpointName = EndpointName("")
    role: Role = Role.UNKNOWN
    request_id: str = ""
    attempts: int = 1
    queued_s: float = 0.0
    held_s: float = 0.0
    acquired_s: float = 0.0
    executed_s: float = 0.0
    streamed_s: float = 0.0
    total_s: float = 0.0
    rows: int = 0
    copied_bytes: int = 0
    """Data of a COPY, in or out."""


@dataclass(frozen=True, slots=True)
class AttemptRetried:
    """An attempt will be made again."""

    tenant: TenantName
    method: Method
    reason: RetryReason
    attempt: int
    endpoint: EndpointName
    pause_s: float


@unique
class HedgeOutcome(Enum):
    """Which of two endpoints that were asked the same read answered first."""

    WON = "won"
    """The second one."""
    LOST = "lost"
    """The first one, after all."""


@dataclass(frozen=True, slots=True)
class ReadHedged:
    """A read was asked of a second endpoint, and has ended."""

    tenant: TenantName
    outcome: HedgeOutcome
    endpoint: EndpointName
    """Whose answer it was."""


@dataclass(frozen=True, slots=True)
class NotificationsHeard:
    """What a tenant's Listen streams were given since the last such event."""

    tenant: TenantName
    delivered: int
    """Put into a stream's queue; one notification may be for several streams."""
    missed: int
    """Left out, because a stream's queue was full."""


@dataclass(frozen=True, slots=True)
class ListenGapped:
    """A Listen stream was told that notifications may be missing."""

    tenant: TenantName
    reason: GapReason
    lasted_s: float
    """From when on they may be missing."""


@dataclass(frozen=True, slots=True)
class HoldStarted:
    """A request began to wait for a failover."""

    tenant: TenantName
    cluster: ClusterName


@dataclass(frozen=True, slots=True)
class HoldEnded:
    """A request left the hold."""

    tenant: TenantName
    cluster: ClusterName
    reason: HoldEndReason
    waited_s: float


@dataclass(frozen=True, slots=True)
class HealthChanged:
    """An endpoint's health changed."""

    cluster: ClusterName
    endpoint: EndpointName
    before: Health
    after: Health
    reason: HealthReason


@dataclass(frozen=True, slots=True)
class PhaseChanged:
    """A cluster's phase changed."""

    cluster: ClusterName
    before: Phase
    after: Phase
    reason: PhaseReason
    primary: EndpointName | None
    term: Term
    generation: Generation
    detail: str = ""


@dataclass(frozen=True, slots=True)
class FailoverStep:
    """One step of a promotion or switchover."""

    cluster: ClusterName
    step: str
    endpoint: EndpointName
    ok: bool
    took_s: float
    detail: str = ""


@dataclass(frozen=True, slots=True)
class FailoverEnded:
    """A cluster has a primary again. Seconds from the first doubt to the first route to the new primary."""

    cluster: ClusterName
    primary: EndpointName
    term: Term
    took_s: float
    promoted: bool


@dataclass(frozen=True, slots=True)
class JournalWriteFailed:
    """What the router must not forget could not be written down."""

    cluster: ClusterName
    message: str


@dataclass(frozen=True, slots=True)
class SettingFound:
    """A setting of a server will make a failover slow, unsafe or impossible. Told once for each."""

    cluster: ClusterName
    finding: Finding


@dataclass(frozen=True, slots=True)
class ConnectionClosed:
    """A connection was closed instead of being reused."""

    tenant: TenantName
    endpoint: EndpointName
    access: Access
    reason: CloseReason


@dataclass(frozen=True, slots=True)
class ConnectFailed:
    """A connection could not be opened."""

    tenant: TenantName
    endpoint: EndpointName
    message: str


@dataclass(frozen=True, slots=True)
class ConnectionMisplaced:
    """A new connection is not where its tenant belongs; it was closed before anything ran on it."""

    tenant: TenantName
    endpoint: EndpointName
    problem: str


@dataclass(frozen=True, slots=True)
class ConfigChanged:
    """A configuration was applied, or refused with its problems."""

    applied: bool
    changes: tuple[str, ...]
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CertificatesChanged:
    """New certificates of a port were taken, or were no good: then the old ones go on."""

    port: str
    """callers or operators"""
    applied: bool
    problem: str = ""
    fingerprint: str = ""
    """SHA-256 of the certificate now in use, shortened."""


@dataclass(frozen=True, slots=True)
class JwtKeysChanged:
    """New keys for signed tokens were taken, or could not be had: then the old ones go on."""

    applied: bool
    keys: int
    """How many are in use."""
    problem: str = ""


@dataclass(frozen=True, slots=True)
class LoginChanged:
    """A changed login was accepted by a server and is in use, or was refused: then the former one goes on."""

    cluster: ClusterName
    endpoint: EndpointName
    tenant: TenantName | None
    """None: the router's own login."""
    problem: str = ""
    """Why it was refused; empty: it was accepted."""


@dataclass(frozen=True, slots=True)
class SecretCommandEnded:
    """A command that prints a password was run. problem: why it brought none; empty: it did."""

    command: str
    problem: str = ""
    kept: bool = False
    """The one that it printed before goes on."""


@unique
class CredentialKind(Enum):
    """What an alarm about a credential is about."""

    LOGIN = "login"
    """A tenant's, at an endpoint."""
    CONTROL_LOGIN = "control_login"
    """The router's own, at an endpoint."""
    COMMAND = "command"
    """One that prints a password."""
    CERTIFICATES = "certificates"
    """Those of one of the router's ports."""


@unique
class AlarmChange(Enum):
    """What has become of an alarm."""

    BEGUN = "trouble"
    MENDED = "mended"
    """The credential is in use as configured."""
    DROPPED = "dropped"
    """Nobody needs it any more: the configuration names another one, or none."""


@dataclass(frozen=True, slots=True)
class CredentialAlarm:
    """A credential cannot be used as configured: told once when that begins, and once when it ends. No secret in it."""

    kind: CredentialKind
    about: str
    """Cluster and endpoint, or the command, or the port."""
    tenant: TenantName | None
    change: AlarmChange
    problem: str = ""
    """Why it cannot be used; empty at the end."""
    lasted_s: float = 0.0
    """At the end."""


@dataclass(frozen=True, slots=True)
class HandlerFailed:
    """A mistake of the router's own: an RPC ended with an exception that nobody expected."""

    method: str
    """The RPC's full name."""
    error: str
    """The exception's class name."""
    trace: str
    """File and line of each frame; never the exception's text, which may quote SQL or parameters."""


Event = (
    RequestAdmitted
    | RequestFinished
    | AttemptRetried
    | ReadHedged
    | NotificationsHeard
    | ListenGapped
    | HoldStarted
    | HoldEnded
    | HealthChanged
    | PhaseChanged
    | FailoverStep
    | FailoverEnded
    | JournalWriteFailed
    | SettingFound
    | ConnectionClosed
    | ConnectFailed
    | ConnectionMisplaced
    | ConfigChanged
    | CertificatesChanged
    | JwtKeysChanged
    | LoginChanged
    | SecretCommandEnded
    | CredentialAlarm
    | HandlerFailed
)
