"""Mistakes in a configuration: each with its place, all told at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from router.config.file_stamps import Stamp

Place = tuple[str | int, ...]
"""Keys and list positions from the top of the document to a value."""


def place_text(place: Place) -> str:
    """A place as an operator writes it: tenants.acme.tokens[0]."""
    text = ""
    for part in place:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{part}" if text else part
    return text


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One mistake. line counts from 1 (0: the whole file); path is the place in dotted form, empty for the file."""

    line: int
    path: str
    message: str
    source: str = ""
    """The file, where it is not the main one."""

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class ConfigProblems(Exception):
    """A configuration cannot be used; problems are in the order of their lines. str() is one line for each.

    files: what was read for it; when one of them changes, it may be worth another look.
    """

    def __init__(self, source: Path, problems: Iterable[Problem], files: Mapping[str, Stamp] | None = None) -> None:
        self.source = source
        self.files = dict(files or {})
        self.problems = tuple(sorted(set(problems)))
        super().__init__("\n".join(self.lines()))

    def lines(self) -> tuple[str, ...]:
        """Each problem as "file:line: path: message"."""
        return lines(self.source, self.problems)


def lines(source: Path, problems: Iterable[Problem]) -> tuple[str, ...]:
    """Each problem as "file:line: path: message". source: the file of those that name none."""
    named = ((one.source or str(source), one) for one in problems)
    return tuple(f"{file}:{one.line}: {one}" if one.line else f"{file}: {one}" for file, one in named)
