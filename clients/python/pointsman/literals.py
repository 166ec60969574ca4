"""Reading PostgreSQL's text forms of arrays, ranges and multiranges, with the element's decoder as argument."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from pointsman.values import EMPTY_RANGE, MultiRange, Range

Decoder = Callable[[str], Any]

_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_TOKENS: dict[str, re.Pattern[str]] = {
    delimiter: re.compile(rf'([{{}}])|"((?:[^"\\]|\\.)*)"|((?:[^"\\{{}}{delimiter}]|\\.)+)|{delimiter}', re.DOTALL)
    for delimiter in ",;"
}
_RANGE = re.compile(
    r'([\[(])("(?:[^"\\]|\\.|"")*"|(?:[^"\\,()\[\]]|\\.)*),("(?:[^"\\]|\\.|"")*"|(?:[^"\\,()\[\]]|\\.)*)([\])])',
    re.DOTALL,
)


def parse_array(text: str, decode: Decoder | None, delimiter: str = ",") -> list[Any]:
    """An array literal as nested lists; bounds before it ("[0:2]={…}") are dropped. ValueError when it is none."""
    if text.startswith("["):
        text = text[text.index("=") + 1 :]
    if not (text.startswith("{") and text.endswith("}")):
        raise ValueError(f"not an array: {text[:40]!r}")
    body = text[1:-1]
    if not body:
        return []
    if '"' not in body and "{" not in body and "\\" not in body:
        parts = body.split(delimiter)
        if "NULL" in parts:
            return [None if part == "NULL" else part if decode is None else decode(part) for part in parts]
        return parts if decode is None else list(map(decode, parts))
    return _nested(text, decode, _TOKENS[delimiter])


def _nested(text: str, decode: Decoder | None, tokens: re.Pattern[str]) -> list[Any]:
    root: list[Any] = []
    stack = [root]
    end = 0
    for token in tokens.finditer(text):
        if token.start() != end:
            break
        end = token.end()
        brace, quoted, bare = token.groups()
        if brace == "{":
            inner: list[Any] = []
            stack[-1].append(inner)
            stack.append(inner)
        elif brace == "}":
            stack.pop()
        elif bare == "NULL":
            stack[-1].append(None)
        elif bare is not None or quoted is not None:
            item = _ESCAPED.sub(r"\1", bare if quoted is None else quoted)
            stack[-1].append(item if decode is None else decode(item))
    if end != len(text) or len(stack) != 1 or len(root) != 1:
        raise ValueError(f"not an array: {text[:40]!r}")
    found: list[Any] = root[0]
    return found


def parse_range(text: str, decode: Decoder) -> Range[Any]:
    """A range literal. ValueError when it is none."""
    if text == "empty":
        return EMPTY_RANGE
    found = _RANGE.fullmatch(text)
    if found is None:
        raise ValueError(f"not a range: {text[:40]!r}")
    return _range(found, decode)


def parse_multirange(text: str, decode: Decoder) -> MultiRange:
    """A multirange literal. ValueError when it is none."""
    if not (text.startswith("{") and text.endswith("}")):
        raise ValueError(f"not a multirange: {text[:40]!r}")
    return MultiRange(_range(found, decode) for found in _RANGE.finditer(text, 1, len(text) - 1))


def _range(found: re.Match[str], decode: Decoder) -> Range[Any]:
    opening, lower, upper, closing = found.groups()
    return Range(_bound(lower, decode), _bound(upper, decode), opening + closing)


def _bound(text: str, decode: Decoder) -> Any:
    if not text:
        return None
    if text.startswith('"'):
        text = text[1:-1].replace('""', '\\"')
    return decode(_ESCAPED.sub(r"\1", text))
