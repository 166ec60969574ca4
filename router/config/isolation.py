"""Which tenants may share what: databases, logins, roles. What PostgreSQL could not keep apart is refused here.

The rule behind all: who may send any SQL can leave whatever a session was put into (RESET ROLE, set_config), so it
needs a login that is nobody else's; a login may be shared only by those who send no SQL of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from router.config.document import Document
from router.config.problems import Place
from router.config.schema import FileConfig, TenantSection
from router.model.listening import MAX_CHANNEL_BYTES, is_channel_name
from router.model.topology import IsolationMode

_TEMPLATES = frozenset({"template0", "template1"})

Found = tuple[Place, str]


def check(config: FileConfig, document: Document) -> Iterator[Found]:
    """Each mistake with its place."""
    for name, tenant in config.tenants.items():
        place = ("tenants", name)
        if document.is_sound((*place, "isolation")):
            yield from _statements(place, tenant, document)
        yield from _reserved(place, tenant, config, document)
    yield from _databases(config, document)
    yield from _logins(config, document)
    yield from _roles(config, document)
    yield from _channels(config, document)


def _statements(place: Place, tenant: TenantSection, document: Document) -> Iterator[Found]:
    sound = document.is_sound((*place, "statements"))
    if tenant.isolation is IsolationMode.REGISTERED:
        if sound and not tenant.statements:
            yield (*place, "statements"), "must hold at least one statement: a registered tenant may run nothing else"
        if tenant.role is not None and tenant.role == tenant.login.user:
            yield (*place, "role"), f"({tenant.role}) is the login itself: name another role, or leave it out"
        return
    why = f"with isolation: {tenant.isolation.value} any SQL may run; set isolation: registered, or leave it out"
    if sound and tenant.statements:
        yield (*place, "statements"), f"would not hold: {why}"
    if tenant.role is not None:
        yield (*place, "role"), f"({tenant.role}) could be left by RESET ROLE: {why}"


def _reserved(place: Place, tenant: TenantSection, config: FileConfig, document: Document) -> Iterator[Found]:
    """What is the router's own, or everyone's."""
    cluster = config.clusters.get(tenant.cluster)
    if cluster is None or not document.is_sound((*place, "cluster")):
        return
    control = cluster.control.user
    for key, role in (("login", tenant.login.user), ("role", tenant.role)):
        where = (*place, "login", "user") if key == "login" else (*place, "role")
        if role == control and document.is_sound(where):
            yield where, f"({role}) is the control role of cluster {tenant.cluster}: a tenant needs its own role"
    if not document.is_sound((*place, "database")):
        return
    if tenant.database == cluster.control_database:
        yield (
            (*place, "database"),
            f"({tenant.database}) is the control database of cluster {tenant.cluster}: give the tenant its own",
        )
    elif tenant.database in _TEMPLATES:
        yield (*place, "database"), f"({tenant.database}) is copied into new databases: give the tenant its own"


def _databases(config: FileConfig, document: Document) -> Iterator[Found]:
    users: dict[tuple[str, str], list[str]] = {}
    for name, tenant in config.tenants.items():
        if document.is_sound(("tenants", name, "cluster"), ("tenants", name, "database")):
            users.setdefault((tenant.cluster, tenant.database), []).append(name)
    for (_, database), names in users.items():
        for name in names if len(names) > 1 else ():
            told = document.is_sound(("tenants", name, "isolation"))
            if told and config.tenants[name].isolation is IsolationMode.DATABASE:
                yield (
                    ("tenants", name, "database"),
                    f"({database}) is also used by {_others(names, name)}: with isolation: database it is the "
                    "tenant's alone. Give it its own, or set isolation: schema on each of them, with a login and a "
                    "schema of its own",
                )


def _logins(config: FileConfig, document: Document) -> Iterator[Found]:
    users: dict[tuple[str, str], list[str]] = {}
    for name, tenant in config.tenants.items():
        if document.is_sound(("tenants", name, "cluster"), ("tenants", name, "login", "user")):
            users.setdefault((tenant.cluster, tenant.login.user), []).append(name)
    for (_, user), names in users.items():
        for name in names if len(names) > 1 else ():
            told = document.is_sound(("tenants", name, "isolation"))
            if told and config.tenants[name].isolation is not IsolationMode.REGISTERED:
                yield (
                    ("tenants", name, "login", "user"),
                    f"({user}) is also the role of {_others(names, name)}: tenants that share a role and send any SQL "
                    "can read each other's data. Give each its own, or set isolation: registered on all of them",
                )


def _roles(config: FileConfig, document: Document) -> Iterator[Found]:
    """Who may take a role is its member: nobody may be a member of another tenant's login."""
    logins: dict[tuple[str, str], str] = {}
    for name, tenant in config.tenants.items():
        if document.is_sound(("tenants", name, "login", "user")):
            logins.setdefault((tenant.cluster, tenant.login.user), name)
    for name, tenant in config.tenants.items():
        owner = logins.get((tenant.cluster, tenant.role or ""))
        if owner is not None and owner != name and document.is_sound(("tenants", name, "role")):
            yield ("tenants", name, "role"), f"({tenant.role}) is the login of tenant {owner}: it could read its data"


def _channels(config: FileConfig, document: Document) -> Iterator[Found]:
    """Channels belong to a database: two tenants of one that name the same would hear each other."""
    users: dict[tuple[str, str, str], list[tuple[str, int]]] = {}
    for name, tenant in config.tenants.items():
        if not document.is_sound(("tenants", name, "channels"), ("tenants", name, "cluster")):
            continue
        for index, channel in enumerate(tenant.channels):
            users.setdefault((tenant.cluster, tenant.database, channel), []).append((name, index))
            if not is_channel_name(channel):
                yield (
                    ("tenants", name, "channels", index),
                    f"must have at most {MAX_CHANNEL_BYTES} bytes and no NUL: PostgreSQL would cut it off",
                )
    for (_, database, channel), places in users.items():
        names = list(dict.fromkeys(name for name, _ in places))
        for name, index in places if len(names) > 1 else ():
            yield (
                ("tenants", name, "channels", index),
                f"({channel}) is also a channel of {_others(names, name)} in database {database}: each would hear what "
                "is meant for the other. Give each its own, such as the tenant's name in front",
            )


def _others(names: Iterable[str], name: str) -> str:
    others = [other for other in names if other != name]
    more = f" and {len(others) - 3} more" if len(others) > 3 else ""
    return f"tenant{'s' if len(others) > 1 else ''} {', '.join(others[:3])}{more}"
