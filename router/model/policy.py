"""Every tunable: its default, unit, meaning and validation, once. Configuration only nests these.

Relations between fields are checked in __post_init__; a ValueError's text is what the operator reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, unique
from typing import ClassVar

from router.model.bounds import not_negative as _not_negative
from router.model.bounds import positive as _positive
from router.model.port_policies import AuditPolicy, JwtPolicy, ListenerTls, TransportPolicy


@unique
class BalancerName(Enum):
    """How one of several eligible endpoints is chosen."""

    SMOOTH_WEIGHTED = "smooth_weighted"
    LEAST_IN_FLIGHT = "least_in_flight"
    TWO_CHOICES = "two_choices"


@unique
class CommitWait(Enum):
    """What a commit waits for where there are synchronous standbys: that they have the write in memory, on disk, or
    visible to their readers; LOCAL: for the primary's disk only."""

    LOCAL = "local"
    WRITTEN = "written"
    FLUSHED = "flushed"
    APPLIED = "applied"


@unique
class Concurrency(Enum):
    """How much may run at an endpoint at once."""

    FIXED = "fixed"
    ADAPTIVE = "adaptive"


@dataclass(frozen=True)
class PoolPolicy:
    """Connections of one tenant to one endpoint, for one access (read-only and read-write are kept apart)."""

    __pydantic_config__: ClassVar = {"use_attribute_docstrings": True, "extra": "forbid"}

    min_size: int = 0
    """Connections kept open once the pool is in use."""
    max_size: int = 8
    """Most connections of the pool, in each worker."""
    floor: int = 0
    """Connections to each endpoint, of both accesses together, that this tenant gets however many others want them;
    what it does not use is lent, and called back when it is needed. While slow reads run, one of several connections
    is kept for fast ones, where such come: for N slow reads at once, ask for N + 1 then."""
    weight: int = 100
    """Its share of an endpoint's connections, relative to the other tenants', while they do not suffice for all."""
    ceiling: int = 0
    """Most connections to each endpoint, of both accesses and all workers together; 0: as many as the endpoint has."""
    idle_s: float = 60.0
    """A connection unused for this long is closed, down to min_size (seconds)."""
    lifetime_s: float = 1800.0
    """A connection is replaced at this age, less a random tenth (seconds)."""
    acquire_timeout_s: float = 5.0
    """Longest wait for a connection within the caller's deadline (seconds)."""
    close_after_s: float = 300.0
    """A pool unused for this long is closed with all its connections (seconds)."""
    prepared_statements: int = 200
    """Prepared statements kept per connection; the least recently used goes first."""
    lane_window: int = 32
    """Statements in flight on one lane at most."""
    lane_window_s: float = 0.01
    """Expected cost of the statements in flight on one lane at most, unless one alone costs more (seconds)."""
    lane_idle_s: float = 2.0
    """A lane unused for this long gives its connection back, where idle ones are counted and closed (seconds)."""
    slow_s: float = 0.01
    """A read that takes longer gets a connection where nobody waits behind it (seconds)."""
    grow_s: float = 0.002
    """Another connection is opened when fast reads would wait longer than this (seconds)."""
    require_marker: bool = False
    """Use a database only if it has the tenant's marker, which `pointsman tenant init` makes. Another tenant's is
    refused in any case."""
    stall_factor: float = 8.0
    """A read that takes so many times its usual time, and longer than slow_s, has stalled: those behind it are sent
    again on another connection, and the first answer counts."""

    def __post_init__(self) -> None:
        _not_negative(self, "min_size", "prepared_statements", "floor", "ceiling")
        _positive(self, "max_size", "weight", "idle_s", "lifetime_s", "acquire_timeout_s", "close_after_s")
        _positive(self, "lane_window", "lane_window_s", "lane_idle_s", "slow_s", "grow_s")
        if self.min_size > self.max_size:
            raise ValueError(f"min_size ({self.min_size}) must not exceed max_size ({self.max_size})")
        if self.floor > self.max_size:
            raise ValueError(f"floor ({self.floor}) must not exceed max_size ({self.max_size}): it could not be used")
        if self.ceiling and self.ceiling < max(self.floor, self.min_size):
            raise ValueError(
                f"ceiling ({self.ceiling}) must not be below floor ({self.floor}) or min_size ({self.min_size}); "
                "0 means none"
            )
        if self.grow_s > self.lane_window_s:
            raise ValueError(f"grow_s ({self.grow_s}) must not exceed lane_window_s ({self.lane_window_s})")
        if self.stall_factor <= 1:
            raise ValueError(f"stall_factor must be greater than 1, not {self.stall_factor}")


