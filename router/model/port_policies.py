"""The tunables of what the router shows: its ports (TLS, signed tokens, limits of connections), and its logs."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, unique
from typing import ClassVar

from router.model.bounds import not_negative, positive


@dataclass(frozen=True)
class ListenerTls:
    """How one port of the router is protected. The files are read again when they change, without a restart."""

    __pydantic_config__: ClassVar = {"use_attribute_docstrings": True, "extra": "forbid"}

    cert: str = ""
    """File with the router's certificate and those between it and its authority (PEM); empty: plain text."""
    key: str = ""
    """File with the certificate's private key (PEM, not encrypted)."""
    client_ca: str = ""
    """File with the authorities whose certificates callers must show (PEM); empty: none is asked for. With it nobody
    gets in without one, also not with a token."""

    @property
    def on(self) -> bool:
        """Whether the port speaks TLS."""
        return bool(self.cert)

    def __post_init__(self) -> None:
        if bool(self.cert) != bool(self.key):
            raise ValueError("needs cert and key together, or neither")
        if self.client_ca and not self.cert:
            raise ValueError("client_ca needs cert and key: who speaks plain text cannot show a certificate")


@dataclass(frozen=True)
class JwtPolicy:
    """Signed tokens (JWT) of callers: RS256, ES256 or EdDSA, with exp, iss, aud and sub. Off without `keys`."""

    __pydantic_config__: ClassVar = {"use_attribute_docstrings": True, "extra": "forbid"}

    keys: str = ""
    """The issuer's public keys (a JWKS): a file, which is read again when it changes, or an https:// address."""
    issuer: str = ""
    """What `iss` must be."""
    audience: str = ""
    """What `aud` must be, or contain."""
    leeway_s: float = 10.0
    """How far the issuer's clock may be off (seconds)."""
    refresh_s: float = 300.0
    """An address is asked again this often, and when a token names a key that is not there (seconds)."""

    @property
    def on(self) -> bool:
        """Whether signed tokens are taken."""
        return bool(self.keys)

    @property
    def by_address(self) -> bool:
        """Whether the keys come over the network."""
        return self.keys.startswith(("https://", "http://"))

    def __post_init__(self) -> None:
        not_negative(self, "leeway_s")
        positive(self, "refresh_s")
        if self.keys and not (self.issuer and self.audience):
            raise ValueError("keys needs issuer and audience: a token for somebody else would do otherwise")
        if self.keys.startswith("http://") and not self.keys.startswith(("http://127.0.0.1:", "http://localhost:")):
            raise ValueError("keys must come by https:// from other machines: who changes them on the way is anybody")


@unique
class AuditScope(Enum):
    """What the audit log tells."""

    ORDERS = "orders"
    """Who was refused, and what operators did."""
    WRITES = "writes"
    """These, and every request that may write."""
    ALL = "all"
    """These, and every read."""


@dataclass(frozen=True)
class AuditPolicy:
    """The audit log: who did what, when, and how it ended, as lines of JSON. SQL appears by its hash only."""

    __pydantic_config__: ClassVar = {"use_attribute_docstrings": True, "extra": "forbid"}

    file: str = ""
    """File that lines are added to, or `-` for standard output; empty: no audit log. It may be moved away at any time:
    a new one is begun."""
    scope: AuditScope = AuditScope.WRITES
    """orders: refused identities and operators' orders; writes: also requests that may write; all: also reads."""
    max_waiting: int = 8192
    """Lines not yet written at most; more are dropped, and counted in the next line."""

    def __post_init__(self) -> None:
        positive(self, "max_waiting")


@dataclass(frozen=True)
class TransportPolicy:
    """What one connection, and all of them together, may take of a port's server. Each process and port by itself."""

    __pydantic_config__: ClassVar = {"use_attribute_docstrings": True, "extra": "forbid"}

    max_connections: int = 4096
    """Connections at once; more are closed before they can say anything."""
    max_rpcs: int = 16384
    """RPCs at once, a Multiplex stream being one; more are refused."""
    max_streams: int = 256
    """RPCs at once on one connection; more wait in the caller."""
    max_metadata_bytes: int = 8192
    """Size of a call's metadata beyond which calls may be refused; at twice of it they are (bytes)."""
    handshake_timeout_s: float = 5.0
    """A connection that has not finished its handshakes by then is closed (seconds)."""
    keepalive_s: float = 30.0
    """A connection that was silent for this long is asked whether it lives (seconds)."""
    keepalive_timeout_s: float = 10.0
    """One that does not answer by then is closed (seconds)."""
    min_ping_s: float = 10.0
    """Callers that ask the same of the router more often are warned, then closed (seconds)."""
    max_ping_strikes: int = 2
    """How often they are warned."""
    idle_s: float = 300.0
    """A connection without an RPC for this long is closed (seconds)."""
    max_age_s: float = 0.0
    """A connection older than this takes no new RPC, so that its caller proves itself anew; 0: no limit. It cuts what
    still runs after the grace, also transactions: identities are checked during streams without it (seconds)."""
    age_grace_s: float = 30.0
    """What runs on a connection that is too old may go on for this long (seconds)."""

    def __post_init__(self) -> None:
        positive(self, "max_connections", "max_rpcs", "max_streams", "handshake_timeout_s", "keepalive_s")
        positive(self, "keepalive_timeout_s", "min_ping_s", "idle_s")
        not_negative(self, "max_ping_strikes", "max_age_s", "age_grace_s")
        if not 1024 <= self.max_metadata_bytes <= 1 << 20:
            raise ValueError(f"max_metadata_bytes must be between 1024 and 1048576, not {self.max_metadata_bytes}")


@unique
class LogLevel(Enum):
    """Least important events that are written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@unique
class LogFormat(Enum):
    """Form of the log."""

    AUTO = "auto"
    """console on a terminal, JSON otherwise"""
    CONSOLE = "console"
    JSON = "json"


@dataclass(frozen=True)
class LogPolicy:
    """The log, on standard error. It never holds SQL text or parameters."""

    __pydantic_config__: ClassVar = {"use_attribute_docstrings": True, "extra": "forbid"}

    level: LogLevel = LogLevel.INFO
    """Least important events that are written: debug also writes one event per request."""
    format: LogFormat = LogFormat.AUTO
    """auto is console on a terminal and json otherwise."""


def ssl_cause(error: Exception) -> str:
    """Why files of certificates cannot serve, in words without their contents. error: the ssl module's."""
    match getattr(error, "reason", None):
        case "KEY_VALUES_MISMATCH":
            return "the key is not the certificate's"
        case "NO_START_LINE" | "NO_CERTIFICATE_OR_CRL_FOUND" | None:
            return "no PEM text was found, or it is broken or encrypted"
        case reason:
            return str(reason).lower().replace("_", " ")
