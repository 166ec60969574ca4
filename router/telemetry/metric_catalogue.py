"""Every metric once: name, kind, labels, meaning, and the equation it takes part in. Nothing else names a metric.

Counters of an Enum's members exist from the start at 0, so that a rate of the first increment is seen.
A tenant's go when it is removed, and begin at 0 should it come back; calls that it left are counted by phase alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, unique

PREFIX = "pointsman_"


@unique
class Kind(Enum):
    """Kind of a metric, as Prometheus knows it."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@unique
class RequestPhase(Enum):
    """Part of a request's way, as label of its histogram."""

    __hash__ = object.__hash__  # members are single objects; Enum's own hashes the name, in Python, on each look-up

    QUEUE = "queue"
    HOLD = "hold"
    ACQUIRE = "acquire"
    EXECUTE = "execute"
    STREAM = "stream"
    TOTAL = "total"


@unique
class FailoverCause(Enum):
    """Who moved the primary."""

    FOLLOWED = "followed"
    PROMOTED = "promoted"


@unique
class Success(Enum):
    """How a step or a reload went."""

    OK = "ok"
    FAILED = "failed"


PHASE_BUCKETS = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
)  # fmt: skip
FAILOVER_BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0)


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. name is without the prefix; a counter's ends in _total."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    meaning: str
    equation: str = ""
    buckets: tuple[float, ...] = ()

    @property
    def full_name(self) -> str:
        """The name that is exposed."""
        return PREFIX + self.name


def _counter(name: str, labels: tuple[str, ...], meaning: str, equation: str = "") -> Metric:
    return Metric(name, Kind.COUNTER, labels, meaning, equation)


def _gauge(name: str, labels: tuple[str, ...], meaning: str, equation: str = "") -> Metric:
    return Metric(name, Kind.GAUGE, labels, meaning, equation)


_ADMITTED = "per tenant: admitted = requests{served} + requests{failed} + requests{cancelled} + in flight"
_ERRORS = "per tenant: sum over reasons = requests{failed} + requests{cancelled} + requests{refused}"
_HOLDS = "per cluster: entered = sum of ended over all reasons + held"
_HEARD = "per tenant: given + missed = notifications received x streams that listen to their channel"
_CAP = "per endpoint: in_use <= granted <= cap, save while a cap or grant that was lowered is being met"
_ENDPOINT = ("cluster", "endpoint")
_POOL = ("tenant", "endpoint", "access")

ADMITTED = _counter("requests_admitted_total", ("tenant", "method"), "Requests that passed admission.", _ADMITTED)
REQUESTS = _counter(
    "requests_total",
    ("tenant", "method", "outcome"),
    "Requests that ended; refused ones were never admitted.",
    _ADMITTED,
)
ERRORS = _counter("request_errors_total", ("tenant", "reason"), "Requests that did not end as served.", _ERRORS)
IN_FLIGHT = _gauge("requests_in_flight", ("tenant",), "Admitted requests that have not ended.", _ADMITTED)
QUEUED = _gauge("requests_queued", ("tenant",), "Requests that wait for admission.")
ROWS = _counter("rows_total", ("tenant",), "Rows returned or affected.")
COPIED_BYTES = _counter("copied_bytes_total", ("tenant", "method"), "Data that COPY carried, also where it failed.")
DATABASE_SECONDS = _counter("database_seconds_total", ("tenant",), "Time that requests spent in PostgreSQL.")
PHASES = Metric(
    "request_phase_seconds",
    Kind.HISTOGRAM,
    ("phase", "method"),
    "Time of a request's phases; a request that skipped a phase is not counted there, a refused one nowhere.",
    "per method, until a tenant is removed: count{total} = requests{served} + requests{failed} + requests{cancelled}",
    PHASE_BUCKETS,
)
RETRIES = _counter("retries_total", ("method", "reason"), "Attempts made again.")
HEDGES = _counter("hedges_total", ("outcome",), "Reads asked of a second endpoint, and whether that one was faster.")

