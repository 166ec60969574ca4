"""A reason for everything that routes, refuses, retries, holds, changes or closes.

The member's value is the metric label, the log value and, in upper case, the ErrorInfo reason of the API.
"""

from __future__ import annotations

from enum import Enum, unique


@unique
class ConcurrencyReason(Enum):
    """Why so much may run at an endpoint at once."""

    FIXED = "fixed"
    """It is not limited below the cap (concurrency: fixed)."""
    CAP = "cap"
    """The server is as fast as usual, and the cap bounds it."""
    SLOW = "slow"
    """The server answers slower than usual: less may run, of each tenant its part."""
    GROWING = "growing"
    """It is as fast as usual again: more is tried, and parts grow beyond the cap until nobody lacks anything."""
    UNUSED = "unused"
    """It is as fast as usual, and less runs than may."""
    PROBE = "probe"
    """What is usual is being measured: little runs for a moment."""


@unique
class RouteReason(Enum):
    """Why this endpoint."""

    PRIMARY = "primary"
    BALANCED = "balanced"
    ONLY_ONE = "only_one"
    FALLBACK_PRIMARY = "fallback_primary"
    ALL_EXCLUDED = "all_excluded"
    """Every candidate was excluded by health, so none is: excluding everyone helps nobody."""
    PINNED = "pinned"


@unique
class RefuseReason(Enum):
    """Why a request was answered with an error that the router made. Upper case: ErrorInfo.reason."""

    TENANT_DENIED = "tenant_denied"
    UNAUTHENTICATED = "unauthenticated"
    ROLE_DENIED = "role_denied"
    DRAINING = "draining"
    BAD_REQUEST = "bad_request"
    STATEMENT_MISSING = "statement_missing"
    SEVERAL_STATEMENTS = "several_statements"
    TRANSACTION_CONTROL = "transaction_control"
    SESSION_STATE = "session_state"
    COPY_NOT_HERE = "copy_not_here"
    CHANNEL_DENIED = "channel_denied"
    """The tenant may not listen to this channel: others of its database may use it."""
    NOT_REGISTERED = "not_registered"
    """The tenant may run registered statements only, and this is none of them."""
    MESSAGE_TOO_LARGE = "message_too_large"
    RESULT_TOO_LARGE = "result_too_large"
    GUARD_FAILED = "guard_failed"
    IDEMPOTENCY_NOT_CONFIGURED = "idempotency_not_configured"
    KEY_REUSED = "key_reused"
    """The idempotency key belongs to another request."""
    KEY_BUSY = "key_busy"
    """A request with the same idempotency key is under way, or waits for its standby."""
    QUOTA = "quota"
    QUEUE_FULL = "queue_full"
    HOPELESS_DEADLINE = "hopeless_deadline"
    POOL_TIMEOUT = "pool_timeout"
    NO_BACKEND = "no_backend"
    NOT_PRIMARY = "not_primary"
    NO_REPLICA = "no_replica"
    HOLD_FULL = "hold_full"
    HOLD_SHARE = "hold_share"
    HOLD_WINDOW = "hold_window"
    HOLD_OFF = "hold_off"
    RETRY_BUDGET = "retry_budget"
    BACKEND_LOST = "backend_lost"
    OUTCOME_UNKNOWN = "outcome_unknown"
    TRANSACTION_LOST = "transaction_lost"
    TRANSACTION_EXPIRED = "transaction_expired"
    TRANSACTION_MISUSE = "transaction_misuse"
    REPLICA_CONFLICT = "replica_conflict"
    SERIALIZATION = "serialization"
    DEADLOCK = "deadlock"
    LOCK_TIMEOUT = "lock_timeout"
    STATEMENT_TIMEOUT = "statement_timeout"
    DEADLINE = "deadline"
    CANCELLED = "cancelled"
    UNIQUE_VIOLATION = "unique_violation"
    EXCLUSION_VIOLATION = "exclusion_violation"
    FOREIGN_KEY_VIOLATION = "foreign_key_violation"
    CHECK_VIOLATION = "check_violation"
    NOT_NULL_VIOLATION = "not_null_violation"
    INTEGRITY_VIOLATION = "integrity_violation"
    DUPLICATE_OBJECT = "duplicate_object"
    APP_RAISED = "app_raised"
    NUMERIC_RANGE = "numeric_range"
    BAD_DATA = "bad_data"
    BAD_SQL = "bad_sql"
    PG_PRIVILEGE = "pg_privilege"
    NOT_SUPPORTED = "not_supported"
    WRITE_ON_READ_METHOD = "write_on_read_method"
    OBJECT_STATE = "object_state"
    BACKEND_CONFIG = "backend_config"
    BACKEND_RESOURCE = "backend_resource"
    BACKEND_FAULT = "backend_fault"
    PROTOCOL = "protocol"
    CORRUPTION = "corruption"
    TOKEN_LOST = "token_lost"
    TOKEN_AHEAD = "token_ahead"
    TOKEN_FOREIGN = "token_foreign"
    CLIENT_TOO_SLOW = "client_too_slow"
    SWITCHOVER_REFUSED = "switchover_refused"
    UNKNOWN_NAME = "unknown_name"
    CONFIG_INVALID = "config_invalid"
    TENANT_PAUSED = "tenant_paused"
    """An operator has paused the tenant, and the request did not want to wait, or waited too long."""
    TENANT_CHANGED = "tenant_changed"
    """The tenant has another database, cluster, role or isolation since the request was judged."""
    TENANT_EXISTS = "tenant_exists"
    VERSION_CHANGED = "version_changed"
    """Somebody else has changed what was to be changed."""
    INTERNAL = "internal"


