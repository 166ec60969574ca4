"""The configuration reference in Markdown, generated from the schema, and its place in a file between two markers.

`pointsman config reference --write deploy/CONFIGURATION.md` renews it; a test says when it is stale.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from router.config.json_schema import Schema, resolve, schema

START = "<!-- config-reference -->"
END = "<!-- /config-reference -->"


class MarkersMissing(Exception):
    """The file has no place for the reference."""


def reference() -> str:
    """One table per section: key, type, default, meaning."""
    return "\n".join(_lines("", resolve(schema()))).strip() + "\n"


def fill(text: str) -> str:
    """The text with the reference between its markers renewed. MarkersMissing when a marker is not there."""
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise MarkersMissing(f"needs a line {START} and, below it, a line {END}")
    return f"{before}{START}\n{reference()}{END}{after}"


def _lines(place: str, part: Schema) -> Iterator[str]:
    required = part.get("required", ())
    sections: list[tuple[str, Schema]] = []
    if place:
        yield f"## `{place}`"
        yield ""
        yield part.get("description", "")
        yield ""
    rows = []
    for name, raw in part["properties"].items():
        field = resolve(raw)
        inner = _named_entries(field)
        path = f"{place}.{name}" if place else name
        if "properties" in field:
            sections.append((path, field))
        elif inner is not None and "properties" in inner:
            sections.append((f"{path}.NAME", inner))
        else:
            rows.append(_row(name, field, raw, name in required))
    if place:
        yield from _table(rows)
    for path, section in sections:
        yield from _lines(path, section)
    if rows and not place:
        yield "## Beside the sections"
        yield ""
        yield from _table(rows)


def _table(rows: Sequence[str]) -> Iterator[str]:
    if rows:
        yield "| key | type | default | meaning |"
        yield "|---|---|---|---|"
        yield from rows
        yield ""


def _named_entries(field: Schema) -> Schema | None:
    """What stands under names that the operator chooses."""
    for form in field.get("patternProperties", {}).values():
        return resolve(form)
    extra = field.get("additionalProperties")
    return resolve(extra) if isinstance(extra, dict) else None


def _row(name: str, field: Schema, raw: Schema, is_required: bool) -> str:
    if is_required:
        default = "**required**"
    elif field.get("default") in (None, ""):
        default = "none"
    else:
        default = f"`{json.dumps(field['default']).strip(chr(34))}`"
    meaning = raw.get("description") or field.get("description", "")
    return f"| `{name}` | {_type(field)} | {default} | {meaning.replace('|', chr(92) + '|')} |"


def _type(field: Schema) -> str:
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if _is_secret(field):
        return "secret reference"
    match field.get("type"):
        case "array":
            return f"list of {_type(resolve(field['items']))}s"
        case "object":
            inner = _named_entries(field)
            return f"name: {_type(inner)}" if inner else "section"
        case "integer":
            return "whole number"
        case "string":
            return "text"
        case "boolean":
            return "true or false"
        case other:
            return str(other)


def _is_secret(field: Schema) -> bool:
    return str(field.get("pattern", "")).startswith("^(env:")
