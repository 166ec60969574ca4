"""pydantic's errors → places and words that an operator can act on. No message shows a secret."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any

from pydantic_core import ErrorDetails

from router.config.json_schema import form_at, names_at
from router.config.problems import Place

_KEY = "[key]"
_TYPES = {
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "string_type": "must be text",
}
_SECTIONS = {
    "dict_type": "must be a section with a name and a colon for each entry",
    "dataclass_type": "must be a section (indented key: value lines)",
    "model_type": "must be a section (indented key: value lines)",
    "model_attributes_type": "must be a section (indented key: value lines)",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
}


def place_of(error: ErrorDetails) -> Place:
    """Where the mistake is. A relation between fields is placed at the first field that its text names."""
    place = tuple(part for part in error["loc"] if part != _KEY)
    given = error.get("input")
    if error["type"] == "value_error" and isinstance(given, dict):
        words = re.findall(r"\w+", error["msg"])
        named = next((word for word in words if word in given), None)
        return (*place, named) if named else place
    return place


def words_of(error: ErrorDetails, place: Place) -> str:
    """What is wrong at a place, and the way out."""
    kind, context = error["type"], error.get("ctx", {})
    if kind == "missing":
        return "is required, but missing"
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        return unknown_name(str(error["loc"][-1]), names_at(tuple(error["loc"][:-1])), "key")
    if _KEY in error["loc"]:
        return "is no usable name: use letters, digits, '_', '-' and '.', at most 63, a letter or digit at both ends"
    if kind == "value_error":
        return str(context.get("error", error["msg"])).removeprefix(f"{place[-1] if place else ''} ")
    if kind in _SECTIONS:
        example = _example(place) if kind == "tuple_type" else ""
        return f"{_SECTIONS[kind]}{example}{_not_what(error, shown=False)}"
    if kind in _TYPES:
        quote = " (put it in quotes)" if kind == "string_type" and isinstance(error.get("input"), int | float) else ""
        return f"{_TYPES[kind]}{_not_what(error)}{quote}"
    if kind == "enum":
        return f"must be one of {_choices(context)}{_not_what(error)}"
    return f"{_bounds(kind, context, error['msg'])}{_not_what(error)}"


def unknown_name(name: str, known: Sequence[str], what: str) -> str:
    """Refuse a name, with the nearest known one, or all of them when few."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if near:
        return f"is an unknown {what}: did you mean {near[0]}?"
    return f"is an unknown {what}: known here {'is' if len(known) == 1 else 'are'} {', '.join(known) or 'none'}"


def _example(place: Place) -> str:
    """Of a list that may stand at a place."""
    if place[-1:] == ("tokens",):
        return ", such as [env:A_TOKEN]"
    match form_at(place).get("items", {}).get("type"):
        case "integer":
            return ", such as [2, 3]"
        case "string":
            return ", such as [a, b]"
        case _:
            return ""


def _bounds(kind: str, context: dict[str, Any], message: str) -> str:
    match kind:
        case "greater_than_equal":
            return f"must be at least {context['ge']}"
        case "less_than_equal":
            return f"must be at most {context['le']}"
        case "string_too_short":
            return "must not be empty"
        case "string_pattern_mismatch":
            return "must be a name: letters, digits, '_', '-' and '.', at most 63, a letter or digit at both ends"
        case _:
            return message[:1].lower() + message[1:]


def _choices(context: dict[str, Any]) -> str:
    return str(context.get("expected", "")).replace(" or ", ", ").replace("'", "")


def _not_what(error: ErrorDetails, *, shown: bool = True) -> str:
    given = error.get("input")
    if given is None:
        return ", but nothing stands there"
    if isinstance(given, dict):
        return ", not a section"
    if isinstance(given, list | tuple):
        return ", not a list"
    if not shown or given == "":
        return ""
    text = str(given) if not isinstance(given, bool) else str(given).lower()
    return f", not {text!r}" if isinstance(given, str) else f", not {text}"