@unique
class RetryReason(Enum):
    """Why an attempt was made again."""

    NOT_SENT = "not_sent"
    ROLLED_BACK = "rolled_back"
    READ_LOST = "read_lost"
    NOT_PRIMARY = "not_primary"
    REPLICA_CONFLICT = "replica_conflict"
    STALE_STATEMENT = "stale_statement"
    """A prepared statement no longer fits (26000, 42P05, 0A000 "cached plan"); raised before execution."""
    SERIALIZATION = "serialization"
    STARTING_UP = "starting_up"
    KEYED = "keyed"
    """The outcome is open, but the idempotency key tells whether the first try was done."""
    KEY_BUSY = "key_busy"
    """The transaction that holds the idempotency key is still open."""


@unique
class HoldEndReason(Enum):
    """Why a request left the hold."""

    RELEASED = "released"
    WINDOW = "window"
    FULL = "full"
    SHARE = "share"
    DEADLINE = "deadline"
    CANCELLED = "cancelled"
    SHUTDOWN = "shutdown"
    DRY_RUN = "dry_run"


@unique
class CloseReason(Enum):
    """Why a connection was closed instead of going back to its pool."""

    LIFETIME = "lifetime"
    IDLE = "idle"
    GENERATION = "generation"
    NOT_IDLE = "not_idle"
    OUT_OF_SYNC = "out_of_sync"
    TAINTED = "tainted"
    ABANDONED = "abandoned"
    """A deadline passed while the server was silent: its socket was shut."""
    CONNECTION_LOST = "connection_lost"
    CANCEL_UNCONFIRMED = "cancel_unconfirmed"
    SESSION_END = "session_end"
    MISPLACED = "misplaced"
    """Its role, its database or the marker there is not the tenant's."""
    RECLAIMED = "reclaimed"
    """Another pool of the endpoint needed the room under its cap more."""
    DRAIN = "drain"
    SHUTDOWN = "shutdown"


@unique
class GapReason(Enum):
    """Why notifications may be missing from a Listen stream."""

    BACKEND_FAILOVER = "backend_failover"
    """There is another primary."""
    RECONNECT = "reconnect"
    """The connection to PostgreSQL was lost, or given up, and is there again."""
    SLOW_CONSUMER = "slow_consumer"
    """The caller did not read fast enough."""


@unique
class HealthReason(Enum):
    """Why an endpoint's health is what it is."""

    NOT_PROBED = "not_probed"
    PROBE_OK = "probe_ok"
    PROBE_FAILED = "probe_failed"
    PROBE_TIMEOUT = "probe_timeout"
    CONNECT_REFUSED = "connect_refused"
    CONNECT_HANGS = "connect_hangs"
    """The existing connection answers, a fresh one does not: the postmaster is stuck."""
    CONNECTION_LOST = "connection_lost"
    STARTING_UP = "starting_up"
    COMING_BACK = "coming_back"
    LOGIN_REFUSED = "login_refused"
    UNRESOLVED = "unresolved"
    OLD_TERM = "old_term"
    """Writable on an older timeline than the cluster's: a stale primary."""
    FOREIGN_SYSTEM = "foreign_system"
    """Another system identifier than the cluster's: not one of its servers."""


@unique
class PhaseReason(Enum):
    """Why a cluster's phase changed."""

    FIRST_PRIMARY = "first_primary"
    PRIMARY_FAULT = "primary_fault"
    PRIMARY_PROBE = "primary_probe"
    PRIMARY_RETURNED = "primary_returned"
    NO_PRIMARY = "no_primary"
    NEW_PRIMARY = "new_primary"
    TWO_PRIMARIES = "two_primaries"
    PROMOTION_STARTED = "promotion_started"
    PROMOTION_DONE = "promotion_done"
    PROMOTION_FAILED = "promotion_failed"
    PROMOTION_OPEN = "promotion_open"
    """A standby may have been promoted, and does not answer: nobody else can safely take its place."""
    MANAGED_ELSEWHERE = "managed_elsewhere"
    """Patroni moves this cluster's primary: promote mode stays out of its way."""
    JOURNAL_FAILED = "journal_failed"
    """What is to be done could not be written down first, so it was not done."""
    FENCE_INCOMPLETE = "fence_incomplete"
    NO_CANDIDATE = "no_candidate"
    NOT_SYNCHRONOUS = "not_synchronous"
    TOO_SOON = "too_soon"
    SWITCHOVER = "switchover"
    DRAINED = "drained"
    TIMED_OUT = "timed_out"
