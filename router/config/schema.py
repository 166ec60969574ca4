"""The form of the configuration file: names and nesting. Defaults are those of model/policy.py and topology.py.

A docstring under a field is its description in the JSON Schema and in the generated reference.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, unique
from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from router.config.secret_references import PasswordReference, SecretReference, TokenReference
from router.model.policy import ClusterPolicy, PoolPolicy, RetryPolicy, ServerPolicy, TenantPolicy
from router.model.port_policies import LogPolicy
from router.model.secret_commands import LONGEST_RUN_S, LONGEST_TTL_S, SecretCommand
from router.model.topology import Endpoint, FailoverMode, IsolationMode, TlsSettings

_STRICT: dict[str, object] = {"use_attribute_docstrings": True, "extra": "forbid"}

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$")]
Port = Annotated[int, Field(ge=1, le=65535)]
Weight = Annotated[int, Field(ge=0, le=1_000_000)]
Connections = Annotated[int, Field(ge=1, le=1_000_000)]
Text = Annotated[str, Field(min_length=1)]


class _Section(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True, extra="forbid", frozen=True)


@unique
class TlsMode(Enum):
    """libpq's sslmode."""

    DISABLE = "disable"
    ALLOW = "allow"
    PREFER = "prefer"
    REQUIRE = "require"
    VERIFY_CA = "verify-ca"
    VERIFY_FULL = "verify-full"


@unique
class Role(Enum):
    """What a caller may do."""

    READER = "reader"
    WRITER = "writer"


class OperatorSection(_Section):
    """Somebody who proves to be an operator. Exactly one of spiffe, dns and token."""

    spiffe: Text | None = None
    """SPIFFE id of its certificate: spiffe://TRUST-DOMAIN/PATH."""
    dns: Text | None = None
    """DNS name in its certificate (a subject alternative name; the common name never counts)."""
    token: TokenReference | None = None
    """Its token: a reference, or sha256: and the token's SHA-256 in hexadecimal."""


class CallerSection(OperatorSection):
    """Somebody who may call as the tenant. Exactly one of spiffe, dns, subject and token."""

    subject: Text | None = None
    """Subject (`sub`) of its signed token; see server.jwt."""
    role: Role = Role.WRITER
    """reader may Query, StreamQuery, CopyOut and Listen, writer everything."""


class AdminSection(_Section):
    """Who may operate the router."""

    tokens: tuple[SecretReference, ...] = ()
    """References to the tokens that operators prove themselves with; several, so that they can be changed."""
    callers: tuple[OperatorSection, ...] = ()
    """Operators who prove themselves otherwise."""


class LoginSection(_Section):
    """A PostgreSQL role that the router logs in with."""

    user: Text
    """Name of the role."""
    password: PasswordReference | None = None
    """Reference to its password; without one, a client certificate or the server's trust must do. command:PROGRAM
    ARGUMENT ... runs a program, without a shell, when a connection is to be opened, and takes what it prints, such as a
    token of `aws rds generate-db-auth-token` or `gcloud sql generate-login-token`."""
    command_ttl_s: Annotated[float, Field(ge=1, le=LONGEST_TTL_S)] = SecretCommand.ttl_s
    """New connections are opened with what a command printed for so long; it is run again when three quarters are over.
    If that fails, the old goes on, with an alarm. Shorter than what is printed is good for (IAM: 15 minutes)."""
    command_timeout_s: Annotated[float, Field(gt=0, le=LONGEST_RUN_S)] = SecretCommand.timeout_s
    """A command that takes longer is ended."""


class TlsSection(_Section):
    """How connections to PostgreSQL are protected."""

    mode: TlsMode = TlsMode(TlsSettings().mode)
    """libpq's sslmode. verify-full is the only one that proves whom the router talks to."""
    root_cert: Text | None = None
    """File with the certificate authorities that are believed; needed by verify-ca and verify-full."""
    cert: Text | None = None
    """File with the router's client certificate."""
    key: Text | None = None
    """File with the client certificate's private key."""