@dataclass(frozen=True)
class TenantPolicy:
    """Limits and defaults of one tenant."""

    __pydantic_config__: ClassVar = {"use_attribute_docstrings": True, "extra": "forbid"}

    balancer: BalancerName = BalancerName.SMOOTH_WEIGHTED
    """How a read's endpoint is chosen among the eligible ones."""
    default_timeout_s: float = 30.0
    """Deadline of a request that brings none (seconds)."""
    max_timeout_s: float = 300.0
    """Longest deadline a caller may ask for (seconds)."""
    lag_limit_s: float = 10.0
    """A replica whose replay is further behind takes no reads; on an older timeline it is behind since the present one
    began (seconds)."""
    token_wait_s: float = 0.1
    """A replica read with a consistency token waits this long for a replica that has replayed it, before it goes to
    the primary (seconds)."""
    hedge_reads: bool = False
    """Hedge all its reads that may run on several endpoints, not only those that ask for it: what is not answered
    within the usual time of its statement (95 % of answers) is asked of a second endpoint, and the first answer
    counts."""
    hedge_ratio: float = 0.05
    """Most hedges per read that may have one, in the long run; 0 turns hedging off."""
    max_in_flight: int = 256
    """Requests running at once."""
    max_queue: int = 2048
    """Requests waiting for admission at once. Who would wait longer than its deadline is refused on arrival."""
    rate_per_s: float = 0.0
    """Most requests per second in the long run; 0: as many as come. Each RPC and each call of a Multiplex stream is
    one, a transaction or a Listen stream when it begins; cancelling and the router's own retries are none."""
    rate_burst: int = 100
    """Most requests at once beyond that, after a pause."""
    max_attempts: int = 3
    """Most tries of one request."""
    max_transaction_s: float = 60.0
    """Longest life of an interactive transaction (seconds)."""
    idle_in_transaction_s: float = 10.0
    """An interactive transaction without a message for this long is rolled back (seconds)."""
    max_transactions: int = 64
    """Interactive transactions open at once."""
    max_listeners: int = 64
    """Listen streams open at once; in all they use one connection to the primary."""
    max_channels: int = 64
    """Different channels that they may listen to at once, together."""
    listen_heartbeat_s: float = 10.0
    """A Listen stream tells at least this often that it lives (seconds)."""
    max_result_bytes: int = 1 << 20
    """Largest unary answer; callers may ask for less. 3 MiB at most: what is larger is streamed (bytes)."""
    commit_wait: CommitWait = CommitWait.FLUSHED
    """What a commit waits for; sets synchronous_commit of the connections, whatever server and role say."""
    key_wait_s: float = 1.0
    """A request waits this long for another one that holds its idempotency key, then asks anew, until its deadline
    (seconds)."""
    key_age_s: float = 86400.0
    """Idempotency keys older than this are deleted; a request repeated later is done again (seconds)."""

    def __post_init__(self) -> None:
        _positive(
            self,
            "default_timeout_s",
            "max_timeout_s",
            "lag_limit_s",
            "max_in_flight",
            "rate_burst",
            "max_attempts",
            "max_transaction_s",
            "idle_in_transaction_s",
            "max_transactions",
            "max_listeners",
            "max_channels",
            "listen_heartbeat_s",
            "max_result_bytes",
            "key_wait_s",
            "key_age_s",
        )
        _not_negative(self, "max_queue", "rate_per_s", "token_wait_s")
        if self.default_timeout_s > self.max_timeout_s:
            raise ValueError(
                f"default_timeout_s ({self.default_timeout_s}) must not exceed max_timeout_s ({self.max_timeout_s})"
            )
        if not 0 <= self.hedge_ratio <= 1:
            raise ValueError(f"hedge_ratio must lie between 0 and 1, not {self.hedge_ratio}")
        if self.max_result_bytes > 3 << 20:
            raise ValueError(f"max_result_bytes ({self.max_result_bytes}) must not exceed 3145728: stream more")