LISTENERS = _gauge("listeners", ("tenant",), "Listen streams that are open; requests_in_flight has them, too.")
CHANNELS = _gauge("listen_channels", ("tenant",), "Different channels that they listen to, in each process by itself.")
NOTIFICATIONS = _counter("notifications_total", ("tenant",), "Notifications given to Listen streams.", _HEARD)
NOTIFICATIONS_MISSED = _counter(
    "notifications_missed_total", ("tenant",), "Notifications left out because a stream read too slowly.", _HEARD
)
LISTEN_GAPS = _counter(
    "listen_gaps_total", ("tenant", "reason"), "Gaps that Listen streams were told: notifications may be missing."
)

HOLDS_ENTERED = _counter("holds_entered_total", ("cluster",), "Requests that began to wait for a failover.", _HOLDS)
HOLDS_ENDED = _counter("holds_ended_total", ("cluster", "reason"), "Requests that left the hold.", _HOLDS)
HELD = _gauge("holds_held", ("cluster",), "Requests in the hold.", _HOLDS)

CONNECTIONS_CLOSED = _counter(
    "connections_closed_total", ("endpoint", "access", "reason"), "Connections closed instead of being reused."
)
CONNECT_FAILURES = _counter("connect_failures_total", ("endpoint",), "Connections that could not be opened.")
CONNECTIONS_MISPLACED = _counter(
    "connections_misplaced_total",
    ("endpoint",),
    "New connections that were closed unused: role, database or marker were not the tenant's. Raise an alarm at 1.",
)

PHASE = _gauge(
    "cluster_phase", ("cluster", "phase"), "1 for the phase that the cluster is in.", "per cluster: sum over phases = 1"
)
PHASE_CHANGES = _counter("cluster_phase_changes_total", ("cluster", "reason"), "Changes of a cluster's phase.")
TERM = _gauge("cluster_term", ("cluster",), "Timeline of the cluster's primary; never falls.")
GENERATION = _gauge("cluster_generation", ("cluster",), "Counts changes of the primary; fences older connections.")
FAILOVERS = _counter("failovers_total", ("cluster", "cause"), "Changes of the primary that have ended.")
FAILOVER_SECONDS = Metric(
    "failover_seconds",
    Kind.HISTOGRAM,
    ("cluster",),
    "From the first doubt about the old primary to the first route to the new one.",
    "per cluster: count = sum of failovers over causes",
    FAILOVER_BUCKETS,
)
FAILOVER_STEPS = _counter(
    "failover_steps_total", ("cluster", "step", "result"), "Steps of promotions and switchovers (ok or failed)."
)

FINDINGS = _gauge(
    "cluster_findings", ("cluster",), "What `pointsman doctor` finds: settings, logins, servers never examined."
)
JOURNAL_FAILURES = _counter(
    "journal_write_failures_total", ("cluster",), "Pages of the journal in server.state_dir that could not be written."
)

