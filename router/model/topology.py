"""What is configured: clusters of endpoints and the tenants that use them. What is observed is in observation.py."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum, unique

from router.model.callers import CallerGrant
from router.model.identity import ClusterName, EndpointName, TenantName
from router.model.policy import ClusterPolicy, PoolPolicy, TenantPolicy
from router.model.secret_commands import SecretCommand


@unique
class Role(Enum):
    """An endpoint's role as observed, never as configured."""

    PRIMARY = "primary"
    REPLICA = "replica"
    UNKNOWN = "unknown"


@unique
class FailoverMode(Enum):
    """Who moves the primary."""

    FOLLOW = "follow"
    """Patroni, a cloud or a person; the router notices and moves."""
    PROMOTE = "promote"
    """The router fences, promotes and repoints by itself."""


@unique
class IsolationMode(Enum):
    """What keeps a tenant apart from its neighbours in PostgreSQL, and so what it may send."""

    DATABASE = "database"
    """A database and a login of its own: it may send any SQL."""
    SCHEMA = "schema"
    """A login and a schema of its own in a database that others use, too: any SQL, of tenants that are half trusted.
    They can read each other's catalogues (names, function bodies) and share locks, channels and resources."""
    REGISTERED = "registered"
    """A login that others may use, too, behind row-level security or a role to be taken: any SQL could step around
    those, so only statements of the configuration run."""


@dataclass(frozen=True)
class TlsSettings:
    """How a connection to PostgreSQL is protected; libpq's sslmode and files."""

    mode: str = "prefer"
    root_cert: str | None = None
    cert: str | None = None
    key: str | None = None


@dataclass(frozen=True, slots=True)
class Secret:
    """A secret's value, resolved from env: or file:. Prints as stars, so that it cannot leak by a log or a repr."""

    value: str = field(repr=False)

    def __str__(self) -> str:
        return "***"


@dataclass(frozen=True, slots=True)
class Login:
    """A role that the router logs in with, and its secret (None: certificate or trust)."""

    user: str
    password: Secret | SecretCommand | None = None


@dataclass(frozen=True)
class Endpoint:
    """One PostgreSQL server."""

    name: EndpointName
    cluster: ClusterName
    host: str
    port: int = 5432
    zone: str = ""
    weight: int = 100
    """Share of balanced reads relative to the other endpoints; 0 takes none by choice."""
    tls: TlsSettings = TlsSettings()
    max_connections: int = 80
    """Most connections of the whole router to it, of all tenants and workers; not the probes' own. PostgreSQL's
    max_connections is 100 unless set, of which some are reserved and some are for others."""

    def __post_init__(self) -> None:
        if self.max_connections < 1:
            raise ValueError(f"max_connections must be at least 1, not {self.max_connections}")

    def same_server(self, other: Endpoint) -> bool:
        """Whether connections to the other one are as good: what differs is not where and how they were opened."""
        return (self.host, self.port, self.tls) == (other.host, other.port, other.tls)


@dataclass(frozen=True)
class Cluster:
    """Endpoints that replicate one another."""

    name: ClusterName
    endpoints: tuple[Endpoint, ...]
    control: Login
    """The router's own role: probes, and in promote mode fences and promotes."""
    control_database: str = "postgres"
    mode: FailoverMode = FailoverMode.FOLLOW
    policy: ClusterPolicy = ClusterPolicy()


@dataclass(frozen=True, slots=True)
class Tenant:
    """Who calls: a service with a database, a login and limits of its own."""

    name: TenantName
    cluster: ClusterName
    database: str
    login: Login
    tokens: tuple[Secret, ...] = ()
    callers: tuple[CallerGrant, ...] = ()
    """Who else may call as it: by certificate, by signed token, or by a token of which only the hash is known."""
    weights: Mapping[EndpointName, int] = field(default_factory=dict)
    """Overrides of the endpoints' weights for this tenant's reads."""
    isolation: IsolationMode = IsolationMode.DATABASE
    role: str = ""
    """REGISTERED only: taken by every connection in place of the login's own rights; empty: none."""
    statements: Mapping[str, str] = field(default_factory=dict)
    """REGISTERED only: the SQL it may run, by name."""
    channels: tuple[str, ...] = ()
    """What it may listen to. Empty: everything in a database of its own, nothing in one that others use, too."""
    pool: PoolPolicy = PoolPolicy()
    policy: TenantPolicy = TenantPolicy()
    paused: bool = False
    """Its requests wait until it is resumed."""

    def same_home(self, other: Tenant) -> bool:
        """Whether both are the same user of the same data: what was judged for the one may run as the other."""
        return (self.cluster, self.database, self.isolation, self.role) == (
            other.cluster, other.database, other.isolation, other.role,
        )  # fmt: skip

    def same_connections(self, other: Tenant) -> bool:
        """Whether connections of the other one are as good, save for their login: what differs is not how they were
        opened or are kept. Another login has to prove itself before connections move to it."""
        return self._connections() == other._connections()

    def _connections(self) -> tuple[object, ...]:
        limits = self.policy
        kept = (limits.commit_wait, limits.max_timeout_s, limits.idle_in_transaction_s)
        return (self.name, self.cluster, self.database, self.isolation, self.role, self.pool, *kept)


@dataclass(frozen=True)
class Topology:
    """All that is configured, immutable; a change makes a new one."""

    clusters: Mapping[ClusterName, Cluster]
    tenants: Mapping[TenantName, Tenant]


@dataclass(frozen=True, slots=True)
class TenantChanges:
    """Tenants that come, change or go while all else stays."""

    changed: tuple[Tenant, ...] = ()
    """New ones among them."""
    removed: tuple[TenantName, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.changed or self.removed)

    @classmethod
    def between(cls, before: Mapping[TenantName, Tenant], after: Mapping[TenantName, Tenant]) -> TenantChanges:
        """What became of the one to make the other."""
        changed = (one for name, one in after.items() if before.get(name) != one)
        return cls(tuple(changed), tuple(name for name in before if name not in after))

    def also(self, names: Collection[TenantName], after: Mapping[TenantName, Tenant]) -> TenantChanges:
        """The same and these, as they are among the tenants after it."""
        more = set(names) - {one.name for one in self.changed} - set(self.removed)
        changed = tuple(after[name] for name in sorted(more) if name in after)
        return TenantChanges(self.changed + changed, self.removed + tuple(sorted(more - after.keys())))

    @property
    def names(self) -> tuple[TenantName, ...]:
        """Of them all."""
        return (*(one.name for one in self.changed), *self.removed)

    def parts(self, most: int) -> Iterator[TenantChanges]:
        """The same in several steps of so many tenants each."""
        steps = range(0, max(len(self.changed), len(self.removed)), most)
        return (TenantChanges(self.changed[at : at + most], self.removed[at : at + most]) for at in steps)

    def of(self, tenants: Mapping[TenantName, Tenant]) -> dict[TenantName, Tenant]:
        """The tenants after the changes."""
        after = dict(tenants)
        for name in self.removed:
            after.pop(name, None)
        return after | {one.name: one for one in self.changed}
