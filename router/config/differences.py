"""What changes between two configurations, in words, and how each change comes into force; secrets are told to differ,
never shown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum

from router.config.loaded import LoadedConfig
from router.model.identity import TenantName
from router.model.secret_commands import SecretCommand
from router.model.topology import Cluster, Endpoint, Secret, Tenant
from router.model.views import ConfigChange, ConfigEffect

_Path = tuple[str, ...]

_AT_START = frozenset({"server", "log", "retry"})
"""Sections that are read when the router starts: its ports, its log, its retry budgets."""
_TENANT_CONNECTS = frozenset({"cluster", "database", "isolation", "role", "login", "pool"})
_TENANT_LIMITS = frozenset({"commit_wait", "max_timeout_s", "idle_in_transaction_s"})
_CLUSTER_CONNECTS = frozenset({"control", "control_database"})
_ENDPOINT_CONNECTS = frozenset({"host", "port", "tls"})


def diff(old: LoadedConfig, new: LoadedConfig) -> tuple[ConfigChange, ...]:
    """Each change: "tenants.acme.pool.max_size: 8 → 16", "tenants.beta: added", and how it comes into force."""
    return tuple(
        ConfigChange(".".join(path), change, effect_of(path, change))
        for path, change in _changes((), _parts(old), _parts(new))
    )


def tenant_differences(
    old: Mapping[TenantName, Tenant], new: Mapping[TenantName, Tenant], names: Iterable[TenantName]
) -> tuple[ConfigChange, ...]:
    """The same of some tenants only."""
    before, after = ({name: tenants[name] for name in names if name in tenants} for tenants in (old, new))
    return tuple(
        ConfigChange(".".join(path), change, effect_of(path, change))
        for path, change in _changes(("tenants",), before, after)
    )


def effect_of(path: _Path, change: str) -> ConfigEffect:
    """How a change at a path of keys comes into force."""
    match path:
        case ("server", "watch_s"):
            return ConfigEffect.AT_ONCE
        case (section, *_) if section in _AT_START:
            return ConfigEffect.RESTART
        case ("tenants" | "clusters", _) | ("clusters", _, "endpoints", _) if change == "removed":
            return ConfigEffect.DRAINS
        case ("tenants", _, part, *_) if part in _TENANT_CONNECTS:
            return ConfigEffect.NEW_CONNECTIONS
        case ("tenants", _, "limits", limit) if limit in _TENANT_LIMITS:
            return ConfigEffect.NEW_CONNECTIONS
        case ("clusters", _, part, *_) if part in _CLUSTER_CONNECTS:
            return ConfigEffect.NEW_CONNECTIONS
        case ("clusters", _, "endpoints", _, part, *_) if part in _ENDPOINT_CONNECTS:
            return ConfigEffect.NEW_CONNECTIONS
        case _:
            return ConfigEffect.AT_ONCE


def _parts(config: LoadedConfig) -> dict[str, object]:
    return {
        "server": config.server,
        "admin": {"tokens": config.admin_tokens, "callers": config.admin_callers},
        "log": config.log,
        "retry": config.retry,
        "clusters": config.topology.clusters,
        "tenants": config.topology.tenants,
    }


def _changes(path: _Path, old: object, new: object) -> Iterator[tuple[_Path, str]]:
    if old is new or old == new:
        return
    before, after = _children(old), _children(new)
    if before is None or after is None:
        yield path, _shown(old, new)
        return
    for name in [*before, *(name for name in after if name not in before)]:
        here = (*path, name)
        if name not in after:
            yield here, "removed"
        elif name not in before:
            yield here, "added"
        else:
            yield from _changes(here, before[name], after[name])


def _children(value: object) -> dict[str, object] | None:
    """The named parts of a section; None for a plain value. Sections are told apart by shape, as in the file."""
    if isinstance(value, Secret | SecretCommand | Enum):
        return None
    if isinstance(value, Mapping):
        return {str(name): part for name, part in value.items()}
    if isinstance(value, tuple) and value and all(isinstance(part, Endpoint) for part in value):
        return {part.name: part for part in value}
    if is_dataclass(value):
        named = {part.name: getattr(value, part.name) for part in fields(value) if part.name != "name"}
        if isinstance(value, Cluster):
            named.update(_children(named.pop("policy")) or {})  # in the file these stand in the cluster itself
        if isinstance(value, Tenant):
            named["limits"] = named.pop("policy")
        return named
    return None


def _shown(old: object, new: object) -> str:
    if any(isinstance(value, Secret | SecretCommand) or _holds_secrets(value) for value in (old, new)):
        return "changed (secret)"
    return f"{_text(old)} → {_text(new)}"


def _holds_secrets(value: object) -> bool:
    return isinstance(value, tuple) and any(isinstance(part, Secret) for part in value)


def _text(value: object) -> str:
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None or value == "" else str(value)
