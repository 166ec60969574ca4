"""Single keys of a tenant's document, set from outside: KEY=VALUE, the value in YAML."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from router.config.document import parse


class EditMistake(Exception):
    """A change that cannot be made. str() is what the operator reads."""


def edited(text: str, changes: Sequence[str]) -> str:
    """The document with these keys set, in dotted form; an empty value takes one away. Unchanged without any."""
    if not changes:
        return text
    document = parse(text) if text.strip() else None
    if document is not None and document.problems:
        raise EditMistake(f"the document cannot be read: {document.problems[0]}")
    values: dict[str, Any] = document.values if document is not None else {}
    for change in changes:
        key, sign, written = change.partition("=")
        if not sign or not all(key.split(".")):
            raise EditMistake(f"{change!r} is not KEY=VALUE")
        indented = written.replace("\n", "\n  ")
        value = parse(f"value:\n  {indented}\n")  # what a document takes, a change may bring
        if value.problems:
            raise EditMistake(f"the value of {key} {value.problems[0].message}")
        _set(values, key.split("."), value.values.get("value"))
    result: str = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    return result


def _set(values: dict[str, Any], path: Sequence[str], value: object) -> None:
    for part in path[:-1]:
        inner = values.setdefault(part, {})
        if not isinstance(inner, dict):
            raise EditMistake(f"{part} is not a section")
        values = inner
    if value is None:
        values.pop(path[-1], None)
    else:
        values[path[-1]] = value
