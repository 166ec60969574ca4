"""YAML text → plain values, and the line of each. Keys are always text; nothing is judged beyond YAML itself."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace
from typing import Any

import yaml

from router.config.problems import Place, Problem, place_text

_MERGE = "tag:yaml.org,2002:merge"
# libyaml reads a file of ten thousand tenants in a second, the same in Python takes ten.
_LOADER: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_MOST_DEPTH = 100
_FEW_VALUES = 20_000
_BRACKETS = re.compile(r"[\[\]{}]")
_INDENT = re.compile(rf"^[ ?:-]{{{_MOST_DEPTH},}}", re.MULTILINE)


@dataclass(slots=True)
class Document:
    """A parsed file. lines maps a place to the line (from 1) on which it stands; problems are those of YAML."""

    values: dict[str, Any] = field(default_factory=dict)
    lines: dict[Place, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    settled: set[Place] = field(default_factory=set)
    """Places that were wrong and have been repaired: whatever follows from them is not told again."""

    sources: dict[str, str] = field(default_factory=dict)
    """Files of tenants that stand in files of their own, by name."""

    def line(self, place: Place) -> int:
        """The line of a place, or of the nearest section around it that stands in the file; 0 when none does."""
        for end in range(len(place), -1, -1):
            if place[:end] in self.lines:
                return self.lines[place[:end]]
        return 0

    def is_sound(self, *places: Place) -> bool:
        """Whether nothing at or in these places, or around them, had to be repaired: only then their values count."""
        return not any(
            place[: len(wrong)] == wrong or wrong[: len(place)] == place for wrong in self.settled for place in places
        )

    def report(self, place: Place, message: str) -> None:
        """Note a problem, unless its place, or a section around it, is settled."""
        if any(place[:end] in self.settled for end in range(1, len(place) + 1)):
            return
        source = self.sources.get(str(place[1]), "") if len(place) > 1 and place[0] == "tenants" else ""
        self.problems.append(Problem(self.line(place), place_text(place[2:] if source else place), message, source))

    def add_tenant(self, name: str, tenant: Document, source: str) -> None:
        """Take in a tenant's section that stands in a file of its own."""
        self.values["tenants"][name] = tenant.values
        self.sources[name] = source
        self.lines.update({("tenants", name, *place): line for place, line in tenant.lines.items()})
        for problem in tenant.problems:
            self.problems.append(replace(problem, source=source))


def parse(text: str, needs: str = "clusters and tenants", example: str = "clusters") -> Document:
    """Read YAML. Mistakes of form are in the document's problems; this raises nothing.

    needs, example: keys that an empty file, and one without any, is told of.
    """
    document = Document()
    try:
        if _is_deep(text):
            document.problems.append(Problem(0, "", f"is nested more than {_MOST_DEPTH} levels deep: use fewer"))
            return document
        loader = _LOADER(text)
        node = loader.get_single_node()
        if node is None:
            document.problems.append(Problem(0, "", f"the file is empty: it needs at least {needs}"))
        elif not isinstance(node, yaml.MappingNode):
            document.problems.append(Problem(1, "", f"must hold sections (key: value lines), such as {example}:"))
        else:
            values = _Builder(loader, document, len(text)).build(node, ())
            document.values = values if isinstance(values, dict) else {}
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        said = " ".join(part for part in (error.context, error.problem) if part)
        line = mark.line + 1 if mark else 0
        document.problems.append(Problem(line, "", f"is not valid YAML: {said} (look at this line and the one above)"))
    except (yaml.YAMLError, ValueError) as error:
        # The reader's own errors (control characters) quote the place, not the text, so no secret can leak by them.
        document.problems.append(Problem(0, "", f"is not valid YAML: {str(error).splitlines()[0]}"))
    return document


def _is_deep(text: str) -> bool:
    """Whether its nesting would end the process: libyaml composes by recursion. A glance tells of all usual files."""
    depth = most = 0
    for bracket in _BRACKETS.findall(text):
        depth += 1 if bracket in "[{" else -1
        most = max(most, depth)
        depth = max(depth, 0)
    if most <= _MOST_DEPTH and not _INDENT.search(text):
        return False
    depth = 0
    for event in yaml.parse(text, Loader=_LOADER):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > _MOST_DEPTH:
            return True
    return False


class _Builder:
    """Builds values from YAML nodes while noting lines; PyYAML's own constructor forgets them."""

    def __init__(self, loader: yaml.SafeLoader, document: Document, size: int) -> None:
        """size: of the text (characters): without aliases no file has more values."""
        self._loader = loader
        self._document = document
        self._open: set[int] = set()
        self._built = 0
        self._most = max(_FEW_VALUES, size)

    def build(self, node: yaml.Node, place: Place) -> object:
        self._document.lines.setdefault(place, node.start_mark.line + 1)
        self._built += 1
        if self._built > self._most:
            raise ValueError(f"more than {self._most} values: aliases (*name) of aliases multiply, write fewer")
        if id(node) in self._open:
            self._document.report(place, "refers to itself (a YAML alias inside its own anchor)")
            return None
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, place)
            if isinstance(node, yaml.SequenceNode):
                return [self.build(child, (*place, index)) for index, child in enumerate(node.value)]
            return self._scalar(node, place)
        finally:
            self._open.discard(id(node))

    def _mapping(self, node: yaml.MappingNode, place: Place) -> dict[str, object]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag == _MERGE:
                continue
            if isinstance(key.value, str) and key.value in seen:
                path = place_text((*place, key.value))
                self._document.problems.append(
                    Problem(key.start_mark.line + 1, path, "is given twice: keep one of them")
                )
            elif isinstance(key.value, str):
                seen.add(key.value)
        self._loader.flatten_mapping(node)
        values: dict[str, object] = {}
        for key, child in node.value:
            # `on:` or `12:` as a name stays the text that was written, not True or 12.
            name = key.value if isinstance(key, yaml.ScalarNode) else "?"
            self._document.lines[(*place, name)] = key.start_mark.line + 1
            values[name] = self.build(child, (*place, name))
        return values

    def _scalar(self, node: yaml.Node, place: Place) -> object:
        try:
            value = self._loader.construct_object(node)
        except (yaml.YAMLError, ValueError) as error:
            self._document.report(place, f"cannot be read: {str(error).splitlines()[0]}")
            return None
        except (LookupError, AttributeError, ArithmeticError):  # PyYAML's own way with a tag that is not its text's
            self._document.report(place, f"cannot be read: it is not what its tag says ({node.tag})")
            return None
        if isinstance(value, float) and not math.isfinite(value):
            self._document.report(place, "must be a finite number")
            return None
        if value is None or isinstance(value, bool | int | float | str):
            return value
        return node.value  # dates and binary have no meaning here; keep what was written
