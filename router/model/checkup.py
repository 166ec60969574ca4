"""What a server's settings mean for failover: the settings as read, and what is found to be wrong with them, or with
logins.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, unique

from router.model.identity import EndpointName


@unique
class Check(Enum):
    """What is looked at."""

    MANAGED_ELSEWHERE = "managed_elsewhere"
    SYNC_NAMES_EMPTY = "sync_names_empty"
    SYNC_NAMES_UNKNOWN = "sync_names_unknown"
    SYNC_NAMES_ALL = "sync_names_all"
    RIGHTS = "rights"
    HOT_STANDBY = "hot_standby"
    REWIND = "rewind"
    RETRY_INTERVAL = "retry_interval"
    RECEIVER_TIMEOUT = "receiver_timeout"
    PREPARED_TRANSACTIONS = "prepared_transactions"
    MINOR_VERSION = "minor_version"
    MIXED_VERSIONS = "mixed_versions"
    CREDENTIAL = "credential"
    NOT_EXAMINED = "not_examined"
    """Nothing: the server's settings have never been read."""


@unique
class Severity(Enum):
    """How bad it is."""

    ERROR = "error"
    """A failover will not happen, or not safely; or a login is not the one that is configured."""
    WARNING = "warning"
    """It will be slower, or the old primary harder to bring back; or nobody knows, since nobody could look."""


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """What one server says about its settings."""

    version: int
    """server_version_num."""
    in_recovery: bool
    application_name: str = ""
    """Of its walreceiver; what synchronous_standby_names lists. Empty on a primary."""
    sync_names: str = ""
    retry_interval_s: float = 0.0
    receiver_timeout_s: float = 0.0
    """0: turned off."""
    hot_standby: bool = True
    log_hints: bool = True
    checksums: bool = True
    full_page_writes: bool = True
    prepared_transactions: int = 0
    missing_rights: tuple[str, ...] = ()
    """The GRANTs that the control role lacks, without `TO role`."""
    manager: str = ""
    """What else moves this cluster's primary, and how that shows, in words; empty when nothing does."""


@dataclass(frozen=True, slots=True)
class Unanswered:
    """A server that has not said its settings yet, though it was asked."""

    why: str
    since: float
    """When it was first asked (monotonic seconds)."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong on one server."""

    endpoint: EndpointName
    check: Check
    severity: Severity
    message: str
    fix: str
    """SQL for a superuser of that server, or what else to do, as an SQL comment."""
