"""Who uses which database, login, role and token: what one tenant's file must be judged with, of ten thousand."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from router.config.caller_sections import token_id
from router.model.callers import CallerId
from router.model.topology import IsolationMode, Tenant

_SEVERAL = 4
"""Sharers of one kind that are looked at: enough to find every mistake, and to name three others."""

_Use = tuple[str, str, str]
"""What is used, its cluster, its name."""


class TenantIndex:
    """Tenants by what they use."""

    def __init__(self) -> None:
        self._users: dict[tuple[_Use, IsolationMode], dict[str, None]] = {}
        self._owners: dict[CallerId, str] = {}

    def add(self, tenant: Tenant) -> None:
        """A tenant that is in force."""
        for use in _uses(tenant):
            self._users.setdefault((use, tenant.isolation), {})[tenant.name] = None
        for token in _tokens(tenant):
            self._owners[token] = tenant.name

    def drop(self, tenant: Tenant) -> None:
        """It is not any more, or is about to be another. Never raises, so that nobody is dropped by half."""
        for use in _uses(tenant):
            users = self._users.get((use, tenant.isolation), {})
            users.pop(tenant.name, None)
            if not users:
                self._users.pop((use, tenant.isolation), None)
        for token in _tokens(tenant):
            if self._owners.get(token) == tenant.name:  # else another one has taken it over
                del self._owners[token]

    def owner(self, token: CallerId) -> str | None:
        """The tenant that a token proves."""
        return self._owners.get(token)

    def neighbours(self, sections: Mapping[str, Any]) -> set[str]:
        """Tenants in force whose relations to these sections, by name, may be wrong; of many alike only a few."""
        found: set[str] = set()
        for use in {use for section in sections.values() for use in _wanted(section)}:
            for isolation in IsolationMode:
                users = self._users.get((use, isolation), ())
                # Floors add up, to no more than an endpoint's connections.
                found.update(_first(users, sections, len(users) if use[0] == "floor" else _SEVERAL))
        return found


def _first(users: Collection[str], besides: Mapping[str, Any], left: int) -> Iterator[str]:
    for name in users:
        if name not in besides:
            yield name
            left -= 1
            if not left:
                return


def _uses(tenant: Tenant) -> tuple[_Use, ...]:
    cluster = tenant.cluster
    uses: list[_Use] = [("database", cluster, tenant.database), ("login", cluster, tenant.login.user)]
    if tenant.role:
        uses.append(("role", cluster, tenant.role))
    uses += (("channel", cluster, f"{tenant.database}\0{channel}") for channel in tenant.channels)
    if tenant.pool.floor:
        uses.append(("floor", cluster, ""))
    return tuple(uses)


def _tokens(tenant: Tenant) -> Iterator[CallerId]:
    for token in tenant.tokens:
        yield token_id(token.value)
    for grant in tenant.callers:
        if grant.id.startswith("token:"):
            yield grant.id


def _wanted(section: Any) -> Iterator[_Use]:
    if not isinstance(section, Mapping):
        return
    cluster, login = str(section.get("cluster")), section.get("login")
    yield "database", cluster, str(section.get("database"))
    user = str(login.get("user")) if isinstance(login, Mapping) else ""
    yield "login", cluster, user
    yield "role", cluster, user
    yield "login", cluster, str(section.get("role") or "")
    channels = section.get("channels")
    for channel in channels if isinstance(channels, list | tuple) else ():
        yield "channel", cluster, f"{section.get('database')}\0{channel}"
    pool = section.get("pool")
    if isinstance(pool, Mapping) and pool.get("floor"):
        yield "floor", cluster, ""