@dataclass(frozen=True)
class HoldPolicy:
    """Requests that wait for a failover to end."""

    __pydantic_config__: ClassVar = {"use_attribute_docstrings": True, "extra": "forbid"}

    window_s: float = 10.0
    """Longest wait of one request (seconds); the caller's deadline may end it earlier."""
    max_requests: int = 1000
    """Most requests of this cluster held at once by this router."""
    max_bytes: int = 64 << 20
    """Most bytes of held requests (bytes)."""
    tenant_share: float = 0.5
    """Largest part of max_requests that one tenant may take (0 to 1)."""
    release_start: int = 2
    """Requests released at once at first; doubled every release_step_s (slow start)."""
    release_step_s: float = 0.02
    """Time between doublings (seconds)."""
    dry_run: bool = False
    """Hold nothing: what would be held is refused, and counted, as `hold_off`."""

    def __post_init__(self) -> None:
        _positive(self, "window_s", "max_requests", "max_bytes", "release_start", "release_step_s")
        if not 0 < self.tenant_share <= 1:
            raise ValueError(f"tenant_share must lie between 0 and 1, not {self.tenant_share}")


@dataclass(frozen=True)
class ProbePolicy:
    """How endpoints are watched."""

    __pydantic_config__: ClassVar = {"use_attribute_docstrings": True, "extra": "forbid"}

    interval_s: float = 0.25
    """Time between probes of an endpoint, less or more a tenth (seconds)."""
    timeout_s: float = 0.5
    """A probe without an answer for this long has failed (seconds)."""
    fresh_every: int = 4
    """Every so many probes a fresh connection is opened beside the existing one; while in doubt, every time."""
    misses: int = 3
    """Failed probes in a row that make an endpoint DOWN; a refused connection does at once."""
    probation_s: float = 2.0
    """A returned endpoint must answer this long before it takes work (seconds)."""

    def __post_init__(self) -> None:
        _positive(self, "interval_s", "timeout_s", "fresh_every", "misses")
        _not_negative(self, "probation_s")


@dataclass(frozen=True)
class FailoverPolicy:
    """When and how the primary is moved."""

    __pydantic_config__: ClassVar = {"use_attribute_docstrings": True, "extra": "forbid"}

    confirm_s: float = 0.3
    """A refused primary must stay so for this long before it is replaced, and its standbys without it all the time
    (seconds); a crash restart takes 0.3."""
    confirm_silence_s: float = 1.5
    """The same for a silent one (seconds)."""
    restart_grace_s: float = 3.0
    """A primary that says it is starting up gets this long to finish; so does one that its standbys heard for longer
    than this router did (seconds)."""
    min_gap_s: float = 60.0
    """Shortest time between two promotions of a cluster (seconds)."""
    may_lose: bool = False
    """Promote without synchronous replication, too: acknowledged writes may be lost."""
    dry_run: bool = False
    """Say what would be done, do nothing."""
    step_timeout_s: float = 5.0
    """Longest time of one step of a promotion (seconds)."""

    def __post_init__(self) -> None:
        _positive(self, "confirm_s", "confirm_silence_s", "step_timeout_s")
        _not_negative(self, "restart_grace_s", "min_gap_s")
        if self.confirm_s < 0.3:
            raise ValueError(f"confirm_s must be at least 0.3 (a crash restart takes that long), not {self.confirm_s}")


@dataclass(frozen=True)
class ClusterPolicy:
    """Policies of one cluster."""

    __pydantic_config__: ClassVar = {"use_attribute_docstrings": True, "extra": "forbid"}

    probe: ProbePolicy = ProbePolicy()
    """How its endpoints are watched."""
    hold: HoldPolicy = HoldPolicy()
    """What waits while it fails over."""
    failover: FailoverPolicy = FailoverPolicy()
    """When and how its primary is moved (promote mode), or awaited (follow mode)."""
    connects_in_flight: int = 2
    """Connections being opened to one endpoint at once; one that takes longer than half a second does not count."""
    connect_timeout_s: float = 3.0
    """A connection not open after this long has failed (seconds)."""
    concurrency: Concurrency = Concurrency.FIXED
    """How many connections to an endpoint may run something at once: as many as may be open (fixed), or fewer while its
    statements take longer than usual because of what else runs there (adaptive), in each process of the router; each
    tenant that is at work then has its part by weight, and what it leaves is not lent. Reads that are fast, each
    tenant's first statement and transactions that have begun are never kept waiting by it."""
    least_concurrency: int = 2
    """Adaptive: so many may run something at once in any case; not above the server's processors."""

    def __post_init__(self) -> None:
        _positive(self, "connects_in_flight", "connect_timeout_s", "least_concurrency")


