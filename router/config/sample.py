"""The commented sample configuration: every key with its meaning; optional ones commented out at their defaults."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping

from router.config.json_schema import Schema, resolve, schema

EXAMPLES: Mapping[str, object] = {
    "admin.tokens": ["env:POINTSMAN_ADMIN_TOKEN"],
    "server.tls.cert": "callers.pem",
    "server.tls.key": "callers.key",
    "server.tls.client_ca": "callers-ca.pem",
    "server.admin_tls.cert": "operators.pem",
    "server.admin_tls.key": "operators.key",
    "server.admin_tls.client_ca": "operators-ca.pem",
    "clusters.NAME.control.user": "pointsman_control",
    "clusters.NAME.control.password": "env:POINTSMAN_CONTROL_PASSWORD",
    "clusters.NAME.endpoints.NAME.host": "pg1.example.net",
    "clusters.NAME.endpoints.NAME.zone": "a",
    "clusters.NAME.endpoints.NAME.tls.root_cert": "/etc/pointsman/ca.pem",
    "clusters.NAME.endpoints.NAME.tls.cert": "/etc/pointsman/router.pem",
    "clusters.NAME.endpoints.NAME.tls.key": "/etc/pointsman/router.key",
    "tenants.NAME.cluster": "main",
    "tenants.NAME.database": "acme",
    "tenants.NAME.login.user": "acme",
    "tenants.NAME.login.password": "env:ACME_PASSWORD",
    "tenants.NAME.tokens": ["env:ACME_TOKEN"],
    "server.audit.file": "/var/log/pointsman/audit.jsonl",
    "server.jwt.keys": "https://login.example.net/keys.json",
    "server.jwt.issuer": "https://login.example.net",
    "server.jwt.audience": "pointsman",
    "admin.callers": ["{spiffe: spiffe://example.net/operators/night-shift}"],
    "tenants.NAME.callers": ["{spiffe: spiffe://example.net/acme/web}", "{subject: acme-reports, role: reader}"],
    "tenants.NAME.weights": {"pg1": 50},
    "tenants_dir": "tenants",
    "tenants.NAME.role": "acme_rows",
    "tenants.NAME.statements": {"order_by_id": "SELECT * FROM orders WHERE id = $1"},
    "tenants.NAME.channels": ["acme_jobs"],
}
_STAYS_COMMENTED = (
    "server",
    "clusters.NAME.endpoints.NAME.zone",
    "clusters.NAME.endpoints.NAME.tls",
    "tenants_dir",
    "tenants.NAME.weights",
    "tenants.NAME.role",
    "tenants.NAME.statements",
    "tenants.NAME.channels",
    "tenants.NAME.callers",
    "admin.callers",
)
_NAMES = {"clusters": "main", "clusters.NAME.endpoints": "pg1", "tenants": "acme"}
_MORE: Mapping[str, tuple[str, ...]] = {
    "clusters.NAME.endpoints": ("pg2: {host: pg2.example.net, zone: b}", "pg3: {host: pg3.example.net, zone: c}"),
}
_HEAD = """\
# Pointsman configuration: a sample with every key. What is commented out shows its default (or an example).
# Check a file with `pointsman check-config FILE`. Editors can use the output of `pointsman config schema`.
# Secrets are references: env:NAME is an environment variable, file:PATH a file (relative to this one); the password of
# a login may also be command:PROGRAM ARGUMENT ..., which prints it.
"""


def sample() -> str:
    """The text of deploy/pointsman.yaml."""
    return "\n".join([_HEAD, *_section("", resolve(schema()), 0)]).rstrip() + "\n"


def _section(place: str, part: Schema, depth: int) -> Iterator[str]:
    for name, raw in part["properties"].items():
        yield from _entry(f"{place}.{name}" if place else name, name, resolve(raw), depth)
        if depth == 0:
            yield ""


def _entry(path: str, name: str, field: Schema, depth: int) -> Iterator[str]:
    indent = "  " * depth
    words = field.get("description", "")
    yield from textwrap.wrap(words, 118, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")
    named = _NAMES.get(path)
    if named is not None:
        inner = next(iter(field["patternProperties"].values()))
        yield f"{indent}{name}:"
        yield f"{indent}  {named}:"
        yield from _section(f"{path}.NAME", resolve(inner), depth + 2)
        yield from (f"{indent}  {line}" for line in _MORE.get(path, ()))
    elif "properties" in field:
        mark = "" if _is_live(path) else "#"
        yield f"{indent}{mark}{name}:"
        yield from _section(path, field, depth + 1)
    else:
        mark = "" if _is_live(path) else "#"
        yield f"{indent}{mark}{name}: {_value(path, field)}"


def _is_live(path: str) -> bool:
    """Whether a key, or any key in a section, has an example that a configuration cannot do without."""
    if path.startswith(_STAYS_COMMENTED):
        return False
    return any(example == path or example.startswith(f"{path}.") for example in EXAMPLES)


def _value(path: str, field: Schema) -> str:
    value = EXAMPLES.get(path, field.get("default"))
    if isinstance(value, str):
        return value or '""'
    if isinstance(value, list):
        return f"[{', '.join(map(str, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {item}" for key, item in value.items()) + "}"
    return json.dumps(value)
