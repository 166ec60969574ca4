"""What changes between two configurations, in words; secrets are told to differ, never shown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum

from pydantic import BaseModel

from router.config.loading import LoadedConfig
from router.model.topology import Cluster, Endpoint, Secret, Tenant


def diff(old: LoadedConfig, new: LoadedConfig) -> tuple[str, ...]:
    """Each change as one line: "tenants.acme.pool.max_size: 8 → 16", "tenants.beta: added"."""
    return tuple(_changes("", _parts(old), _parts(new)))


def needs_restart(old: LoadedConfig, new: LoadedConfig) -> tuple[str, ...]:
    """Those of the changes that a reload cannot make: addresses and limits of the running servers."""
    return tuple(line for line in diff(old, new) if line.startswith("server."))


def _parts(config: LoadedConfig) -> dict[str, object]:
    return {
        "server": config.server,
        "admin": {"tokens": config.admin_tokens, "callers": config.admin_callers},
        "log": config.log,
        "retry": config.retry,
        "clusters": config.topology.clusters,
        "tenants": config.topology.tenants,
    }


def _changes(place: str, old: object, new: object) -> Iterator[str]:
    if old == new:
        return
    before, after = _children(old), _children(new)
    if before is None or after is None:
        yield f"{place}: {_shown(old, new)}"
        return
    for name in [*before, *(name for name in after if name not in before)]:
        here = f"{place}.{name}" if place else name
        if name not in after:
            yield f"{here}: removed"
        elif name not in before:
            yield f"{here}: added"
        else:
            yield from _changes(here, before[name], after[name])


def _children(value: object) -> dict[str, object] | None:
    """The named parts of a section; None for a plain value. Sections are told apart by shape, as in the file."""
    if isinstance(value, Secret | Enum):
        return None
    if isinstance(value, Mapping):
        return {str(name): part for name, part in value.items()}
    if isinstance(value, tuple) and value and all(isinstance(part, Endpoint) for part in value):
        return {part.name: part for part in value}
    if isinstance(value, BaseModel):
        return {name: getattr(value, name) for name in type(value).model_fields}
    if is_dataclass(value):
        named = {part.name: getattr(value, part.name) for part in fields(value) if part.name != "name"}
        if isinstance(value, Cluster):
            named.update(_children(named.pop("policy")) or {})  # in the file these stand in the cluster itself
        if isinstance(value, Tenant):
            named["limits"] = named.pop("policy")
        return named
    return None


def _shown(old: object, new: object) -> str:
    if any(isinstance(value, Secret) or _holds_secrets(value) for value in (old, new)):
        return "changed (secret)"
    return f"{_text(old)} → {_text(new)}"


def _holds_secrets(value: object) -> bool:
    return isinstance(value, tuple) and any(isinstance(part, Secret) for part in value)


def _text(value: object) -> str:
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value is None or value == "" else str(value)
