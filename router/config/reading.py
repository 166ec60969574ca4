"""Reading a configuration for a router that serves: small ones here, large ones in a process of their own.

Ten thousand tenants take seconds of Python to read, and leave 40 MiB of memory behind of which nothing can be given
back, so scattered is what remains in it; pydantic and YAML are 11 MiB more. A process that ends takes all of that
along, and while it reads, the router's own loop has the interpreter to itself. What it has read comes back as pickles
of a few hundred tenants each, so that taking one holds the interpreter for a millisecond or two.

`python -m router.config.reading SOURCE [text]` is that process; text: the main file's text comes on its input.
"""

from __future__ import annotations

import gc
import itertools
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, TypeVar

from router.config.loaded import LoadedConfig
from router.config.problems import ConfigProblems
from router.config.regular_files import read_regular
from router.model.topology import Topology

SMALL_BYTES = 64 * 1024
"""Of the main file: less is read in tens of milliseconds."""
_PART = 250
"""Tenants a pickle."""
_T = TypeVar("_T")


def begin(source: Path) -> Callable[[], LoadedConfig]:
    """Start to read, leniently (see loading.load_leniently); what is returned waits for the end, and raises
    ConfigProblems. For a process that starts and has something to do meanwhile."""
    if is_small(source) and not _has_folder(source):
        return lambda: read_here(source)
    return _started(source)


def read(source: Path, text: str = "", *, large: bool = False) -> LoadedConfig:
    """Read leniently while the router serves. text: in place of the main file's own; large: whatever its size is.
    ConfigProblems; blocking."""
    if large or (len(text) >= SMALL_BYTES if text else not is_small(source)):
        return _started(source, text)()
    return read_here(source, text)


def read_here(source: Path, text: str = "") -> LoadedConfig:
    """In this process."""
    from router.config import loading

    return loading.load_text_leniently(text, source) if text else loading.load_leniently(source)


def is_small(source: Path) -> bool:
    """Whether reading the main file takes no time worth mentioning."""
    try:
        return source.stat().st_size < SMALL_BYTES
    except OSError:
        return True


def _has_folder(source: Path) -> bool:
    try:
        return b"tenants_dir" in read_regular(source, SMALL_BYTES)  # not from a pipe, which gives its text once
    except OSError:
        return False


# --- the router's end ----------------------------------------------------------------------------------------------


def _started(source: Path, text: str = "") -> Callable[[], LoadedConfig]:
    process = subprocess.Popen(
        [sys.executable, "-m", __name__, str(source), *(["text"] if text else [])],
        stdin=subprocess.PIPE if text else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )

    def result() -> LoadedConfig:
        assert process.stdout is not None
        with process:
            if process.stdin is not None:
                process.stdin.write(text.encode())
                process.stdin.close()
            try:
                return _taken(process.stdout)
            except (EOFError, pickle.UnpicklingError):
                process.stdout.close()
                raise RuntimeError(f"the process that reads {source} ended with {process.wait()}") from None

    return result


def _taken(stream: IO[bytes]) -> LoadedConfig:
    unpickler = pickle.Unpickler(stream)
    head: LoadedConfig | tuple[Any, ...] = unpickler.load()
    if isinstance(head, tuple):
        raise ConfigProblems(*head)
    book = head.book
    if book is None:
        tenants = {one.name: one for part in _parts(unpickler) for one in part}
    else:
        for part in _parts(unpickler):
            for name, entry in part:
                book.put(name, entry)
        book.refused, tenants = unpickler.load(), book.tenants
    return replace(head, topology=Topology(head.topology.clusters, tenants))


def _parts(unpickler: pickle.Unpickler) -> Iterator[Any]:
    while part := unpickler.load():
        yield part


# --- the other end -------------------------------------------------------------------------------------------------


def _send(sink: IO[bytes], source: Path, text: str) -> None:
    pickler = pickle.Pickler(sink, pickle.HIGHEST_PROTOCOL)  # one, so that what parts share is sent once
    try:
        loaded = read_here(source, text)
    except ConfigProblems as found:
        pickler.dump((found.source, found.problems, found.files))
        return
    book, topology = loaded.book, loaded.topology
    pickler.dump(replace(loaded, topology=Topology(topology.clusters, {}), book=book and book.empty_copy()))
    for part in _cut(topology.tenants.values() if book is None else book.entries.items()):
        pickler.dump(part)
    pickler.dump(())
    if book is not None:
        pickler.dump(book.refused)


def _cut(whole: Iterable[_T]) -> Iterator[tuple[_T, ...]]:
    rest = iter(whole)
    while part := tuple(itertools.islice(rest, _PART)):
        yield part


def main() -> None:
    """Read, send, end."""
    gc.disable()
    sink = sys.stdout.buffer
    _send(sink, Path(sys.argv[1]), sys.stdin.buffer.read().decode() if sys.argv[2:] else "")
    sink.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
