"""The floors as data, and the reader that finds what breaks them. test_floors.py runs it over this repository."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 40
REFUSED_NAMES = frozenset({"util", "utils", "helper", "helpers", "common", "misc", "manager", "managers"})
CLOCKS_AND_CHANCE = frozenset({"time", "random", "uuid", "secrets", "datetime"})
VALUES = frozenset({"__future__", "bisect", "collections", "dataclasses", "enum", "functools", "hashlib", "heapq",
                    "itertools", "math", "re", "struct", "types", "typing"})
"""The part of the standard library that only makes values."""


@dataclass(frozen=True)
class Room:
    """What one folder, or one file on top, may import."""

    rooms: frozenset[str] = frozenset()
    libraries: frozenset[str] = frozenset()
    """Beside the standard library."""
    standard: frozenset[str] = frozenset(sys.stdlib_module_names)
    pure: bool = False
    """No mutable state on module or class level either."""


def room(rooms: str = "", libraries: str = "", standard: frozenset[str] | None = None, *, pure: bool = False) -> Room:
    return Room(frozenset(rooms.split()), frozenset(libraries.split()),
                Room.standard if standard is None else standard, pure)


EVERY_ROOM = (
    "model decisions engine ports system postgres sql topology journal encoding telemetry config api devcluster console"
)
ROOMS: Mapping[str, Room] = {
    "model": room(standard=VALUES, pure=True),
    "decisions": room("model", standard=VALUES, pure=True),
    "ports": room("model", standard=VALUES),
    "engine": room("decisions ports model", "tenacity", Room.standard - CLOCKS_AND_CHANCE),
    "postgres": room("ports model", "psycopg psycopg_pool"),
    "sql": room("ports model", "postgast google"),
    "topology": room("ports model"),
    "journal": room("ports model"),
    "encoding": room("ports model", "pointsman google"),
    "telemetry": room("ports model", "structlog prometheus_client"),
    "config": room("ports model", "pydantic pydantic_core yaml"),
    "api": room("engine ports model", "grpc grpc_health grpc_reflection google pointsman jwt cryptography"),
    "devcluster": room("", "psycopg"),
    "console": room("config model", "grpc grpc_health pointsman rich typer"),
    "system": room("ports model"),
    "early_signals": room(),
    "interpreter": room(),
    "live_configuration": room(EVERY_ROOM),
    "tenant_store": room(f"{EVERY_ROOM} live_configuration"),
    "data_plane": room(EVERY_ROOM),
    "control_plane": room(f"{EVERY_ROOM} live_configuration tenant_store", "psycopg"),
    "workers": room(f"{EVERY_ROOM} data_plane control_plane live_configuration interpreter", "prometheus_client"),
    "app": room(f"{EVERY_ROOM} data_plane control_plane live_configuration workers interpreter early_signals"),
    "dev": room(f"{EVERY_ROOM} app interpreter"),
    "tenant_setup": room(EVERY_ROOM, "psycopg"),
    "tenant_commands": room(f"{EVERY_ROOM} tenant_setup", "psycopg typer"),
    "cli": room(f"{EVERY_ROOM} app dev interpreter early_signals tenant_commands", "rich typer"),
    "__init__": room(),
    "__main__": room("cli"),
}
ONLY_IN = {"tenacity": "router/engine/attempts.py"}
"""A library that one file of its room imports."""
CLIENT = room("", "grpc google pointsman")
"""The client: what a service that calls us gets installed."""

LONG_FUNCTIONS: Mapping[str, str] = {}
"""`path:function` of those that may be longer, and why."""

_MUTABLE_CALLS = frozenset({"list", "dict", "set", "defaultdict", "Counter", "deque", "OrderedDict", "bytearray"})
_READ_ONLY = frozenset({"Mapping", "Sequence", "Collection", "Set", "frozenset", "tuple"})


def violations(root: Path) -> Iterator[str]:
    """Every broken rule under a repository's root, as `path:line: words`."""
    for folder, client in ((root / "router", False), (root / "clients/python/pointsman", True)):
        for path in sorted(folder.rglob("*.py")) if folder.is_dir() else ():
            inside = path.relative_to(folder)
            if client and inside.parts[0] == "v1":
                continue  # generated
            yield from _file(path.relative_to(root), inside, path.read_text(), client)


