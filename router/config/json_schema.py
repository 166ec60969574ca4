"""The JSON Schema of the configuration file, for editors and for the generated reference."""

from __future__ import annotations

from functools import cache
from typing import Any

from pydantic import TypeAdapter

from router.config.problems import Place
from router.config.schema import ClusterSection, FileConfig
from router.model.policy import ClusterPolicy

Schema = dict[str, Any]


@cache
def schema() -> Schema:
    """JSON Schema (2020-12) of the whole file. Treat as read-only."""
    whole: Schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **FileConfig.model_json_schema()}
    whole["title"] = "Pointsman configuration"
    # pydantic reads the docstrings of a dataclass's own fields only, not those it inherits.
    inherited = TypeAdapter(ClusterPolicy).json_schema()["properties"]
    cluster = whole["$defs"][ClusterSection.__name__]
    for name, part in cluster["properties"].items():
        if name in inherited and "description" in inherited[name]:
            part.setdefault("description", inherited[name]["description"])
    # What a cluster is comes first, how it is treated after it.
    cluster["properties"] = dict(sorted(cluster["properties"].items(), key=lambda item: item[0] in inherited))
    for part in whole["$defs"].values():
        part.pop("title", None)
        _tidy(part)
    _tidy(whole)
    return whole


def _tidy(part: Schema) -> None:
    """Descriptions on one line; no titles that only repeat the name; defaults of sections left to their fields."""
    if "description" in part:
        part["description"] = " ".join(part["description"].split())
    for child in part.get("properties", {}).values():
        child.pop("title", None)
        if "description" in child:
            child["description"] = " ".join(child["description"].split())
        if isinstance(child.get("default"), dict):
            del child["default"]


def resolve(part: Schema) -> Schema:
    """Follow a $ref, keeping what stands beside it; of "this or nothing" take this."""
    for choice in part.get("anyOf", ()):
        if choice.get("type") != "null":
            return {**resolve(choice), **{key: value for key, value in part.items() if key != "anyOf"}}
    if "$ref" not in part:
        return part
    target: Schema = schema()["$defs"][part["$ref"].rpartition("/")[2]]
    return {**resolve(target), **{key: value for key, value in part.items() if key != "$ref"}}


def form_at(place: Place) -> Schema:
    """The schema of a value, references followed; empty where nothing is expected."""
    part = resolve(schema())
    for key in place:
        child = part.get("properties", {}).get(key) or part.get("items") or _free_names(part)
        if not isinstance(child, dict):
            return {}
        part = resolve(child)
    return part


def names_at(place: Place) -> tuple[str, ...]:
    """The keys that a section takes; empty where names are free, or where there is no section."""
    return tuple(form_at(place).get("properties", ()))


def _free_names(part: Schema) -> object:
    """The form of values under names that the operator chooses."""
    for form in part.get("patternProperties", {}).values():
        return form
    return part.get("additionalProperties")