ROLE = _gauge(
    "endpoint_role",
    (*_ENDPOINT, "role"),
    "1 for the role observed of the endpoint.",
    "per endpoint: sum over roles = 1",
)
HEALTH = _gauge(
    "endpoint_health", (*_ENDPOINT, "health"), "1 for the endpoint's health.", "per endpoint: sum over healths = 1"
)
HEALTH_CHANGES = _counter("endpoint_health_changes_total", (*_ENDPOINT, "reason"), "Changes of an endpoint's health.")
LAG_SECONDS = _gauge("endpoint_lag_seconds", _ENDPOINT, "Replay lag of a replica; absent while unknown.")
LAG_BYTES = _gauge("endpoint_lag_bytes", _ENDPOINT, "Replay lag of a replica in bytes; absent while unknown.")
ENDPOINT_TERM = _gauge("endpoint_term", _ENDPOINT, "Timeline that the endpoint is on.")
PROBE_SECONDS = _gauge("endpoint_probe_seconds", _ENDPOINT, "Round trip of the newest probe.")
WEIGHT = _gauge("endpoint_weight", _ENDPOINT, "Share of balanced reads that is in force.")
DRAINING = _gauge("endpoint_draining", _ENDPOINT, "1 while an operator drains the endpoint.")
ENDPOINT_IN_FLIGHT = _gauge("endpoint_in_flight", _ENDPOINT, "Requests that run on the endpoint.")
ENDPOINT_CONNECTIONS = _gauge("endpoint_connections", _ENDPOINT, "Connections of all tenants to the endpoint.")
CONNECTIONS_CAP = _gauge("endpoint_connections_cap", _ENDPOINT, "Most connections of the whole router to it.", _CAP)
CONNECTIONS_GRANTED = _gauge(
    "endpoint_connections_granted", _ENDPOINT, "Most connections that may be open now, over all workers.", _CAP
)
CONNECTIONS_IN_USE = _gauge(
    "endpoint_connections_in_use",
    _ENDPOINT,
    "Connections open, being opened, or closed while the server has not yet let go of them.",
    _CAP,
)
CONNECTIONS_WANTED = _gauge("endpoint_connections_wanted", _ENDPOINT, "Connections that wait for room under the cap.")
CONNECTIONS_RUNNING = _gauge(
    "endpoint_connections_running", _ENDPOINT, "Connections at work: with a statement, or lent to one caller."
)
CONCURRENCY_LIMIT = _gauge(
    "endpoint_concurrency_limit",
    _ENDPOINT,
    "Most connections that may be at work at once, all tenants together; 0 where concurrency is fixed.",
)
SLOWER_THAN_USUAL = _gauge(
    "endpoint_slower_than_usual", _ENDPOINT, "Times slower than usual statements were; 0 where it is not measured."
)

POOL_SIZE = _gauge("pool_size", _POOL, "Connections of the pool.")
POOL_MAX_SIZE = _gauge("pool_max_size", _POOL, "Most connections that the pool may have.")
POOL_IDLE = _gauge("pool_idle", _POOL, "Connections that nobody uses.")
POOL_LEASED = _gauge("pool_leased", _POOL, "Connections that are lent.")
POOL_OPENING = _gauge("pool_opening", _POOL, "Connections that are being opened.")
POOL_WAITING = _gauge("pool_waiting", _POOL, "Requests that wait for a connection.")
POOL_LANES = _gauge("pool_lanes", _POOL, "Leased connections that carry many callers' statements.")
LANES_IN_FLIGHT = _gauge("pool_lanes_in_flight", _POOL, "Statements in flight on the pool's lanes.")

RELOADS = _counter("config_reloads_total", ("result",), "Configurations applied (ok) or refused (failed).")
CONFIG_AGE = _gauge("config_age_seconds", (), "For how long the configuration has been in force.")
CONFIG_REFUSED = _gauge(
    "config_refused_seconds", (), "For how long the newest configuration has been refused; 0: it is in force."
)
CERTIFICATE_CHANGES = _counter(
    "certificate_changes_total", ("port", "result"), "New certificates of a port taken (ok) or of no use (failed)."
)
CERTIFICATE_TROUBLE = _gauge(
    "certificate_trouble_seconds",
    ("port",),
    "For how long a port's certificate files have been of no use, so that those before go on; absent when all is well.",
)
JWT_KEY_CHANGES = _counter(
    "jwt_key_changes_total", ("result",), "New keys for signed tokens taken (ok) or not to be had (failed)."
)
LOGIN_CHANGES = _counter(
    "login_changes_total",
    ("endpoint", "result"),
    "Changed logins that a server accepted (ok), and tries of such that it refused (failed).",
)
CREDENTIAL_TROUBLE = _gauge(
    "credential_trouble_seconds",
    ("cluster", "endpoint", "tenant"),
    "For how long a login could not be used as configured; absent when all is well. The router's own has no tenant.",
)
SECRET_COMMANDS = _counter(
    "password_commands_total", ("result",), "Runs of commands that print passwords: with one (ok) or without (failed)."
)
HANDLER_FAILURES = _counter("handler_failures_total", ("rpc",), "RPCs that ended by a mistake of the router's own.")
BUILD = _gauge("build_info", ("version",), "Always 1; the label tells the version.")

METRICS: tuple[Metric, ...] = tuple(value for value in list(vars().values()) if isinstance(value, Metric))
