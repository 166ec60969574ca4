"""Putting a mutant into a tree of files, or into the running process.

In the running process a function's code is replaced by that of the changed source, so that whoever holds the function
has the bug; only changes inside functions can be planted so.
"""

from __future__ import annotations

import importlib
import inspect
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
SEEDS = 25
FAULT_S = 20.0


@dataclass(frozen=True)
class Mutant:
    """One bug: in this file, this text instead of that."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...] = ()
    """What pytest is told to run; at least one test must fail."""
    faults: str = ""
    """Or the simulation, with faults of these kinds only: one of the first SEEDS seeds must be broken."""
    scenarios: str = ""
    """... and with these further callers."""
    seed: int = 1
    """Looked at first: it shows the bug, unless the simulation has changed since."""

    def apply(self, source: str) -> str:
        """The changed text. ValueError unless the old one is there exactly once."""
        if source.count(self.old) != 1:
            raise ValueError(f"{self.name}: found {source.count(self.old)} times in {self.file}: {self.old!r}")
        return source.replace(self.old, self.new)

    def plant(self, root: Path) -> None:
        """Into a copy of the tree."""
        path = root / self.file
        path.write_text(self.apply(path.read_text()))


@contextmanager
def planted(mutant: Mutant) -> Iterator[None]:
    """The bug is in this process, until the end of the block."""
    module = importlib.import_module(mutant.file.removesuffix(".py").replace("/", "."))
    source = mutant.apply((ROOT / mutant.file).read_text())
    changed: dict[str, object] = {"__name__": module.__name__, "__file__": module.__file__}
    exec(compile(source, str(module.__file__), "exec"), changed)
    before: list[tuple[types.FunctionType, types.CodeType]] = []
    for own, other in _functions(vars(module), changed, module.__name__):
        if own.__code__ != other.__code__:
            before.append((own, own.__code__))
            own.__code__ = other.__code__
    if not before:
        raise ValueError(f"{mutant.name} changes no function")
    try:
        yield
    finally:
        for function, code in before:
            function.__code__ = code


def _functions(
    own: dict[str, object] | types.MappingProxyType[str, object], other: object, module: str
) -> Iterator[tuple[types.FunctionType, types.FunctionType]]:
    """Functions of the same name in both, also those of classes."""
    others = other if isinstance(other, dict) else vars(other)
    for name, value in own.items():
        twin = others.get(name)
        value, twin = _plain(value), _plain(twin)
        if isinstance(value, types.FunctionType) and isinstance(twin, types.FunctionType):
            if value.__module__ == module and value is not twin:
                yield value, twin
        elif inspect.isclass(value) and inspect.isclass(twin) and value.__module__ == module and value is not twin:
            yield from _functions(vars(value), twin, module)


def _plain(value: object) -> object:
    if isinstance(value, property):
        return value.fget
    return value.__func__ if isinstance(value, staticmethod | classmethod) else value