def _file(path: Path, inside: Path, text: str, client: bool) -> Iterator[str]:
    tree = ast.parse(text, str(path))
    name = inside.parts[0] if len(inside.parts) > 1 else inside.stem
    lines = text.count("\n")
    if lines > MAX_FILE_LINES:
        yield f"{path}: {lines} lines, at most {MAX_FILE_LINES}: split it by what it answers"
    for part in (*inside.parts[:-1], inside.stem):
        if REFUSED_NAMES & set(part.lower().split("_")):
            yield f"{path}: the name {part!r} says nothing: name it after what it holds"
    home = CLIENT if client else ROOMS.get(name)
    if home is None:
        yield f"{path}: no room named {name!r}: give it a line in ROOMS"
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for words in _import(node, name, home, path):
                yield f"{path}:{node.lineno}: {words}"
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = _length(node)
            if length > MAX_FUNCTION_LINES and f"{path}:{node.name}" not in LONG_FUNCTIONS:
                yield f"{path}:{node.lineno}: {node.name} has {length} lines, at most {MAX_FUNCTION_LINES}"
        elif isinstance(node, ast.Global) and home.pure:
            yield f"{path}:{node.lineno}: global state"
        elif isinstance(node, ast.Module | ast.ClassDef) and home.pure:
            for line in _mutable(node):
                yield f"{path}:{line}: mutable state shared by everyone: annotate it Mapping or Sequence, or move it"


def _import(node: ast.Import | ast.ImportFrom, name: str, home: Room, path: Path) -> Iterator[str]:
    """What an import breaks; also one under TYPE_CHECKING or inside a function: a floor is a floor."""
    if isinstance(node, ast.ImportFrom) and node.level:
        yield "a relative import hides its floor"
        return
    modules = [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        own = [f"router.{alias.name}" for alias in node.names if alias.name in ROOMS]
        modules = own if node.module == "router" else [node.module or ""]
    for module in modules:
        top, *below = module.split(".")
        if top == "router":
            if not below or below[0] == name or below[0] in home.rooms:
                continue
            yield f"{name} must not import router.{below[0]}"
        elif top in sys.stdlib_module_names:
            if top not in home.standard:
                yield f"{name} must not import {top}"
        elif top not in home.libraries:
            yield f"{name} must not import the library {top}"
        elif ONLY_IN.get(top, str(path)) != str(path):
            yield f"only {ONLY_IN[top]} imports {top}"


def _length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring."""
    length = (node.end_lineno or node.lineno) - node.lineno + 1
    first = node.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        length -= (first.end_lineno or first.lineno) - first.lineno + 1
    return length


def _mutable(owner: ast.Module | ast.ClassDef) -> Iterator[int]:
    for node in owner.body:
        if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
            continue
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        dunder = isinstance(target, ast.Name) and target.id.startswith("__")
        promised = isinstance(node, ast.AnnAssign) and any(
            isinstance(part, ast.Name) and part.id in _READ_ONLY for part in [_outer(node.annotation)])
        made = node.value.func if isinstance(node.value, ast.Call) else None
        called = isinstance(made, ast.Name) and made.id in _MUTABLE_CALLS
        displayed = isinstance(node.value, ast.List | ast.Dict | ast.Set | ast.ListComp | ast.DictComp | ast.SetComp)
        if (called or displayed) and not dunder and not promised:
            yield node.lineno


def _outer(annotation: ast.expr) -> ast.expr:
    """Mapping of Mapping[str, int]; of ClassVar[Mapping[...]] what is inside."""
    while isinstance(annotation, ast.Subscript):
        if isinstance(annotation.value, ast.Name) and annotation.value.id in ("ClassVar", "Final"):
            annotation = annotation.slice
        else:
            annotation = annotation.value
    return annotation
