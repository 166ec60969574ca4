"""Validate a document again and again, each time with what was wrong repaired, so that one mistake hides no other.

pydantic stops a section at its first relation, and checks no relation where a field has the wrong type. So the
offending piece is taken out; if it is required, a placeholder of its type goes in, and nothing more is told about it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from router.config.document import Document
from router.config.json_schema import form_at
from router.config.problems import Place
from router.config.schema import FileConfig
from router.config.wording import place_of, words_of

_MOST_ROUNDS = 50


def validate(document: Document) -> FileConfig | None:
    """The document as a configuration, with placeholders where it was wrong; None when it is beyond repair.

    Every mistake is added to the document's problems; the places repaired are settled there.
    """
    values = copy.deepcopy(document.values)
    for _ in range(_MOST_ROUNDS):
        try:
            config = FileConfig.model_validate(values)
        except ValidationError as failure:
            errors = [(place_of(error), error) for error in failure.errors(include_url=False)]
            for place, error in errors:
                document.report(place, words_of(error, place))
            for place, error in errors:
                if not place:
                    return None
                _repair(values, place, fill=error["type"] == "missing")
                document.settled.add(place)
            continue
        _report_booleans(document, document.values, config, ())
        return config
    return None


def _repair(values: dict[str, Any], place: Place, *, fill: bool) -> None:
    """Take a piece out; put a placeholder in where something is missing, or where neighbours would change position."""
    inner: Any = values
    for part in place[:-1]:
        try:
            inner = inner[part]
        except (KeyError, IndexError, TypeError):
            return  # a neighbour's mistake in this round has already taken the section out
    last: Any = place[-1]
    if fill or isinstance(inner, list):
        inner[last] = _placeholder(place)
    elif isinstance(inner, dict):
        inner.pop(last, None)


def _placeholder(place: Place) -> object:
    form = form_at(place)
    match form.get("type"):
        case "string":
            return "env:missing" if str(form.get("pattern", "")).startswith("^(env:") else "missing"
        case "array":
            return []
        case "object":
            return {}
        case _:
            return 1


def _report_booleans(document: Document, given: object, valid: object, place: Place) -> None:
    """YAML reads `yes` as true, and pydantic takes true for the number 1: nobody means that."""
    if isinstance(given, dict):
        for key, child in given.items():
            inner = valid.get(key) if isinstance(valid, Mapping) else getattr(valid, key, None)
            if inner is not None:
                _report_booleans(document, child, inner, (*place, key))
    elif isinstance(given, bool) and not isinstance(valid, bool):
        document.report(place, f"must be a number, not {str(given).lower()}")