@dataclass(frozen=True)
class RetryPolicy:
    """Repeating what provably left no effect."""

    __pydantic_config__: ClassVar = {"use_attribute_docstrings": True, "extra": "forbid"}

    budget_ratio: float = 0.1
    """Retries per request of the last ten seconds, of a tenant and of all tenants of a cluster together, in each
    process of the router."""
    budget_least: float = 10.0
    """Retries in ten seconds that are allowed however few requests there are."""
    backoff_s: float = 0.02
    """First pause (seconds); doubled each time, fully jittered."""
    backoff_max_s: float = 1.0
    """Longest pause (seconds)."""
    reserve_s: float = 0.02
    """No attempt starts with less than this left of the deadline (seconds)."""

    def __post_init__(self) -> None:
        _positive(self, "backoff_s", "backoff_max_s")
        _not_negative(self, "budget_ratio", "budget_least", "reserve_s")
        if self.backoff_s > self.backoff_max_s:
            raise ValueError(f"backoff_s ({self.backoff_s}) must not exceed backoff_max_s ({self.backoff_max_s})")


@dataclass(frozen=True)
class ServerPolicy:
    """The router process itself."""

    __pydantic_config__: ClassVar = {"use_attribute_docstrings": True, "extra": "forbid"}

    listen: str = "127.0.0.1:7432"
    """Address for callers."""
    admin_listen: str = "127.0.0.1:7433"
    """Address for operators."""
    metrics_listen: str = "127.0.0.1:7434"
    """Address of the Prometheus endpoint; empty turns it off."""
    grace_s: float = 10.0
    """On SIGTERM, running work has this long to end (seconds); then connections close, which may take two more."""
    state_dir: str = ""
    """Directory for what must outlive the router: the highest timeline accepted, and a promotion under way. Relative
    to this file. Empty: $STATE_DIRECTORY (systemd sets it), else `state` beside this file. Must be writable in
    promote mode. One router at a time may use it: a second one is refused, or where it need not keep anything (follow
    mode, and this is empty) keeps nothing."""
    watch_s: float = 1.0
    """The configuration and the files of its secrets are looked at this often, and read again when they have changed;
    0: only when told, by SIGHUP or `pointsman reload` (seconds)."""
    workers: int = 1
    """Processes that serve callers on one port; 1 serves them in the router's own. Each uses one core."""
    cpus: tuple[int, ...] = ()
    """Processors that these processes stay on, each on one, in turn; [] leaves that to the system. Their threads wake
    each other sooner there: 1.1 times the requests of a few callers. Only for those that nothing else is put on."""
    max_message_bytes: int = 4 << 20
    """Largest message taken from a caller (bytes)."""
    max_stream_calls: int = 1024
    """Calls in flight on one Multiplex stream; more are refused."""
    reflection: bool = True
    """Serve gRPC reflection, so that grpcurl and the like know the API."""
    tls: ListenerTls = ListenerTls()
    """TLS on the callers' port."""
    admin_tls: ListenerTls = ListenerTls()
    """TLS on the operators' port; its authorities are its own, and none of the callers' is believed there."""
    jwt: JwtPolicy = JwtPolicy()
    """Signed tokens of callers."""
    audit: AuditPolicy = AuditPolicy()
    """The audit log."""
    allow_plaintext: bool = False
    """Serve without TLS on addresses that other machines reach, for a trusted network or a proxy that ends TLS. Tokens
    and data can be read on the way."""
    transport: TransportPolicy = TransportPolicy()
    """Limits of the connections to both ports."""

    def __post_init__(self) -> None:
        _positive(self, "max_message_bytes", "max_stream_calls", "workers")
        if any(cpu < 0 for cpu in self.cpus):
            raise ValueError("cpus must not be negative")
        _not_negative(self, "grace_s", "watch_s")
