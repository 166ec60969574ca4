"""A tenant's section of the configuration file, as a document of its own."""

from __future__ import annotations

import yaml

from router.config.document import parse


def section_of(text: bytes, name: str) -> str | None:
    """What stands below a tenant's name, written anew as YAML; None where nothing does."""
    tenants = parse(text.decode("utf-8-sig", "replace")).values.get("tenants")
    found = tenants.get(name) if isinstance(tenants, dict) else None
    if found is None:
        return None
    written: str = yaml.safe_dump(found, sort_keys=False, allow_unicode=True, width=110)
    return written
