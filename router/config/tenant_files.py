"""The folder of tenants' files: listing, reading, and writing in a way that no crash can leave half a file."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

from router.config.file_stamps import Stamp, stamp_of

SUFFIX = ".yaml"
MOST_BYTES = 1 << 20
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")


def usable(name: str) -> bool:
    """Whether a tenant, and so its file, may be called so: never a path, never hidden."""
    return _NAME.fullmatch(name) is not None


def path_of(folder: Path, name: str) -> Path:
    """Where a tenant's file is."""
    return folder / f"{name}{SUFFIX}"


def listed(folder: Path, known: Callable[[str], Stamp] = lambda _: None) -> dict[str, Stamp]:
    """Tenants that have a file, and what each looks like now. OSError when the folder cannot be read.

    known: stamps of before, which are believed of files that are still the same ones (by inode, which the folder itself
    tells): finds what came, went or was replaced among ten thousand, not what was written into.
    Names that begin with a dot are an editor's, or Kubernetes' own.
    """
    found: dict[str, Stamp] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.endswith(SUFFIX) or entry.name.startswith("."):
                continue
            name = entry.name[: -len(SUFFIX)]
            before = known(name)
            same = before is not None and before[2] == entry.inode() and not entry.is_symlink()
            found[name] = before if same else stamp_of(entry.path)
    return found


def version_of(text: bytes) -> str:
    """What tells one content of a file from another."""
    return hashlib.sha256(text).hexdigest()[:16]


def write(folder: Path, name: str, text: bytes) -> Stamp:
    """Replace a tenant's file as a whole, on disk when this returns. OSError when that cannot be done."""
    handle, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=folder)
    try:
        with os.fdopen(handle, "wb") as sink:
            sink.write(text)
            sink.flush()
            os.fchmod(sink.fileno(), 0o640)
            os.fsync(sink.fileno())
        os.replace(temporary, path_of(folder, name))
    except BaseException:
        os.unlink(temporary)
        raise
    _sync(folder)
    return stamp_of(path_of(folder, name))


def remove(folder: Path, name: str) -> None:
    """Take a tenant's file away. OSError when that cannot be done."""
    os.unlink(path_of(folder, name))
    _sync(folder)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