class EndpointSection(_Section):
    """One PostgreSQL server. Its role is observed, never configured."""

    host: Text
    """Host name or address."""
    port: Port = Endpoint.port
    """TCP port."""
    zone: str = Endpoint.zone
    """Where it stands (an availability zone, a rack)."""
    weight: Weight = Endpoint.weight
    """Share of balanced reads relative to the other endpoints; 0 takes none by choice."""
    max_connections: Connections = Endpoint.max_connections
    """Most connections of the whole router to it, over all tenants, both accesses and all workers; the probes' own two
    come on top. PostgreSQL's own max_connections is 100 unless set, of which some are reserved and some for others."""
    tls: TlsSection = TlsSection()
    """How the connections to it are protected."""


@dataclass(frozen=True, kw_only=True)
class ClusterSection(ClusterPolicy):
    """Endpoints that replicate one another: one primary and its replicas."""

    __pydantic_config__: ClassVar = _STRICT

    mode: FailoverMode = FailoverMode.FOLLOW
    """follow: Patroni, a cloud or a person promotes, the router notices and moves. promote: the router fences, promotes
    and repoints by itself."""
    control: LoginSection
    """The router's own role: probes; in promote mode it also fences and promotes."""
    control_database: Text = "postgres"
    """Database that the control role connects to."""
    endpoints: dict[Name, EndpointSection]
    """The servers, by name. A name must be unique among all clusters: it is what tools, metrics and receipts show."""


@dataclass(frozen=True, kw_only=True)
class TenantSection:
    """Who calls: a service with a database, a login and limits of its own."""

    __pydantic_config__: ClassVar = _STRICT

    cluster: Name
    """Name of the cluster that holds its database."""
    database: Text
    """Name of its database."""
    login: LoginSection
    """Its role in PostgreSQL, which keeps tenants apart; only registered tenants may share one."""
    tokens: tuple[SecretReference, ...] = ()
    """References to the tokens that its callers prove themselves with; several, so that they can be changed."""
    callers: tuple[CallerSection, ...] = ()
    """Who may call as it besides, by certificate, signed token or a token's hash, and in which role. A certificate or a
    subject may stand in several tenants: the call then names one."""
    weights: dict[Name, Weight] = field(default_factory=dict)
    """Weights of endpoints for this tenant's reads, where they differ from the endpoints' own."""
    isolation: IsolationMode = IsolationMode.DATABASE
    """database: a database and a login of its own, any SQL. schema: a login and a schema of its own in a database that
    others use, too; any SQL, for tenants that are half trusted. registered: a login that others may share, behind
    row-level security (current_setting('pointsman.tenant') is its name) or a role; only its registered statements
    run."""
    paused: bool = False
    """Its requests wait, as in a failover, until it is resumed; transactions that are open go on."""
    role: Text | None = None
    """Role that each of its connections takes in place of the login's own rights (registered only)."""
    statements: dict[Name, Text] = field(default_factory=dict)
    """SQL by name (registered only, and all that it may run): callers send @NAME, or exactly the same text."""
    channels: tuple[Text, ...] = ()
    """What it may listen to (LISTEN). Empty: everything in a database of its own; with isolation schema or registered
    nothing, as channels belong to the whole database: name some there that no neighbour has. What neighbours that may
    send any SQL put into them cannot be kept out."""
    pool: PoolPolicy = field(default_factory=PoolPolicy)
    """Its connections to each endpoint; read-only and read-write are kept apart."""
    limits: TenantPolicy = field(default_factory=TenantPolicy)
    """Its limits and defaults."""


class FileConfig(_Section):
    """Configuration of a Pointsman router."""

    server: ServerPolicy = ServerPolicy()
    """The router process itself."""
    admin: AdminSection
    """Who may operate the router."""
    log: LogPolicy = LogPolicy()
    """What is logged, and how."""
    retry: RetryPolicy = RetryPolicy()
    """Repeating what provably left no effect."""
    clusters: dict[Name, ClusterSection]
    """Clusters of PostgreSQL servers, by name."""
    tenants: dict[Name, TenantSection] = Field(default_factory=dict)
    """Tenants, by name. For many, or for some that come and go, see tenants_dir."""
    tenants_dir: Text | None = None
    """In place of tenants: a folder with one file for each, NAME.yaml, holding what would stand here below its name.
    Relative to this file, as are the secrets that it refers to. Files may come, change and go while the router runs,
    by hand or by `pointsman tenant create` and the like; one with mistakes leaves its tenant as it was."""
